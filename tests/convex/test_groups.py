"""Gates and masks of a program: checked, replaced, and turned into numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import random_problem

import fixntk as fx
from fixntk.convex import groups
from fixntk.convex.groups import check_gates, mask_number_bytes, with_mask_numbers, with_masks
from fixntk.convex.program import group_shape_of, masked_outputs


@pytest.fixture
def gates(rng):
    return rng.standard_normal((11, 3))


@pytest.fixture
def program(rng, gates):
    x = rng.standard_normal((20, 3))
    return fx.ConvexProgram(x, x[:, 0], x @ gates.T >= 0, 0.3, penalty_weights=np.arange(1.0, 12))


def packed_of(program):
    return fx.ConvexProgram(
        program.x,
        program.y,
        fx.pack_masks(program.masks),
        program.reg,
        num_gates=11,
        penalty_weights=np.arange(1.0, 12),
    )


def test_gates_with_the_programs_masks_are_returned_and_others_counted(program, gates):
    for given in (program, packed_of(program), with_mask_numbers(program)):
        np.testing.assert_array_equal(check_gates(given, gates), gates)
        # Another length is the same gate.
        np.testing.assert_array_equal(check_gates(given, 3 * gates), 3 * gates)
        wrong = gates.copy()
        wrong[[2, 7]] *= -1
        with pytest.raises(ValueError, match="gates must give the program's masks on its x: 2 of 11 do not"):
            check_gates(given, wrong)
    with pytest.raises(ValueError, match=r"gates must have shape \(11, 3\), got \(10, 3\)"):
        check_gates(program, gates[:10])
    # Values are not looked at under a transformation.
    assert jax.jit(lambda g: check_gates(program, g))(-gates).shape == (11, 3)


@pytest.mark.parametrize("kind", ["bool", "packed", "numbers"])
def test_numbers_in_the_place_of_masks_have_the_same_outputs(rng, program, kind):
    given = {"bool": lambda p: p, "packed": packed_of, "numbers": with_mask_numbers}[kind](program)
    weights = jnp.asarray(rng.standard_normal(group_shape_of(program)))
    expected = np.zeros((20, 1))
    for mask, group in zip(np.asarray(program.masks).T, np.asarray(weights), strict=True):
        expected += mask[:, None] * (np.asarray(program.x) @ group)
    numbers = with_mask_numbers(given)
    assert numbers.masks.dtype == program.x.dtype
    np.testing.assert_array_equal(numbers.masks, np.asarray(program.masks, float))
    for each in (given, numbers):
        np.testing.assert_allclose(masked_outputs(each, weights), expected, atol=1e-13)


def test_many_masks_stay_as_they_are(monkeypatch, program):
    monkeypatch.setattr(groups, "_MAX_MASK_NUMBERS", 219)
    assert with_mask_numbers(program) is program
    monkeypatch.setattr(groups, "_MAX_MASK_NUMBERS", 220)
    assert with_mask_numbers(program) is not program


def test_masks_of_chosen_gates_have_their_penalty_weights(program):
    chosen = jnp.array([4, 0, 9])
    part = with_masks(program, program.masks[:, chosen], chosen)
    assert (part.num_gates, group_shape_of(part)) == (3, (3, 3, 1))
    np.testing.assert_array_equal(part.penalty_weights, [5, 1, 10])
    weights = np.array([5.0, 1.0, 10.0])
    expected = fx.ConvexProgram(program.x, program.y, program.masks[:, chosen], 0.3, penalty_weights=weights)
    assert part.primal(jnp.ones((3, 3))) == expected.primal(jnp.ones((3, 3)))
    plain = random_problem(0)
    assert with_masks(plain, plain.masks[:, :2], jnp.arange(2)).penalty_weights is None


def test_bytes_are_those_of_all_masks_or_of_a_tile(monkeypatch, program):
    assert mask_number_bytes(program) == with_mask_numbers(program).masks.nbytes
    monkeypatch.setattr(groups, "TILE_BYTES", 8 * 11 * 5)
    assert mask_number_bytes(program) == 8 * 11 * 5
    # A tile has one row at least.
    monkeypatch.setattr(groups, "TILE_BYTES", 1)
    assert mask_number_bytes(program) == 8 * 11
