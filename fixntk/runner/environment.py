"""The environment of a result: versions, device, cores and git revision. Needs the core dependencies only."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np

# Extras for users of fixntk, as opposed to those for its developers.
_USER_EXTRAS = ("estimators", "experiments", "verify", "bench")


def environment(source: Path | None = None) -> dict[str, Any]:
    """Describe the machine and the software of this process, without names of machines, users or folders.

    Parameters
    ----------
    source
        A folder with the code of the run. If it lies in a git checkout, the revision is recorded, and whether tracked
        files differ from it.

    Returns
    -------
    dict
        JSON-able; ``device`` says why if JAX finds no device.
    """
    revision, dirty = _git_revision(source)
    return {
        "fixntk": version("fixntk"),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        **_devices(),
        "cores": _cores(),
        "x64": bool(jax.config.read("jax_enable_x64")),
        "git_revision": revision,
        "git_dirty": dirty,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def version(distribution: str) -> str | None:
    """Return the installed version of a distribution, None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def optional_packages() -> dict[str, str | None]:
    """Return the version, None where absent, of each package that a user-facing extra of fixntk names."""
    # Read from fixntk's own metadata so that pyproject.toml stays the only list.
    names = set()
    for requirement in importlib.metadata.requires("fixntk") or []:
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra == ['\"](\w+)['\"]", requirement)
        if name and extra and extra.group(1) in _USER_EXTRAS:
            names.add(name.group())
    return {name: version(name) for name in sorted(names, key=str.lower)}


def _devices() -> dict[str, Any]:
    try:
        devices = jax.devices()
    except RuntimeError as error:
        # `fixntk info` has to report a broken accelerator plug-in rather than fail.
        return {"platform": None, "device": f"none: {error}", "device_count": 0}
    return {
        "platform": devices[0].platform,
        "device": devices[0].device_kind,
        "device_count": len(devices),
    }


def _cores() -> int | None:
    """Count the cores this process may use, which in a container are fewer than the machine has."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        # macOS and Windows do not have this function.
        return os.cpu_count()


def _git_revision(folder: Path | None) -> tuple[str | None, bool | None]:
    if folder is None:
        return None, None
    revision = _git(folder, "rev-parse", "HEAD")
    if revision is None:
        return None, None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return revision, None if changes is None else bool(changes)


def _git(folder: Path, *arguments: str) -> str | None:
    """Return git's output, None if git is absent or refuses."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
