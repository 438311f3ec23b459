import io
import json

import jax.numpy as jnp
import numpy as np
import pytest

from fixntk.runner import rows
from fixntk.runner.config import ConfigError


def test_to_json_converts_arrays_and_drops_what_json_cannot_say():
    value = {1: jnp.float32(2), "a": (np.bool_(True), {3}), "b": jnp.array([1.0, jnp.nan]), "c": -np.inf, "d": "x"}
    assert rows.to_json(value) == {"1": 2.0, "a": [True, [3]], "b": [1.0, None], "c": None, "d": "x"}


def test_tasks_may_differ_in_their_keys():
    tasks = [{"part": "a", "n": 1}, {"part": "a", "n": 2}, {"part": "b"}]
    given = [{"part": "b", "n": 7}, {"part": "a", "n": 2}, {"part": "a", "n": 2, "x": 0}, {"part": "c"}]
    assert rows.rows_by_task(tasks, given) == [[], given[1:3], given[:1]]


def test_a_line_that_is_not_json_is_named(tmp_path):
    (tmp_path / "results.jsonl").write_text("{}\nnonsense\n{}\n")
    with pytest.raises(ConfigError, match=r"results\.jsonl, line 2: is not a JSON object"):
        rows.read_rows(tmp_path)


def test_rows_are_written_whole_where_the_system_takes_a_part(tmp_path):
    written = [{"a": 1, "b": "é"}, {"a": 2}]
    with (tmp_path / "results.jsonl").open("ab", buffering=0) as file:

        class Slow(io.RawIOBase):
            def write(self, data):
                return file.write(data[:5])

            def fileno(self):
                return file.fileno()

        rows.append_rows(Slow(), written)
    assert rows.read_rows(tmp_path) == written


def test_a_json_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "summary.json"
    rows.write_json(path, {"a": [1, None]})
    with pytest.raises(ValueError, match="JSON"):
        rows.write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == rows.read_json(path) == {"a": [1, None]}
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]
