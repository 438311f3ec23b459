"""Results computed block by block, so that only the intermediate values of some blocks are in memory.

Inside a compiled program: :func:`compute_in_row_tiles` over rows, :meth:`Grid.fill` over pairs of rows. Driven from the
host, one compiled block after another: :meth:`Grid.fill_from_host`.

What takes memory nonetheless is estimated before it is allocated, in :func:`memory_for`.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from fixntk._checks import OutOfMemoryError, bytes_in_words, default_device, is_exhaustion, is_traced, is_tracing

try:
    import resource
except ImportError:  # There is none on Windows.
    resource = None  # type: ignore[assignment]

# Kernels (b1, b2, …) of all pairs of two tiles, and the kernels with the tiles exchanged, (b2, b1, …).
Blocks = tuple[Array, ...]
BlocksBothWays = tuple[Blocks, Blocks]

# Results of tiles that are computed ahead of being stored take at most about this number of bytes.
_AHEAD_BYTES = 2**26
# Computations that need fewer bytes are not compared with the free memory, as reading that takes a tenth of a
# millisecond.
_LEAST_BYTES_COMPARED = 2**24
# Memory is short for a computation that needs more than this share of what is free.
_SHORT_SHARE = 0.1


class FreeMemory(NamedTuple):
    """Bytes that can be allocated, and what limits them."""

    num_bytes: int | float
    limit: str


@contextmanager
def memory_for(
    what: str,
    num_bytes: int | float,
    remedy: str,
    *operands: Any,
    free_memory: Callable[[], FreeMemory] | None = None,
) -> Iterator[Callable[[Any], Any]]:
    """Refuse a computation for which memory does not suffice, and explain an allocation that fails inside the block.

    Under a JAX transformation nothing is estimated, as its program decides what is kept.

    Parameters
    ----------
    what
        What is computed, a noun.
    num_bytes
        An estimate of the largest number of bytes that the block allocates at a time, its results included.
    remedy
        What lowers that.
    *operands
        Arrays that the block reads, which may be traced.
    free_memory
        Function that returns the free memory; :func:`free_on_device` when None.

    Yields
    ------
    A function through which the block passes its result, as JAX computes it, and may fail, after the block. It waits
    for it where memory is short.

    Raises
    ------
    OutOfMemoryError
        If the estimate exceeds the free memory, or an allocation fails nonetheless.
    """
    free_memory = free_memory or free_on_device
    is_short = False
    if num_bytes >= _LEAST_BYTES_COMPARED and not is_tracing(operands):
        free = free_memory()
        if num_bytes > free.num_bytes:
            raise OutOfMemoryError(
                f"{what} needs {bytes_in_words(num_bytes)}, {free.limit} leaves {bytes_in_words(free.num_bytes)}:"
                f" {remedy}"
            )
        is_short = num_bytes > _SHORT_SHARE * free.num_bytes
    try:
        yield jax.block_until_ready if is_short else lambda result: result
    except OutOfMemoryError:
        raise
    # A function that was compiled before raises a ValueError where its result finds no memory.
    except (MemoryError, ValueError, jax.errors.JaxRuntimeError) as error:
        if not is_exhaustion(error):
            raise
        free = free_memory()
        message = f"{what} needs {bytes_in_words(num_bytes)}, and an allocation failed where {free.limit} leaves "
        raise OutOfMemoryError(f"{message}{bytes_in_words(free.num_bytes)}: {remedy}") from None


def free_on_device() -> FreeMemory:
    """Memory that JAX can still allocate on the default device."""
    return _free_of_device(default_device()) or free_on_host()


def _free_of_device(device: jax.Device) -> FreeMemory | None:
    """What a device with memory of its own can still give; None for a CPU, or where it does not say."""
    stats = device.memory_stats()
    if not stats or "bytes_limit" not in stats:
        return None
    return FreeMemory(stats["bytes_limit"] - stats.get("bytes_in_use", 0), f"the device {device}")


def free_on_host() -> FreeMemory:
    """Memory that this process can still allocate: what is least of the machine's, its cgroup's and its ulimit's."""
    found = [FreeMemory(_free_of_machine(), "this machine"), *_free_of_cgroups(), *_free_of_limits()]
    return min(found, key=lambda free: free.num_bytes)


def _free_of_machine() -> float:
    """What Linux can give without ending a process; elsewhere all of the memory, or no bound if that is not known."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (AttributeError, ValueError, OSError):
            return float("inf")
    kilobytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return 1024 * (kilobytes["MemAvailable"] + kilobytes["SwapFree"])


def _free_of_cgroups() -> Iterator[FreeMemory]:
    """What the limits of the process's control groups leave, of both versions and of all folders above."""
    try:
        groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in groups:
        if not controllers:
            root, names = Path("/sys/fs/cgroup"), ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root, names = Path("/sys/fs/cgroup/memory"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):
            if group.is_relative_to(root):
                yield from _free_of_cgroup(group, *names)


def _free_of_cgroup(group: Path, limit_name: str, usage_name: str) -> Iterator[FreeMemory]:
    """What a control group leaves; nothing if it has no limit, or cannot be read, as those outside of a container."""
    try:
        limit, used = (int((group / name).read_text()) for name in (limit_name, usage_name))
        stats = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return
    # The kernel drops cached files when memory is short.
    cached = int(stats.get("inactive_file", 0)) + int(stats.get("active_file", 0))
    yield FreeMemory(limit - used + cached, "the memory limit of the cgroup")


def _free_of_limits() -> Iterator[FreeMemory]:
    """What the limits of address space leave, ``ulimit -v``."""
    if resource is None:
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        try:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            used = 0
        yield FreeMemory(max(limit - used, 0), "ulimit -v")


def rows_here(array: Array | jax.ShapeDtypeStruct) -> int:
    """The number of rows of an array that are in the memory of this process: of all where there is only its shape."""
    if is_traced(array) or not isinstance(array, Array) or array.is_fully_addressable:
        return array.shape[0]
    return sum(shard.data.shape[0] for shard in array.addressable_shards)


def group_rows(array: Array, tile: int) -> tuple[Array, int]:
    """The rows (n, …) in R groups, (R, n/R, …), and the number of rows of each group in a tile of ``tile`` rows.

    R is one on one device. Where D devices have n/D rows each, D divides R, so that the rows of a device are whole
    groups. A tile has rows of every group: no row of an array that is sharded over rows leaves its device.
    """
    groups = math.gcd(array.shape[0], jax.device_count())
    length = array.shape[0] // groups
    return array.reshape(groups, length, *array.shape[1:]), min(length, max(1, tile // groups))


def compute_in_row_tiles(function: Callable[[Array], Array], array: Array, tile: int) -> Array:
    """A function of the rows of an array that treats each by itself, for about ``tile`` rows at a time."""
    grouped, height = group_rows(array, tile)
    groups, length = grouped.shape[:2]

    def block_from(begin: Array) -> Array:
        rows = lax.dynamic_slice_in_dim(grouped, begin, height, axis=1)
        block = function(rows.reshape(groups * height, *array.shape[1:]))
        return block.reshape(groups, height, *block.shape[1:])

    def fill_tile(i: Array, result: Array) -> Array:
        # The last tile ends with the last row, and may repeat rows of the tile before it, so that all have one shape.
        begin = jnp.minimum(i * height, length - height)
        return lax.dynamic_update_slice_in_dim(result, block_from(begin), begin, axis=1)

    block = jax.eval_shape(block_from, jnp.asarray(0))
    empty = jnp.zeros((groups, length, *block.shape[2:]), block.dtype)
    return lax.fori_loop(0, -(-length // height), fill_tile, empty).reshape(array.shape[0], *block.shape[2:])


class Grid:
    """The grid of tiles of pairs of rows of two pytrees, x1 and x2, or of x1 with itself when x2 is None.

    Rows are cut into N tiles of b rows, the last one padded with copies of the last row; ``tiles`` holds the tiles of
    x1 and of x2, (N, b, …) each. For a symmetric kernel the tiles (i, i + s mod N) with s ≤ N/2 contain every pair of
    rows, so that only about half of the N×N tiles is computed.
    """

    def __init__(self, x1: Any, x2: Any, tile: int) -> None:
        self.is_symmetric = x2 is None
        self._size = num_rows(x1), num_rows(x1 if x2 is None else x2)
        tiles1 = _cut_into_tiles(x1, tile)
        self.tiles = tiles1, tiles1 if x2 is None else _cut_into_tiles(x2, tile)
        self.num_rows, self.height = jax.tree.leaves(self.tiles[0])[0].shape[:2]
        self.num_columns, self.width = jax.tree.leaves(self.tiles[1])[0].shape[:2]
        self.num_steps = self.num_columns // 2 + 1 if self.is_symmetric else self.num_columns
        self.padded_shape = self.num_rows * self.height, self.num_columns * self.width

    def row(self, i: Any) -> Any:
        """The i-th tile of x1."""
        return jax.tree.map(lambda a: a[i], self.tiles[0])

    def column(self, j: Any) -> Any:
        """The j-th tile of x2."""
        return jax.tree.map(lambda a: a[j], self.tiles[1])

    def fill(
        self,
        results: Blocks,
        features: Callable[[Any], Any],
        kernels: Callable[[Any, Any], BlocksBothWays],
        features2: Callable[[Any], Any] | None = None,
    ) -> Blocks:
        """Fill padded results with the kernels of all pairs, in a loop inside the caller's program.

        ``features(tile)`` are of a tile of x1, and of x2 unless there are ``features2`` for those.
        ``kernels(features1, features2)`` gives the kernels of two tiles, and the kernels with the tiles exchanged,
        which are read if the kernel is symmetric.
        """
        features2 = features2 or features

        def fill_row(results: Blocks, i: Array) -> tuple[Blocks, None]:
            features1 = features(self.row(i))

            def fill_tile(results: Blocks, step: Array) -> tuple[Blocks, None]:
                # A diagonal tile is written twice, with the same values up to rounding errors.
                j = self._column_number(i, step)
                blocks, transposed = kernels(features1, features2(self.column(j)))
                results = _put(results, blocks, i * self.height, j * self.width)
                if self.is_symmetric:
                    results = _put(results, transposed, j * self.width, i * self.height)
                return results, None

            return lax.scan(fill_tile, results, jnp.arange(self.num_steps))[0], None

        results, _ = lax.scan(fill_row, results, jnp.arange(self.num_rows))
        return self._remove_padding(results)

    def fill_from_host(
        self,
        shape: tuple[int, ...],
        dtypes: tuple[Any, ...],
        features: Callable[[int, int], Any],
        kernels: Callable[[Any, Any], BlocksBothWays],
        store_on_device: bool,
    ) -> tuple[Any, ...]:
        """Kernels of all pairs from compiled programs for one tile, dispatched asynchronously from Python.

        One compiled loop would be slower on a CPU: inside it XLA uses a single core for entrywise functions, and its
        convolutions are tens of times slower.

        Parameters
        ----------
        shape
            Shape of the kernel of one pair, which follows the two axes of examples.
        dtypes
            Dtype of each kernel.
        features
            ``features(side, number)`` gives the features of tile ``number`` of x1 (side 0) or x2 (side 1).
        kernels
            ``kernels(features1, features2)`` gives the kernels of two tiles, and the kernels with the tiles exchanged.
        store_on_device
            False collects the results in NumPy arrays.
        """
        zeros: Callable[..., Any] = jnp.zeros if store_on_device else np.zeros
        put: Callable[..., Any] = _put_in_place if store_on_device else _put_on_host
        results = tuple(zeros((*self.padded_shape, *shape), dtype) for dtype in dtypes)
        # JAX returns before a tile is computed, so that with results on the device this loop only queues work. Tiles
        # that it has queued take memory, as they do not wait for those before them to be stored.
        ahead: deque[BlocksBothWays] = deque()
        for i in range(self.num_rows):
            features1 = features(0, i)
            for j in self._columns_of(i):
                is_diagonal = self.is_symmetric and i == j
                blocks, transposed = kernels(features1, features1 if is_diagonal else features(1, j))
                results = put(results, blocks, i * self.height, j * self.width)
                if self.is_symmetric and not is_diagonal:
                    results = put(results, transposed, j * self.width, i * self.height)
                ahead.append((blocks, transposed))
                if len(ahead) > self._tiles_ahead(shape, dtypes):
                    jax.block_until_ready(ahead.popleft())
        return self._remove_padding(results)

    def bytes_needed(self, shape: tuple[int, ...], dtypes: tuple[Any, ...]) -> int:
        """Estimate of the memory that :meth:`fill_from_host` takes for results on the device, without features."""
        num_bytes = [math.prod(shape) * jnp.dtype(dtype).itemsize for dtype in dtypes]
        stored = math.prod(self.padded_shape) * sum(num_bytes)
        if self.padded_shape != self._size:
            # One kernel after the other is copied without its padding.
            stored += math.prod(self._size) * max(num_bytes)
        ahead = (1 + self._tiles_ahead(shape, dtypes)) * self._bytes_both_ways(shape, dtypes)
        return stored + min(ahead, stored)

    def _tiles_ahead(self, shape: tuple[int, ...], dtypes: tuple[Any, ...]) -> int:
        """Number of tiles that may be computed ahead; one lets the device work while the host waits."""
        return max(1, _AHEAD_BYTES // self._bytes_both_ways(shape, dtypes))

    def _bytes_both_ways(self, shape: tuple[int, ...], dtypes: tuple[Any, ...]) -> int:
        """Bytes of the kernels of two tiles, both ways if the kernel is symmetric."""
        numbers = self.height * self.width * math.prod(shape)
        return numbers * sum(jnp.dtype(dtype).itemsize for dtype in dtypes) * (2 if self.is_symmetric else 1)

    def _column_number(self, i: Any, step: Any) -> Any:
        """The tile of x2 that tile i of x1 meets in a step."""
        # In the symmetric case step s visits the tiles (i, i + s mod N).
        return (i + step) % self.num_columns if self.is_symmetric else step

    def _columns_of(self, i: int) -> list[int]:
        """The tiles of x2 that tile i of x1 meets, itself first if symmetric, so that no two tiles meet twice."""
        # With an even number N of tiles, tiles at distance N/2 would meet twice, once from each side.
        is_met_already = self.is_symmetric and 2 * i >= self.num_columns and self.num_columns % 2 == 0
        return [self._column_number(i, step) for step in range(self.num_steps - is_met_already)]

    def _remove_padding(self, results: tuple[Any, ...]) -> tuple[Any, ...]:
        """Results without the rows and columns of the padding."""
        return tuple(result[: self._size[0], : self._size[1]] for result in results)


def num_rows(x: Any) -> int:
    """Number of rows in a pytree of arrays, one row for each example."""
    return jax.tree.leaves(x)[0].shape[0]


def _cut_into_tiles(x: Any, tile: int) -> Any:
    """Cut rows (n, …) into equal tiles (N, b, …), b ≤ tile; the last is padded with copies of the last row."""

    def cut(array: Array) -> Array:
        # Equal heights need less padding than one short last tile would.
        count = -(-array.shape[0] // tile)
        height = -(-array.shape[0] // count)
        width = [(0, count * height - array.shape[0]), *[(0, 0)] * (array.ndim - 1)]
        return jnp.pad(array, width, mode="edge").reshape(count, height, *array.shape[1:])

    return jax.tree.map(cut, x)


def _put(results: Blocks, blocks: Blocks, row: Any, column: Any) -> Blocks:
    """Write a block into each result, at a row and a column."""
    corners = [(row, column, *(0 for _ in block.shape[2:])) for block in blocks]
    return tuple(map(lax.dynamic_update_slice, results, blocks, corners))


@partial(jax.jit, donate_argnums=0)
def _put_in_place(results: Blocks, blocks: Blocks, row: Array | int, column: Array | int) -> Blocks:
    return _put(results, blocks, row, column)


def _put_on_host(results: tuple[np.ndarray, ...], blocks: Blocks, row: int, column: int) -> tuple[np.ndarray, ...]:
    """Write a block into each NumPy array, at a row and a column, in place."""
    for result, block in zip(results, blocks, strict=True):
        result[row : row + block.shape[0], column : column + block.shape[1]] = block
    return results
