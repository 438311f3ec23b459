"""Checkpoints of solves and paths: what is saved, how often, and what must be the same to continue."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax import Array
from jaxtyping import Float

from fixntk._checks import place, to_device
from fixntk._compilation import describe_computation
from fixntk._files import Checkpoints, FileFormatError, digest
from fixntk.convex.processes import call_on_first, first_says, gather_texts, share_arrays, spans_processes, to_host
from fixntk.convex.program import ConvexProgram, targets_of
from fixntk.convex.solution import History, Solution

Content = TypeVar("Content")
Tree = TypeVar("Tree")

# Least time between two checkpoints, in seconds.
_MIN_SECONDS = 5.0
# Largest share of the time that writing checkpoints may take.
_MAX_WRITING_SHARE = 0.05


class Trace(NamedTuple):
    """How far a solve has come.

    Attributes
    ----------
    state
        The solver's own, a pytree.
    record
        A row of the loop's record for the start, and for each of k steps.
    seconds
        Those of the history.
    """

    state: Any
    record: Float[np.ndarray, "k+1 6"]
    seconds: Float[np.ndarray, " k+1"]


class Keeper:
    """Writes checkpoints of a computation, so seldom that they take at most a twentieth of the time.

    Where several processes compute it together, the first reads and writes, and all make every call together.
    """

    def __init__(self, checkpoints: Checkpoints, *, is_shared: bool = False) -> None:
        self._checkpoints = checkpoints
        self._is_shared = is_shared
        self._due = time.monotonic() + _MIN_SECONDS
        self._last_step = 0

    def newest(self, read: Callable[[Mapping[str, np.ndarray]], tuple[int, Content]]) -> Content | None:
        """What ``read`` makes of the arrays of the newest checkpoint, with its step; None where there is none."""
        found = self._newest_of_first(read) if self._is_shared else self._checkpoints.newest(lambda _, each: read(each))
        if found is None:
            return None
        self._last_step, content = found
        return content

    def _newest_of_first(
        self, read: Callable[[Mapping[str, np.ndarray]], tuple[int, Content]]
    ) -> tuple[int, Content] | None:
        """As the first process finds it in its folder."""

        def read_whole(_: Mapping[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            # It raises where they are none of this computation, so that the checkpoint before is read.
            read(arrays)
            return arrays

        arrays = share_arrays(call_on_first(lambda: self._checkpoints.newest(read_whole)))
        return None if arrays is None else read(arrays)

    def is_due(self) -> bool:
        """Whether enough time has passed since the last checkpoint, or since the start."""
        is_due = time.monotonic() >= self._due
        return first_says(is_due) if self._is_shared else is_due

    def save(self, step: int, arrays: Callable[[], Mapping[str, np.ndarray]]) -> None:
        """Write the checkpoint of a step, unless it is the last one that was written or read, or none is made yet."""
        if step == self._last_step:
            return
        # One that cannot be written is not tried again.
        self._last_step, began = step, time.monotonic()
        # All processes give their rows, which the first writes.
        whole = arrays()
        if self._is_shared:
            call_on_first(lambda: self._checkpoints.save(step, {}, whole))
        else:
            self._checkpoints.save(step, {}, whole)
        ended = time.monotonic()
        self._due = ended + max(_MIN_SECONDS, (ended - began) / _MAX_WRITING_SHARE)


def open_checkpoints(
    folder: str | os.PathLike[str] | None, of: str, program: ConvexProgram, **options: Any
) -> Keeper | None:
    """The keeper of a computation on a program; None without a folder.

    Parameters
    ----------
    folder
        Where the checkpoints are.
    of
        "solve" or "path".
    program
        As the user made it. Its λ is not compared unless it is among the options.
    options
        What must be the same as before to continue, beside the program, by the names of the arguments.

    Raises
    ------
    TypeError
        If the folder is no path.
    """
    if folder is None:
        return None
    targets = targets_of(program)
    arguments = {
        "x": program.x,
        "y": program.y,
        "masks": (program.masks, program.num_gates),
        "loss": (program.loss.name, describe_computation(program.loss.values, targets, targets)),
        "sample_weight": program.sample_weight,
        "intercept": program.column is not None,
        "penalty_weights": program.penalty_weights,
        "ridge": program.ridge,
        "norm": program.norm.name,
        **options,
    }
    return open_keeper(folder, of, arguments)


def open_keeper(folder: str | os.PathLike[str], of: str, arguments: Mapping[str, Any]) -> Keeper:
    """The keeper of a computation with these arguments, by name: pytrees that must be the same to continue.

    Raises
    ------
    TypeError
        If the folder is no path.
    """
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"checkpoint must be the path of a folder, got {type(folder).__name__}")
    is_shared = spans_processes(arguments)
    digests = {name: digest(_parts_here(value)) for name, value in arguments.items()}
    if is_shared:
        gathered = [json.loads(text) for text in gather_texts(json.dumps(digests))]
        digests = {name: digest([one[name] for one in gathered]) for name in digests}
        # Sums over other numbers of devices are rounded otherwise.
        digests["processes"] = f"{jax.process_count()} with {jax.device_count()} devices"
    made_by = {"versions": f"jax {jax.__version__}", **digests}
    return Keeper(Checkpoints(Path(folder), of, made_by, functions=("loss",)), is_shared=is_shared)


def _parts_here(tree: Any) -> Any:
    """A pytree with those parts of its arrays that this process has, where others have some."""
    return jax.tree.map(
        lambda leaf: [shard.data for shard in leaf.addressable_shards] if spans_processes(leaf) else leaf, tree
    )


def save_trace(keeper: Keeper, trace: Trace) -> None:
    """Write the checkpoint of a solve."""
    arrays = {"record": trace.record, "seconds": trace.seconds}
    keeper.save(len(trace.record) - 1, lambda: arrays | _as_arrays(trace.state))


def restore_trace(keeper: Keeper, start: Any) -> Trace | None:
    """How far a solve had come, in the structure of its first state; None where there is no checkpoint."""

    def read(arrays: Mapping[str, np.ndarray]) -> tuple[int, Trace]:
        trace = Trace(_as_tree(arrays, start), arrays["record"], arrays["seconds"])
        return len(trace.record) - 1, trace

    return keeper.newest(read)


def save_walk(keeper: Keeper, solutions: Sequence[Solution], last: Any) -> None:
    """Write the checkpoint of a path: its solutions from the largest λ down, and the evaluation of the last."""

    def arrays() -> dict[str, np.ndarray]:
        named = (_name_arrays(f"solution {k} ", solution) for k, solution in enumerate(solutions))
        return {name: array for one in named for name, array in one.items()} | _as_arrays(last)

    keeper.save(len(solutions), arrays)


def restore_walk(keeper: Keeper, start: Tree, **of_all: Any) -> tuple[list[Solution], Tree] | None:
    """Solutions and the evaluation of the last, in the structure of that of the start; None without a checkpoint.

    ``of_all`` are the fields of a Solution that are no arrays.
    """

    def read(arrays: Mapping[str, np.ndarray]) -> tuple[int, tuple[list[Solution], Tree]]:
        count = sum(name.endswith(" weights") and not name.endswith("_weights") for name in arrays)
        solutions = [_as_solution(arrays, f"solution {k} ", of_all) for k in range(count)]
        return count, (solutions, _as_tree(arrays, start))

    return keeper.newest(read)


def _name_arrays(prefix: str, solution: Solution) -> dict[str, np.ndarray]:
    values = {field.name: getattr(solution, field.name) for field in fields(Solution) if not field.metadata}
    history = values.pop("history")._asdict()
    found = values | {f"history {name}": column for name, column in history.items()}
    return {prefix + name: to_host(value) for name, value in found.items() if value is not None}


def _as_solution(arrays: Mapping[str, np.ndarray], prefix: str, of_all: Mapping[str, Any]) -> Solution:
    history = History(*(to_device(arrays[f"{prefix}history {name}"]) for name in History._fields))
    names = [field.name for field in fields(Solution) if not field.metadata and field.name != "history"]
    values: dict[str, Any] = dict.fromkeys(names)
    values |= {name: to_device(arrays[prefix + name]) for name in names if prefix + name in arrays}
    return Solution(**values, history=history, **of_all)


def _as_arrays(tree: Any) -> dict[str, np.ndarray]:
    return {f"leaf {i}": to_host(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}


def _as_tree(arrays: Mapping[str, np.ndarray], like: Tree) -> Tree:
    """The pytree of :func:`_as_arrays`, each leaf where that of another one is."""
    leaves, structure = jax.tree.flatten(like)
    found = [arrays[f"leaf {i}"] for i in range(len(leaves))]
    if any((array.shape, array.dtype) != (leaf.shape, leaf.dtype) for array, leaf in zip(found, leaves, strict=True)):
        raise FileFormatError("the arrays of the solver's state have other shapes or dtypes: it is of another version")
    return jax.tree.unflatten(structure, [_put(array, leaf) for array, leaf in zip(found, leaves, strict=True)])


def _put(array: np.ndarray, like: Array | np.ndarray) -> Array | np.ndarray:
    if isinstance(like, np.ndarray):
        return array
    return place(array, like.sharding) if len(like.sharding.device_set) > 1 else to_device(array)
