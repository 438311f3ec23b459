"""A user's own table: read as `fixntk fit` reads it, with its label and its errors."""

import re

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from experiments import sensitivity, uci
from experiments.data.tables import TableError, load_table, split_table
from fixntk.runner.config import ConfigError, find_config, load_config


@pytest.fixture
def write_csv(tmp_path):
    def write(text, encoding="utf-8"):
        path = tmp_path / "mine.csv"
        path.write_text(text, encoding=encoding)
        return str(path)

    return write


def parts(table, seed):
    """The rows of the training and of the test part."""
    return train_test_split(np.arange(len(table.labels)), test_size=0.25, random_state=seed, stratify=table.labels)


def rows_of(header, *rows):
    return "\n".join([header, *rows]) + "\n"


def test_csv_has_numbers_categories_and_the_last_column_as_label(write_csv):
    path = write_csv(rows_of("a, colour ,kind", "1, red,x", "2.5,blue,y", "-3e1,'red',x", '4,"red",y'))
    table = load_table(path)
    assert table.name == path
    assert (
        table.source == f"{path}: the label is column 'kind'; column 'a': number; column 'colour': category of 3 values"
    )
    assert table.features["a"].tolist() == [1, 2.5, -30, 4]
    assert table.features["a"].dtype == np.float64
    assert list(table.features["colour"].cat.categories) == ["'red'", "blue", "red"]
    assert table.labels.tolist() == ["x", "y", "x", "y"]


@pytest.mark.parametrize("name", ["class", "Target", "LABEL"])
def test_csv_column_named_as_a_label_is_the_label_wherever_it_is(name, write_csv):
    table = load_table(write_csv(rows_of(f"{name},a,b", "u,1,2", "v,2,3", "u,3,3", "v,4,3")))
    assert table.labels.tolist() == ["u", "v", "u", "v"]
    assert list(table.features) == ["a", "b"]


def test_csv_with_a_byte_order_mark_and_blank_lines_is_read(write_csv):
    table = load_table(write_csv("a,y\n\n1,u\n2,v\n3,u\n\n4,v\n\n", encoding="utf-8-sig"))
    assert list(table.features) == ["a"]
    assert table.features["a"].tolist() == [1, 2, 3, 4]


def test_csv_can_be_split(write_csv):
    lines = [f"{i},{'red' if i % 3 else 'blue'},{'u' if i % 2 else 'v'}" for i in range(20)]
    split = split_table(load_table(write_csv(rows_of("a,colour,y", *lines))), 0)
    assert split.feature_names == ["a", "colour_blue", "colour_red", "bias"]
    assert split.x_train.shape == (15, 4)


def test_a_file_as_people_have_it_is_read_as_fit_reads_it_and_its_label_can_be_named(tmp_path):
    path = tmp_path / "mine.tsv"
    rows = [
        f"{i}\t{'NA' if i == 3 else i / 2}\tname {i}\t{'uv'[i % 2]}\t{'$1,200' if i % 3 else '$7'}" for i in range(20)
    ]
    path.write_text("\n".join(["\tsize\tid\tkind\tpay", *rows]))
    table = load_table(str(path), "kind")
    assert list(table.features) == ["size", "pay"]
    assert table.features["pay"].tolist()[:3] == [7, 1200, 1200]
    assert table.labels.tolist() == ["u", "v"] * 10
    for told in ("label is column 'kind'", "'id': left out", "index of the rows", "1 missing, replaced by the median"):
        assert told in table.source
    train, test = parts(table, 0)
    split = split_table(table, 0)
    sizes = table.features["size"].to_numpy()
    filled = np.where(np.isnan(sizes), np.nanmedian(sizes[train]), sizes)
    scaled = (filled - filled[train].mean()) / filled[train].std()
    np.testing.assert_allclose(split.x_test[:, 0], scaled[test], atol=1e-9)
    with pytest.raises(TableError, match="no column 'sort'"):
        load_table(str(path), "sort")


def test_columns_are_taken_and_rows_left_out_as_the_user_says(write_csv):
    lines = [f"{i},{2000 + i % 4},{'' if i == 2 else 'uv'[i % 2]}" for i in range(20)]
    path = write_csv(rows_of("a,year,kind", *lines))
    with pytest.raises(TableError, match="1 missing in column 'kind', the target; drop_missing_target=true leaves"):
        load_table(path, "kind")
    table = load_table(path, "kind", columns="year=category a=drop", drop_missing_target=True)
    assert list(table.features) == ["year"]
    assert table.features["year"].tolist() == [str(2000 + i % 4) for i in range(20) if i != 2]
    assert table.labels.tolist() == ["uv"[i % 2] for i in range(20) if i != 2]
    for columns, message in (
        ("size=number", "has no column 'size', given in --columns: 'a', 'year', 'kind'"),
        ("kind=number", "column 'kind', the label, is a category here, not 'number'"),
    ):
        with pytest.raises(TableError, match=message):
            load_table(path, "kind", columns=columns, drop_missing_target=True)


@pytest.mark.parametrize("experiment", [uci, sensitivity])
def test_a_run_says_first_how_it_takes_a_table_and_refuses_wrong_settings(experiment, write_csv):
    rows = [",".join([*(str(i * k % 7) for k in range(1, 31)), "" if i == 3 else "uv"[i % 2]]) for i in range(20)]
    path = write_csv(rows_of(",".join([*(f"x{k}" for k in range(1, 31)), "kind"]), *rows))
    settings = {"tables": (path,), "label": "kind", "columns": "x1=category"}
    told = experiment.check(experiment.Config(**settings, drop_missing_target=True))
    assert told[:4] == [
        f"{path}: 19 rows; the label is column 'kind', a class with 2 values",
        "1 row without a target left out",
        "column 'x1': category of 7 values",
        "column 'x2': number",
    ]
    # One of the lines is of the row that is left out.
    assert (len(told), told[-1]) == (22, f"11 more columns of {path}: in the report")
    with pytest.raises(TableError, match="1 missing in column 'kind'"):
        experiment.check(experiment.Config(**settings))
    with pytest.raises(TableError, match="there is no such file"):
        experiment.check(experiment.Config(tables=("none.csv",)))


def test_settings_of_columns_are_given_on_the_command_line():
    path = find_config("uci")
    overrides = ["tables=a.csv", "drop_missing_target=true", "columns=year=category 'my id'=drop"]
    _, config = load_config(path, overrides)
    assert config.of_files == {"label": None, "columns": "year=category 'my id'=drop", "drop_missing_target": True}
    with pytest.raises(ConfigError, match="a column is one of number, date, category, drop, not 'thing'"):
        load_config(path, ["columns=year=thing"])


GOOD = ("1,2,u", "2,1,v", "3,5,u", "4,4,v")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a,b,y\n", "has a header and no rows"),
        (
            rows_of("y", "u", "v", "u"),
            "has one column, 'y'; features and label need commas, tabs, semicolons or | between them",
        ),
        (rows_of("a;b;y", "1;2;u", "2;1"), "line 3 has 2 fields, the header has 3"),
        (rows_of("a,b,y", *GOOD, '5,6,"u', *GOOD), "cannot be read: line 10: unexpected end of data"),
        (rows_of("a,,y", *GOOD), "column 2 has no name"),
        (rows_of("a,\0,y", *GOOD), "column 2 has no name"),
        (rows_of("5.1,3.5,u", *GOOD), "has no header: its first row has the number '5.1'"),
        (rows_of("a,a,y", *GOOD), "has two columns 'a'"),
        (rows_of("a,b,y", *GOOD, "5,u"), "line 6 has 2 fields, the header has 3"),
        (rows_of("a,b,y", *GOOD, "5,6,7,u"), "line 6 has 4 fields, the header has 3"),
        (rows_of("a,class,target", *GOOD), "is the label in column 'class' or 'target'?"),
        (rows_of("a,b,y", *GOOD, "5,6,"), "1 missing in column 'y', the target"),
        (rows_of("a,b,y", *GOOD, "5,inf,u"), "column 'b' has infinite values"),
        (rows_of("a,b,y", *GOOD, "5,1e400,u"), "column 'b' has infinite values"),
        (rows_of("a,b,y", "1,2,u", "2,1,u"), "column 'y', the target, has one value only, 'u'"),
        (rows_of("a,b,y", *GOOD, "5,6,w"), "class 'w' has one row"),
        (rows_of("a,b,y", "1,2,0.5", "2,1,0.7"), "class '0.5' has one row"),
        (rows_of("a,b,y", *["1,same,u", "1,same,v"] * 3), "no column is left to learn from"),
    ],
)
def test_csv_that_cannot_be_used_is_an_error_that_says_why(text, message, write_csv):
    path = write_csv(text)
    with pytest.raises(TableError, match=re.escape(message)) as error:
        load_table(path)
    assert path in str(error.value)


def test_csv_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(TableError, match=r"nowhere\.csv' cannot be read: No such file"):
        load_table(str(tmp_path / "nowhere.csv"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(TableError, match=r"folder\.csv' cannot be read"):
        load_table(str(tmp_path / "folder.csv"))
    # A byte that Windows-1252 does not define either.
    (tmp_path / "bytes.csv").write_bytes(b"a,y\n1,\x81\n")
    with pytest.raises(TableError, match=r"bytes\.csv' cannot be read"):
        load_table(str(tmp_path / "bytes.csv"))
