"""The tasks of a run, one after the other or several at a time: the same rows in the same order."""

from __future__ import annotations

import contextlib
import gc
import importlib
import inspect
import json
import logging
import math
import signal
import sys
import warnings
from collections.abc import Generator, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, cast

import jax
import joblib
from joblib.externals.loky import get_reusable_executor
from pydantic import BaseModel
from threadpoolctl import threadpool_info, threadpool_limits

from fixntk._numerics import one_blas_thread
from fixntk.runner.config import RUN_KEYS, ConfigError, Experiment, Row
from fixntk.runner.rows import to_json

# What runs tasks in other processes, by joblib's names, and the package that each needs. Threads of one process would
# share settings of JAX, which tasks change.
_BACKENDS = {"loky": "joblib", "dask": "distributed", "ray": "ray"}
# Largest number of tasks that may run at a time.
_MAX_JOBS = 1024
# Settings of JAX that the command changes.
_SETTINGS = ("jax_enable_x64", "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
# Variables that give the number of threads of a process's products, as joblib's processes get them.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# Errors by which the back ends say that a process was ended from outside.
_DEATHS = {"BrokenProcessPool", "KilledWorker", "WorkerCrashedError", "OutOfMemoryError"}
# Number of memory maps of a process above which compiled functions are dropped.
_MOST_MEMORY_MAPS = 30_000


class Jobs(NamedTuple):
    """How many tasks run at a time, and where.

    Attributes
    ----------
    number
        1 for one after the other, in this process.
    backend
        joblib's name of what runs more: loky, dask or ray.
    """

    number: int = 1
    backend: str = "loky"


ONE_BY_ONE = Jobs()


def split_jobs(overrides: Sequence[str]) -> tuple[list[str], Jobs]:
    """The ``key=value`` words that are for the config, and what ``jobs=`` and ``backend=`` among them say.

    Raises
    ------
    ConfigError
        If the number is not a positive integer, or there is no such back end.
    """
    given = dict(zip(RUN_KEYS, ("1", "loky"), strict=True))
    others = []
    for word in overrides:
        key, equals, value = word.partition("=")
        if equals and key in given:
            given[key] = value
        else:
            others.append(word)
    number, backend = given.values()
    if not (number.isascii() and number.isdecimal() and 1 <= int(number) <= _MAX_JOBS):
        raise ConfigError(f"jobs={number}: expected how many tasks run at a time, 1 to {_MAX_JOBS}")
    if backend not in _BACKENDS:
        raise ConfigError(f"backend={backend}: expected one of {', '.join(_BACKENDS)}")
    return others, Jobs(int(number), backend)


@contextlib.contextmanager
def run_tasks(
    experiment: Experiment, config: BaseModel, tasks: Sequence[Row], jobs: Jobs
) -> Iterator[Iterator[list[Row]]]:
    """The rows of each task, in the order of the tasks, as they are finished.

    Raises
    ------
    ConfigError
        If a process that runs tasks was ended from outside, as for want of memory, or the back end is not installed.
    """
    if jobs.number == 1:
        yield (run_task(experiment, config, task) for task in tasks)
        return
    settings = tuple((name, getattr(jax.config, name)) for name in _SETTINGS)
    root = str(Path(inspect.getfile(cast("ModuleType", experiment))).resolve().parents[1])
    num_threads = max((library["num_threads"] for library in threadpool_info()), default=1)
    work = _Work(experiment.__name__, root, json.dumps(config.model_dump(mode="json")), settings, num_threads)
    jobs = jobs._replace(number=min(jobs.number, len(tasks)))
    with (
        _processes(jobs, num_threads) as parallel,
        contextlib.closing(_results(parallel, work, tasks, jobs)) as results,
    ):
        yield results


def run_task(experiment: Experiment, config: BaseModel, task: Row) -> list[Row]:
    """The rows of a task in JSON's types, or its error row.

    Raises
    ------
    RuntimeError
        If the experiment gives no row, those of another task, or one with the key ``error``, which marks error rows.
    """
    if _num_memory_maps() > _MOST_MEMORY_MAPS:
        jax.clear_caches()
        gc.collect()
    try:
        with one_blas_thread():
            rows = experiment.run_task(config, dict(task))
    except ValueError as error:
        return [{**task, "error": to_json(str(error) or type(error).__name__)}]
    rows = [to_json(row) for row in rows]
    if not rows or any(_differ(row.get(key, task[key]), task[key]) for row in rows for key in task):
        raise RuntimeError(f"run_task gave no row, or one of another task, for {task}")
    if any("error" in row for row in rows):
        raise RuntimeError(f"run_task gave a row with the key 'error' for {task}: only the runner writes such rows")
    return [{**task, **row, **task} for row in rows]


class _Work(NamedTuple):
    """What another process needs to run tasks as this one would.

    Attributes
    ----------
    name, root
        Of the experiment's module, and the folder above its package.
    config
        In JSON.
    settings
        Settings of JAX.
    num_threads
        Threads of the products of NumPy and SciPy, on which their rounding depends.
    """

    name: str
    root: str
    config: str
    settings: tuple[tuple[str, object], ...]
    num_threads: int


def _run_elsewhere(work: _Work, task: Row) -> list[Row]:
    experiment, config = _load(work)
    with threadpool_limits(work.num_threads):
        return run_task(experiment, config, task)


@cache
def _load(work: _Work) -> tuple[Experiment, BaseModel]:
    if work.root not in sys.path:
        sys.path.insert(0, work.root)
    for name, value in work.settings:
        jax.config.update(name, value)
    experiment = cast("Experiment", importlib.import_module(work.name))
    return experiment, experiment.Config.model_validate_json(work.config)


def _results(
    parallel: joblib.Parallel, work: _Work, tasks: Sequence[Row], jobs: Jobs
) -> Generator[list[Row], None, None]:
    # A back end that does not give results as they come gets no more tasks at a time than it runs.
    size = len(tasks) if parallel.return_generator else jobs.number
    try:
        for first in range(0, len(tasks), size):
            yield from parallel(joblib.delayed(_run_elsewhere)(work, task) for task in tasks[first : first + size])
    except Exception as error:
        if _DEATHS.isdisjoint(kind.__name__ for kind in type(error).__mro__):
            raise
        raise ConfigError(
            f"a process that ran tasks was ended from outside: is there memory for {jobs.number} tasks at a time? What "
            "is finished is kept; the same command with --resume, and a smaller jobs=, does the rest"
        ) from error


@contextlib.contextmanager
def _processes(jobs: Jobs, num_threads: int) -> Iterator[joblib.Parallel]:
    """Processes that run calls, and end with the context."""
    with contextlib.ExitStack() as stack:
        options: dict[str, object] = {}
        try:
            if jobs.backend == "dask":
                import dask
                from distributed import Client

                # LAPACK in compiled programs has the number of threads with which its process started.
                variables = dict.fromkeys(_THREAD_VARIABLES, num_threads)
                stack.enter_context(dask.config.set({"distributed.nanny.pre-spawn-environ": variables}))
                # The scheduler of DASK_SCHEDULER_ADDRESS, otherwise processes of this machine.
                local = {"n_workers": jobs.number, "threads_per_worker": 1, "dashboard_address": None}
                stack.enter_context(Client(**local, silence_logs=logging.ERROR))
            elif jobs.backend == "ray":
                import ray
                from ray.util.joblib import register_ray

                register_ray()
                stack.callback(ray.shutdown)
            else:
                options = {"initializer": _ignore_interrupts, "inner_max_num_threads": num_threads}
                # It replaces processes whose memory has grown, as compiled programs make it do.
                stack.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", "A worker stopped while some jobs were given", UserWarning)
                stack.callback(lambda: get_reusable_executor().shutdown(wait=True, kill_workers=True))
        except ModuleNotFoundError as error:
            # What installs the package installs what it imports, too.
            needed = _BACKENDS[jobs.backend]
            raise ConfigError(f"backend={jobs.backend} needs {needed}: pip install {needed}") from error
        stack.enter_context(joblib.parallel_config(jobs.backend, n_jobs=jobs.number, **options))
        return_as = "list" if jobs.backend == "ray" else "generator"
        yield joblib.Parallel(return_as=return_as, batch_size=1)


def _ignore_interrupts() -> None:
    # Ctrl-C in a terminal goes to all processes; the one that writes the rows ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _num_memory_maps() -> int:
    """Number of memory maps of this process; 0 if the system does not report it.

    XLA makes several for each compiled function, and Linux ends a process that needs more than 65,530. A run over many
    tables of different sizes reaches this number in a quarter of an hour.
    """
    try:
        return Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:
        return 0


def _differ(one: object, other: object) -> bool:
    """Whether two values of a task's key differ; NaN is the same as NaN."""
    is_nan = all(isinstance(value, float) and math.isnan(value) for value in (one, other))
    return one != other and not is_nan
