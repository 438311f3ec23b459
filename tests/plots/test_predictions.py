"""Reliability diagrams and importances, compared with scikit-learn and with sums by hand."""

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from sklearn.calibration import calibration_curve

from fixntk import plots

mpl.use("agg")


@pytest.fixture
def axes():
    return Figure().add_subplot()


def bars_of(axes):
    """Predicted probability, share, and ends of the interval of each bin."""
    (container,) = axes.containers
    points, _, (segments,) = container.lines
    return (*points.get_data(), *np.array([segment[:, 1] for segment in segments.get_segments()]).T)


def test_two_classes_as_scikit_learn_bins_them(axes, rng):
    probabilities = rng.uniform(size=300)
    y = np.where(rng.uniform(size=300) < probabilities, "yes", "no")
    plots.reliability(y, probabilities, axes, num_bins=7)
    shares, predicted = calibration_curve(y == "yes", probabilities, n_bins=7)
    assert bars_of(axes)[0] == pytest.approx(predicted)
    assert bars_of(axes)[1] == pytest.approx(shares)
    assert axes.get_xlabel() == "predicted probability of class yes"


def test_columns_of_two_classes_are_the_same_as_the_second(axes, rng):
    probabilities, other = rng.uniform(size=50), Figure().add_subplot()
    y = rng.uniform(size=50) < probabilities
    plots.reliability(y, probabilities, axes)
    plots.reliability(y, np.column_stack([1 - probabilities, probabilities]), other)
    assert np.array_equal(bars_of(axes), bars_of(other))


def test_more_classes_by_the_probability_of_the_predicted_one(axes):
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.72, 0.18], [0.2, 0.3, 0.5], [0.26, 0.25, 0.49]])
    plots.reliability(["a", "c", "c", "c"], probabilities, axes, classes=["a", "b", "c"])
    predicted, shares = bars_of(axes)[:2]
    # 0.49 is in the bin from 0.4, 0.5 in that from 0.5, the others in that from 0.7.
    assert predicted == pytest.approx([0.49, 0.5, 0.71])
    assert shares == pytest.approx([1, 1, 0.5])
    error = (0.51 + 0.5 + 2 * 0.21) / 4
    assert f"(ECE {error:.3f})" in axes.get_legend().get_texts()[0].get_text()


def test_intervals_are_those_of_wilson(axes):
    n = 20
    # Of the rows, all with probability 0.35, 7 are positive.
    share = 7 / n
    plots.reliability(np.arange(n) < 7, np.full(n, 0.35), axes)
    # The 97.5 % quantile of the standard normal distribution.
    z = 1.959963984540054
    centre, half = share + z * z / (2 * n), z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    assert np.ravel(bars_of(axes)) == pytest.approx([0.35, 0.35, low, high])


@pytest.mark.parametrize(
    ("y", "probabilities", "options", "message"),
    [
        ([0, 1], [0.5, 1.5], {}, r"probabilities must be in \[0, 1\], got 0.5 to 1.5"),
        ([0, 1], [[0.5, 0.4], [0.5, 0.5]], {}, "probabilities must sum to 1 in each row, got 0.9 to 1"),
        ([0, 1], [0.5], {}, r"y must have shape \(1,\), got \(2,\)"),
        ([1, 1], [0.5, 0.5], {}, r"probabilities have 2 classes, but there are \[1\]: pass the class"),
        ([0, 2], [0.5, 0.5], {"classes": [0, 1]}, r"y has classes that are not among classes: \[2\]"),
        ([0, 1], [0.5, 0.5], {"num_bins": 0}, "num_bins must be at least 1"),
    ],
)
def test_probabilities_that_are_none_are_refused(axes, y, probabilities, options, message):
    with pytest.raises(ValueError, match=message):
        plots.reliability(y, probabilities, axes, **options)


def widths_of(axes):
    return [bar.get_width() for bar in axes.patches]


def test_importances_from_the_top_down(axes):
    plots.importance([0.1, -0.2, 0.5], ["a", "b", "c"], axes)
    assert widths_of(axes) == [0.5, 0.1, -0.2]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["c", "a", "b"]
    top, bottom = axes.patches[0].get_y(), axes.patches[-1].get_y()
    assert axes.transData.transform((0, top))[1] > axes.transData.transform((0, bottom))[1]


def test_repetitions_are_means_with_standard_deviations(axes):
    plots.importance([[1.0, 3.0], [5.0, 5.0]], ax=axes)
    assert widths_of(axes) == [5, 2]
    segments = axes.containers[0].lines[2][0].get_segments() if axes.containers[0].lines else []
    assert np.array([segment[:, 0] for segment in segments]).tolist() == [[5, 5], [1, 3]]
    assert "standard deviation" in axes.get_xlabel()


def test_only_the_largest_are_shown(axes):
    plots.importance(np.arange(30.0), ax=axes, num_shown=2)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["feature 29", "feature 28"]


def test_names_that_do_not_fit_are_refused(axes):
    with pytest.raises(ValueError, match="names must have 3 names, one a feature, got 2"):
        plots.importance([1.0, 2.0, 3.0], ["a", "b"], axes)
