"""The progress of a run: a line a minute or a bar, with the task, its stage and an estimate that does not jump."""

import re
import time

import numpy as np
import pytest

from fixntk.runner import status

pytest_plugins = ("toy_experiment",)

TASKS = [{"table": "iris", "seed": 3}, {"table": "wine", "seed": 4}]


def test_without_a_terminal_there_is_one_line_at_the_end_of_a_short_run(project, capsys):
    project.execute([f"seeds={list(range(20))}"])
    lines = [line for line in capsys.readouterr().err.splitlines() if " of 40 tasks" in line]
    assert len(lines) == 1
    assert lines[0].startswith("fixntk: 40 of 40 tasks")


def test_without_a_terminal_a_line_at_intervals_names_task_stage_and_time_left(capsys, monkeypatch):
    monkeypatch.setattr(status, "_SECONDS_BETWEEN_LINES", 0.05)
    tracked = status.track_progress(TASKS, 5)
    next(tracked)
    status.show_stage("the NTK")
    time.sleep(0.3)
    assert "fixntk: 3 of 5 tasks, 0 s, now iris 3: the NTK, 0 s" in capsys.readouterr().err.splitlines()
    # The stage ends with the task, and there is an estimate from the first task.
    next(tracked)
    time.sleep(0.3)
    assert re.search(r"4 of 5 tasks, \d s, now wine 4, 0 s, about 00:0\d left", capsys.readouterr().err)
    tracked.close()
    status.show_stage("nothing is run")
    assert capsys.readouterr().err == "fixntk: 4 of 5 tasks, 1 s\n"


def test_on_a_terminal_a_bar_follows_the_stages_of_a_task(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr(status, "_SECONDS_BETWEEN_LOOKS", 0.05)
    tracked = status.track_progress(TASKS, 2)
    next(tracked)
    status.show_stage("the optimum")
    time.sleep(0.3)
    list(tracked)
    shown = capsys.readouterr().err
    assert "iris 3: the optimum, 0 s" in shown
    assert "wine 4" in shown
    assert "2/2" in shown


def test_tasks_of_a_run_show_their_stages_and_none_is_shown_outside(project, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    project.execute()
    shown = capsys.readouterr().err
    assert "4/4" in shown
    assert "wine 1" in shown
    status.show_stage("nothing is run")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("last", [2.0, 30.0])
def test_the_estimate_follows_the_clock_and_does_not_jump_where_a_slow_task_ends(last):
    assert status.seconds_left(0.0, 0, 5.0, 3) is None
    # Five tasks of ten seconds each, and four more.
    found = [status.seconds_left(50.0, 5, second, 4) for second in np.linspace(0, last, 200)]
    assert found[0] == pytest.approx(40.0)
    # It falls with the clock until the mean is over, and then rises slowly.
    assert status.seconds_left(50.0, 5, 2.0, 4) == pytest.approx(38.0)
    assert np.max(np.abs(np.diff(found))) <= 1.01 * last / 199
    after = status.seconds_left(50.0 + last, 6, 0.0, 3)
    assert after == pytest.approx(found[-1]) if last > 10 else after <= found[-1]


def test_equal_tasks_have_an_exact_estimate():
    for done in range(1, 6):
        for in_task in (0.0, 1.0, 3.0):
            assert status.seconds_left(3.0 * done, done, in_task, 6 - done) == pytest.approx(3.0 * (6 - done) - in_task)
