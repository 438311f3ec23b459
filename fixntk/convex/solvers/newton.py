r"""Semismooth Newton on the dual augmented Lagrangian, after first-order steps on working sets.

With Θ the dual variable, W the multiplier, Z_p = Xᵀ D_p Θ and U_p = W_p + σ Z_p, each outer step minimises

.. math:: φ(Θ) = ½\|Θ\|² − ⟨Y, Θ⟩ + \tfrac{1}{2σ} \sum_p (\|U_p\| − σλ)_+^2

by Newton steps with Armijo's rule, then W ← prox(U) and σ grows. The Newton system has the active groups alone, those
with ‖U_p‖ > σλ, padded to one of a few sizes. First-order steps in single precision go first, on working sets of the
groups nearest to being active, as long as these grow, or lower the gap by more than Newton would for the same cost.

Everything works in units of the data: x and y are of size one.

Li, Sun and Toh (2018) for the lasso, Zhang, Zhang, Sun and Toh (2020) for the group lasso.

See docs/mathematics.md, M8.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from fixntk._compilation import jit_for_host
from fixntk._numerics import tiny_of
from fixntk._tiling import memory_for
from fixntk.convex.groups import with_mask_numbers
from fixntk.convex.method import Method, Step, check_norm
from fixntk.convex.penalties import group_norms
from fixntk.convex.program import ConvexProgram, correlations_of, datafit_of, masked_outputs, penalty_of, thresholds_of
from fixntk.convex.solvers import newton_step, newton_system, working_sets
from fixntk.convex.solvers.newton_step import Linearisation, NewtonState
from fixntk.convex.solvers.working_sets import Schedule
from fixntk.convex.units import Units, in_units, units_of

# The decrease of log(gap) that a Newton step is expected to bring; rounds that do worse for their cost give way to it.
_EXPECTED_LOG_DECREASE = 0.28
# Smallest first σ, as a multiple of ‖W_p‖ / λ, at which W_p and σ Z_p are alike in size.
_FIRST_SIGMA = 10.0
# Largest first σ, where the start has a gap of a few per cent of the objective or less.
_LARGEST_FIRST_SIGMA = 300.0
# Newton steps without a smaller gap after which the stall is attributed to rounding error, which first-order steps
# have less of.
_PATIENCE_STEPS = 25
# Number of first-order steps of the last resort.
_LAST_RESORT_STEPS = 500
# The first-order steps of the last resort stop at this share of the gap before them.
_LAST_RESORT_GAP_SHARE = 0.1
# Operations of a Newton step below which several are compiled into one loop.
_FLOPS_OF_A_SHORT_STEP = 5e8


def prepare(program: ConvexProgram) -> tuple[ConvexProgram, Units]:
    """The program in units of its data, its masks as numbers."""
    units = units_of(program)
    return with_mask_numbers(in_units(program, units)), units


def init(program: ConvexProgram, weights: Array, _: Array | None = None) -> NewtonState:
    """Start from the given group weights; with a Newton step unless they are zero."""
    return _start(program, weights, schedule=working_sets.schedule_of(program))


def steps(program: ConvexProgram) -> tuple[Step, ...]:
    """The steps of every kind and size."""
    return _steps_of(program, working_sets.schedule_of(program))


def _all_groups(program: ConvexProgram) -> Schedule:
    """For a program most of whose groups are active: one size, and no rounds."""
    return Schedule((program.num_gates,), ())


def _has_long_steps(program: ConvexProgram, schedule: Schedule) -> bool:
    """Whether there are several sizes, or steps that take longer than the host's calls of their parts."""
    sizes = schedule.newton_sizes
    return len(sizes) > 1 or working_sets.newton_flops(program, sizes[0]) > _FLOPS_OF_A_SHORT_STEP


def _steps_of(program: ConvexProgram, schedule: Schedule) -> tuple[Step, ...]:
    return _steps(schedule, _newton_step if _has_long_steps(program, schedule) else _short_newton_step)


def _steps(schedule: Schedule, make_newton_step: Callable[..., NewtonState]) -> tuple[Step, ...]:
    newton = [partial(make_newton_step, schedule, size) for size in schedule.newton_sizes]
    rounds = [partial(_round_step, schedule, size) for size in schedule.round_sizes]
    return (*newton, *rounds, _last_resort_step)


@partial(jit_for_host, static_argnames=("schedule",))
def _start(program: ConvexProgram, weights: Array, *, schedule: Schedule) -> NewtonState:
    """The state at weights, before a round if the weights are zero and there are rounds, else before a Newton step."""
    if not schedule.round_sizes:
        weights = jnp.where(jnp.any(weights != 0), weights, _gradient_step(program, weights))
    state = _state_at(program, weights)
    following = schedule.newton_index(newton_step.num_active(program, state))
    if schedule.round_sizes:
        first_round = schedule.round_index(jnp.zeros((), jnp.int32))
        following = jnp.where(jnp.any(weights != 0), following, first_round)
    return state._replace(next_step=following)


def _gradient_step(program: ConvexProgram, weights: Array) -> Array:
    """A proximal gradient step, whose length gives the scale of the weights for the first σ."""
    correlations = correlations_of(program, datafit_of(program).fit(masked_outputs(program, weights)).residual)
    curvature = jnp.sum(datafit_of(program).remove_intercept(masked_outputs(program, correlations)) ** 2) / jnp.sum(
        correlations**2
    )
    # Without a gradient the curvature is NaN, and the weights stay.
    moved = penalty_of(program).prox(weights + correlations / curvature, 1 / curvature)
    return jnp.where(curvature > 0, moved, weights)


def _state_at(program: ConvexProgram, weights: Array) -> NewtonState:
    """Θ is the residual, scaled to be dual feasible, so that no group that is zero is taken for active at once.

    The caller chooses the next step.
    """
    found = program.evaluate(weights)
    tiny = tiny_of(program.x)
    norms = group_norms(weights)
    typical_norm = jnp.sum(norms) / jnp.maximum(jnp.sum(norms > 0, dtype=norms.dtype), 1)
    largest_dual = jnp.maximum(jnp.max(group_norms(found.correlations)), tiny)
    # σ₀ = clip(10 P/gap, 10, 300) · mean ‖W_p‖ / mean λτ over active groups; 1/max ‖Z_p‖ at W = 0.
    multiple = jnp.clip(10 * found.primal / jnp.maximum(found.gap, tiny), _FIRST_SIGMA, _LARGEST_FIRST_SIGMA)
    from_norms = multiple * typical_norm / jnp.mean(thresholds_of(program))
    return NewtonState(
        weights=weights,
        primal=found.primal,
        gap=found.gap,
        objective=found.primal,
        failed=~jnp.isfinite(found.primal),
        multiplier=weights,
        theta=found.dual_scale * found.residual,
        residual=found.residual,
        correlations=found.dual_scale * found.correlations,
        sigma=jnp.where(typical_norm > 0, from_norms, 1 / largest_dual),
        stalled=jnp.zeros((), jnp.int32),
        is_multiplier_new=jnp.ones((), bool),
        next_step=jnp.zeros((), jnp.int32),
    )


# From the host a step is a few compiled functions. The one that depends on the number of active groups is small, and
# the only one whose own loops are long.
_linearise = jit_for_host(newton_step.linearise)
_find_direction = jit_for_host(newton_step.find_direction, static_argnames=("size",), optimised=True)
_run_round = jit_for_host(working_sets.run_round, static_argnames=("size",), optimised=True)


def _newton_step(schedule: Schedule, size: int, program: ConvexProgram, state: NewtonState) -> NewtonState:
    """A Newton step on φ for at most ``size`` active groups."""
    model = _linearise(program, state)
    what, needed = f"a Newton step on {size} active groups", newton_system.bytes_needed(program, size)
    with memory_for(what, needed, "use method='fista', fewer gates, or a larger reg", program):
        direction = _find_direction(program, state.sigma, model.prox, model.gradient, size=size)
    return _follow(program, state, model, direction, schedule=schedule)


def _short_newton_step(schedule: Schedule, size: int, program: ConvexProgram, state: NewtonState) -> NewtonState:
    """The same where the whole step is a part of one compiled loop."""
    model = newton_step.linearise(program, state)
    direction = newton_step.find_direction(program, state.sigma, model.prox, model.gradient, size=size)
    return _follow(program, state, model, direction, schedule=schedule)


@partial(jit_for_host, static_argnames=("schedule",))
def _follow(
    program: ConvexProgram, state: NewtonState, model: Linearisation, direction: Array, *, schedule: Schedule
) -> NewtonState:
    """Follow a direction; the next step is another Newton step, unless they have stalled."""
    moved = newton_step.follow(program, state, model, direction)
    following = schedule.newton_index(newton_step.num_active(program, moved))
    return moved._replace(next_step=jnp.where(moved.stalled > _PATIENCE_STEPS, schedule.last_resort, following))


def _round_step(schedule: Schedule, size: int, program: ConvexProgram, state: NewtonState) -> NewtonState:
    """First-order steps on a working set of ``size`` groups."""
    weights, cost = _run_round(program, state.weights, state.correlations, state.gap, size=size)
    return _follow_round(program, state, weights, cost, schedule=schedule)


@partial(jit_for_host, static_argnames=("schedule",))
def _follow_round(
    program: ConvexProgram, state: NewtonState, weights: Array, cost: Array, *, schedule: Schedule
) -> NewtonState:
    """The state at a round's weights, and what comes next.

    Another round follows while the sets grow, or while the gap falls by enough for the cost; then Newton, which is fast
    near the solution and not bound to single precision.
    """
    restarted = _state_at(program, weights.astype(program.x.dtype))
    # In single precision the objective may have risen.
    is_lower = restarted.primal < state.primal
    moved = jax.tree.map(lambda new, old: jnp.where(is_lower, new, old), restarted, state)
    next_round, this_round = (
        schedule.round_index(jnp.sum(working_sets.is_nonzero(one.weights))) for one in (moved, state)
    )
    decrease = jnp.log(state.gap / jnp.maximum(moved.gap, tiny_of(program.x)))
    is_worth_it = (next_round > this_round) | ~(decrease <= _EXPECTED_LOG_DECREASE * cost)
    is_worth_it &= next_round < schedule.last_resort
    newton_next = schedule.newton_index(newton_step.num_active(program, moved))
    return moved._replace(next_step=jnp.where(is_worth_it, next_round, newton_next))


@partial(jit_for_host, optimised=True)
def _last_resort_step(program: ConvexProgram, state: NewtonState) -> NewtonState:
    """First-order steps on all groups, in the program's precision; the solve fails where the gap is no smaller."""
    goal = _LAST_RESORT_GAP_SHARE * state.gap
    weights, _ = working_sets.run_first_order(program, state.weights, goal, _LAST_RESORT_STEPS)
    moved = _state_at(program, weights)._replace(next_step=state.next_step)
    is_better = moved.gap < state.gap
    kept = state._replace(failed=jnp.ones((), bool))
    return jax.tree.map(lambda new, old: jnp.where(is_better, new, old), moved, kept)


def _supports(program: ConvexProgram) -> None:
    check_norm("newton", program)


def _init_on_all_groups(program: ConvexProgram, weights: Array, _: Array | None = None) -> NewtonState:
    return _start(program, weights, schedule=_all_groups(program))


METHOD = Method(
    name="newton",
    init=init,
    steps=steps,
    supports=_supports,
    max_iter=200,
    prepare=prepare,
    step_bytes=newton_system.bytes_needed,
    steps_from_host=lambda program: _has_long_steps(program, working_sets.schedule_of(program)),
)
# Where most groups are active one size is compiled.
METHOD = METHOD._replace(
    on_active_groups=METHOD._replace(
        init=_init_on_all_groups,
        steps=lambda program: _steps_of(program, _all_groups(program)),
        steps_from_host=lambda program: _has_long_steps(program, _all_groups(program)),
    )
)
# For another solver's step on the host, which makes few of these steps: their parts compile in less time than a loop.
FROM_HOST = METHOD._replace(
    steps=lambda program: _steps(working_sets.schedule_of(program), _newton_step), steps_from_host=lambda _: True
)
