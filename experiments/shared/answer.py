"""The answer for a user's own table: which kernel to use, the gain to expect on fresh rows, and what it costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from experiments.data.own_tables import is_path
from experiments.shared.statistics import LEAST_VALUES, interval_text, mean
from fixntk.runner.report import Section


def answer_section(rows: list[dict[str, Any]]) -> Section | None:
    """An answer for each of the user's own tables among rows of the uci experiment; None if there is none.

    What to expect is judged on rows held out of the training parts alone, and then compared with the test parts. Rows
    of runs that did not record these errors have no answer.
    """
    frame = pd.DataFrame([row for row in rows if is_path(row["table"])])
    if frame.empty or "held_out_error" not in frame:
        return None
    found = {str(table): _answer(of_table) for table, of_table in frame.groupby("table", sort=False)}
    texts = [f"`{table.replace('`', chr(39))}`: **{use}.** {reason}" for table, (use, reason) in found.items()]
    return Section("Which kernel to use", "\n\n".join(texts))


def _answer(rows: pd.DataFrame) -> tuple[str, str]:
    """What to use for one table, and why."""
    errors, accuracy, seconds = (
        rows.pivot(index="seed", columns="method", values=name) for name in ("held_out_error", "accuracy", "seconds")
    )
    change = mean(errors["fixed"] / errors["ntk"] - 1)
    tested = mean(accuracy["fixed"] - accuracy["ntk"])
    if not (has_interval := len(errors) >= LEAST_VALUES):
        change, tested = ({**each, "low": np.nan, "high": np.nan} for each in (change, tested))
    reason = (
        "On rows held out of the training parts the fixed kernel's squared error differs from the NTK's by "
        f"{interval_text(change['mean'], change, '+.1%')}; on the test parts, which had no part in that, its accuracy "
        f"differs by {interval_text(tested['mean'], tested, '+.1%')}. These are means over {len(errors)} splits, which "
        f"share rows. A fit takes {seconds['fixed'].median():.2g} s, the NTK's {seconds['ntk'].median():.2g} s."
    )
    if not has_interval:
        return "too few splits to tell", f"{reason} `seeds={LEAST_VALUES}` makes enough."
    if change["high"] < 0:
        return "use the fixed kernel", reason
    if change["low"] > 0:
        return "use the NTK", f"{reason} Fixing does harm here."
    return "use the NTK", f"{reason} That is no clear gain, and the NTK is the simpler of the two."
