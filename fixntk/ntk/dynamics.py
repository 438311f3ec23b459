"""Gradient flow under a fixed kernel in closed form: predictions at any time.

The loss is ½‖f − y‖², a **sum** over rows and outputs, as everywhere in fixntk. neural-tangents' predict module
divides by the number of targets: its learning rate is ours times ``y.size``.

See docs/mathematics.md, M15.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float

from fixntk._checks import as_float_array, describe_fields
from fixntk._numerics import matmul
from fixntk.ntk.kernel_matrices import (
    absolute_reg,
    as_initial_outputs,
    as_kernel_between,
    as_scalar,
    as_times,
    as_training_kernel,
    check_positive_semidefinite,
)
from fixntk.ntk.matrix_functions import apply_function


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class GradientFlow:
    """Gradient flow towards targets under a fixed kernel, decomposed once for all times.

    Made by :func:`gradient_flow`. A pytree, so it goes through ``jit``, ``vmap`` and ``grad``.

    Attributes
    ----------
    y
        (n, …) targets.
    kernel
        (m, m) kernel of the training points with ``reg`` on its diagonal; m is n, or the number of targets for a
        kernel with output axes.
    eigenvalues, eigenvectors
        Its eigendecomposition, (m,) ascending and (m, m).
    cutoff
        Eigenvalues up to here count as zero at t = ∞. Unit of the kernel.
    learning_rate
        α. Time is counted in its steps.
    reg
        λ in the unit of the kernel.
    full
        Whether the kernel has output axes.

    See docs/mathematics.md, M15.
    """

    y: Array
    kernel: Array
    eigenvalues: Array
    eigenvectors: Array
    cutoff: Array
    learning_rate: Array
    reg: Array
    full: bool = field(metadata={"static": True})

    def __repr__(self) -> str:
        return describe_fields("GradientFlow", y=self.y, kernel=self.kernel)

    def predict(
        self,
        t: ArrayLike | None = None,
        kernel_test_train: ArrayLike | None = None,
        *,
        f0: ArrayLike | None = None,
        f0_test: ArrayLike | None = None,
    ) -> Array:
        """Outputs at time t, on the training points or on others.

        Parameters
        ----------
        t
            Times in steps of the learning rate, of any shape, not negative. None and ``inf`` are the limit t = ∞.
        kernel_test_train
            (n_test, n) kernel between other points and the training points, with the output axes that the training
            kernel has. None for the training points. (With a ridge and without this kernel, neural-tangents predicts
            the noisy targets; here the result is the network's outputs on the training points.)
        f0
            Outputs at t = 0 on the **training** points, of the shape of y, or a scalar; 0 when None.
        f0_test
            Outputs at t = 0 on the **other** points, (n_test, …) or a scalar. Required if ``f0`` is given.

        Returns
        -------
        (n, …) or (n_test, …) as y, behind the axes of t, of the kernel's dtype.

        Raises
        ------
        TypeError
            If an argument is not numeric.
        ValueError
            If shapes do not fit together, values are NaN or infinite (t alone may be infinite), a time is negative,
            or only one of ``f0`` and ``f0_test`` is given where both matter.

        See docs/mathematics.md, M15.
        """
        times = as_times(t, self.kernel.dtype)
        f0_train = self._initial_outputs("f0", f0, self.y.shape)
        if kernel_test_train is None:
            if f0_test is not None:
                raise ValueError("f0_test is for other points, but kernel_test_train is None: pass both or neither")
            return training_outputs(self, times, f0_train)
        between = as_kernel_between("kernel_test_train", kernel_test_train, self.y, self.full)
        if (f0 is None) != (f0_test is None):
            raise ValueError(
                "f0 and f0_test must be given together: the outputs at t = 0 on the training points and on the others"
                " are different things (pass 0.0 where they are zero)"
            )
        start = self._initial_outputs("f0_test", f0_test, (between.rows, *self.y.shape[1:]))
        return outputs_elsewhere(self, times, f0_train, start, between.matrix)

    def coefficients(self, t: ArrayLike | None = None, *, f0: ArrayLike | None = None) -> Array:
        """Kernel coefficients A of the outputs f₀ + Θ(·, X) A at time t, of the shape of y behind the axes of t.

        They serve for new points whose kernel does not fit into memory: apply that kernel to them in tiles.

        Raises
        ------
        TypeError, ValueError
            As in :meth:`predict`.

        See docs/mathematics.md, M15.
        """
        return _coefficients(self, as_times(t, self.kernel.dtype), self._initial_outputs("f0", f0, self.y.shape))

    def _initial_outputs(self, name: str, value: ArrayLike | None, shape: tuple[int, ...]) -> Array:
        return as_initial_outputs(name, value, shape, self.kernel.dtype)


def gradient_flow(
    kernel_train: ArrayLike,
    y: ArrayLike,
    *,
    learning_rate: ArrayLike = 1.0,
    diag_reg: ArrayLike = 0.0,
    diag_reg_absolute_scale: bool = False,
    rcond: float | None = None,
) -> GradientFlow:
    r"""Gradient flow on ½‖f − y‖² + (λ/2)‖ϑ − ϑ₀‖² under a fixed kernel, in closed form at every time.

    .. math:: f_t(X') = f_0(X') - Θ(X', X) (Θ + λI)^{-1} (I - e^{-αt(Θ + λI)}) (f_0(X) - y)

    The kernel is decomposed once; ``predict`` of the result takes any times and points. The kernel may be singular:
    directions of eigenvalue zero do not move. Derivatives in the kernel are exact for repeated eigenvalues too.

    The loss is a sum. For the mean over all targets, which is neural-tangents' convention, pass its learning rate
    divided by ``y.size``; ``diag_reg`` is the same in both.

    Parameters
    ----------
    kernel_train
        (n, n) kernel shared by all outputs, or with a pair of axes for each output axis of y, (n, n, c, c), as
        :func:`fixntk.empirical_ntk` and neural-tangents return it. Symmetric and positive semidefinite.
    y
        (n,) or (n, c) targets, or with more output axes. Converted to the kernel's dtype.
    learning_rate
        α > 0. Outputs per unit of time and of the kernel.
    diag_reg
        Ridge, not negative: λ in units of the mean of the kernel's diagonal.
    diag_reg_absolute_scale
        True takes ``diag_reg`` as λ itself.
    rcond
        At t = ∞ eigenvalues up to ``rcond`` times the largest count as zero (the pseudo-inverse). The same holds at
        finite times with αt · cutoff ≥ 1, where rounding errors would determine the result. By default the matrix size
        times the dtype's machine epsilon. With noisy targets, no ridge and eigenvalues that decay without a gap, the
        limit depends on this value: use a ridge there.

    Returns
    -------
    The flow, whose ``predict(t, kernel_test_train, f0=, f0_test=)`` gives the outputs.

    Raises
    ------
    TypeError
        If an argument is not numeric.
    ValueError
        If the kernel is not symmetric or, with the ridge, not positive semidefinite beyond rounding, its shape does not
        fit y, values are NaN or infinite, α ≤ 0, ``diag_reg`` < 0 or ``rcond`` < 0. Values are not checked under a
        JAX transformation.

    References
    ----------
    Lee et al., "Wide neural networks of any depth evolve as linear models under gradient descent", NeurIPS 2019.

    Examples
    --------
    >>> import jax.numpy as jnp, fixntk as fx
    >>> flow = fx.gradient_flow(jnp.diag(jnp.array([1.0, 2.0])), jnp.array([1.0, 1.0]), learning_rate=0.1)
    >>> flow.predict(jnp.inf)  # the targets
    Array([1., 1.], dtype=float32)

    See docs/mathematics.md, M15.
    """
    y = as_float_array("y", y, (1, 2, 3, 4))
    kernel = as_training_kernel(kernel_train, y)
    matrix, dtype = kernel.matrix, kernel.matrix.dtype
    learning_rate = as_scalar("learning_rate", learning_rate, dtype, positive=True)
    reg = absolute_reg(matrix, diag_reg, diag_reg_absolute_scale)
    relative = len(matrix) * jnp.finfo(dtype).eps if rcond is None else as_scalar("rcond", rcond, dtype)
    matrix, eigenvalues, eigenvectors = _decompose(matrix, reg)
    check_positive_semidefinite("kernel_train", eigenvalues, reg)
    # The cutoff is relative to the largest eigenvalue of Θ + λI; the eigenvalues are in ascending order.
    cutoff = relative * jnp.maximum(eigenvalues[-1], 0)
    return GradientFlow(y.astype(dtype), matrix, eigenvalues, eigenvectors, cutoff, learning_rate, reg, kernel.full)


@jax.jit
def training_outputs(flow: GradientFlow, t: Array, f0: Array) -> Array:
    """Outputs on the training points: the outputs at t = 0 plus their displacement."""
    # A kernel with output axes acts on one column of n·c numbers, a shared one on a column for each output.
    change = displacement(flow, scaled_times(flow, t), (flow.y - f0).reshape(flow.kernel.shape[0], -1))
    return f0 + change.reshape(t.shape + flow.y.shape)


@jax.jit
def outputs_elsewhere(flow: GradientFlow, t: Array, f0: Array, f0_test: Array, between: Array) -> Array:
    """Outputs on other points, by the (n_test, n) kernel between them and the training points."""
    residual = (flow.y - f0).reshape(flow.kernel.shape[0], -1)
    # Coefficients φ(Θ + λI)(y − f₀) on the training points, spread by the kernel without a ridge.
    change = matmul(between, kernel_function("inverse", flow, scaled_times(flow, t), residual))
    # The matrix has a row for each point and output if the kernel has output axes, else a row for each point.
    rows = between.shape[0] * residual.shape[1] // math.prod(flow.y.shape[1:])
    return f0_test + change.reshape(*t.shape, rows, *flow.y.shape[1:])


@jax.jit
def _coefficients(flow: GradientFlow, t: Array, f0: Array) -> Array:
    residual = (flow.y - f0).reshape(flow.kernel.shape[0], -1)
    return kernel_function("inverse", flow, scaled_times(flow, t), residual).reshape(t.shape + flow.y.shape)


def scaled_times(flow: GradientFlow, t: Array) -> Float[Array, " t"]:
    """Products αt of the learning rate and the times, flattened to one axis."""
    endless = jnp.isinf(t)
    # Infinite times are not multiplied by α, because the derivative of the product in α would be infinite.
    return jnp.where(endless, jnp.inf, flow.learning_rate * jnp.where(endless, 0, t)).ravel()


def kernel_function(kind: str, flow: GradientFlow, times: Array, vectors: Array) -> Array:
    """A function of the kernel by its name in :mod:`fixntk.ntk.matrix_functions`, applied to vectors, for each time."""
    return apply_function(kind, flow.kernel, flow.eigenvalues, flow.eigenvectors, flow.cutoff, times, vectors)


def displacement(flow: GradientFlow, times: Array, vectors: Array) -> Array:
    """Θ times the coefficients on the training points, without a product that loses precision for singular Θ."""
    # Θ φ(Θ + λI) = (Θ + λI) φ(Θ + λI) − λ φ(Θ + λI), of which the first term is 1 − e^(−s(Θ + λI)), the progress.
    progress, inverse = (kernel_function(kind, flow, times, vectors) for kind in ("progress", "inverse"))
    return progress - flow.reg * inverse


@jax.jit
def _decompose(matrix: Array, reg: Array) -> tuple[Array, Array, Array]:
    # Rounding errors of the kernel may differ above and below its diagonal, and eigh would read one half only.
    matrix = (matrix + matrix.T) / 2 + reg * jnp.eye(len(matrix), dtype=matrix.dtype)
    # apply_function takes derivatives through the matrix alone, because eigenvectors of repeated eigenvalues have no
    # derivative.
    eigenvalues, eigenvectors = jnp.linalg.eigh(lax.stop_gradient(matrix), symmetrize_input=False)
    return matrix, eigenvalues, eigenvectors
