"""Networks as dicts of arrays, safetensors files, and Flax and Equinox modules."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fixntk._checks import as_float_array
from fixntk._files import FileFormatError, Format, read_arrays, write_arrays
from fixntk.gates.masks import activation_masks
from fixntk.networks.models import GatedReLUNetwork, ReLUNetwork
from fixntk.networks.neurons import Parameters, outputs, reshape_outputs

_FORMAT = Format("fixntk network", version=2)
# Number of axes of each array of a network.
_NDIM = {"hidden": 2, "output": 2, "gates": 2, "intercept": 1}


def to_dict(network: GatedReLUNetwork | ReLUNetwork) -> dict[str, np.ndarray]:
    """A network's NumPy arrays by name: hidden (m, d), output (m, c), and if present gates (m, d), intercept (c,).

    Arrays have no unit, and those of a stack of S networks have a first axis S.

    Raises
    ------
    TypeError
        If it is not a network.

    See docs/mathematics.md, M10.
    """
    if not isinstance(network, GatedReLUNetwork | ReLUNetwork):
        raise TypeError(f"network must be a GatedReLUNetwork or a ReLUNetwork, got {type(network).__name__}")
    arrays = network.parameters._asdict()
    if isinstance(network, GatedReLUNetwork):
        arrays["gates"] = network.gates
    return {name: np.asarray(value) for name, value in arrays.items() if value is not None}


def from_dict(arrays: Mapping[str, ArrayLike], *, squeeze: bool = False) -> GatedReLUNetwork | ReLUNetwork:
    """The network of arrays named as in :func:`to_dict`: a gated network if there are gates.

    Parameters
    ----------
    arrays
        Arrays by name.
    squeeze
        Whether outputs have shape (n,).

    Raises
    ------
    TypeError
        If an array does not hold real numbers.
    ValueError
        If arrays are missing or unknown, hold NaN or infinity, or their shapes do not fit together, or there is no
        neuron.

    See docs/mathematics.md, M10.
    """
    missing = {"hidden", "output"} - set(arrays)
    unknown = set(arrays) - set(_NDIM)
    if missing or unknown:
        raise ValueError(
            "a network has the arrays hidden and output, and optionally gates and intercept: "
            + "; ".join(
                f"{problem} are {', '.join(map(repr, sorted(names)))}"
                for problem, names in (("missing", missing), ("unknown", unknown))
                if names
            )
        )
    values = {name: as_float_array(name, value, (_NDIM[name],)) for name, value in arrays.items()}
    _check_shapes({name: value.shape for name, value in values.items()}, squeeze)
    return GatedReLUNetwork(**values, squeeze=squeeze) if "gates" in values else ReLUNetwork(**values, squeeze=squeeze)


def _check_shapes(shapes: Mapping[str, tuple[int, ...]], squeeze: bool) -> None:
    hidden, output = shapes["hidden"], shapes["output"]
    is_layer_pair = len(hidden) == len(output) == 2 and hidden[0] == output[0]
    has_gates_shape = shapes.get("gates", hidden) == hidden
    has_intercept_shape = shapes.get("intercept", (output[-1],)) == (output[-1],)
    can_squeeze = not squeeze or output[-1] == 1
    if not (is_layer_pair and has_gates_shape and has_intercept_shape and can_squeeze):
        raise ValueError(
            "a network has shapes hidden (m, d), output (m, c), gates (m, d), intercept (c,), got "
            + ", ".join(f"{name} {shape}" for name, shape in sorted(shapes.items()))
            + (" for outputs of shape (n,)" if squeeze else "")
        )


def save_network(network: GatedReLUNetwork | ReLUNetwork, path: str | Path) -> None:
    """Write a network to a safetensors file, with a checksum; needs safetensors.

    Parameters
    ----------
    network
        The network.
    path
        The file. An existing file is replaced only when the new one is complete.

    Raises
    ------
    TypeError
        If it is not a network.
    ValueError
        If the network holds NaN or infinity, has no neuron, or is a stack.

    See docs/mathematics.md, M10.
    """
    # Checked as when it is read, so that every file that is written can be read.
    arrays = to_dict(from_dict(to_dict(network), squeeze=network.squeeze))
    write_arrays(Path(path), _FORMAT, {"type": type(network).__name__, "squeeze": network.squeeze}, arrays)


def load_network(path: str | Path) -> GatedReLUNetwork | ReLUNetwork:
    """Read a network that :func:`save_network` wrote. Nothing in the file is run.

    Float64 arrays become float32 if float64 is off in JAX.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If the file is damaged, holds no network, or has another version; if its weights are not floating-point numbers,
        are infinite or NaN, their shapes do not fit together, or there is no neuron.

    See docs/mathematics.md, M10.
    """
    path = Path(path)
    fields, arrays = read_arrays(path, _FORMAT)
    squeeze = fields.get("squeeze")
    if not isinstance(squeeze, bool):
        raise FileFormatError(f"{path}: squeeze must be true or false, got {squeeze!r}")
    for name, array in arrays.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise FileFormatError(f"{path}: {name} must hold floating-point numbers, got {array.dtype}")
    try:
        network = from_dict(arrays, squeeze=squeeze)
    except ValueError as error:
        raise FileFormatError(f"{path}: {error}") from error
    if type(network).__name__ != fields.get("type"):
        raise FileFormatError(f"{path}: says {fields.get('type')!r} and holds a {type(network).__name__}")
    return network


def to_flax(network: GatedReLUNetwork | ReLUNetwork) -> tuple[Any, dict[str, Any]]:
    """A Flax (linen) module and its variables: ``module.apply(variables, x)`` gives the network's outputs.

    The module takes (n, d) inputs and returns (n, c) outputs, or (n,) as the network does. The collection "params" has
    the trained parameters, of names and shapes as in the network; the collection "gates" has a gated network's gates.

    Parameters
    ----------
    network
        A network, not a stack.

    Raises
    ------
    TypeError
        If it is not a network.
    ModuleNotFoundError
        If Flax is not installed.

    See docs/mathematics.md, M10.
    """
    params = {name: jnp.asarray(value) for name, value in to_dict(network).items()}
    gates = params.pop("gates", None)
    variables: dict[str, Any] = {"params": params}
    if gates is not None:
        variables["gates"] = {"gates": gates}
    module = _flax_module()(
        width=network.hidden.shape[0],
        num_outputs=network.output.shape[1],
        is_gated=gates is not None,
        has_intercept=network.intercept is not None,
        squeeze=network.squeeze,
    )
    return module, variables


@cache
def _flax_module() -> Any:
    from flax import linen as nn

    class TwoLayerNetwork(nn.Module):
        width: int
        num_outputs: int
        is_gated: bool
        has_intercept: bool
        squeeze: bool

        @nn.compact
        def __call__(self, x: Any) -> Any:
            draw, shape = nn.initializers.lecun_normal(in_axis=1, out_axis=0), (self.width, x.shape[1])
            parameters = Parameters(
                hidden=self.param("hidden", draw, shape),
                output=self.param("output", nn.initializers.lecun_normal(), (self.width, self.num_outputs)),
                intercept=self.param("intercept", nn.initializers.zeros, (self.num_outputs,))
                if self.has_intercept
                else None,
            )
            rows, masks = jnp.asarray(x), None
            if self.is_gated:
                drawn = self.variable("gates", "gates", lambda: jax.random.normal(self.make_rng("params"), shape))
                masks = activation_masks(rows, drawn.value)
            return reshape_outputs(outputs(parameters, rows, masks), self.squeeze)

    return TwoLayerNetwork


def to_equinox(network: GatedReLUNetwork | ReLUNetwork) -> Any:
    """An Equinox module, which takes one example: ``jax.vmap(module)(x)`` gives the network's outputs.

    The module takes (d,) inputs and returns (c,) outputs, or a number where the network's outputs are (n,). Its leaves
    have names and shapes as in the network. The gradient with respect to the gates is zero.

    Parameters
    ----------
    network
        A network, not a stack.

    Raises
    ------
    TypeError
        If it is not a network.
    ModuleNotFoundError
        If Equinox is not installed.

    See docs/mathematics.md, M10.
    """
    arrays = {name: jnp.asarray(value) for name, value in to_dict(network).items()}
    return _equinox_module()(
        hidden=arrays["hidden"],
        output=arrays["output"],
        intercept=arrays.get("intercept"),
        gates=arrays.get("gates"),
        squeeze=network.squeeze,
    )


@cache
def _equinox_module() -> Any:
    import equinox

    class TwoLayerNetwork(equinox.Module):
        hidden: Any
        output: Any
        intercept: Any
        gates: Any
        squeeze: bool = equinox.field(static=True)

        def __call__(self, x: Any) -> Any:
            rows = jnp.asarray(x)[None]
            masks = None if self.gates is None else activation_masks(rows, jax.lax.stop_gradient(self.gates))
            parameters = Parameters(self.hidden, self.output, self.intercept)
            return reshape_outputs(outputs(parameters, rows, masks), self.squeeze)[0]

    return TwoLayerNetwork
