"""The built pages: they ask no other host for anything, their formulas are MathML, and each notebook can be had."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from accessibility import CHROMIUM, serious_violations

DOCS = Path(__file__).parent.parent / "docs"
# Those that a browser opens: one of each kind.
OPENED = ("index.html", "mathematics.html", "convex_programs.html", "api/convex.html", "search.html", "gallery.html")
# Links that a browser follows by itself, without being asked.
LOADING = {
    "stylesheet",
    "icon",
    "shortcut",
    "preload",
    "prefetch",
    "preconnect",
    "dns-prefetch",
    "modulepreload",
    "manifest",
}

pytestmark = [pytest.mark.long, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    # A copy, as the gallery's pages are written beside their sources.
    source = shutil.copytree(DOCS, folder / "docs", ignore=shutil.ignore_patterns("_build", "generated"))
    for name in ("benchmarks", "LICENSE"):
        (folder / name).symlink_to(DOCS.parent / name)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", source, folder / "html"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, cwd=DOCS.parent, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "html"


class Loaded(HTMLParser):
    """Collects the addresses that a page makes a browser load."""

    def __init__(self, text):
        super().__init__()
        self.addresses = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = {name: value or "" for name, value in attributes}
        if tag in {"script", "img", "iframe", "source", "audio", "video", "embed", "input"}:
            self.addresses += [values.get("src", ""), *re.split(r"[\s,]+", values.get("srcset", ""))]
        if tag == "link" and LOADING & set(values.get("rel", "").split()):
            self.addresses.append(values.get("href", ""))
        if tag in {"use", "image"}:
            self.addresses += [values.get("href", ""), values.get("xlink:href", "")]
        self.addresses += addresses_of_styles(values.get("style", ""))


def addresses_of_styles(text):
    return re.findall(r"(?:url\(|@import\s+)[\"']?([^\"')\s;]+)", text)


def is_elsewhere(address):
    return re.match(r"(?:[a-z]+:)?//", address) is not None


def outside_addresses(text):
    styles = "".join(re.findall(r"<style[^>]*>(.*?)</style>", text, re.DOTALL))
    return [each for each in Loaded(text).addresses + addresses_of_styles(styles) if is_elsewhere(each)]


def requested(address, folder):
    """The addresses on other hosts that Chromium asks for when it opens a page, by its own log of the network."""
    log = folder / "network.json"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    # No name is resolved, so that nothing is sent either.
    options += [
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder / 'profile'}",
        f"--log-net-log={log}",
    ]
    command = [CHROMIUM, *options, "--virtual-time-budget=5000", "--dump-dom", address]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    events = [event.get("params", {}) for event in json.loads(log.read_text(encoding="utf-8"))["events"]]
    # Chromium has requests of its own, which belong to no page.
    urls = [event.get("url", "") for event in events if "file://" in event.get("network_isolation_key", "")]
    return {url for url in urls if url.startswith(("http", "ws"))}


def test_no_page_or_style_names_another_host(pages):
    found = sorted(pages.rglob("*.html"))
    assert len(found) > 30
    for page in found:
        assert outside_addresses(page.read_text(encoding="utf-8")) == [], page
    for style in pages.rglob("*.css"):
        assert not [each for each in addresses_of_styles(style.read_text(encoding="utf-8")) if is_elsewhere(each)], (
            style
        )


@pytest.mark.parametrize("name", OPENED)
def test_a_browser_that_opens_a_page_asks_no_other_host(pages, tmp_path, name):
    assert requested((pages / name).as_uri(), tmp_path) == set()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", OPENED)
def test_pages_have_no_serious_violation_of_accessibility(pages, tmp_path, name, dark):
    assert serious_violations(pages / name, tmp_path, dark=dark) == []


def test_what_would_be_loaded_is_really_seen(tmp_path):
    text = '<style>@import "https://a.invalid/a.css";</style><img srcset="//b.invalid/b.png 2x">'
    text += (
        '<script src="/c.js"></script><link rel="canonical" href="https://d.invalid"><a href="https://e.invalid">e</a>'
    )
    assert outside_addresses(text) == ["//b.invalid/b.png", "https://a.invalid/a.css"]
    page = tmp_path / "page.html"
    page.write_text('<img src="https://outside.invalid/picture.png">', encoding="utf-8")
    assert requested(page.as_uri(), tmp_path) == {"https://outside.invalid/picture.png"}


def test_formulas_are_mathml_with_the_font_of_the_pages(pages):
    text = (pages / "mathematics.html").read_text(encoding="utf-8")
    assert text.count("<math") > 500
    assert r"\lambda" not in text
    assert (pages / "_static/formulas.woff").stat().st_size > 50_000


def test_every_page_with_cells_has_its_notebook_with_outputs(pages):
    sources = [page for page in DOCS.rglob("*.md") if "```{code-cell}" in page.read_text(encoding="utf-8")]
    assert sources
    for source in sources:
        name = source.relative_to(DOCS).with_suffix("")
        html = (pages / name).with_suffix(".html")
        (address,) = re.findall(r'href="([^"]+\.ipynb)" download', html.read_text(encoding="utf-8"))
        cells = json.loads((html.parent / address).read_text(encoding="utf-8"))["cells"]
        assert any(cell.get("outputs") for cell in cells)
        # Its images are inside, and no link leads to a page that is not there.
        for cell in cells:
            text = "".join(cell["source"]) if cell["cell_type"] == "markdown" else ""
            assert not re.search(r"^(:::|```{)", text, re.MULTILINE), name
            for target in re.findall(r"\]\(([^)]*)\)", text):
                assert target.startswith(("attachment:", "http")), (name, target)
