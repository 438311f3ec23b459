"""The version has one place, and packages that are too old are refused in one line at import."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fixntk
from fixntk import _requirements

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.core


def import_beside(folder, versions, statement="import fixntk"):
    """The last line of the errors of an import where these versions of packages are found first."""
    for name, version in versions.items():
        metadata = folder / f"{name}-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    path = os.pathsep.join([str(folder), str(ROOT)])
    command = [sys.executable, "-c", statement]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr.strip().splitlines()


@pytest.mark.parametrize(
    ("package", "found", "needed", "module"),
    [
        ("jax", "0.4.30", "0.6", "fixntk"),
        ("scipy", "1.9.0", "1.12", "fixntk.gram"),
        ("scikit-learn", "1.5.2", "1.6", "fixntk.estimators"),
        ("matplotlib", "3.7", "3.8", "fixntk.plots"),
    ],
)
def test_a_package_that_is_too_old_is_named_with_both_versions(tmp_path, package, found, needed, module):
    pytest.importorskip("sklearn" if package == "scikit-learn" else package)
    status, lines = import_beside(tmp_path, {package.replace("-", "_"): found}, f"import {module}")
    assert status == 1
    remedy = f"pip install --upgrade '{package}>={needed}'"
    assert lines[-1] == f"ImportError: fixntk needs {package} >= {needed}, found {found}: {remedy}"


def test_packages_of_extras_may_be_old_until_they_are_needed(tmp_path):
    assert import_beside(tmp_path, {"scikit_learn": "1.5.2", "matplotlib": "3.7"}) == (0, [])


def test_all_packages_that_are_too_old_are_in_one_line(tmp_path):
    _, lines = import_beside(tmp_path, {"jax": "0.4", "numpy": "1.9"})
    assert "jax >= 0.6, found 0.4" in lines[-1]
    assert "numpy >= 1.26, found 1.9" in lines[-1]


def test_the_command_says_it_without_a_traceback(tmp_path):
    status, lines = import_beside(tmp_path, {"jax": "0.4.30"}, "import fixntk_command; fixntk_command.main()")
    assert (status, len(lines)) == (2, 1)
    assert lines[0].startswith("fixntk: error: fixntk needs jax >= 0.6, found 0.4.30")


@pytest.mark.parametrize(
    ("older", "newer"),
    [("0.9", "0.10"), ("0.6", "0.6.1"), ("1.26.4", "2"), ("0.6.0.dev1", "0.7"), ("2.0rc1", "2.1"), ("9", "10.0+cpu")],
)
def test_versions_are_ordered_by_their_numbers(older, newer):
    assert _requirements._release(older) < _requirements._release(newer)


def test_zeros_at_the_end_of_a_version_do_not_count():
    assert _requirements._release("1.0") == _requirements._release("1") == _requirements._release("1.0.0")
    assert _requirements._release("0.10") == (0, 10)


def test_every_requirement_of_the_core_has_a_lower_bound_that_is_checked():
    bounds = dict(_requirements._lower_bounds(()))
    lines = re.search(r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)[1]
    assert bounds == dict(re.findall(r'"([\w-]+)>=([\d.]+)"', lines))
    assert {"jax", "numpy", "scipy"} <= set(bounds)


def test_the_version_is_written_once():
    assert re.fullmatch(r"\d+\.\d+\.\d+", fixntk.__version__)
    files = [path for folder in ("fixntk", "experiments") for path in (ROOT / folder).rglob("*.py")]
    files += [ROOT / "pyproject.toml", ROOT / "fixntk_command.py", ROOT / "docs" / "conf.py"]
    found = [path.name for path in files if f'"{fixntk.__version__}"' in path.read_text(encoding="utf-8")]
    assert found == ["_requirements.py"]
