"""The command ``fixntk verify``: read the data, check the claims on them, print a table and write the figures."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from fixntk._files import replace_when_written
from fixntk._numerics import allow_float64
from fixntk.convex.progress import progress_bar
from fixntk.verify import kernels, programs
from fixntk.verify.check import Check, Data, run_check

# Largest number of rows of a user's table that are checked.
_MAX_ROWS = 200


def main(data: Path | None = None, json_file: Path | None = None, *, quick: bool = False) -> int:
    """Run every check, print the table, and return the exit code: 1 if a claim fails, 0 otherwise.

    Parameters
    ----------
    data
        A table to check on, CSV or Parquet, instead of the built-in data. It is read as ``fixntk fit`` reads it. Its
        target is the column called class, target or label, otherwise the last one.
    json_file
        File for the rows as JSON, in addition to the printed table.

    Raises
    ------
    ValueError
        If the table cannot be used, or the JSON file cannot be written.
    """
    if json_file is not None:
        _check_writable(json_file)
    checks: list[Check] = []
    with allow_float64(), progress_bar("verify", unit="claim", shown=sys.stderr.isatty()) as show:
        if data is None:
            data_sets = built_in_data()[: 1 if quick else None]
        else:
            own, lines = read_data(data)
            data_sets = [own]
            for line in lines:
                tqdm.write(line, file=sys.stdout)
        for check in run_checks(data_sets, quick=quick):
            checks.append(check)
            # Above the bar, where there is one.
            tqdm.write(_line(check), file=sys.stdout)
            sys.stdout.flush()
            show(len(checks), check.data)
    counts = [sum(check.holds is state for check in checks) for state in (True, False, None)]
    print(f"{counts[0]} claims hold, {counts[1]} fail, {counts[2]} not checked")
    if json_file is not None:
        with replace_when_written(json_file) as part:
            part.write_text(json.dumps([asdict(check) for check in checks], indent=1) + "\n", encoding="utf-8")
    return 1 if counts[1] else 0


def run_checks(data_sets: list[Data], *, quick: bool = False) -> Iterator[Check]:
    """Yield the rows of all checks on all data sets, each as it is finished.

    With ``quick`` without those that train networks, compare with neural-tangents, or measure rates.
    """
    for data in data_sets:
        gates = kernels.weighted_gates(data)
        yield from run_check(kernels.check_masked_gram, data, gates.arrangements.masks)
        if gates.is_exact:
            yield from run_check(kernels.check_solid_angles, data, gates.arrangements, gates.weights)
        else:
            yield from run_check(kernels.check_random_gates, data)
        yield from run_check(programs.check_solvers, data, gates)
        if quick:
            continue
        yield from run_check(kernels.check_sampling_rate, data)
        yield from run_check(kernels.check_neural_tangents, data)
        yield from run_check(kernels.check_analytic, data)
        yield from run_check(kernels.check_empirical, data)
        yield from run_check(programs.check_networks, data)
        yield from run_check(programs.check_training, data)


def _check_writable(path: Path) -> None:
    """Raise ValueError, before the minutes that the checks take, if the file could not be written after them."""
    if path.is_dir():
        raise ValueError(f"--json {path}: is a folder")
    if not path.parent.is_dir():
        raise ValueError(f"--json {path}: there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"--json {path}: no permission to write there")


def built_in_data() -> list[Data]:
    """Noisy targets on a line, on a plane, and in five dimensions; the first two have a bias column."""
    sets = []
    for name, num_rows, num_features, bias in (("line", 12, 1, 1), ("plane", 20, 2, 1), ("table", 60, 5, 0)):
        rng = np.random.default_rng(num_rows)
        x = np.column_stack([rng.standard_normal((num_rows, num_features)), np.ones((num_rows, bias))])
        y = np.sin(2 * x[:, 0]) + 0.1 * rng.standard_normal(num_rows)
        sets.append(Data(name, jnp.asarray(x), jnp.asarray(y)))
    return sets


def read_data(path: Path) -> tuple[Data, list[str]]:
    """Read a table to check on, and say how each column was read.

    Columns are standardised or one-hot encoded, with a bias column. The column's median replaces missing numbers, and
    missing words are a category of their own. At most 200 rows are taken, drawn at random.

    Raises
    ------
    ValueError
        If it is not a table of at least two rows, or a target is missing, or no column has two values.
    """
    if importlib.util.find_spec("sklearn") is None or importlib.util.find_spec("pandas") is None:
        raise ValueError("--data needs pandas and scikit-learn: pip install 'fixntk[verify]'")
    from fixntk.tables.columns import read_columns, read_target
    from fixntk.tables.encode import encode_features, encode_target
    from fixntk.tables.read import read_table

    table = read_table(path)
    target = table.target.copy()
    target[:] = read_target(table).values
    features, columns, taken = read_columns(table, {})
    lines = [*table.lines, *taken]
    features = features.fillna(features[columns.numeric].median())
    if len(features) > _MAX_ROWS:
        lines.append(f"{_MAX_ROWS} of {len(features)} rows are taken, drawn at random")
        chosen = np.random.default_rng(0).permutation(len(features))[:_MAX_ROWS]
        features, target = features.iloc[chosen], target.iloc[chosen]
        features = features.loc[:, features.nunique() > 1]
    return Data(path.name, jnp.asarray(encode_features(features)), jnp.asarray(encode_target(target))), lines


def _line(check: Check) -> str:
    state = {True: "holds", False: "FAILS", None: "not checked"}[check.holds]
    figure = "" if check.figure is None else f"{check.figure:.3g}"
    note = f"  ({check.note})" if check.note else ""
    return f"{state:<11}  {check.number:<3} {check.data:<8} {check.claim:<78}  {figure:>10} {check.tolerance}{note}"


if __name__ == "__main__":
    sys.exit(main())
