"""`fixntk fit` and `fixntk predict` on files of any bytes: the right result, or exit status 2 and one line."""

import csv
import io
import itertools
import json
import signal
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fixntk._files import Format, read_arrays, write_arrays
from fixntk.cli import main
from fixntk.tables.names import count

SHORT = settings(max_examples=300, suppress_health_check=list(HealthCheck))
LONG = settings(max_examples=10_000, suppress_health_check=list(HealthCheck))
KIND = Format("fixntk model", 5)

# Seconds for one call of the command, compilation included.
_TIME_LIMIT_S = 60

# Fields with the characters and numbers of CSV files that were written by hand, by spreadsheets, and by attackers.
WORDS = ["a", "b", "=1+1", "-", "n/a", "None", "true", "é", "日", " x ", "a\nb", 'q"q', ",", "\x00", "\ufeff", "@2020"]
NUMBERS = ["0", "1", "-1.5", "+2", ".5", "1e3", "1e300", "-1e299", "5e-324", "1e-200", "123456789", "0.1", "7", "8"]
OTHERS = ["1_0", "0x1", "٣", "1,5", "1e308", "1e400", "inf", "nan", "1 000", "", "?", "NA"]
FIELDS = st.sampled_from([*WORDS, *NUMBERS, *OTHERS]) | st.text(max_size=8)
COLUMNS = (
    st.lists(FIELDS, min_size=1, max_size=4)
    | st.lists(st.sampled_from(WORDS), min_size=2, max_size=5, unique=True)
    | st.lists(st.sampled_from(NUMBERS), min_size=2, max_size=15, unique=True)
    | st.lists(st.floats(-1e300, 1e300).map(repr), min_size=2, max_size=15, unique=True)
)


@contextmanager
def time_limit():
    def stop(*_):
        raise TimeoutError(f"the command took more than {_TIME_LIMIT_S} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(_TIME_LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)


def run(*arguments):
    """Run the command; its standard output, None where it ended with status 2 and one line."""
    out, err = io.StringIO(newline=""), io.StringIO()
    with time_limit(), redirect_stdout(out), redirect_stderr(err):
        status = main([str(argument) for argument in arguments])
    assert status in (0, 2), err.getvalue()
    if status == 2:
        assert not out.getvalue()
        (line,) = err.getvalue().splitlines()
        assert line.startswith("fixntk: error: ")
        assert line.isprintable(), repr(line)
        return None
    return out.getvalue()


@st.composite
def csv_files(draw):
    """Bytes of a table, of which some may be changed, or any bytes at all."""
    width, length = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    names = draw(st.sampled_from([FIELDS, st.sampled_from(["x", "y", "z", *WORDS[:9]])]))
    header = draw(st.lists(names, min_size=width, max_size=width, unique=draw(st.sampled_from([True, True, False]))))
    columns = draw(st.lists(COLUMNS, min_size=width, max_size=width))
    rows = [[draw(st.sampled_from(column)) for column in columns] for _ in range(length)]
    file = io.StringIO(newline="")
    ends = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    csv.writer(file, lineterminator=ends, quoting=draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))).writerows(
        [header, *rows]
    )
    encoding = draw(st.sampled_from(["utf-8"] * 6 + ["utf-16", "latin-1", "utf-8-sig"]))
    content = file.getvalue().encode(encoding, "replace")
    if draw(st.booleans()):
        content = draw(changed(content) | st.binary())
    return content, header


def changed(content):
    """The content cut, or with some bytes replaced by others."""
    places = st.integers(0, max(0, len(content) - 1))
    edits = st.tuples(places, st.binary(max_size=3), st.integers(0, 3))

    def apply(edit):
        place, new, removed = edit
        return content[:place] + new + content[place + removed :]

    return edits.map(apply) | places.map(lambda place: content[:place])


def stripped(text):
    """The text without white space and NULs at its ends."""
    while text != (text := text.strip().strip("\0")):
        pass
    return text


def whole(text):
    """The text, without the decimals of a whole number if they are zeros."""
    before, point, after = text.partition(".")
    is_whole = point and after and not after.strip("0") and before.lstrip("+-").isdecimal() and before.isascii()
    return before if is_whole and len(before) - len(before.lstrip("+-")) < 2 else text


def decoded(content):
    """The text of a file in one of the encodings that are read."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252")


def readings(text, target):
    """Independent readings of a table, those of a delimiter together: names and the target's values.

    Delimiters come in order of preference, and again for tables whose header lacks a field.
    """
    delimiters = [*",\t;|", *sorted(set(text) - set(',\t;|\r\n"'))]
    for lacking, delimiter in itertools.product((0, 1), delimiters):
        found = []
        for quote in "\"'" if delimiter != "'" else '"':
            try:
                source = io.StringIO(text, newline="")
                fields = csv.reader(source, delimiter=delimiter, quotechar=quote, strict=True)
                rows = [[stripped(field) for field in row] for row in fields if row]
            except (csv.Error, ValueError):
                continue
            if len(rows) > 1 and len(rows[0]) > 1 and {len(row) for row in rows[1:]} == {len(rows[0]) + lacking}:
                found += with_header(rows, lacking, target)
        if found:
            yield found


def with_header(rows, lacking, target):
    """Names and the target's values of rows of which the first lacks as many names; nothing without the target."""
    has_end = lacking and not any(row[-1] for row in rows[1:])
    names = [*rows[0], ""] if has_end else ["" for _ in range(lacking)] + rows[0]
    columns = [(name, column) for name, *column in zip(names, *rows[1:], strict=True) if name or any(column)]
    names = [name for name, _ in columns]
    if target in names:
        # Without a name, the first column is an index.
        yield names[not names[0] :], [whole(label) for label in dict(columns)[target]]


def check_table(folder, case, target_number):
    content, header = case
    table, model = folder / "table.csv", folder / "model"
    table.write_bytes(content)
    model.unlink(missing_ok=True)
    target = stripped(header[target_number % len(header)])
    fitted = run("fit", table, f"--target={target}", "--out", model, "--method", "ntk", "--reg", "0.1")
    assert model.exists() == (fitted is not None)
    if fitted is None:
        return
    kind = fitted.split(" is a ")[-1].split()[0]
    # A table with commas is read with commas.
    labels = next(
        labels
        for names, labels in next(readings(decoded(content), target))
        if fitted.startswith(f"{count(len(labels), 'row')}, {count(len(names) - 1, 'column')}; {target!r} is a {kind}")
    )
    predictions = run("predict", model, table)
    assert predictions is not None
    found = list(csv.reader(io.StringIO(predictions, newline="")))
    assert len(found) == len(labels) + 1
    numbers = np.array([row[kind == "class" :] for row in found[1:]], float)
    assert np.isfinite(numbers).all()
    if kind == "class":
        assert len(found[0]) == 1 + len(set(labels))
        # With an apostrophe before formulas.
        assert {row[0] for row in found[1:]} <= {*labels, *(f"'{label}" for label in labels)}
        np.testing.assert_allclose(numbers.sum(axis=1), 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@SHORT
@given(csv_files(), st.integers(0, 3))
def test_tables_of_any_bytes(folder, case, target_number):
    check_table(folder, case, target_number)


@pytest.mark.long
@LONG
@given(csv_files(), st.integers(0, 3))
def test_many_tables_of_any_bytes(folder, case, target_number):
    check_table(folder, case, target_number)


@settings(SHORT, max_examples=100)
@given(st.data())
def test_parquet_files_of_any_bytes(folder, data):
    frame = pd.DataFrame({"é": [0.5, None] * 6, "b": ["x", None, "y"] * 4, "i": range(12), "t": ["u", "v"] * 6})
    content = frame.astype({"i": "Int64"}).to_parquet()
    table = folder / "table.parquet"
    # Half of the file is metadata, at its end.
    table.write_bytes(content[:200] + data.draw(changed(content[200:])))
    run("fit", table, "--target", "t", "--out", folder / "model", "--method", "ntk", "--reg", "0.1")


@pytest.fixture(scope="module")
def models(folder):
    """Files of a model of each kind, and a table for their predictions."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"size": rng.standard_normal(30), "colour": rng.choice(["red", "=b"], 30)})
    frame["kind"] = np.where(frame["size"] > 0, frame["colour"], "no")
    frame["price"] = frame["size"] ** 2
    contents = []
    for target, method in (("kind", "ntk"), ("price", "ntk"), ("price", "gated")):
        table, model = folder / "table.csv", folder / "model"
        frame.drop(columns={"kind": "price", "price": "kind"}[target]).to_csv(table, index=False)
        assert run("fit", table, "--target", target, "--out", model, "--method", method, "--reg", "0.1") is not None
        contents.append((model.read_bytes(), *read_arrays(model, KIND)))
    frame[["size", "colour"]].to_csv(folder / "new.csv", index=False)
    return contents


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
OTHER_ARRAYS = st.sampled_from([np.ones(2), np.zeros((0, 8)), np.array(1.0), np.ones((1, 8, 1)), np.full(2, np.nan)])
OTHER_TYPES = st.sampled_from([np.float32, np.int64, bool, np.float64, np.uint8])


def check_model(folder, models, data):
    content, fields, arrays = data.draw(st.sampled_from(models))
    path = folder / "changed"
    if data.draw(st.booleans()):
        path.write_bytes(data.draw(changed(content) | st.binary()))
    else:
        # With a checksum that is right.
        fields = {name: value for name, value in fields.items() if name not in ("format", "version", "fixntk")}
        if data.draw(st.booleans()):
            fields[data.draw(st.sampled_from([*fields, "more"]))] = data.draw(JSON)
        name = data.draw(st.sampled_from(list(arrays)))
        scaled = st.sampled_from([1.0, -1.0, 0.0, 1e-300, 1e150, 1e307]).map(lambda factor: arrays[name] * factor)
        with np.errstate(all="ignore"):
            other = data.draw(scaled | OTHER_ARRAYS)
            other = other.astype(data.draw(st.just(np.float64) | OTHER_TYPES))
        write_arrays(path, KIND, fields, {**arrays, name: other})
    predictions = run("predict", path, folder / "new.csv")
    if predictions is not None:
        rows = list(csv.reader(io.StringIO(predictions, newline="")))
        assert len(rows) == 31
        assert len({len(row) for row in rows}) == 1
        has_classes = len(rows[0]) > 1
        assert np.isfinite(np.array([row[has_classes:] for row in rows[1:]], float)).all()


@SHORT
@given(st.data())
def test_models_of_any_bytes(folder, models, data):
    check_model(folder, models, data)


@pytest.mark.long
@LONG
@given(st.data())
def test_many_models_of_any_bytes(folder, models, data):
    check_model(folder, models, data)


@given(JSON)
def test_headers_are_written_as_they_are_read(folder, value):
    write_arrays(folder / "file", KIND, {"value": value}, {"a": np.ones(1)})
    assert read_arrays(folder / "file", KIND)[0]["value"] == json.loads(json.dumps(value))
