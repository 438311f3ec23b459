"""Checkpoints: what is restored is what was saved last, or an error says why not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fixntk.training.checkpoints import Record, restore, save


def state_of(number):
    return {"a": jnp.full((2, 3), float(number)), "b": (jnp.asarray(number), jnp.full(4, number, jnp.float32))}


def records_of(count):
    return [Record(10 * k, np.array([1.0 / (k + 1), 2.0]), np.array([np.nan, k]), 0.5 * k) for k in range(count)]


def test_the_newest_state_and_its_records_come_back_bit_by_bit(tmp_path):
    for count in (1, 2, 4):
        save(tmp_path, state_of(count), records_of(count))
    state, records = restore(tmp_path, state_of(0), resume=True)
    for found, saved in zip(jax.tree.leaves(state), jax.tree.leaves(state_of(4)), strict=True):
        assert found.dtype == saved.dtype
        np.testing.assert_array_equal(found, saved)
    assert jax.tree.structure(state) == jax.tree.structure(state_of(4))
    for found, saved in zip(records, records_of(4), strict=True):
        assert (found.step, found.seconds) == (saved.step, saved.seconds)
        np.testing.assert_array_equal(found.objective, saved.objective)
        np.testing.assert_array_equal(found.validation, saved.validation)
    # The two newest are kept.
    assert {path.name for path in tmp_path.iterdir() if path.name.isdigit()} == {"10", "30"}


def test_an_empty_folder_gives_the_state_back(tmp_path):
    state = state_of(3)
    for resume in (True, False):
        found, records = restore(tmp_path, state, resume=resume)
        assert found is state
        assert records == []


def test_a_folder_of_another_training_is_refused(tmp_path):
    save(tmp_path, state_of(1), records_of(1))
    with pytest.raises(ValueError, match="has a training already: pass resume=True"):
        restore(tmp_path, state_of(1), resume=False)
    for other in (
        {"a": jnp.ones((2, 4)), "b": state_of(1)["b"]},
        {"a": jnp.ones((2, 3), jnp.float32), "b": state_of(1)["b"]},
        {"a": jnp.ones((2, 3))},
    ):
        with pytest.raises(ValueError, match="of another network, optimiser or dtype"):
            restore(tmp_path, other, resume=True)
