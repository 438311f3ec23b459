"""Checkpoints of a training, written by orbax: its records, and the state from which it continues."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

State = TypeVar("State")

# Number of the newest checkpoints that are kept.
_MAX_KEPT = 2


class Record(NamedTuple):
    """Entry of the history of a training.

    Attributes
    ----------
    step
        Number of steps made.
    objective
        Objective of each network.
    validation
        Validation loss of each network; NaN without validation data.
    seconds
        Seconds since the start.
    """

    step: int
    objective: Float[np.ndarray, " ..."]
    validation: Float[np.ndarray, " ..."]
    seconds: float


def save(folder: str | Path, state: Any, records: list[Record]) -> None:
    """Write a state and the records up to it; the folder keeps the two newest checkpoints."""
    manager, args = _manager(folder)
    columns = [np.array(column, dtype=float) for column in zip(*records, strict=True)]
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    with manager:
        manager.save(records[-1].step, args=args.StandardSave({"leaves": leaves, "records": columns}))


def restore(folder: str | Path, state: State, *, resume: bool) -> tuple[State, list[Record]]:
    """The newest state in a folder, in the structure of the given state, with its records.

    An empty folder gives the state back, with no records.

    Raises
    ------
    ValueError
        If there are checkpoints and ``resume`` is false, or their arrays have other shapes or dtypes.
    """
    manager, args = _manager(folder)
    with manager:
        step = manager.latest_step()
        if step is None:
            return state, []
        if not resume:
            raise ValueError(
                f"checkpoint {folder} has a training already: pass resume=True to continue it, or another folder"
            )
        found = manager.restore(step, args=args.StandardRestore())
    leaves, structure = jax.tree.flatten(state)
    stored = [jnp.asarray(leaf) for leaf in found["leaves"]]
    if [(leaf.shape, leaf.dtype) for leaf in stored] != [(leaf.shape, leaf.dtype) for leaf in leaves]:
        raise ValueError(
            f"checkpoint {folder} is of another network, optimiser or dtype: its arrays have other shapes or dtypes"
        )
    records = [
        Record(int(step), objective, validation, float(seconds))
        for step, objective, validation, seconds in zip(*map(np.asarray, found["records"]), strict=True)
    ]
    return jax.tree.unflatten(structure, stored), records


def _manager(folder: str | Path) -> tuple[Any, Any]:
    """An orbax manager of the folder, and orbax's module of arguments."""
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ImportError("checkpoints need orbax: pip install 'fixntk[networks]'") from error
    options = ocp.CheckpointManagerOptions(max_to_keep=_MAX_KEPT, enable_async_checkpointing=False)
    return ocp.CheckpointManager(Path(folder).absolute(), options=options), ocp.args
