import io
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixntk.runner import rows
from fixntk.runner.config import ConfigError

TASKS = [{"table": table, "seed": seed} for table in ("iris", "wine") for seed in (0, 1)]
WRITTEN = [[{**task, "method": method, "é": 0.5} for method in ("a", "b")] for task in TASKS]

# What a row may hold; floats of any kind.
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def whole_file():
    return b"".join(map(rows.encode_task, TASKS, WRITTEN))


def tasks_of(path):
    return [block.task for block in rows.read_results(path).finished]


def test_to_json_converts_arrays_and_keeps_what_is_not_finite():
    value = {1: jnp.float32(2), "a": (np.bool_(True), {3}), "b": jnp.array([1.0, jnp.inf]), "c": -np.inf, "d": "x"}
    plain = {"1": 2.0, "a": [True, [3]], "b": [1.0, math.inf], "c": -math.inf, "d": "x"}
    assert rows.to_json(value) == plain
    assert math.isnan(rows.to_json(np.float32("nan")))
    # Half of a character, as a name of a file may hold.
    assert rows.to_json({"e": "\ud800é"}) == {"e": "\\ud800é"}
    assert rows.replace_non_finite(plain) == plain | {"b": [1.0, None], "c": None}


@given(st.lists(st.dictionaries(st.text(), PLAIN, max_size=4), min_size=1, max_size=4))
def test_rows_come_back_as_they_were_written(tmp_path_factory, written):
    folder = tmp_path_factory.mktemp("run")
    (folder / rows.RESULTS).write_bytes(rows.encode_task({"table": "\n"}, written))
    # As text, since NaN is not equal to itself.
    assert repr(rows.read_rows(folder)) == repr(written)


def test_tasks_may_differ_in_their_keys():
    tasks = [{"part": "a", "n": 1}, {"part": "a", "n": 2}, {"part": "b"}]
    given = [{"part": "b", "n": 7}, {"part": "a", "n": 2}, {"part": "a", "n": 2, "x": 0}, {"part": "c"}]
    assert rows.rows_by_task(tasks, given) == [[], given[1:3], given[:1]]


def test_wherever_the_file_ends_the_tasks_with_a_closing_line_are_finished(tmp_path):
    path, whole = tmp_path / rows.RESULTS, whole_file()
    ends = [len(b"".join(map(rows.encode_task, TASKS[:k], WRITTEN[:k]))) for k in range(1, 5)]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        assert tasks_of(path) == TASKS[: sum(end <= size for end in ends)], size
    assert [json.loads(line) for line in whole.splitlines()[:2]] == WRITTEN[0]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda lines: [*lines[:4], b"nonsense", *lines[4:]], "line 5: is not a JSON object"),
        (lambda lines: [b"[1]", *lines], "line 1: is not a JSON object"),
        (lambda lines: [*lines, b"\0\0"], "line 13: is not a JSON object"),
        (lambda lines: [lines[0], *lines[2:]], "line 2: the rows before it are not those"),
        (lambda lines: [lines[0].replace(b"0.5", b"0.6"), *lines[1:]], "line 3: the rows before it are not those"),
        (lambda lines: [*lines[:2], lines[2].replace(b"iris", b"wine"), *lines[3:]], "line 3: the rows before it"),
        (lambda lines: [*lines[:2], *lines[3:]], "line 1: belongs to no finished task"),
        (lambda lines: [*lines[:-1], lines[-1].replace(b": 2", b": 1")], "line 12: the rows before it are not those"),
        (lambda lines: [*lines[:-1], lines[-1].replace(b"crc32", b"crc2")], "line 12: the rows before it are not"),
        (
            lambda lines: [*lines[:-1], lines[-1].replace(b"finished", b"finshed")],
            "line 12: the rows before it are not",
        ),
        (lambda lines: [b'{"table": "\\uD800"}', *lines], "line 1: is not a JSON object"),
    ],
)
def test_damage_is_reported_with_its_line_and_the_remedy(tmp_path, change, expected):
    lines = change(whole_file().splitlines())
    (tmp_path / rows.RESULTS).write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(ConfigError) as error:
        rows.read_rows(tmp_path)
    assert expected in str(error.value)
    assert str(error.value).endswith(f"`fixntk report --repair {tmp_path}` keeps the tasks that are whole")
    # All but one of the tasks are whole, or all of them.
    kept = [block.task for block in rows.find_blocks(lines)]
    assert len(kept) >= 3
    assert kept == [task for task in TASKS if task in kept]


def test_a_task_that_is_there_twice_counts_once(tmp_path):
    (tmp_path / rows.RESULTS).write_bytes(whole_file() + rows.encode_task(TASKS[1], [{"second": True}]))
    assert tasks_of(tmp_path / rows.RESULTS) == TASKS
    assert rows.read_rows(tmp_path) == [row for of_task in WRITTEN for row in of_task]


class Slow(io.RawIOBase):
    """Takes five bytes at a time, until ``room`` bytes are full."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        if self.room <= 0:
            raise OSError(28, "No space left on device")
        self.room -= 5
        return self.file.write(data[:5])

    def fileno(self):
        return self.file.fileno()


def test_a_task_is_written_whole_or_not_at_all(tmp_path):
    with (tmp_path / rows.RESULTS).open("ab", buffering=0) as file:
        rows.append_task(Slow(file, 10**6), TASKS[0], WRITTEN[0])
        with pytest.raises(OSError, match="No space"):
            rows.append_task(Slow(file, 100), TASKS[1], WRITTEN[1])
        rows.append_task(file, TASKS[2], WRITTEN[2])
    assert rows.read_lines(tmp_path / rows.RESULTS)[0] == [
        line for k in (0, 2) for line in rows.encode_task(TASKS[k], WRITTEN[k]).splitlines()
    ]


def test_a_json_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "summary.json"
    rows.write_json(path, {"a": [1, None]})
    with pytest.raises(TypeError, match="JSON"):
        rows.write_json(path, {"a": 1j})
    assert json.loads(path.read_text()) == rows.read_json(path) == {"a": [1, None]}
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]
