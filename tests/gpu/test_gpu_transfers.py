"""The compiled loops that the driver of `solve` calls move nothing between the accelerator and the host."""

import jax
import jax.numpy as jnp
import pytest
from device_checks import teacher

from fixntk.convex import driver
from fixntk.convex.solve import METHODS, choose_method

pytestmark = pytest.mark.gpu

# Words of XLA's programs for what leaves the device while a program runs.
_LEAVING = ("outfeed", "infeed", "callback", "host_transfer=true")


def started(name):
    """A method, its prepared program, and where it starts, with all that the loop takes on the device."""
    program, _ = teacher(400)
    method = choose_method(program, name)
    weights = jnp.full(200, 1 / 200, jnp.float32) if method.reweights else jnp.zeros((200, 20, 1), jnp.float32)
    epsilon = jnp.asarray(1e-8, jnp.float32) if method.reweights else None
    tol = jnp.asarray(1e-5, jnp.float32)
    prepared, state, _, scale = driver._start(program, weights, epsilon, tol, method=method)
    return method, prepared, state, scale


@pytest.mark.parametrize("name", ["fista", "irls", "anderson"])
def test_a_loop_over_steps_stays_on_the_device(name):
    method, prepared, state, scale = started(name)
    limit = jnp.asarray(5)

    def run():
        return driver._advance(prepared, state, scale.goal, limit, method=method, step=0, room=5)

    # Compiling moves constants.
    jax.block_until_ready(run())
    with jax.transfer_guard("disallow"):
        made, moved, _ = jax.block_until_ready(run())
    assert int(made) == 5
    assert float(moved.primal) < float(state.primal)


def test_steps_of_newton_stay_on_the_device():
    method, prepared, state, _ = started("newton")
    assert method.steps_from_host(prepared)
    steps = method.steps(prepared)
    states = [state]
    for _ in range(3):
        states.append(steps[int(states[-1].next_step)](prepared, states[-1]))
    following = [int(one.next_step) for one in states]
    with jax.transfer_guard("disallow"):
        for one, index in zip(states[:-1], following[:-1], strict=True):
            jax.block_until_ready(steps[index](prepared, one))
    assert float(states[-1].gap) < float(state.gap)


@pytest.mark.parametrize("name", METHODS)
def test_no_program_of_a_whole_solve_calls_the_host(name):
    method, prepared, state, scale = started(name)
    advance = jax.jit(
        lambda prepared, state, goal: driver._advance(
            prepared, state, goal, jnp.asarray(5), method=method, step=None, room=5
        )
    )
    text = advance.lower(prepared, state, scale.goal).compile().as_text()
    assert "while" in text
    assert not [word for word in _LEAVING if word in text]
