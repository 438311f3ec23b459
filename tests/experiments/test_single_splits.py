"""Counts of tables over single splits, against counts by hand."""

import pandas as pd

from experiments.shared.single_splits import counts_by_split, counts_figure, counts_text, summarise_counts

# Differences of accuracies by seed (rows) and table (columns).
DIFFERENCES = [[0.1, 0.0, -0.1, 0.2, 0.0, 0.3], [0.0, 0.0, -0.1, -0.2, 0.0, 0.1], [0.1, 0.1, 0.1, 0.1, 0.1, 0.1]]


def rows_of(differences):
    # Accuracies that are equal may differ by rounding errors.
    return [
        {"seed": seed, "table": f"t{table}", "method": method, "accuracy": accuracy}
        for seed, of_split in enumerate(differences)
        for table, difference in enumerate(of_split)
        for method, accuracy in (("ntk", 0.5), ("fixed", 0.5 + difference + 1e-16), ("optimum", 0.9))
    ]


def test_counts_are_those_of_each_split():
    counts = counts_by_split(rows_of(DIFFERENCES))
    assert counts.to_numpy().tolist() == [[3, 2, 1], [1, 3, 2], [6, 0, 0]]
    summary = summarise_counts(counts)
    assert summary == {
        "splits": 3,
        "tables": 6,
        "higher_or_same": {"least": 4, "median": 5.0, "most": 6},
        "higher": {"least": 1, "median": 3.0, "most": 6},
        "same": {"least": 0, "median": 2.0, "most": 3},
    }
    text = counts_text(summary)
    assert "on 4 to 6 (median 5) of 6 tables, over 3 splits; of these it is the same on 0 to 3 (median 2)." in text


def test_too_few_tables_or_splits_have_no_counts():
    for few in (DIFFERENCES[:1], [of_split[:5] for of_split in DIFFERENCES]):
        counts = counts_by_split(rows_of(few))
        assert counts.empty
        assert summarise_counts(counts) is None
        assert counts_text(None) == ""


def test_a_table_that_lacks_a_split_leaves_that_split_out():
    rows = [row for row in rows_of(DIFFERENCES) if (row["seed"], row["table"]) != (1, "t0")]
    assert counts_by_split(rows).index.tolist() == [0, 2]


def test_bars_are_in_increasing_order_and_lines_show_the_count_of_means():
    figure = counts_figure(counts_by_split(rows_of(DIFFERENCES)), 5)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "0", "2"]
    heights = [[bar.get_height() for bar in container] for container in axes.containers]
    assert heights == [[1, 3, 6], [3, 2, 0], [2, 1, 0]]
    assert [line.get_ydata()[0] for line in axes.lines] == [5]
    paper = pd.DataFrame({"higher": [20, 10], "same": [3, 4], "lower": [10, 19]})
    assert [line.get_ydata()[0] for line in counts_figure(paper, 16).axes[0].lines] == [16, 26]
