"""The points and bars of a figure with their values as text, which the report shows under the pointer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import PathCollection
from matplotlib.container import BarContainer, Container, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedFormatter, FuncFormatter

from fixntk.runner.digits import format_number

# Attribute of an artist with the labels of its points.
_ATTRIBUTE = "_fixntk_point_labels"
# Number of points above which a series with markers is a cloud, whose points nobody looks up one by one.
_MAX_POINTS = 400
# Number of points, evenly spaced along a curve without markers, whose values are shown.
_NUM_CURVE_POINTS = 40
# Distance to a tick, as a share of the axis's range, within which a value is the tick's.
_TICK_TOLERANCE = 1e-6
# Difference of two shifts of bars that is no rounding error.
_LEAST_SHIFT = 1e-6
# Stands for the place of zero on a logarithmic axis, in pixels: far below any panel.
_FAR_BELOW = -1e9
# Share of the distance between ticks that are words, 1, within which a value is the tick's.
_REACH_OF_WORDS = 0.5
# Points per inch, the unit of lengths in an SVG file of matplotlib.
_POINTS_PER_INCH = 72.0


class Mark(NamedTuple):
    """A point or a bar.

    Attributes
    ----------
    x, y
        Its left and upper end in points (1/72 inch) from the figure's left and upper edge; of a point, its centre.
    width, height
        Its size in points; zero for a point.
    text
        A line for each of its name, its series and its coordinates, as far as there are any.
    """

    x: float
    y: float
    width: float
    height: float
    text: str


@dataclass(frozen=True)
class _PointLabels:
    names: tuple[str, ...] | None
    x: tuple[float, ...] | None
    y: tuple[float, ...] | None


@dataclass(frozen=True)
class _Series:
    """Points in data coordinates, (n, 2); the coordinates that are shown for them; names; intervals by coordinate."""

    label: str
    places: np.ndarray
    values: np.ndarray
    names: Sequence[str]
    intervals: tuple[Sequence[tuple[float, float]], Sequence[tuple[float, float]]] = ((), ())
    boxes: tuple[Rectangle, ...] = ()


def label_points(
    artist: Artist | Container,
    names: Sequence[object] | None = None,
    *,
    x: Sequence[float] | None = None,
    y: Sequence[float] | None = None,
) -> None:
    """Say what each point of a line or scatter plot, or each bar, is; the report shows it under the pointer.

    Without this a point's text has the series' label and the values on both axes.

    Parameters
    ----------
    artist
        What ``plot``, ``scatter``, ``errorbar`` or ``bar`` returned for one series.
    names
        The first line of each point's text.
    x, y
        The values to show where the points are drawn elsewhere, for example beside one another.

    Raises
    ------
    ValueError
        If their number is not that of the points.
    """
    count = len(_places(artist))
    for given in (names, x, y):
        if given is not None and len(given) != count:
            raise ValueError(f"each point needs a label: got {len(given)} for {count} points")
    labels = _PointLabels(
        None if names is None else tuple(map(str, names)),
        None if x is None else tuple(map(float, x)),
        None if y is None else tuple(map(float, y)),
    )
    setattr(artist, _ATTRIBUTE, labels)


def marks(figure: Figure) -> list[Mark]:
    """The marks of a figure that was drawn, in the order in which they were drawn.

    These are the bars, the points of lines with markers and of scatter plots with at most 400 points, and 40 points of
    each labelled line without markers. What is outside its axes or not finite is left out.
    """
    return [
        mark for axes in figure.axes if axes.get_visible() for found in _series(axes) for mark in _marks(axes, found)
    ]


# ------------------------------------------------------------------------------------------------ series of a panel


def _series(axes: Axes) -> Iterator[_Series]:
    bars = [container for container in axes.containers if isinstance(container, ErrorbarContainer)]
    # The ends of error bars are lines with markers too.
    ends = {id(cap) for container in bars for cap in container.lines[1]}
    of_line = {id(container.lines[0]): container for container in bars if container.lines[0] is not None}
    for bar in axes.containers:
        if isinstance(bar, BarContainer):
            yield _as_series(bar, bar.get_label(), boxes=tuple(bar.patches))
    for collection in axes.collections:
        if isinstance(collection, PathCollection) and collection.get_offset_transform() == axes.transData:
            found = _as_series(collection, collection.get_label())
            if len(found.places) <= _MAX_POINTS:
                yield found
    for line in axes.lines:
        if id(line) not in ends and line.get_transform() == axes.transData:
            yield from _line_series(line, of_line.get(id(line)))


def _line_series(line: Line2D, container: ErrorbarContainer | None) -> Iterator[_Series]:
    label = line.get_label() if container is None else container.get_label()
    owner = container if hasattr(container, _ATTRIBUTE) else line
    found = _as_series(owner, label, intervals=((), ()) if container is None else _intervals(container))
    count = len(found.places)
    if line.get_marker() not in ("None", "none", "", " ", None) or hasattr(owner, _ATTRIBUTE):
        if count <= _MAX_POINTS:
            yield found
    elif found.label and count > 2:
        chosen = np.unique(np.linspace(0, count - 1, _NUM_CURVE_POINTS).round().astype(int))
        yield _Series(found.label, found.places[chosen], found.values[chosen], ())


def _as_series(artist: Any, label: object, **further: Any) -> _Series:
    """The series of an artist, with the labels of its points."""
    places = _places(artist)
    values = places.copy()
    labels = getattr(artist, _ATTRIBUTE, _PointLabels(None, None, None))
    for k, given in enumerate((labels.x, labels.y)):
        if given is not None:
            values[:, k] = given
        elif isinstance(artist, BarContainer):
            values[:, k] = _values_of_bars(artist, k)
    # Old versions of matplotlib give a series without a label the label None.
    shown = "" if label is None or str(label).startswith("_") else str(label)
    return _Series(shown, places, values, labels.names or (), **further)


def _places(artist: Any) -> np.ndarray:
    """The centres of points and bars in data coordinates, (n, 2)."""
    if isinstance(artist, BarContainer):
        boxes = [(bar.get_x() + bar.get_width() / 2, bar.get_y() + bar.get_height() / 2) for bar in artist.patches]
        return np.array(boxes, float).reshape(-1, 2)
    if isinstance(artist, PathCollection):
        offsets: Any = np.ma.asarray(artist.get_offsets(), float)
        return np.asarray(offsets.filled(np.nan)).reshape(-1, 2)
    line = artist.lines[0] if isinstance(artist, ErrorbarContainer) else artist
    if not isinstance(line, Line2D):
        raise ValueError(f"must be a line, a scatter plot, error bars or bars, got {type(artist).__name__}")
    return np.ma.asarray(line.get_xydata(), float).filled(np.nan)


def _values_of_bars(bars: BarContainer, axis: int) -> np.ndarray:
    """The lengths of bars along their axis; across, their places without the shift that sets series side by side."""
    along = 0 if bars.orientation == "horizontal" else 1
    if axis == along:
        return np.array([bar.get_width() if along == 0 else bar.get_height() for bar in bars.patches], float)
    places = _places(bars)[:, axis]
    return places.round() if any(map(partial(_are_side_by_side, places), _other_bars(bars, axis))) else places


def _other_bars(bars: BarContainer, axis: int) -> list[np.ndarray]:
    """The places along an axis of the other series of bars in the panel."""
    axes: Any = bars.patches[0].axes if bars.patches else None
    containers = [] if axes is None else axes.containers
    return [_places(other)[:, axis] for other in containers if isinstance(other, BarContainer) and other is not bars]


def _are_side_by_side(places: np.ndarray, others: np.ndarray) -> bool:
    """Whether two series have their bars around the same whole numbers, each with a shift of its own."""
    if places.shape != others.shape or not np.array_equal(places.round(), others.round()):
        return False
    have_one_shift = all(np.ptp(each - each.round()) < _LEAST_SHIFT for each in (places, others))
    return have_one_shift and not np.allclose(places, others)


def _intervals(container: ErrorbarContainer) -> Any:
    """The ends of the error bars of each point, by coordinate; nothing for a coordinate without bars."""
    found: list[list[tuple[float, float]]] = [[], []]
    collections = list(container.lines[2])
    for axis, present in enumerate((container.has_xerr, container.has_yerr)):
        if present and collections:
            segments = [np.asarray(segment, float) for segment in collections.pop(0).get_segments()]
            found[axis] = [
                (segment[:, axis].min(), segment[:, axis].max()) if len(segment) else (np.nan, np.nan)
                for segment in segments
            ]
    return tuple(found)


# ------------------------------------------------------------------------------------------------ marks of a series


def _marks(axes: Axes, series: _Series) -> Iterator[Mark]:
    figure: Any = axes.get_figure()
    unit = _POINTS_PER_INCH / figure.dpi
    height = figure.bbox.height * unit
    ticks = _Ticks.of(axes.xaxis), _Ticks.of(axes.yaxis)
    frame = axes.bbox.padded(1.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        pixels = axes.transData.transform(series.places)
    for k, (x, y) in enumerate(pixels):
        text = _text(series, k, ticks)
        if not text or not np.isfinite(series.values[k]).all():
            continue
        if not series.boxes:
            if frame.contains(x, y):
                yield Mark(x * unit, height - y * unit, 0.0, 0.0, text)
            continue
        with np.errstate(invalid="ignore", divide="ignore"):
            corners = axes.transData.transform(series.boxes[k].get_bbox().get_points())
        # A bar is cut off where the panel ends: on a logarithmic axis it begins at no finite place.
        corners = np.clip(np.nan_to_num(corners, neginf=_FAR_BELOW), axes.bbox.min, axes.bbox.max)
        (left, low), (right, high) = np.sort(corners, axis=0) * unit
        if right > left or high > low:
            yield Mark(left, height - high, right - left, high - low, text)


@dataclass(frozen=True)
class _Ticks:
    """An axis's label and the names of its ticks; `hidden` if it has no ticks, as then its values mean nothing."""

    label: str
    names: dict[float, str]
    are_words: bool
    tolerance: float
    hidden: bool

    @classmethod
    def of(cls, axis: Axis) -> _Ticks:
        places = np.asarray(axis.get_majorticklocs(), float)
        formatter = axis.get_major_formatter()
        named = isinstance(formatter, FixedFormatter | FuncFormatter)
        texts = formatter.format_ticks(places.tolist()) if named else []
        names = {float(place): text for place, text in zip(places, texts, strict=False) if text}
        are_words = any(not _is_number(text) for text in names.values())
        low, high = axis.get_view_interval()
        return cls(_axis_label(axis), names, are_words, _TICK_TOLERANCE * abs(high - low), len(places) == 0)

    def line(self, value: float, interval: tuple[float, float] | None) -> str:
        """A line of a mark's text: the label and the value, or the name of the value's tick."""
        if self.hidden:
            return ""
        nearest = min(self.names, key=lambda place: abs(place - value), default=np.inf)
        # Series side by side are drawn a little beside the tick that they belong to.
        reach = _REACH_OF_WORDS if self.are_words else self.tolerance
        shown = self.names[nearest] if abs(nearest - value) < reach else format_number(value)
        if interval is not None and np.isfinite(interval).all():
            shown += f" ({format_number(interval[0])} to {format_number(interval[1])})"
        return f"{self.label}: {shown}" if self.label else shown


def _text(series: _Series, k: int, ticks: tuple[_Ticks, _Ticks]) -> str:
    lines = [series.names[k]] if series.names else []
    lines += [series.label] if series.label else []
    for axis, value, intervals in zip(ticks, series.values[k], series.intervals, strict=True):
        line = axis.line(float(value), intervals[k] if k < len(intervals) else None)
        # A name without a label of its axis, such as that of a table, is what the point is.
        lines.insert(0 if axis.are_words and not axis.label else len(lines), line)
    return "\n".join(line for line in lines if line)


def _axis_label(axis: Axis) -> str:
    """An axis's label; without one that of another panel in the same row or column, or of the figure."""
    axes: Any = axis.axes
    figure, own = axes.get_figure(), axes.get_subplotspec()
    places = [(each, each.get_subplotspec()) for each in figure.axes]
    grid = [
        (each, place)
        for each, place in places
        if None not in (own, place) and place.get_gridspec() is own.get_gridspec()
    ]
    if axis is axes.xaxis:
        beside = [each.get_xlabel() for each, place in grid if place.colspan == own.colspan]
        labels = [axes.get_xlabel(), *beside, figure.get_supxlabel()]
    else:
        beside = [each.get_ylabel() for each, place in grid if place.rowspan == own.rowspan]
        labels = [axes.get_ylabel(), *beside, figure.get_supylabel()]
    return next((label for label in labels if label), "")


def _is_number(text: str) -> bool:
    try:
        float(text.replace("−", "-").replace(",", ""))
    except ValueError:
        return False
    return True
