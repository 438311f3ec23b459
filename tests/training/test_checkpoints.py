"""Checkpoints: what is restored is what was saved last, or an error says why not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from fixntk import _files
from fixntk._files import write_arrays
from fixntk.training.checkpoints import Record, count_unimproved, restore, save

pytestmark = pytest.mark.core

MADE_BY = {"x": "1", "reg": "2", "optimizer": "3", "versions": "4"}


def state_of(number):
    numbers = jnp.asarray(number), jnp.full(4, number, jnp.float32), jnp.full((), number, jnp.bfloat16)
    return {"a": jnp.full((2, 3), float(number)), "b": numbers, "c": jax.random.split(jax.random.key(number))}


def names(folder):
    return {path.name for path in folder.iterdir()}


def records_of(count):
    return [Record(10 * k, np.array([1.0 / (k + 1), 2.0]), np.array([np.nan, k]), 0.5 * k) for k in range(count)]


def test_the_newest_state_and_its_records_come_back_bit_by_bit(tmp_path):
    for count in (1, 2, 4):
        save(tmp_path, state_of(count), records_of(count), MADE_BY)
    state, records = restore(tmp_path, state_of(0), MADE_BY, resume=True)
    for found, saved in zip(jax.tree.leaves(state), jax.tree.leaves(state_of(4)), strict=True):
        assert found.dtype == saved.dtype
        if jnp.issubdtype(found.dtype, jax.dtypes.prng_key):
            found, saved = map(jax.random.key_data, (found, saved))
        np.testing.assert_array_equal(found, saved)
    assert jax.tree.structure(state) == jax.tree.structure(state_of(4))
    for found, saved in zip(records, records_of(4), strict=True):
        assert (found.step, found.seconds) == (saved.step, saved.seconds)
        np.testing.assert_array_equal(found.objective, saved.objective)
        np.testing.assert_array_equal(found.validation, saved.validation)
        assert found.objective.dtype == saved.objective.dtype
    # The two newest are kept.
    assert names(tmp_path) == {"step-10.safetensors", "step-30.safetensors"}


def test_an_empty_folder_gives_the_state_back(tmp_path):
    state = state_of(3)
    for resume in (True, False):
        found, records = restore(tmp_path, state, MADE_BY, resume=resume)
        assert found is state
        assert records == []


def test_a_folder_of_another_training_is_refused(tmp_path):
    save(tmp_path, state_of(1), records_of(1), MADE_BY)
    with pytest.raises(ValueError, match="has a training already: pass resume=True"):
        restore(tmp_path, state_of(1), MADE_BY, resume=False)
    for other in (
        {**state_of(1), "a": jnp.ones((2, 4))},
        {**state_of(1), "a": jnp.ones((2, 3), jnp.float32)},
        {"a": jnp.ones((2, 3))},
    ):
        with pytest.raises(ValueError, match="of another network, optimiser or dtype"):
            restore(tmp_path, other, MADE_BY, resume=True)
    for other, found in (({"x": "5"}, "x"), ({"reg": "5", "optimizer": "5"}, "optimizer, reg"), ({"y": "5"}, "y")):
        with pytest.raises(ValueError, match=f"is of a training with other {found}: pass the same"):
            restore(tmp_path, state_of(1), MADE_BY | other, resume=True)
    # Under other versions, the same optimiser has another fingerprint.
    assert restore(tmp_path, state_of(1), MADE_BY | {"optimizer": "5", "versions": "6"}, resume=True)[1]


DAMAGES = [lambda b: b[: len(b) // 2], lambda b: b[:-1] + b"x", lambda _: b"", lambda b: b + b]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_the_one_before_and_a_warning(tmp_path, damage):
    for count in (1, 2):
        save(tmp_path, state_of(count), records_of(count), MADE_BY)
    newest = tmp_path / "step-10.safetensors"
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.warns(UserWarning, match=r"step-10\.safetensors: is damaged.*continues from the checkpoint before"):
        state, records = restore(tmp_path, state_of(0), MADE_BY, resume=True)
    np.testing.assert_array_equal(state["a"], state_of(1)["a"])
    assert len(records) == 1
    # The next one, at any step, leaves no damaged one behind.
    save(tmp_path, state_of(3), [*records, records_of(2)[1]._replace(step=5)], MADE_BY)
    assert names(tmp_path) == {"step-0.safetensors", "step-5.safetensors"}


@pytest.mark.parametrize("fields", [{}, {"leaves": 1}, {"leaves": [], "fingerprint": 3}, {"leaves": ["a"] * 9}])
def test_what_is_no_checkpoint_is_damaged(tmp_path, fields):
    write_arrays(tmp_path / "step-10.safetensors", _files._CHECKPOINT, fields, {})
    with (
        pytest.warns(UserWarning, match=r"step-10\.safetensors: is damaged"),
        pytest.raises(ValueError, match="all of its 1 checkpoints are damaged: remove them"),
    ):
        restore(tmp_path, state_of(0), MADE_BY, resume=True)


def test_a_checkpoint_of_another_version_is_named_and_stays(tmp_path):
    save(tmp_path, state_of(1), records_of(1), MADE_BY)
    newer = _files._CHECKPOINT._replace(version=9)
    write_arrays(tmp_path / "step-50.safetensors", newer, {}, {"a": np.ones(1)})
    with pytest.raises(ValueError, match=r"step-50\.safetensors: has version 9 of the format, by fixntk .*, newer"):
        restore(tmp_path, state_of(0), MADE_BY, resume=True)
    assert names(tmp_path) == {"step-0.safetensors", "step-50.safetensors"}


def test_files_of_the_same_names_by_others_are_ignored_and_stay(tmp_path):
    safetensors.numpy.save_file({"weights": np.ones(3)}, tmp_path / "step-500.safetensors")
    assert restore(tmp_path, state_of(0), MADE_BY, resume=False)[1] == []
    for count in (1, 2, 3):
        save(tmp_path, state_of(count), records_of(count), MADE_BY)
    assert len(restore(tmp_path, state_of(0), MADE_BY, resume=True)[1]) == 3
    assert names(tmp_path) == {"step-500.safetensors", "step-10.safetensors", "step-20.safetensors"}


def test_other_files_are_ignored_and_stay(tmp_path):
    others = {"10", "step-9.safetensors.part", "step-x.safetensors", "notes.txt", "step-99.safetensors"}
    (tmp_path / "10").mkdir()
    (tmp_path / "step-99.safetensors").mkdir()
    for name in ("step-9.safetensors.part", "step-x.safetensors", "notes.txt"):
        (tmp_path / name).write_text("other")
    assert restore(tmp_path, state_of(0), MADE_BY, resume=False)[1] == []
    for count in (1, 2, 3):
        save(tmp_path, state_of(count), records_of(count), MADE_BY)
    assert len(restore(tmp_path, state_of(0), MADE_BY, resume=True)[1]) == 3
    assert names(tmp_path) == others | {"step-10.safetensors", "step-20.safetensors"}


@pytest.mark.parametrize(
    ("objectives", "validation", "expected"),
    [
        ([3.0, 2.0, 1.0], None, 0),
        ([3.0, 3.0, 4.0], None, 2),
        ([3.0, 1.0, 2.0, 1.0], None, 2),
        ([np.inf, np.nan], None, 2),
        ([3.0, 2.0, 1.0], [1.0, 2.0, np.nan], 2),
        # A record with an objective that is not finite is none.
        ([3.0, np.inf, 1.0], [3.0, 1.0, 2.0], 0),
        # A stack stops when none of its networks improves.
        ([[3.0, 1.0], [4.0, 0.5], [5.0, 0.7]], None, 1),
    ],
)
def test_records_without_improvement_are_counted(objectives, validation, expected):
    monitored = objectives if validation is None else validation
    records = [
        Record(k, np.array(objective), np.array(value), 0.0)
        for k, (objective, value) in enumerate(zip(objectives, monitored, strict=True))
    ]
    for dtype in (np.float64, np.float32):
        kept = [record._replace(objective=record.objective.astype(dtype)) for record in records]
        assert count_unimproved(kept, has_validation=validation is not None) == expected
