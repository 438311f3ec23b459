"""Results of rows that are divided over devices: each device computes those of its own rows."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from fixntk._checks import RowSharding
from fixntk._tiling import memory_for

try:
    from jax import shard_map
except ImportError:  # Older versions of JAX.
    from jax.experimental.shard_map import shard_map  # type: ignore[no-redef]

# The option by which JAX checks what is alike on all devices, which has two names.
_CHECK = "check_vma" if "check_vma" in inspect.signature(shard_map).parameters else "check_rep"


def compute_on_devices(function: Callable[..., Any], sharding: RowSharding, rows: Any, whole: Any) -> Any:
    """Arrays ``function(rows, whole)`` that have a row for each of a device's rows, divided as the rows are.

    ``rows`` and ``whole`` are pytrees of arrays; each device has all of ``whole``. To be called in a compiled function.
    """
    by_rows = PartitionSpec(sharding.axes)
    # The carries of loops begin with zeros, which are the same on all devices, and end with values that differ: JAX's
    # check of that is left out.
    options: dict[str, Any] = {_CHECK: False, "mesh": sharding.mesh}
    return shard_map(function, in_specs=(by_rows, PartitionSpec()), out_specs=by_rows, **options)(rows, whole)


def run_within_memory(what: str, remedy: str, program: Callable[..., Any], sharding: RowSharding, *args: Any) -> Any:
    """Call a compiled ``program(sharding, *args)`` where its results, divided over the devices, have room on one."""
    leaves = jax.tree.leaves(jax.eval_shape(lambda *args: program(sharding, *args), *args))
    needed = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves) / sharding.num_parts
    with memory_for(f"{what}, on each device,", needed, remedy, *args) as done:
        return done(program(sharding, *args))
