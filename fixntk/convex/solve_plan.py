"""What :func:`fixntk.solve` would do with a program of some shapes: its method, memory, operations and time."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import DTypeLike

from fixntk._checks import as_positive_int, bytes_in_words
from fixntk.convex.losses import Loss
from fixntk.convex.method import Method
from fixntk.convex.padding import padded_count
from fixntk.convex.program import ConvexProgram, group_shape_of, replace_fields
from fixntk.convex.rates import Rates
from fixntk.convex.solve import METHODS, choose_method, reason_for_first_order
from fixntk.convex.solvers import newton_system
from fixntk.convex.work import Work, newton_size, program_of_shapes, step_work, typical_iterations, typical_work
from fixntk.ntk.plan_table import align_columns

# Headings of the plan's table.
_HEADINGS = ("method", "memory", "operations a step", "steps", "operations", "seconds", "exchanged")
# Values of the argument dtype.
_DTYPES = ("float32", "float64")
# Bytes of a number that working sets exchange, which are in single precision.
_SET_BYTES = 4


class MethodPlan(NamedTuple):
    """What a method of :func:`fixntk.solve` would take.

    Attributes
    ----------
    name
        As in ``solve(method=…)``.
    refusal
        Why it cannot solve the program, in words; empty if it can. The other fields are zero then.
    num_bytes
        Estimate of the memory besides the data, on each device, in bytes.
    fits
        Whether that and the data fit into the memory given.
    step_flops
        Operations of an iteration on all devices; the mean over a typical solve for Newton's method.
    iterations
        Iterations of a typical solve.
    flops
        Operations of a typical solve on all devices.
    exchanged_bytes
        Bytes of the sums over devices of a typical solve; 0 on one device.
    seconds
        Seconds of a typical solve without compiling; None without rates, or where the memory does not suffice.
    """

    name: str
    refusal: str
    num_bytes: int
    fits: bool
    step_flops: float
    iterations: int
    flops: float
    exchanged_bytes: int
    seconds: float | None


class SolvePlan(NamedTuple):
    """What :func:`fixntk.solve` would do with a program of some shapes; its ``repr`` is a table.

    Attributes
    ----------
    num_rows, num_features, num_gates, num_outputs
        n, d, P and c.
    loss, dtype
        Names.
    num_devices
        Number of devices over which the rows are divided.
    rows_per_device
        Largest number of rows on a device.
    data_bytes
        Bytes of x, y and the masks, as bools, on each device.
    sum_bytes
        Bytes of the sum over devices of each product Xᵀ D_p R with all masks, (P, d, c) numbers; 0 on one device.
    method
        The method that ``solve`` takes.
    reason
        Why, in words, and what follows if its memory does not suffice.
    methods
        A plan for each method.
    """

    num_rows: int
    num_features: int
    num_gates: int
    num_outputs: int
    loss: str
    dtype: str
    num_devices: int
    rows_per_device: int
    data_bytes: int
    sum_bytes: int
    method: str
    reason: str
    methods: tuple[MethodPlan, ...]

    def __repr__(self) -> str:
        head = (
            f"SolvePlan({self.num_rows:,} rows, {self.num_features} features, {self.num_gates:,} gates,"
            f" {self.num_outputs} {'output' if self.num_outputs == 1 else 'outputs'}, {self.loss} loss, {self.dtype})"
        )
        where = "" if self.num_devices == 1 else f" on each of {self.num_devices:,} devices"
        lines = [head, f"inputs, targets and masks: {bytes_in_words(self.data_bytes)}{where}"]
        if self.num_devices > 1:
            lines.append(
                f"rows of a device: at most {self.rows_per_device:,}; each product of the residual with all masks sums"
                f" {bytes_in_words(self.sum_bytes)} over the devices"
            )
        columns = len(_HEADINGS) - (self.num_devices == 1)
        rows = [_HEADINGS[:columns], *(_cells(each)[:columns] for each in self.methods if not each.refusal)]
        refused = [f"{each.name}: {each.refusal}" for each in self.methods if each.refusal]
        return "\n".join(
            [*lines, *align_columns(rows, num_left=1), *refused, f"solve takes {self.method}: {self.reason}"]
        )


def _cells(plan: MethodPlan) -> tuple[str, ...]:
    return (
        plan.name,
        bytes_in_words(plan.num_bytes) + ("" if plan.fits else " (too much)"),
        f"{plan.step_flops:.2g}",
        f"{plan.iterations}",
        f"{plan.flops:.2g}",
        "" if plan.seconds is None else f"{plan.seconds:.2g}" if plan.seconds < 10 else f"{plan.seconds:,.0f}",
        bytes_in_words(plan.exchanged_bytes),
    )


def solve_plan(
    num_rows: int,
    num_features: int,
    num_gates: int,
    *,
    outputs: int = 1,
    loss: str | Loss = "squared",
    dtype: DTypeLike = "float32",
    devices: int = 1,
    memory: float | None = None,
    rates: Rates | None = None,
) -> SolvePlan:
    """Plan :func:`fixntk.solve` for a program of some shapes: which method it takes, and what each method costs.

    Memory is what ``solve`` itself compares with the free memory. Operations of an iteration follow from the shapes.
    Numbers of iterations are typical ones, of λ = 0.1 λ_max at the default tolerance: at smaller λ they are several
    times as many. On several devices each has its share of the rows, as in data-parallel training: products are
    divided, n×n matrices and linear systems are not.

    Parameters
    ----------
    num_rows, num_features, num_gates
        n, d and P.
    outputs
        c.
    loss
        As for :class:`fixntk.ConvexProgram`.
    dtype
        float32 or float64.
    devices
        Number of devices over which the rows are divided.
    memory
        Bytes on each device; unlimited when None.
    rates
        Rates of the device, as :func:`fixntk.convex.rates.measure_rates` gives them; no times when None.

    Returns
    -------
    SolvePlan

    Raises
    ------
    TypeError
        If a number of rows, features, gates, outputs or devices is not an integer.
    ValueError
        If one is below 1, there are more devices than rows, the loss is unknown or not for this number of outputs, the
        dtype another, or the memory not positive.

    Examples
    --------
    >>> from fixntk.convex import solve_plan
    >>> plan = solve_plan(100_000, 50, 500, memory=2**34)
    >>> plan.method, [each.name for each in plan.methods if each.fits]
    ('newton', ['fista', 'newton'])

    See docs/mathematics.md, M6 and M8.
    """
    counts = {"num_rows": num_rows, "num_features": num_features, "num_gates": num_gates, "outputs": outputs}
    num_rows, num_features, num_gates, outputs = (as_positive_int(name, value) for name, value in counts.items())
    devices = as_positive_int("devices", devices)
    if devices > num_rows:
        raise ValueError(f"devices must not be more than the rows, got {devices} for {num_rows} rows")
    if memory is not None and not memory > 0:
        raise ValueError(f"memory must be positive, got {memory}")
    name = _dtype_name(dtype)
    program = program_of_shapes(num_rows, num_features, num_gates, outputs, loss, name)
    local = _local_part(program, devices)
    data_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(local))
    free = math.inf if memory is None else memory - data_bytes
    # On one device solve adds rows.
    rows_solved = padded_count(num_rows) if devices == 1 else num_rows
    solved = program_of_shapes(rows_solved, num_features, num_gates, outputs, loss, name)
    part = _local_part(solved, devices)
    methods = tuple(_plan_method(solved, part, each, devices, free, rates) for each in METHODS)
    chosen = choose_method(program, "auto")
    return SolvePlan(
        num_rows=num_rows,
        num_features=num_features,
        num_gates=num_gates,
        num_outputs=outputs,
        loss=program.loss.name,
        dtype=name,
        num_devices=devices,
        rows_per_device=local.x.shape[0],
        data_bytes=data_bytes,
        sum_bytes=_sum_bytes(program) if devices > 1 else 0,
        method=chosen.name,
        reason=_reason(program, chosen, methods, free),
        methods=methods,
    )


def _dtype_name(dtype: DTypeLike) -> str:
    try:
        name = np.dtype(dtype).name
    except TypeError:
        name = ""
    if name not in _DTYPES:
        raise ValueError(f"dtype must be {' or '.join(_DTYPES)}, got {dtype!r}")
    return name


def _local_part(program: ConvexProgram, devices: int) -> ConvexProgram:
    """The rows of the device that has most."""
    rows = -(-program.x.shape[0] // devices)

    def cut(shape: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *shape.shape[1:]), shape.dtype)

    return replace_fields(program, x=cut(program.x), y=cut(program.y), masks=cut(program.masks))


def _sum_bytes(program: ConvexProgram) -> int:
    return math.prod(group_shape_of(program)) * program.x.dtype.itemsize


def _plan_method(
    program: ConvexProgram, local: ConvexProgram, name: str, devices: int, free: float, rates: Rates | None
) -> MethodPlan:
    try:
        method = choose_method(program, name)
    except ValueError as error:
        return MethodPlan(name, str(error), 0, False, 0.0, 0, 0.0, 0, None)
    work = typical_work(program, method)
    num_bytes = math.ceil(_bytes_needed(program, local, method))
    exchanged = work.num_adjoints * _sum_bytes(program) + work.set_values * _SET_BYTES if devices > 1 else 0
    fits = num_bytes <= free
    return MethodPlan(
        name=name,
        refusal="",
        num_bytes=num_bytes,
        fits=fits,
        step_flops=step_work(program, method).flops,
        iterations=typical_iterations(program, method),
        flops=work.flops,
        exchanged_bytes=math.ceil(exchanged),
        seconds=_seconds(work, exchanged, devices, rates) if rates is not None and fits else None,
    )


def _bytes_needed(program: ConvexProgram, local: ConvexProgram, method: Method) -> float:
    """Memory on each device: what ``solve`` compares at its start, and with it what a Newton step compares."""
    if method.reweights:
        return method.bytes_needed(program)
    size = newton_size(program)
    # A system of the rows is gathered on each device; one that is never formed is divided as the rows are.
    divided = local if newton_system.is_matrix_free(program, size) else program
    return method.bytes_needed(local) + method.step_bytes(divided, size)


def _seconds(work: Work, exchanged: float, devices: int, rates: Rates) -> float:
    """Seconds of work whose products are divided; sums over devices pass each value twice through every device."""
    divided = work._replace(products=work.products / devices, set_products=work.set_products / devices)
    return rates.seconds(divided) + 2 * (devices - 1) / devices * exchanged / rates.bandwidth


def _reason(program: ConvexProgram, chosen: Method, methods: tuple[MethodPlan, ...], free: float) -> str:
    reason = reason_for_first_order(program)
    if reason is None:
        reason = "the default; it takes the fewest steps, and its matrices have only the groups that are active"
    plan = next(each for each in methods if each.name == chosen.name)
    if plan.fits:
        return reason
    others = [each.name for each in methods if each.fits]
    remedy = f"method={others[0]!r} fits" if others else chosen.memory_remedy
    left = bytes_in_words(max(free, 0))
    return f"{reason}. It needs {bytes_in_words(plan.num_bytes)}, and the data leave {left}: {remedy}"
