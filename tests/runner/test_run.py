import json
import time

import jax
import pytest

from fixntk.cli import main
from fixntk.runner import run as runs
from fixntk.runner.run import ConfigError

pytest_plugins = ("toy_experiment",)

TASKS = [("iris", 0), ("iris", 1), ("wine", 0), ("wine", 1)]


def execute(project, overrides=(), **options):
    return runs.execute(*runs.load_config(project.config, overrides), project.out, **options)


def called(project):
    return [(call["table"], call["seed"]) for call in project.calls()]


def results(project):
    return project.out / "results.jsonl"


def test_run_writes_every_file(project):
    assert execute(project) == 0
    names = {path.relative_to(project.out).as_posix() for path in project.out.rglob("*") if path.is_file()}
    assert names == {
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


def test_rows_carry_the_task_and_are_plain_json(project):
    execute(project, ["tables=[iris]", "seeds=[7]"])
    assert [json.loads(line) for line in results(project).read_text().splitlines()] == [
        {"table": "iris", "seed": 7, "method": "plain", "score": 0.5, "n": 3, "bad": None},
        {"table": "iris", "seed": 7, "method": "fixed", "score": 0.75, "n": 4, "bad": [1.0, None]},
    ]
    assert json.loads((project.out / "summary.json").read_text())["worst"] is None
    assert "NaN" not in results(project).read_text()


def test_rows_are_on_disk_before_the_next_task_starts(project):
    execute(project)
    assert [call["rows_before"] for call in project.calls()] == [0, 2, 4, 6]


def test_progress_without_a_terminal_is_a_line_a_minute_and_one_at_the_end(project, capsys, monkeypatch):
    execute(project, [f"seeds={list(range(20))}"])
    lines = [line for line in capsys.readouterr().err.splitlines() if " of 40 tasks" in line]
    assert len(lines) == 1
    assert lines[0].startswith("fixntk: 40 of 40 tasks")
    monkeypatch.setattr(runs, "_SECONDS_BETWEEN_LINES", 0.05)
    tracked = runs._track_progress([{"table": "iris", "seed": 3}], 5)
    next(tracked)
    time.sleep(0.3)
    assert "fixntk: 4 of 5 tasks, 0 s, now iris 3" in capsys.readouterr().err.splitlines()
    tracked.close()


def test_progress_on_a_terminal_is_a_bar_with_the_task(project, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    execute(project)
    shown = capsys.readouterr().err
    assert "4/4" in shown
    assert "wine 1" in shown


def test_results_are_not_overwritten_without_resume(project):
    execute(project)
    before = results(project).read_bytes()
    with pytest.raises(ConfigError, match=r"runs/toy already has results: pass --resume .*--out"):
        execute(project)
    assert results(project).read_bytes() == before


def test_resume_of_a_fresh_directory_starts(project):
    assert execute(project, resume=True) == 0
    assert called(project) == TASKS


def test_resume_runs_only_what_is_not_finished_and_gives_the_same_report(project):
    execute(project)
    project.calls()
    whole = (project.out / "report.html").read_bytes()
    lines = results(project).read_text().splitlines(keepends=True)
    results(project).write_text("".join(lines[:2] + lines[6:]))
    started = (project.out / "environment.json").read_text()
    assert execute(project, resume=True) == 0
    assert called(project) == TASKS[1:3]
    assert runs.read_rows(project.out) == [json.loads(lines[k]) for k in (0, 1, 6, 7, 2, 3, 4, 5)]
    # Only the start's time may differ.
    then, now = (json.loads(text)["started"] for text in (started, (project.out / "environment.json").read_text()))
    assert (project.out / "report.html").read_text() == whole.decode().replace(then, now)


def test_resume_of_a_finished_run_only_makes_the_report(project):
    execute(project)
    project.calls()
    before = (results(project).read_bytes(), (project.out / "environment.json").read_bytes())
    (project.out / "report.html").unlink()
    assert execute(project, resume=True) == 0
    assert called(project) == []
    assert (results(project).read_bytes(), (project.out / "environment.json").read_bytes()) == before
    assert (project.out / "report.html").exists()


def test_unusable_data_is_one_row_and_the_other_tasks_go_on(project, capsys):
    project.control(broken={"iris": "too few rows"})
    assert execute(project) == 1
    assert called(project) == TASKS
    rows = runs.read_rows(project.out)
    assert rows[:2] == [{"table": "iris", "seed": seed, "error": "too few rows"} for seed in (0, 1)]
    assert len(rows) == 6
    assert json.loads((project.out / "summary.json").read_text())["headline"] == "4 rows"
    assert capsys.readouterr().err.count("skipped iris: too few rows\n") == 1
    assert "too few rows" in (project.out / "report.html").read_text()


def test_tables_that_fail_alike_are_reported_together(project, capsys):
    project.control(broken={"iris": "too few rows", "wine": "too few rows"})
    assert execute(project) == 1
    assert "fixntk: skipped iris, wine: too few rows\n" in capsys.readouterr().err
    assert json.loads((project.out / "summary.json").read_text()) == {}


def test_resume_runs_failed_tasks_again(project):
    project.control(broken={"iris": "too few rows"})
    execute(project)
    project.calls()
    project.control()
    assert execute(project, resume=True) == 0
    assert called(project) == TASKS[:2]
    assert not any("error" in row for row in runs.read_rows(project.out))


@pytest.mark.parametrize(
    ("whole_lines", "torn", "rerun"),
    [
        (6, b'{"table": "wine", "seed": 1, "meth', TASKS[3:]),  # the first line of the last task
        (7, b'{"table": "wine", "seed": 1, "method": "fix', TASKS[3:]),  # the second: the first one goes too
        (5, b'{"table": "win', TASKS[2:]),
        (2, b'{"table": "iris", "seed": 1, "method": "\xc3', TASKS[1:]),  # within a character
    ],
)
def test_resume_survives_a_torn_last_line(project, capsys, whole_lines, torn, rerun):
    execute(project)
    project.calls()
    lines = results(project).read_bytes().splitlines(keepends=True)
    results(project).write_bytes(b"".join(lines[:whole_lines]) + torn)
    assert len(runs.read_rows(project.out)) == whole_lines
    assert execute(project, resume=True) == 0
    assert "dropped a torn last line" in capsys.readouterr().err
    assert called(project) == rerun
    assert results(project).read_bytes() == b"".join(lines)


def test_resume_with_another_config_names_the_keys_and_both_values(project):
    execute(project)
    expected = r"config\.json is of another config.*: seeds was \[0, 1\], now \[0\]; solver\.tol was 0\.001, now 0\.1$"
    with pytest.raises(ConfigError, match=expected):
        execute(project, ["seeds=[0]", "solver.tol=0.1"], resume=True)


def test_resume_elsewhere_keeps_what_the_earlier_part_was_computed_with(project):
    project.control(broken={"iris": "too few rows"})
    execute(project)
    project.control()
    path = project.out / "environment.json"
    first = json.loads(path.read_text()) | {"jax": "0.0.1"}
    path.write_text(json.dumps(first))
    execute(project, resume=True)
    assert json.loads(path.read_text())["earlier"] == [first]
    assert "0.0.1" in (project.out / "report.html").read_text()


def test_a_bug_propagates_and_keeps_the_rows_before_it(project):
    project.control(bug="wine")
    with pytest.raises(KeyError, match="a bug"):
        execute(project)
    assert len(runs.read_rows(project.out)) == 4


@pytest.mark.parametrize("returned", ["[]", '[{"seed": 99}]'])
def test_run_task_must_return_rows_of_its_task(project, returned):
    with (project.root / "experiments" / "toy.py").open("a") as file:
        file.write(f"\ndef run_task(config, task):\n    return {returned}\n")
    with pytest.raises(RuntimeError, match="gave no row, or one of another task"):
        execute(project)


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
        execute(project, [override])


def test_termination_is_like_an_interrupt(project, capsys):
    project.control(terminate="wine")
    assert execute(project) == 130
    assert "2 of 4 tasks are finished and kept in" in capsys.readouterr().err
    project.control()
    project.calls()
    assert execute(project, resume=True) == 0
    assert called(project) == TASKS[2:]


def test_directory_that_cannot_be_made_is_a_config_error(project):
    (project.root / "runs").touch()
    with pytest.raises(ConfigError, match="runs/toy: cannot be made"):
        execute(project)


def test_regenerate_gives_the_same_files(project):
    execute(project)
    files = [project.out / name for name in ("report.html", "summary.json", "figures/scores.png")]
    before = [path.read_bytes() for path in files]
    for path in files:
        path.unlink()
    assert runs.regenerate(project.out) == files[0]
    assert [path.read_bytes() for path in files] == before


def test_regenerate_writes_a_markdown_page_too(project):
    execute(project)
    runs.regenerate(project.out, project.out / "page.md")
    assert (project.out / "page.md").read_text().startswith("# ")
    with pytest.raises(ConfigError, match=r"ends in \.md"):
        runs.regenerate(project.out, project.out / "none" / "page.md")


def test_regenerate_of_an_unfinished_run_says_so_on_both_pages(project):
    project.control(terminate="wine", broken={"iris": "too few rows"})
    execute(project)
    runs.regenerate(project.out, project.out / "page.md")
    for name in ("report.html", "page.md"):
        page = (project.out / name).read_text()
        assert "2 of 4 tasks are not finished" in page
        assert "too few rows" in page


def test_an_experiment_that_needs_every_task_is_not_summarised_before(project):
    module = project.root / "experiments" / "toy.py"
    module.write_text(module.read_text() + "\nNEEDS_EVERY_TASK = True\n")
    project.control(terminate="wine")
    assert execute(project) == 130
    runs.regenerate(project.out, project.out / "page.md")
    for name in ("report.html", "page.md"):
        page = (project.out / name).read_text()
        assert "2 of 4 tasks are not finished" in page
        assert "Scores" not in page
    assert json.loads((project.out / "summary.json").read_text()) == {}
    project.control()
    assert execute(project, resume=True) == 0
    assert "Scores" in (project.out / "report.html").read_text()


def test_both_pages_have_the_rows_in_the_order_of_the_tasks(project):
    execute(project)
    runs.regenerate(project.out, project.out / "page.md")
    page = (project.out / "page.md").read_text()
    lines = results(project).read_text().splitlines(keepends=True)
    results(project).write_text("".join(lines[2:] + lines[:2]))
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
    execute(project)
    results(project).write_text("")
    with pytest.raises(ConfigError, match="runs/toy: there are no results yet"):
        runs.regenerate(project.out)


@pytest.mark.parametrize(("most", "cleared"), [(10**9, False), (-1, True)])
def test_compiled_functions_are_dropped_before_memory_maps_run_out(project, monkeypatch, most, cleared):
    monkeypatch.setattr(runs, "_MOST_MEMORY_MAPS", most)
    function = jax.jit(lambda x: x + 1)
    function(1.0)
    assert execute(project) == 0
    assert (function._cache_size() == 0) == cleared
