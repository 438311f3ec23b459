"""The experiments on networks, at a size of seconds: rows, summary and report."""

import json
import shlex
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import fixntk as fx
from experiments import (
    consistency,
    feature_learning,
    lazy_training,
    paper,
    teacher_student,
    toy,
)
from experiments.data import planted
from experiments.shared import statistics
from fixntk.cli import main
from fixntk.runner import report
from fixntk.runner import run as runs
from fixntk.runner.config import ConfigError, load_config
from fixntk.runner.run import to_json

SMALL = {
    lazy_training: {"widths": (32, 128, 512), "seeds": 8, "num_steps": 200, "num_looks": 2, "step_share": 0.1},
    consistency: {"rows": (100, 400, 1600), "gates": (16, 64), "base_rows": 100, "base_gates": 16, "seeds": 4},
    teacher_student: {
        "num_features": (3,),
        "rows": (60,),
        "num_gates": 32,
        "reg_shares": (0.1, 0.01),
        "width": 40,
        "num_steps": 500,
        "seeds": 1,
    },
    toy: {"num_networks": 4, "num_steps": 8000, "irls_steps": 60},
}


def ran(experiment, **settings):
    """Rows, summary and sections of a small run."""
    config = experiment.Config(**SMALL[experiment] | settings)
    rows = [{**task, **row} for task in experiment.tasks(config) for row in experiment.run_task(config, task)]
    rows = json.loads(json.dumps(to_json(rows)))
    summary = experiment.summarise(config, rows)
    with report.use_style():
        found = experiment.sections(config, rows, summary)
    assert all(figure.axes for section in found for _, figure, _ in section.figures)
    return rows, summary


@pytest.fixture(scope="module")
def fast_paper(tmp_path_factory):
    """The folder of a run of all parts at a size of minutes, as a user runs it."""
    out = tmp_path_factory.mktemp("runs") / "paper"
    assert main(["run", "configs/paper_fast.yaml", "--out", str(out)]) == 0
    return out


def paper_results(folder):
    """Rows and summary of the run."""
    return runs.read_rows(folder), json.loads((folder / "summary.json").read_text())


def test_the_fast_paper_bears_out_the_claims_about_objectives(fast_paper):
    rows, summary = paper_results(fast_paper)
    assert {row["part"] for row in rows} == set(paper.PARTS) == summary.keys() - {"headline"}
    assert summary["toy"]["relative_difference_from_cvxpy"] < 1e-8
    assert summary["toy"]["best_trained_gated_above_bound"] > -1e-9
    assert summary["uci"]["splits_where_the_ntk_beats_the_bound"] == 0
    for table in by_method(rows, "uci").values():
        assert (
            table["optimum"]["lower_bound"] <= table["optimum"]["objective"] <= table["fixed"]["objective"] * (1 + 2e-4)
        )
        assert table["optimum"]["objective"] <= table["sampled_ntk"]["objective"]
    assert summary["uci"]["median_ntk_excess"] > 0.05
    steps = [row for row in rows if row["part"] == "sensitivity" and row["sweep"] == "steps"]
    assert [row["value"] for row in steps] == [0, 1, 2, 4, 8, 16]
    assert steps[0]["accuracy"] == steps[0]["ntk"]
    assert steps[-1]["relative_gap"] < 0.5 * steps[0]["relative_gap"]


def test_the_fast_paper_bears_out_the_claims_about_trained_networks(fast_paper):
    rows, summary = paper_results(fast_paper)
    trained = [row for row in rows if row["part"] == "convex_vs_sgd"]
    assert {row["method"] for row in trained} == {"newton", "irls", "adam"}
    assert summary["convex_vs_sgd"]["below_the_bound"] == 0
    assert summary["convex_vs_sgd"]["largest_excess_when_wide"] < 0.01
    assert summary["convex_vs_sgd"]["largest_excess_when_narrow"] > 0.01
    for row in rows:
        if row["part"] == "teacher_student" and row["method"] == "fixed, discovered gates":
            random = next(
                other
                for other in rows
                if other.get("method") == "fixed, random gates" and other["teacher"] == row["teacher"]
            )
            assert row["objective"] < random["objective"]
    assert summary["consistency"]["in_rows"]["high"] < 0
    assert -1 < summary["lazy_training"]["slopes"]["test"]["slope"] < 0


def test_the_fast_paper_bears_out_the_claims_about_features(fast_paper):
    rows, summary = paper_results(fast_paper)
    # The optimum's kernel may align less than that of a few steps, and than the NTK.
    aligned = summary["feature_learning"]["alignment"]["relu_teacher"]
    best = summary["feature_learning"]["best_of_reweighting"]["relu_teacher"]
    assert best["step"] > 0
    assert aligned["NTK"]["training"] < best["training"]
    assert aligned["NTK"]["test"] < best["test"]
    assert aligned["NTK"]["test"] < aligned["trained ReLU"]["test"]
    layers = by_method([row | {"method": row["kernel"]} for row in rows if row.get("study") == "layers"], "beyond")
    for kernels in layers.values():
        assert np.all(np.array(kernels["NTK"]["objectives"]) >= np.array(kernels["fixed"]["lower_bounds"]))
        np.testing.assert_allclose(np.sum(kernels["fixed"]["layer_shares"]), 1)
    deep = {row["inputs"]: row["accuracy"] for row in summary["beyond"]["accuracy"] if row["study"] == "features"}
    assert deep["network that knows digits"] > deep["untrained network"]


def test_the_page_of_the_fast_paper_has_every_part(fast_paper):
    page = (fast_paper / "report.html").read_text()
    assert all(f"configs/{part}.yaml" in page for part in paper.PARTS)
    assert "<button" in page
    assert '<button type="button"></button>' not in page  # a heading of a table


def test_each_part_of_the_paper_sees_the_rows_that_it_would_have_made_alone(fast_paper):
    """Float64 of one part does not leak into the next."""
    rows, _ = paper_results(fast_paper)
    config = consistency.Config(rows=(100, 200, 400), gates=(32, 128), base_rows=200, base_gates=32, seeds=4)
    task = consistency.tasks(config)[0]
    alone = consistency.run_task(config, task)
    found = [row for row in rows if row["part"] == "consistency" and row["rows"] == task["rows"]]
    np.testing.assert_allclose([row["squared_error"] for row in found], [row["squared_error"] for row in alone])


def test_parts_of_the_paper_report_on_any_tasks_that_are_finished(fast_paper):
    rows, _ = paper_results(fast_paper)
    _, config = runs.load_config("configs/paper_fast.yaml")
    for name, part in paper.PARTS.items():
        if getattr(part.module, "NEEDS_EVERY_TASK", False):
            continue
        settings = getattr(config, name)
        of_task = runs.rows_by_task(part.module.tasks(settings), [row for row in rows if row["part"] == name])
        for count in range(1, len(of_task)):
            some = [row for task_rows in of_task[:count] for row in task_rows]
            part.module.sections(settings, some, part.module.summarise(settings, some))


@pytest.mark.long
def test_a_paper_interrupted_within_two_parts_goes_on_to_the_same_rows(fast_paper, tmp_path, capsys):
    folder = Path(shutil.copytree(fast_paper, tmp_path / "paper"))
    rows = runs.read_rows(folder)
    results = folder / "results.jsonl"
    lines = results.read_bytes().splitlines(keepends=True)
    lost = [line for line in lines if is_of(line, "uci", "seed", 1) or is_of(line, "consistency", "rows", 200)]
    assert 0 < len(lost) < len(lines)
    results.write_bytes(b"".join(line for line in lines if line not in lost))
    (folder / "report.html").unlink()
    assert main(["run", "configs/paper_fast.yaml", "--out", str(folder), "--resume"]) == 0
    assert untimed(runs.read_rows(folder)) == untimed(rows)
    assert (folder / "report.html").is_file()
    assert paper_results(folder)[1]["headline"] in capsys.readouterr().out

    # A report can be had of what is there: the parts that are finished, and how far the others are.
    results.write_bytes(b"".join(line for line in lines if line not in lost))
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert "2 of 4 tasks" in page  # two tables of two seeds
    assert "UCI: every table" not in page
    assert "Toy: five points on a line" in page


def is_of(line, part, key, value):
    """Whether a line of results is of a part's tasks with this value."""
    row = json.loads(line)
    # A task's closing line names the task.
    row = row.get("finished", row)
    return row["part"] == part and row.get(key) == value


def untimed(rows):
    """The rows without their seconds, in an order of their own."""
    return sorted(json.dumps({key: row[key] for key in row if key != "seconds"}) for row in rows)


def by_method(rows, part):
    """Rows of a part by method, for each of its cases."""
    found = {}
    for row in rows:
        if row["part"] == part:
            case = tuple(row.get(key) for key in ("table", "seed", "inputs"))
            found.setdefault(case, {})[row["method"]] = row
    return found


@pytest.mark.long
def test_wide_networks_are_nearer_to_the_closed_form():
    _, summary = ran(lazy_training)
    assert -0.8 < summary["slopes"]["test"]["slope"] < -0.25
    assert summary["slopes"]["test"]["low"] < -0.25


@pytest.mark.long
def test_the_toy_problem_is_solved_alike_by_all():
    rows, summary = ran(toy)
    objective = summary["objective"]
    assert summary["relative_difference_from_cvxpy"] < 1e-8
    assert objective["NTK"] > objective["1 step"] > objective["10 steps"] > objective["optimum"]
    assert objective["optimal ReLU"] > objective["optimum"]
    assert -1e-9 < summary["best_trained_gated_above_bound"] < 0.01 * objective["optimum"]
    assert -1e-9 < summary["best_trained_relu_above_bound"] < 0.05 * objective["optimal ReLU"]
    path = rows[0]["path"]
    # The NTK's solution needs less weight than the NTK spends.
    assert path[0] == pytest.approx(summary["objective_of_the_ntk_solution"], rel=1e-9)
    assert objective["NTK"] > path[0]
    assert summary["left_by_reweighting"] < 1e-5
    assert np.all(np.diff(path) < 1e-9)
    assert path[-1] == pytest.approx(objective["optimum"], rel=1e-5)
    # The NTK's weights at their best scale: the solid angles of all cells, which any other scale makes worse.
    best = next(row for row in rows if row["function"] == "optimum")
    weights = np.array(best["ntk_weights"])
    data = planted.make("toy", 0)
    program = fx.ConvexProgram(data.x, data.y, data.masks, 1.0)
    program = program.with_reg(0.01 * program.max_reg())
    kernel, y = np.asarray(fx.masked_gram(weights, data.masks, data.x)), np.asarray(data.y)
    values = [
        y @ np.linalg.solve(scale * kernel + program.reg * np.eye(5), y) + scale * weights.sum()
        for scale in (0.9, 1, 1.1)
    ]
    assert values[1] == min(values)
    assert 0.5 * program.reg * values[1] == pytest.approx(objective["NTK"], rel=1e-9)


@pytest.mark.long
def test_prediction_errors_fall_with_rows_and_grow_with_gates():
    rows, summary = ran(consistency)
    assert summary["largest_relative_gap"] < 1e-5
    assert -1.3 < summary["in_rows"]["low"] < summary["in_rows"]["high"] < -0.4
    assert summary["in_log_gates"]["slope"] > 0
    assert len(rows) == 4 * 4
    # Almost without noise and penalty the planted outputs are found.
    config = consistency.Config(**SMALL[consistency], noise=1e-6)
    (row, *_) = consistency.run_task(config, {"rows": 100, "gates": 16})
    assert row["squared_error"] < 1e-6  # the tolerance of the solver
    assert row["recovered"] == 4


@pytest.mark.long
def test_discovered_gates_lower_the_objective_and_are_nearer_to_the_planted_ones():
    rows, summary = ran(teacher_student)
    assert len(rows) == 2 * len(teacher_student.METHODS)
    found = {(row["teacher"], row["method"]): row for row in rows}
    for teacher in ("gated", "relu"):
        random, discovered = (found[teacher, f"fixed, {kind} gates"] for kind in ("random", "discovered"))
        assert discovered["objective"] < random["objective"]
        assert 0.5 <= random["recovered"] <= discovered["recovered"] + 0.05 <= 1.05
        assert max(found[teacher, method]["squared_error"] for method in teacher_student.METHODS) < 1
    assert summary["cases"] == 2
    x = np.random.default_rng(0).standard_normal((50, 3))
    masks = x @ np.eye(3) >= 0
    assert teacher_student._agreement(x, np.eye(3), masks) == 1
    assert teacher_student._agreement(x, np.eye(3), ~masks) == 1
    assert teacher_student._agreement(x, np.eye(3)[:1], np.ones((50, 0), bool)) == 0.5


def test_slopes_are_those_of_powers():
    sizes = np.array([10, 10, 100, 100, 1000])
    found = statistics.slope(sizes, 3 * sizes**-0.7)
    assert found["slope"] == pytest.approx(-0.7)
    assert found["high"] - found["low"] < 1e-6


def test_a_geometric_mean_has_the_interval_of_the_logarithms():
    found = statistics.geometric_mean([1.0, 100.0])
    assert found["mean"] == pytest.approx(10)
    # t of one degree of freedom is 12.706, the standard error of log10 is 1.
    assert np.log10(found["high"] / found["mean"]) == pytest.approx(12.706, rel=1e-4)
    assert found["low"] * found["high"] == pytest.approx(100)
    assert np.isnan(statistics.geometric_mean([2.0])["low"])


def test_alignment_is_one_for_the_targets_and_blind_to_shifts():
    y = jax.numpy.asarray(np.random.default_rng(0).standard_normal(20))
    kernel = (y[:, None] - 1) * (y - 1)
    np.testing.assert_allclose(feature_learning.alignment(kernel, y), 1, rtol=1e-12)
    np.testing.assert_allclose(feature_learning.alignment(kernel + 5, y), 1, rtol=1e-12)


def test_planted_gates_are_those_of_the_masks():
    for problem in planted.PROBLEMS:
        data = planted.make(problem, 1)
        np.testing.assert_array_equal(data.x @ data.gates.T >= 0, data.masks)


def test_a_part_of_the_paper_that_is_not_finished_is_one_line():
    _, config = load_config("configs/paper_fast.yaml")
    tasks = paper.tasks(config)
    last = {task["part"]: task for task in tasks}
    rows = [task for task in tasks if task != last[task["part"]]]
    summary = paper.summarise(config, rows)
    assert summary == {"headline": ""}
    (section,) = paper.sections(config, rows, summary)
    counts = {name: sum(task["part"] == name for task in tasks) for name in paper.PARTS}
    assert list(section.table["measured here"]) == [f"{count - 1} of {count} tasks" for count in counts.values()]
    assert set(section.table["verdict"]) == {"not finished"}


def test_a_claim_holds_where_all_that_is_checked_is_so():
    def verdict(part, **summary):
        return paper._verdict(paper.PARTS[part].checks(summary))

    for below, same, expected in ((0, 14, "holds"), (0, 13, "partly"), (1, 14, "partly"), (1, 13, "not here")):
        against = {"higher": 12, "same": same, "lower": 21 - same}
        beaten = {"splits_where_the_ntk_beats_the_bound": below}
        assert verdict("uci", tables=33, fixed_against_ntk=against, **beaten) == expected
    slow, fast = {"low": -0.86, "high": -0.71}, {"low": -1.1, "high": -0.9}
    in_gates = {"in_log_gates": {"low": 0.3}, "theory_in_log_gates": 0.48}
    assert verdict("consistency", in_rows=fast, **in_gates) == "holds"
    assert verdict("consistency", in_rows=slow, **in_gates) == "partly"
    # Too few data sets for an interval bear nothing out.
    unknown = {"mean": 0.5, "low": None, "high": None}
    assert verdict("teacher_student", error_over_ntk={"gated": {"fixed, random gates": unknown}}) == "not here"


@pytest.mark.parametrize("name", paper.PARTS)
def test_a_part_of_the_paper_has_a_command_of_its_own(name):
    _, config = load_config("configs/paper.yaml")
    settings = getattr(config, name)
    fixntk, run, path, *overrides = shlex.split(paper._command(name, settings))
    assert (fixntk, run) == ("fixntk", "run")
    assert load_config(path, overrides)[1] == settings


@pytest.mark.parametrize("name", paper.PARTS)
def test_configs_are_valid(name):
    found, config = load_config(f"configs/{name}.yaml")
    assert found.__name__ == f"experiments.{name}"
    assert config == found.Config()


@pytest.mark.parametrize(
    ("name", "override", "expected"),
    [
        ("uci", "reg_shares=[]", "reg_shares"),
        ("sensitivity", "tables=[]", "tables"),
        ("sensitivity", "tables=[irsi]", "did you mean iris"),
        ("sensitivity", "gates=[]", "gates"),
        ("sensitivity", "reg_shares=[]", "reg_shares"),
        ("sensitivity", "epsilon_gaps=[]", "epsilon_gaps"),
        ("convex_vs_sgd", "problems=[]", "problems"),
        ("convex_vs_sgd", "optimizers=[]", "optimizers"),
        ("convex_vs_sgd", "width_shares=[]", "width_shares"),
        ("convex_vs_sgd", "learning_rates=[]", "learning_rates"),
        ("teacher_student", "teachers=[]", "teachers"),
        ("teacher_student", "num_features=[]", "num_features"),
        ("teacher_student", "rows=[]", "rows"),
        ("teacher_student", "reg_shares=[]", "reg_shares"),
        ("consistency", "rows=[]", "rows"),
        ("consistency", "gates=[1, 32]", "gates"),
        ("consistency", "gates=[3, 32]", "num_active: 4 planted gates cannot be among 3"),
        ("consistency", "num_active=200", "num_active: 200 planted gates cannot be among 32"),
        ("lazy_training", "widths=[]", "widths"),
        ("lazy_training", "num_rows=500", "num_rows"),
        ("feature_learning", "problems=[]", "problems"),
        ("directions", "relevant=[]", "relevant"),
        ("directions", "relevant=21", "21 columns cannot matter of num_columns=20"),
        ("directions", "noise=0", "noise"),
        ("beyond", "studies=[]", "studies"),
        ("paper", "beyond.studies=[]", "beyond.studies"),
    ],
)
def test_settings_that_cannot_be_are_one_line_and_two(name, override, expected, tmp_path, capsys):
    assert main(["run", f"configs/{name}.yaml", override, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["paper", "paper_fast"])
def test_the_configs_of_the_paper_are_valid(name):
    found, config = load_config(f"configs/{name}.yaml")
    assert found.__name__ == "experiments.paper"
    assert len(found.tasks(config)) > 20
    with pytest.raises(ConfigError, match="tabels"):
        load_config(f"configs/{name}.yaml", ["uci.tabels=[iris]"])


def test_slopes_of_too_few_sizes_have_no_interval():
    assert np.isnan(statistics.slope([3, 3], [1, 2])["slope"])
    two = statistics.slope([1, 10], [1, 0.1])
    assert two["slope"] == pytest.approx(-1)
    assert statistics.slope_text(two) == "−1.00"
    _, summary = ran(lazy_training, widths=(16, 32), seeds=2, num_steps=20)
    assert "a slope of" in summary["headline"]
