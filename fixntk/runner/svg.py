"""Figures as inline SVG of the report's page: in the page's colours, and with the values of points and bars."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.figure import Figure

from fixntk.runner.marks import Mark, marks

# Relative luminance of a colour with a contrast of 4.5 with the page in dark mode, as thin lines and small points need.
_LEAST_LUMINANCE = 0.218
# Radius in points of the circle that is drawn around the point whose values are shown.
_RADIUS = "5"
# A colour of six hexadecimal digits.
_COLOUR = re.compile(r"(?<!\()#([0-9a-f]{6})\b")
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}(?![\de])")
_GREY = re.compile(r"var\(--grey-(\d+)\)")
_REFERENCE = re.compile(r"#([\w.:-]+)")
_NO_ROTATION = re.compile(r"rotate\(-?0 [^)]*\)")
_OPACITY = re.compile(r"(?<!-)\bopacity:")
# How matplotlib 3.8 writes fonts: style and weight, if any, the size, and families.
_FONT = re.compile(r"\bfont:\s*([^;]*?[\d.]+px)[^;]*")
_FONT_FAMILY = re.compile(r"\s*font-family:[^;]*;?")


def from_figure(figure: Figure, name: str, caption: str, pixels_per_inch: float) -> str:
    """Draw a figure as an ``<svg>`` element for a page whose style has ``--text``, ``--page`` and ``--lift``.

    Greys are mixtures of the page's text and background colours, so that what is black on white can be read on a dark
    page too. Dark colours are mixed with the share ``--lift`` of a brighter one, which is 0 % on a light page and 100 %
    on a dark one. Texts are in the page's font. The same figure and name give the same text.

    Parameters
    ----------
    figure, name
        The figure, and a name that no other figure of the page has: ids are derived from it.
    caption
        What a screen reader reads.
    pixels_per_inch
        Size on a page with enough room.
    """
    drawn = io.BytesIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(drawn, format="svg", metadata=no_metadata)
    root = ElementTree.fromstring(drawn.getvalue())
    _tidy(root, {reference for value in _attribute_values(root) for reference in _references(value)})
    width, height = (str(round(pixels_per_inch * inches)) for inches in figure.get_size_inches())
    root.attrib = {"viewBox": root.attrib["viewBox"], "width": width, "height": height}
    root.attrib |= {"role": "img", "aria-label": caption}
    # In matplotlib's files what is filled with black has no colour of its own.
    root.attrib |= {"fill": "currentColor", "stroke-linejoin": "round", "stroke-linecap": "butt"}
    greys = sorted({int(share) for value in _attribute_values(root) for share in _GREY.findall(value)})
    mixtures = (f"--grey-{share}: color-mix(in srgb, var(--text) {share}%, var(--page))" for share in greys)
    if greys:
        root.attrib["style"] = "; ".join(mixtures)
    found = marks(figure)
    if found:
        root.append(_overlay(found))
    return ElementTree.tostring(root, encoding="unicode")


def page_colour(hexadecimal: str) -> str:
    """The CSS of a colour on the report's page, from its six hexadecimal digits; see :func:`from_figure`.

    A grey is a variable that :func:`from_figure` defines in each figure, named by the text's share in per cent.
    """
    red, green, blue = (int(hexadecimal[k : k + 2], 16) for k in (0, 2, 4))
    if red == green == blue:
        share = round(100 * (255 - red) / 255)
        if share in (0, 100):
            return "var(--text)" if share else "var(--page)"
        return f"var(--grey-{share})"
    brighter = "".join(f"{value:02x}" for value in _brighten((red, green, blue)))
    if brighter == hexadecimal:
        return f"#{hexadecimal}"
    return f"color-mix(in srgb, #{brighter} var(--lift), #{hexadecimal})"


def _brighten(colour: tuple[int, int, int]) -> tuple[int, ...]:
    """The colour with the same hue, as saturated as can be, that is bright enough for a dark page."""
    brighter: tuple[int, ...] = colour
    factor = 1.0
    while luminance(*brighter) < _LEAST_LUMINANCE:
        factor += 0.02
        # A channel ends at 255. What exceeds that is added to all channels, which makes the colour paler.
        excess = max(0.0, factor * max(colour) - 255)
        brighter = tuple(min(255, round(factor * value + excess)) for value in colour)
    return brighter


def luminance(*colour: int) -> float:
    """The relative luminance of red, green and blue from 0 to 255, by the definition of WCAG."""
    shares = (value / 255 for value in colour)
    linear = (share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares)
    return sum(weight * share for weight, share in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _attribute_values(root: ElementTree.Element) -> Iterator[str]:
    return (value for element in root.iter() for value in element.attrib.values())


def _references(text: str) -> list[str]:
    return _REFERENCE.findall(text) if text.startswith("#") or "url(#" in text else []


def _tidy(parent: ElementTree.Element, used: set[str]) -> None:
    """Remove from an element what a page does not need: namespaces, unused ids, style sheets and empty groups."""
    parent.tag = parent.tag.rpartition("}")[2]
    attributes = {name.rpartition("}")[2]: value for name, value in parent.attrib.items()}
    tidied = {name: _tidy_attribute(name, value) for name, value in attributes.items() if name != "id" or value in used}
    parent.attrib = {name: value for name, value in tidied.items() if value}
    if not (parent.text or "").strip():
        parent.text = None
    children: list[ElementTree.Element] = []
    for child in parent:
        _tidy(child, used)
        child.tail = None
        if child.tag == "g" and not child.attrib:
            children.extend(child)
        elif child.tag not in ("style", "metadata") and not (child.tag in ("g", "defs") and len(child) == 0):
            children.append(child)
    parent[:] = children
    if parent.tag == "g" and all(child.tag == "use" for child in children):
        _share_style(parent)


def _share_style(group: ElementTree.Element) -> None:
    """Write once the style that all markers of a series have, if it is one that elements inherit from their group."""
    styles = {child.attrib.get("style", "") for child in group}
    if len(styles) == 1 and (style := styles.pop()) and not _OPACITY.search(style):
        group.attrib["style"] = style
        for child in group:
            del child.attrib["style"]


def _tidy_attribute(name: str, value: str) -> str:
    if name in ("style", "fill", "stroke"):
        value = _FONT.sub(r"font: \1 system-ui, sans-serif", _FONT_FAMILY.sub("", value))
        value = _COLOUR.sub(lambda match: page_colour(match[1]), value)
    if name in ("d", "x", "y", "width", "height", "transform", "points"):
        value = _LONG_NUMBER.sub(lambda match: _short(float(match[0])), " ".join(value.split()))
        value = _NO_ROTATION.sub("", value)
    return value


def _overlay(found: list[Mark]) -> ElementTree.Element:
    """Shapes that are not painted, one for each mark, with its text as title."""
    group = ElementTree.Element("g", {"class": "marks", "fill": "none", "pointer-events": "all"})
    for mark in found:
        x, y, width, height = map(_short, mark[:4])
        if mark.width or mark.height:
            shape = ElementTree.SubElement(group, "rect", {"x": x, "y": y, "width": width, "height": height})
        else:
            shape = ElementTree.SubElement(group, "circle", {"cx": x, "cy": y, "r": _RADIUS})
        ElementTree.SubElement(shape, "title").text = mark.text
    return group


def _short(number: float) -> str:
    """A number with at most two decimals, which is a fiftieth of a pixel."""
    return f"{number:.2f}".rstrip("0").rstrip(".")
