"""Methods: which step comes next, and which programs are refused."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from problems import random_problem

from fixntk.convex.method import Method, check_norm, keep_units, step_any


class State(NamedTuple):
    total: jax.Array
    next_step: jax.Array


def of_steps(*steps):
    return Method("made up", lambda *_: None, lambda _: steps, lambda _: None, 1)


def test_the_step_that_is_made_is_the_one_that_the_state_names():
    adding = [lambda _, state, k=k: state._replace(total=state.total + 10.0**k) for k in range(3)]
    program = random_problem(0)
    for k in range(3):
        state = State(jnp.asarray(0.0), jnp.asarray(k))
        for step in (step_any, jax.jit(step_any, static_argnums=0)):
            assert float(step(of_steps(*adding), program, state).total) == 10.0**k
        # A single step is made whatever the state names.
        assert float(step_any(of_steps(adding[2]), program, state).total) == 100


def test_a_program_without_units_is_itself():
    program = random_problem(0)
    same, units = keep_units(program)
    assert same is program
    assert (float(units.weights), float(units.objective)) == (1.0, 1.0)


def test_other_norms_are_refused_with_a_remedy():
    check_norm("newton", random_problem(0))
    program = random_problem(0, num_outputs=2, norm="nuclear")
    with pytest.raises(ValueError, match="method 'newton' is for norm 'frobenius', not for 'nuclear': use 'fista'"):
        check_norm("newton", program)


def test_methods_that_start_at_kernel_weights_reweight():
    plain = of_steps()
    assert not plain.reweights
    assert plain._replace(starts_at="kernel_weights").reweights
    assert plain.on_active_groups is None
