r"""Training of gated and ReLU networks by gradient descent, for comparison with the convex program.

The objective is defined in :mod:`fixntk.training.objective`. For one output, and gates that the program has, it is
never below the program's certified lower bound.

See docs/mathematics.md, M10.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Key

from fixntk._checks import as_positive_int
from fixntk._compilation import describe_computation
from fixntk.convex.losses import Loss, as_loss
from fixntk.convex.progress import keep_result, progress_bar
from fixntk.networks.models import Network
from fixntk.networks.neurons import Parameters
from fixntk.training import checkpoints
from fixntk.training.checkpoints import Record, count_unimproved
from fixntk.training.fingerprint import fingerprint
from fixntk.training.objective import (
    ROW_AXES,
    Rows,
    as_regs,
    as_rows,
    as_validation_rows,
    check_network,
    draw_rows,
    map_stack,
    measure,
    objective,
    within_memory,
)
from fixntk.training.results import DivergedError, Training, TrainingHistory, TrainingProgress


class _State(NamedTuple):
    """State of a training between two records, which a checkpoint stores.

    Attributes
    ----------
    trained
        The parameters in training, by name.
    optimizer
        The optimiser's state.
    good
        The parameters at the last record with a finite objective.
    best
        The parameters at the record with the lowest monitored loss.
    lowest
        That loss; (S,) for a stack.
    """

    trained: dict[str, Array]
    optimizer: Any
    good: dict[str, Array]
    best: dict[str, Array]
    lowest: Float[Array, "*S"]


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
    progress: bool = False,
    checkpoint: str | Path | None = None,
    resume: bool = False,
) -> Training[Network]:
    """Train a network, or a stack of networks at once, with any optax optimiser.

    The steps between two records are one compiled loop on the device. Gates are never trained, and a gated network's
    masks are computed once.

    Parameters
    ----------
    network
        A :class:`GatedReLUNetwork` or :class:`ReLUNetwork`. A stack has leaves with one more axis in front, as made by
        ``jax.vmap(lambda key: fx.ReLUNetwork.sample(key, 100, 5))(keys)``. The networks of a stack see the same
        mini-batches; each has its own optimiser state.
    x, y
        (n, d) inputs and targets, as for :class:`ConvexProgram`.
    optimizer
        An optax optimiser, with or without schedules. The penalty is part of the objective: use ``optax.adam``, not
        ``optax.adamw``, unless you want additional decay.
    reg
        λ ≥ 0 of the objective Σ ω ℓ + λ · weight decay; (S,) for one value for each network of a stack.
    loss, sample_weight
        As for :class:`ConvexProgram`.
    num_steps
        Number of gradient steps.
    batch_size
        Rows in a step, all rows if None. Rows are drawn without replacement, and an epoch has ⌊n / batch_size⌋ batches.
        The loss is scaled by n / batch_size in the gradient.
    key
        Random key for the mini-batches; needed with ``batch_size``.
    record_every
        Number of steps between two records.
    validation
        (x, y) whose mean loss is recorded.
    patience
        Stop after this number of records without a lower validation loss, or objective if there is no validation data;
        a stack stops when none of its networks has a lower one.
    parameters
        Names of the parameters to train, among ``hidden``, ``output`` and ``intercept``.
    callback
        Called with a :class:`TrainingProgress` at each record; returning True stops the training.
    progress
        Show a bar with steps, objective and validation loss, the lowest of a stack's.
    checkpoint
        Folder to which the state is written at each record; needs safetensors. It keeps the two newest checkpoints, and
        other files in it are ignored.
    resume
        Continue from the newest checkpoint in the folder that is not damaged, if there is one. The result is the same
        as without the interruption, when patience stops it too. ``num_steps``, ``record_every`` and ``patience`` may be
        other ones than before; steps beyond ``num_steps`` that were made already stay.

    Returns
    -------
    Training
        The last network, the best one, and the history.

    Raises
    ------
    ValueError
        If shapes or labels do not fit; if the folder has checkpoints and ``resume`` is false, or has checkpoints of
        a training with another network, other data, or other options, which the message names.
    DivergedError
        If the objective of every network became infinite or NaN. Its ``training`` has the results up to that point,
        and the last checkpoint stays.
    Interrupted
        A KeyboardInterrupt with the Training up to the last record as ``result``, on Ctrl-C with ``callback`` or
        ``progress``.

    Warns
    -----
    UserWarning
        If some networks of a stack diverged, or a checkpoint is damaged and the training continues from an earlier one.

    See docs/mathematics.md, M10.
    """
    num_steps, record_every, patience = _as_counts(num_steps, record_every, patience)
    check_network(network)
    loss, reg, names = as_loss(loss), as_regs(reg, network), _as_names(network, parameters)
    rows = as_rows(network, x, y, loss, sample_weight)
    batch_size = _as_batch_size(batch_size, key, rows.x.shape[0])
    validation_rows = None if validation is None else as_validation_rows(network, validation, loss)
    run = within_memory(_run_steps, optimizer=optimizer, loss=loss, batch_size=batch_size)
    measure_rows = within_memory(measure, loss=loss)
    frozen = {name: value for name, value in network.parameters._asdict().items() if name not in names}
    state, records, made_by = _start(network.parameters, names, optimizer), list[Record](), dict[str, str]()
    if checkpoint is not None:
        options = {"reg": reg, "batch_size": batch_size, "key": key, "parameters": names}
        made_by = _fingerprint(network, optimizer, state, loss, rows, validation_rows, options)
        state, records = checkpoints.restore(checkpoint, state, made_by, resume=resume)
    step, earlier_seconds = (records[-1].step, records[-1].seconds) if records else (0, 0.0)
    has_validation, began = validation_rows is not None, time.perf_counter() - earlier_seconds
    kept = keep_result(
        lambda: _as_training(network, state, records, has_validation) if records else None,
        is_watched=progress or callback is not None,
    )
    with progress_bar("train", total=num_steps, unit="step", shown=progress) as show, kept:
        while True:
            # A resumed training has the record of its first step already.
            if not records or step > records[-1].step:
                value, monitored = measure_rows(state.trained, frozen, rows, validation_rows, reg)
                state = _keep_best(state, monitored, value)
                seconds = time.perf_counter() - began
                records.append(_as_record(step, value, monitored if has_validation else None, seconds))
                _save(checkpoint, state, records, made_by)
            seen = _as_progress(records[-1], num_steps, has_validation, _with_parameters(network, state.trained))
            show(step, _describe(seen))
            is_stopped = (callback is not None and callback(seen)) or _has_run_out(patience, records, has_validation)
            if step >= num_steps or is_stopped or not np.any(np.isfinite(seen.objective)):
                break
            count = min(record_every, num_steps - step)
            state, step = run(state, frozen, rows, reg, key, step, num_steps=count), step + count
    training = _as_training(network, state, records, has_validation)
    _report_divergence(training, records, checkpoint)
    return training


def _as_counts(num_steps: Any, record_every: Any, patience: Any) -> tuple[int, int, int | None]:
    given = {"num_steps": num_steps, "record_every": record_every}
    num_steps, record_every = (as_positive_int(name, value) for name, value in given.items())
    return num_steps, record_every, None if patience is None else as_positive_int("patience", patience)


def _save(checkpoint: str | Path | None, state: _State, records: list[Record], made_by: dict[str, str]) -> None:
    """Write a checkpoint, if there is a folder for it and a network that has not diverged."""
    if checkpoint is not None and np.any(np.isfinite(records[-1].objective)):
        checkpoints.save(checkpoint, state, records, made_by)


def _fingerprint(
    network: Network,
    optimizer: optax.GradientTransformation,
    state: _State,
    loss: Loss,
    rows: Rows,
    validation_rows: Rows | None,
    options: dict[str, Any],
) -> dict[str, str]:
    """What a checkpoint must have been made with to be continued; all other arguments may change."""
    update = map_stack(optimizer.update, bool(state.lowest.ndim), (0, 0, 0))
    data = {"x": rows.x, "y": rows.targets, "sample_weight": rows.weights, "validation": validation_rows}
    computed = describe_computation(loss.values, rows.targets, rows.targets)
    return fingerprint(update, state.trained, state.optimizer, network=network, loss=computed, **data, **options)


def _as_record(step: int, value: Array, validation: Array | None, seconds: float) -> Record:
    objectives = np.asarray(value)
    losses = np.full_like(objectives, np.nan) if validation is None else np.asarray(validation)
    return Record(step, objectives, losses, seconds)


def _as_progress(last: Record, num_steps: int, has_validation: bool, network: Any) -> TrainingProgress:
    validation = last.validation if has_validation else None
    return TrainingProgress(last.step, num_steps, last.objective, validation, last.seconds, network)


def _with_parameters(network: Network, trained: dict[str, Array]) -> Network:
    return network.with_parameters(network.parameters._replace(**trained))


def _has_run_out(patience: int | None, records: list[Record], has_validation: bool) -> bool:
    # From the records alone, so that a resumed training stops where an uninterrupted one does.
    return patience is not None and count_unimproved(records, has_validation=has_validation) >= patience


def _describe(seen: TrainingProgress) -> str:
    # fmin passes over NaN, those of networks that diverged.
    line = f"objective {np.fmin.reduce(seen.objective, axis=None):.4g}"
    if seen.validation is None:
        return line
    return f"{line}, validation loss {np.fmin.reduce(seen.validation, axis=None):.4g}"


def _as_names(network: Network, names: Sequence[str]) -> tuple[str, ...]:
    """The names of the parameters to train that the network has."""
    known = {name for name, value in network.parameters._asdict().items() if value is not None}
    if isinstance(names, str) or not set(names) <= set(Parameters._fields) or not set(names) & known:
        raise ValueError(f"parameters must be some of {', '.join(sorted(known))}, got {names!r}")
    return tuple(name for name in names if name in known)


def _as_batch_size(batch_size: int | None, key: Key[Array, ""] | None, num_rows: int) -> int | None:
    if batch_size is None:
        return None
    batch_size = as_positive_int("batch_size", batch_size)
    if batch_size > num_rows:
        raise ValueError(f"batch_size must be at most the number of rows, {num_rows}, got {batch_size}")
    if key is None:
        raise ValueError("key must be given with batch_size, for the order of the rows")
    return batch_size


@partial(jax.jit, static_argnames=("names", "optimizer"))
def _start(parameters: Parameters, names: tuple[str, ...], optimizer: optax.GradientTransformation) -> _State:
    trained = {name: getattr(parameters, name) for name in names}
    stack_shape, dtype = parameters.hidden.shape[:-2], parameters.hidden.dtype
    optimizer_state = map_stack(optimizer.init, bool(stack_shape), (0,))(trained)
    return _State(trained, optimizer_state, good=trained, best=trained, lowest=jnp.full(stack_shape, jnp.inf, dtype))


@jax.jit
def _keep_best(state: _State, monitored: Float[Array, "*S"], objectives: Float[Array, "*S"]) -> _State:
    """Update the last good and the best parameters."""

    def select(condition: Array, new: dict[str, Array], old: dict[str, Array]) -> dict[str, Array]:
        def select_leaf(a: Array, b: Array) -> Array:
            return jnp.where(condition.reshape(condition.shape + (1,) * (a.ndim - condition.ndim)), a, b)

        return jax.tree.map(select_leaf, new, old)

    is_finite = jnp.isfinite(objectives)
    is_better = is_finite & (monitored < state.lowest)
    return state._replace(
        good=select(is_finite, state.trained, state.good),
        best=select(is_better, state.trained, state.best),
        lowest=jnp.where(is_better, monitored, state.lowest),
    )


@partial(jax.jit, static_argnames=("optimizer", "loss", "batch_size", "num_steps"))
def _run_steps(
    state: _State,
    frozen: dict[str, Any],
    rows: Rows,
    reg: Float[Array, "*S"],
    key: Key[Array, ""] | None,
    begin: Int[Array, ""] | int,
    *,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    batch_size: int | None,
    num_steps: int,
) -> _State:
    """Steps ``begin`` to ``begin + num_steps`` of gradient descent."""
    num_rows = rows.x.shape[0]
    num_batches = 1 if batch_size is None else num_rows // batch_size
    gradient = jax.grad(partial(objective, loss=loss))

    def update(trained: dict[str, Array], optimizer_state: Any, frozen: dict[str, Any], rows: Rows, reg: Array) -> Any:
        updates, optimizer_state = optimizer.update(gradient(trained, frozen, rows, reg), optimizer_state, trained)
        return optax.apply_updates(trained, updates), optimizer_state

    update = map_stack(update, reg.ndim == 1, (0, 0, 0, ROW_AXES, 0))

    def epoch_order(i: Array) -> Array:
        """The order of the rows in the epoch of step i; a function of the epoch alone, so a resumed training has it."""
        if key is None:
            return jnp.arange(num_rows)
        return jax.random.permutation(jax.random.fold_in(key, i // num_batches), num_rows)

    def step(carry: tuple[Any, Any, Array], i: Array) -> tuple[tuple[Any, Any, Array], None]:
        trained, optimizer_state, order = carry
        batch = rows
        if batch_size is not None:
            # The order is drawn at the first batch of an epoch, and kept for the others.
            position = i % num_batches
            order = lax.cond(position == 0, lambda: epoch_order(i), lambda: order)
            batch = draw_rows(rows, lax.dynamic_slice_in_dim(order, position * batch_size, batch_size))
        trained, optimizer_state = update(trained, optimizer_state, frozen, batch, reg)
        return (trained, optimizer_state, order), None

    carry = (state.trained, state.optimizer, epoch_order(jnp.asarray(begin)))
    (trained, optimizer_state, _), _ = lax.scan(step, carry, begin + jnp.arange(num_steps))
    return state._replace(trained=trained, optimizer=optimizer_state)


def _as_training(network: Network, state: _State, records: list[Record], has_validation: bool) -> Training[Network]:
    steps, objectives, validation, seconds = (np.array(column) for column in zip(*records, strict=True))
    history = TrainingHistory(steps, objectives, validation if has_validation else None, seconds)
    last, best = (_with_parameters(network, trained) for trained in (state.good, state.best))
    return Training(last, best, history, ~np.isfinite(objectives[-1]))


def _report_divergence(training: Training[Network], records: list[Record], checkpoint: str | Path | None) -> None:
    """Raise if every network diverged, warn if some did."""
    diverged, last = training.diverged, records[-1]
    if np.all(diverged):
        raise DivergedError(
            f"the objective became {last.objective.reshape(-1)[0]} between steps "
            f"{records[-2].step if len(records) > 1 else 0} and {last.step}: lower the learning rate. "
            "This error's training.network has the parameters before"
            + (f", and so has {checkpoint}, for the same optimiser" if checkpoint else ""),
            training,
        )
    if np.any(diverged):
        which = ", ".join(map(str, np.flatnonzero(diverged)))
        warnings.warn(f"{diverged.sum()} of {diverged.size} networks diverged: {which}", stacklevel=3)
