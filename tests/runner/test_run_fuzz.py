"""Any bytes as a config, an override or a file of a run give one line and status 2, or the right result."""

import contextlib
import importlib
import io
import json
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fixntk.cli import main
from fixntk.runner import folder, rows
from fixntk.runner import run as runs
from fixntk.runner.config import ConfigError

ROOT = Path(__file__).parent.parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
EXPERIMENTS = ("uci", "toy", "tabular", "teacher_student", "paper", "consistency")
FIELDS = sorted(
    {name for name in EXPERIMENTS for name in importlib.import_module(f"experiments.{name}").Config.model_fields}
)

# Seconds of processor time within which a config is refused or taken.
MAX_SECONDS = 1.0

FRAGMENTS = [
    *("experiment: ", "uci", "toy", "seeds: ", "tables: ", "iris", "null", "yes", "a.b.c", "é", "\U0001f600"),
    *("\n", "  ", "[", "]", "{", "}", ": ", ", ", "- ", "? ", "|\n", ">-\n", "'", '"', "#", "\t", "~", "=", "<<"),
    *(
        "&a ",
        "*a",
        "<<: ",
        "! ",
        "!x ",
        "!!int ",
        "!!float ",
        "!!bool ",
        "!!set ",
        "!!binary ",
        "!!python/name:os.system ",
    ),
    *(
        "\\",
        "\\ud800",
        "\\x00",
        "\0",
        "\ufeff",
        "\u2028",
        "\x85",
        "%YAML 1.2\n",
        "---\n",
        "...\n",
        "[" * 200,
        "a: " * 50,
    ),
    *("0x", "0b_", "1_0", "1:30", "1e999", ".nan", "-.inf", "9" * 50, "9" * 5000, "2021-02-30", "2021-12-31T99:99:99Z"),
]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["iris", "wine", "a.csv", 10**9]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=8,
)
# Text that looks like YAML; mappings with the keys of an experiment; existing configs with a piece replaced; anything.
FRAGMENTED = st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join).map(lambda text: text.encode())
KNOWN_KEYS = st.builds(
    lambda name, values: json.dumps({"experiment": name, **values}).encode(),
    st.sampled_from(EXPERIMENTS),
    st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4),
)
SPLICED = st.builds(
    lambda path, start, length, piece: path.read_bytes()[:start] + piece + path.read_bytes()[start + length :],
    st.sampled_from(CONFIGS),
    st.integers(0, 400),
    st.integers(0, 20),
    st.binary(max_size=8) | FRAGMENTED,
)
CONFIG_BYTES = FRAGMENTED | KNOWN_KEYS | SPLICED | st.binary(max_size=200)
OVERRIDES = st.lists(
    st.builds("{}={}".format, st.sampled_from([*FIELDS, "a.b", "uci.seeds", "solver.tol"]), st.text(max_size=20))
    | st.lists(st.sampled_from(FRAGMENTS), max_size=5).map("".join)
    | st.text(max_size=20),
    max_size=2,
).map(lambda words: [word for word in words if not word.startswith("-")])


def quietly(max_examples):
    # The fixtures are folders that each example writes anew.
    return settings(
        max_examples=max_examples,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def run_command(arguments):
    """The status of the command, what it writes to stderr, and the seconds of processor time that it takes."""
    errors, began = io.StringIO(), time.process_time()
    with contextlib.redirect_stderr(errors):
        status = main(arguments)
    return status, errors.getvalue(), time.process_time() - began


def check_config(path, content, overrides):
    """Run the command with a config up to the first task; it says what is wrong in one line, or nothing is wrong."""
    path.write_bytes(content)
    arguments = ["run", str(path), *overrides]
    status, errors, seconds = run_command(arguments)
    # A garbage collection between thousands of examples can take a second itself.
    assert min(seconds, run_command(arguments)[2] if seconds > MAX_SECONDS else seconds) < MAX_SECONDS
    if status == 2:
        (line,) = errors.split("\n")[:-1]
        assert line.startswith("fixntk: error: ")
        assert line.isprintable()
        assert len(line) < 5000
    else:
        assert status == runs.INTERRUPTED


@pytest.fixture
def config_path(tmp_path, monkeypatch):
    """The path of a config, whose run ends before its first task."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(runs, "execute", lambda experiment, config, *_, **__: runs._tasks(experiment, config) and 130)
    (tmp_path / "configs").mkdir()
    return tmp_path / "configs" / "fuzz.yaml"


@quietly(300)
@given(content=CONFIG_BYTES, overrides=OVERRIDES)
def test_any_config_is_taken_or_refused_in_one_line(config_path, content, overrides):
    check_config(config_path, content, overrides)


@pytest.mark.long
@quietly(10_000)
@given(content=CONFIG_BYTES, overrides=OVERRIDES)
def test_many_configs_are_taken_or_refused_in_one_line(config_path, content, overrides):
    check_config(config_path, content, overrides)


TASKS = [{"table": table, "seed": seed} for table in ("iris", "wine") for seed in (0, 1)]
WRITTEN = [[{**task, "method": method, "score": 0.5} for method in ("a", "b")] for task in TASKS]
WHOLE = b"".join(map(rows.encode_task, TASKS, WRITTEN))
LINES = WHOLE.splitlines(keepends=True)
DESCRIPTION = {"experiment": "toy"}

RESULTS_BYTES = (
    st.binary(max_size=100)
    # Lines of the file in any order and number.
    | st.lists(st.sampled_from(LINES), max_size=16).map(b"".join)
    # A piece replaced; a bit changed.
    | st.builds(
        lambda start, length, piece: WHOLE[:start] + piece + WHOLE[start + length :],
        st.integers(0, len(WHOLE)),
        st.integers(0, 100) | st.just(len(WHOLE)),
        st.binary(max_size=8) | st.sampled_from(LINES) | st.just(b""),
    )
    | st.builds(
        lambda position, bit: WHOLE[:position] + bytes([WHOLE[position] ^ 1 << bit]) + WHOLE[position + 1 :],
        st.integers(0, len(WHOLE) - 1),
        st.integers(0, 7),
    )
)


def check_results(directory, content):
    """Resume with these results, after a repair if the error asks for it: in the end every row is there once."""
    path = directory / rows.RESULTS
    path.write_bytes(content)
    (directory / "config.json").write_text(json.dumps(DESCRIPTION))
    try:
        kept = rows.read_rows(directory)
    except ConfigError:
        folder.repair(directory)
        kept = rows.read_rows(directory)
    assert all(row in kept for block in rows.find_blocks(content.split(b"\n")[:-1]) for row in block.rows)
    # Only rows with the right checksum are kept, which random bytes do not have.
    assert all(
        of_task in ([], written) for of_task, written in zip(rows.rows_by_task(TASKS, kept), WRITTEN, strict=True)
    )
    try:
        blocks, _ = folder.prepare(directory, DESCRIPTION, TASKS, resume=True)
    except ConfigError:
        # Rows of several tasks without closing lines, which are not touched unless the repair is asked for.
        assert rows.read_rows(directory) == kept
        folder.repair(directory)
        blocks, _ = folder.prepare(directory, DESCRIPTION, TASKS, resume=True)
    finished = [block.task for block in blocks]
    with path.open("ab", buffering=0) as file:
        for task, written in zip(TASKS, WRITTEN, strict=True):
            if task not in finished:
                rows.append_task(file, task, written)
    assert rows.rows_by_task(TASKS, rows.read_rows(directory)) == WRITTEN


@quietly(300)
@given(content=RESULTS_BYTES)
def test_a_run_with_any_results_ends_with_every_row_once(tmp_path, content):
    check_results(tmp_path, content)


@pytest.mark.long
@quietly(10_000)
@given(content=RESULTS_BYTES)
def test_runs_with_many_results_end_with_every_row_once(tmp_path, content):
    check_results(tmp_path, content)


@quietly(300)
@given(content=st.binary(max_size=100) | VALUES.map(json.dumps).map(str.encode))
def test_any_environment_is_read(tmp_path, content):
    (tmp_path / "environment.json").write_bytes(content)
    found = folder.read_environment(tmp_path)
    assert isinstance(found, dict)
    assert all(isinstance(part, dict) for part in found.get("earlier", []))
