#!/usr/bin/env python3
"""The core tests on the oldest and on the newest packages that fixntk takes, each in an environment of its own.

``python .ci/matrix.py [NAME ...]`` takes the names below, by default all of them. The environments are in ``.matrix``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".matrix"

# Python of each environment, and whether packages have the oldest versions that pyproject.toml allows.
ENVIRONMENTS = {
    "3.11-oldest": ("3.11", True),
    "3.11": ("3.11", False),
    "3.12": ("3.12", False),
    "3.13": ("3.13", False),
}
EXTRAS = ("estimators", "parquet", "plots", "experiments", "dynamics", "networks")
TOOLS = ("pytest", "pytest-xdist", "hypothesis")

SHOW_VERSIONS = """
import importlib.metadata as metadata, sys
names = ("jax", "numpy", "scipy", "scikit-learn")
print("Python", sys.version.split()[0], *(f"{name} {metadata.version(name)}" for name in names))
"""


def main(names: list[str]) -> int:
    """Test the environments of these names; the exit status is 1 if one of them fails."""
    unknown = set(names) - set(ENVIRONMENTS)
    if unknown:
        print(f"matrix: no environment {', '.join(sorted(unknown))}, there are {', '.join(ENVIRONMENTS)}")
        return 2
    results = {}
    for name in names or ENVIRONMENTS:
        print(f"== {name}", flush=True)
        began = time.monotonic()
        try:
            outcome = f"passed with {test_environment(name)}"
        except (LookupError, subprocess.CalledProcessError) as error:
            outcome = f"FAILED: {error}"
        results[name] = f"{outcome} ({time.monotonic() - began:.0f} s)"
    print("\n".join(f"{name:12} {result}" for name, result in results.items()))
    return int(any("FAILED" in result for result in results.values()))


def test_environment(name: str) -> str:
    """Install an environment, run the core tests in it, and return the versions in it."""
    version, is_oldest = ENVIRONMENTS[name]
    folder = FOLDER / name
    python = install(folder, version, oldest_versions() if is_oldest else [])
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    # The oldest jaxlib reads some compiled programs back wrongly.
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    if not is_oldest:
        # Compiling is most of the tests' time: programs that were compiled once are kept.
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        }
    # Warnings are errors by the settings in pyproject.toml. Packages that tests compare with are not installed.
    options = ["-q", "-m", "core", "-r", "fE", "-n", "auto", "--maxprocesses", "4", "--dist", "worksteal"]
    run(python, "-m", "pytest", *options, env=environment)
    return subprocess.run([python, "-c", SHOW_VERSIONS], check=True, text=True, capture_output=True).stdout.strip()


def install(folder: Path, version: str, constraints: list[str]) -> Path:
    """An environment with fixntk, what users add to it and pytest; its interpreter is returned."""
    requirements = [f"-e{ROOT}[{','.join(EXTRAS)}]", *TOOLS]
    folder.mkdir(parents=True, exist_ok=True)
    pins = folder / "constraints.txt"
    pins.write_text("\n".join(constraints) + "\n")
    python = folder / "environment" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    uv = shutil.which("uv")
    if not python.exists():
        command = [uv, "venv", "--quiet", "--python", version] if uv else [find_python(version), "-m", "venv"]
        run(*command, folder / "environment")
    # What was installed earlier is brought up to date.
    upgrade = ["--upgrade", "--constraint", pins, *requirements]
    if uv:
        run(uv, "pip", "install", "--quiet", "--python", python, *upgrade)
    else:
        options = ["--quiet", "--disable-pip-version-check", "--upgrade-strategy", "eager"]
        run(python, "-m", "pip", "install", *options, *upgrade)
    return python


def oldest_versions() -> list[str]:
    """The lower bounds in pyproject.toml of everything that is installed, as versions."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    tools = [line for line in extras["test"] if re.split("[>=<]", line)[0] in TOOLS]
    lines = [*project["dependencies"], *tools, *(line for extra in EXTRAS for line in extras[extra])]
    return sorted({line.replace(">=", "==") for line in lines})


def find_python(version: str) -> str:
    """An interpreter of a version, from the PATH or from pyenv."""
    on_path = shutil.which(f"python{version}")
    others = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
    show = "import sys; print('%d.%d' % sys.version_info[:2])"
    for python in (sys.executable, on_path, *others):
        # A shim of pyenv for a version that is not chosen fails.
        if python and subprocess.run([python, "-c", show], capture_output=True, text=True).stdout.strip() == version:
            return str(python)
    raise LookupError(f"no Python {version} here: install it, or uv, which finds or fetches one")


def run(*command: str | Path | None, env: dict[str, str] | None = None) -> None:
    """Run a command in the repository; CalledProcessError if it fails."""
    subprocess.run([*map(str, command)], cwd=ROOT, env=env, check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
