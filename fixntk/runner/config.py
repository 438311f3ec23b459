"""Config files: YAML with overrides, checked against the config that their experiment declares."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import re
import reprlib
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, cast, runtime_checkable

import yaml
from pydantic import BaseModel, ValidationError

from fixntk.runner import strict_yaml
from fixntk.runner.report import Section
from fixntk.runner.suggestions import nearest

Row = dict[str, Any]

# The folder in which a config is found by its name: here, or else among the project's own.
CONFIGS = Path("configs")
# Words KEY=VALUE of the command line that say how tasks run, and stand in no config.
RUN_KEYS = ("jobs", "backend")
# What the wheel installs beside the package: the project's folders experiments/ and configs/.
_INSTALLED = "fixntk_experiments"
# Largest number of tasks of a run.
MAX_TASKS = 100_000
# Largest size of the config.json that a run has written.
_MAX_JSON_BYTES = 1_000_000
# Largest number of dots in the key of an override.
_MAX_PARENTS = 16
# Largest number of problems that an error names.
_MAX_REASONS = 5


class ConfigError(ValueError):
    """A config, an override or a run's folder is wrong: one line that names the file and the key."""


@runtime_checkable
class Experiment(Protocol):
    """The names that a module ``experiments/NAME.py`` must define.

    The first line of the module's docstring is the report's title.
    """

    __name__: str
    __doc__: str | None
    Config: type[BaseModel]
    """The config's keys, with ``model_config = ConfigDict(extra="forbid", frozen=True)``."""

    def tasks(self, config: Any) -> list[Row]:
        """Return the keys of each unit of work, for example ``{"table": "iris", "seed": 0}``.

        The list is JSON-able, without duplicates, the same in each call, and quick to make. A ValueError means that the
        config is wrong. A run has at most ``MAX_TASKS`` tasks.
        """

    # A module may define check(config) as well, which is called before the first task. A ValueError from it means that
    # the config is wrong, as where a user's file is missing. It may return lines, which are shown.

    def run_task(self, config: Any, task: Row) -> list[Row]:
        """Return one or more JSON-able rows for a task; the task's keys are added where a row lacks them.

        No row has the key ``error``.
        A ValueError means that the task's data is unusable: it is recorded as the row
        ``{**task, "error": message}`` and the other tasks go on. Anything else is a bug and ends the run.
        """

    def summarise(self, config: Any, rows: list[Row]) -> Row:
        """Return the contents of ``summary.json``; ``fixntk run`` prints its ``headline`` if it has one.

        NaN and infinity are None in the file, and in the summary that ``sections`` gets.

        ``rows`` are in the order of ``tasks``, as read back from JSON, without the error rows. They come
        from at least one task. A module whose figures or headline compare rows of different tasks has the constant
        ``NEEDS_EVERY_TASK = True``: the rows then come from all tasks.
        """

    def sections(self, config: Any, rows: list[Row], summary: Row) -> list[Section]:
        """Return the report's content. The report's plot style is on during the call."""


def own_folder() -> Path | None:
    """The folder with the project's own ``experiments`` and ``configs``, installed or in a checkout."""
    beside = Path(__file__).resolve().parents[2]
    folders = (beside / _INSTALLED, beside)
    return next((folder for folder in folders if (folder / CONFIGS).is_dir() and _experiments(folder)), None)


def _experiments(folder: Path) -> list[Path]:
    return list((folder / "experiments").glob("[a-z]*.py"))


def find_config(name: str | Path) -> Path:
    """A config's path: the file of that name, or else the one in the folder ``configs`` here or in the project's own.

    Raises
    ------
    ConfigError
        If there is neither; the message has the name that is nearest.
    """
    path = Path(name)
    # Not Path.exists, which raises an error if the name is longer than the system allows.
    if os.path.exists(path):
        return path
    configs = _find_configs()
    if len(path.parts) == 1 and str(path) in configs:
        return configs[str(path)]
    close = nearest(path.stem, configs)
    hint = f"; did you mean {close}?" if close else ""
    raise ConfigError(f"{path}: there is no such file{hint}")


def _find_configs() -> dict[str, Path]:
    """Configs by their names. One here comes before one of the same name among the project's own."""
    own = own_folder()
    folders = [CONFIGS] if own is None else [own / CONFIGS, CONFIGS]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def describe_configs() -> dict[str, str]:
    """The first sentence of the comment at the head of each config that is found by its name."""
    descriptions = {}
    for name, path in sorted(_find_configs().items()):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
        comment = " ".join(line.removeprefix("#").strip() for line in lines)
        descriptions[name] = re.split(r"(?<=\.)\s", comment)[0]
    return descriptions


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Experiment, BaseModel]:
    """Read a YAML config, apply ``key=value`` overrides and validate it with its experiment's ``Config``.

    Parameters
    ----------
    path
        The file, of at most 16 KiB, or the ``config.json`` of a run. Its key ``experiment`` names the module,
        ``experiments/NAME.py`` in the folder above the file's own, in the one above that, in the current one, or in the
        project's own.
    overrides
        Values are parsed as YAML, dots in a key reach into nested mappings: ``solver.tol=1e-8``. A list needs no
        brackets: ``tables=iris,wine``.

    Raises
    ------
    ConfigError
        If the file is missing, too large or not YAML, an override has no ``=``, the experiment is not given or not
        found, or a key is unknown, missing or of the wrong type.
    """
    path = Path(path)
    data = _read(path)
    for override in overrides:
        _apply_override(data, override, path)
    if "experiment" not in data:
        raise ConfigError(f"{path}: the key 'experiment' is missing; it names a module of experiments/")
    experiment = _import_experiment(data.pop("experiment"), path)
    overridden = {override.partition("=")[0] for override in overrides}
    for key in overridden & data.keys():
        data[key] = _as_listed(data[key], experiment.Config, key)
    # JSON mode, so that a strict Config still takes a list for a tuple and a string for a path.
    text = json.dumps(data)
    try:
        return experiment, experiment.Config.model_validate_json(text)
    except ValidationError as error:
        reasons = _explain(error, experiment.Config, json.loads(text), overridden)
        raise ConfigError(f"{path}: {reasons}") from error


def _read(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file, or in the JSON file that a run has written."""
    is_json = path.suffix == ".json"
    limit = _MAX_JSON_BYTES if is_json else strict_yaml.MAX_BYTES
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
        text = content.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text") from error
    if len(content) > limit:
        raise ConfigError(f"{path}: has more than {limit} bytes, too many for a config")
    try:
        data = json.loads(text) if is_json else strict_yaml.parse(text)
        # What an alias repeats becomes a value of its own, which an override may change.
        data = json.loads(json.dumps(data))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}{strict_yaml.describe(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: has too many levels inside one another") from error
    except ValueError as error:
        raise ConfigError(f"{path}: is not JSON: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines, got a {type(data).__name__}")
    return data


def _apply_override(data: dict[str, Any], override: str, path: Path) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{path}: the override {reprlib.repr(override)} is not of the form key=value")
    shown = reprlib.repr(override)
    if len(override) > strict_yaml.MAX_BYTES:
        raise ConfigError(f"{path}: the override {shown} has more than {strict_yaml.MAX_BYTES} characters")
    try:
        value = strict_yaml.parse(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: the override {shown} is not YAML{strict_yaml.describe(error)}") from error
    *parents, last = key.split(".")
    if len(parents) > _MAX_PARENTS:
        raise ConfigError(f"{path}: the override {shown} has more than {_MAX_PARENTS} dots")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise ConfigError(f"{path}: the override {shown} reaches into {parent!r}, not a mapping")
    data[last] = value


def _as_listed(value: Any, model: type[BaseModel], key: str) -> Any:
    """A single value, or words or numbers with commas between them, as the list that a key of the config holds."""
    field = model.model_fields.get(key)
    if field is None or typing.get_origin(field.annotation) not in (tuple, list) or value is None:
        return value
    if isinstance(value, str):
        words = [word.strip() for word in value.split(",")]
        return [_as_number(word) for word in words] if _holds_numbers(field.annotation) else words
    return value if isinstance(value, list) else [value]


def _holds_numbers(annotation: Any) -> bool:
    """Whether a list's annotation is of integers or floating-point numbers, bounded or not."""
    inner = next(iter(typing.get_args(annotation)), None)
    return inner in (int, float) or next(iter(typing.get_args(inner)), None) in (int, float)


def _as_number(word: str) -> Any:
    """A word as YAML reads it; the word itself where that is no number, for the error about it."""
    try:
        value = strict_yaml.parse(word)
    except yaml.YAMLError:
        return word
    return value if isinstance(value, int | float) else word


def _import_experiment(name: Any, path: Path) -> Experiment:
    """Import ``experiments.<name>`` from beside the config's folder, the current one, or the project's own."""
    if not isinstance(name, str) or not name.isidentifier():
        raise ConfigError(f"{path}: key 'experiment' is {reprlib.repr(name)}, expected the name of a module")
    # Two folders up for configs/NAME.yaml, three for runs/NAME/config.json.
    roots = list(path.resolve().parents[1:3])
    # The current folder may have been removed.
    with contextlib.suppress(FileNotFoundError):
        roots.append(Path.cwd())
    if own := own_folder():
        roots.append(own)
    # Not Path.is_file, which raises an error if the name is longer than the system allows.
    found = [root for root in roots if os.path.isfile(root / "experiments" / f"{name}.py")]
    if not found:
        known = next(filter(None, map(_experiments, roots)), [])
        hint = f"; there are {', '.join(sorted(file.stem for file in known))}" if known else ""
        raise ConfigError(f"{path}: there is no experiments/{name}.py for 'experiment: {name}'{hint}")
    if str(found[0]) not in sys.path:
        sys.path.insert(0, str(found[0]))
    try:
        module = importlib.import_module(f"experiments.{name}")
    except ModuleNotFoundError as error:
        if error.name not in ("experiments", f"experiments.{name}"):
            raise
        raise ConfigError(f"{path}: another package named 'experiments' hides {found[0] / 'experiments'}") from error
    wanted = found[0] / "experiments" / f"{name}.py"
    # A package with an __init__.py comes before one without, wherever it stands on the path.
    if module.__file__ is None or not wanted.samefile(module.__file__):
        raise ConfigError(f"{path}: {module.__file__} hides {wanted}; does {wanted.parent} have an __init__.py?")
    _check_experiment(module)
    return cast("Experiment", module)


def _check_experiment(module: ModuleType) -> None:
    needed = ("Config", "tasks", "run_task", "summarise", "sections")
    if lacking := [name for name in needed if not hasattr(module, name)]:
        raise ConfigError(f"{module.__name__} is not an experiment: it lacks {', '.join(lacking)}")


def _explain(error: ValidationError, model: type[BaseModel], data: Any, overridden: set[str]) -> str:
    """Describe in one line the problem with each key."""
    reasons: dict[str, list[str]] = {}
    for item in error.errors(include_url=False):
        location = _location(item["loc"], data, missing=item["type"] == "missing")
        key = ".".join(map(str, location))
        shown = reprlib.repr(key)
        origin = " (from the command line)" if key in overridden else ""
        is_value = f"key {shown} is {reprlib.repr(item['input'])}{origin}"
        expected = item["msg"].removeprefix("Input should be ")
        if item["type"] == "missing":
            start, reason = f"key {shown} is missing", ""
        elif item["type"] == "extra_forbidden":
            start, reason = f"unknown key {shown}{origin},", _suggestion(location, model, RUN_KEYS if origin else ())
        elif expected != item["msg"]:
            start, reason = f"{is_value}, expected", expected
        else:
            start, reason = f"{is_value}:" if key else "", expected.removeprefix("Value error, ")
        reasons.setdefault(start, []).append(reason)
    # Each alternative of a union is an error of its own, with the same start.
    problems = [f"{start} {' or '.join(parts)}".strip(" ,") for start, parts in reasons.items()]
    more = [f"and {len(problems) - _MAX_REASONS} more"] if len(problems) > _MAX_REASONS else []
    return "; ".join([*problems[:_MAX_REASONS], *more])


def _location(location: Sequence[int | str], data: Any, *, missing: bool) -> list[int | str]:
    """The part of pydantic's location that is in the data; pydantic also names the alternatives of unions."""
    path: list[int | str] = []
    for part in location:
        if isinstance(data, dict) and part in data:
            data = data[cast("str", part)]
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            continue
        path.append(part)
    return [*path, location[-1]] if missing else path


def _suggestion(location: Sequence[int | str], model: type[BaseModel], others: Sequence[str]) -> str:
    """What a key that is unknown may stand for: one of the model's, or one of some others."""
    *parents, key = location
    for part in parents:
        field = model.model_fields.get(str(part))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return ""
        model = field.annotation
    names = list(model.model_fields)
    close = nearest(str(key), [*names, *others])
    return f"did you mean {close!r}?" if close else f"the keys are {', '.join(names)}"
