"""Gradient flow under a fixed kernel in closed form: predictions at any time, ensembles, ridge (M15).

The loss is ½‖f − y‖², a **sum** over rows and outputs, as everywhere in fixntk. neural-tangents' predict module
divides by the number of targets: its learning rate is ours times ``y.size``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float

from fixntk._checks import as_float_array, is_traced
from fixntk._numerics import matmul
from fixntk.ntk.spectrum import apply_function


class Gaussian(NamedTuple):
    """Outputs of an ensemble: their mean and their covariance."""

    mean: Array
    covariance: Array


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["y", "kernel", "eigenvalues", "eigenvectors", "cutoff", "learning_rate", "reg"],
    meta_fields=["full"],
)
@dataclass(frozen=True, eq=False)
class GradientFlow:
    """Gradient flow towards targets under a fixed kernel, decomposed once for all times (M15).

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
    """

    y: Array
    kernel: Array
    eigenvalues: Array
    eigenvectors: Array
    cutoff: Array
    learning_rate: Array
    reg: Array
    full: bool

    def predict(
        self,
        t: ArrayLike | None = None,
        kernel_test_train: ArrayLike | None = None,
        *,
        f0: ArrayLike | None = None,
        f0_test: ArrayLike | None = None,
    ) -> Array:
        """Outputs at time t, on the training points or on others (M15).

        Parameters
        ----------
        t
            Times in steps of the learning rate, of any shape, not negative. None and ``inf`` are the limit t = ∞.
        kernel_test_train
            (n_test, n) kernel between other points and the training points, with the output axes that the training
            kernel has. None asks for the training points. (With a ridge neural-tangents' predictions without this
            kernel are those of the noisy targets; here they are the network's outputs on the training points.)
        f0
            Outputs at t = 0 on the **training** points, of the shape of y, or a scalar; 0 when None.
        f0_test
            Outputs at t = 0 on the **other** points, (n_test, …) or a scalar. To be given whenever ``f0`` is.

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
        """
        times = _as_times(t, self.kernel.dtype)
        f0_train = self._initial("f0", f0, self.y.shape)
        if kernel_test_train is None:
            if f0_test is not None:
                raise ValueError("f0_test is for other points, but kernel_test_train is None: pass both or neither")
            return _outputs(self, times, f0_train)
        between = _as_kernel_between("kernel_test_train", kernel_test_train, self)
        if (f0 is None) != (f0_test is None):
            raise ValueError(
                "f0 and f0_test must be given together: the outputs at t = 0 on the training points and on the others"
                " are different things (pass 0.0 where they are zero)"
            )
        start = self._initial("f0_test", f0_test, (between.rows, *self.y.shape[1:]))
        return _outputs_elsewhere(self, times, f0_train, start, between.matrix)

    def coefficients(self, t: ArrayLike | None = None, *, f0: ArrayLike | None = None) -> Array:
        """Kernel coefficients A of the outputs f₀ + Θ(·, X) A at time t, of the shape of y behind the axes of t (M15).

        For new points whose kernel is too large to hold: apply it to them in tiles.

        Raises
        ------
        TypeError, ValueError
            As in :meth:`predict`.
        """
        return _coefficients(self, _as_times(t, self.kernel.dtype), self._initial("f0", f0, self.y.shape))

    def _initial(self, name: str, value: ArrayLike | None, shape: tuple[int, ...]) -> Array:
        value = as_float_array(name, 0.0 if value is None else value, (0, len(shape)))
        if value.shape not in ((), shape):
            raise ValueError(f"{name} must be a scalar or have shape {shape}, got shape {value.shape}")
        return value.astype(self.kernel.dtype)


@partial(jax.tree_util.register_dataclass, data_fields=["flow", "nngp"], meta_fields=["mode"])
@dataclass(frozen=True, eq=False)
class EnsembleFlow:
    """Infinitely wide networks from random initialisation under gradient flow: a Gaussian at any time (M15).

    Made by :func:`gradient_flow_ensemble`. A pytree.

    Attributes
    ----------
    flow
        The flow of the mean; its :meth:`GradientFlow.predict` gives the mean alone.
    nngp
        (m, m) covariance of the outputs at t = 0 on the training points.
    mode
        "ntk" or "nngp".
    """

    flow: GradientFlow
    nngp: Array
    mode: str

    def predict(self, t: ArrayLike | None = None, kernel_test_train: Any = None, kernel_test: Any = None) -> Gaussian:
        """Mean and covariance of the outputs at time t, on the training points or on others (M15).

        Parameters
        ----------
        t
            As in :meth:`GradientFlow.predict`.
        kernel_test_train
            Kernels between the other points and the training points: an object with attributes ``nngp`` and ``ntk``,
            each (n_test, n), or with output axes as in training. In mode "nngp" the array alone will do. None asks for
            the training points.
        kernel_test
            The NNGP kernel of the other points among themselves, (n_test, n_test), or an object with ``nngp``.

        Returns
        -------
        The mean as in :meth:`GradientFlow.predict`, and behind the axes of t the covariance: (n_test, n_test) for each
        output if the kernels are shared by outputs, otherwise (n_test, n_test, c, c).

        Raises
        ------
        TypeError
            If an object lacks the kernel that is needed.
        ValueError
            As in :meth:`GradientFlow.predict`, or if only one of the two kernels is given.
        """
        if (kernel_test_train is None) != (kernel_test is None):
            raise ValueError("kernel_test_train and kernel_test must be given together or not at all")
        flow, zero = self.flow, jnp.zeros((), self.flow.kernel.dtype)
        times = _as_times(t, flow.kernel.dtype)
        if kernel_test_train is None:
            mean, covariance = _outputs(flow, times, zero), self._covariance_of_training(times)
        else:
            nngp = _as_kernel_between(
                "kernel_test_train.nngp", _member("kernel_test_train", kernel_test_train, "nngp", self.mode), flow
            )
            leading = nngp
            if self.mode == "ntk":
                ntk = _member("kernel_test_train", kernel_test_train, "ntk", self.mode)
                leading = _as_kernel_between("kernel_test_train.ntk", ntk, flow)
                if leading.rows != nngp.rows:
                    raise ValueError(
                        "kernel_test_train.nngp and kernel_test_train.ntk must have the same number of rows, got"
                        f" {nngp.rows} and {leading.rows}"
                    )
            prior = _as_symmetric_kernel("kernel_test", _member("kernel_test", kernel_test, "nngp", "nngp"), flow.y)
            if prior.matrix.shape[0] != nngp.matrix.shape[0] or prior.full != flow.full:
                raise ValueError(
                    f"kernel_test must have {nngp.rows} rows and columns like kernel_test_train's rows"
                    f"{', and its output axes' if flow.full else ''}, got shape {prior.shape}"
                )
            covariance = self._covariance(times, leading.matrix, nngp.matrix, prior.matrix.astype(flow.kernel.dtype))
            mean = _outputs_elsewhere(flow, times, zero, zero, leading.matrix)
        return Gaussian(mean, covariance)

    @jax.jit
    def _covariance_of_training(self, t: Array) -> Array:
        times, eye = _scaled(self.flow, t), jnp.eye(self.nngp.shape[0], dtype=self.nngp.dtype)
        if self.mode == "nngp":
            return self._arranged(matmul(eye - _moved(self.flow, 2 * times, eye), self.nngp), t.shape)
        left = eye - _moved(self.flow, times, eye)
        return self._arranged(matmul(matmul(left, self.nngp), jnp.swapaxes(left, -1, -2)), t.shape)

    @jax.jit
    def _covariance(self, t: Array, leading: Array, nngp: Array, prior: Array) -> Array:
        times = _scaled(self.flow, t)
        if self.mode == "nngp":
            return self._arranged(prior - matmul(nngp, _apply("inverse", self.flow, 2 * times, nngp.T)), t.shape)
        # The outputs are those of t = 0 on the other points, less these weights times those on the training points.
        weights = jnp.swapaxes(_apply("inverse", self.flow, times, leading.T), -1, -2)
        cross = matmul(weights, nngp.T)
        explained = matmul(matmul(weights, self.nngp), jnp.swapaxes(weights, -1, -2))
        return self._arranged(prior - cross - jnp.swapaxes(cross, -1, -2) + explained, t.shape)

    def _arranged(self, covariance: Array, shape: tuple[int, ...]) -> Array:
        """Symmetric, with t's axes in front and the output axes as in the kernels."""
        outputs = self.flow.y.shape[1:] if self.flow.full else ()
        num_axes, rows = 1 + len(outputs), covariance.shape[-1] // math.prod(outputs)
        covariance = (covariance + jnp.swapaxes(covariance, -1, -2)) / 2
        order = [len(shape) + k + j * num_axes for k in range(num_axes) for j in range(2)]
        return covariance.reshape(shape + 2 * (rows, *outputs)).transpose(*range(len(shape)), *order)


def gradient_flow(
    kernel_train: ArrayLike,
    y: ArrayLike,
    *,
    learning_rate: ArrayLike = 1.0,
    diag_reg: ArrayLike = 0.0,
    diag_reg_absolute_scale: bool = False,
    rcond: float | None = None,
) -> GradientFlow:
    r"""Gradient flow on ½‖f − y‖² + (λ/2)‖ϑ − ϑ₀‖² under a fixed kernel, in closed form at every time (M15).

    .. math:: f_t(X') = f_0(X') - Θ(X', X) (Θ + λI)^{-1} (I - e^{-αt(Θ + λI)}) (f_0(X) - y)

    The kernel is decomposed once; ``predict`` of the result takes any times and points. A singular kernel is welcome:
    directions of eigenvalue zero do not move. Derivatives in the kernel are exact for repeated eigenvalues too.

    The loss is a sum. For the mean over all targets, which is neural-tangents' convention, pass its learning rate
    divided by ``y.size``; ``diag_reg`` is the same in both.

    Parameters
    ----------
    kernel_train
        (n, n) kernel shared by all outputs, or with a pair of axes for each output axis of y, (n, n, c, c), as
        :func:`fixntk.empirical_ntk` and neural-tangents return it. Symmetric and positive semidefinite.
    y
        (n,) or (n, c) targets, or with more output axes. Taken to the kernel's dtype.
    learning_rate
        α > 0. Outputs per unit of time and of the kernel.
    diag_reg
        Ridge, not negative: λ in units of the mean of the kernel's diagonal.
    diag_reg_absolute_scale
        True takes ``diag_reg`` as λ itself.
    rcond
        At t = ∞ eigenvalues up to ``rcond`` times the largest count as zero (the pseudo-inverse). So they do at finite
        times with αt · cutoff ≥ 1, at which rounding alone would decide. By default the matrix size times the
        dtype's machine epsilon; with noisy targets, no ridge and eigenvalues that decay without a break, the limit
        depends on it: use a ridge there.

    Returns
    -------
    The flow, whose ``predict(t, kernel_test_train, f0=, f0_test=)`` gives the outputs.

    Raises
    ------
    TypeError
        If an argument is not numeric.
    ValueError
        If the kernel is not symmetric or, with the ridge, not positive semidefinite beyond rounding, its shape does not
        fit y, values are NaN or infinite, α ≤ 0, ``diag_reg`` < 0 or ``rcond`` < 0. Values are not looked at under a
        JAX transformation.

    References
    ----------
    Lee et al., "Wide neural networks of any depth evolve as linear models under gradient descent", NeurIPS 2019;
    docs/mathematics.md, M15.

    Examples
    --------
    >>> import jax.numpy as jnp, fixntk as fx
    >>> flow = fx.gradient_flow(jnp.diag(jnp.array([1.0, 2.0])), jnp.array([1.0, 1.0]), learning_rate=0.1)
    >>> flow.predict(jnp.inf)  # the targets
    Array([1., 1.], dtype=float32)
    """
    y = as_float_array("y", y, (1, 2, 3, 4))
    kernel = _as_symmetric_kernel("kernel_train", kernel_train, y)
    matrix, dtype = kernel.matrix, kernel.matrix.dtype
    if kernel.rows != y.shape[0]:
        raise ValueError(
            f"kernel_train and y must have the same number of rows, got shapes {kernel.shape} and {y.shape}"
        )
    learning_rate = _as_scalar("learning_rate", learning_rate, dtype, positive=True)
    reg = _absolute_reg(matrix, diag_reg, diag_reg_absolute_scale)
    relative = len(matrix) * jnp.finfo(dtype).eps if rcond is None else _as_scalar("rcond", rcond, dtype)
    matrix, eigenvalues, eigenvectors = _decompose(matrix, reg)
    _check_positive_semidefinite("kernel_train", eigenvalues, reg)
    cutoff = relative * jnp.maximum(eigenvalues[-1], 0)
    return GradientFlow(y.astype(dtype), matrix, eigenvalues, eigenvectors, cutoff, learning_rate, reg, kernel.full)


def gradient_flow_ensemble(
    kernel_train: Any,
    y: ArrayLike,
    *,
    mode: Literal["ntk", "nngp"] = "ntk",
    learning_rate: ArrayLike = 1.0,
    diag_reg: ArrayLike = 0.0,
    diag_reg_absolute_scale: bool = False,
    rcond: float | None = None,
) -> EnsembleFlow:
    """Distribution of infinitely wide networks over their initialisation under gradient flow on ½‖f − y‖² (M15).

    Parameters
    ----------
    kernel_train
        Kernels of the training points: an object with attributes ``nngp`` and ``ntk``, (n, n) each or with output axes
        as in :func:`gradient_flow`. In mode "nngp" the NNGP array alone will do.
    mode
        ``"ntk"``: all layers are trained. With a ridge the penalty is on the way from each network's own initial
        parameters. ``"nngp"``: the last layer alone is trained, so that the NNGP is also the kernel of the flow. Its
        limit t = ∞ is the Gaussian-process posterior with noise variance λ: with a ridge the covariance contains that
        of targets with such noise. Both as in neural-tangents.
    y, learning_rate, diag_reg, diag_reg_absolute_scale, rcond
        As in :func:`gradient_flow`; ``diag_reg`` is in units of the diagonal of the kernel of the flow.

    Returns
    -------
    The ensemble, whose ``predict(t, kernel_test_train, kernel_test)`` gives mean and covariance.

    Raises
    ------
    TypeError
        If an argument is not numeric, or ``kernel_train`` lacks a kernel.
    ValueError
        As in :func:`gradient_flow`, or if the two kernels have different shapes.

    References
    ----------
    Lee et al., NeurIPS 2019, equations 13 to 16; docs/mathematics.md, M15.
    """
    if mode not in ("ntk", "nngp"):
        raise ValueError(f"mode must be 'ntk' or 'nngp', got {mode!r}")
    kernel = _member("kernel_train", kernel_train, mode, mode)
    flow = gradient_flow(
        kernel,
        y,
        learning_rate=learning_rate,
        diag_reg=diag_reg,
        diag_reg_absolute_scale=diag_reg_absolute_scale,
        rcond=rcond,
    )
    nngp = _as_symmetric_kernel("kernel_train.nngp", _member("kernel_train", kernel_train, "nngp", mode), flow.y)
    if nngp.shape != jnp.shape(kernel):
        raise ValueError(
            f"kernel_train.nngp and kernel_train.ntk must have one shape, got {nngp.shape} and {jnp.shape(kernel)}"
        )
    return EnsembleFlow(flow, nngp.matrix.astype(flow.kernel.dtype), mode)


def kernel_ridge(
    kernel_train: ArrayLike, y: ArrayLike, kernel_test_train: ArrayLike | None = None, *, reg: ArrayLike
) -> Array:
    """Kernel ridge regression Θ(X', X) (Θ + λI)⁻¹ y: the flow's limit t = ∞ with f₀ = 0 (M15).

    Parameters
    ----------
    kernel_train, y
        As in :func:`gradient_flow`.
    kernel_test_train
        As in :meth:`GradientFlow.predict`; None asks for the training points.
    reg
        λ ≥ 0 in the unit of the kernel, of the objective ½‖f − y‖² + (λ/2)‖f‖² in the kernel's norm. At 0 it is the
        least-norm interpolant, by a pseudo-inverse.

    Returns
    -------
    Predictions, (n, …) or (n_test, …) as y.

    Raises
    ------
    TypeError, ValueError
        As :func:`gradient_flow` and :meth:`GradientFlow.predict` do, naming λ ``reg``.
    """
    reg = _as_scalar("reg", reg, jnp.result_type(float))
    flow = gradient_flow(kernel_train, y, diag_reg=reg, diag_reg_absolute_scale=True)
    return flow.predict(None, kernel_test_train)


def max_learning_rate(
    kernel_train: ArrayLike,
    *,
    diag_reg: ArrayLike = 0.0,
    diag_reg_absolute_scale: bool = False,
    momentum: float = 0.0,
) -> Float[Array, ""]:
    """Learning rate 2 (1 + momentum) / (λ_max(Θ) + λ) below which gradient descent on ½‖f − y‖² converges (M15).

    The loss is a sum. For the mean over all targets multiply by ``y.size``, as neural-tangents does.

    Parameters
    ----------
    kernel_train
        As in :func:`gradient_flow`, (n, n) or (n, n, c, c).
    diag_reg, diag_reg_absolute_scale
        The ridge, as there.
    momentum
        Of the heavy ball, at least 0 and below 1.

    Returns
    -------
    A scalar, infinite for the kernel zero.

    Raises
    ------
    TypeError
        If the kernel is not numeric.
    ValueError
        If it is not square, symmetric and finite, or ``diag_reg`` or ``momentum`` is out of range.
    """
    matrix = _as_symmetric_kernel("kernel_train", kernel_train, None).matrix
    reg = _absolute_reg(matrix, diag_reg, diag_reg_absolute_scale)
    beta = _as_scalar("momentum", momentum, matrix.dtype)
    if not is_traced(beta) and beta >= 1:
        raise ValueError(f"momentum must be below 1, got {float(beta)}")
    return 2 * (1 + beta) / (jnp.maximum(jnp.linalg.eigvalsh(matrix)[-1], 0) + reg)


@jax.jit
def _outputs(flow: GradientFlow, t: Array, f0: Array) -> Array:
    moved = _moved(flow, _scaled(flow, t), (flow.y - f0).reshape(flow.kernel.shape[0], -1))
    return f0 + moved.reshape(t.shape + flow.y.shape)


@jax.jit
def _outputs_elsewhere(flow: GradientFlow, t: Array, f0: Array, f0_test: Array, between: Array) -> Array:
    residual = (flow.y - f0).reshape(flow.kernel.shape[0], -1)
    moved = matmul(between, _apply("inverse", flow, _scaled(flow, t), residual))
    rows = between.shape[0] * residual.shape[1] // math.prod(flow.y.shape[1:])
    return f0_test + moved.reshape(*t.shape, rows, *flow.y.shape[1:])


@jax.jit
def _coefficients(flow: GradientFlow, t: Array, f0: Array) -> Array:
    residual = (flow.y - f0).reshape(flow.kernel.shape[0], -1)
    return _apply("inverse", flow, _scaled(flow, t), residual).reshape(t.shape + flow.y.shape)


def _scaled(flow: GradientFlow, t: Array) -> Float[Array, " t"]:
    """Times the learning rate, in one axis."""
    endless = jnp.isinf(t)
    # Not inf · α, whose derivative in α is infinite.
    return jnp.where(endless, jnp.inf, flow.learning_rate * jnp.where(endless, 0, t)).ravel()


def _apply(kind: str, flow: GradientFlow, times: Array, vectors: Array) -> Array:
    return apply_function(kind, flow.kernel, flow.eigenvalues, flow.eigenvectors, flow.cutoff, times, vectors)


def _moved(flow: GradientFlow, times: Array, vectors: Array) -> Array:
    """Θ times the coefficients on the training points, without a product that rounding could spoil for singular Θ."""
    return _apply("progress", flow, times, vectors) - flow.reg * _apply("inverse", flow, times, vectors)


@jax.jit
def _decompose(matrix: Array, reg: Array) -> tuple[Array, Array, Array]:
    matrix = (matrix + matrix.T) / 2 + reg * jnp.eye(len(matrix), dtype=matrix.dtype)
    # apply_function takes derivatives through the matrix alone: the eigenvectors have none where eigenvalues repeat.
    eigenvalues, eigenvectors = jnp.linalg.eigh(lax.stop_gradient(matrix), symmetrize_input=False)
    return matrix, eigenvalues, eigenvectors


class _Kernel(NamedTuple):
    """A kernel as a matrix, and what it was before."""

    matrix: Array
    rows: int
    full: bool
    shape: tuple[int, ...]


def _as_symmetric_kernel(name: str, value: ArrayLike, y: Array | None) -> _Kernel:
    ndim = (2, 4, 6, 8) if y is None else tuple(sorted({2, 2 * y.ndim}))
    kernel = as_float_array(name, value, ndim)
    kernel = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    shape = kernel.shape
    outputs = shape[2::2] if y is None else y.shape[1:]
    if shape[::2] != shape[1::2] or (kernel.ndim > 2 and shape[2::2] != outputs):
        pairs = ", (n, n, " + ", ".join(f"{c}, {c}" for c in outputs) + ")" if outputs else ""
        raise ValueError(f"{name} must have shape (n, n){' or' + pairs[1:] if pairs else ''}, got shape {shape}")
    matrix = _as_matrix(kernel)
    if not is_traced(matrix):
        with jax.ensure_compile_time_eval():
            largest, difference = map(float, _asymmetry(matrix))
        if difference > math.sqrt(jnp.finfo(matrix.dtype).eps) * largest:
            raise ValueError(
                f"{name} must be symmetric, but it differs from its transpose by up to {difference:.3g} (largest entry"
                f" {largest:.3g}): was it computed between two sets of points, or with the rows of one set in another"
                " order?"
            )
    return _Kernel(matrix, shape[0], kernel.ndim > 2, shape)


@jax.jit
def _asymmetry(matrix: Array) -> tuple[Array, Array]:
    return jnp.max(jnp.abs(matrix)), jnp.max(jnp.abs(matrix - matrix.T))


def _as_kernel_between(name: str, value: ArrayLike, flow: GradientFlow) -> _Kernel:
    kernel = as_float_array(name, value, (2 * flow.y.ndim if flow.full else 2,)).astype(flow.kernel.dtype)
    shape, outputs = kernel.shape, flow.y.shape[1:] if flow.full else ()
    if shape[1::2] != (flow.y.shape[0], *outputs) or shape[2::2] != outputs:
        expected = ", ".join(["n_test", str(flow.y.shape[0]), *(f"{c}, {c}" for c in outputs)])
        raise ValueError(f"{name} must have shape ({expected}), other points × training points, got shape {shape}")
    return _Kernel(_as_matrix(kernel), shape[0], flow.full, shape)


def _as_matrix(kernel: Array) -> Array:
    """(n1, n2, c, c, …) as the matrix of n1·c… rows and n2·c… columns."""
    shape = kernel.shape
    if kernel.ndim == 2:
        return kernel
    order = (*range(0, kernel.ndim, 2), *range(1, kernel.ndim, 2))
    return kernel.transpose(order).reshape(math.prod(shape[::2]), math.prod(shape[1::2]))


def _member(name: str, kernels: Any, member: str, mode: str) -> Any:
    """The kernel called ``member``, or in mode "nngp" the array that stands for it."""
    kernel = getattr(kernels, member, kernels if mode == "nngp" else None)
    if kernel is None:
        raise TypeError(
            f"{name} must have attributes nngp and ntk, both arrays; got {type(kernels).__name__} without {member}"
        )
    return kernel


def _as_times(t: ArrayLike | None, dtype: jnp.dtype) -> Array:
    if t is None:
        return jnp.array(jnp.inf, dtype)
    try:
        times = jnp.asarray(t)
    except (TypeError, ValueError) as error:
        raise TypeError(f"t must be a number, an array of numbers or None, got {type(t).__name__}: {error}") from error
    if not jnp.issubdtype(times.dtype, jnp.floating) and not jnp.issubdtype(times.dtype, jnp.integer):
        raise TypeError(f"t must be real numbers, got dtype {times.dtype}")
    if not is_traced(times):
        bad = np.count_nonzero(~(np.asarray(times) >= 0))
        if bad:
            raise ValueError(f"t must be at least 0, got {bad} negative or NaN value(s) in shape {times.shape}")
    return times.astype(dtype)


def _as_scalar(name: str, value: ArrayLike, dtype: jnp.dtype, positive: bool = False) -> Array:
    scalar = as_float_array(name, value, (0,))
    if not is_traced(scalar):
        number = float(scalar)
        if number < 0 or (positive and number == 0):
            raise ValueError(f"{name} must be {'positive' if positive else 'at least 0'}, got {number}")
    return scalar.astype(dtype)


def _absolute_reg(matrix: Array, diag_reg: ArrayLike, absolute: bool) -> Array:
    reg = _as_scalar("diag_reg", diag_reg, matrix.dtype)
    return reg if absolute else reg * jnp.trace(matrix) / len(matrix)


def _check_positive_semidefinite(name: str, eigenvalues: Array, reg: Array) -> None:
    if is_traced(eigenvalues, reg):
        return
    smallest, largest, eps = float(eigenvalues[0]), float(eigenvalues[-1]), float(jnp.finfo(eigenvalues.dtype).eps)
    allowed = 10 * max(10, eigenvalues.size) * eps * max(abs(smallest), abs(largest))
    if smallest < -allowed:
        raise ValueError(
            f"{name} is not positive semidefinite: its smallest eigenvalue is {smallest - float(reg):.3g}, its largest"
            f" {largest - float(reg):.3g}, and rounding in {eigenvalues.dtype} explains no less than {-allowed:.2g}."
            " Likely causes: it was computed in a lower precision (compute it in float64, with jax_enable_x64), its"
            " rows and columns are not in the same order, or it is no kernel. If its error is that small to you, a"
            f" ridge covers it: diag_reg={2 * (float(reg) - smallest):.2g} with diag_reg_absolute_scale=True"
        )
