"""Checkpoints of a training, by orbax: what was recorded and what training carries on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

State = TypeVar("State")
Record = tuple[int, np.ndarray, np.ndarray, float]


def save(folder: str | Path, step: int, state: Any, records: list[Record]) -> None:
    """Write a state and the records so far; the two last ones are kept."""
    manager, args = _manager(folder)
    columns = [np.array(column, dtype=float) for column in zip(*records, strict=True)]
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    with manager:
        manager.save(step, args=args.StandardSave({"leaves": leaves, "records": columns}))


def restored(folder: str | Path, state: State, *, resume: bool) -> tuple[State, list[Record]]:
    """The folder's last state, in the structure of the given one, and its records; the given one and none without.

    Raises
    ------
    ValueError
        If there are checkpoints and ``resume`` is false, or their arrays have other shapes.
    """
    manager, args = _manager(folder)
    with manager:
        step = manager.latest_step()
        if step is None:
            return state, []
        if not resume:
            raise ValueError(
                f"checkpoint {folder} has a training already: pass resume=True to go on, or another folder"
            )
        found = manager.restore(step, args=args.StandardRestore())
    leaves, structure = jax.tree.flatten(state)
    stored = [jnp.asarray(leaf) for leaf in found["leaves"]]
    expected = [(leaf.shape, leaf.dtype) for leaf in leaves]
    if [(leaf.shape, leaf.dtype) for leaf in stored] != expected:
        raise ValueError(f"checkpoint {folder} is of another network, optimiser or dtype: its arrays have other shapes")
    records = [
        (int(step), objective, validation, float(seconds))
        for step, objective, validation, seconds in zip(*map(np.asarray, found["records"]), strict=True)
    ]
    return jax.tree.unflatten(structure, stored), records


def _manager(folder: str | Path) -> tuple[Any, Any]:
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ImportError("checkpoints need orbax: pip install 'fixntk[networks]'") from error
    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    return ocp.CheckpointManager(Path(folder).absolute(), options=options), ocp.args
