"""Errors of the command line that name the nearest of what there is."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

# How argparse complains about a word that it does not know: the word, alone or before "=".
_UNKNOWN = re.compile(r"invalid choice: '([^']*)'|unrecognized arguments: ([^\s=]+)")
# How it complains where a misspelt option stands for one that is required.
_REQUIRED = "the following arguments are required"


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of some names that is most like another; None where none is like it."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return close[0] if close else None


class Parser(argparse.ArgumentParser):
    """A parser of arguments whose errors name the command, choice or option that may be meant."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._words: list[str] = []
        self._commands: Any = None
        self._given: list[str] = []
        super().__init__(*arguments, **options)

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """As argparse does; options and choices are remembered."""
        self._words += [*(name for name in names if name.startswith("-")), *map(str, options.get("choices", ()))]
        return super().add_argument(*names, **options)

    def add_subparsers(self, **options: Any) -> Any:
        """As argparse does; the commands are remembered."""
        self._commands = super().add_subparsers(**options)
        return self._commands

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse does; the arguments are remembered."""
        self._given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def refuse(self, command: str, words: Iterable[str]) -> NoReturn:
        """End the process because of words that a command does not know."""
        self._commands.choices[command].error(f"unrecognized arguments: {' '.join(words)}")
        raise AssertionError("error does not return")

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, with a suggestion, and exit with status 2."""
        found = _UNKNOWN.search(message)
        words = [*self._words, *(self._commands.choices if self._commands else ())]
        unknown = [found[1] or found[2]] if found else []
        if message.startswith(_REQUIRED):
            options = [word.partition("=")[0] for word in self._given if word.startswith("--")]
            unknown = [option for option in options if option not in words]
        close = next(filter(None, (nearest(word, words) for word in unknown)), None)
        super().error(f"{message}; did you mean {close}?" if close else message)
