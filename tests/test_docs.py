"""Every Python block of the pages and example of a docstring runs, and links between pages lead somewhere."""

import ast
import doctest
import importlib
import re
from pathlib import Path

import jax
import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

import fixntk
from fixntk import estimators, plots

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")]
PAGES += sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts)


enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64


def blocks_of(page):
    # Cells, which the build of the pages runs as well, may begin with options such as ":tags: [hide-input]".
    blocks = r"```(?:python|{code-cell} ipython3)\n(?::[^\n]*\n)*(.*?)```"
    return re.findall(blocks, page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page)], ids=lambda page: page.name)
@pytest.mark.parametrize("x64", [False, pytest.param(True, marks=pytest.mark.long)])
def test_code_blocks_run(page, x64, monkeypatch):
    # Where there is a screen, it would wait for someone to close the figure.
    monkeypatch.setattr(plt, "show", lambda: None)
    # From top to bottom, as they are read: later blocks use the names of earlier ones.
    names: dict = {}
    # Pages set the style of their figures, which other tests should not find.
    with enable_x64(x64), mpl.rc_context():
        for block in blocks_of(page):
            exec(compile(block, str(page), "exec"), names)
    plt.close("all")


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


# Numbers that pages quote from docs/paper.md: the page, its words, and the words of docs/paper.md ("…" is any text).
QUOTES = [
    (
        "README.md",
        "the optimum is {median} % below the NTK's objective at the NTK's best scale (median of {splits} splits of 33 "
        "UCI and KEEL data sets; {least} % to {most} % on single data sets). In no split is the NTK below the "
        "certified lower bound.",
        "The optimum is {median}% below the training objective of the NTK of the sampled gates at its best scale in "
        "the median split, {least}% to {most}% on single tables. The NTK's objective is below the certified bound in 0 "
        "of {splits} splits",
    ),
    (
        "README.md",
        "higher than or the same as the NTK on {not_lower} of 33 data sets ({higher} higher, {lower} lower; the paper "
        "reports 26 of 33)",
        "the same as the NTK's on {not_lower} of 33 tables ({higher} higher)…lower on {lower}, Wilcoxon",
    ),
    (
        "README.md",
        "The mean difference is {mean}, with a 95 % interval from {low} to {high} and a Wilcoxon p-value of {p}: no "
        "evidence",
        "Against the NTK the fixed kernel's is {mean} on average (95 % interval over tables {low} to {high}), "
        "higher…Wilcoxon p = {p}. Against",
    ),
    ("README.md", "(rank correlation {rho})", "with the gain in test accuracy is {rho} (Spearman"),
    (
        "docs/index.md",
        "the optimum is {median} % below the NTK's objective at the NTK's best scale: the median of {splits} splits of "
        "33 data sets",
        "The optimum is {median}% below the training objective of the NTK of the sampled gates at its best scale in "
        "the median split,…of {splits} splits",
    ),
    (
        "docs/index.md",
        "higher than or the same as the NTK's on {not_lower} of 33 data sets, with a mean difference of {mean}: no "
        "evidence",
        "the same as the NTK's on {not_lower} of 33 tables…Against the NTK the fixed kernel's is {mean} on average",
    ),
    (
        "docs/comparison.md",
        "is {mean} on average, higher on {higher} tables, the same on {same}, lower on {lower}.",
        "The fixed kernel (Wilcoxon's signed-rank test) against auto gates: {mean} on average (95 % interval over "
        "tables…higher on {higher}, the same on {same}, lower on {lower},",
    ),
    (
        "README.md",
        "have {mean} times the NTK's error, and at most {most} times",
        "Chosen gates have {mean} times the NTK's error, and at most {most} times;",
    ),
    (
        "docs/index.md",
        "have {mean} times the NTK's error, and at most {most} times",
        "Chosen gates have {mean} times the NTK's error, and at most {most} times;",
    ),
    (
        "docs/comparison.md",
        "the NTK in {random} % of {cases} cases, discovered gates (`fx.discover`) in {found} %.",
        "the NTK's in {random}% of the cases with random gates and in {found}% with discovered…of {cases}.",
    ),
    (
        "docs/gallery.md",
        "the test error is {found} of the NTK's with gates that the targets ask for (geometric mean, 95 % interval "
        "{a} to {b}) and {random} with random ones ({c} to {d}).",
        "gated teacher: fixed, random gates {random} ({c} to {d}), fixed, discovered gates {found} ({a} to {b})",
    ),
    (
        "docs/networks.md",
        "In {cases} cases on three problems, no network ends below the bound.",
        "Training ends below the certified bound in 0 of {cases} cases",
    ),
]


@pytest.mark.parametrize(("page", "quoted", "measured"), QUOTES)
def test_numbers_quoted_from_the_page_of_the_claims_are_those_on_it(page, quoted, measured):
    def words_of(name):
        return " ".join((ROOT / name).read_text(encoding="utf-8").split())

    pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\S+?)", re.escape(measured)).replace("…", ".*?")
    numbers = re.search(pattern, words_of("docs/paper.md"))
    assert numbers, pattern
    assert quoted.format(**numbers.groupdict()) in words_of(page)


@pytest.mark.parametrize("module", [fixntk, estimators, plots], ids=lambda module: module.__name__)
def test_every_public_name_is_in_the_reference_once_and_under_that_name(module):
    text = "\n".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs/api").glob("*.md")))
    shown = re.findall(rf"^\.\. (?:auto(?!module)\w+|data):: {re.escape(module.__name__)}\.(\w+)$", text, re.MULTILINE)
    names = [name for name in module.__all__ if not name.startswith("_")]
    assert sorted(shown) == sorted(names)


def test_every_m_number_of_a_docstring_is_a_section():
    sections = set(re.findall(r"^## (M\d+) ", (ROOT / "docs/mathematics.md").read_text(encoding="utf-8"), re.MULTILINE))
    used = set()
    for path in (ROOT / "fixntk").rglob("*.py"):
        used |= set(re.findall(r"\bM\d+\b", path.read_text(encoding="utf-8")))
    assert used
    assert used <= sections


def test_references_to_the_mathematics_are_last_lines_of_docstrings_and_no_section_of_their_own():
    found = 0
    for path in sorted((ROOT / "fixntk").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                continue
            lines = (ast.get_docstring(node) or "").splitlines()
            places = [place for place, line in enumerate(lines) if line.startswith("See docs/mathematics.md, M")]
            assert places in ([], [len(lines) - 1]), (path, lines[0])
            if places:
                assert lines[-2] == "", (path, lines[0])
                found += 1
    assert found > 200
