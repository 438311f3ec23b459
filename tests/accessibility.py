"""Axe's rules of accessibility on a page in headless Chromium."""

import html
import json
import re
import shutil
import subprocess
from importlib import resources

# Not run, and its Playwright is not installed: it carries the script.
import axe_playwright_python

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# What axe calls an impact, where people with a screen reader, a keyboard or weak sight cannot go on.
SERIOUS = ("serious", "critical")

_PROBE = """
addEventListener("load", async () => {
  const { violations } = await axe.run();
  const result = document.createElement("pre");
  result.id = "violations";
  result.textContent = JSON.stringify(violations.map(({ id, impact, nodes }) => [id, impact, nodes[0].html]));
  document.body.append(result);
});
"""


def serious_violations(path, folder, *, width=1200, dark=False):
    """Serious violations of a page in a file, each as axe's rule, its impact and the first element.

    The page is copied beside itself, with axe's script in it; the browser's profile is kept in ``folder``.
    """
    script = resources.files(axe_playwright_python).joinpath("axe.min.js").read_text(encoding="utf-8")
    text = path.read_text(encoding="utf-8")
    probed = path.resolve().with_name(f"probed-{path.name}")
    probed.write_text(text.replace("</body>", f"<script>{script}{_PROBE}</script></body>"), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--window-size={width},900"]
    options += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000", "--dump-dom"]
    options += ["--blink-settings=preferredColorScheme=0"] if dark else []
    try:
        command = [CHROMIUM, *options, probed.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    finally:
        probed.unlink()
    (found,) = re.findall(r'<pre id="violations">(.*?)</pre>', done.stdout, re.DOTALL)
    return [each for each in json.loads(html.unescape(found)) if each[1] in SERIOUS]
