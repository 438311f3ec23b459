"""A report in headless Chromium: no errors in its console, figures with values, tables that sort. Needs Chromium."""

import json
import re
import subprocess

import pandas as pd
import pytest
from accessibility import CHROMIUM, serious_violations

from fixntk.runner import report
from fixntk.runner.marks import label_points
from fixntk.runner.report import Section

# Runs in the page after its own script, and leaves what it found in the document.
PROBE = """
<script>
addEventListener("load", () => {
  const rows = () => [...document.querySelectorAll("table.sortable tbody tr")];
  const texts = (column) => rows().map((row) => row.cells[column].textContent);
  const press = (column) => document.querySelectorAll("table.sortable th button")[column].click();
  const found = { start: texts(0), widths: [...document.querySelectorAll("svg")].map((image) => image.clientWidth) };
  found.overflow = document.documentElement.scrollWidth > document.documentElement.clientWidth;
  press(1); found.ascending = texts(1);
  press(1); found.descending = texts(1);
  press(0); found.words = texts(0);
  const plot = document.querySelector(".plot");
  const marks = [...plot.querySelectorAll(".marks > *")];
  const tip = document.querySelector(".tip");
  const hover = (shape, shift) => {
    const box = shape.getBoundingClientRect();
    const place = { clientX: box.left + box.width / 2 + shift, clientY: box.top + box.height / 2 };
    plot.dispatchEvent(new PointerEvent("pointermove", { ...place, bubbles: true }));
    return tip.textContent;
  };
  const key = (name) => {
    plot.dispatchEvent(new KeyboardEvent("keydown", { key: name }));
    return tip.textContent;
  };
  found.tips = marks.map((shape) => hover(shape, 5));
  found.near = marks.map((shape) => shape.classList.contains("near"));
  const { left, right, top } = tip.getBoundingClientRect();
  found.inside = left >= 0 && top >= 0 && right <= innerWidth;
  found.away = hover(marks[2], 60);
  found.keys = ["ArrowRight", "ArrowRight", "ArrowLeft", "Escape"].map(key);
  found.colours = ["text", "path"].map((tag) => getComputedStyle(plot.querySelector(tag)).fill);
  const result = document.createElement("pre");
  result.id = "probe";
  result.textContent = JSON.stringify(found);
  document.body.append(result);
});
</script>
"""


# Scrolls each table to its right end; then whether it could be scrolled, and whether its first column is still shown.
PROBE_OF_TABLES = """
<script>
addEventListener("load", () => {
  const found = [...document.querySelectorAll(".box")].map((box) => {
    box.scrollLeft = 1e6;
    box.scrollIntoView({ behavior: "instant" });
    const cell = box.querySelector("tbody tr").cells[0];
    const { left, top } = cell.getBoundingClientRect();
    return [box.scrollLeft > 0, cell.contains(document.elementFromPoint(left + 5, top + 5))];
  });
  const result = document.createElement("pre");
  result.id = "probe";
  result.textContent = JSON.stringify(found);
  document.body.append(result);
});
</script>
"""


def opened(path, width, *options, probe=PROBE):
    """What the probe found, and the lines of the console, in a window so many pixels wide."""
    probed = path.with_name("probed.html")
    probed.write_text(path.read_text(encoding="utf-8").replace("</body>", probe + "</body>"), encoding="utf-8")
    options += ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr")
    profile = f"--user-data-dir={path.parent / 'profile'}"
    command = [CHROMIUM, *options, profile, f"--window-size={width},900", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run([*command, probed.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    (found,) = re.findall(r'<pre id="probe">(.*?)</pre>', done.stdout, re.S)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(found.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")), console


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [400, 900, 1600])
def test_a_report_opens_sorts_and_shows_its_figures(tmp_path, width):
    with report.use_style():
        figure = report.new_figure()
        label_points(figure.subplots().plot([1, 2, 3], "o")[0], ["a", "<b>", "c"])
    table = pd.DataFrame({"name": ["b", "a10", "a2", "<c>"], "value": [10.0, -1.5, None, 9.0]})
    section = Section("A", "Text", table=table, figures=(("plot", figure, "Caption"),))
    path = report.render(tmp_path, "Title", [section], {"fixntk": "0.1"}, {"experiment": "toy"})
    found, console = opened(path, width)
    assert console == []
    assert found["start"] == ["b", "a10", "a2", "<c>"]
    assert min(704, width - 60) <= found["widths"][0] <= 704  # pixels; margins and a scroll bar take some
    assert not found["overflow"]
    assert [float(value.replace("−", "-")) for value in found["ascending"][:3]] == [-1.5, 9, 10]
    assert [float(value.replace("−", "-")) for value in found["descending"][:3]] == [10, 9, -1.5]
    # What is missing stays last.
    assert found["ascending"][3] == found["descending"][3] == "–"
    assert found["words"] == ["<c>", "a2", "a10", "b"]
    # Near a point its values are shown, in sight, and nothing far from all of them.
    assert found["tips"] == ["a\n0\n1", "<b>\n1\n2", "c\n2\n3"]
    assert found["near"] == [False, False, True]
    assert found["inside"]
    assert found["away"] == ""
    assert found["keys"] == ["a\n0\n1", "<b>\n1\n2", "a\n0\n1", ""]
    assert found["colours"] == ["rgb(28, 33, 40)", "rgb(255, 255, 255)"]
    # Dark figures on a dark page.
    found, console = opened(path, width, "--blink-settings=preferredColorScheme=0")
    assert console == []
    assert found["colours"] == ["rgb(227, 232, 238)", "rgb(21, 25, 30)"]


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [400, 900])
def test_the_first_column_stays_in_sight_while_a_table_scrolls(tmp_path, width):
    numbers = {f"a long heading, {k}": [0.1234, 1.5] for k in range(20)}
    texts = ["a text of several words that is wrapped, as it is too long for one line " * 2] * 2
    sections = [Section(name, table=pd.DataFrame({name: keys} | numbers)) for name, keys in (("A", "ab"), ("B", texts))]
    environment = {"fixntk": "0.1", "command": "a word " * 40}
    path = report.render(tmp_path, "Title", sections, environment, {"experiment": "toy"})
    found, _ = opened(path, width, probe=PROBE_OF_TABLES)
    assert found == [[True, True]] * 3


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("dark", [False, True])
def test_a_report_has_no_serious_violation_of_accessibility(tmp_path, dark):
    with report.use_style():
        figure = report.new_figure()
        label_points(figure.subplots().plot([1, 2, 3], "o")[0], ["a", "b", "c"])
    table = pd.DataFrame({"name": ["b", "a"], "value": [10.0, -1.5]})
    section = Section("A", "Text", table=table, figures=(("plot", figure, "Caption"),))
    path = report.render(tmp_path, "Title", [section], {"fixntk": "0.1"}, {"experiment": "toy"})
    assert serious_violations(path, tmp_path, dark=dark) == []


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_violations_are_really_found(tmp_path):
    path = tmp_path / "page.html"
    path.write_text('<html lang="en"><title>A</title><body><p style="color: #ddd">Pale</p><img src="a.png"></body>')
    assert sorted(each[0] for each in serious_violations(path, tmp_path)) == ["color-contrast", "image-alt"]


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_console_is_really_read(tmp_path):
    path = tmp_path / "page.html"
    path.write_text('<body><pre id="probe">{}</pre><script>console.error("broken")</script></body>')
    _, console = opened(path, 800)
    assert any("broken" in line for line in console)
