"""A real run that is killed again and again ends with the results of one that is not."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fixntk.runner import rows

ROOT = Path(__file__).parent.parent.parent
NUM_KILLS = 50
# Seconds until Python has started and handles signals.
MIN_SECONDS = 0.5
SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]


class Runs:
    """Runs of configs/quickstart.yaml in folders of their own, which share a compilation cache."""

    def __init__(self, folder):
        self.folder = folder
        cache = {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self.environment = {**cache, **os.environ}

    def run(self, name, *, kill_after=None, kill_with=signal.SIGKILL):
        """Run or resume, until the end or until a signal; return the status."""
        command = [sys.executable, "-m", "fixntk_command", "run", "configs/quickstart.yaml", "--resume", "--out"]
        process = subprocess.Popen(
            [*command, str(self.folder / name)], cwd=ROOT, env=self.environment, stderr=subprocess.PIPE, text=True
        )
        try:
            errors = process.communicate(timeout=kill_after)[1]
        except subprocess.TimeoutExpired:
            process.send_signal(kill_with)
            errors = process.communicate()[1]
        assert "Traceback" not in errors, errors
        return process.returncode

    def results(self, name):
        """The finished tasks and their rows, without the times."""
        finished = rows.read_results(self.folder / name / rows.RESULTS).finished
        return [
            (block.task, [{key: value for key, value in row.items() if key != "seconds"} for row in block.rows])
            for block in finished
        ]


@pytest.mark.long
def test_a_run_that_is_killed_at_random_moments_loses_and_repeats_nothing(tmp_path):
    runs = Runs(tmp_path)
    # The first run fills the compilation cache; the second one shows how long a run then takes.
    assert runs.run("first") == 0
    began = time.monotonic()
    assert runs.run("whole") == 0
    seconds = time.monotonic() - began
    whole = runs.results("whole")
    assert runs.results("first") == whole
    randomness = random.Random(0)
    killed = 0
    finished = []
    for k in range(NUM_KILLS):
        status = runs.run(
            f"killed{killed}",
            kill_after=randomness.uniform(MIN_SECONDS, seconds),
            kill_with=randomness.choice(SIGNALS),
        )
        before, finished = finished, runs.results(f"killed{killed}")
        # What was finished stays, and is never there twice.
        assert finished[: len(before)] == before, k
        assert finished == whole[: len(finished)], k
        if status == 0:
            # The next signals meet a new run.
            assert finished == whole
            killed, finished = killed + 1, []
    assert runs.run(f"killed{killed}") == 0
    assert runs.results(f"killed{killed}") == whole
    assert not list(tmp_path.rglob(f"killed{killed}/**/*.part"))
