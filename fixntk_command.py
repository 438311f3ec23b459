"""Where the command ``fixntk`` starts: signals end it without a traceback from here on.

This module is not in the package, because importing any module of the package imports JAX, which takes seconds.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

# Exit status where the installation does not let the command start.
_CANNOT_START = 2
# Exit status of a process that a signal ends, less the signal's number, as in shells.
_SIGNAL_STATUS = 128
# Seconds after which an interrupt that was dropped is sent again.
_SECONDS_UNTIL_AGAIN = 0.05


def main() -> NoReturn:
    """Run the command in a process of its own, and end the process."""
    sys.unraisablehook = _send_interrupt_again
    with exit_on_signals():
        try:
            from fixntk.cli import entry
        except ImportError as error:
            # A package that is missing, or too old: the message has all that a user needs.
            sys.exit(_complain(f"error: {error}"))
    entry()


@contextlib.contextmanager
def exit_on_signals() -> Iterator[None]:
    """While the context is open, SIGINT and SIGTERM end the process at once, with status 130 and 143.

    For imports: an exception in the middle of one may be lost in the module that is imported, or become another one.
    """
    # Python allows signal handlers to be set in the main thread only. A signal that is ignored stays so.
    is_main = threading.current_thread() is threading.main_thread()
    earlier = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM) if is_main}
    taken = {number: handler for number, handler in earlier.items() if handler not in (signal.SIG_IGN, None)}
    for number in taken:
        signal.signal(number, _exit)
    try:
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)


def _send_interrupt_again(dropped: sys.UnraisableHookArgs) -> None:
    """Send an interrupt again that came where Python drops exceptions: in JAX's garbage collection, in a destructor."""
    if issubclass(dropped.exc_type, KeyboardInterrupt):
        again = threading.Timer(_SECONDS_UNTIL_AGAIN, _thread.interrupt_main)
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(dropped)


def _complain(message: str) -> int:
    """Write a line to standard error, and return the exit status for it."""
    print(f"fixntk: {message}", file=sys.stderr)
    return _CANNOT_START


def _exit(number: int, _: FrameType | None) -> NoReturn:
    word = b"interrupted" if number == signal.SIGINT else b"terminated"
    os.write(2, b"fixntk: " + word + b"\n")
    os._exit(_SIGNAL_STATUS + number)


if __name__ == "__main__":
    main()
