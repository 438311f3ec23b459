"""Run an experiment: rows are written when a task is finished, a run can be resumed, and a report is made."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from pydantic import BaseModel

from fixntk.runner import report
from fixntk.runner.config import (
    MAX_TASKS,
    ConfigError,
    Experiment,
    Row,
    describe_configs,
    find_config,
    load_config,
)
from fixntk.runner.folder import lock, prepare, read_environment, record_environment, refuse_os_errors, repair
from fixntk.runner.rows import (
    RESULTS,
    append_task,
    read_rows,
    replace_non_finite,
    rows_by_task,
    to_json,
    write_json,
)
from fixntk.runner.status import label_of, say, track_progress
from fixntk.runner.tasks import ONE_BY_ONE, Jobs, run_tasks, split_jobs

__all__ = [
    "ConfigError",
    "Experiment",
    "Jobs",
    "Row",
    "describe_configs",
    "execute",
    "find_config",
    "load_config",
    "read_rows",
    "regenerate",
    "repair",
    "split_jobs",
    "to_json",
]

# Exit status of a run that SIGINT or SIGTERM ends, 128 + SIGINT as in shells.
INTERRUPTED = 130


def execute(
    experiment: Experiment,
    config: BaseModel,
    directory: str | Path,
    *,
    resume: bool = False,
    command: str | None = None,
    jobs: Jobs = ONE_BY_ONE,
) -> int:
    """Run an experiment's tasks and write rows, summary, figures and report into a directory.

    Parameters
    ----------
    experiment, config
        As :func:`load_config` returns them.
    directory
        Gets ``config.json``, ``environment.json``, ``results.jsonl``, ``summary.json``, ``figures/*.png``
        and ``report.html``.
    resume
        Keep the finished tasks of an earlier, interrupted run and run the others; tasks that failed are run
        again. Without results in the directory all tasks are run.
    command
        The command line that started the run, for ``environment.json`` and the report.
    jobs
        How many tasks run at a time, and where. Rows are the same and in the same order, and only this process writes
        them; seconds that tasks measure are those of a busy machine.

    Returns
    -------
    int
        0; 1 if a task's data was unusable; 130 if interrupted (SIGINT, SIGTERM), with the finished rows kept.

    Raises
    ------
    ConfigError
        If another process runs in the directory, it has results and ``resume`` is false, the results belong to another
        config or are damaged, a file cannot be written, or a process that ran tasks was ended from outside. What is
        finished is kept.
    """
    directory = Path(directory)
    tasks = _tasks(experiment, config)
    # A run that is refused leaves no folder behind. One that goes on may have no need of its data any more.
    if is_new := not os.path.exists(directory / RESULTS):
        _check(experiment, config)
    try:
        with lock(directory), _terminate_as_interrupt():
            failed = _run_pending(
                experiment, config, directory, tasks, resume=resume, command=command, jobs=jobs, is_checked=is_new
            )
    except KeyboardInterrupt:
        finished = sum(map(bool, rows_by_task(tasks, read_rows(directory))))
        say(
            f"interrupted: {finished} of {len(tasks)} tasks are finished and kept in {directory}; the same command "
            f"with --resume does the rest, and fixntk report {shlex.quote(str(directory))} reports what is there"
        )
        return INTERRUPTED
    for reason, labels in _labels_by_reason(tasks, failed).items():
        say(f"skipped {', '.join(labels)}: {reason}")
    return 1 if failed else 0


def _run_pending(
    experiment: Experiment,
    config: BaseModel,
    directory: Path,
    tasks: list[Row],
    *,
    resume: bool,
    command: str | None,
    jobs: Jobs,
    is_checked: bool,
) -> list[Row]:
    """Run the tasks that are not finished and make the report; return the error rows."""
    with refuse_os_errors(directory):
        kept, was_cut = prepare(directory, _description(experiment, config), tasks, resume=resume)
    if was_cut:
        say(f"{directory / RESULTS}: dropped the rows of a task that was not finished; it is run again")
    finished = rows_by_task(tasks, [row for block in kept for row in block.rows])
    pending = [task for task, rows in zip(tasks, finished, strict=True) if not rows]
    if kept and pending:
        say(f"{len(tasks) - len(pending)} of {len(tasks)} tasks are finished already")
    if pending:
        if not is_checked:
            _check(experiment, config)
        with refuse_os_errors(directory):
            record_environment(directory, _source(experiment), command, resumed=bool(kept))
        _run_tasks(experiment, config, pending, directory, len(tasks), jobs)
    return _finish(experiment, config, directory).failed


def regenerate(directory: str | Path, markdown: str | Path | None = None) -> Path:
    """Make summary, figures and report again from the finished tasks of a run, and return the report's path.

    Parameters
    ----------
    directory
        The run's folder.
    markdown
        A file ending in ``.md`` to write the report to as well, with its figures in a folder beside it.

    Raises
    ------
    ConfigError
        If the directory does not hold a run with results, these are damaged, its experiment is not found, or a file
        cannot be written.
    """
    directory = Path(directory)
    if not (directory / "config.json").is_file():
        raise ConfigError(f"{directory}: is not the folder of a run: it has no config.json")
    if not read_rows(directory):
        raise ConfigError(f"{directory}: there are no results yet: no task is finished")
    experiment, config = load_config(directory / "config.json")
    content = _finish(experiment, config, directory)
    if markdown is not None:
        try:
            report.render_markdown(markdown, _title(experiment), content.sections, content.computed_with)
        except (ValueError, OSError) as error:
            raise ConfigError(f"{markdown}: {error}") from error
    return directory / "report.html"


def _tasks(experiment: Experiment, config: BaseModel) -> list[Row]:
    listed = _ask(experiment, experiment.tasks, config)
    if len(listed) > MAX_TASKS:
        raise ConfigError(
            f"experiment {_name(experiment)}: this config asks for {len(listed)} tasks, more than {MAX_TASKS}"
        )
    tasks = [to_json(task) for task in listed]
    if not tasks:
        raise ConfigError(f"experiment {_name(experiment)}: this config leaves nothing to run")
    seen: set[str] = set()
    for task in tasks:
        identity = json.dumps(task, sort_keys=True)
        if identity in seen:
            raise ConfigError(f"experiment {_name(experiment)}: this config asks twice for {label_of(task)!r}")
        seen.add(identity)
    return tasks


def _ask(experiment: Experiment, function: Callable[[Any], Any], config: BaseModel) -> Any:
    """What an experiment's function says of a config; ConfigError where it refuses it."""
    try:
        return function(config)
    except ValueError as error:
        raise ConfigError(f"experiment {_name(experiment)}: {error}") from error


def _check(experiment: Experiment, config: BaseModel) -> None:
    """Let an experiment look at its data before the first task, if it does so, and show what it says of them."""
    for line in _ask(experiment, getattr(experiment, "check", lambda _: None), config) or ():
        say(line)


def _run_tasks(
    experiment: Experiment, config: BaseModel, pending: list[Row], directory: Path, total: int, jobs: Jobs
) -> None:
    with refuse_os_errors(directory):
        file = (directory / RESULTS).open("ab", buffering=0)
    with (
        file,
        run_tasks(experiment, config, pending, jobs) as results,
        contextlib.closing(track_progress(pending, total)) as tracked,
    ):
        for task, rows in zip(tracked, results, strict=False):
            with refuse_os_errors(directory):
                append_task(file, task, rows)


class _Content(NamedTuple):
    """Content of a report: the error rows, its sections, and the environment of the run."""

    failed: list[Row]
    sections: list[report.Section]
    computed_with: Row


def _finish(experiment: Experiment, config: BaseModel, directory: Path) -> _Content:
    """Write summary and report from the rows on disk."""
    tasks = _tasks(experiment, config)
    of_task = rows_by_task(tasks, read_rows(directory))
    rows = [row for rows in of_task for row in rows]
    failed = [row for row in rows if "error" in row]
    good = [row for row in rows if "error" not in row]
    unfinished = of_task.count([])
    needs_more = getattr(experiment, "NEEDS_EVERY_TASK", False) and bool(failed or unfinished)
    summary, sections = {}, []
    if good and not needs_more:
        summary = replace_non_finite(to_json(experiment.summarise(config, good)))
        with report.use_style():
            sections = experiment.sections(config, good, summary)
    sections = [*_missing_parts(tasks, failed, unfinished, needs_more=needs_more), *sections]
    computed_with = _environment_of_run(experiment, directory)
    with refuse_os_errors(directory):
        write_json(directory / "summary.json", summary)
        report.render(directory, _title(experiment), sections, computed_with, _description(experiment, config))
    return _Content(failed, sections, computed_with)


def _environment_of_run(experiment: Experiment, directory: Path) -> Row:
    """The run's environment; without a recorded command it has the command of the experiment's own config."""
    found = read_environment(directory)
    if not found:
        say(f"{directory / 'environment.json'} is missing or damaged: the report does not say what computed it")
    return {**found, "command": found.get("command") or f"fixntk run configs/{_name(experiment)}.yaml"}


def _missing_parts(tasks: list[Row], failed: list[Row], unfinished: int, *, needs_more: bool) -> list[report.Section]:
    """Sections at the start of the report that name the tasks missing from it."""
    sections = []
    without = "the rest of the report is without them"
    if needs_more:
        without = "this report needs every task and is empty without them"
    if unfinished:
        text = f"**{unfinished} of {len(tasks)} tasks are not finished**; {without}."
        sections.append(report.Section("Unfinished", text))
    if failed:
        failures = _labels_by_reason(tasks, failed)
        table = pd.DataFrame({"skipped": map(", ".join, failures.values()), "reason": failures.keys()})
        text = f"**{len(failed)} of {len(tasks)} tasks could not use their data**; {without}."
        sections.append(report.Section("Skipped", text, table))
    return sections


def _labels_by_reason(tasks: list[Row], failed: list[Row]) -> dict[str, list[str]]:
    """Return the tables that failed for each reason, or the tasks where they have no key ``table``."""
    failures: dict[str, list[str]] = {}
    for task, rows in zip(tasks, rows_by_task(tasks, failed), strict=True):
        for row in rows:
            labels = failures.setdefault(str(row["error"]), [])
            label = str(task["table"]) if "table" in task else label_of(task)
            if label not in labels:
                labels.append(label)
    return failures


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end a run as Ctrl-C does."""
    # Python allows signal handlers to be set in the main thread only.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _title(experiment: Experiment) -> str:
    return (experiment.__doc__ or _name(experiment)).strip().splitlines()[0].rstrip(".")


def _name(experiment: Experiment) -> str:
    return experiment.__name__.rpartition(".")[2]


def _source(experiment: Experiment) -> Path | None:
    file = getattr(experiment, "__file__", None)
    return Path(file).parent if file else None


def _description(experiment: Experiment, config: BaseModel) -> Row:
    return {"experiment": _name(experiment), **to_json(config.model_dump(mode="json"))}
