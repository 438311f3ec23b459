import json
import math
import subprocess
import sys

import jax
import pytest

from fixntk.cli import main
from fixntk.runner import run as runs
from fixntk.runner import tasks
from fixntk.runner.run import ConfigError

pytest_plugins = ("toy_experiment",)

TASKS = [("iris", 0), ("iris", 1), ("wine", 0), ("wine", 1)]


def test_run_writes_every_file(project):
    assert project.execute() == 0
    names = {path.relative_to(project.out).as_posix() for path in project.out.rglob("*") if path.is_file()}
    assert names == {
        ".lock",
        "config.json",
        "environment.json",
        "figures/scores.png",
        "report.html",
        "results.jsonl",
        "summary.json",
    }
    config = json.loads((project.out / "config.json").read_text())
    assert config["experiment"] == "toy"
    assert config["solver"] == {"tol": 1e-3}
    assert str(project.root) not in (project.out / "environment.json").read_text()


def test_rows_carry_the_task_and_are_json(project):
    project.execute(["tables=[iris]", "seeds=[7]"])
    *lines, closing = map(json.loads, project.results.read_text().splitlines())
    # As text, since NaN is not equal to itself.
    assert repr(lines) == repr(runs.read_rows(project.out))
    assert repr(lines) == repr(
        [
            {"table": "iris", "seed": 7, "method": "plain", "score": 0.5, "n": 3, "bad": math.nan},
            {"table": "iris", "seed": 7, "method": "fixed", "score": 0.75, "n": 4, "bad": [1.0, math.inf]},
        ]
    )
    assert closing["finished"] == {"table": "iris", "seed": 7}
    assert json.loads((project.out / "summary.json").read_text())["worst"] is None


def test_rows_are_on_disk_before_the_next_task_starts(project):
    project.execute()
    # Two rows and the closing line of each task.
    assert [call["rows_before"] for call in project.calls()] == [0, 3, 6, 9]


def test_resume_of_a_fresh_directory_starts(project):
    assert project.execute(resume=True) == 0
    assert project.called() == TASKS


def test_resume_runs_only_what_is_not_finished_and_gives_the_same_report(project):
    project.execute()
    project.calls()
    whole = (project.out / "report.html").read_bytes()
    lines = project.results.read_text().splitlines(keepends=True)
    project.results.write_text("".join(lines[:3] + lines[9:]))
    started = (project.out / "environment.json").read_text()
    assert project.execute(resume=True) == 0
    assert project.called() == TASKS[1:3]
    assert project.results.read_text().splitlines(keepends=True) == lines[:3] + lines[9:] + lines[3:9]
    # Only the start's time may differ.
    then, now = (json.loads(text)["started"] for text in (started, (project.out / "environment.json").read_text()))
    assert (project.out / "report.html").read_text() == whole.decode().replace(then, now)


def test_resume_of_a_finished_run_only_makes_the_report(project):
    project.execute()
    project.calls()
    before = (project.results.read_bytes(), (project.out / "environment.json").read_bytes())
    (project.out / "report.html").unlink()
    assert project.execute(resume=True) == 0
    assert project.called() == []
    assert (project.results.read_bytes(), (project.out / "environment.json").read_bytes()) == before
    assert (project.out / "report.html").exists()


def test_unusable_data_is_one_row_and_the_other_tasks_go_on(project, capsys):
    project.control(broken={"iris": "too few rows"})
    assert project.execute() == 1
    assert project.called() == TASKS
    rows = runs.read_rows(project.out)
    assert rows[:2] == [{"table": "iris", "seed": seed, "error": "too few rows"} for seed in (0, 1)]
    assert len(rows) == 6
    assert json.loads((project.out / "summary.json").read_text())["headline"] == "4 rows"
    assert capsys.readouterr().err.count("skipped iris: too few rows\n") == 1
    assert "too few rows" in (project.out / "report.html").read_text()


def test_an_experiment_may_refuse_a_config_before_its_first_task(project, monkeypatch):
    experiment, config = runs.load_config(project.config)

    def check(config):
        raise ValueError(f"none of {config.tables} can be used")

    message = r"^experiment toy: none of \('iris', 'wine'\) can be used$"
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "check", check, raising=False)
        with pytest.raises(ConfigError, match=message):
            runs.execute(experiment, config, project.out)
    assert project.called() == []
    assert not project.out.exists()
    assert project.execute() == 0
    # What is finished needs no check.
    monkeypatch.setattr(experiment, "check", check, raising=False)
    assert project.execute(resume=True) == 0


def test_what_an_experiment_says_of_its_data_is_shown_before_its_first_task(project, monkeypatch, capsys):
    experiment, config = runs.load_config(project.config)
    monkeypatch.setattr(experiment, "check", lambda config: [f"{table} has a label" for table in config.tables], False)
    assert runs.execute(experiment, config, project.out) == 0
    err = capsys.readouterr().err
    assert err.startswith("fixntk: iris has a label\nfixntk: wine has a label\n")
    assert "tasks" in err


def test_tables_that_fail_alike_are_reported_together(project, capsys):
    project.control(broken={"iris": "too few rows", "wine": "too few rows"})
    assert project.execute() == 1
    assert "fixntk: skipped iris, wine: too few rows\n" in capsys.readouterr().err
    assert json.loads((project.out / "summary.json").read_text()) == {}


def test_resume_runs_failed_tasks_again(project):
    project.control(broken={"iris": "too few rows"})
    project.execute()
    project.calls()
    project.control()
    assert project.execute(resume=True) == 0
    assert project.called() == TASKS[:2]
    assert not any("error" in row for row in runs.read_rows(project.out))


@pytest.mark.parametrize(
    ("whole_lines", "torn", "rerun"),
    [
        (9, b'{"table": "wine", "seed": 1, "meth', TASKS[3:]),  # the first line of the last task
        (10, b'{"table": "wine", "seed": 1, "method": "fix', TASKS[3:]),  # the second: the first one goes too
        (10, b"", TASKS[3:]),  # at the end of a line
        (11, b"", TASKS[3:]),  # before the closing line
        (11, b'{"finished": {"table": "wi', TASKS[3:]),
        (3, b'{"table": "iris", "seed": 1, "method": "\xc3', TASKS[1:]),  # within a character
        (1, b"", TASKS),
    ],
)
def test_resume_runs_the_task_again_within_which_the_results_end(project, capsys, whole_lines, torn, rerun):
    project.execute()
    project.calls()
    lines = project.results.read_bytes().splitlines(keepends=True)
    project.results.write_bytes(b"".join(lines[:whole_lines]) + torn)
    assert len(runs.read_rows(project.out)) == 2 * (len(TASKS) - len(rerun))
    assert project.execute(resume=True) == 0
    assert "dropped the rows of a task that was not finished" in capsys.readouterr().err
    assert project.called() == rerun
    assert project.results.read_bytes() == b"".join(lines)


@pytest.mark.parametrize(
    "content", [None, "", "[]", '{"earlier": 3}', '{"earlier": [1], "device": {}}', "\0", ' {"device": "\\ud800x"}']
)
def test_a_damaged_environment_does_not_block_a_run(project, content, capsys):
    project.control(broken={"iris": "too few rows"})
    project.execute()
    project.control()
    path = project.out / "environment.json"
    path.unlink() if content is None else path.write_text(content)
    runs.regenerate(project.out, project.out / "page.md")
    if not (content or "").startswith("{"):
        assert "environment.json is missing or damaged" in capsys.readouterr().err
    assert project.execute(resume=True) == 0
    assert json.loads(path.read_text())["jax"]


@pytest.mark.parametrize(
    "name",
    ["results.jsonl", "config.json", "environment.json", "summary.json", "report.html", ".lock", "figures/scores.png"],
)
def test_a_folder_where_a_file_should_be_is_a_config_error(project, name):
    (project.out / name).mkdir(parents=True)
    with pytest.raises(ConfigError, match=name):
        project.execute()
    (project.out / name).rmdir()
    assert project.execute(resume=True) == 0
    assert len(runs.read_rows(project.out)) == 8


def test_a_file_where_a_folder_should_be_is_a_config_error(project):
    project.out.mkdir(parents=True)
    (project.out / "figures").touch()
    with pytest.raises(ConfigError, match="figures: File exists; what is finished is kept"):
        project.execute()
    (project.out / "figures").unlink()
    assert project.execute(resume=True) == 0


FULL_DISK = """
import resource, signal, sys
from fixntk.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(["run", "configs/toy.yaml", "--resume"]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of the size of files")
@pytest.mark.parametrize("room", [100, 600, 3_000])
def test_a_full_disk_is_one_line_and_the_same_command_does_the_rest(project, room):
    command = [sys.executable, "-c", FULL_DISK]
    full = subprocess.run([*command, str(room)], capture_output=True, text=True)
    assert full.returncode == 2
    *_, line = full.stderr.splitlines()
    assert line.startswith("fixntk: error: runs/toy")
    assert "File too large" in line
    assert "Traceback" not in full.stderr
    kept = runs.read_rows(project.out) if project.results.exists() else []
    assert project.execute(resume=True) == 0
    assert repr(runs.read_rows(project.out)[: len(kept)]) == repr(kept)
    assert len(runs.read_rows(project.out)) == 8
    assert not list(project.out.rglob("*.part"))


def test_a_bug_propagates_and_keeps_the_rows_before_it(project):
    project.control(bug="wine")
    with pytest.raises(KeyError, match="a bug"):
        project.execute()
    assert len(runs.read_rows(project.out)) == 4


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ("[]", "gave no row, or one of another task"),
        ('[{"seed": 99}]', "gave no row, or one of another task"),
        ('[{"error": 0.1}]', "gave a row with the key 'error'"),
    ],
)
def test_run_task_must_return_rows_of_its_task(project, returned, expected):
    with (project.root / "experiments" / "toy.py").open("a") as file:
        file.write(f"\ndef run_task(config, task):\n    return {returned}\n")
    with pytest.raises(RuntimeError, match=expected):
        project.execute()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("tables=[forbidden]", "experiment toy: table forbidden cannot be used"),
        ("seeds=[]", "experiment toy: this config leaves nothing to run"),
        ("seeds=[3, 3]", "experiment toy: this config asks twice for 'iris 3'"),
    ],
)
def test_tasks_that_cannot_be_are_an_error_of_the_config(project, override, expected):
    with pytest.raises(ConfigError, match=expected):
        project.execute([override])


def test_termination_is_like_an_interrupt(project, capsys):
    project.control(terminate="wine")
    assert project.execute() == 130
    assert "2 of 4 tasks are finished and kept in" in capsys.readouterr().err
    project.control()
    project.calls()
    assert project.execute(resume=True) == 0
    assert project.called() == TASKS[2:]


def test_directory_that_cannot_be_made_is_a_config_error(project):
    (project.root / "runs").touch()
    with pytest.raises(ConfigError, match="runs/toy: cannot be made"):
        project.execute()


def test_regenerate_gives_the_same_files(project):
    project.execute()
    files = [project.out / name for name in ("report.html", "summary.json", "figures/scores.png")]
    before = [path.read_bytes() for path in files]
    for path in files:
        path.unlink()
    assert runs.regenerate(project.out) == files[0]
    assert [path.read_bytes() for path in files] == before


def test_regenerate_writes_a_markdown_page_too(project):
    project.execute()
    runs.regenerate(project.out, project.out / "page.md")
    assert (project.out / "page.md").read_text().startswith("# ")
    with pytest.raises(ConfigError, match=r"ends in \.md"):
        runs.regenerate(project.out, project.out / "none" / "page.md")


def test_regenerate_of_an_unfinished_run_says_so_on_both_pages(project):
    project.control(terminate="wine", broken={"iris": "too few rows"})
    project.execute()
    runs.regenerate(project.out, project.out / "page.md")
    for name in ("report.html", "page.md"):
        page = (project.out / name).read_text()
        assert "2 of 4 tasks are not finished" in page
        assert "too few rows" in page


def test_an_experiment_that_needs_every_task_is_not_summarised_before(project):
    module = project.root / "experiments" / "toy.py"
    module.write_text(module.read_text() + "\nNEEDS_EVERY_TASK = True\n")
    project.control(terminate="wine")
    assert project.execute() == 130
    runs.regenerate(project.out, project.out / "page.md")
    for name in ("report.html", "page.md"):
        page = (project.out / name).read_text()
        assert "2 of 4 tasks are not finished" in page
        assert "Scores" not in page
    assert json.loads((project.out / "summary.json").read_text()) == {}
    project.control()
    assert project.execute(resume=True) == 0
    assert "Scores" in (project.out / "report.html").read_text()


def test_both_pages_have_the_rows_in_the_order_of_the_tasks(project):
    project.execute()
    runs.regenerate(project.out, project.out / "page.md")
    page = (project.out / "page.md").read_text()
    lines = project.results.read_text().splitlines(keepends=True)
    project.results.write_text("".join(lines[3:] + lines[:3]))
    runs.regenerate(project.out, project.out / "page.md")
    assert (project.out / "page.md").read_text() == page


def test_both_pages_name_the_command_that_began_the_run(project):
    pages = [project.out / name for name in ("report.html", "page.md")]
    config = ["configs/toy.yaml", "tables=[iris, wine]"]
    assert main(["run", *config, "seeds=[3]"]) == 0
    runs.regenerate(project.out, pages[1])
    for page in pages:
        assert "fixntk run configs/toy.yaml" in page.read_text()
        assert "tables=[iris, wine]" in page.read_text()
        assert "seeds=[3]" in page.read_text().partition("The config")[0]
    # A run without its command has that of the experiment's config.
    environment = json.loads((project.out / "environment.json").read_text())
    assert environment.pop("command").startswith("fixntk run configs/toy.yaml")
    (project.out / "environment.json").write_text(json.dumps(environment))
    runs.regenerate(project.out, pages[1])
    for page in pages:
        assert "fixntk run configs/toy.yaml" in page.read_text()
        assert "tables=[iris, wine]" not in page.read_text()


def test_regenerate_needs_a_run_with_results(project):
    with pytest.raises(ConfigError, match=r"runs/toy: is not the folder of a run: it has no config\.json"):
        runs.regenerate(project.out)
    project.execute()
    project.results.write_text("")
    with pytest.raises(ConfigError, match="runs/toy: there are no results yet: no task is finished"):
        runs.regenerate(project.out)


@pytest.mark.parametrize(("most", "cleared"), [(10**9, False), (-1, True)])
def test_compiled_functions_are_dropped_before_memory_maps_run_out(project, monkeypatch, most, cleared):
    monkeypatch.setattr(tasks, "_MOST_MEMORY_MAPS", most)
    function = jax.jit(lambda x: x + 1)
    function(1.0)
    assert project.execute() == 0
    assert (function._cache_size() == 0) == cleared
