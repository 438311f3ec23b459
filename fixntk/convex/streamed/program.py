"""The convex program whose rows are on disk: its fields, its constructor, and passes over its rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.dtypes import canonicalize_dtype
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from fixntk._checks import as_matrix, as_positive_int, is_tracing, to_device
from fixntk._compilation import jit_for_host
from fixntk._numerics import at_least_float32, matmul
from fixntk.convex import arguments
from fixntk.convex.losses import LOSSES, Loss, as_loss
from fixntk.convex.padding import next_power_of_two
from fixntk.convex.streamed.rows import Rows, check_same_shards, open_rows, read_ahead, tile_bounds
from fixntk.gates.masks import activation_masks
from fixntk.gram import masked_adjoint, masked_apply, select_masks

# Largest array of a tile, in bytes, unless the number of its rows is given.
_TILE_BYTES = 2**26
# Smallest number of rows of a tile, unless it is given.
_LEAST_TILE_ROWS = 256
# Number of a tile's largest arrays in memory at a time: inner products, masks and products of rows, of two tiles.
_NUM_TILE_ARRAYS = 6
# Tiles that are computed ahead of their results being added up.
_TILES_AHEAD = 1
# Active groups are padded to at least this number, and to powers of two, so that few sizes are compiled.
_LEAST_ACTIVE = 16


@dataclass(frozen=True, eq=False, init=False, repr=False)
class StreamedProgram:
    r"""The convex program of a gated-ReLU network whose inputs may be larger than memory.

    .. math:: \min_W \tfrac12 \sum_i ω_i \|F(x_i) - y_i\|^2 + λ \sum_p \|W_p\|,
        \qquad F(x) = \sum_p 1\{x·g_p ≥ 0\}\, x^⊤ W_p

    It is the :class:`~fixntk.ConvexProgram` of the same x, y, weights and ``activation_masks(x, gates)``, and
    :func:`fixntk.solve` takes it too. Rows are read in tiles while the tile before is computed, and masks are made from
    the gates tile by tile, so that neither x nor masks need room in memory. Products of a tile are computed in the
    program's precision, and summed over tiles in float64 on the host, as are the objective and the certificate: sums of
    millions of terms in float32 would limit the gap.

    Parameters
    ----------
    x
        (n, d) inputs: an array, such as ``numpy.load(path, mmap_mode="r")``, the path of a .npy file, which is mapped,
        or a list of these, whose rows follow one another. No unit.
    y
        (n,) or (n, c) targets, given in the same way.
    gates
        (P, d) gates.
    reg
        λ > 0.
    loss
        ``"squared"``.
    sample_weight
        (n,) ω ≥ 0, given in the same way; ones when None.
    intercept
        Whether outputs have an intercept, which is not penalised.
    tile_rows
        Number of rows of a tile. When None, the largest number for which no array of a tile takes more than 64 MiB, but
        at least 256.

    Attributes
    ----------
    dtype
        float32, or float64 where x or y has it and JAX's 64 bits are on.

    Raises
    ------
    TypeError
        If x or y are no arrays or paths, or hold no real numbers.
    ValueError
        If a file is truncated, shards differ in width or dtype, x, y and weights in rows, the gates do not fit x, there
        are no rows, λ is not positive, or the loss is another. NaN, infinity and negative weights are found when rows
        are read, and named by the number of the row over all shards.

    Examples
    --------
    >>> import jax, numpy as np, fixntk as fx
    >>> x = np.random.default_rng(0).standard_normal((500, 3)).astype(np.float32)
    >>> y = abs(x[:, 0])
    >>> gates = fx.sample_gates(jax.random.key(1), 20, 3)
    >>> program = fx.StreamedProgram([x[:300], x[300:]], [y[:300], y[300:]], gates, reg=1.0)
    >>> program = program.with_reg(0.1 * program.max_reg())
    >>> bool(fx.solve(program, tol=1e-3).converged)
    True

    See docs/mathematics.md, M5 and M7.
    """

    x: Rows
    y: Rows
    gates: Float[Array, "P d"]
    reg: float
    loss: Loss
    sample_weight: Rows | None
    intercept: bool
    tile_rows: int
    dtype: np.dtype

    def __init__(
        self,
        x: Any,
        y: Any,
        gates: ArrayLike,
        reg: ArrayLike,
        loss: str | Loss = "squared",
        *,
        sample_weight: Any = None,
        intercept: bool = False,
        tile_rows: int | None = None,
    ) -> None:
        if is_tracing(gates, reg):
            raise ValueError("a StreamedProgram reads files on the host: not under jit or vmap; use ConvexProgram")
        x, y, loss = open_rows("x", x, (2,)), open_rows("y", y, (1, 2)), as_loss(loss)
        weights = None if sample_weight is None else open_rows("sample_weight", sample_weight, (1,))
        for rows in (y, weights):
            if rows is not None:
                check_same_shards(x, rows)
        if loss != LOSSES["squared"]:
            raise ValueError(
                f"loss must be 'squared' for a StreamedProgram, got {loss.name!r}: use ConvexProgram, which has"
                f" {', '.join(LOSSES)}, on the rows that fit into memory, or on those of several machines by"
                " distribute_rows"
            )
        gates = as_matrix("gates", gates)
        if gates.shape[1] != x.shape[1]:
            raise ValueError(f"gates must have {x.shape[1]} columns, as x has, got shape {gates.shape}")
        dtype = _dtype_of(x, y)
        widest = max(gates.shape[0], x.shape[1] * (y.shape[1] if len(y.shape) == 2 else 1))
        fitting = max(_LEAST_TILE_ROWS, _TILE_BYTES // (widest * dtype.itemsize))
        tile_rows = fitting if tile_rows is None else as_positive_int("tile_rows", tile_rows)
        fields = {
            "x": x,
            "y": y,
            "gates": gates.astype(dtype),
            "reg": float(arguments.as_reg(reg, dtype)),
            "loss": loss,
            "sample_weight": weights,
            "intercept": bool(intercept),
            "tile_rows": min(tile_rows, x.shape[0]),
            "dtype": dtype,
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        num_rows, num_features = self.x.shape
        tiles = f"{-(-num_rows // self.tile_rows)} tiles of {self.tile_rows} rows"
        shape = f"{num_rows} rows, {num_features} features, {self.gates.shape[0]} gates, {self.dtype}"
        weighted = "" if self.sample_weight is None else ", weighted rows"
        shifted = ", intercept" if self.intercept else ""
        return f"StreamedProgram({shape}, {tiles}, λ {self.reg:.3g}, loss {self.loss.name}{weighted}{shifted})"

    def with_reg(self, reg: ArrayLike) -> StreamedProgram:
        """The program at another λ."""
        other = object.__new__(StreamedProgram)
        for name in self.__dataclass_fields__:
            object.__setattr__(other, name, getattr(self, name))
        object.__setattr__(other, "reg", float(arguments.as_reg(reg, self.dtype)))
        return other

    @property
    def is_vector(self) -> bool:
        """Whether y is (n,)."""
        return len(self.y.shape) == 1

    @property
    def group_shape(self) -> tuple[int, int, int]:
        """(P, d, c), the shape of the group weights."""
        num_gates, num_features = self.gates.shape
        return num_gates, num_features, 1 if self.is_vector else self.y.shape[1]

    def check_gates(self, gates: ArrayLike) -> Float[Array, "P d"]:
        """Gates of the program's dtype, checked to be the program's own.

        Raises
        ------
        ValueError
            If they are others.
        """
        gates = as_matrix("gates", gates).astype(self.dtype)
        if gates.shape != self.gates.shape or not np.array_equal(np.asarray(gates), np.asarray(self.gates)):
            raise ValueError("gates must be those of the StreamedProgram, in the same order")
        return gates

    def max_reg(self) -> float:
        """λ_max: from this λ on, the solution is W = 0; max_p ‖Xᵀ D_p Y‖_F. Reads all rows once.

        With an intercept Y is taken less its weighted mean.

        Raises
        ------
        ValueError
            If a row holds NaN or infinity, or a file has become shorter.

        See docs/mathematics.md, M7.
        """
        return sum_over_rows(self, np.zeros(self.group_shape, self.dtype)).largest_norm()


def _dtype_of(x: Rows, y: Rows) -> np.dtype:
    """The precision: integer targets do not decide it, floating-point ones do, and it is float32 without JAX's x64."""
    floating = [rows.dtype for rows in (x, y) if rows.dtype.kind == "f"]
    dtype = np.result_type(*floating) if x.dtype.kind == "f" else np.result_type(*floating, np.float64)
    return np.dtype(canonicalize_dtype(at_least_float32(min(dtype, np.dtype(np.float64)))))


class Sums(NamedTuple):
    """What a pass over the rows gives for group weights, in float64 on the host.

    Attributes
    ----------
    correlations
        (P, d, c) Xᵀ D_p R of the residual R.
    loss, loss_at_zero
        ½‖R‖² and ½‖Y‖².
    intercept
        (c,) the best intercept, with which R is computed; ½‖Y‖² is computed with the best one for W = 0. None where the
        program has no intercept.
    columns
        (P, d) Xᵀ D_p s of the roots s of the rows' weights; None where the program has no intercept.
    """

    correlations: Float[np.ndarray, "P d c"]
    loss: float
    loss_at_zero: float
    intercept: Float[np.ndarray, " c"] | None
    columns: Float[np.ndarray, "P d"] | None

    def largest_norm(self) -> float:
        """The largest norm of a group's correlations; at W = 0 it is λ_max."""
        return float(np.sqrt(np.max(np.sum(self.correlations**2, axis=(1, 2)))))


class _Tile(NamedTuple):
    """Rows, multiplied by the roots of their weights, and these roots where there is an intercept."""

    x: Float[Array, "t d"]
    y: Float[Array, "t c"]
    roots: Float[Array, " t"] | None


def sum_over_rows(
    program: StreamedProgram,
    weights: Float[np.ndarray, "P d c"],
    *,
    columns: Float[np.ndarray, "P d"] | None = None,
    look: Callable[[int, np.ndarray, np.ndarray, np.ndarray | None], None] | None = None,
) -> Sums:
    """A pass over all rows with group weights of the program's dtype.

    ``columns`` are those of an earlier pass, which need not be summed again. ``look(begin, x, y, roots)`` sees each
    tile after it is read, in the thread that reads, without the rows that pad the last.
    """
    for rows in (program.x, program.y, program.sample_weight):
        if rows is not None:
            rows.check_files()
    num_rows = program.x.shape[0]
    shift = _shift_of_targets(program) if program.intercept else None

    def read(bounds: tuple[int, int]) -> _Tile:
        x, y, roots = _read_tile(program, *bounds, shift)
        if look is not None:
            present = num_rows - bounds[0]
            look(bounds[0], x[:present], y[:present], None if roots is None else roots[:present])
        return _Tile(to_device(x), to_device(y), None if roots is None else to_device(roots))

    chosen, active = _active_groups(weights)
    totals: list[np.ndarray] = []

    def add(found: tuple[Array, ...]) -> None:
        totals.extend([] if totals else [np.zeros(part.shape) for part in found])
        for total, part in zip(totals, found, strict=True):
            np.add(total, np.asarray(part), out=total)

    # JAX returns before a tile is computed. Its sums are waited for when the next tile is queued.
    ahead: deque[tuple[Array, ...]] = deque()
    with_columns = program.intercept and columns is None
    for tile in read_ahead(read, tile_bounds(num_rows, program.tile_rows)):
        ahead.append(_sum_tile(tile, program.gates, chosen, active, with_columns=with_columns))
        if len(ahead) > _TILES_AHEAD:
            add(ahead.popleft())
    for found in ahead:
        add(found)
    if not all(np.isfinite(total).all() for total in totals):
        raise ValueError(f"x and y have products out of the range of {program.dtype}: divide each by its largest entry")
    correlations, (loss, loss_at_zero), *means = totals
    if shift is None:
        return Sums(correlations, float(loss), float(loss_at_zero), None, None)
    if columns is None:
        correlations, columns = correlations[:, :, :-1], correlations[:, :, -1]
    return _at_best_intercept(Sums(correlations, float(loss), float(loss_at_zero), shift, columns), *means)


def _at_best_intercept(found: Sums, means: Float[np.ndarray, "3 c"]) -> Sums:
    """The sums at the best intercept, from sums of R and Y after subtracting another intercept.

    ``means`` are sᵀR, sᵀY and ‖s‖², the same for each output.
    """
    residual, targets, squares = means
    size = float(squares[0]) or 1.0
    assert found.intercept is not None
    assert found.columns is not None
    return found._replace(
        correlations=found.correlations - found.columns[:, :, None] * (residual / size),
        # A sum of squares that is rounded below zero is zero.
        loss=max(found.loss - 0.5 * float(np.sum(residual**2)) / size, 0.0),
        loss_at_zero=max(found.loss_at_zero - 0.5 * float(np.sum(targets**2)) / size, 0.0),
        intercept=found.intercept + residual / size,
    )


def _shift_of_targets(program: StreamedProgram) -> Float[np.ndarray, " c"]:
    """The mean of the first tile's targets: squares around it keep their digits where targets are far from zero."""
    first = program.y.read(0, program.tile_rows, program.dtype)
    return first.reshape(len(first), -1).mean(axis=0)


def _read_tile(
    program: StreamedProgram, begin: int, end: int, shift: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(t, d) inputs and (t, c) targets less their shift, multiplied by the roots of the rows' weights; and these roots.

    The roots are None where there is no intercept.
    """
    x, y = (rows.read(begin, end, program.dtype) for rows in (program.x, program.y))
    y = y.reshape(len(y), -1)
    if program.sample_weight is None:
        if shift is None:
            return x, y, None
        # Rows that pad a tile have weight zero.
        roots = (np.arange(begin, begin + len(x)) < program.x.shape[0]).astype(program.dtype)
        return x, y - roots[:, None] * shift, roots
    weights = program.sample_weight.read(begin, end, program.dtype)
    if np.min(weights) < 0:
        row = begin + int(np.argmax(weights < 0))
        raise ValueError(f"sample_weight must not be negative, got {weights[row - begin]:g} in row {row}")
    # A row keeps its masks, as x·g ≥ 0 does not depend on the length of x; one of weight zero counts as a row of zeros.
    roots = np.sqrt(weights)
    targets = y if shift is None else y - shift
    return roots[:, None] * x, roots[:, None] * targets, None if shift is None else roots


def bytes_of_tiles(program: StreamedProgram) -> int:
    """Estimate of the memory that a pass takes."""
    num_gates, num_features, num_outputs = program.group_shape
    widest = max(num_gates, num_features * num_outputs)
    return _NUM_TILE_ARRAYS * program.tile_rows * widest * program.dtype.itemsize


def _active_groups(weights: np.ndarray) -> tuple[Int[Array, " k"], Float[Array, "k d c"]]:
    """The groups that are not zero and their weights, padded by groups of weight zero."""
    active = np.flatnonzero(np.any(weights != 0, axis=(1, 2)))
    size = next_power_of_two(max(_LEAST_ACTIVE, len(active)))
    chosen = np.zeros(size, np.int32)
    chosen[: len(active)] = active
    padded = np.zeros((size, *weights.shape[1:]), weights.dtype)
    padded[: len(active)] = weights[active]
    return to_device(chosen), to_device(padded)


@partial(jit_for_host, static_argnames=("with_columns",), optimised=True)
def _sum_tile(
    tile: _Tile,
    gates: Float[Array, "P d"],
    chosen: Int[Array, " k"],
    weights: Float[Array, "k d c"],
    *,
    with_columns: bool,
) -> tuple[Array, ...]:
    """Xᵀ D_p R of a tile, half the squares of R and of Y, and with an intercept sᵀR, sᵀY and ‖s‖².

    If ``with_columns``, Xᵀ D_p s follows as the last output of the first array.
    """
    x, y, roots = tile
    masks = activation_masks(x, gates)
    residual = y - masked_apply(select_masks(masks, chosen), x, weights)
    squares = 0.5 * jnp.stack([jnp.sum(residual**2), jnp.sum(y**2)])
    if roots is None:
        return masked_adjoint(masks, x, residual, gates.shape[0]), squares
    # The residual's part along the intercept's column s is known after all tiles. It is taken from the correlations
    # then, for which they have Xᵀ D_p s.
    columns = jnp.concatenate([residual, roots[:, None]], axis=1) if with_columns else residual
    correlations = masked_adjoint(masks, x, columns, gates.shape[0])
    count = jnp.broadcast_to(jnp.sum(roots**2), y.shape[1:])
    return correlations, squares, jnp.stack([matmul(roots, residual), matmul(roots, y), count])
