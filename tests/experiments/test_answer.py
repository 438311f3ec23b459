"""The answer for a user's own table, from errors that are set by hand."""

import numpy as np
import pytest

from experiments.shared.answer import answer_headline, answer_section


def rows_of(changes, table="mine.csv"):
    """Rows whose fixed kernel's held-out error is by a share above the NTK's, split by split."""
    names = ("method", "held_out_error", "accuracy", "seconds")
    return [
        {"table": table, "seed": seed} | dict(zip(names, values, strict=True))
        for seed, change in enumerate(changes)
        for values in (
            ("ntk", 0.4, 0.80, 0.1),
            ("fixed", 0.4 * (1 + change), 0.82, 0.5),
            ("optimum", np.nan, 0.7, 9.0),
        )
    ]


@pytest.mark.parametrize(
    ("changes", "use", "shown"),
    [
        ([-0.2, -0.25, -0.2, -0.15, -0.2], "use the fixed kernel", "−20.0% (−24.4% to −15.6%)"),
        ([0.2, 0.25, 0.2, 0.15, 0.2], "use the NTK", "Fixing does harm"),
        ([0.2, -0.25, 0.2, -0.15, 0.0], "use the NTK", "no clear gain"),
        ([-0.2, -0.25, -0.2, -0.15], "too few splits to tell", "by −20.0% (less is better); on the test parts"),
    ],
)
def test_the_answer_is_that_of_held_out_rows(changes, use, shown):
    section = answer_section(rows_of(changes))
    assert section.text.startswith(f"`mine.csv`: **{use}.** ")
    assert shown in section.text
    assert "its accuracy differs by +2.0%" in section.text
    assert "A fit takes 0.5 s, the NTK's 0.1 s." in section.text


def test_the_headline_has_the_answers_where_all_tables_are_the_users():
    own = rows_of([-0.2, -0.25, -0.2, -0.15, -0.2])
    assert answer_headline(own) == (
        "mine.csv: use the fixed kernel. On rows held out of the training parts the fixed kernel's squared error "
        "differs from the NTK's by −20.0% (−24.4% to −15.6%) (less is better); on the test parts, which had no part in "
        "that, its accuracy differs by +2.0% (+2.0% to +2.0%) (more is better)."
    )
    few = answer_headline([*own, *rows_of([-0.2], "other.csv")])
    assert few.splitlines()[0] == answer_headline(own)
    assert few.splitlines()[1].startswith("other.csv: too few splits to tell.")
    assert few.endswith("`seeds=5` makes enough.")
    assert answer_headline([*own, *rows_of([-0.2] * 5, "iris")]) is None


def test_each_own_table_has_an_answer_and_listed_ones_have_none():
    both = [*rows_of([-0.2] * 5, "iris"), *rows_of([-0.2, -0.3] * 3), *rows_of([0.1], "your`s.parquet")]
    first, second = answer_section(both).text.split("\n\n")
    assert first.startswith("`mine.csv`: **use the fixed kernel")
    assert second.startswith("`your's.parquet`: **too few")
    assert answer_section(both[:15]) is None
    # Runs before these errors were recorded.
    assert answer_section([{"table": "mine.csv", "seed": 0, "method": "ntk", "accuracy": 0.5}]) is None
