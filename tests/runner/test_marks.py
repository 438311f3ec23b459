import numpy as np
import pytest

from fixntk.runner import report
from fixntk.runner.marks import label_points, marks


def marks_of(draw, **size):
    with report.use_style():
        figure = report.new_figure(**size)
        draw(figure.add_subplot())
        figure.draw_without_rendering()
    return marks(figure)


def texts(draw):
    return [mark.text for mark in marks_of(draw)]


def test_a_line_with_markers_shows_its_label_and_its_values():
    def draw(axes):
        axes.plot([1, 2.5], [0.12345, -3], "o-", label="series")
        axes.plot([1, 2], [5, 6], "s")
        axes.set(xlabel="steps", ylabel="error")

    assert texts(draw) == [
        "series\nsteps: 1\nerror: 0.1235",
        "series\nsteps: 2.5\nerror: −3",
        "steps: 1\nerror: 5",
        "steps: 2\nerror: 6",
    ]


def test_names_come_first_and_values_can_be_others_than_the_places():
    def draw(axes):
        label_points(axes.plot([1.1, 2.1], [3, 4], "o")[0], ["a", "b"], x=[1, 2])
        label_points(axes.errorbar([1], [5], [0.5], fmt="o", label="bars"), ["c"], y=[7])
        axes.set(xlabel="x", ylabel="y")

    assert texts(draw) == ["a\nx: 1\ny: 3", "b\nx: 2\ny: 4", "c\nbars\nx: 1\ny: 7 (4.5 to 5.5)"]


def test_error_bars_show_their_ends_but_are_no_points_themselves():
    def draw(axes):
        bars = axes.errorbar([1, 2, 3], [3, 4, 5], yerr=[[1, 2, np.nan], [0.5, 0, np.nan]], fmt="o", capsize=3)
        assert bars.lines[1]  # the caps are lines too
        axes.errorbar([1], [8], xerr=[0.25], fmt="s")

    assert texts(draw) == ["1\n3 (2 to 3.5)", "2\n4 (2 to 4)", "3\n5", "1 (0.75 to 1.25)\n8"]


def test_the_names_of_ticks_are_shown_for_values():
    def draw(axes):
        axes.plot([0.25, 0.5], [0, 1.1], "o", label="series")
        axes.set_yticks([0, 1], ["iris", "wine"])
        axes.set(xlabel="difference")

    # Of words the nearest, without a label of the axis as the heading.
    assert texts(draw) == ["iris\nseries\ndifference: 0.25", "wine\nseries\ndifference: 0.5"]

    def numbered(axes):
        axes.plot([0, 1, 1.25], [3, 4, 5], "o")
        axes.set_xticks([0, 1], ["100", "7"])
        axes.set(xlabel="seed")

    # Of numbers only that of the same place.
    assert texts(numbered) == ["seed: 100\n3", "seed: 7\n4", "seed: 1.25\n5"]


def test_an_axis_without_ticks_says_nothing():
    def draw(axes):
        label_points(axes.plot([0.1, 0.2], [3, 4], ".")[0], ["a", "b"])
        axes.set_xticks([])

    assert texts(draw) == ["a\n3", "b\n4"]


def test_bars_are_rectangles_with_their_own_lengths():
    def draw(axes):
        axes.bar(np.arange(2) - 0.2, [3, 4], 0.4, label="left")
        axes.bar(np.arange(2) + 0.2, [5, 6], 0.4, bottom=[1, 1], label="right")
        axes.set(xlabel="arrangement", ylabel="weight")

    found = marks_of(draw)
    assert [mark.text for mark in found] == [
        "left\narrangement: 0\nweight: 3",
        "left\narrangement: 1\nweight: 4",
        "right\narrangement: 0\nweight: 5",
        "right\narrangement: 1\nweight: 6",
    ]
    assert np.ptp([mark.width for mark in found]) < 1e-9
    heights = np.array([mark.height for mark in found])
    assert heights / heights[0] == pytest.approx(np.array([3, 4, 5, 6]) / 3)
    assert found[2].y + found[2].height < found[0].y + found[0].height  # it begins higher
    assert texts(lambda axes: axes.barh([0, 1], [3, 4])) == ["3\n0", "4\n1"]
    # Bins of a histogram are where they are.
    # Alone, a bar is where it is drawn, also if all are as far from whole numbers.
    assert texts(lambda axes: axes.bar([0.37], [3])) == ["0.37\n3"]
    assert texts(lambda axes: axes.bar([0.3, 1.3], [1, 2], 1.0)) == ["0.3\n1", "1.3\n2"]
    assert texts(lambda axes: axes.bar([0.25, 0.5], [1, 2], 0.25)) == ["0.25\n1", "0.5\n2"]


def test_bars_on_a_logarithmic_axis_end_where_the_panel_does():
    def draw(axes):
        axes.bar([1, 2], [10, 1000])
        axes.set(yscale="log", ylim=(1, 100))

    low, high = marks_of(draw)
    assert high.height == pytest.approx(2 * low.height)
    assert low.y + low.height == pytest.approx(high.y + high.height)


def test_places_are_in_points_from_the_upper_left():
    def draw(axes):
        axes.set_position([0.25, 0.5, 0.5, 0.25])
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.plot([0, 1], [0, 1], "o")

    (x1, y1, *_), (x2, y2, *_) = marks_of(draw, width=10, height=5)
    assert (x1, y1, x2, y2) == pytest.approx((180, 180, 540, 90))


def test_what_is_outside_or_not_finite_is_left_out():
    def draw(axes):
        axes.plot([1, 2, np.nan, 4], [1, 200, 3, 0.5], "o")
        axes.scatter([1, 2], [np.nan, 2])
        axes.scatter([1, 2], np.ma.masked_greater([3, 4], 3))
        axes.set(ylim=(0, 10))

    # Scatter plots are drawn before lines.
    assert texts(draw) == ["2\n2", "1\n3", "1\n1", "4\n0.5"]

    def logarithmic(axes):
        axes.plot([1, 2], [0, 3], "o")
        axes.set_yscale("log")

    assert texts(logarithmic) == ["2\n3"]


def test_curves_without_markers_show_some_of_their_values():
    def draw(axes):
        axes.plot(np.arange(1001) / 8, np.arange(1001), label="curve")
        axes.plot([0, 100], [0, 1000])  # a line for reference
        axes.axhline(3, label="level")

    found = texts(draw)
    assert len(found) == 40
    assert found[0] == "curve\n0\n0"
    assert found[-1] == "curve\n125\n1000"


def test_clouds_have_no_values():
    assert len(texts(lambda axes: axes.plot(np.arange(400), "o"))) == 400
    assert not texts(lambda axes: axes.plot(np.arange(401), "o"))
    assert not texts(lambda axes: axes.scatter(np.arange(401), np.arange(401)))


def test_panels_take_the_label_of_their_row_or_column_or_of_the_figure():
    with report.use_style():
        figure = report.new_figure()
        grid = figure.subplots(2, 2)
        for axes, label in zip(grid[:, 0], ("accuracy", "error"), strict=True):
            axes.set(ylabel=label)
        grid[1, 1].set(xlabel="steps")
        for axes in grid.flat:
            axes.plot([1], [2], "o")
        figure.supxlabel("rows")
        free = figure.add_axes((0.4, 0.4, 0.1, 0.1))
        free.plot([3], [4], "o")
        figure.draw_without_rendering()
    assert [mark.text for mark in marks(figure)] == [
        "rows: 1\naccuracy: 2",
        "steps: 1\naccuracy: 2",
        "rows: 1\nerror: 2",
        "steps: 1\nerror: 2",
        "rows: 3\n4",
    ]


def test_hidden_panels_have_no_marks():
    def draw(axes):
        axes.plot([1], [2], "o")
        axes.set_visible(False)

    assert not texts(draw)


def test_each_point_needs_a_label():
    def draw(axes):
        with pytest.raises(ValueError, match="got 1 for 2 points"):
            label_points(axes.plot([1, 2], "o")[0], ["one"])
        with pytest.raises(ValueError, match="got 3 for 2 points"):
            label_points(axes.scatter([1, 2], [3, 4]), x=[1, 2, 3])
        with pytest.raises(ValueError, match="must be a line, a scatter plot"):
            label_points(axes.fill_between([1, 2], [3, 4]), ["a", "b"])

    marks_of(draw)
