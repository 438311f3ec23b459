"""Checkpoints of a training: its records, the state from which it continues, and a fingerprint of its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Shaped, UInt8

from fixntk._checks import entries_of, is_key
from fixntk._files import Checkpoints

State = TypeVar("State")


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


def count_unimproved(records: list[Record], *, has_validation: bool) -> int:
    """Number of records at the end of a training in which no network reached a lower monitored loss than before.

    The monitored loss is the validation loss if there is validation data, otherwise the objective.
    """
    objectives = np.stack([record.objective for record in records])
    monitored = np.stack([record.validation for record in records]) if has_validation else objectives
    values = np.where(np.isfinite(objectives), monitored, np.inf).reshape(len(records), -1)
    lowest = np.fmin.accumulate(values, axis=0)
    has_improved = np.any(values < np.concatenate([np.full_like(lowest[:1], np.inf), lowest[:-1]]), axis=1)
    return len(records) if not has_improved.any() else int(np.argmax(has_improved[::-1]))


def save(folder: str | Path, state: Any, records: list[Record], fingerprint: Mapping[str, str]) -> None:
    """Write a state, the records up to it and a fingerprint; the folder keeps the two newest checkpoints."""
    columns = {name: np.array(column) for name, column in zip(Record._fields, zip(*records, strict=True), strict=True)}
    leaves = jax.tree.leaves(state)
    # As bytes, because safetensors does not have all types of JAX.
    contents = {f"leaf {i}": _as_bytes(leaf) for i, leaf in enumerate(leaves)}
    fields = {"leaves": [_describe(leaf) for leaf in leaves]}
    _checkpoints(folder, fingerprint).save(records[-1].step, fields, {**columns, **contents})


def restore(
    folder: str | Path, state: State, fingerprint: Mapping[str, str], *, resume: bool
) -> tuple[State, list[Record]]:
    """The newest state in a folder, in the structure of the given state, with its records.

    An empty folder gives the state back, with no records. Files that are not checkpoints are ignored.

    Raises
    ------
    ValueError
        If there are checkpoints and ``resume`` is false, or they have another fingerprint, or arrays of other shapes or
        dtypes, or all are damaged.

    Warns
    -----
    UserWarning
        If a checkpoint is damaged, so that the training continues from the one before.
    """
    checkpoints = _checkpoints(folder, fingerprint)
    if not resume and not checkpoints.is_empty():
        raise ValueError(
            f"checkpoint {folder} has a training already: pass resume=True to continue it, or another folder"
        )
    if (found := checkpoints.newest(_read)) is None:
        return state, []
    records, contents, descriptions = found
    leaves, structure = jax.tree.flatten(state)
    if descriptions != [_describe(leaf) for leaf in leaves]:
        raise ValueError(
            f"checkpoint {folder} is of another network, optimiser or dtype: its arrays have other shapes or dtypes"
        )
    return jax.tree.unflatten(structure, [_as_leaf(*pair) for pair in zip(contents, leaves, strict=True)]), records


def _checkpoints(folder: str | Path, fingerprint: Mapping[str, str]) -> Checkpoints:
    return Checkpoints(Path(folder), "training", fingerprint, functions=("optimizer", "loss"))


def _read(
    fields: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> tuple[list[Record], list[UInt8[np.ndarray, " k"]], list[str]]:
    """Records, the leaves' bytes and what they are."""
    descriptions = list(fields["leaves"])
    return _as_records(arrays), [arrays[f"leaf {i}"] for i in range(len(descriptions))], descriptions


def _as_records(arrays: Mapping[str, np.ndarray]) -> list[Record]:
    columns = [arrays[name] for name in Record._fields]
    return [
        Record(int(step), objective, validation, float(seconds))
        for step, objective, validation, seconds in zip(*columns, strict=True)
    ]


def _describe(leaf: Array) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _as_bytes(leaf: Array) -> UInt8[np.ndarray, " k"]:
    return np.frombuffer(entries_of(leaf).tobytes(), np.uint8)


def _as_leaf(content: UInt8[np.ndarray, " k"], like: Array) -> Shaped[Array, " ..."]:
    """The array of :func:`_as_bytes`, with the shape and dtype of another one."""
    if is_key(like):
        shape = jax.random.key_data(like).shape
        data = jnp.asarray(np.frombuffer(content, np.uint32).reshape(shape))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(like))
    return jnp.asarray(np.frombuffer(content, like.dtype).reshape(like.shape))
