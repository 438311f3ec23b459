"""Every Python block of the pages and example of a docstring runs, and links between pages lead somewhere."""

import doctest
import importlib
import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")]
PAGES += sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts)


enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64


def blocks_of(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page)], ids=lambda page: page.name)
@pytest.mark.parametrize("x64", [False, pytest.param(True, marks=pytest.mark.long)])
def test_code_blocks_run(page, x64):
    # From top to bottom, as they are read: later blocks use the names of earlier ones.
    names: dict = {}
    with enable_x64(x64):
        for block in blocks_of(page):
            exec(compile(block, str(page), "exec"), names)


MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "fixntk").rglob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("module", MODULES)
def test_examples_of_docstrings_give_what_they_show(module):
    with enable_x64(False):
        failed, tried = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert tried
    assert failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_local_links_lead_to_files(page):
    prose = re.sub(r"\$[^$]*\$", "", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#]+)", prose):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_m_number_of_a_docstring_is_a_section():
    sections = set(re.findall(r"^## (M\d+) ", (ROOT / "docs/mathematics.md").read_text(encoding="utf-8"), re.MULTILINE))
    used = set()
    for path in (ROOT / "fixntk").rglob("*.py"):
        used |= set(re.findall(r"\bM\d+\b", path.read_text(encoding="utf-8")))
    assert used
    assert used <= sections
