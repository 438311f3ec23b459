import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

from experiments.data import tables
from experiments.data.tables import TABLES, Table, TableError, TableSpec, load_table, split_table, tables_markdown

PAGE = Path(__file__).parents[2] / "docs" / "tables.md"


@pytest.fixture(scope="module")
def loaded():
    return {name: load_table(name) for name in TABLES}


def parts(table, seed):
    """The rows of the training and of the test part."""
    return train_test_split(np.arange(len(table.labels)), test_size=0.25, random_state=seed, stratify=table.labels)


# ---------------------------------------------------------------------------------------------- the listed tables


def test_there_are_at_least_35_tables_and_31_are_uci_tables_in_full():
    assert len(TABLES) >= 35
    assert sum(bool(spec.uci) and not spec.derived for spec in TABLES.values()) >= 31


def test_each_table_has_its_own_name_file_and_uci_data_set():
    for values in (
        [spec.name for spec in TABLES.values()],
        [spec.file for spec in TABLES.values()],
        [spec.uci for spec in TABLES.values() if spec.uci],
    ):
        assert len(set(values)) == len(values)
    assert all(name == spec.name for name, spec in TABLES.items())


def test_no_two_tables_hold_the_same_rows(loaded):
    seen = {}
    for name, table in loaded.items():
        numbers = table.features.select_dtypes("number").to_numpy()
        fingerprint = (len(table.labels), *np.sort(np.unique(table.labels, return_counts=True)[1]))
        for other in seen.get(fingerprint, []):
            assert numbers.shape != other.shape or not np.array_equal(numbers, other), name
        seen.setdefault(fingerprint, []).append(numbers)


@pytest.mark.parametrize("name", TABLES)
def test_listed_table_is_small_complete_and_has_classes_that_can_be_split(name, loaded):
    table = loaded[name]
    n = len(table.labels)
    assert table.name == name
    assert table.features.shape[0] == n <= 1000
    assert not table.features.isna().any(axis=None)
    classes, sizes = np.unique(table.labels, return_counts=True)
    assert len(classes) >= 2
    assert sizes.min() >= 4
    assert table.labels.dtype.kind == "U"
    assert table.features.columns.is_unique
    assert {str(dtype) for dtype in table.features.dtypes} <= {"float64", "category"}
    assert table.features.nunique().min() > 1
    assert table.source == TABLES[name].source


@pytest.mark.parametrize("name", TABLES)
def test_encoded_features_are_finite_and_end_with_the_bias(name, loaded):
    split = split_table(loaded[name], 0)
    for x, y in ((split.x_train, split.y_train), (split.x_test, split.y_test)):
        assert x.dtype == np.float64
        assert x.shape == (len(y), len(split.feature_names))
        assert np.isfinite(x).all()
        assert (x[:, -1] == 1).all()
        # Every class is in both parts, which is what the smallest class size of 4 is for.
        assert np.array_equal(np.unique(y), np.arange(len(split.classes)))
    assert split.feature_names[-1] == "bias"
    assert len(set(split.feature_names)) == len(split.feature_names)
    assert (np.ptp(split.x_train[:, :-1], axis=0) > 0).all()


@pytest.mark.parametrize(
    ("name", "numeric", "categorical", "sizes"),
    [
        ("iris", 4, 0, {"setosa": 50, "versicolor": 50, "virginica": 50}),
        ("wine", 13, 0, {"class_0": 59, "class_1": 71, "class_2": 48}),
        ("ionosphere", 33, 0, {"g": 225, "b": 126}),
        ("wdbc", 30, 0, {"B": 357, "M": 212}),
        ("pima", 8, 0, {"negative": 500, "positive": 268}),
        ("german", 7, 13, {"1": 700, "2": 300}),
        ("vehicle", 18, 0, {"bus": 218, "opel": 212, "saab": 217, "van": 199}),
        ("glass", 9, 0, {"1": 70, "2": 76, "3": 17, "5": 13, "6": 9, "7": 29}),
        ("balance", 4, 0, {"L": 288, "B": 49, "R": 288}),
        ("haberman", 3, 0, {"negative": 225, "positive": 81}),
        # 155 rows of which 80 are complete; 336 rows less two classes of two.
        ("hepatitis", 19, 0, {"1": 13, "2": 67}),
        ("ecoli", 6, 0, {"cp": 143, "im": 77, "pp": 52, "imU": 35, "om": 20, "omL": 5}),
    ],
)
def test_listed_table_has_the_columns_and_class_sizes_that_uci_gives(name, numeric, categorical, sizes, loaded):
    table = loaded[name]
    assert pd.Series(table.labels).value_counts().to_dict() == sizes
    assert table.features.select_dtypes("number").shape[1] == numeric
    assert table.features.select_dtypes("category").shape[1] == categorical


def test_first_rows_are_those_of_the_uci_files(loaded):
    assert loaded["iris"].features.iloc[0].tolist() == [5.1, 3.5, 1.4, 0.2]
    assert loaded["wine"].features.iloc[0, :3].tolist() == [14.23, 1.71, 2.43]
    assert loaded["glass"].features.iloc[0].tolist() == [1.52101, 13.64, 4.49, 1.10, 71.78, 0.06, 8.75, 0.0, 0.0]
    assert loaded["pima"].features.iloc[0].tolist() == [6, 148, 72, 35, 0, 33.6, 0.627, 50]
    assert loaded["vehicle"].features.iloc[0, :4].tolist() == [95, 48, 83, 178]
    assert loaded["german"].features.iloc[0, :5].tolist() == ["A11", 6, "A34", "A43", 1169]


def test_keels_wdbc_is_scikit_learns_breast_cancer_rounded_to_three_decimals(loaded):
    theirs = load_breast_cancer()
    np.testing.assert_allclose(loaded["wdbc"].features.to_numpy(), theirs.data, rtol=0, atol=5.0001e-4)
    assert np.array_equal(loaded["wdbc"].labels == "M", theirs.target == 0)


def test_keels_monk_2_is_all_patterns_with_the_labels_of_the_third_problem(loaded):
    a = loaded["monk-2"].features.astype(int)
    assert len(a.drop_duplicates()) == len(a) == 3 * 3 * 2 * 3 * 4 * 2
    third = ((a["A5"] == 3) & (a["A4"] == 1)) | ((a["A5"] != 4) & (a["A2"] != 3))
    assert np.array_equal(loaded["monk-2"].labels == "1", third)


def test_keels_declared_categories_and_integer_codes_called_nominal_are_categorical(loaded):
    assert list(loaded["post-operative"].features["L-CORE"].cat.categories) == ["mid", "high", "low"]
    assert list(loaded["monk-2"].features["A5"].cat.categories) == ["1", "2", "3", "4"]
    assert loaded["tae"].features["Instructor"].nunique() == 25
    assert loaded["tae"].features["Size"].dtype == np.float64


def test_specs_cannot_be_changed():
    with pytest.raises(TypeError):
        TABLES["iris"] = None
    with pytest.raises(AttributeError):
        TABLES["iris"].drop = "x"


def test_page_lists_exactly_the_tables():
    page = PAGE.read_text(encoding="utf-8")
    assert page.endswith("\n\n" + tables_markdown() + "\n"), "put the output of tables_markdown() into docs/tables.md"


def test_page_counts_the_tables_and_its_example_runs():
    page = PAGE.read_text(encoding="utf-8")
    assert f"{len(TABLES)} tables" in page
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, {})


# ------------------------------------------------------------------------------------------------------- splitting


@pytest.mark.parametrize("name", ["iris", "ecoli", "credit", "zoo"])
def test_split_keeps_every_row_once_and_the_share_of_each_class(name, loaded):
    table = loaded[name]
    split = split_table(table, 3)
    n = len(table.labels)
    assert len(split.y_train) + len(split.y_test) == n
    assert len(split.y_test) == int(np.ceil(n / 4))
    assert list(split.classes) == sorted(set(table.labels))
    for k, label in enumerate(split.classes):
        size = (table.labels == label).sum()
        assert (split.y_train == k).sum() + (split.y_test == k).sum() == size
        assert abs((split.y_test == k).sum() - size / 4) <= 1


def test_test_size_is_the_share_of_test_rows(loaded):
    assert len(split_table(loaded["iris"], 0, test_size=0.4).y_test) == 60


@pytest.mark.parametrize("name", ["wine", "bupa", "saheart"])
def test_standardisation_uses_only_the_training_rows(name, loaded):
    table = loaded[name]
    numbers = table.features.select_dtypes("number")
    split = split_table(Table(name, numbers, table.labels, ""), 1)
    train, test = parts(table, 1)
    raw = numbers.to_numpy()
    mean = raw[train].sum(axis=0) / len(train)
    deviation = np.sqrt(((raw[train] - mean) ** 2).sum(axis=0) / len(train))
    np.testing.assert_allclose(split.x_train[:, :-1], (raw[train] - mean) / deviation, atol=1e-9)
    np.testing.assert_allclose(split.x_test[:, :-1], (raw[test] - mean) / deviation, atol=1e-9)
    assert list(split.classes[split.y_train]) == list(table.labels[train])
    assert list(split.classes[split.y_test]) == list(table.labels[test])


def test_a_wild_test_row_does_not_move_the_training_features(loaded):
    table = loaded["iris"]
    features = table.features.copy()
    features.iloc[parts(table, 0)[1][0]] = 1e6
    before, after = split_table(table, 0), split_table(Table("iris", features, table.labels, ""), 0)
    assert np.array_equal(before.x_train, after.x_train)
    assert np.array_equal(before.x_test[1:], after.x_test[1:])
    assert (after.x_test[0, :-1] > 1e5).all()


def test_one_hot_columns_are_0_or_1_and_name_their_category(loaded):
    table = loaded["saheart"]
    split = split_table(table, 0)
    assert split.feature_names[-3:] == ["Famhist_Present", "Famhist_Absent", "bias"]
    train, _ = parts(table, 0)
    present = (table.features["Famhist"] == "Present").to_numpy()[train]
    assert np.array_equal(split.x_train[:, -3:-1], np.column_stack([present, ~present]))


def test_columns_constant_on_the_training_part_are_dropped_from_both_parts():
    table = Table(
        "rare",
        pd.DataFrame({"a": np.arange(40.0), "b": np.zeros(40), "c": pd.Categorical(["x", "y"] * 20, ["x", "y", "z"])}),
        np.array(["p", "q"] * 20),
        "",
    )
    for row in range(40):  # the only b that is not 0 is in the training part or in the test part
        table.features["b"] = (np.arange(40) == row).astype(float)
        split = split_table(table, 0)
        names = ["a", "b", "c_x", "c_y", "bias"] if row in parts(table, 0)[0] else ["a", "c_x", "c_y", "bias"]
        assert split.feature_names == names
        assert split.x_train.shape[1] == split.x_test.shape[1] == len(names)


@pytest.mark.parametrize("name", ["iris", "zoo", "german"])
def test_the_seed_decides_the_split(name, loaded):
    first, again, other = (split_table(loaded[name], seed) for seed in (7, 7, 8))
    for field in ("x_train", "y_train", "x_test", "y_test"):
        assert np.array_equal(getattr(first, field), getattr(again, field))
    assert not np.array_equal(first.y_train, other.y_train)


def test_split_without_a_test_row_for_each_class_is_an_error():
    table = Table("tiny", pd.DataFrame({"a": np.arange(6.0)}), np.array(list("aabbcc")), "")
    with pytest.raises(TableError, match=r"'tiny' cannot be split: .*number of classes"):
        split_table(table, 0)


def test_split_of_a_class_of_one_is_an_error():
    table = Table("tiny", pd.DataFrame({"a": np.arange(6.0)}), np.array(list("aaabbc")), "")
    with pytest.raises(TableError, match="'tiny' cannot be split"):
        split_table(table, 0)


def test_split_with_nothing_that_varies_is_an_error():
    table = Table("flat", pd.DataFrame({"a": np.ones(8)}), np.array(list("aaaabbbb")), "")
    with pytest.raises(TableError, match="'flat' cannot be split"):
        split_table(table, 0)


def test_split_with_a_share_that_is_none_is_an_error(loaded):
    with pytest.raises(TableError, match=r"'iris' cannot be split: .*test_size"):
        split_table(loaded["iris"], 0, test_size=1.5)


def test_a_column_called_bias_is_an_error():
    table = Table("mine", pd.DataFrame({"bias": np.arange(8.0)}), np.array(list("aaaabbbb")), "")
    with pytest.raises(TableError, match="column 'bias' has the bias column's name"):
        split_table(table, 0)


def test_a_class_absent_from_the_training_part_is_an_error(monkeypatch):
    monkeypatch.setattr(tables, "train_test_split", lambda rows, **_: (rows[:4], rows[4:]))
    table = Table("mine", pd.DataFrame({"a": np.arange(8.0)}), np.array(list("aaaabbbb")), "")
    with pytest.raises(TableError, match="no row of class 'b' to train on"):
        split_table(table, 0)


def test_unknown_name_lists_close_ones_or_all():
    with pytest.raises(TableError, match=r"no table 'ionosfere': did you mean ionosphere\?"):
        load_table("ionosfere")
    with pytest.raises(TableError, match=r"no table 'qqqq': the tables are appendicitis, .*yeast-2_vs_4"):
        load_table("qqqq")


def test_a_missing_package_or_file_is_an_error_that_says_what_to_install(monkeypatch):
    spec = TableSpec("lost", tables.read_keel, "", "lost/lost.dat", "")
    with pytest.raises(TableError, match="has no file data/classification/lost/lost"):
        spec.read(spec)
    monkeypatch.setattr(tables, "find_spec", lambda _: None)
    with pytest.raises(TableError, match=r"pip install 'fixntk\[experiments\]'"):
        load_table("bupa")


def test_table_error_is_a_value_error():
    assert issubclass(TableError, ValueError)


def test_the_planted_table_is_decided_by_the_size_of_one_feature():
    table = load_table("planted")
    assert "planted" not in TABLES
    assert table.features.shape == (300, 10)
    far = table.labels == "far"
    assert far.sum() == 150
    assert table.features["signal"].abs()[far].min() > table.features["signal"].abs()[~far].max()
