"""Steps of linear maps against the equations themselves: where entries go, and what multiplies them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fixntk.ntk.constants import constants_beside
from fixntk.ntk.linear_maps import constant_axes, factor_of, move_entries, steps_of, values_at

W = np.arange(1.0, 25.0).reshape(4, 6)
ROW, COLUMN = np.linspace(1, 2, 6), np.linspace(-1, 1, 4)[:, None]
MASK = np.tril(np.ones((4, 6), bool))

# name: function of a (4, 6) array, and the axes along which factors vary, or None if there are none.
MAPS = {
    "transpose": (lambda w: w.T, None),
    "reshape": (lambda w: w.reshape(2, 12), None),
    "new axis": (lambda w: w[None], None),
    "squeeze": (lambda w: lax.squeeze(lax.slice(w, (1, 0), (2, 6)), (0,)), None),
    "reflection": (lambda w: w[::-1, ::-1], None),
    "part with strides": (lambda w: lax.slice(w, (1, 0), (4, 5), (2, 3)), None),
    "part that is moved back": (lambda w: lax.dynamic_slice(w, (np.int32(3), np.int32(1)), (2, 3)), None),
    "part from a computed place": (lambda w: lax.dynamic_slice(w, (jnp.array(3) - 2, jnp.array(1)), (2, 3)), None),
    "columns": (lambda w: w[:, np.array([4, 0, -1])], None),
    "rows and beyond": (lambda w: jnp.take(w, 2 * jnp.arange(3), axis=0, mode="fill", fill_value=0), None),
    "nearest rows": (lambda w: jnp.take(w, jnp.array([2, 9]), axis=0, mode="clip"), None),
    "entries": (lambda w: w[np.array([[0, 3], [2, 2]]), np.array([[0, 3], [2, 1]])], None),
    "split": (lambda w: jnp.split(w, (1, 3), axis=1)[1], None),
    "between others": (lambda w: jnp.concatenate([jnp.ones((2, 6)), w, jnp.zeros((1, 6))]), None),
    "stack": (lambda w: jnp.stack([jnp.ones((4, 6)), w], axis=1), None),
    "pad": (lambda w: jnp.pad(w, ((1, 0), (2, 3))), None),
    "cast": (lambda w: w.astype("float32"), None),
    "sum with a constant": (lambda w: 3 + w, None),
    "negative": (lambda w: -w, ()),
    "difference": (lambda w: 3 - w, ()),
    "multiple": (lambda w: w * 2.5, ()),
    "quotient": (lambda w: w / 4, ()),
    "factors of columns": (lambda w: jnp.array(ROW) * w, (1,)),
    "quotients of rows": (lambda w: w / jnp.array(COLUMN), (0,)),
    "factors of entries": (lambda w: w * jnp.array(W), (0, 1)),
    "mask": (lambda w: jnp.where(jnp.array(MASK), w, 0), (0, 1)),
    "mask of others": (lambda w: jnp.where(jnp.array(MASK), 7, w), (0, 1)),
}


def steps_through(f):
    """The jaxpr of a function, without calls, and its steps from the argument to the result."""
    with jax.disable_jit():
        closed = jax.make_jaxpr(f)(W)
    used = {id(atom) for equation in closed.jaxpr.eqns for atom in equation.invars} | {id(closed.jaxpr.outvars[0])}
    steps, value, constant = [], closed.jaxpr.invars[0], {}
    known = constants_beside(closed.jaxpr, closed.consts)
    for index, equation in enumerate(closed.jaxpr.eqns):
        constant[equation.outvars[0]] = constant_axes(equation)
        known.note(closed.jaxpr, equation)
        if any(atom is value for atom in equation.invars):
            operand = [atom is value for atom in equation.invars].index(True)
            found = steps_of(equation, operand, (index,), constant, known.indices(equation))
            result = next(k for k, v in enumerate(equation.outvars) if id(v) in used)
            steps.append(found[result])
            value = equation.outvars[result]
    assert value is closed.jaxpr.outvars[0]
    return closed, steps


@pytest.mark.parametrize("name", MAPS)
def test_entries_are_moved_and_multiplied_as_by_the_function(name):
    f, varying = MAPS[name]
    closed, steps = steps_through(f)
    assert next((step.varying for step in steps if step.varying is not None), None) == varying
    # The Jacobian of the function has one entry for each that is not lost, at its new place.
    jacobian = np.asarray(jax.jacobian(f)(jnp.array(W))).reshape(-1, W.size)
    numbers = move_entries(steps, np.arange(W.size).reshape(W.shape), -1, np)
    factors = move_entries(steps, jnp.ones(W.shape), 0, jnp)
    operands = values_at(closed, [jnp.array(W)], {step.path for step in steps})
    for step in steps:
        if step.varying is not None:
            factors = factors * factor_of(step, operands[step.path])
    expected = np.zeros_like(jacobian)
    kept = numbers.reshape(-1) >= 0
    expected[np.flatnonzero(kept), numbers.reshape(-1)[kept]] = np.asarray(factors).reshape(-1)[kept]
    np.testing.assert_allclose(jacobian, expected, rtol=1e-15)
    assert numbers.shape == jax.eval_shape(f, W).shape
    # Look-ups may add entries; of all other maps it is known whether they do.
    adds_entries = any(step.adds_entries for step in steps)
    assert adds_entries == bool((numbers < 0).any()) or steps[-1].equation.primitive.name == "gather"


# name: function of a (4, 6) array that looks rows up several times, and the largest number of copies.
COPIES = {
    "rows": (lambda w: w[np.array([0, 2, 0, 2, 1, 0])], 3),
    "columns and beyond": (lambda w: jnp.take(w, jnp.array([5, 9, 5, 0, 8]), axis=1, mode="fill", fill_value=0), 2),
    "nearest columns": (lambda w: jnp.take(w, jnp.array([7, 0, 9]), axis=1, mode="clip"), 2),
    "entries": (lambda w: w[np.array([[0, 3], [0, 2]]), np.array([[5, 3], [5, 1]])], 2),
}


@pytest.mark.parametrize("name", COPIES)
def test_rows_given_several_times_are_a_sum_of_rows_given_once(name):
    f, num_copies = COPIES[name]
    with jax.disable_jit():
        closed = jax.make_jaxpr(f)(W)
    known = constants_beside(closed.jaxpr, closed.consts)
    for index, equation in enumerate(closed.jaxpr.eqns):
        known.note(closed.jaxpr, equation)
        if closed.jaxpr.invars[0] in equation.invars:
            copies = steps_of(equation, 0, (index,), {}, known.indices(equation))
            break
    assert len(copies) == num_copies
    jacobian = np.asarray(jax.jacobian(f)(jnp.array(W))).reshape(-1, W.size)
    total = np.zeros_like(jacobian)
    for copy in copies:
        numbers = move_entries([copy], np.arange(W.size).reshape(W.shape), -1, np).reshape(-1)
        assert np.bincount(numbers[numbers >= 0]).max() == 1
        total[np.flatnonzero(numbers >= 0), numbers[numbers >= 0]] += 1
        moved = move_entries([copy], jnp.array(W), 0, jnp).reshape(-1)
        np.testing.assert_array_equal(moved, np.where(numbers >= 0, W.reshape(-1)[numbers], 0))
    np.testing.assert_array_equal(total, jacobian)


@pytest.mark.parametrize(
    "f",
    [
        lambda w: jnp.broadcast_to(w, (2, 4, 6)),
        lambda w: w[:1] + jnp.zeros((4, 6)),
        lambda w: 1 / w,
        lambda w: w[np.array([0, 2, 0, 1, 0, 0, 0])],
        lambda w: w[w[0, :2].astype(int)],
        lambda w: w.astype(int),
        lambda w: jnp.where(w, 1.0, 2.0),
        lambda w: jnp.sum(w, axis=0),
        lambda w: lax.pad(w, 0.0, ((0, -1, 0), (0, 0, 0))),
        lambda w: lax.pad(1.0 + jnp.zeros((2,)), w[0, 0], ((0, 1, 0),)),
        jnp.tanh,
    ],
)
def test_other_maps_are_not_followed(f):
    with jax.disable_jit():
        closed = jax.make_jaxpr(f)(W)
    value, followed = closed.jaxpr.invars[0], True
    known = constants_beside(closed.jaxpr, closed.consts)
    for index, equation in enumerate(closed.jaxpr.eqns):
        known.note(closed.jaxpr, equation)
        if followed and any(atom is value for atom in equation.invars):
            operand = [atom is value for atom in equation.invars].index(True)
            followed = steps_of(equation, operand, (index,), {}, known.indices(equation)) is not None
            value = equation.outvars[0]
    assert not followed


def test_values_that_depend_on_inputs_are_not_known():
    def f(w, x):
        inner = jax.jit(lambda a, b: (a * 2, b + a))
        doubled, mixed = inner(w, x)
        return doubled * mixed

    closed = jax.make_jaxpr(f)(W, W)
    (last,) = (k for k, equation in enumerate(closed.jaxpr.eqns) if equation.primitive.name == "mul")
    found = values_at(closed, [jnp.array(W)], {(last,)})
    np.testing.assert_allclose(found[(last,)][0], 2 * W)
    assert found[(last,)][1] is None
