"""The answer for a user's own table: which kernel to use, the gain to expect on fresh rows, and what it costs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.data.own_tables import is_path
from experiments.shared.statistics import LEAST_VALUES, interval_text, mean
from fixntk.runner.report import Section
from fixntk.tables.names import count


def answer_section(rows: list[dict[str, Any]]) -> Section | None:
    """An answer for each of the user's own tables among rows of the uci experiment; None if there is none.

    What to expect is judged on rows held out of the training parts alone, and then compared with the test parts. Rows
    of runs that did not record these errors have no answer.
    """
    found = _answers(rows)
    texts = [
        f"`{table.replace('`', chr(39))}`: **{answer.use}.** {answer.gain} {answer.more}"
        for table, answer in found.items()
    ]
    return Section("Which kernel to use", "\n\n".join(texts)) if texts else None


def answer_headline(rows: list[dict[str, Any]]) -> str | None:
    """The answers in a line for each table, where all tables are the user's own and have one; otherwise None."""
    found = _answers(rows)
    if any(str(row["table"]) not in found for row in rows):
        return None
    return "\n".join(f"{table}: {answer.use}. {answer.gain}{answer.hint}" for table, answer in found.items())


class _Answer(NamedTuple):
    """What to use for one table: the gain to expect from fixing, what else there is to say, and what to do."""

    use: str
    gain: str
    more: str
    hint: str = ""


def _answers(rows: list[dict[str, Any]]) -> dict[str, _Answer]:
    """The answer for each of the user's own tables."""
    frame = pd.DataFrame([row for row in rows if is_path(row["table"])])
    if frame.empty or "held_out_error" not in frame:
        return {}
    return {str(table): _answer(of_table) for table, of_table in frame.groupby("table", sort=False)}


def _answer(rows: pd.DataFrame) -> _Answer:
    errors, accuracy, seconds = (
        rows.pivot(index="seed", columns="method", values=name) for name in ("held_out_error", "accuracy", "seconds")
    )
    change = mean(errors["fixed"] / errors["ntk"] - 1)
    tested = mean(accuracy["fixed"] - accuracy["ntk"])
    if not (has_interval := len(errors) >= LEAST_VALUES):
        change, tested = ({**each, "low": np.nan, "high": np.nan} for each in (change, tested))
    gain = (
        "On rows held out of the training parts the fixed kernel's squared error differs from the NTK's by "
        f"{interval_text(change['mean'], change, '+.1%')} (less is better); on the test parts, which had no part in "
        f"that, its accuracy differs by {interval_text(tested['mean'], tested, '+.1%')} (more is better)."
    )
    sharing = ", which share rows" if len(errors) > 1 else ""
    more = (
        f"These are means over {count(len(errors), 'split')}{sharing}. A fit takes {seconds['fixed'].median():.2g} s, "
        f"the NTK's {seconds['ntk'].median():.2g} s."
    )
    if not has_interval:
        hint = f" `seeds={LEAST_VALUES}` makes enough."
        return _Answer("too few splits to tell", gain, more + hint, hint)
    if change["high"] < 0:
        return _Answer("use the fixed kernel", gain, more)
    if change["low"] > 0:
        return _Answer("use the NTK", gain, f"{more} Fixing does harm here.")
    return _Answer("use the NTK", gain, f"{more} That is no clear gain, and the NTK is the simpler of the two.")
