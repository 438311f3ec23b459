"""Rows that several processes read, each its own, as arrays over the devices of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Shaped

from fixntk._checks import as_real, describe_fields
from fixntk.convex.processes import check_agreement, describe_value, gather_texts
from fixntk.gates.masks import activation_masks

Content = TypeVar("Content")

# The axis of the mesh over which rows are divided.
_AXIS = "rows"


class DistributedRows(NamedTuple):
    """Rows of all processes, divided over all devices; each process has its own in memory.

    Attributes
    ----------
    x
        (n, d) inputs, those of process 0 first; n counts the rows that fill up.
    y
        (n,) or (n, c) targets.
    masks
        (n, P) masks of the gates; None without gates.
    sample_weight
        (n,) weights of the rows, zero for those that fill up; None where there are neither weights nor such rows.

    See docs/mathematics.md, M2.
    """

    x: Float[Array, "n d"]
    y: Shaped[Array, " n *c"]
    masks: Bool[Array, "n P"] | None
    sample_weight: Float[Array, " n"] | None

    def __repr__(self) -> str:
        return describe_fields("DistributedRows", **self._asdict())


def distribute_rows(
    x: ArrayLike, y: ArrayLike, gates: ArrayLike | None = None, *, sample_weight: ArrayLike | None = None
) -> DistributedRows:
    """Arrays over all devices from the rows that each process of ``jax.distributed`` has read.

    All processes call it, each with its own rows, of which there may be other numbers. Every device has as many rows
    as the others: where that needs more rows than there are, the last row of a process is repeated with weight zero,
    which changes nothing in a program that is given the weights. With one process, its rows are divided over its
    devices.

    Parameters
    ----------
    x
        (k, d) inputs of this process, such as an array or a slice of a memory map of NumPy.
    y
        (k,) or (k, c) targets of this process.
    gates
        (P, d) gates, the same on all processes, whose masks are wanted.
    sample_weight
        (k,) weights of this process's rows; ones when None, on all processes or none.

    Returns
    -------
    The arrays for :class:`ConvexProgram`.

    Raises
    ------
    ValueError
        On all processes: if the arguments of one are wrong, or processes have other versions of fixntk or JAX, other
        dtypes, numbers of columns, gates or numbers of devices. The message names the process and what differs.

    Examples
    --------
    >>> import numpy as np, fixntk as fx
    >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype="float32")
    >>> rows = fx.distribute_rows(x, x[:, 0], gates=x[:2])
    >>> rows.x.shape, rows.masks.shape
    ((3, 2), (3, 2))

    See docs/mathematics.md, M2.
    """
    named = _check_together(lambda: _as_rows(x, y, sample_weight))
    check_agreement("distribute_rows", _description(named, gates))
    counts = [int(text) for text in gather_texts(str(len(named["x"])))]
    num_devices = jax.local_device_count()
    filled = -(-max(counts) // num_devices) * num_devices
    if set(counts) != {filled} and "sample_weight" not in named:
        named["sample_weight"] = np.ones(len(named["x"]), named["x"].dtype)
    sharding = NamedSharding(Mesh(np.array(jax.devices()), (_AXIS,)), PartitionSpec(_AXIS))
    placed = {
        name: jax.make_array_from_process_local_data(sharding, _fill(rows, filled, name))
        for name, rows in named.items()
    }
    masks = None if gates is None else activation_masks(placed["x"], gates)
    return DistributedRows(placed["x"], placed["y"], masks, placed.get("sample_weight"))


def _as_rows(x: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None) -> dict[str, np.ndarray]:
    """The arguments by name in NumPy, a memory map without reading it."""
    given = {"x": x, "y": y} | ({} if sample_weight is None else {"sample_weight": sample_weight})
    named = {name: np.asarray(as_real(name, value)) for name, value in given.items()}
    if named["x"].ndim != 2 or named["x"].size == 0:
        raise ValueError(f"x must have 2 dimensions and a row or more, got shape {named['x'].shape}")
    for name, rows in named.items():
        if rows.shape[:1] != named["x"].shape[:1]:
            raise ValueError(f"x and {name} must have the same number of rows, got {named['x'].shape}, {rows.shape}")
    return named


def _check_together(check: Callable[[], Content]) -> Content:
    """What a check of this process's arguments returns; where it fails on one process, it fails on all."""
    result, error = None, None
    try:
        result = check()
    except (TypeError, ValueError) as caught:
        error = caught
    messages = gather_texts("" if error is None else str(error))
    if error is not None and len(messages) == 1:
        raise error
    wrong = [f"process {i}: {message}" for i, message in enumerate(messages) if message]
    if wrong:
        raise ValueError(f"distribute_rows: {'; '.join(wrong)}") from error
    return cast(Content, result)


def _description(named: Mapping[str, np.ndarray], gates: ArrayLike | None) -> dict[str, str]:
    """What must be the same on all processes."""
    rows = {name: f"{each.dtype} rows of shape {list(each.shape[1:])}" for name, each in named.items()}
    devices = f"{jax.local_device_count()} {jax.default_backend()}"
    of_gates = describe_value(None if gates is None else np.asarray(gates))
    return {**rows, "gates": of_gates, "devices": devices, "float type": str(jnp.result_type(float))}


def _fill(rows: np.ndarray, count: int, name: str) -> np.ndarray:
    """As many rows as other processes have, in a dtype that JAX has: the last one again, with weight zero."""
    added = count - len(rows)
    rows = rows.astype(jax.dtypes.canonicalize_dtype(rows.dtype), copy=False)
    if not added:
        return rows
    last = np.zeros_like(rows[-1:]) if name == "sample_weight" else rows[-1:]
    return np.concatenate([rows, np.repeat(last, added, axis=0)])
