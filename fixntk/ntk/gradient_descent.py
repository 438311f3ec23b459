r"""Training under a fixed kernel with any loss: the limit of gradient descent in small steps, by an ODE solver.

.. math:: \dot f_t(X') = -α Θ(X', X) ∇_f L(f_t(X), y)

For the squared loss :func:`fixntk.gradient_flow` has the closed form.

See docs/mathematics.md, M15.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from fixntk._checks import as_float_array, describe_fields, is_traced
from fixntk._numerics import matmul
from fixntk._requirements import check_versions
from fixntk._tiling import memory_for
from fixntk.ntk.kernel_matrices import (
    as_initial_outputs,
    as_kernel_between,
    as_momentum,
    as_scalar,
    as_times,
    as_training_kernel,
)

TrainingLoss = Callable[[Array, Array], Array]


def _squared(outputs: Array, y: Array) -> Array:
    return 0.5 * jnp.sum((outputs - y) ** 2)


def _cross_entropy(outputs: Array, y: Array) -> Array:
    return -jnp.sum(y * jax.nn.log_softmax(outputs, axis=-1))


def _logistic(outputs: Array, y: Array) -> Array:
    return jnp.sum(jax.nn.softplus(-y * outputs))


LOSSES: dict[str, TrainingLoss] = {"squared": _squared, "cross_entropy": _cross_entropy, "logistic": _logistic}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class GradientDescent:
    """Gradient descent on a loss under a fixed kernel. Made by :func:`gradient_descent`; a pytree.

    Attributes
    ----------
    y
        (n, …) targets.
    kernel
        (m, m) kernel of the training points; m is n, or the number of targets for a kernel with output axes.
    learning_rate
        α. Time is counted in its steps.
    momentum
        β of the heavy ball; None for none.
    loss
        L(outputs, y), a scalar.
    full
        Whether the kernel has output axes.
    rtol, max_steps
        Relative accuracy and largest number of steps of the ODE solver.

    See docs/mathematics.md, M15.
    """

    y: Array
    kernel: Array
    learning_rate: Array
    momentum: Array | None
    loss: TrainingLoss = field(metadata={"static": True})
    full: bool = field(metadata={"static": True})
    rtol: float = field(metadata={"static": True})
    max_steps: int = field(metadata={"static": True})

    def __repr__(self) -> str:
        return describe_fields("GradientDescent", y=self.y, kernel=self.kernel, momentum=self.momentum)

    def predict(
        self,
        t: ArrayLike,
        kernel_test_train: ArrayLike | None = None,
        *,
        f0: ArrayLike | None = None,
        f0_test: ArrayLike | None = None,
    ) -> Array:
        """Outputs after t steps, on the training points or on others.

        Parameters
        ----------
        t
            Times in steps of the learning rate, of any shape, finite and not negative.
        kernel_test_train
            (n_test, n) kernel between other points and the training points, with the output axes that the training
            kernel has. None for the training points.
        f0
            Outputs at t = 0 on the training points, of the shape of y, or a scalar; 0 when None.
        f0_test
            The same on the other points. Required there if ``f0`` is given.

        Returns
        -------
        (n, …) or (n_test, …) as y, behind the axes of t.

        Raises
        ------
        ImportError
            Without diffrax (the extra ``dynamics``).
        ValueError
            If shapes do not fit together, or a time is negative, infinite or NaN.
        RuntimeError
            If the solver needs more than ``max_steps`` steps; under a JAX transformation the outputs are NaN instead.
        """
        times = as_times(t, self.kernel.dtype)
        if not is_traced(times) and not np.all(np.isfinite(np.asarray(times))):
            raise ValueError("t must be finite: a loss other than the squared one may have no limit")
        start = _as_start("f0", f0, self.y.shape, self.kernel.dtype)
        if kernel_test_train is None:
            if f0_test is not None:
                raise ValueError("f0_test is for other points, but kernel_test_train is None: pass both or neither")
            return self._outputs(times, start, None, None)
        between = as_kernel_between("kernel_test_train", kernel_test_train, self.y, self.full)
        if (f0 is None) != (f0_test is None):
            raise ValueError("f0 and f0_test must be given together: the outputs at t = 0 on both sets of points")
        shape = (between.rows, *self.y.shape[1:])
        return self._outputs(times, start, between.matrix, _as_start("f0_test", f0_test, shape, self.kernel.dtype))

    def _outputs(self, times: Array, f0: Array, between: Array | None, f0_test: Array | None) -> Array:
        # The outputs at all times as the solver saves them, in the order of the times that were given, and as they are
        # returned.
        num_saved = f0.size + (0 if f0_test is None else f0_test.size)
        needed = 3 * times.size * num_saved * self.kernel.dtype.itemsize
        what = f"the outputs at {times.size} times"
        with memory_for(what, needed, "pass fewer times", self, times, f0, between, f0_test) as done:
            outputs, is_solved = done(_integrate(self, times, f0, between, f0_test))
        if not is_traced(is_solved) and not bool(is_solved):
            raise RuntimeError(
                f"the solver made max_steps={self.max_steps} steps before the last time: raise it or rtol"
            )
        return outputs


def gradient_descent(
    kernel_train: ArrayLike,
    y: ArrayLike,
    loss: str | TrainingLoss = "squared",
    *,
    learning_rate: ArrayLike = 1.0,
    momentum: ArrayLike | None = None,
    rtol: float | None = None,
    max_steps: int = 100_000,
) -> GradientDescent:
    r"""Gradient descent on any loss under a fixed kernel, in the limit of small steps.

    .. math:: \frac{df}{dt} = -α Θ ∇L(f), \qquad\text{or}\qquad
        \frac{df}{dτ} = q, \; \frac{dq}{dτ} = -\frac{1 - β}{\sqrt{α}} q - Θ ∇L(f), \; τ = \sqrt{α} \, t

    The second system is that of heavy-ball momentum β. It is right up to order α, and up to order √α with momentum.
    The loss is a **sum** over rows and outputs, as everywhere in fixntk; neural-tangents takes the mean over all
    targets, so that its learning rate is ours times ``y.size``.

    Parameters
    ----------
    kernel_train
        As in :func:`fixntk.gradient_flow`.
    y
        (n,) or (n, c) targets, or with more output axes.
    loss
        ``"squared"``, ½‖f − y‖²; ``"cross_entropy"``, of the softmax over the last axis with probabilities (one-hot
        classes) y; ``"logistic"``, with labels ±1; or a function of (outputs, y) to a scalar that JAX can
        differentiate.
    learning_rate
        α > 0.
    momentum
        β of the heavy ball, at least 0 and below 1; None for plain gradient descent.
    rtol
        Relative accuracy of the ODE solver, √eps of the dtype by default.
    max_steps
        Largest number of its steps.

    Returns
    -------
    The process, whose ``predict(t, kernel_test_train, f0=, f0_test=)`` gives the outputs.

    Raises
    ------
    TypeError
        If an argument is not numeric, or the loss neither a name nor a function.
    ValueError
        If the kernel is not symmetric or its shape does not fit y, values are NaN or infinite, α ≤ 0, β is out of
        range, or the loss unknown.

    References
    ----------
    Lee et al., "Wide neural networks of any depth evolve as linear models under gradient descent", NeurIPS 2019. The
    solver is Tsitouras' 5(4) of diffrax (Kidger 2021).

    Examples
    --------
    >>> import jax.numpy as jnp, fixntk as fx
    >>> descent = fx.gradient_descent(jnp.eye(2), jnp.array([1.0, -1.0]), "logistic")
    >>> descent.predict(10.0).shape
    (2,)

    See docs/mathematics.md, M15.
    """
    y = as_float_array("y", y, (1, 2, 3, 4))
    kernel = as_training_kernel(kernel_train, y)
    dtype = kernel.matrix.dtype
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(map(repr, LOSSES))} or a function, got {loss!r}")
        loss = LOSSES[loss]
    if not callable(loss):
        raise TypeError(f"loss must be a name or a function of (outputs, y), got {type(loss).__name__}")
    momentum = None if momentum is None else as_momentum(momentum, dtype)
    rtol = math.sqrt(jnp.finfo(dtype).eps) if rtol is None else float(rtol)
    rate = as_scalar("learning_rate", learning_rate, dtype, positive=True)
    return GradientDescent(y.astype(dtype), kernel.matrix, rate, momentum, loss, kernel.full, rtol, max_steps)


def _as_start(name: str, value: ArrayLike | None, shape: tuple[int, ...], dtype: Any) -> Array:
    return jnp.broadcast_to(as_initial_outputs(name, value, shape, dtype), shape)


def _diffrax() -> Any:
    try:
        import diffrax
    except ImportError as error:
        raise ImportError("gradient_descent needs diffrax: pip install 'fixntk[dynamics]'") from error
    check_versions("diffrax")
    return diffrax


@jax.jit
def _integrate(
    descent: GradientDescent, times: Array, f0: Array, between: Array | None, f0_test: Array | None
) -> tuple[Array, Array]:
    """Outputs on the training points, or on others, at each time, and whether the solver got there; NaN if not."""
    diffrax = _diffrax()
    flat = times.ravel()
    # The solver saves at increasing times; the inverse permutation below restores the caller's order.
    order = jnp.argsort(flat)
    # The heavy ball's own time is √α a step, plain descent's is α.
    unit = descent.learning_rate if descent.momentum is None else jnp.sqrt(descent.learning_rate)
    start = f0 if f0_test is None else (f0, f0_test)
    velocity = None if descent.momentum is None else jax.tree.map(jnp.zeros_like, start)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(partial(_derivative, descent.loss)),
        diffrax.Tsit5(),
        t0=0.0,
        t1=unit * flat[order[-1]],
        dt0=None,
        y0=(start, velocity),
        args=(descent.kernel, descent.y, between, descent.learning_rate, descent.momentum),
        saveat=diffrax.SaveAt(ts=unit * flat[order]),
        stepsize_controller=diffrax.PIDController(rtol=descent.rtol, atol=descent.rtol),
        max_steps=descent.max_steps,
        throw=False,
    )
    # A failure is a value here: the caller raises an error, which a program under a JAX transformation cannot do.
    is_solved = solution.result == diffrax.RESULTS.successful
    outputs = solution.ys[0] if f0_test is None else solution.ys[0][1]
    outputs = jnp.where(is_solved, outputs[jnp.argsort(order)], jnp.nan)
    return outputs.reshape(*times.shape, *outputs.shape[1:]), is_solved


def _derivative(loss: TrainingLoss, _: Array, state: Any, constants: tuple[Any, ...]) -> Any:
    """Derivative of the outputs on the training points, or of them and those on others, and of their velocities."""
    (outputs, velocity), (kernel, y, between, learning_rate, momentum) = state, constants
    train = outputs if between is None else outputs[0]
    gradient = jax.grad(loss)(train, y)
    # A kernel with output axes acts on one column of n·c numbers, a shared one on a column for each output.
    columns = gradient.reshape(kernel.shape[0], -1)
    force: Any = -matmul(kernel, columns).reshape(train.shape)
    if between is not None:
        # Other points are driven by the gradient on the training points alone.
        force = (force, -matmul(between, columns).reshape(outputs[1].shape))
    if momentum is None:
        return force, None
    friction = (1 - momentum) / jnp.sqrt(learning_rate)
    return velocity, jax.tree.map(lambda q, a: a - friction * q, velocity, force)
