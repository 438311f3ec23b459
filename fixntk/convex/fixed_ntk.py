"""The tangent kernel of any network, its layers weighted by the targets.

See docs/mathematics.md, M5, M14 and M15.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from fixntk._checks import is_traced
from fixntk.convex.kernel_mixture import Criterion, KernelMixture, mix_kernels
from fixntk.ntk.empirical import layerwise_ntk
from fixntk.ntk.selection import paths_of
from fixntk.ntk.signatures import canonical, with_one_output, without_model


@dataclass(frozen=True, eq=False)
class FixedNTK:
    """A network's tangent kernel whose layers have learnt weights, with the ridge regression in it.

    Attributes
    ----------
    mixture
        The weights, the criterion and the coefficients.
    names
        Names of the layers: paths of the parameters, or labels of their groups.
    shares
        (m,) shares of the layers in the trace of the weighted kernel; zero where all weights are.
    shares_of_ntk
        (m,) their shares in that of the NTK itself.

    See docs/mathematics.md, M5, M14 and M15.
    """

    mixture: KernelMixture
    names: tuple[Any, ...]
    shares: Float[np.ndarray, " m"]
    shares_of_ntk: Float[np.ndarray, " m"]
    _kernels: Callable[[Any], Array]

    def __repr__(self) -> str:
        return f"FixedNTK({self.mixture!r})"

    def predict(self, x: Any) -> Array:
        """Outputs on new inputs, (n_new,) or (n_new, c), like the targets.

        Parameters
        ----------
        x
            (n_new, …) inputs, or a pytree of them.
        """
        return self.mixture.predict(self._kernels(x))


def fix_ntk(
    f: Callable[..., Any],
    params: Any,
    x: Any = None,
    y: ArrayLike | None = None,
    *,
    groups: Any = None,
    criterion: Criterion = "leave_one_out",
    reg: ArrayLike | None = None,
    batch_size: int | None = None,
    max_iter: int = 200,
    batch_axes: tuple[int, int] = (0, 0),
    kwargs: Mapping[str, Any] | None = None,
) -> FixedNTK:
    """Fix the NTK of a network: weights for the shares of its layers, learnt from the targets.

    The empirical NTK is the sum of the kernels of its parameters (:func:`fixntk.layerwise_ntk`), a mixture whose
    weights have never seen a target. Here :func:`mix_kernels` learns them. The mean of the kernels over all outputs of
    the network is taken, and all columns of y share the weights. The network itself is not trained.

    Parameters
    ----------
    f, params, batch_axes, kwargs
        ``f(params, x)`` of a batch, and its parameters, as for :func:`fixntk.empirical_ntk`: ``fix_ntk(model, x, y)``
        for a Flax or Equinox module.
    x
        (n, …) inputs, or a pytree of them. A kernel takes n² numbers, and there is one for each group.
    y
        (n,) or (n, c) targets. There is no intercept: subtract the mean. For classes pass their indicators, centred.
    groups
        Pytree of labels, a prefix of ``params``, as for :func:`fixntk.layerwise_ntk`: parameters with one label have
        one weight. None gives each array a weight of its own. Groups that do not enter the network are left out.
    criterion, reg, max_iter
        As for :func:`mix_kernels`.
    batch_size
        As for :func:`fixntk.empirical_ntk`.

    Returns
    -------
    FixedNTK
        With ``predict(x)``, the weights, and the criterion's value for the NTK itself.

    Raises
    ------
    TypeError, ValueError
        As :func:`fixntk.layerwise_ntk` and :func:`mix_kernels`; also if y is missing.

    Warns
    -----
    ConvergenceWarning
        As :func:`mix_kernels`.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, fixntk as fx
    >>> params = {"hidden": jax.random.normal(jax.random.key(0), (1, 50)), "head": jnp.ones(50) / 7}
    >>> x = jnp.linspace(-1, 1, 20)[:, None]
    >>> network = lambda p, x: jax.nn.relu(x @ p["hidden"] + 0.5) @ p["head"]
    >>> fixed = fx.fix_ntk(network, params, x, jnp.sin(3 * x[:, 0]))
    >>> fixed.names, fixed.predict(x[:3] + 0.05).shape
    (('head', 'hidden'), (3,))

    See docs/mathematics.md, M5, M14 and M15.
    """
    f, params, inputs = without_model(f, params, {"x": x, "y": y}, "fix_ntk")
    x, y = inputs.values()
    if y is None:
        raise TypeError("y is missing: fix_ntk(f, params, x, y), or fix_ntk(model, x, y) for a module")

    def shares_at(rows: Any, columns: Any) -> dict[Any, Array]:
        g, _, rows, columns = canonical(f, params, {"x": rows, "columns": columns}, batch_axes, kwargs, "fix_ntk")
        options = {"groups": groups, "batch_size": batch_size}
        found = layerwise_ntk(with_one_output(g, params, rows), params, rows, columns, outputs="trace", **options)
        return dict(zip(paths_of(params), jax.tree.leaves(found), strict=True)) if groups is None else found

    if is_traced(params, x, y, reg):
        raise ValueError("fix_ntk cannot be traced: call it outside jit")
    by_name = shares_at(x, None)
    # Parameters that do not enter, and kernels that vanish on these inputs, have no share to weigh.
    names = tuple(name for name, kernel in by_name.items() if float(jnp.trace(kernel)) > 0)
    if not names:
        raise ValueError("no parameter has a kernel on these inputs: the outputs of f do not depend on params there")
    kernels = jnp.stack([0.5 * (by_name[name] + by_name[name].mT) for name in names])
    mixture = mix_kernels(kernels, y, criterion=criterion, reg=reg, max_iter=max_iter)
    traces = np.asarray(jnp.trace(kernels, axis1=1, axis2=2), np.float64)
    weighted = traces * np.asarray(mixture.kernel_weights)

    def kernels_at(rows: Any) -> Array:
        found = shares_at(rows, x)
        return jnp.stack([found[name] for name in names])

    return FixedNTK(mixture, names, weighted / (np.sum(weighted) or 1.0), traces / np.sum(traces), kernels_at)
