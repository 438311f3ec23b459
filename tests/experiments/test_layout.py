"""The layout of experiments/ and configs/, read from the files."""

import ast
from pathlib import Path

import pytest
import yaml

from fixntk.runner.config import load_config

ROOT = Path(__file__).parents[2]
EXPERIMENTS = {path.stem for path in (ROOT / "experiments").glob("[a-z]*.py")}
FILES = sorted((ROOT / "experiments").rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def imported_experiments(path):
    """Names of the experiments that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for package, _, name in (module.partition(".") for module in modules):
            if package == "experiments" and name.split(".")[0] in EXPERIMENTS:
                yield name.split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_experiment_imports_another_except_the_paper_which_joins_all(path):
    expected = EXPERIMENTS - {"paper"} if path.name == "paper.py" else set()
    assert set(imported_experiments(path)) == expected


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_says_what_it_shows_and_holds_only_what_differs_from_the_defaults(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    experiment, config = load_config(path)
    given, defaults = yaml.safe_load(text), experiment.Config()
    del given["experiment"]
    for key, value in given.items():
        ours, default = getattr(config, key), getattr(defaults, key)
        assert ours != default, key
        for inner in value if isinstance(value, dict) else ():
            assert getattr(ours, inner) != getattr(default, inner), f"{key}.{inner}"
