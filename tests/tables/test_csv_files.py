"""CSV files as other programs write them: headers without the name of an index, quotes, empty columns at the end."""

import re

import pandas as pd
import pytest

from fixntk.tables.names import TableError
from fixntk.tables.read import read_strings as read_any_strings
from fixntk.tables.read import read_table

FRAME = pd.DataFrame({"age": ["30", "41", "5"], "town": ["a b", "it's", "c"], "vote": ["yes", "no", "yes"]})
INDEX = "column 1, which the header lacks: left out, an index of the rows"


def read_strings(path):
    return read_any_strings(path, least_columns=2)


def written(folder, header, rows):
    path = folder / "table.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t", " "])
def test_the_index_that_the_header_of_r_lacks_is_left_out(tmp_path, delimiter):
    rows = [delimiter.join([f'"{number}"', *(f'"{text}"' for text in row)]) for number, row in FRAME.iterrows()]
    path = written(tmp_path, delimiter.join(f'"{name}"' for name in FRAME), rows)
    # pandas takes the first column for an index in such files.
    pd.testing.assert_frame_equal(
        pd.read_csv(path, sep=delimiter, dtype=str).reset_index(drop=True), FRAME.astype("str")
    )
    strings, lines = read_strings(path)
    assert strings.to_numpy().tolist() == FRAME.to_numpy().tolist()
    assert list(strings) == list(FRAME)
    assert lines == [INDEX]
    table = read_table(path, "vote")
    assert list(table.features) == ["age", "town"]
    assert table.lines == [INDEX]


def test_a_delimiter_that_fits_comes_before_one_with_a_short_header(tmp_path):
    assert list(read_strings(written(tmp_path, "a, b;c", ["1,2,3;4", "1,2,3;5"]))[0]) == ["a, b", "c"]


def test_rows_of_several_lengths_are_refused_as_before(tmp_path):
    for rows in (["1,2,u,x", "3,4,v"], ["1,2,u", "3,4,v,x"], ["1,2,u,x,y", "1,2,u,x,y"]):
        number, row = next((number, row) for number, row in enumerate(rows, start=2) if row.count(",") != 2)
        message = f"line {number} has {row.count(',') + 1} fields, the header has 3"
        with pytest.raises(TableError, match=message):
            read_strings(written(tmp_path, "a,b,y", rows))


@pytest.mark.parametrize(("header", "end"), [("a,y", ","), ("a,y,", ","), ("a,y,,", ",,")])
def test_empty_columns_without_a_name_are_left_out(tmp_path, header, end):
    strings, lines = read_strings(written(tmp_path, header, [f"{number},{number % 2}{end}" for number in range(9)]))
    assert list(strings) == ["a", "y"]
    assert strings["a"].tolist() == [str(number) for number in range(9)]
    told = "1 empty column" if len(end) == 1 else "2 empty columns"
    assert lines == [f"{told} without a name left out"]
    strings, lines = read_strings(written(tmp_path, ",a,y,", [f",{number},{number % 2}," for number in range(9)]))
    assert list(strings) == ["a", "y"]
    assert lines == ["2 empty columns without a name left out"]
    with pytest.raises(TableError, match="column 3 has no name"):
        read_strings(written(tmp_path, "a,y,", ["1,2,", "1,2,3"]))


@pytest.mark.parametrize("header", ["'age','town','vote'", "age,town,vote"])
def test_single_quotes_around_fields_are_taken_off(tmp_path, header):
    quoted = FRAME["town"].str.replace("'", "''")
    rows = [f"{age},'{town}','{vote}'" for age, town, vote in zip(FRAME["age"], quoted, FRAME["vote"], strict=True)]
    strings, lines = read_strings(written(tmp_path, header, rows))
    assert strings.to_numpy().tolist() == FRAME.to_numpy().tolist()
    assert list(strings) == list(FRAME)
    assert lines == []


@pytest.mark.parametrize(
    "texts",
    [
        # Apostrophes, and single quotes beside double ones.
        ["O'Brien", "d'Arc", "'Tis"],
        ["'red'", '"red"', "blue"],
        # Most are quotes, one is an apostrophe.
        ["'a'", "'b'", "'n roll"],
    ],
)
def test_other_single_quotes_stay(tmp_path, texts):
    strings, _ = read_strings(written(tmp_path, "n,town,k", [f"{i},{town},7" for i, town in enumerate(texts)]))
    assert strings["town"].tolist() == [re.sub('"', "", text) for text in texts]
