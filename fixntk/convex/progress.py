"""Progress: the record that a callback gets, the bar, and the error that an interrupted call raises."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from fixntk._compilation import call_every, describe_compiling, seconds_in_compiler

# The bar is looked after this often, and says so when XLA has been compiling for long.
_SECONDS_BETWEEN_LOOKS = 0.3


class Progress(NamedTuple):
    """What a callback gets after each iteration; plain numbers.

    Attributes
    ----------
    iteration
        0 for the start.
    primal, gap, relative_gap
        Objective and its certificate.
    num_active
        Number of active groups.
    seconds
        Time since the start, compilation and callbacks not included.
    """

    iteration: int
    primal: float
    gap: float
    relative_gap: float
    num_active: int
    seconds: float


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a call with a callback or a progress bar.

    Attributes
    ----------
    result
        The partial result, of the type that the call returns.
    """

    def __init__(self, result: Any) -> None:
        super().__init__(f"interrupted; partial result: {result!r}")
        self.result = result


@contextmanager
def keep_result(reached: Callable[[], Any], *, is_watched: bool) -> Iterator[None]:
    """Raise :class:`Interrupted` on Ctrl-C, with what ``reached`` returns, where a callback or a bar watches the call.

    The plain KeyboardInterrupt where nothing does, or ``reached`` returns None.
    """
    try:
        yield
    except KeyboardInterrupt:
        result = reached() if is_watched else None
        if result is None:
            raise
        raise Interrupted(result) from None


# Shows how many units of work are done, and a line about the last one.
Show = Callable[[int, str], None]


@contextmanager
def progress_bar(title: str, *, total: int | None = None, unit: str = "it", shown: bool = True) -> Iterator[Show]:
    """A tqdm bar, in a notebook a widget, that also says when XLA compiles for more than a second.

    Nothing is shown unless ``shown``.
    """
    if not shown:
        yield lambda *_: None
        return
    bar, last, compiling = tqdm(desc=title, total=total, unit=unit), [""], seconds_in_compiler()

    def look() -> None:
        if text := describe_compiling(compiling()):
            bar.set_postfix_str(", ".join(filter(None, [last[0], text])))

    def show(done: int, line: str) -> None:
        last[0] = line
        bar.set_postfix_str(line, refresh=False)
        bar.update(done - bar.n)

    with bar, call_every(_SECONDS_BETWEEN_LOOKS, look):
        yield show


def announce(line: str, *, shown: bool = True) -> None:
    """Write a line above the bars, on stderr, unless nothing is to be shown."""
    if shown:
        tqdm.write(line, file=sys.stderr)


def describe(relative_gap: float, num_active: int) -> str:
    """The line that a bar shows about an iterate or a solution."""
    return f"relative gap {relative_gap:.1e}, {num_active} active"
