"""What processes of ``jax.distributed`` tell one another: what must be the same on all, and what the first one has.

Each function is called by all processes, with nothing between that only some of them compute together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from importlib.metadata import version
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from fixntk._checks import is_traced, to_device
from fixntk._files import digest

Content = TypeVar("Content")
Tree = TypeVar("Tree")

# Number of characters of a digest that messages show.
_DIGEST_LENGTH = 8
# Words by which errors say that another process cannot be reached: of the CPU's collectives, of NCCL's and of the
# coordination service.
_LOST = ("Gloo", "NCCL", "nccl", "coordination", "heartbeat")
# Kinds of errors of the first process that the others raise too, by name: an error is raised as the first kind that
# it is of.
_SHARED_ERRORS = {error.__name__: error for error in (OSError, ModuleNotFoundError, TypeError, ValueError)}


def spans_processes(tree: Any) -> bool:
    """Whether other processes have parts of a pytree's arrays."""
    leaves = jax.tree.leaves(tree)
    return any(isinstance(leaf, jax.Array) and not is_traced(leaf) and not leaf.is_fully_addressable for leaf in leaves)


def to_host(array: Any) -> np.ndarray:
    """The whole of an array, of which other processes may have parts."""
    if not spans_processes(array) or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def to_this_process(tree: Tree) -> Tree:
    """A pytree whose arrays are whole on the default device of each process, which can read them by itself."""
    return jax.tree.map(lambda leaf: to_device(to_host(leaf)) if spans_processes(leaf) else leaf, tree)


def gather_texts(text: str) -> list[str]:
    """The texts of all processes, by their index."""
    if jax.process_count() == 1:
        return [text]
    content = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(content.size, np.int32))
    padded = np.zeros(max(sizes.max(), 1), np.uint8)
    padded[: content.size] = content
    rows = multihost_utils.process_allgather(padded)
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


def check_agreement(what: str, description: Mapping[str, str]) -> None:
    """Compare what processes say of themselves, before they compute anything together.

    Parameters
    ----------
    what
        What they are about to do, for the message.
    description
        A text for each thing that must be the same, by name. Versions are added.

    Raises
    ------
    ValueError
        On all processes, if something differs: it names the processes and what each has.
    """
    mine = {"version of fixntk": version("fixntk"), "version of JAX": jax.__version__, **description}
    texts = gather_texts(json.dumps(mine))
    if len(set(texts)) == 1:
        return
    found = [json.loads(text) for text in texts]
    names = list(dict.fromkeys(name for one in found for name in one))
    differences = [_difference(name, [one.get(name, "none") for one in found]) for name in names]
    raise ValueError(f"{what}: processes differ: {'; '.join(filter(None, differences))}")


def check_same_call(what: str, program: Any, **arguments: Any) -> None:
    """Compare a call's arguments, a program's fields among them; of rows of all processes, their shape and dtype.

    Raises
    ------
    ValueError
        As :func:`check_agreement`.
    """
    named = {field.name: getattr(program, field.name) for field in fields(program)} | arguments
    check_agreement(what, {name: describe_value(value) for name, value in named.items()})


def describe_value(value: Any) -> str:
    """A text that tells values apart: of a short value itself, of arrays also a digest."""
    if isinstance(value, str | int | float | None) or not jax.tree.leaves(value):
        return repr(value)
    if hasattr(value, "name"):  # A loss or a norm.
        return value.name
    if isinstance(value, jax.Array) and value.ndim == 0:
        return f"{value.dtype} {float(value)!r}"
    shape = f"{value.dtype} {list(value.shape)}" if hasattr(value, "shape") else type(value).__name__
    return shape if spans_processes(value) else f"{shape} with digest {digest(value)[:_DIGEST_LENGTH]}"


def _difference(name: str, values: list[str]) -> str:
    """A clause on what differs between processes, nothing where they agree."""
    if len(set(values)) == 1:
        return ""
    shared = {value: [str(i) for i, other in enumerate(values) if other == value] for value in values}
    clauses = [f"process{'es' * (len(each) > 1)} {', '.join(each)}: {value}" for value, each in shared.items()]
    return f"{name} ({', '.join(clauses)})"


def first_says(answer: bool) -> bool:
    """What the first process answers."""
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(answer, np.int32)))


def call_on_first(function: Callable[[], Content]) -> Content | None:
    """What a function returns, which only the first process calls; None on the others.

    Raises
    ------
    OSError, ModuleNotFoundError, TypeError, ValueError
        On all processes, if the function does.
    """
    result, caught = None, None
    if jax.process_index() == 0:
        try:
            result = function()
        except tuple(_SHARED_ERRORS.values()) as error:
            caught = error
    kinds = [name for name, kind in _SHARED_ERRORS.items() if isinstance(caught, kind)]
    failure = gather_texts(json.dumps([kinds[0], str(caught)]) if kinds else "")[0]
    if caught is not None:
        raise caught
    if failure:
        kind, message = json.loads(failure)
        raise _SHARED_ERRORS[kind](f"process 0: {message}")
    return result


def share_arrays(arrays: Mapping[str, np.ndarray] | None) -> dict[str, np.ndarray] | None:
    """The arrays of the first process by name, or None if it has none, on all of them; others' are ignored."""
    shapes = None if arrays is None else {name: [each.dtype.name, each.shape] for name, each in arrays.items()}
    shapes = json.loads(gather_texts(json.dumps(shapes) if jax.process_index() == 0 else "")[0])
    if shapes is None:
        return None
    sizes = {name: jnp.dtype(dtype).itemsize * int(np.prod(shape)) for name, (dtype, shape) in shapes.items()}
    content = np.zeros(sum(sizes.values()), np.uint8)
    if arrays is not None and jax.process_index() == 0:
        content = np.frombuffer(b"".join(each.tobytes() for each in arrays.values()), np.uint8)
    # As bytes, for JAX would round numbers of 64 bits where they are off.
    content = np.asarray(multihost_utils.broadcast_one_to_all(content))
    ends = np.cumsum([0, *sizes.values()])
    parts = zip(shapes.items(), ends, ends[1:], strict=False)
    return {
        name: np.frombuffer(content[begin:end].tobytes(), jnp.dtype(dtype)).reshape(shape)
        for (name, (dtype, shape)), begin, end in parts
    }


@contextmanager
def explain_lost_process(what: str, remedy: str) -> Iterator[None]:
    """Say what it means where computing with another process fails inside the block.

    Raises
    ------
    ConnectionError
        If another process ended, or cannot be reached.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if not any(word in str(error) for word in _LOST):
            raise
        count = jax.process_count()
        raise ConnectionError(
            f"{what}: process {jax.process_index()} cannot reach another of the {count} processes any more, which has "
            f"probably ended: start all {count} again{remedy}. JAX says: {error}"
        ) from error
