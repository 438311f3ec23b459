import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.kernel_ridge import KernelRidge

import fixntk as fx
from experiments import uci
from experiments.shared import selection, statistics
from fixntk.cli import main
from fixntk.estimators.preprocessing import as_signs
from fixntk.runner.rows import read_rows

FAST = ["seeds=1", "num_gates=32", "steps=3", "path_steps=5", "num_folds=2", "reg_shares=[0.1, 0.01]"]

FIGURES = {"accuracy.png", "fixed.png", "tables.png"}


@pytest.fixture
def data(rng):
    x = np.column_stack([rng.standard_normal((40, 3)), np.ones(40)])
    labels = (x[:, 0] * x[:, 1] > 0).astype(int)
    y = jnp.asarray(2.0 * labels[:, None] - 1)
    return jnp.asarray(x), y, labels


def folds_of(keep):
    for rows in np.asarray(keep):
        yield np.flatnonzero(rows == 1), np.flatnonzero(rows == 0)


def test_every_row_is_held_out_once_and_folds_are_stratified(rng):
    labels = rng.permutation(np.repeat([0, 1, 2], [30, 20, 10]))
    keep = selection.fold_masks(labels, 5, seed=0)
    np.testing.assert_array_equal((keep == 0).sum(axis=0), 1)
    for _, held_out in folds_of(keep):
        np.testing.assert_array_equal(np.bincount(labels[held_out]), [6, 4, 2])


def test_small_classes_do_not_stop_the_folds():
    keep = selection.fold_masks(np.array([0, 0, 0, 0, 0, 1, 1]), 4, seed=0)
    np.testing.assert_array_equal((keep == 0).sum(axis=0), 1)


def test_ridge_selection_is_that_of_scikit_learn(data):
    x, y, labels = data
    kernel = np.asarray(fx.gated_relu_ntk(x))
    keep, regs = selection.fold_masks(labels, 4, seed=1), jnp.asarray([10.0, 1.0, 0.1, 0.01])
    fit = selection.fit_ridge(kernel, kernel[:5], y, keep, regs)
    squares = np.zeros(4)
    for train, held_out in folds_of(keep):
        for i, reg in enumerate(regs):
            model = KernelRidge(alpha=float(reg), kernel="precomputed").fit(kernel[np.ix_(train, train)], y[train])
            squares[i] += np.sum((model.predict(kernel[np.ix_(held_out, train)]) - y[held_out]) ** 2)
    np.testing.assert_allclose(fit.errors, squares / 40, rtol=1e-6)
    assert int(fit.chosen) == np.argmin(squares)
    model = KernelRidge(alpha=float(regs[np.argmin(squares)]), kernel="precomputed").fit(kernel, y)
    np.testing.assert_allclose(fit.outputs, model.predict(kernel[:5]), atol=1e-8)


@pytest.mark.filterwarnings("ignore::fixntk.ConvergenceWarning")
def test_fixed_selection_is_that_of_fitting_each_fold_alone(data, key):
    x, y, labels = data
    masks = fx.activation_masks(x, gates := fx.sample_gates(key, 20, 4))
    keep, regs = selection.fold_masks(labels, 3, seed=1), jnp.asarray([3.0, 0.3])
    fit = selection.fit_fixed(x, y, masks, keep, regs, steps=5, tol=1e-6)
    squares = np.zeros(2)
    for train, held_out in folds_of(keep):
        for i, reg in enumerate(regs):
            program = fx.ConvexProgram(x[train], y[train], masks[train], reg)
            fold = fx.solve(program, method="irls", max_iter=5)
            squares[i] += np.sum((fold.predict(x[held_out], gates) - y[held_out]) ** 2)
    # ε depends on the number of rows only through ½‖Y‖², which zeroed rows do not enter.
    np.testing.assert_allclose(fit.errors, squares / 40, rtol=1e-6)
    assert int(fit.chosen) == np.argmin(squares)
    assert float(fit.ntk.objective) >= float(fit.solution.dual)


def test_the_test_part_is_never_seen_in_fitting(monkeypatch):
    tables = {"tables": ("iris", "wine"), "path_table": "wine"}
    config = uci.Config(**tables, seeds=1, num_gates=16, steps=2, reg_shares=(0.1, 0.01))
    rows = uci.run_task(config, {"table": "iris", "seed": 0})
    original = uci.split_table

    def shuffled(*arguments, **options):
        split = original(*arguments, **options)
        order = np.random.default_rng(0).permutation(len(split.y_test))
        return dataclasses.replace(split, y_test=split.y_test[order])

    monkeypatch.setattr(uci, "split_table", shuffled)
    others = uci.run_task(config, {"table": "iris", "seed": 0})
    for row, other in zip(rows, others, strict=True):
        assert row["reg_share"] == other["reg_share"]
        assert row["accuracy"] != other["accuracy"]


def test_comparison_counts_and_tests_the_pairs():
    fixed, ntk = pd.Series([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]), pd.Series([0.8, 0.8, 0.72, 0.5, 0.45, 0.1])
    comparison = statistics.compare(fixed, ntk)
    assert (comparison["higher"], comparison["same"], comparison["lower"]) == (4, 1, 1)
    np.testing.assert_allclose(comparison["wilcoxon_p"], stats.wilcoxon(fixed - ntk).pvalue)
    np.testing.assert_allclose(np.mean(comparison["mean_difference_95"]), (fixed - ntk).mean())


def test_equal_methods_are_no_evidence():
    same = pd.Series([0.9, 0.8])
    assert statistics.compare(same, same)["mean_difference_95"] is None
    many = pd.concat([same] * 3)
    assert statistics.compare(many, many)["wilcoxon_p"] == 1.0


def test_few_values_have_no_interval_and_few_tables_no_test():
    for count, has_interval, has_test in ((4, False, False), (5, True, False), (6, True, True)):
        one, other = pd.Series(np.arange(count) + 1.0), pd.Series(np.zeros(count))
        comparison = statistics.compare(one, other)
        assert (comparison["mean_difference_95"] is not None, comparison["wilcoxon_p"] is not None) == (
            has_interval,
            has_test,
        )
        text = statistics.comparison_text(comparison)
        assert ("95 % interval" in text, "Wilcoxon" in text) == (has_interval, has_test)
        groups = one.groupby(np.zeros(count))
        half = stats.sem(one) * stats.t.ppf(0.975, count - 1)
        np.testing.assert_allclose(statistics.margin(groups)[0], half if has_interval else np.nan)


def test_two_classes_have_one_output_and_more_have_one_each():
    np.testing.assert_array_equal(as_signs(np.array([0, 1]), 2), [[-1], [1]])
    np.testing.assert_array_equal(as_signs(np.array([0, 2]), 3), [[1, -1, -1], [-1, -1, 1]])


def test_the_command_runs_the_tables_and_reports(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["run", "configs/quickstart.yaml", "tables=[iris, haberman]", *FAST, "--out", str(out)]) == 0
    rows = read_rows(out)
    assert [(row["table"], row["method"]) for row in rows] == [
        (table, method) for table in ("iris", "haberman") for method in ("ntk", "sampled_ntk", "fixed", "optimum")
    ]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["tables"] == 2
    assert summary["splits_where_the_ntk_beats_the_bound"] == 0
    assert summary["headline"] in capsys.readouterr().out
    assert {path.name for path in (out / "figures").iterdir()} == FIGURES
    for row in rows:
        assert 0 <= row["accuracy"] <= 1
        if row["method"] in ("fixed", "optimum"):
            assert row["lower_bound"] <= row["objective"]
        if row["method"] == "optimum":
            assert row["relative_gap"] <= 1e-4
    report = (out / "report.html").read_text()
    assert report.count("<svg ") == len(FIGURES)
    # The points of tables have their names.
    assert re.search(r"<title>iris\n[^<]*test accuracy of the NTK: ", report)


def test_unusable_tables_are_named_and_skipped_and_the_rest_goes_on(tmp_path, capsys):
    bad = {
        "missing": "a,b,class\n" + "1,2,u\n2,3,\n" * 4,
        "constant": "a,b,class\n" + "1,2,u\n1,2,v\n" * 4,
        "one-class": "a,b,class\n" + "1,2,u\n2,3,u\n" * 4,
        "few-rows": "a,b,class\n1,2,u\n2,3,v\n4,5,w\n",
    }
    names = []
    for name, text in bad.items():
        (tmp_path / f"{name}.csv").write_text(text)
        names.append(str(tmp_path / f"{name}.csv"))
    tables = json.dumps([*names, "haberman"])
    assert main(["run", "configs/quickstart.yaml", f"tables={tables}", *FAST, "--out", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    for name, reason in [
        ("missing.csv", "4 missing in column 'class', the target"),
        ("constant.csv", "no column is left to learn from"),
        ("one-class.csv", "has one value only, 'u'"),
        ("few-rows.csv", "has one row"),
    ]:
        assert any(name in line and reason in line for line in error.splitlines())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["tables"] == 1
    # The path is shown on the first table that can be used.
    assert {path.name for path in (tmp_path / "run" / "figures").iterdir()} == FIGURES - {"accuracy.png"}
    assert "On haberman: the training objective" in (tmp_path / "run" / "report.html").read_text()


def test_a_run_on_one_table_of_the_user_ends_with_its_answer(tmp_path, capsys, rng):
    x = rng.standard_normal((40, 2))
    lines = [f"{a:.3f},{b:.3f},{'u' if a * b > 0 else 'v'}" for a, b in x]
    (tmp_path / "mine.csv").write_text("\n".join(["a,b,kind", *lines]))
    out, options = tmp_path / "run", [*FAST[1:], "seeds=5"]
    assert main(["run", "configs/uci.yaml", f"tables={tmp_path / 'mine.csv'}", *options, "--out", str(out)]) == 0
    headline, told = capsys.readouterr().out.splitlines()
    assert re.match(rf"{tmp_path / 'mine.csv'}: use the (NTK|fixed kernel)\. On rows held out [^.]*\.", headline)
    assert "NTK's by" in headline
    assert told.startswith("The report is")
    assert {path.name for path in (out / "figures").iterdir()} == {"fixed.png", "tables.png"}
    report = (out / "report.html").read_text()
    for words in ("on single tables", "of 1 tables", "over tables:", "higher on", "tables where"):
        assert words not in report


def test_files_that_are_missing_or_all_unusable_are_refused_before_the_run(tmp_path, capsys):
    path = tmp_path / "mine.csv"
    path.write_text("a,b,kind\n" + "1,2,u\n2,3,v\n" * 4)
    for tables, label, reason in [
        (f"{tmp_path / 'none.csv'},iris", "kind", "none.csv': there is no such file"),
        (path, "kid", "has no column 'kid'"),
    ]:
        options = [f"tables={tables}", f"label={label}", "--out", str(tmp_path / "run")]
        assert main(["run", "configs/quickstart.yaml", *options]) == 2
        assert reason in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_ntk_below_the_bound_is_an_error_and_no_result(monkeypatch):
    original = uci.solve_quietly

    def overestimated(*arguments, **options):
        solution = original(*arguments, **options)
        return dataclasses.replace(solution, dual=10 * solution.dual)

    monkeypatch.setattr(uci, "solve_quietly", overestimated)
    config = uci.Config(tables=("iris",), seeds=1, num_gates=16, steps=2, reg_shares=(0.1,))
    with pytest.raises(ArithmeticError, match="below the bound"):
        uci.run_task(config, {"table": "iris", "seed": 0})


def test_what_is_left_is_set_against_the_difference():
    """Three made-up tables: what the NTK leaves and what fixing gains in opposite orders."""
    rows = []
    for table, left, gain in (("a", 0.1, 0.03), ("b", 0.2, 0.02), ("c", 0.3, -0.01)):
        for seed in range(5):
            common = {"table": table, "seed": seed, "train_rows": 10, "columns": 2, "classes": 2, "seconds": 1.0}
            common |= {"relative_gap": 0.0, "active_gates": 1}
            noise = 0.01 * seed
            for method, accuracy, objective in (
                ("ntk", 0.8, None),
                ("sampled_ntk", 0.8, 1.0),
                ("fixed", 0.8 + gain + noise, 1.02 - left),
                ("optimum", 0.8, 1 - left),
            ):
                row = {"method": method, "accuracy": accuracy, "objective": objective, "lower_bound": 1 - left}
                rows.append(common | row | {"reg_share": 0.3 if seed < 2 else 0.1 if seed < 4 else 1e-4})
    summary = uci.summarise(uci.Config(tables=("iris",)), rows)
    assert summary["left_against_difference"]["spearman"] == pytest.approx(-1)
    assert summary["least_and_most_ntk_excess"] == pytest.approx([0.1, 0.3])
    assert summary["median_ntk_excess"] == pytest.approx(0.2)
    assert summary["splits_where_the_ntk_beats_the_bound"] == 0
    ends = {"largest": 6, "smallest": 3}
    assert summary["splits_at_the_ends_of_the_grid"] == {"ntk": ends, "fixed": ends}
    table = uci.by_table(rows)
    # The values are 0 to 4 hundredths apart: their variance is 2.5.
    np.testing.assert_allclose(table["±"], stats.t.ppf(0.975, 4) * 0.01 * np.sqrt(2.5 / 5))
    np.testing.assert_allclose(table["difference"], [0.05, 0.04, 0.01])
    np.testing.assert_array_equal(table["features"], 1)


@pytest.mark.parametrize(
    ("tables", "chosen"),
    [((), "iris"), (("wine", "iris"), "iris"), (("wine", "haberman"), "wine"), (("none.csv", "wine"), "wine")],
)
def test_the_path_is_of_iris_or_else_of_the_first_usable_table(tables, chosen):
    assert uci._path_table(uci.Config(tables=tables)) == chosen
    assert uci._path_table(uci.Config(tables=tables, path_table="wine")) == "wine"


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("num_gate=3", "num_gate"),
        ("seeds=many", "seeds"),
        ("reg_shares=[2]", "reg_shares"),
        ("tol=0", "tol"),
        ("optimum_tol=2", "optimum_tol"),
        ("path_table=irsi", "path_table"),
    ],
)
def test_wrong_settings_name_their_key_and_exit_with_two(override, key, tmp_path, capsys):
    assert main(["run", "configs/uci.yaml", override, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert key in error
    assert error.count("\n") == 1


def test_the_configs_are_the_defaults_but_for_what_they_say():
    from fixntk.runner.config import load_config

    assert load_config("configs/uci.yaml")[1] == uci.Config()
    assert load_config("configs/quickstart.yaml")[1] == uci.Config(tables=("iris", "haberman", "planted"), seeds=2)


def test_padding_columns_change_neither_masks_nor_ntk(data, key):
    x, _, _ = data
    gates = fx.sample_gates(key, 20, 4)
    padded = jnp.pad(x, ((0, 0), (0, 4)))
    wide = jnp.concatenate([gates, jax.random.normal(key, (20, 4))], axis=1)
    np.testing.assert_array_equal(fx.activation_masks(padded, wide), fx.activation_masks(x, gates))
    np.testing.assert_allclose(fx.gated_relu_ntk(padded), fx.gated_relu_ntk(x), atol=1e-14)
