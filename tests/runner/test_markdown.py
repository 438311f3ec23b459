"""A Markdown page shows text as it is, by the reading of markdown-it."""

import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from mdit_py_plugins.colon_fence import colon_fence_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.myst_blocks import myst_block_plugin
from mdit_py_plugins.myst_role import myst_role_plugin

from fixntk.runner import markdown, report
from fixntk.runner.report import Section

RENDERER = MarkdownIt("commonmark").enable("table").enable("strikethrough")
# As MyST reads pages, for Sphinx.
for plugin in (myst_block_plugin, myst_role_plugin, dollarmath_plugin, colon_fence_plugin):
    RENDERER.use(plugin)
EVIL = (
    '<script>alert(1)</script><img src=x onerror="alert(1)"> & &lt; [a](javascript:b) ![c](d) '
    "`e` **f** _g_ h_i $j$ ~~k~~"
)
# Text made of what is markup somewhere.
PIECES = [*"abc 1.)-+#=>|*_`[](){}!<&;\\~$%\n\t:é", "**", "```", "<b>", "&lt;", "---", "+++", "(a)=", "{math}", ":::"]
MARKED = st.lists(st.sampled_from(PIECES)).map("".join)
NAMES = MARKED | st.text(st.characters(codec="utf-8", exclude_characters="\0"))


class Content(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, _):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def content_of(page):
    return Content(RENDERER.render(page))


def words(text):
    return " ".join(text.split())


@given(NAMES)
def test_a_heading_shows_the_text(text):
    shown = content_of(f"# {markdown.escape(text)}")
    assert shown.tags == ["h1"]
    assert words(shown.text) == words(text)


@given(NAMES.filter(str.strip))
def test_a_span_of_code_shows_the_text(text):
    shown = content_of("x " + markdown.code(text))
    assert shown.tags == ["p", "code"]
    assert words(shown.text) == words(f"x {text}")


@given(st.lists(st.tuples(NAMES, NAMES), max_size=3))
def test_a_table_shows_names_and_cells(rows):
    shown = content_of(markdown.table([("a", False), ("b", True)], rows))
    assert set(shown.tags) <= {"table", "thead", "tbody", "tr", "th", "td"}
    assert shown.tags.count("td") == 2 * len(rows)
    assert words(shown.text) == words(" ".join(["a b", *(cell for row in rows for cell in row)]))


@given(MARKED)
def test_text_has_no_markup_but_bold_and_code(text):
    parts = report._paragraphs(text)
    shown = content_of("\n\n".join(markdown.paragraph(report._pieces(part)) for part in parts))
    assert set(shown.tags) <= {"p", "strong", "code"}
    assert shown.tags.count("p") == sum(bool(Content(str(report._mark_up(part))).text.strip()) for part in parts)
    # Bold of nothing but spaces, or beside them, is none in Markdown, and shows its asterisks.
    plain = Content(str(report._mark_up(text))).text
    assert re.sub(r"[\s*]", "", shown.text) == re.sub(r"[\s*]", "", plain)


@pytest.mark.parametrize("environment", [{}, {"command": f"fixntk run 'tables=[{EVIL}]'", "device": EVIL}])
def test_a_page_holds_no_html_of_a_run(tmp_path, environment):
    figure = report.new_figure()
    table = pd.DataFrame({EVIL: [f"{EVIL}\n\n# x", "y"]})
    section = Section(EVIL, f"# One\n- two {EVIL}", table, (("plot", figure, f"{EVIL}\n\n<b>"),))
    page = report.render_markdown(tmp_path / "a page).md", EVIL, [section], environment).read_text(encoding="utf-8")
    shown = content_of(page)
    assert set(shown.tags) <= {
        *("h1", "h2", "p", "em", "strong", "code", "img", "table", "thead", "tbody", "tr", "th", "td"),
    }
    assert shown.tags.count("img") == shown.tags.count("h2") == 1
    assert (tmp_path / "figures" / "a page)" / "plot.png").exists()
    assert "figures/a%20page%29/plot.png" in RENDERER.render(page)
