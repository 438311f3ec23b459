"""The version of fixntk; importing this module refuses packages that are too old for it."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires, version

# The only place of the version: hatchling reads it here.
__version__ = "0.1.0"


def check_versions(*optional: str) -> None:
    """Refuse packages that are older than fixntk needs, before they fail in ways that do not tell.

    Parameters
    ----------
    optional
        Names of packages of extras, which are checked too.

    Raises
    ------
    ImportError
        If a package of the core, or one of those named, is too old; the message has all of them. One that is not
        installed, or not by a package manager, has no version to check: its import tells.
    """
    too_old = {}
    for name, bound in _lower_bounds(optional):
        found = _installed_version(name)
        if found is not None and _release(found) < _release(bound):
            too_old[f"{name} >= {bound}, found {found}"] = f"'{name}>={bound}'"
    if too_old:
        raise ImportError(f"fixntk needs {', '.join(too_old)}: pip install --upgrade {' '.join(too_old.values())}")


def _lower_bounds(optional: tuple[str, ...]) -> set[tuple[str, str]]:
    """Names and lower bounds of the core's requirements, and of optional ones, from fixntk's own metadata."""
    try:
        requirements = requires("fixntk") or []
    except PackageNotFoundError:
        return set()
    bounds = (re.fullmatch(r"([\w.-]+)>=([\d.]+)(; extra == .*)?", requirement) for requirement in requirements)
    return {(bound[1], bound[2]) for bound in bounds if bound and (bound[3] is None or bound[1] in optional)}


def _installed_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version, without zeros at the end, which do not count."""
    numbers = [int(number) for number in re.sub(r"[^\d.].*", "", version).split(".") if number]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


check_versions()
