import base64
import re
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from fixntk.runner import report
from fixntk.runner.report import Section

ENVIRONMENT = {"fixntk": "0.1", "device": "cpu <x>", "started": "2024-01-01T00:00:00+00:00", "git_revision": None}
CONFIG = {"experiment": "toy", "seeds": [3, 4], "solver": {"tol": 1e-3}}


class Page(HTMLParser):
    """Collects the tags with their attributes, and the text of cells and headings."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self._open = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_data(self, data):
        self.texts.append((self._open, data))

    def named(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]

    def text(self, name):
        return [text for tag, text in self.texts if tag == name and text.strip()]


def page(tmp_path, *sections, environment=ENVIRONMENT):
    return Page(report.render(tmp_path, "Title", sections, environment, CONFIG).read_text(encoding="utf-8"))


def figure():
    with report.use_style():
        new = report.new_figure()
        new.subplots().plot([1, 2, 3])
    return new


# Links to the other files of a run's folder.
FILES = ["results.jsonl", "summary.json", "config.json"]


def test_page_fetches_nothing(tmp_path):
    shown = page(tmp_path, Section("A", figures=(("plot", figure(), "Caption"),)))
    addresses = [
        attributes[key] for _, attributes in shown.tags for key in ("src", "href", "srcset") if key in attributes
    ]
    assert all(address.startswith(("data:", "#")) or address in FILES for address in addresses)
    assert not shown.named("link")
    policy = next(meta["content"] for meta in shown.named("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none';")
    # Clip paths are in the page itself.
    assert not re.search(r"url\((?!#)|@import|https?://", (tmp_path / "report.html").read_text())


def test_figures_are_files_and_inline_with_their_caption_as_name(tmp_path):
    shown = page(tmp_path, Section("A", figures=(("plot", figure(), 'A "caption" & more'),)))
    assert not shown.named("img")
    (image,) = shown.named("svg")
    assert (image["role"], image["aria-label"]) == ("img", 'A "caption" & more')
    assert (image["width"], image["height"]) == ("704", "440")  # 6.4 x 4 inches at 110 pixels each
    saved = (tmp_path / "figures" / "plot.png").read_bytes()
    assert np.array_equal(np.frombuffer(saved[16:24], ">u4"), [960, 600])  # 6.4 x 4 inches at 150 dpi


def test_a_figure_with_too_much_in_it_is_an_image(tmp_path):
    with report.use_style():
        crowded = report.new_figure()
        crowded.subplots().plot(*np.random.default_rng(0).normal(size=(2, 20_000)), ".")
    shown = page(tmp_path, Section("A", figures=(("plot", crowded, 'A "caption" & more'),)))
    assert not shown.named("svg")
    (image,) = shown.named("img")
    saved = (tmp_path / "figures" / "plot.png").read_bytes()
    assert base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) == saved
    assert image["alt"] == 'A "caption" & more'


def test_ids_of_a_page_with_two_figures_are_different_and_references_reach_them(tmp_path):
    shown = page(tmp_path, Section("A", figures=(("one", figure(), ""), ("two", figure(), ""))))
    names = [attributes["id"] for _, attributes in shown.tags if "id" in attributes]
    values = [value or "" for tag, attributes in shown.tags for value in attributes.values()]
    references = {name for value in values for name in re.findall(r"url\(#([^)]*)\)", value)}
    references |= {mark["href"].removeprefix("#") for mark in shown.named("use")}
    assert len(set(names)) == len(names)
    assert references
    assert references <= set(names)


@pytest.mark.parametrize("stems", [("a", "a"), ("../a",), (".a",), ("a/b",)])
def test_figure_names_must_be_plain_and_different(tmp_path, stems):
    with pytest.raises(ValueError, match="figures need different, plain file names"):
        page(tmp_path, Section("A", figures=tuple((stem, figure(), "") for stem in stems)))


def test_everything_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    table = pd.DataFrame({evil: [evil]}, index=pd.Index([evil], name=evil))
    shown = page(tmp_path, Section(evil, f"{evil} **{evil}** `{evil}`", table, (("plot", figure(), evil),)))
    assert len(shown.named("script")) == 1  # the page's own
    assert shown.text("h2")[0] == evil
    assert shown.text("td")[:2] == [evil, evil]
    assert shown.text("strong") == shown.text("code") == [evil]


def test_text_has_paragraphs_bold_and_code(tmp_path):
    page(tmp_path, Section("A", "One **two\nthree** `a**b**c`.\n\n \nFour * five ** six."))
    text = (tmp_path / "report.html").read_text()
    assert "<p>One <strong>two\nthree</strong> <code>a**b**c</code>.</p>\n<p>Four * five ** six.</p>" in text


def test_tables_are_sortable_by_button_with_full_precision(tmp_path):
    table = pd.DataFrame({"name": ["b", None], "score": [0.123456789, np.nan], "n": [1, 2]})
    shown = page(tmp_path, Section("A", table=table))
    assert shown.text("button") == ["name", "score", "n"]
    assert [heading["aria-sort"] for heading in shown.named("th")[:3]] == ["none"] * 3
    assert [cell.get("data-value") for cell in shown.named("td")[:6]] == [None, "0.123456789", "1.0", None, "", "2.0"]
    assert [cell.get("class") for cell in shown.named("td")[:3]] == [None, "number", "number"]
    assert shown.text("td")[:6] == ["b", "0.1235", "1", "–", "–", "2"]
    box = shown.named("div")[0]
    assert (box["class"], box["tabindex"], box["aria-label"]) == ("box", "0", "Table: A")


def test_index_is_shown_unless_it_only_counts(tmp_path):
    table = pd.DataFrame(
        {("a", "x"): [1], ("a", "y"): [2]}, index=pd.MultiIndex.from_tuples([("p", 3)], names=["k", "m"])
    )
    assert page(tmp_path, Section("A", table=table)).text("button") == ["k", "m", "a x", "a y"]
    assert page(tmp_path, Section("A", table=table.reset_index(drop=True))).text("button") == ["a x", "a y"]


@pytest.mark.parametrize("table", [pd.DataFrame(), pd.DataFrame({"a": []})])
def test_empty_table_says_so(tmp_path, table):
    assert "no rows" in page(tmp_path, Section("A", table=table)).text("td")


def test_bools_and_mixed_columns_are_text(tmp_path):
    table = pd.DataFrame({"a": [True, False], "b": [np.bool_(True), "x"], "c": [np.int64(5), None]}, dtype=object)
    shown = page(tmp_path, Section("A", table=table))
    assert shown.text("td")[:6] == ["yes", "yes", "5", "no", "x", "–"]
    assert [cell.get("class") for cell in shown.named("td")[:3]] == [None, None, "number"]


def test_sections_are_listed_when_there_are_more_than_three(tmp_path):
    assert not page(tmp_path, *map(Section, "ABC")).named("nav")
    shown = page(tmp_path, *map(Section, "ABCD"))
    files, targets = np.split([link["href"] for link in shown.named("a")], [3])
    assert files.tolist() == FILES
    assert targets.tolist() == ["#section-1", "#section-2", "#section-3", "#section-4", "#origin"]
    assert {section["id"] for section in shown.named("section")} == {target[1:] for target in targets}


def test_the_few_numbers_that_count_are_cards(tmp_path):
    section = Section("A", "Text", cards=(("tables <5", "3 & 4"), ("seconds", "2")))
    shown = page(tmp_path, section)
    assert (shown.text("dt"), shown.text("dd")) == (["tables <5", "seconds"], ["3 & 4", "2"])
    assert not page(tmp_path, Section("A")).named("dl")
    text = report.render_markdown(tmp_path / "page.md", "Title", [section], ENVIRONMENT).read_text()
    assert re.search(r"\| tables .*5 \| seconds \|\n.*\n\| 3 .* 4 \| 2 \|\n\nText", text)


def test_columns_that_are_not_main_wait_for_a_check(tmp_path):
    table = pd.DataFrame({"a": [1, 2], "b": [3, 4], "c": ["x", "y"]}, index=pd.Index(["p", "q"], name="name"))
    shown = page(tmp_path, Section("A", table=table, main_columns=("b",)))
    classes = [cell.get("class", "") for cell in shown.named("td")[:4]]
    assert classes == ["", "number more", "number", "more"]
    assert [box["type"] for box in shown.named("input")] == ["checkbox"]
    # A column without values waits too, though it is a main one.
    table["d"] = None
    shown = page(tmp_path, Section("A", table=table, main_columns=("b", "d")))
    assert [cell.get("class", "") for cell in shown.named("td")[3:5]] == ["more", "more"]
    everything = page(tmp_path, Section("A", table=table))
    assert not everything.named("input")
    assert not any("more" in cell.get("class", "") for cell in everything.named("td"))


def test_report_ends_with_config_versions_device_and_seeds(tmp_path):
    shown = page(tmp_path)
    assert shown.text("pre") == ["experiment: toy\nseeds: [3, 4]\nsolver: {tol: 0.001}\n"]
    facts = dict(zip(shown.text("th"), shown.text("td"), strict=True))
    assert facts["device"] == "cpu <x>"
    assert facts["git revision"] == "–"
    assert facts["seeds"] == "3, 4"


def test_earlier_parts_of_a_resumed_run_are_shown_beside(tmp_path):
    shown = page(tmp_path, environment=ENVIRONMENT | {"earlier": [ENVIRONMENT | {"device": "gpu"}]})
    assert {"cpu <x>", "gpu"} <= set(shown.text("td"))


def test_style_is_only_on_inside_the_context():
    before = dict(mpl.rcParams)
    with report.use_style():
        assert mpl.rcParams["axes.spines.top"] is False
        assert min(mpl.rcParams[key] for key in ("font.size", "legend.fontsize")) >= 9
    assert dict(mpl.rcParams) == before


def test_figures_do_not_touch_pyplot():
    import matplotlib.pyplot as plt

    figure()
    assert plt.get_fignums() == []


def test_the_same_content_as_a_markdown_page(tmp_path):
    table = pd.DataFrame({"name": ["a|b", "c"], "value": [0.12345, -1.5]})
    sections = [
        Section("First", "**Bold** and `code`.\n\nMore.", table=table, figures=(("plot", figure(), "A caption"),)),
        Section("Second"),
    ]
    environment = ENVIRONMENT | {"command": "fixntk run x.yaml"}
    written = report.render_markdown(tmp_path / "page.md", "Title", sections, environment)
    blocks = written.read_text(encoding="utf-8").split("\n\n")
    assert blocks[0] == "# Title"
    assert "`fixntk run x.yaml`" in blocks[1]
    assert blocks[2:5] == ["## First", "**Bold** and `code`.", "More."]
    assert blocks[5].splitlines() == [
        "| name | value |",
        "| --- | --: |",
        "| a\\|b | 0.123 |",
        "| c | −1.500 |",
    ]
    assert blocks[6] == "![A caption](figures/page/plot.png)"
    assert (tmp_path / "figures" / "page" / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert blocks[8].strip() == "## Second"
    for wrong in (tmp_path / "page.html", tmp_path / "none" / "page.md"):
        with pytest.raises(ValueError, match=r"ends in \.md"):
            report.render_markdown(wrong, "Title", sections, ENVIRONMENT)
