r"""Training gated and ReLU networks by gradient descent, to compare with the convex program (M10).

.. math:: \min \sum_i ω_i ℓ\bigl(f(x_i); y_i\bigr) + \tfrac{λ}{2} \sum_j (\|w_j\|^2 + \|v_j\|^2)

is what is trained: for one output and gates that the program has, never below the program's certified bound.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Key

from fixntk._checks import as_float_array, as_matrix, as_positive_int, check_same_columns, check_same_rows, check_scalar
from fixntk.convex.losses import Loss, as_loss
from fixntk.gates.masks import activation_masks
from fixntk.networks.models import GatedReLUNetwork, Network
from fixntk.networks.neurons import Parameters, outputs, weight_decay
from fixntk.training import checkpoints


class TrainingHistory(NamedTuple):
    """One entry for the start and one for each record; with a trailing axis for a stack of networks.

    Attributes
    ----------
    steps
        (k,) steps made.
    objective
        (k, ...) on all the data, the penalty included.
    validation
        (k, ...) mean loss on the validation data; None without any.
    seconds
        (k,) since the start, compilation included; earlier parts of a resumed training count.
    """

    steps: Int[np.ndarray, " k"]
    objective: Float[np.ndarray, "k ..."]
    validation: Float[np.ndarray, "k ..."] | None
    seconds: Float[np.ndarray, " k"]


class TrainingProgress(NamedTuple):
    """What a callback of :func:`train` is given.

    Attributes
    ----------
    step, num_steps
        Steps made and asked for.
    objective, validation
        As in the history.
    seconds
        Since the start.
    """

    step: int
    num_steps: int
    objective: Float[np.ndarray, ...]
    validation: Float[np.ndarray, ...] | None
    seconds: float


@dataclass(frozen=True, eq=False)
class Training(Generic[Network]):
    """A trained network, or a stack of them.

    Attributes
    ----------
    network
        At the last record at which its objective was finite.
    best
        At the record with the lowest validation loss, without validation the lowest objective.
    history
        What was recorded.
    diverged
        Whether the objective became infinite or NaN; (S,) for a stack.
    """

    network: Network
    best: Network
    history: TrainingHistory
    diverged: np.ndarray

    def lowest(self) -> Network:
        """Of a stack's best networks the one with the lowest validation loss or objective."""
        monitored = self.history.objective if self.history.validation is None else self.history.validation
        if monitored.ndim == 1:
            return self.best
        with np.errstate(invalid="ignore"):
            chosen = int(np.nanargmin(np.nanmin(np.where(np.isfinite(monitored), monitored, np.nan), axis=0)))
        return jax.tree.map(lambda leaf: leaf[chosen], self.best)


class DivergedError(FloatingPointError):
    """The objective of every network became infinite or NaN.

    Attributes
    ----------
    training
        What was reached before.
    """

    def __init__(self, message: str, training: Training[Any]) -> None:
        super().__init__(message)
        self.training = training


class _Data(NamedTuple):
    """Rows that a loss sums over: inputs, targets (n, c), weights (n,), and for gated networks masks (..., n, m)."""

    x: Array
    targets: Array
    weights: Array
    masks: Array | None


class _State(NamedTuple):
    """What training carries from record to record, and what a checkpoint holds."""

    trained: dict[str, Array]
    optimizer: Any
    good: dict[str, Array]
    best: dict[str, Array]
    lowest: Array


def train(
    network: Network,
    x: ArrayLike,
    y: ArrayLike,
    optimizer: optax.GradientTransformation,
    *,
    reg: ArrayLike = 0.0,
    loss: str | Loss = "squared",
    sample_weight: ArrayLike | None = None,
    num_steps: int = 1000,
    batch_size: int | None = None,
    key: Key[Array, ""] | None = None,
    record_every: int = 100,
    validation: tuple[ArrayLike, ArrayLike] | None = None,
    patience: int | None = None,
    parameters: Sequence[str] = Parameters._fields,
    callback: Callable[[TrainingProgress], bool | None] | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
) -> Training[Network]:
    """Train a network, or a stack of networks at once, with any optax optimiser.

    The steps between two records are one compiled loop on the device. Gates are never trained, and a gated network's
    masks are computed once.

    Parameters
    ----------
    network
        A :class:`GatedReLUNetwork` or :class:`ReLUNetwork`; a stack has leaves with one more axis in front, as
        ``jax.vmap(lambda key: fx.ReLUNetwork.sample(key, 100, 5))(keys)`` makes it. The networks of a stack see the
        same mini-batches and have an optimiser's state each.
    x, y
        (n, d) inputs and targets, as for :class:`ConvexProgram`.
    optimizer
        An optax optimiser, with schedules if need be. The penalty is part of the objective: use ``optax.adam``, not
        ``optax.adamw``, unless other decay is wanted besides.
    reg
        λ ≥ 0, of the objective Σ ω ℓ + λ · weight decay; (S,) for one each in a stack.
    loss, sample_weight
        As for :class:`ConvexProgram`.
    num_steps
        Gradient steps.
    batch_size
        Rows in a step, without replacement until an epoch has seen ⌊n / batch_size⌋ batches; all rows when None. The
        gradient's loss is scaled by n / batch_size.
    key
        For the mini-batches; needed with ``batch_size``.
    record_every
        Steps between two records.
    validation
        (x, y) of which the mean loss is recorded.
    patience
        Stop after so many records without a lower validation loss, or objective where there is no validation; of a
        stack, none lower.
    parameters
        Which of ``hidden``, ``output`` and ``intercept`` to train.
    callback
        Called with a :class:`TrainingProgress` at each record; a true answer stops.
    checkpoint
        Folder to which the state is written at each record; needs orbax.
    resume
        Go on from the folder's last checkpoint if it has one; the result is that of an uninterrupted training.

    Returns
    -------
    Training
        The last network, the best one, and the history.

    Raises
    ------
    ValueError
        If shapes or labels do not fit, or the folder has checkpoints already and ``resume`` is false, or those of
        other networks.
    DivergedError
        If the objective of every network became infinite or NaN; its ``training`` has what was reached before, and the
        last checkpoint stays.

    Warns
    -----
    UserWarning
        If some networks of a stack diverged.
    """
    num_steps, record_every = as_positive_int("num_steps", num_steps), as_positive_int("record_every", record_every)
    data, reg, loss, names = _checked(network, x, y, reg, loss, sample_weight, parameters)
    batch_size = _as_batch_size(batch_size, key, data.x.shape[0])
    held_out = None if validation is None else _held_out(network, validation, loss)
    is_stack = network.hidden.ndim == 3
    run = partial(_advance, optimizer=optimizer, loss=loss, batch_size=batch_size, is_stack=is_stack)
    frozen = {k: v for k, v in network.parameters._asdict().items() if k not in names}
    state = _start(network.parameters._asdict(), names, optimizer, is_stack)
    measure = partial(_measure, loss=loss, is_stack=is_stack)

    records: list[tuple[int, np.ndarray, np.ndarray, float]] = []
    done, unimproved, earlier = 0, 0, 0.0
    if checkpoint is not None:
        state, records = checkpoints.restored(checkpoint, state, resume=resume)
        if records:
            done, earlier = records[-1][0], records[-1][3]
    began = time.perf_counter()

    while True:
        if not records or done > records[-1][0]:
            objective, held_out_loss = measure(state.trained, frozen, data, held_out, reg)
            state, improved = _kept(state, objective if held_out is None else held_out_loss, objective)
            unimproved = 0 if bool(improved) else unimproved + 1
            seconds = earlier + time.perf_counter() - began
            records.append((done, np.asarray(objective), np.asarray(held_out_loss), seconds))
            if checkpoint is not None and np.any(np.isfinite(records[-1][1])):
                checkpoints.save(checkpoint, done, state, records)
        step, last, last_held_out, seconds = records[-1]
        diverged = ~np.isfinite(last)
        progress = TrainingProgress(step, num_steps, last, None if held_out is None else last_held_out, seconds)
        stopped = callback is not None and callback(progress)
        if done >= num_steps or np.all(diverged) or stopped or (patience is not None and unimproved >= patience):
            break
        until = min(num_steps, done + record_every)
        state = run(state, frozen, data, reg, key, done, num_steps=until - done)
        done = until

    training = _as_training(network, state, records, held_out is not None)
    if np.all(diverged):
        raise DivergedError(
            f"the objective became {last.reshape(-1)[0]} between steps {records[-2][0] if len(records) > 1 else 0} and "
            f"{step}: lower the learning rate" + (f"; {checkpoint} has what was before" if checkpoint else ""),
            training,
        )
    if np.any(diverged):
        which = ", ".join(map(str, np.flatnonzero(diverged)))
        warnings.warn(f"{diverged.sum()} of {diverged.size} networks diverged: {which}", stacklevel=2)
    return training


def network_objective(
    network: Network,
    x: ArrayLike,
    y: ArrayLike,
    reg: ArrayLike,
    *,
    loss: str | Loss = "squared",
    sample_weight: ArrayLike | None = None,
) -> Float[Array, ...]:
    """Σ_i ω_i ℓ(f(x_i); y_i) + λ · weight decay, what :func:`train` minimises and the convex program bounds (M10).

    Parameters
    ----------
    network, x, y, reg, loss, sample_weight
        As for :func:`train`.

    Returns
    -------
    A number, (S,) for a stack.
    """
    data, reg, loss, _ = _checked(network, x, y, reg, loss, sample_weight, Parameters._fields)
    is_stack = network.hidden.ndim == 3
    return _measure(network.parameters._asdict(), {}, data, None, reg, loss=loss, is_stack=is_stack)[0]


def _checked(
    network: Any, x: ArrayLike, y: ArrayLike, reg: ArrayLike, loss: str | Loss, sample_weight: Any, names: Sequence[str]
) -> tuple[_Data, Array, Loss, tuple[str, ...]]:
    if not hasattr(network, "parameters") or not hasattr(network, "hidden"):
        raise TypeError(f"network must be a GatedReLUNetwork or a ReLUNetwork, got {type(network).__name__}")
    if network.hidden.ndim not in (2, 3):
        raise ValueError(f"hidden must have shape (m, d), or (S, m, d) for a stack, got {network.hidden.shape}")
    loss, dtype = as_loss(loss), network.hidden.dtype
    check_scalar("reg", reg)
    reg = jnp.broadcast_to(jnp.asarray(reg, dtype), network.hidden.shape[:-2])
    known = {k for k, v in network.parameters._asdict().items() if v is not None}
    if isinstance(names, str) or not set(names) <= set(Parameters._fields) or not set(names) & known:
        raise ValueError(f"parameters must be some of {', '.join(sorted(known))}, got {names!r}")
    data = _as_data(network, x, y, loss)
    if sample_weight is not None:
        weights = as_float_array("sample_weight", sample_weight, (1,)).astype(dtype)
        check_same_rows("x", data.x, "sample_weight", weights)
        if float(jnp.min(weights)) < 0:
            raise ValueError(f"sample_weight must not be negative, got {float(jnp.min(weights)):g}")
        data = data._replace(weights=weights)
    return data, reg, loss, tuple(name for name in names if name in known)


def _as_data(network: Any, x: ArrayLike, y: ArrayLike, loss: Loss) -> _Data:
    dtype = network.hidden.dtype
    x, targets = as_matrix("x", x).astype(dtype), loss.encode(y).astype(dtype)
    check_same_rows("x", x, "y", targets)
    check_same_columns("x", x, "hidden", network.hidden.reshape(-1, network.hidden.shape[-1]))
    targets = targets[:, None] if targets.ndim == 1 else targets
    if targets.shape[1] != network.output.shape[-1]:
        raise ValueError(f"y has {targets.shape[1]} output(s), the network {network.output.shape[-1]}")
    masks = None
    if isinstance(network, GatedReLUNetwork):
        if network.gates.shape != network.hidden.shape:
            raise ValueError(f"gates must have hidden's shape {network.hidden.shape}, got {network.gates.shape}")
        flat = activation_masks(x, network.gates.reshape(-1, x.shape[1])).reshape(x.shape[0], *network.gates.shape[:-1])
        masks = jnp.moveaxis(flat, 0, -2)
    return _Data(x, targets, jnp.ones(x.shape[0], dtype), masks)


def _held_out(network: Any, validation: Any, loss: Loss) -> _Data:
    if not isinstance(validation, tuple) or len(validation) != 2:
        raise TypeError(f"validation must be a pair (x, y), got {type(validation).__name__}")
    held_out = _as_data(network, *validation, loss)
    return held_out._replace(weights=held_out.weights / held_out.x.shape[0])


def _as_batch_size(batch_size: int | None, key: Any, num_rows: int) -> int | None:
    if batch_size is None:
        return None
    batch_size = as_positive_int("batch_size", batch_size)
    if batch_size > num_rows:
        raise ValueError(f"batch_size must be at most the number of rows, {num_rows}, got {batch_size}")
    if key is None:
        raise ValueError("key must be given with batch_size, for the order of the rows")
    return batch_size


def _losses(trained: dict[str, Array], frozen: dict[str, Array], data: _Data, loss: Loss) -> Float[Array, ""]:
    fitted = outputs(Parameters(**trained, **frozen), data.x, data.masks)
    return jnp.sum(data.weights * loss.values(fitted, data.targets))


def _objective(
    trained: dict[str, Array], frozen: dict[str, Array], data: _Data, reg: Array, loss: Loss
) -> Float[Array, ""]:
    penalty = weight_decay(Parameters(**trained, **frozen))
    return _losses(trained, frozen, data, loss) + jnp.where(reg > 0, reg * penalty, 0)


def _over_stack(function: Callable[..., Any], is_stack: bool, axes: tuple[Any, ...]) -> Callable[..., Any]:
    return jax.vmap(function, in_axes=axes) if is_stack else function


# A stack shares the rows, not the masks.
_ROWS_SHARED = _Data(None, None, None, 0)  # type: ignore[arg-type]


@partial(jax.jit, static_argnames=("names", "optimizer", "is_stack"))
def _start(
    parameters: dict[str, Array], names: tuple[str, ...], optimizer: optax.GradientTransformation, is_stack: bool
) -> _State:
    trained = {name: parameters[name] for name in names}
    lowest = jnp.full(parameters["hidden"].shape[:-2], jnp.inf, parameters["hidden"].dtype)
    return _State(trained, _over_stack(optimizer.init, is_stack, (0,))(trained), trained, trained, lowest)


@partial(jax.jit, static_argnames=("loss", "is_stack"))
def _measure(
    trained: dict[str, Array],
    frozen: dict[str, Array],
    data: _Data,
    held_out: _Data | None,
    reg: Array,
    *,
    loss: Loss,
    is_stack: bool,
) -> tuple[Array, Array]:
    """Objective on all rows, and mean loss on the held-out ones (NaN without any)."""
    objective = _over_stack(partial(_objective, loss=loss), is_stack, (0, 0, _ROWS_SHARED, 0))
    value = objective(trained, frozen, data, reg)
    if held_out is None:
        return value, jnp.full_like(value, jnp.nan)
    losses = _over_stack(partial(_losses, loss=loss), is_stack, (0, 0, _ROWS_SHARED))
    return value, losses(trained, frozen, held_out)


@jax.jit
def _kept(state: _State, monitored: Array, objective: Array) -> tuple[_State, Array]:
    """The state with the last good and the best parameters, and whether any are better than before."""

    def where(condition: Array, new: dict[str, Array], old: dict[str, Array]) -> dict[str, Array]:
        def each(a: Array, b: Array) -> Array:
            return jnp.where(condition.reshape(condition.shape + (1,) * (a.ndim - condition.ndim)), a, b)

        return jax.tree.map(each, new, old)

    finite = jnp.isfinite(objective)
    better = finite & (monitored < state.lowest)
    state = state._replace(
        good=where(finite, state.trained, state.good),
        best=where(better, state.trained, state.best),
        lowest=jnp.where(better, monitored, state.lowest),
    )
    return state, jnp.any(better)


@partial(jax.jit, static_argnames=("optimizer", "loss", "batch_size", "is_stack", "num_steps"))
def _advance(
    state: _State,
    frozen: dict[str, Array],
    data: _Data,
    reg: Array,
    key: Array | None,
    begin: int,
    *,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    batch_size: int | None,
    is_stack: bool,
    num_steps: int,
) -> _State:
    num_rows = data.x.shape[0]
    per_epoch = 1 if batch_size is None else num_rows // batch_size
    gradient = jax.grad(partial(_objective, loss=loss))

    def update(trained: dict[str, Array], carried: Any, frozen: dict[str, Array], rows: _Data, reg: Array) -> Any:
        updates, carried = optimizer.update(gradient(trained, frozen, rows, reg), carried, trained)
        return optax.apply_updates(trained, updates), carried

    update = _over_stack(update, is_stack, (0, 0, 0, _ROWS_SHARED, 0))

    def order_of(i: Array) -> Array:
        if key is None:
            return jnp.arange(num_rows)
        return jax.random.permutation(jax.random.fold_in(key, i // per_epoch), num_rows)

    def step(carry: tuple[Any, Any, Array], i: Array) -> tuple[tuple[Any, Any, Array], None]:
        trained, carried, order = carry
        rows = data
        if batch_size is not None:
            position = i % per_epoch
            order = lax.cond(position == 0, lambda: order_of(i), lambda: order)
            rows = _taken(data, lax.dynamic_slice_in_dim(order, position * batch_size, batch_size))
        trained, carried = update(trained, carried, frozen, rows, reg)
        return (trained, carried, order), None

    carry = (state.trained, state.optimizer, order_of(jnp.asarray(begin)))
    (trained, carried, _), _ = lax.scan(step, carry, begin + jnp.arange(num_steps))
    return state._replace(trained=trained, optimizer=carried)


def _taken(data: _Data, chosen: Array) -> _Data:
    """The chosen rows, with weights such that the loss's expectation is that of all."""
    return _Data(
        data.x[chosen],
        data.targets[chosen],
        data.weights[chosen] * (data.x.shape[0] / chosen.size),
        None if data.masks is None else jnp.take(data.masks, chosen, axis=-2),
    )


def _as_training(network: Network, state: _State, records: list[Any], has_validation: bool) -> Training[Network]:
    steps, objective, validation, seconds = (np.array(column) for column in zip(*records, strict=True))
    history = TrainingHistory(steps, objective, validation if has_validation else None, seconds)
    last, best = (
        network.with_parameters(network.parameters._replace(**trained)) for trained in (state.good, state.best)
    )
    return Training(last, best, history, ~np.isfinite(objective[-1]))
