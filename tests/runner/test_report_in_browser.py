"""A report in headless Chromium: no errors in its console, figures that show, tables that sort. Needs Chromium."""

import json
import re
import shutil
import subprocess

import pandas as pd
import pytest

from fixntk.runner import report
from fixntk.runner.report import Section

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# Runs in the page after its own script, and leaves what it found in the document.
PROBE = """
<script>
addEventListener("load", () => {
  const rows = () => [...document.querySelectorAll("table.sortable tbody tr")];
  const texts = (column) => rows().map((row) => row.cells[column].textContent);
  const press = (column) => document.querySelectorAll("table.sortable th button")[column].click();
  const found = { start: texts(0), widths: [...document.images].map((image) => image.naturalWidth) };
  found.overflow = document.documentElement.scrollWidth > document.documentElement.clientWidth;
  press(1); found.ascending = texts(1);
  press(1); found.descending = texts(1);
  press(0); found.words = texts(0);
  const result = document.createElement("pre");
  result.id = "probe";
  result.textContent = JSON.stringify(found);
  document.body.append(result);
});
</script>
"""


def opened(path, width):
    """What the probe found, and the lines of the console, in a window so many pixels wide."""
    probed = path.with_name("probed.html")
    probed.write_text(path.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr"]
    profile = f"--user-data-dir={path.parent / 'profile'}"
    command = [CHROMIUM, *options, profile, f"--window-size={width},900", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run([*command, probed.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    (found,) = re.findall(r'<pre id="probe">(.*?)</pre>', done.stdout, re.S)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(found.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")), console


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [500, 1200])
def test_a_report_opens_sorts_and_shows_its_figures(tmp_path, width):
    with report.use_style():
        figure = report.new_figure()
        figure.subplots().plot([1, 2, 3])
    table = pd.DataFrame({"name": ["b", "a10", "a2", "<c>"], "value": [10.0, -1.5, None, 9.0]})
    section = Section("A", "Text", table=table, figures=(("plot", figure, "Caption"),))
    path = report.render(tmp_path, "Title", [section], {"fixntk": "0.1"}, {"experiment": "toy"})
    found, console = opened(path, width)
    assert console == []
    assert found["start"] == ["b", "a10", "a2", "<c>"]
    assert found["widths"] == [960]
    assert not found["overflow"]
    assert [float(value.replace("−", "-")) for value in found["ascending"][:3]] == [-1.5, 9, 10]
    assert [float(value.replace("−", "-")) for value in found["descending"][:3]] == [10, 9, -1.5]
    # What is missing stays last.
    assert found["ascending"][3] == found["descending"][3] == "–"
    assert found["words"] == ["<c>", "a2", "a10", "b"]


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_console_is_really_read(tmp_path):
    path = tmp_path / "page.html"
    table = '<table class="sortable"><thead><tr><th><button></button><th><button></button></table>'
    path.write_text(f'<body>{table}<script>console.error("broken")</script></body>')
    _, console = opened(path, 800)
    assert any("broken" in line for line in console)
