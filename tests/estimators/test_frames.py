"""Data frames with categories and missing numbers, against frames that are encoded by hand."""

import datetime
import pickle
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.model_selection import cross_val_score

import fixntk.estimators
from fixntk.estimators import GatedReLURegressor, NTKClassifier, NTKRegressor, frames
from fixntk.estimators.frames import encode_frame

NUM_ROWS = 24


@pytest.fixture
def frame(rng):
    """A category, a text with missing values, numbers, and numbers with missing values."""
    numbers = rng.standard_normal((NUM_ROWS, 2))
    numbers[[3, 7], 1] = np.nan
    return pd.DataFrame(
        {
            "size": pd.Categorical(["small", "large", "huge"] * 8),
            "age": numbers[:, 0],
            "town": ["Ulm", "Bonn", None, "Kiel"] * 6,
            "pay": numbers[:, 1],
        }
    )


@pytest.fixture
def y(frame):
    return (frame["size"] == "huge") * 2.0 + frame["age"] + frame["pay"].isna() + 0.1 * np.arange(NUM_ROWS) % 0.3


def encode(frame):
    """Numbers, which were missing, and a column for each category, missing ones last."""
    pay = frame["pay"]
    sizes = [frame["size"] == name for name in ("huge", "large", "small")]
    towns = [frame["town"] == name for name in ("Bonn", "Kiel", "Ulm")]
    columns = [frame["age"], pay.fillna(pay.median()), pay.isna(), *sizes, *towns, frame["town"].isna()]
    return np.column_stack(columns).astype(float)


def test_a_frame_is_encoded_as_by_hand(frame, y):
    rows = encode(frame)
    encoder, encoded = encode_frame(frame)
    np.testing.assert_array_equal(encoded, rows)
    np.testing.assert_array_equal(encoder(frame), rows)
    fitted, by_hand = NTKRegressor().fit(frame, y), NTKRegressor().fit(rows, y)
    np.testing.assert_allclose(fitted.predict(frame[:9]), by_hand.predict(rows[:9]), rtol=1e-9)
    assert fitted.n_features_in_ == 4
    assert fitted.feature_names_in_.tolist() == ["size", "age", "town", "pay"]
    parts = by_hand.feature_importances_
    expected = [parts[3:6].sum(), parts[0], parts[6:].sum(), parts[1] + parts[2]]
    np.testing.assert_allclose(fitted.feature_importances_, expected, rtol=1e-9)


def test_a_frame_of_polars_gives_the_same(frame, y):
    other = pl.DataFrame(
        {
            "size": pl.Series(frame["size"].tolist(), dtype=pl.Categorical),
            "age": frame["age"].to_numpy(),
            "town": [None if pd.isna(town) else town for town in frame["town"]],
            "pay": [None if np.isnan(pay) else pay for pay in frame["pay"]],
        }
    )
    expected = NTKRegressor().fit(frame, y).predict(frame)
    np.testing.assert_allclose(NTKRegressor().fit(other, y).predict(other), expected, rtol=1e-12)


@pytest.mark.parametrize("name", fixntk.estimators.__all__)
def test_every_estimator_takes_frames(frame, y, name):
    options = {} if "NTK" in name else {"num_gates": 16, "random_state": 0}
    if name.startswith("GatedReLU") and name.endswith("CV"):
        options |= {"gates": "random", "regs": (0.1,), "num_folds": 2, "max_steps": 1}
    model = getattr(fixntk.estimators, name)(**options)
    targets = y > y.median() if "Classifier" in name else y
    model.fit(frame, targets)
    assert model.score(frame, targets) > 0.5
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(frame), model.predict(frame))
    assert np.isfinite(cross_val_score(clone(model), frame, targets, cv=2)).all()


def test_gates_have_the_width_of_the_encoded_columns(frame, y):
    assert GatedReLURegressor(16).fit(frame, y).network_(np.zeros((1, 16))).shape == (1,)
    # Ten encoded columns, and the bias.
    with pytest.raises(ValueError, match="11"):
        GatedReLURegressor(gates=np.ones((5, 5))).fit(frame, y)


def test_categories_that_are_new_match_none_and_new_missing_numbers_are_imputed(frame, y):
    model = NTKRegressor().fit(frame, y)
    by_hand = NTKRegressor().fit(encode(frame), y)
    new = frame[:3].assign(town="Rom", age=[np.nan, 1.0, 2.0])
    rows = encode(new)
    rows[:, 6:] = 0
    rows[:, 0] = [frame["age"].median(), 1.0, 2.0]
    rows[:, 1] = frame["pay"][:3].fillna(frame["pay"].median())
    np.testing.assert_allclose(model.predict(new), by_hand.predict(rows), rtol=1e-9)


def test_a_fit_reads_a_frame_once(frame, y, monkeypatch):
    reads = []
    read = frames._read
    monkeypatch.setattr(frames, "_read", lambda *arguments: reads.append(1) or read(*arguments))
    NTKRegressor().fit(frame, y, np.arange(len(y)) % 3)
    assert len(reads) == 1


def test_rare_categories_share_a_column(monkeypatch):
    monkeypatch.setattr(frames, "_MAX_CATEGORIES", 3)
    frame = pd.DataFrame({"code": list("aaabbbcdef")})
    encoder, _ = encode_frame(frame)
    encoded = encoder(pd.DataFrame({"code": list("abcfz")}))
    # Unknown ones count as rare.
    np.testing.assert_array_equal(encoded, [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1]])


def test_categories_that_are_numbers_are_the_same_whole_or_not():
    encoder, _ = encode_frame(pd.DataFrame({"code": pd.Categorical([1, 2, 1, 3])}))
    new = pd.DataFrame({"code": pd.Categorical([1.0, 3.0, np.nan])})
    np.testing.assert_array_equal(encoder(new), [[1, 0, 0], [0, 0, 1], [0, 0, 0]])


def test_rows_of_weight_zero_are_ignored(frame, y):
    weights = np.where(np.arange(NUM_ROWS) < 16, 1.0, 0.0)
    changed = frame.copy()
    changed.loc[16:, "town"] = "Rom"
    changed.loc[16:, "pay"] = 1e6
    kept = NTKRegressor().fit(frame[:16], y[:16])
    weighted = NTKRegressor().fit(changed, y, weights)
    np.testing.assert_allclose(weighted.predict(frame), kept.predict(frame), rtol=1e-9)


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"a": [1, 2], "b": [1.0, 2.0], "c": [True, False]}),
        pd.DataFrame({"a": [Decimal(1), 2]}, dtype=object),
        pd.DataFrame({"a": [1, 2]}, dtype="Int64"),
        pl.DataFrame({"a": [1, 2]}),
        np.ones((2, 2)),
        [[1, 2]],
        pd.DataFrame({"a": []}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_numbers_alone_need_no_encoder(frame):
    assert encode_frame(frame) is None


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pd.date_range("2020", periods=NUM_ROWS), "dates or durations"),
        (pd.date_range("2020", periods=NUM_ROWS, tz="UTC"), "dates or durations"),
        (pd.period_range("2020", periods=NUM_ROWS), "dates or durations"),
        (pd.to_timedelta(range(NUM_ROWS), unit="D"), "dates or durations"),
        ([datetime.date(2020, 1, 1), None] * 12, "dates or durations"),
        ([datetime.time(12), None] * 12, "dates or durations"),
        (["a", 1] * 12, "numbers or texts alone, got entries of type int, str"),
        ([{}, []] * 12, "entries of type dict, list"),
        (np.full(NUM_ROWS, 1j), "entries of type complex"),
    ],
    ids=str,
)
def test_columns_that_are_neither_numbers_nor_texts_are_named(frame, y, column, message):
    model = NTKRegressor().fit(frame, y)
    numbers = NTKRegressor().fit(frame[["age"]].assign(when=1.0), y)
    other = frame.assign(age=column)
    with pytest.raises(TypeError, match=rf"X: column 'age' .*{message}"):
        NTKRegressor().fit(other, y)
    with pytest.raises(TypeError, match=rf"X: column 'age' .*{message}"):
        model.predict(other)
    with pytest.raises(TypeError, match=rf"X: column 'age' .*{message}"):
        numbers.predict(other[["age"]].assign(when=1.0))


def test_other_inputs_than_the_frame_of_the_fit_are_named(frame, y):
    model = NTKRegressor().fit(frame, y)
    with pytest.raises(TypeError, match="X must be a data frame with the columns of the fit, got ndarray"):
        model.predict(np.ones((2, 4)))
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(frame[["age", "size", "town", "pay"]])
    with pytest.raises(TypeError, match="X: column 'age' held numbers in the fit, and holds texts or categories here"):
        model.predict(frame.assign(age="old"))
    with pytest.raises(ValueError, match="infinity"):
        model.predict(frame.assign(age=np.inf))
    with pytest.raises(ValueError, match="infinity"):
        NTKRegressor().fit(frame.assign(age=np.inf), y)
    numbers = NTKRegressor().fit(frame[["age"]], y)
    with pytest.raises(TypeError, match="X: column 'age' held numbers in the fit"):
        numbers.predict(frame[["age"]].assign(age="old"))
    with pytest.raises(ValueError, match="NaN"):
        numbers.predict(frame[["age"]].assign(age=np.nan))


@pytest.mark.parametrize("estimator", [NTKRegressor(), NTKClassifier()], ids=str)
def test_dates_in_arrays_are_refused(estimator):
    dates = np.arange(12).astype("datetime64[D]")
    with pytest.raises(TypeError, match=r"X must be numbers, got dtype datetime64\[D\]: subtract a date"):
        estimator.fit(dates[:, None], np.arange(12) % 2)
    with pytest.raises(TypeError, match=r"y must be numbers, got dtype datetime64\[D\]"):
        estimator.fit(np.ones((12, 1)), dates)
