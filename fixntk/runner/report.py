"""Reports: one self-contained HTML file of text, sortable tables and figures, and the common style of plots."""

from __future__ import annotations

import base64
import contextlib
import io
import math
import numbers
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
import pandas as pd
import yaml
from cycler import cycler
from markupsafe import Markup
from matplotlib.figure import Figure

from fixntk._files import replace_when_written
from fixntk.runner import markdown, svg
from fixntk.runner.digits import format_numbers
from fixntk.runner.markdown import Kind

# Okabe and Ito's colours for colour-blind readers, those with the most contrast on white first.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")

STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.labelsize": 10,
    "axes.linewidth": 0.8,
    "axes.prop_cycle": cycler(color=OKABE_ITO),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "figure.constrained_layout.use": True,
    "figure.titlesize": 12,
    "font.size": 10,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "savefig.dpi": 150,
    "savefig.facecolor": "white",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}

_HTML_OF: Mapping[Kind, str] = {"code": "<code>{}</code>", "bold": "<strong>{}</strong>", "literal": "{}"}
# Text that is shown for a missing value.
_MISSING = "–"
# Number of characters above which a text in a table is wrapped.
_MAX_LINE_CHARACTERS = 40
# Pixels on the page for each inch of a figure.
_PIXELS_PER_INCH = 110
# Length above which a figure is shown as an image: it would slow the page down.
_MAX_SVG_CHARACTERS = 500_000


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Attributes
    ----------
    title
        The heading.
    text
        Paragraphs separated by blank lines; ``**bold**`` and ```code``` are marked up, the rest is literal.
    table
        Shown with about four significant digits and sortable by each column; an index other than 0, 1, 2 … is shown
        too.
    figures
        File name without ``.png``, figure, and the caption, which is also what a screen reader reads.
    cards
        The few numbers that count, above the text: what each is, and its value.
    main_columns
        Headings of the table's columns that are shown at first, unless all their values are missing; the others on
        request. All when empty.
    """

    title: str
    text: str = ""
    table: pd.DataFrame | None = None
    figures: tuple[tuple[str, Figure, str], ...] = ()
    cards: tuple[tuple[str, str], ...] = ()
    main_columns: tuple[str, ...] = ()


@contextlib.contextmanager
def use_style() -> Iterator[None]:
    """Draw in the reports' style while the context is open."""
    with mpl.rc_context(STYLE):
        yield


def new_figure(width: float = 6.4, height: float = 4.0) -> Figure:
    """Return an empty figure that belongs to no GUI and no global list; its size is in inches.

    Axes get the reports' style if they are added under :func:`use_style`, which is on while an experiment's
    ``sections`` runs.
    """
    return Figure(figsize=(width, height), layout="constrained")


def render(
    directory: str | Path,
    title: str,
    sections: Sequence[Section],
    environment: Mapping[str, Any],
    config: Mapping[str, Any],
) -> Path:
    """Write ``figures/*.png`` and ``report.html`` into a directory and return the report's path.

    Parameters
    ----------
    directory
        Made if it does not exist.
    title, sections
        The content.
    environment
        The result of :func:`fixntk.runner.environment.environment` and, if it is known, the run's ``command``; the
        environments of earlier parts of a resumed run are its list ``earlier``. Shown at the end of the report.
    config
        Shown at the end as well.

    Raises
    ------
    ValueError
        If two figures have the same file name, or one is not a plain name.
    """
    directory = Path(directory)
    stems = [stem for section in sections for stem, _, _ in section.figures]
    for stem in stems:
        if not re.fullmatch(r"\w[\w.-]*", stem) or stems.count(stem) > 1:
            raise ValueError(f"figures need different, plain file names, got {stem!r} in {stems}")
    directory.mkdir(parents=True, exist_ok=True)
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template.filters["classes"] = _class_attribute
    page = template.from_string(Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8"))
    html = page.render(
        title=title,
        sections=[_template_values(section, directory / "figures") for section in sections],
        command=environment.get("command"),
        computed=" · ".join(str(environment[key]) for key in ("device", "started") if key in environment),
        resumed=bool(environment.get("earlier")),
        origin=_origin(environment, config),
        config=yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, default_flow_style=None),
    )
    path = directory / "report.html"
    with replace_when_written(path) as part:
        part.write_text(html, encoding="utf-8")
    return path


def render_markdown(path: str | Path, title: str, sections: Sequence[Section], environment: Mapping[str, Any]) -> Path:
    """Write the same content as a Markdown page, with its figures in ``figures/`` and the page's name beside it.

    Parameters
    ----------
    path
        The page, ending in ``.md``, in a folder that exists.
    title, sections, environment
        As for :func:`render`.

    Raises
    ------
    ValueError
        If the path does not end in ``.md`` or its folder does not exist.
    """
    path = Path(path)
    if path.suffix != ".md" or not path.parent.is_dir():
        raise ValueError(f"{path}: must be a name that ends in .md, in a folder that exists")
    folder = path.parent / "figures" / path.stem
    origin = ", ".join(
        f"{name} {environment[key]}" if name else str(environment[key])
        for key, name in (("cores", "cores:"), ("device", ""), ("jax", "JAX"), ("fixntk", "fixntk"), ("started", ""))
        if key in environment
    )
    command = environment.get("command")
    made = f"Made by {markdown.code(str(command))} and `fixntk report --markdown`" if command else "Made"
    origin = markdown.escape(origin)
    parts = [f"# {markdown.escape(title)}", f"*{made} from the results of a run ({origin}); not written by hand.*"]
    for section in sections:
        parts.append(f"## {markdown.escape(section.title)}")
        if section.cards:
            parts.append(
                markdown.table([(name, False) for name, _ in section.cards], [[text for _, text in section.cards]])
            )
        parts += [markdown.paragraph(_pieces(part)) for part in _paragraphs(section.text)]
        if section.table is not None:
            columns = _columns(section.table)
            cells = ([text for text, _ in column.cells] for column in columns)
            headings = [(column.heading, column.numeric) for column in columns]
            parts.append(markdown.table(headings, zip(*cells, strict=True)))
        for stem, figure, caption in section.figures:
            _save(figure, folder / f"{stem}.png")
            address = markdown.escape_address(f"figures/{path.stem}/{stem}.png")
            parts += [f"![{markdown.escape(caption)}]({address})", f"*{markdown.escape(caption)}*"]
    with replace_when_written(path) as part:
        part.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def _template_values(section: Section, folder: Path) -> dict[str, Any]:
    """A section as the template takes it; its figures are saved to the folder."""
    figures = [
        {
            "caption": caption,
            "size": [round(_PIXELS_PER_INCH * inches) for inches in figure.get_size_inches()],
            # As SVG unless that is large, then as PNG in base64.
            "png": _save(figure, folder / f"{stem}.png"),
            "svg": _inline_svg(figure, stem, caption),
        }
        for stem, figure, caption in section.figures
    ]
    return {
        "title": section.title,
        "cards": section.cards,
        "text": _mark_up(section.text),
        "columns": None if section.table is None else _columns(section.table, section.main_columns),
        "figures": figures,
    }


def _save(figure: Figure, path: Path) -> str:
    """Save a figure and return the same bytes in base64."""
    buffer = io.BytesIO()
    with use_style():
        figure.savefig(buffer, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_when_written(path) as part:
        part.write_bytes(buffer.getvalue())
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _inline_svg(figure: Figure, stem: str, caption: str) -> Markup | None:
    """A figure as markup of the page, or None if that is too long."""
    with use_style():
        text = svg.from_figure(figure, stem, caption, _PIXELS_PER_INCH)
    return Markup(text) if len(text) <= _MAX_SVG_CHARACTERS else None


def _mark_up(text: str) -> Markup:
    paragraphs = [
        Markup("").join(Markup(_HTML_OF[kind]).format(piece) for kind, piece in _pieces(part))
        for part in _paragraphs(text)
    ]
    return Markup("\n").join(Markup("<p>{}</p>").format(paragraph) for paragraph in paragraphs)


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def _pieces(text: str) -> Iterator[tuple[Kind, str]]:
    """The pieces of a paragraph: code and, outside of code, bold; the rest is literal."""
    for k, part in enumerate(re.split(r"`([^`]+)`", text)):
        if k % 2:
            yield "code", part
            continue
        for j, piece in enumerate(re.split(r"\*\*(.+?)\*\*", part, flags=re.DOTALL)):
            yield ("bold" if j % 2 else "literal"), piece


# ------------------------------------------------------------------------------------------------ tables


@dataclass(frozen=True)
class _Column:
    """A column of a table as text.

    Attributes
    ----------
    heading
        The column's name.
    numeric
        Whether all values are numbers.
    long
        Whether a text is long enough to be wrapped.
    cells
        For each row the text that is shown, and the key to sort by, which is empty for a missing value.
    main
        Whether it is shown at first.
    """

    heading: str
    numeric: bool
    long: bool
    cells: tuple[tuple[str, str], ...]
    main: bool = True


def _class_attribute(column: _Column) -> Markup:
    """The class attribute of a column's cells, with a blank before it; empty without classes."""
    kinds = {"number": column.numeric, "long": column.long and not column.numeric, "more": not column.main}
    names = " ".join(name for name, holds in kinds.items() if holds)
    return Markup(' class="{}"').format(names) if names else Markup("")


def _columns(table: pd.DataFrame, main: Sequence[str] = ()) -> list[_Column]:
    columns = [(_heading(name), table.iloc[:, k].tolist()) for k, name in enumerate(table.columns)]
    if not table.index.equals(pd.RangeIndex(len(table))):
        levels = range(table.index.nlevels)
        names = ["" if name is None else str(name) for name in table.index.names]
        columns = [(names[k], table.index.get_level_values(k).tolist()) for k in levels] + columns
        main = [*names, *main] if main else ()
    made = [_column(heading, values) for heading, values in columns]
    return [replace(column, main=column.heading in main and _has_values(column)) for column in made] if main else made


def _has_values(column: _Column) -> bool:
    return any(text != _MISSING for text, _ in column.cells)


def _heading(name: Any) -> str:
    return " ".join(str(part) for part in name if part != "") if isinstance(name, tuple) else str(name)


def _column(heading: str, values: Sequence[Any]) -> _Column:
    present = [value for value in values if not _is_missing(value)]
    numeric = bool(present) and all(_is_number(value) for value in present)
    if numeric:
        sizes = [float(value) for value in present]
        shown = iter(format_numbers(sizes))
        keys = iter([repr(size) for size in sizes])
    else:
        shown = iter([_text(value) for value in present])
        keys = iter([_text(value) for value in present])
    cells = tuple((_MISSING, "") if _is_missing(value) else (next(shown), next(keys)) for value in values)
    return _Column(heading, numeric, any(len(text) > _MAX_LINE_CHARACTERS for text, _ in cells), cells)


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NaT or value is pd.NA or (_is_number(value) and math.isnan(value))


def _is_number(value: Any) -> bool:
    # NumPy's scalars are instances of Real too.
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _text(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool | np.bool_) else str(value)


def _origin(environment: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return by name the versions, devices and seeds of each part of the run, the last part first."""
    earlier = environment.get("earlier", [])
    keys = [key for key in environment if key != "earlier"]
    origin = {key.replace("_", " "): [_value(part.get(key)) for part in (environment, *earlier)] for key in keys}
    seeds = {key: config[key] for key in ("seed", "seeds") if key in config}
    return origin | {key: [_value(value)] * (1 + len(earlier)) for key, value in seeds.items()}


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return _MISSING if value is None else _text(value)
