"""The folder of a run: one process at a time, repairs that keep what is whole, what is kept of earlier parts."""

import json
import os
import subprocess
import sys
import time

import pytest

from fixntk.runner import run as runs
from fixntk.runner.config import ConfigError
from fixntk.runner.folder import lock, prepare, record_environment, refuse_os_errors, repair
from fixntk.runner.rows import encode_task, read_json, read_results

pytest_plugins = ("toy_experiment",)

DESCRIPTION = {"experiment": "toy", "solver": {"tol": 0.1}}
TASKS = [{"seed": seed} for seed in range(4)]


def results_of(*tasks):
    return b"".join(encode_task(task, [{**task, "score": 1.0}]) for task in tasks)


def test_results_are_not_overwritten_without_resume(project):
    project.execute()
    before = project.results.read_bytes()
    with pytest.raises(ConfigError, match=r"runs/toy already has results: pass --resume .*--out"):
        project.execute()
    assert project.results.read_bytes() == before


def test_results_of_an_earlier_fixntk_are_refused_and_stay(project):
    project.execute()
    lines = [line for line in project.results.read_text().splitlines(keepends=True) if "finished" not in line]
    project.results.write_text("".join(lines))
    with pytest.raises(ConfigError, match="does not say which of its last tasks are finished, as an earlier"):
        project.execute(resume=True)
    with pytest.raises(ConfigError, match="no results yet: no task is finished"):
        runs.regenerate(project.out)
    assert project.results.read_text() == "".join(lines)


def test_repair_keeps_the_tasks_that_are_whole_and_resume_does_the_rest(project):
    project.execute()
    project.calls()
    whole = project.results.read_bytes()
    damaged = whole.replace(b'"wine", "seed": 0, "method": "plain"', b'"wine", "seed": 0, "method": "pl\0in"')
    project.results.write_bytes(damaged)
    for attempt in (lambda: project.execute(resume=True), lambda: runs.regenerate(project.out)):
        with pytest.raises(ConfigError, match=r"results.jsonl, line 7: is not a JSON object; `fixntk report --repair"):
            attempt()
    assert "kept 3 tasks and dropped 3 other lines" in runs.repair(project.out)
    assert (project.out / "results.damaged.jsonl").read_bytes() == damaged
    # A second copy does not replace the first.
    project.results.write_bytes(project.results.read_bytes() + b"more\n")
    assert f"all lines are in {project.out / 'results.damaged-2.jsonl'}" in runs.repair(project.out)
    assert (project.out / "results.damaged.jsonl").read_bytes() == damaged
    runs.regenerate(project.out)
    assert project.execute(resume=True) == 0
    assert project.called() == [("wine", 0)]
    assert sorted(project.results.read_bytes().splitlines()) == sorted(whole.splitlines())
    assert runs.repair(project.out).startswith("nothing to repair")


def test_lines_that_end_as_on_windows_are_read(project):
    project.execute()
    rows = runs.read_rows(project.out)
    project.results.write_bytes(project.results.read_bytes().replace(b"\n", b"\r\n"))
    assert runs.read_rows(project.out) == rows


def test_two_runs_do_not_share_a_folder(project):
    project.control(sleep="iris")
    first = subprocess.Popen([sys.executable, "-m", "fixntk.cli", "run", "configs/toy.yaml"], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (project.root / "calls.jsonl").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        expected = rf"runs/toy is in use by process {first.pid} on \S* since 20[-0-9]* [:+0-9]*: wait until it ends"
        for attempt in (lambda: project.execute(resume=True), lambda: runs.repair(project.out)):
            with pytest.raises(ConfigError, match=expected):
                attempt()
    finally:
        first.kill()
        first.wait()
    # The lock has gone with its process, which had no time to remove it.
    project.control()
    assert project.execute(resume=True) == 0
    assert len(runs.read_rows(project.out)) == 8


def test_what_a_killed_process_left_half_written_is_removed(project):
    (project.out / "figures").mkdir(parents=True)
    for name in ("report.html.00ff00ff.part", "figures/scores.png.00ff00ff.part"):
        (project.out / name).write_text("half")
    assert project.execute() == 0
    assert not list(project.out.rglob("*.part"))


def test_resume_with_another_config_names_the_keys_and_both_values(project):
    project.execute()
    expected = r"config\.json is of another config.*: seeds was \[0, 1\], now \[0\]; solver\.tol was 0\.001, now 0\.1$"
    with pytest.raises(ConfigError, match=expected):
        project.execute(["seeds=[0]", "solver.tol=0.1"], resume=True)


def test_resume_elsewhere_keeps_what_the_earlier_part_was_computed_with(project):
    project.control(broken={"iris": "too few rows"})
    project.execute()
    project.control()
    path = project.out / "environment.json"
    first = json.loads(path.read_text()) | {"jax": "0.0.1"}
    path.write_text(json.dumps(first))
    project.execute(resume=True)
    assert json.loads(path.read_text())["earlier"] == [first]
    assert "0.0.1" in (project.out / "report.html").read_text()


def test_the_lock_is_held_once_and_ends_with_its_block_however_that_ends(tmp_path):
    folder = tmp_path / "runs" / "toy"
    for error in (None, KeyError):
        try:
            with lock(folder):
                assert read_json(folder / ".lock.json")["pid"] == os.getpid()
                with pytest.raises(ConfigError, match=f"is in use by process {os.getpid()} on"), lock(folder):
                    pass
                # The one that was refused has not let go of the other's.
                assert (folder / ".lock.json").exists()
                if error:
                    raise error
        except KeyError:
            pass
        assert {path.name for path in folder.iterdir()} <= {".lock"}


def test_a_holder_that_has_not_written_who_it_is_is_another_process(tmp_path):
    with lock(tmp_path):
        for content in ("", "{}", "[]"):
            (tmp_path / ".lock.json").write_text(content)
            with pytest.raises(ConfigError, match="in use by another process"), lock(tmp_path):
                pass


def test_what_the_system_refuses_is_one_line_with_the_file_that_says_if_results_are_kept(tmp_path):
    def attempt():
        with refuse_os_errors(tmp_path):
            (tmp_path / "none" / "file").read_text()

    with pytest.raises(ConfigError, match=r"none/file: No such file or directory$"):
        attempt()
    (tmp_path / "results.jsonl").touch()
    with pytest.raises(ConfigError, match=r"No such file or directory$"):
        attempt()
    (tmp_path / "results.jsonl").write_text("{}")
    with pytest.raises(ConfigError, match="; what is finished is kept, and the same command with --resume"):
        attempt()


def test_a_fresh_folder_gets_the_config_and_a_resumed_one_keeps_the_tasks_that_did_not_fail(tmp_path):
    assert prepare(tmp_path, DESCRIPTION, TASKS, resume=False) == ([], False)
    assert read_json(tmp_path / "config.json") == DESCRIPTION
    failed = encode_task(TASKS[1], [{**TASKS[1], "error": "too few rows"}])
    path = tmp_path / "results.jsonl"
    path.write_bytes(results_of(TASKS[0]) + failed + results_of(TASKS[2]))
    kept, was_cut = prepare(tmp_path, DESCRIPTION, TASKS, resume=True)
    assert ([block.task for block in kept], was_cut) == ([TASKS[0], TASKS[2]], False)
    assert path.read_bytes() == results_of(TASKS[0], TASKS[2])
    path.write_bytes(results_of(TASKS[0]) + b'{"seed": 3}\n{"see')
    kept, was_cut = prepare(tmp_path, DESCRIPTION, TASKS, resume=True)
    assert ([block.task for block in kept], was_cut) == ([TASKS[0]], True)
    assert path.read_bytes() == results_of(TASKS[0])
    assert read_results(path).torn == b""


def test_numbers_that_are_not_finite_do_not_make_another_config(tmp_path):
    description = {"reg": float("nan"), "solver": {"tol": float("inf")}}
    prepare(tmp_path, description, TASKS, resume=False)
    (tmp_path / "results.jsonl").write_bytes(results_of(TASKS[0]))
    assert len(prepare(tmp_path, {**description, "reg": float("nan")}, TASKS, resume=True)[0]) == 1
    with pytest.raises(ConfigError, match=r"another config, .*: solver\.tol was inf, now None; solver was None, now 3"):
        prepare(tmp_path, {**description, "solver": 3}, TASKS, resume=True)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ConfigError, match="so that nothing says what the results are of: take another --out"):
        prepare(tmp_path, description, TASKS, resume=True)


def test_earlier_environments_are_kept_in_their_order_where_they_differ(tmp_path):
    path = tmp_path / "environment.json"
    record_environment(tmp_path, None, "first", resumed=False)
    now = read_json(path)
    assert "earlier" not in now
    # Another start and command are no other environment.
    path.write_text(json.dumps({**now, "started": "before", "command": "second"}))
    record_environment(tmp_path, None, "third", resumed=True)
    assert "earlier" not in read_json(path)
    older = [{**now, "jax": version} for version in ("0.0.1", "0.0.2")]
    path.write_text(json.dumps({**older[1], "earlier": older[:1]}))
    record_environment(tmp_path, None, "third", resumed=True)
    assert read_json(path)["earlier"] == older
    record_environment(tmp_path, None, "third", resumed=False)
    assert "earlier" not in read_json(path)


def test_what_is_no_folder_of_a_run_is_not_repaired(tmp_path):
    with pytest.raises(ConfigError, match=r"is not the folder of a run: it has no results\.jsonl"):
        repair(tmp_path)
    assert not list(tmp_path.iterdir())
