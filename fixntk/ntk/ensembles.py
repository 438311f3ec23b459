"""Ensembles of infinitely wide networks under gradient flow: their mean and covariance at any time.

See docs/mathematics.md, M15.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from fixntk._numerics import matmul
from fixntk.ntk.dynamics import (
    GradientFlow,
    displacement,
    gradient_flow,
    kernel_function,
    outputs_elsewhere,
    scaled_times,
    training_outputs,
)
from fixntk.ntk.kernel_matrices import as_kernel_between, as_scalar, as_symmetric_kernel, as_times, kernel_member

Mode = Literal["ntk", "nngp"]


class Gaussian(NamedTuple):
    """Mean and covariance of the outputs of an ensemble."""

    mean: Array
    covariance: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class EnsembleFlow:
    """Infinitely wide networks from random initialisation under gradient flow: a Gaussian at any time.

    Made by :func:`gradient_flow_ensemble`. A pytree.

    Attributes
    ----------
    flow
        The flow of the mean; its :meth:`GradientFlow.predict` gives the mean alone.
    nngp
        (m, m) covariance of the outputs at t = 0 on the training points.
    mode
        "ntk" or "nngp".

    See docs/mathematics.md, M15.
    """

    flow: GradientFlow
    nngp: Array
    mode: Mode = field(metadata={"static": True})

    def predict(self, t: ArrayLike | None = None, kernel_test_train: Any = None, kernel_test: Any = None) -> Gaussian:
        """Mean and covariance of the outputs at time t, on the training points or on others.

        Parameters
        ----------
        t
            As in :meth:`GradientFlow.predict`.
        kernel_test_train
            Kernels between the other points and the training points: an object with attributes ``nngp`` and ``ntk``,
            each (n_test, n), or with output axes as in training. In mode "nngp" the array alone is sufficient. None for
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

        See docs/mathematics.md, M15.
        """
        if (kernel_test_train is None) != (kernel_test is None):
            raise ValueError("kernel_test_train and kernel_test must be given together or not at all")
        flow, zero = self.flow, jnp.zeros((), self.flow.kernel.dtype)
        times = as_times(t, flow.kernel.dtype)
        if kernel_test_train is None:
            return Gaussian(training_outputs(flow, times, zero), self._covariance_of_training(times))
        leading, nngp, prior = self._kernels_elsewhere(kernel_test_train, kernel_test)
        mean = outputs_elsewhere(flow, times, zero, zero, leading)
        return Gaussian(mean, self._covariance(times, leading, nngp, prior))

    def _kernels_elsewhere(self, kernel_test_train: Any, kernel_test: Any) -> tuple[Array, Array, Array]:
        """The flow's kernel and the NNGP between other points and training points, and the NNGP among other points."""
        y, full = self.flow.y, self.flow.full
        nngp = kernel_member("kernel_test_train", kernel_test_train, "nngp", self.mode)
        between = as_kernel_between("kernel_test_train.nngp", nngp, y, full)
        # If the last layer alone is trained, the NNGP kernel is the kernel of the flow too.
        leading = between
        if self.mode == "ntk":
            ntk = kernel_member("kernel_test_train", kernel_test_train, "ntk", self.mode)
            leading = as_kernel_between("kernel_test_train.ntk", ntk, y, full)
            if leading.rows != between.rows:
                raise ValueError(
                    "kernel_test_train.nngp and kernel_test_train.ntk must have the same number of rows, got"
                    f" {between.rows} and {leading.rows}"
                )
        prior = as_symmetric_kernel("kernel_test", kernel_member("kernel_test", kernel_test, "nngp", "nngp"), y)
        if prior.matrix.shape[0] != between.matrix.shape[0] or prior.full != full:
            raise ValueError(
                f"kernel_test must have {between.rows} rows and columns like kernel_test_train's rows"
                f"{', and its output axes' if full else ''}, got shape {prior.shape}"
            )
        return leading.matrix, between.matrix, prior.matrix.astype(y.dtype)

    @jax.jit
    def _covariance_of_training(self, t: Array) -> Array:
        # The flow maps f₀ to f₀ − D (f₀ − y), where D is the displacement as a matrix. So the random part is (I − D)
        # f₀.
        times, eye = scaled_times(self.flow, t), jnp.eye(self.nngp.shape[0], dtype=self.nngp.dtype)
        if self.mode == "nngp":
            # Where Θ = Σ commutes with D, (I − D) Σ (I − D)ᵀ is the same product at twice the time; with a ridge this
            # adds the targets' noise.
            twice = displacement(self.flow, 2 * times, eye)
            left = jnp.broadcast_to(eye, twice.shape) - twice
            return self._restore_output_axes(matmul(left, self.nngp), t.shape)
        moved = displacement(self.flow, times, eye)
        left = jnp.broadcast_to(eye, moved.shape) - moved
        return self._restore_output_axes(matmul(matmul(left, self.nngp), jnp.swapaxes(left, -1, -2)), t.shape)

    @jax.jit
    def _covariance(self, t: Array, leading: Array, nngp: Array, prior: Array) -> Array:
        times = scaled_times(self.flow, t)
        if self.mode == "nngp":
            # The prior less Σ(X', X) φ₂ₛ(Σ + λI) Σ(X, X'): the time is doubled as on the training points.
            explained = matmul(nngp, kernel_function("inverse", self.flow, 2 * times, nngp.T))
            return self._restore_output_axes(jnp.broadcast_to(prior, explained.shape) - explained, t.shape)
        # The random part of the outputs is f₀ on the other points minus these weights times f₀ on the training points.
        weights = jnp.swapaxes(kernel_function("inverse", self.flow, times, leading.T), -1, -2)
        cross = matmul(weights, nngp.T)
        explained = matmul(matmul(weights, self.nngp), jnp.swapaxes(weights, -1, -2))
        prior = jnp.broadcast_to(prior, explained.shape)
        return self._restore_output_axes(prior - cross - jnp.swapaxes(cross, -1, -2) + explained, t.shape)

    def _restore_output_axes(self, covariance: Array, shape: tuple[int, ...]) -> Array:
        """Symmetrise, with the axes of t in front and the output axes in the order of the kernels."""
        outputs = self.flow.y.shape[1:] if self.flow.full else ()
        # A row of the matrix is a point with its output indices. Kernels have the axes (point, point, output, output,
        # …), so that the axes of rows and of columns alternate.
        num_axes, rows = 1 + len(outputs), covariance.shape[-1] // math.prod(outputs)
        # Only rounding makes it asymmetric.
        covariance = (covariance + jnp.swapaxes(covariance, -1, -2)) / 2
        order = [len(shape) + k + j * num_axes for k in range(num_axes) for j in range(2)]
        return covariance.reshape(shape + 2 * (rows, *outputs)).transpose(*range(len(shape)), *order)


def gradient_flow_ensemble(
    kernel_train: Any,
    y: ArrayLike,
    *,
    mode: Mode = "ntk",
    learning_rate: ArrayLike = 1.0,
    diag_reg: ArrayLike = 0.0,
    diag_reg_absolute_scale: bool = False,
    rcond: float | None = None,
) -> EnsembleFlow:
    """Distribution of infinitely wide networks over their initialisation under gradient flow on ½‖f − y‖².

    Parameters
    ----------
    kernel_train
        Kernels of the training points: an object with attributes ``nngp`` and ``ntk``, (n, n) each or with output axes
        as in :func:`gradient_flow`. In mode "nngp" the NNGP array alone is sufficient.
    mode
        ``"ntk"``: all layers are trained. With a ridge the penalty is on the way from each network's own initial
        parameters. ``"nngp"``: the last layer alone is trained, so that the NNGP is also the kernel of the flow. Its
        limit t = ∞ is the Gaussian-process posterior with noise variance λ: with a ridge the covariance is the one for
        targets with such noise. Both as in neural-tangents.
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
    Lee et al., NeurIPS 2019, equations 13 to 16.

    See docs/mathematics.md, M15.
    """
    if mode not in ("ntk", "nngp"):
        raise ValueError(f"mode must be 'ntk' or 'nngp', got {mode!r}")
    kernel = kernel_member("kernel_train", kernel_train, mode, mode)
    flow = gradient_flow(
        kernel,
        y,
        learning_rate=learning_rate,
        diag_reg=diag_reg,
        diag_reg_absolute_scale=diag_reg_absolute_scale,
        rcond=rcond,
    )
    nngp = as_symmetric_kernel("kernel_train.nngp", kernel_member("kernel_train", kernel_train, "nngp", mode), flow.y)
    if nngp.shape != jnp.shape(kernel):
        raise ValueError(
            f"kernel_train.nngp and kernel_train.ntk must have one shape, got {nngp.shape} and {jnp.shape(kernel)}"
        )
    return EnsembleFlow(flow, nngp.matrix.astype(flow.kernel.dtype), mode)


def gp_inference(
    kernel_train: Any,
    y: ArrayLike,
    kernel_test_train: Any = None,
    kernel_test: Any = None,
    *,
    noise: ArrayLike = 0.0,
) -> Gaussian:
    r"""Posterior of a Gaussian process with any kernel, at other points or at the training points.

    .. math:: K'(K + σ²I)⁻¹y, \qquad K'' - K'(K + σ²I)⁻¹K'^⊤

    Infinitely wide networks of which the last layer alone is trained have this distribution, with their NNGP kernel.

    Parameters
    ----------
    kernel_train
        K, (n, n) or with output axes as in :func:`gradient_flow`, or an object with an attribute ``nngp`` such as
        :class:`fixntk.Kernel`.
    y
        (n,) or (n, c) targets. The prior mean is zero.
    kernel_test_train, kernel_test
        K' of the other points and the training points, (n_test, n), and K'' of the other points among themselves,
        (n_test, n_test), or objects with ``nngp``. Both None: the training points.
    noise
        σ² ≥ 0, the variance of the targets' noise, in the unit of the kernel. At 0 the inverse is a pseudo-inverse.

    Returns
    -------
    Mean, (n_test,) or (n_test, c), and covariance (n_test, n_test) of each output, without the noise of new targets.
    The covariance has the output axes of kernels that have them.

    Raises
    ------
    TypeError, ValueError
        As :func:`gradient_flow_ensemble` does, naming σ² ``noise``, or if one kernel of the other points is missing.

    Examples
    --------
    >>> import jax.numpy as jnp, fixntk as fx
    >>> posterior = fx.gp_inference(jnp.eye(2), jnp.array([1.0, 2.0]), jnp.ones((1, 2)), 3 * jnp.eye(1), noise=1.0)
    >>> print(posterior.mean, posterior.covariance)
    [1.5] [[2.]]

    See docs/mathematics.md, M15.
    """
    # Checked here, so that an error names this argument and not the flow's.
    noise = as_scalar("noise", noise, jnp.result_type(float))
    flow = gradient_flow_ensemble(kernel_train, y, mode="nngp", diag_reg=noise, diag_reg_absolute_scale=True)
    return flow.predict(None, kernel_test_train, kernel_test)
