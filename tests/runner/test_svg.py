import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from experiments.shared import colours
from fixntk.runner import report, svg
from fixntk.runner.marks import label_points

TEMPLATE = Path(report.__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
EVIL = "<b>&\"'</b>"


def drawn(figure, name="plot"):
    with report.use_style():
        return svg.from_figure(figure, name, f"Caption {EVIL}", 110)


def figure(draw):
    with report.use_style():
        new = report.new_figure(4, 3)
        draw(new.add_subplot())
    return new


def everything(axes):
    axes.plot([1, 2, 3], [2, 10, 30], "o-", color="black", label=EVIL)
    axes.scatter([1, 2, 3], [20, 30, 10], color=["0.5", "white", "#882255"])
    axes.bar([1, 2], [5, 6], color=colours.DISCOVERED, hatch="//")
    axes.fill_between([1, 3], [1, 2], [4, 5], color="0.3", alpha=0.5)
    axes.errorbar([1, 2], [3, 4], [0.5, 0.5], color=colours.NTK, label="bars", capsize=2)
    axes.annotate("white", (2, 20), color="white")
    axes.legend(title=EVIL, frameon=True)
    axes.set(yscale="log", ylabel="a label", title=EVIL)


def test_a_figure_is_well_formed_and_escaped():
    root = ElementTree.fromstring(drawn(figure(everything)))
    assert root.tag == "svg"
    assert root.attrib["aria-label"] == f"Caption {EVIL}"
    texts = ["".join(element.itertext()) for element in root.iter("text")]
    assert texts.count(EVIL) == 3  # the series and the title of the legend, and the title
    assert sum(title.text.startswith(EVIL) for title in root.iter("title")) == 3
    assert not [element for element in root.iter() if element.tag in ("b", "style", "metadata") or ":" in element.tag]


def test_the_same_figure_and_name_give_the_same_text_and_another_name_other_ids():
    first, second, other = drawn(figure(everything)), drawn(figure(everything)), drawn(figure(everything), "other")
    assert first == second

    def ids(text):
        return {element.attrib["id"] for element in ElementTree.fromstring(text).iter() if "id" in element.attrib}

    assert ids(first)
    assert not ids(first) & ids(other)


def test_no_grey_black_or_white_stays_that_a_dark_page_would_swallow():
    text = drawn(figure(everything))
    greys = [colour for colour in re.findall(r"#([0-9a-f]{6})\b", text) if colour[:2] == colour[2:4] == colour[4:]]
    assert not greys
    assert not re.search(r"black|white(?!<)", text)
    # Every variable is the page's, or defined in the figure.
    defined = set(re.findall(r"(--[\w-]+):", text)) | set(re.findall(r"(--[\w-]+):", TEMPLATE))
    assert {"--text", "--page", "--grey-13"} <= set(re.findall(r"var\((--[\w-]+)\)", text)) <= defined
    # What has no colour of its own is the text's.
    assert ElementTree.fromstring(text).attrib["fill"] == "currentColor"


@pytest.mark.parametrize(
    ("colour", "expected"),
    [
        ("000000", "var(--text)"),
        ("ffffff", "var(--page)"),
        ("444444", "var(--grey-73)"),
        ("dddddd", "var(--grey-13)"),
        ("e69f00", "#e69f00"),
        ("882255", "color-mix(in srgb, #e73a91 var(--lift), #882255)"),
    ],
)
def test_colours_follow_the_page_where_they_must(colour, expected):
    assert svg.page_colour(colour) == expected


def page_values(name):
    """A variable's values of the page, light and dark."""
    return re.findall(rf"--{name}: #?([0-9a-f]+)%?;", TEMPLATE)


def rgb(hexadecimal):
    return np.array([int(hexadecimal[k : k + 2], 16) for k in (0, 2, 4)])


# The last are the darkest of usual colour maps, and of each hue.
DARK = ("440154", "000004", "00008b", "330000", "003300")


@pytest.mark.parametrize("colour", [c.lstrip("#").lower() for c in (*report.OKABE_ITO, colours.DISCOVERED, *DARK)])
def test_data_colours_can_be_seen_on_a_dark_page(colour):
    (_, page), (_, text), lifts = page_values("page"), page_values("text"), page_values("lift")
    assert lifts == ["0", "100"]  # on a light page colours are those of the files
    css = svg.page_colour(colour)
    if mixed := re.fullmatch(r"color-mix\(in srgb, #([0-9a-f]{6}) var\(--lift\), #([0-9a-f]{6})\)", css):
        assert mixed[2] == colour
        assert max(rgb(mixed[1])) >= max(rgb(colour))
        css = "#" + mixed[1]
    shown = rgb(text if css == "var(--text)" else css[1:])
    # WCAG asks for 3 in graphics.
    assert (svg.luminance(*shown) + 0.05) / (svg.luminance(*rgb(page)) + 0.05) >= 4.4


@pytest.mark.parametrize(("colour", "expected"), [((255, 255, 255), 1), ((0, 0, 0), 0), ((119, 119, 119), 0.1845)])
def test_luminance_is_that_of_wcag(colour, expected):
    assert svg.luminance(*colour) == pytest.approx(expected, abs=1e-4)


def centres(root):
    shapes = root.find("g[@class='marks']")
    return np.array([[float(shape.get("cx")), float(shape.get("cy"))] for shape in shapes.iter("circle")])


@pytest.mark.parametrize("aspect", ["auto", "equal"])
@pytest.mark.parametrize("kind", ["plot", "scatter", "errorbar"])
def test_values_are_shown_where_matplotlib_drew_the_markers(aspect, kind):
    def draw(axes):
        x, y = [1, 2, 5], [3, 1, 9]
        if kind == "errorbar":
            axes.errorbar(x, y, yerr=0.5, fmt="o")
        elif kind == "plot":
            axes.plot(x, y, "o")
        else:
            axes.scatter(x, y)
        axes.set(xlabel="a label", aspect=aspect)

    root = ElementTree.fromstring(drawn(figure(draw)))
    markers = [
        [float(use.get("x")), float(use.get("y"))]
        for group in root.iter("g")
        if "clip-path" in group.attrib
        for use in group.iter("use")
    ]
    assert np.abs(centres(root) - np.array(markers)).max() < 0.011


def test_each_named_point_has_its_title():
    names = [f"name {k} {EVIL}" for k in range(5)]

    def draw(axes):
        label_points(axes.scatter(np.arange(5), np.arange(5) / 8), names)
        axes.set(xlabel="x values")

    titles = [title.text for title in ElementTree.fromstring(drawn(figure(draw))).iter("title")]
    assert titles == [f"{name}\nx values: {k}\n{k / 8:g}" for k, name in enumerate(names)]


def test_a_figure_without_points_has_no_titles():
    root = ElementTree.fromstring(drawn(figure(lambda axes: axes.axhline(0.5))))
    assert not list(root.iter("title"))
    assert root.find("g[@class='marks']") is None


def test_a_series_writes_the_style_of_its_markers_once():
    text = drawn(figure(lambda axes: axes.plot(np.arange(100), "o", alpha=0.5)))
    uses = [use for use in ElementTree.fromstring(text).iter("use") if "style" in use.attrib]
    assert not uses
    assert text.count("fill-opacity: 0.5") == 1
