"""How `fixntk fit` takes the columns of a table, and `fixntk predict` those of new rows."""

import gzip

import pytest
from fit_command import error_line, fitted

from fixntk._tiling import FreeMemory
from fixntk.cli import main
from fixntk.tables import csv_files

AGES = [20 + 3 * i for i in range(20)]
GROUPS = ["yes" if age > 50 else "no" for age in AGES]


def write_rows(folder, header, columns, delimiter=","):
    rows = [header, *zip(*columns, strict=True)]
    text = "\n".join(delimiter.join(f'"{f}"' if delimiter in str(f) else str(f) for f in row) for row in rows)
    (folder / "table.csv").write_text(text + "\n")
    (folder / "new.csv").write_text(text + "\n")


def predicted(folder, capsys, *options):
    """What fit and predict tell, and the predictions for the rows of the table itself."""
    assert fitted(folder, "group", "--method", "ntk", "--reg", "0.001", *options) == 0
    told = capsys.readouterr().out
    assert main(["predict", str(folder / "model"), str(folder / "new.csv")]) == 0
    captured = capsys.readouterr()
    return told, [line.partition(",")[0] for line in captured.out.splitlines()[1:]], captured.err


@pytest.mark.parametrize("delimiter", [";", "\t", "|", ":"])
def test_other_characters_between_columns_and_decimal_commas(tmp_path, capsys, delimiter):
    ages = [f"{age},5" for age in AGES]
    write_rows(tmp_path, ["age", "n", "group"], [ages, [f"1,{i:03}" for i in range(20)], GROUPS], delimiter)
    told, groups, _ = predicted(tmp_path, capsys)
    assert groups == GROUPS
    assert "column 'age': number, '20,5' is 20.5" in told
    assert "column 'n': number, '1,000' is 1" in told


def test_numbers_of_new_rows_may_be_written_otherwise(tmp_path, capsys):
    write_rows(tmp_path, ["pay", "group"], [[f"{1000 + 50 * age}" for age in AGES], GROUPS])
    assert fitted(tmp_path, "group", "--method", "ntk", "--reg", "0.001") == 0
    (tmp_path / "new.csv").write_text('pay\n"$5,000"\n"$2,000"\n')
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "model"), str(tmp_path / "new.csv")]) == 0
    captured = capsys.readouterr()
    assert [line.partition(",")[0] for line in captured.out.splitlines()[1:]] == ["yes", "no"]
    assert "column 'pay': written differently from the model's table, '$5,000' is 5000" in captured.err
    (tmp_path / "new.csv").write_text("pay\n5%\n")
    assert main(["predict", str(tmp_path / "model"), str(tmp_path / "new.csv")]) == 2
    assert "column 'pay' holds numbers in the model, here also '5%'" in error_line(capsys)


def test_a_compressed_file_is_read_and_a_large_one_is_refused(tmp_path, capsys, monkeypatch):
    write_rows(tmp_path, ["age", "group"], [AGES, GROUPS])
    for name in ("table", "new"):
        path = tmp_path / f"{name}.csv"
        path.write_bytes(gzip.compress(path.read_bytes()))
    assert predicted(tmp_path, capsys)[1] == GROUPS
    content = (tmp_path / "table.csv").read_bytes()
    (tmp_path / "table.csv").write_bytes(content[:-9])
    assert fitted(tmp_path, "group") == 2
    assert "cannot be read" in error_line(capsys)
    (tmp_path / "table.csv").write_bytes(gzip.compress(b"a,group\n" + b"0,b\n" * 2**22))
    monkeypatch.setattr(csv_files, "free_on_host", lambda: FreeMemory(2**24, "this test"))
    assert fitted(tmp_path, "group") == 2
    assert "its first 1 MiB of text already need more memory than this test leaves" in error_line(capsys)


@pytest.mark.parametrize("first", ["", "Unnamed: 0"])
def test_an_index_and_constants_are_left_out_and_told(tmp_path, capsys, first):
    write_rows(tmp_path, [first, "age", "unit", "none", "group"], [range(20), AGES, ["kg"] * 20, [""] * 20, GROUPS])
    told, groups, _ = predicted(tmp_path, capsys)
    assert groups == GROUPS
    assert "left out, an index of the rows" in told
    assert "column 'unit': left out, all of its values are 'kg'" in told
    assert "column 'none': left out, all of its values are missing" in told
    # New rows do not need what was left out.
    (tmp_path / "new.csv").write_text("age\n77\n")
    assert main(["predict", str(tmp_path / "model"), str(tmp_path / "new.csv")]) == 0
    write_rows(tmp_path, ["", "age", "group"], [[1] * 20, AGES, GROUPS])
    capsys.readouterr()
    assert fitted(tmp_path, "group") == 2
    assert "column 1 has no name" in error_line(capsys)


def test_whole_numbers_are_one_category_however_they_are_written(tmp_path, capsys):
    classes = ["1" if age > 50 else "0" for age in AGES]
    rooms = [["1", "1.0", "x"][i % 3] for i in range(20)]
    write_rows(
        tmp_path, ["age", "room", "group"], [AGES, rooms, [f"{c}.0" if i % 2 else c for i, c in enumerate(classes)]]
    )
    told, groups, err = predicted(tmp_path, capsys)
    assert "'group' is a class with 2 values" in told
    assert "column 'room': category of 2 values" in told
    assert (groups, err) == (classes, "")


def test_rare_categories_are_one_and_new_ones_are_of_it(tmp_path, capsys):
    cities = ["a"] * 5 + ["b"] * 5 + [f"town {i}" for i in range(10)]
    write_rows(tmp_path, ["age", "city", "group"], [AGES, cities, GROUPS])
    told, _, err = predicted(tmp_path, capsys)
    assert "column 'city': category of 12 values, the 10 rare ones merged into one" in told
    assert err == ""
    write_rows(tmp_path, ["age", "city", "group"], [AGES, ["a"] * 10 + ["b"] * 9 + ["c"], GROUPS])
    assert "column 'city': category of 3 values, one of them rare\n" in predicted(tmp_path, capsys)[0]
    write_rows(tmp_path, ["age", "city", "group"], [AGES, cities, GROUPS])
    predicted(tmp_path, capsys)
    (tmp_path / "new.csv").write_text("age,city\n50,town 3\n50,elsewhere\n")
    assert main(["predict", str(tmp_path / "model"), str(tmp_path / "new.csv")]) == 0
    captured = capsys.readouterr()
    assert "column 'city': 1 value that the model has not seen, such as 'elsewhere'" in captured.err
    first, second = captured.out.splitlines()[1:]
    assert first == second


def test_columns_are_taken_as_the_user_says(tmp_path, capsys):
    names, years = [f"name {i}" for i in range(20)], [2000 + i % 4 for i in range(20)]
    write_rows(tmp_path, ["my age", "year", "id", "group"], [AGES, years, names, GROUPS])
    told, _, _ = predicted(tmp_path, capsys, "--columns", "'my age'=number year=category", "--columns", "id=drop")
    assert "column 'my age': number" in told
    assert "column 'year': category of 4 values" in told
    assert "column 'id': left out, as --columns says" in told
    for entries, message in [
        ("age=number", "has no column 'age', given in --columns: 'my age', 'year', 'id', 'group'"),
        ("id=number", "column 'id' must be a number, but has 'name 0'"),
        ("id=date", "column 'id' must be a date, but has 'name 0'"),
        ("year=integer", "a column is one of number, date, category, drop, not 'integer'"),
        ("year", "'year' must be a column's name, '=' and one of number, date, category, drop"),
        ("year=drop year=date", "column 'year' is given twice"),
        ("year='drop", "no closing quotation"),
        ("group=number", "column 'group', the target, must be a number, but has 'no'"),
        ("group=drop", "column 'group', the target, can be a number or a category, not 'drop'"),
    ]:
        assert fitted(tmp_path, "group", "--columns", entries) == 2
        assert message in error_line(capsys)


@pytest.mark.parametrize(
    ("when", "told"),
    [
        ([f"01/{1 + i:02}/2020 10:30:{i:02}" for i in range(20)], "date (month/day/year and time), converted to days"),
        (
            [f"{1 + i}/13/2020" for i in range(20)],
            "left out, its 20 texts are all different, though they look like dates: --columns 'my day'=date takes them,"
            " or names one that is none",
        ),
        ([f"10.0.0.{i}" for i in range(20)], "left out, its 20 texts are all different\n"),
    ],
)
def test_dates_that_are_all_different_are_read_and_others_are_told(tmp_path, capsys, when, told):
    write_rows(tmp_path, ["my day", "age", "group"], [when, AGES, GROUPS])
    assert f"column 'my day': {told}" in predicted(tmp_path, capsys)[0]
    if "--columns" in told:
        assert fitted(tmp_path, "group", "--columns", "'my day'=date") == 2
        assert "column 'my day' must be a date, but has '13/13/2020'" in error_line(capsys)


@pytest.mark.parametrize(
    ("targets", "options", "message"),
    [
        (["", "NA"] * 10, [], "column 'group', the target, has no value"),
        ([""] * 20, ["--drop-missing-target"], "column 'group', the target, has no value"),
        ([f"name {i}" for i in range(20)], [], "has 20 texts that are all different: no class to learn"),
        (["a", ""] * 10, [], "10 missing in column 'group', the target; --drop-missing-target leaves these rows out"),
        (["a", ""] * 10, ["--drop-missing-target"], "column 'group', the target, has one value only, 'a'"),
        (["a"] * 19 + ["b"], [], "fewer than two classes of column 'group' have two rows"),
        (
            [f"2024-03-{1 + i % 15:02d}" for i in range(20)],
            [],
            "has dates or times, 15 different ones: predict",
        ),
    ],
)
def test_targets_without_anything_to_learn_are_one_clear_line(tmp_path, capsys, targets, options, message):
    write_rows(tmp_path, ["age", "group"], [AGES, targets])
    assert fitted(tmp_path, "group", "--method", "ntk", *options) == 2
    assert message in error_line(capsys)


@pytest.mark.parametrize(
    ("targets", "options"),
    [
        ([f"2024-03-{1 + i % 2:02d}" for i in range(20)], []),
        ([f"2024-03-{1 + i % 15:02d}" for i in range(30)], ["--columns", "group=category"]),
    ],
)
def test_few_dates_or_those_that_are_said_to_be_classes_are_learnt(tmp_path, capsys, targets, options):
    write_rows(tmp_path, ["age", "group"], [range(len(targets)), targets])
    assert fitted(tmp_path, "group", "--method", "ntk", "--reg", "0.1", *options) == 0
    assert f"'group' is a class with {len(set(targets))} values" in capsys.readouterr().out


def test_rows_without_a_target_are_left_out_on_request(tmp_path, capsys):
    write_rows(tmp_path, ["age", "group"], [AGES, ["", *GROUPS[1:]]])
    told, groups, _ = predicted(tmp_path, capsys, "--drop-missing-target")
    assert told.startswith("19 rows, 1 column;")
    assert "1 row without a target left out" in told
    assert groups == GROUPS


def test_a_class_of_one_row_does_not_stop_the_choice_of_reg(tmp_path, capsys):
    write_rows(tmp_path, ["age", "group"], [AGES, ["once", *GROUPS[1:]]])
    assert fitted(tmp_path, "group", "--method", "ntk") == 0
    assert "by leaving out one row after another: accuracy" in capsys.readouterr().out


def test_inputs_are_not_replaced(tmp_path, capsys):
    write_rows(tmp_path, ["age", "kind"], [AGES, GROUPS])
    table, model = str(tmp_path / "table.csv"), str(tmp_path / "model")
    assert main(["fit", table, "--target", "kind", "--out", table]) == 2
    assert f"--out {table}: would replace the input {table}" in error_line(capsys)
    assert main(["predict", model, table, "--out", table]) == 2
    assert "would replace the input" in error_line(capsys)
