"""What a run shows while it works: how many tasks are done, what the present one is doing, and the time left."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Generator
from contextvars import ContextVar

from tqdm import tqdm

from fixntk._compilation import call_every, describe_compiling, seconds_in_compiler
from fixntk.runner.config import Row

# Seconds between two updates of a bar.
_SECONDS_BETWEEN_LOOKS = 1.0
# Seconds between two lines of progress, which stand for the bar where there is no terminal.
_SECONDS_BETWEEN_LINES = 60.0
# Without tqdm's estimate, which rises for as long as a task takes and falls when it is done.
_BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"

_show: ContextVar[Callable[[str], None]] = ContextVar("_show", default=lambda _: None)


def show_stage(stage: str) -> None:
    """Say what a task is doing from now on, in the progress of the run; in another process nothing is shown.

    Parameters
    ----------
    stage
        A few words, such as the method that is fitted.
    """
    _show.get()(stage)


def seconds_left(elapsed: float, num_done: int, in_task: float, num_left: int) -> float | None:
    """Estimate of the seconds that are left, from the mean of the tasks so far; None before the first is done.

    A task that takes longer than the mean raises the mean while it runs, so that nothing jumps when it is done.

    Parameters
    ----------
    elapsed, num_done
        Seconds of the tasks that are done, and their number.
    in_task
        Seconds since the last of them was done.
    num_left
        Number of the others, the present one included.
    """
    if num_done == 0:
        return None
    mean = elapsed / num_done
    expected = (elapsed + max(mean, in_task)) / (num_done + 1)
    return expected * (num_left - 1) + max(mean - in_task, 0.0)


class _Status:
    """Where a run is: the present task, its stage, and seconds."""

    def __init__(self, num_pending: int, total: int) -> None:
        self.total, self.finished_before, self.num_pending = total, total - num_pending, num_pending
        self.num_done, self.label, self.stage = 0, "", ""
        self.began = self.last_done = time.monotonic()
        self.compiling = seconds_in_compiler()

    def start_task(self, label: str) -> None:
        self.label, self.stage = label, ""

    def set_stage(self, stage: str) -> None:
        self.stage = stage

    def finish_task(self) -> None:
        self.num_done, self.last_done = self.num_done + 1, time.monotonic()

    def describe_done(self) -> str:
        return f"{self.finished_before + self.num_done} of {self.total} tasks, {time.monotonic() - self.began:.0f} s"

    def describe_now(self) -> str:
        """The task, its stage and its seconds, whether it compiles, and the estimate."""
        in_task = time.monotonic() - self.last_done
        words = [": ".join(filter(None, [self.label, self.stage])), f"{in_task:.0f} s"]
        words += filter(None, [describe_compiling(self.compiling())])
        left = seconds_left(self.last_done - self.began, self.num_done, in_task, self.num_pending - self.num_done)
        if left is not None:
            words.append(f"about {tqdm.format_interval(round(left))} left")
        return ", ".join(words)


def track_progress(pending: list[Row], total: int) -> Generator[Row, None, None]:
    """Yield the tasks, with the progress on stderr: a bar on a terminal, else a line each minute and at the end."""
    status = _Status(len(pending), total)
    token = _show.set(status.set_stage)
    try:
        yield from (_as_bar if sys.stderr.isatty() else _as_lines)(pending, status)
    finally:
        _show.reset(token)


def _as_bar(pending: list[Row], status: _Status) -> Generator[Row, None, None]:
    first, total = status.finished_before, status.total
    with tqdm(initial=first, total=total, unit="task", file=sys.stderr, bar_format=_BAR_FORMAT) as bar:

        def look() -> None:
            bar.set_postfix_str(status.describe_now())

        with call_every(_SECONDS_BETWEEN_LOOKS, look):
            for task in pending:
                status.start_task(label_of(task))
                look()
                yield task
                status.finish_task()
                bar.set_postfix_str("", refresh=False)
                bar.update()


def _as_lines(pending: list[Row], status: _Status) -> Generator[Row, None, None]:
    try:
        with call_every(_SECONDS_BETWEEN_LINES, lambda: say(f"{status.describe_done()}, now {status.describe_now()}")):
            for task in pending:
                status.start_task(label_of(task))
                yield task
                status.finish_task()
    finally:
        if status.num_done:
            say(status.describe_done())


def label_of(task: Row) -> str:
    """A task in a few words: its values."""
    return " ".join(map(str, task.values()))


def say(message: str) -> None:
    """Print a message on stderr; a run goes on where it cannot be written."""
    with contextlib.suppress(OSError):
        print(f"fixntk: {message}", file=sys.stderr, flush=True)
