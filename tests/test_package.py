"""The wheel and the sdist: built, installed into an empty environment, complete."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import fixntk

ROOT = Path(__file__).parent.parent

# Python's sources have 680 kB, compressed one by one: 590 are the library and 87 the experiments. Without docstrings
# and comments they would have 430.
MAX_WHEEL_BYTES = 800_000
# Template, configs, licence, metadata, and the archive's list of its files.
MAX_BYTES_BESIDE_SOURCES = 68_000

IMPORT_EVERY_MODULE = """
import importlib, pkgutil
import fixntk
print(fixntk.__file__)
for module in pkgutil.walk_packages(fixntk.__path__, "fixntk."):
    print(importlib.import_module(module.name).__name__)
"""

RENDER_A_REPORT = """
import sys
from fixntk.runner.report import Section, render
print(render(sys.argv[1], "Packaged", [Section("A section", "Text")], {"device": "cpu"}, {"seed": 0}))
"""


def run(*command, cwd):
    """Run a command where no checkout is on the path, and return what it prints."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=inherited, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The sdist of the checkout, and the wheel built from that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def unpacked_sdist(distributions, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(distributions[0]) as archive:
        archive.extractall(folder, filter="data")
    (root,) = folder.iterdir()
    return root


@pytest.fixture(scope="module")
def empty_environment(distributions, tmp_path_factory):
    """A new environment with the wheel in it, which finds the dependencies, but no checkout, in the current one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True, symlinks=os.name != "nt")
    base = {"base": str(folder), "platbase": str(folder)}
    (python,) = Path(sysconfig.get_path("scripts", "venv", base)).glob("python3" if os.name != "nt" else "python.exe")
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    run(python, "-m", "pip", "install", *options, distributions[1], cwd=folder)
    # A folder named in a .pth file is searched, but its own .pth files, such as an editable install's, are not read.
    current = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    own = Path(sysconfig.get_path("purelib", "venv", base))
    (own / "dependencies.pth").write_text("\n".join(current) + "\n")
    return python, own


def package_files(root):
    return {
        path.relative_to(root).as_posix() for path in (root / "fixntk").rglob("*") if "__pycache__" not in path.parts
    }


def test_the_citation_names_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (fixntk.__version__, "Apache-2.0")


def project_files():
    """Experiments and configs, as the wheel names them."""
    kept = {path for folder in ("experiments", "configs") for path in (ROOT / folder).rglob("*") if path.is_file()}
    return {f"fixntk_experiments/{path.relative_to(ROOT).as_posix()}" for path in kept if path.suffix != ".pyc"}


def test_the_wheel_holds_the_library_the_experiments_and_nothing_else(distributions):
    with zipfile.ZipFile(distributions[1]) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {"fixntk/py.typed", "fixntk/runner/report.html.jinja"} <= names
    # The module where the command starts is not in the package.
    library = {name for name in package_files(ROOT) if (ROOT / name).is_file()}
    assert names == library | project_files() | {"fixntk_command.py"}


def test_the_wheel_stays_small(distributions):
    num_bytes = distributions[1].stat().st_size
    assert num_bytes < MAX_WHEEL_BYTES
    with zipfile.ZipFile(distributions[1]) as archive:
        kinds = {Path(name).suffix for name in archive.namelist() if ".dist-info/" not in name}
        sources = sum(file.compress_size for file in archive.infolist() if file.filename.endswith(".py"))
    assert num_bytes - sources < MAX_BYTES_BESIDE_SOURCES
    # Neither figures nor data: what it holds is source.
    assert kinds == {".py", ".typed", ".jinja", ".yaml"}


def test_every_module_of_the_wheel_imports_where_it_is_installed(empty_environment, tmp_path):
    python, site_packages = empty_environment
    place, *modules = run(python, "-c", IMPORT_EVERY_MODULE, cwd=tmp_path).splitlines()
    assert Path(place).is_relative_to(site_packages)
    expected = {
        name.removesuffix(".py").removesuffix("/__init__") for name in package_files(ROOT) if name.endswith(".py")
    }
    assert {"fixntk", *modules} == {name.replace("/", ".") for name in expected}


def test_the_installed_library_renders_a_report_from_its_own_template(empty_environment, tmp_path):
    page = run(empty_environment[0], "-c", RENDER_A_REPORT, tmp_path, cwd=tmp_path).strip()
    assert "A section" in Path(page).read_text(encoding="utf-8")


def test_the_installed_command_runs(empty_environment, tmp_path):
    assert run(empty_environment[0].with_name("fixntk"), "--version", cwd=tmp_path).startswith("fixntk ")


def test_the_installed_command_lists_and_runs_its_own_experiments(empty_environment, tmp_path):
    command = empty_environment[0].with_name("fixntk")
    listed = run(command, "run", cwd=tmp_path).splitlines()
    assert [line.split()[0] for line in listed] == sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
    small = ["widths=4,8", "num_steps=2"]
    assert "The report is runs/lazy_training/report.html" in run(command, "run", "lazy_training", *small, cwd=tmp_path)
    assert "report.html" in run(command, "report", "runs/lazy_training", cwd=tmp_path)


def test_twine_finds_nothing_wrong(distributions, tmp_path):
    run(sys.executable, "-m", "twine", "check", "--strict", *distributions, cwd=tmp_path)


def test_the_sdist_has_what_it_takes_to_run_the_tests(distributions, unpacked_sdist):
    for name in ("Makefile", ".ci/run", "pyproject.toml", "README.md", "LICENSE", "tests/conftest.py"):
        assert (unpacked_sdist / name).is_file(), name
    for folder in ("benchmarks", "configs", "docs", "experiments", "fixntk", "tests"):
        for path in (ROOT / folder).rglob("*"):
            # What `make docs` makes is not part of it.
            is_made = not {"_build", "generated"}.isdisjoint(path.parts)
            if path.suffix in {".py", ".yaml", ".md", ".jinja", ".typed"} and not is_made:
                assert (unpacked_sdist / path.relative_to(ROOT)).is_file(), path
    with tarfile.open(distributions[0]) as archive:
        parts = {part for name in archive.getnames() for part in Path(name).parts}
    assert parts.isdisjoint({"runs", ".venv", ".git", "__pycache__", "_build"})


def test_tests_of_the_unpacked_sdist_pass_there(unpacked_sdist):
    shown = run(
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_imports.py", cwd=unpacked_sdist
    )
    assert " passed" in shown


@pytest.mark.long
def test_the_core_tests_pass_where_the_sdist_is_installed_with_what_they_need(unpacked_sdist, tmp_path):
    venv.create(tmp_path / "environment", with_pip=True, symlinks=os.name != "nt")
    (python,) = tmp_path.glob("environment/bin/python3" if os.name != "nt" else "environment/Scripts/python.exe")
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", ".[test]", cwd=unpacked_sdist)
    shown = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "core", cwd=unpacked_sdist)
    assert " passed" in shown
    assert "tests/test_core.py" not in shown


def test_a_clone_without_history_or_tags_has_the_version(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    clone = tmp_path / "clone"
    run("git", "clone", "--quiet", "--depth", "1", "--no-tags", ROOT.as_uri(), clone, cwd=tmp_path)
    command = [sys.executable, "-m", "hatchling", "version"]
    assert run(*command, cwd=clone).strip() == fixntk.__version__
