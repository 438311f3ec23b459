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

from fixntk._files import replace_when_written
from fixntk.gates.masks import activation_masks
from fixntk.networks.models import GatedReLUNetwork, ReLUNetwork
from fixntk.networks.neurons import Parameters, outputs, reshape_outputs

_TYPES: dict[str, type[GatedReLUNetwork] | type[ReLUNetwork]] = {
    "GatedReLUNetwork": GatedReLUNetwork,
    "ReLUNetwork": ReLUNetwork,
}
# Name and version of the format in the metadata of the files.
_FORMAT = "fixntk network"
_VERSION = 1


def to_dict(network: GatedReLUNetwork | ReLUNetwork) -> dict[str, np.ndarray]:
    """A network's NumPy arrays by name: hidden (m, d), output (m, c), and if present gates (m, d), intercept (c,)."""
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
    ValueError
        If arrays are missing or unknown, or their shapes do not fit together.
    """
    missing = {"hidden", "output"} - set(arrays)
    unknown = set(arrays) - {"hidden", "output", "intercept", "gates"}
    if missing or unknown:
        raise ValueError(
            "a network has the arrays hidden and output, and optionally gates and intercept: "
            + "; ".join(
                f"{problem} are {', '.join(sorted(names))}"
                for problem, names in (("missing", missing), ("unknown", unknown))
                if names
            )
        )
    values = {name: jnp.asarray(value) for name, value in arrays.items()}
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
    """Write a network to a safetensors file, with its type and version in the metadata; needs safetensors.

    Parameters
    ----------
    network
        The network.
    path
        The file. An existing file is replaced only when the new one is complete.
    """
    path = Path(path)
    metadata = {
        "format": _FORMAT,
        "version": str(_VERSION),
        "type": type(network).__name__,
        "squeeze": str(network.squeeze),
    }
    library = _safetensors()
    with replace_when_written(path) as part:
        library.numpy.save_file(to_dict(network), part, metadata=metadata)


def load_network(path: str | Path) -> GatedReLUNetwork | ReLUNetwork:
    """Read a network that :func:`save_network` wrote.

    Float64 arrays become float32 if float64 is off in JAX.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, holds no network, has a newer version, or its shapes do not fit together.
    """
    path, library = Path(path), _safetensors()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with library.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except library.SafetensorError as error:
        raise ValueError(f"{path}: is damaged or not a safetensors file: {error}") from error
    if metadata.get("format") != _FORMAT or metadata.get("type") not in _TYPES:
        raise ValueError(f"{path}: is not the file of a fixntk network")
    if int(metadata.get("version", 0)) > _VERSION:
        raise ValueError(f"{path}: has version {metadata['version']} of the format, this fixntk reads up to {_VERSION}")
    try:
        network = from_dict(arrays, squeeze=metadata.get("squeeze") == "True")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if type(network).__name__ != metadata["type"]:
        raise ValueError(f"{path}: says {metadata['type']} and holds a {type(network).__name__}")
    return network


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("files of networks need safetensors: pip install 'fixntk[networks]'") from error
    return safetensors


def to_flax(network: GatedReLUNetwork | ReLUNetwork) -> tuple[Any, dict[str, Any]]:
    """A Flax (linen) module and its variables: ``module.apply(variables, x)`` gives the network's outputs.

    The collection "params" holds the trained parameters, named as in the network; the collection "gates" holds a gated
    network's gates.
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

    Its leaves are named as in the network. The gradient with respect to the gates is zero.
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
