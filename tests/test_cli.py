import os
import re
import signal
import subprocess
import sys
import time
import types

import pytest

from fixntk.cli import main
from fixntk.runner import config
from fixntk.runner import run as runs

pytest_plugins = ("toy_experiment",)


def error_line(capsys):
    """Return the one line on stderr, which is no traceback."""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if " tasks, " not in line]
    assert line.startswith("fixntk: error: ")
    return line.removeprefix("fixntk: error: ")


def blocked(monkeypatch, *names):
    """Make imports of these packages fail as if they were not installed."""
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.core
def test_run_prints_headline_and_report(project, capsys):
    assert main(["run", "configs/toy.yaml"]) == 0
    pattern = r"8 rows\nThe report is runs/toy/report\.html, after 0:00:\d\d \(h:mm:ss\)\n"
    assert re.fullmatch(pattern, capsys.readouterr().out)
    assert (project.out / "report.html").exists()


def test_a_config_is_run_by_its_name_and_configs_are_listed_without_one(project, capsys, monkeypatch):
    assert main(["run", "toy"]) == 0
    assert (project.out / "report.html").exists()
    capsys.readouterr()
    assert main(["run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1:3] for line in lines if line.startswith("toy ")] == [["A", "comment,"]]
    # The project's own are listed as well.
    assert any(line.startswith("uci ") for line in lines)
    monkeypatch.chdir(project.root / "configs")
    monkeypatch.setattr(config, "own_folder", lambda: None)
    assert main(["run"]) == 2
    assert error_line(capsys) == "run needs a config: there is no folder configs/ here"


@pytest.mark.parametrize(
    "arguments",
    [["seeds=[5]", "tables=[iris]", "--out", "here"], ["--out", "here", "seeds=[5]", "--resume", "tables=[iris]"]],
)
def test_overrides_stand_before_or_after_options(project, arguments):
    assert main(["run", "configs/toy.yaml", *arguments]) == 0
    assert {(row["table"], row["seed"]) for row in runs.read_rows(project.root / "here")} == {("iris", 5)}


@pytest.mark.core
def test_resume_and_report(project, capsys):
    assert main(["run", "configs/toy.yaml"]) == 0
    assert main(["run", "configs/toy.yaml"]) == 2
    assert "pass --resume" in error_line(capsys)
    assert main(["run", "configs/toy.yaml", "--resume"]) == 0
    (project.out / "report.html").unlink()
    assert main(["report", "runs/toy"]) == 0
    assert (project.out / "report.html").exists()


def test_unusable_table_exits_1_after_the_others(project, capsys):
    project.control(broken={"wine": "no labels"})
    assert main(["run", "configs/toy.yaml"]) == 1
    shown = capsys.readouterr()
    assert shown.out.startswith("4 rows\n")
    assert "fixntk: skipped wine: no labels" in shown.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "none.yaml"], "none.yaml: there is no such file"),
        (["run", "toi"], "toi: there is no such file; did you mean toy?"),
        (["run", "configs/toy.yaml", "sedes=1"], "unknown key 'sedes'"),
        (["run", "configs/toy.yaml", "seeds"], "'seeds' is not of the form key=value"),
        (["report", "runs/none"], "runs/none: is not the folder of a run"),
    ],
)
def test_wrong_input_is_one_line_and_2(project, capsys, arguments, expected):
    assert main(arguments) == 2
    assert expected in error_line(capsys)
    assert project.calls() == []


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["report"], ["run", "a.yaml", "--fly"], ["report", "a", "b=1"], ["info", "x"]]
)
def test_wrong_usage_exits_2(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: fixntk" in capsys.readouterr().err


def test_bug_in_an_experiment_propagates(project):
    project.control(bug="iris")
    with pytest.raises(KeyError):
        main(["run", "configs/toy.yaml"])


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_interrupted_run_keeps_what_is_finished(project, name):
    project.control(sleep="wine")
    # A shell's background jobs ignore SIGINT, and so would what the tests start from there.
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from fixntk.cli import main; sys.exit(main(['run', 'configs/toy.yaml']))"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    # The task that sleeps has been called, after the rows of two tasks were written.
    calls = project.root / "calls.jsonl"
    while process.poll() is None and not (calls.exists() and "wine" in calls.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(getattr(signal, name))
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130, errors
    assert "interrupted: 2 of 4 tasks are finished" in errors
    assert "--resume does the rest, and fixntk report runs/toy reports" in errors
    assert "Traceback" not in errors
    assert len(runs.read_rows(project.out)) == 4
    project.control()
    project.calls()
    assert main(["run", "configs/toy.yaml", "--resume"]) == 0
    assert {call["table"] for call in project.calls()} == {"wine"}


# Stands for a module that takes long to import, and loses exceptions on the way.
SLOW_IMPORT = """
import time
from pathlib import Path
try:
    Path("importing").touch()
    time.sleep(60)
except BaseException:
    pass
"""


def end_while_importing(folder, name, *arguments):
    """Start the command, send the signal once ``importing`` is there, and return the status and what is on stderr."""
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        f"sys.argv = ['fixntk', *{arguments}]; from fixntk_command import main; main()"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=folder, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (folder / "importing").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(getattr(signal, name))
    return process.communicate(timeout=60)[1], process.returncode


ENDS = [("SIGINT", ("fixntk: interrupted\n", 130)), ("SIGTERM", ("fixntk: terminated\n", 143))]


@pytest.mark.parametrize(("name", "end"), ENDS)
def test_a_signal_while_the_library_is_imported_has_no_traceback(tmp_path, name, end):
    (tmp_path / "jax.py").write_text(SLOW_IMPORT)
    assert end_while_importing(tmp_path, name, "info") == end


@pytest.mark.parametrize(("name", "end"), ENDS)
def test_a_signal_while_the_experiment_is_imported_has_no_traceback(project, name, end):
    (project.root / "experiments" / "toy.py").write_text(SLOW_IMPORT)
    assert end_while_importing(project.root, name, "run", "configs/toy.yaml") == end
    assert not project.out.exists()


_DROPPED = """
import gc, signal, sys, time
import fixntk_command

armed = [True]

def interrupt(phase, _):
    if armed:
        armed.clear()
        signal.raise_signal(signal.SIGINT)

sys.unraisablehook = fixntk_command._send_interrupt_again
gc.callbacks.append(interrupt)
try:
    gc.collect()
    time.sleep(30)
    print("lost")
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupt_in_a_garbage_collection_is_not_lost():
    done = subprocess.run([sys.executable, "-c", _DROPPED], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("interrupted\n", "")


def test_a_run_that_is_started_without_standard_error_ends_as_with_it(project):
    command = [sys.executable, "-c", "from fixntk_command import main; main()", "run", "toy"]
    closing = ["bash", "-c", 'exec "$@" 2>&-', "bash", *command]
    done = subprocess.run(closing, cwd=project.root, stdout=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[:1]) == (0, ["8 rows"])


@pytest.mark.usefixtures("project")
def test_handlers_of_signals_are_back_after_an_import():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert main(["run", "configs/toy.yaml"]) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


COMMAND = [sys.executable, "-m", "fixntk.cli"]


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nobody_reads_is_not_complained_of(monkeypatch, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*COMMAND, "info"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["info"], ["--help"], ["run", "--help"], ["--version"]], ids=" ".join)
def test_output_to_a_full_disk_is_one_line_and_2(monkeypatch, arguments, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, *arguments], stdout=full, stderr=subprocess.PIPE, text=True)
    expected = "fixntk: error: standard output: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, expected)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_an_error_that_cannot_be_written_keeps_its_status():
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "run", "none"], stdout=subprocess.PIPE, stderr=full)
    assert (done.returncode, done.stdout) == (2, b"")


@pytest.mark.usefixtures("project")
def test_errors_are_one_line_that_leaves_the_terminal_as_it_is(capsys):
    assert main(["run", "configs/\x1b[31m\nnone.yaml"]) == 2
    assert error_line(capsys) == r"configs/\x1b[31m none.yaml: there is no such file"


def test_report_repairs_damaged_results(project, capsys):
    assert main(["run", "configs/toy.yaml"]) == 0
    results = project.out / "results.jsonl"
    results.write_bytes(results.read_bytes() + b"nonsense\n")
    assert main(["report", "runs/toy"]) == 2
    assert error_line(capsys) == (
        "runs/toy/results.jsonl, line 13: is not a JSON object; `fixntk report --repair runs/toy` keeps the tasks that "
        "are whole"
    )
    assert main(["report", "--repair", "runs/toy"]) == 0
    assert capsys.readouterr().out.startswith("kept 4 tasks and dropped 1 other line")
    assert main(["report", "--repair", "runs/toy"]) == 0
    assert capsys.readouterr().out.startswith("nothing to repair in runs/toy/results.jsonl\n")


def test_interrupt_outside_of_the_tasks_is_130(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "find_config", interrupt)
    assert main(["run", "a.yaml"]) == 130
    assert capsys.readouterr().err == "fixntk: interrupted\n"


def fake_verify(monkeypatch, function):
    module = types.ModuleType("fixntk.verify.command")
    module.main = function
    monkeypatch.setitem(sys.modules, "fixntk.verify.command", module)


def test_verify_passes_the_files_and_the_status_on(monkeypatch, tmp_path):
    calls = []
    fake_verify(monkeypatch, lambda data, json_file, *, quick: calls.append((data, json_file, quick)) or 1)
    assert main(["verify"]) == 1
    assert main(["verify", "--quick", "--data", str(tmp_path / "a.csv"), "--json", str(tmp_path / "b")]) == 1
    assert calls == [(None, None, False), (tmp_path / "a.csv", tmp_path / "b", True)]


def test_verify_reports_wrong_data_but_not_bugs(monkeypatch, capsys):
    def fail(*_, **__):
        raise ValueError("column y is constant")

    fake_verify(monkeypatch, fail)
    assert main(["verify", "--data", "a.csv"]) == 2
    assert error_line(capsys) == "column y is constant"
    with pytest.raises(ValueError, match="constant"):
        main(["verify"])


def test_run_without_the_extra_says_what_to_install(project, monkeypatch, capsys):
    blocked(monkeypatch, "pydantic", "fixntk.runner.run")
    monkeypatch.delitem(sys.modules, "fixntk.runner.run")
    for name in ("fixntk.runner.config", "fixntk.runner.report"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("fixntk.runner.run")
    assert main(["run", str(project.config)]) == 2
    assert error_line(capsys) == "this needs pydantic, which is not installed: pip install 'fixntk[experiments]'"


@pytest.mark.parametrize(("module", "package"), [("sklearn.base", "scikit-learn"), ("yaml", "pyyaml")])
def test_a_missing_module_is_named_as_its_package(monkeypatch, capsys, module, package):
    def fail(*_, **__):
        raise ModuleNotFoundError(name=module)

    fake_verify(monkeypatch, fail)
    assert main(["verify"]) == 2
    assert error_line(capsys) == f"this needs {package}, which is not installed: pip install 'fixntk[verify]'"


def test_info_shows_versions_devices_and_optional_packages(monkeypatch, capsys):
    monkeypatch.setattr("fixntk.runner.environment.optional_packages", lambda: {"celer": None, "pydantic": "2.0"})
    assert main(["info"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert {"fixntk", "jax", "python", "device", "x64"} <= set(lines)
    assert lines["celer"] == "not installed"
    assert lines["pydantic"] == "2.0"


@pytest.mark.parametrize("arguments", [["--help"], ["info"]])
def test_core_dependencies_are_enough_for_help_and_info(arguments):
    program = f"""
import sys
for name in ("pydantic", "yaml", "jinja2", "matplotlib", "pandas", "sklearn"):
    sys.modules[name] = None
import fixntk
before = set(sys.modules)
from fixntk.cli import main
try:
    main({arguments})
except SystemExit:
    pass
print(sorted(name for name in set(sys.modules) - before if name.startswith(("jax", "fixntk"))), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    if arguments == ["--help"]:
        # Besides the package itself, only the command and its parsers.
        suggestions = ["fixntk.runner", "fixntk.runner.suggestions"]
        parsers = ["fixntk.convex.plan_command", *suggestions, "fixntk.tables", "fixntk.tables.parsers"]
        assert done.stderr == f"{['fixntk.cli', *parsers, 'fixntk_command']}\n"


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("fixntk ")
