"""Files of models: what is read predicts as what was written, and anything else is refused in a line."""

import numpy as np
import pandas as pd
import pytest
from sklearn.pipeline import Pipeline

from fixntk._files import Format, read_arrays, write_arrays
from fixntk.estimators import GatedReLUClassifier, GatedReLURegressor, NTKClassifier, NTKRegressor
from fixntk.tables.columns import RARE, Columns, cycle_name
from fixntk.tables.encode import imputing_encoder
from fixntk.tables.model_file import Model, ModelError, load, save
from fixntk.tables.numbers import NumberFormat

RNG = np.random.default_rng(0)
FRAME = pd.DataFrame({"size": RNG.standard_normal(40), "age": RNG.integers(0, 9, 40) * 1.0, "=c": ["a", "b\n"] * 20})
FRAME.loc[[3, 7], "age"] = np.nan
FRAME["none"] = np.nan
COLUMNS = Columns(
    ["age", "size", "none"],
    {"=c": [RARE, "a", "b\n"]},
    {"age": "ISO8601"},
    {"age": ["sin of the time of year", "cos of the hour"]},
    {"size": NumberFormat(".", ",", "€")},
    {"=c": ["d", "e"]},
    {"=c": "a"},
)
FRAME[CYCLES := [cycle_name(feature, "age") for feature in COLUMNS.cycles["age"]]] = RNG.standard_normal((40, 2))
MEDIANS = np.array([FRAME["age"].median(), FRAME["size"].median(), 0, *FRAME[CYCLES].median()])
TARGETS = {
    "quantity": FRAME["size"].to_numpy() ** 2,
    "two": np.where(FRAME["size"] > 0, "yes", "no").astype(object),
    "three": np.where(FRAME["size"] > 0, FRAME["=c"], "-").astype(object),
}


def estimator_of(method, target):
    if method == "gated":
        kind = GatedReLURegressor if target == "quantity" else GatedReLUClassifier
        return kind(30, random_state=0)
    return NTKRegressor(depth=2, bias_scale=2.0) if target == "quantity" else NTKClassifier()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("method", ["gated", "ntk"])
def test_a_model_that_is_read_predicts_as_the_pipeline_that_was_fitted(tmp_path, method, target):
    fitted = Pipeline([("columns", imputing_encoder(COLUMNS)), ("estimator", estimator_of(method, target))])
    fitted.fit(FRAME, TARGETS[target])
    path = tmp_path / "model"
    save(Model(target, COLUMNS, MEDIANS, fitted["estimator"].predictor()), path)
    found = load(path).predict(FRAME)
    expected = fitted.predict(FRAME)
    if target == "quantity":
        assert list(found.columns) == [target]
        np.testing.assert_array_equal(found[target], expected)
    else:
        assert list(found.columns) == [target, *(f"P({name})" for name in fitted.classes_)]
        assert list(found[target]) == list(expected)
        np.testing.assert_array_equal(found.iloc[:, 1:], fitted.predict_proba(FRAME))


@pytest.fixture(scope="module", params=["gated", "ntk"])
def content(request, tmp_path_factory):
    """Fields and arrays of a file of each method, one of classes, one of a quantity."""
    target = {"gated": "quantity", "ntk": "three"}[request.param]
    fitted = Pipeline([("columns", imputing_encoder(COLUMNS)), ("estimator", estimator_of(request.param, target))])
    path = tmp_path_factory.mktemp("model") / "model"
    save(Model(target, COLUMNS, MEDIANS, fitted.fit(FRAME, TARGETS[target])["estimator"].predictor()), path)
    return read_arrays(path, KIND)


KIND = Format("fixntk model", 5)
OTHERS = [None, True, 1, -1, 10**400, 0.5, -0.5, "", "a"]
OTHERS += [[], [1], ["a"], ["a", "a"], ["a", "b"], {}, {"a": 1}, {"a": []}]


def refuse(path, fields, arrays):
    about = {name: value for name, value in fields.items() if name not in ("format", "version", "fixntk")}
    write_arrays(path, KIND, about, arrays)
    with pytest.raises(ModelError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"model {path}: ")
    assert "\n" not in message
    assert len(message) < 400
    return message


def test_missing_fields_and_arrays_are_named(tmp_path, content):
    fields, arrays = content
    for name in fields.keys() - {"format", "version", "fixntk"}:
        message = refuse(tmp_path / "model", {key: fields[key] for key in fields if key != name}, arrays)
        assert f"lacks the field {name}" in message
    for name in arrays:
        message = refuse(tmp_path / "model", fields, {key: arrays[key] for key in arrays if key != name})
        assert "must have the arrays medians, mean" in message
    refuse(tmp_path / "model", fields, {**arrays, "more": np.ones(1)})


def test_fields_of_other_types_are_refused(tmp_path, content):
    fields, arrays = content
    # Others that are right too: a text as the target; a factor that is positive.
    right = {
        "target": lambda value: isinstance(value, str),
        "temperature": lambda value: value == 0.5,
        "bias": lambda value: value == 0.5,
        **dict.fromkeys(("dates", "cycles", "formats", "rare", "modes"), lambda value: value == {}),
    }
    for name in fields.keys() - {"format", "version", "fixntk"}:
        for other in OTHERS:
            is_right = right.get(name, lambda _: False)(other) and (name != "temperature" or fields["classes"])
            if other != fields[name] and not is_right:
                refuse(tmp_path / "model", {**fields, name: other}, arrays)


def test_arrays_of_other_types_shapes_and_ranges_are_named(tmp_path, content):
    fields, arrays = content
    for name, array in arrays.items():
        for other in (
            array.astype(np.float32),
            array.astype(np.int64),
            array.astype(bool),
            array[:0],
            array[..., None],
            np.array(1.0),
            np.concatenate([array, array]),
            array * np.nan,
            array + np.inf,
            *([-array, array * 0] if name.endswith("scale") else []),
        ):
            message = refuse(tmp_path / "model", fields, {**arrays, name: other})
            assert "the array" in message


def test_nothing_that_cannot_be_read_is_written(tmp_path):
    fitted = NTKRegressor().fit(FRAME[["size"]].to_numpy(), TARGETS["quantity"])
    predictor = fitted.predictor()._replace(target_scaling=fitted._target_scaling._replace(scale=np.array([np.inf])))
    with pytest.raises(ModelError, match="the array target_scale holds numbers that are out of range"):
        save(Model("y", Columns(["size"], {}, {}, {}, {}, {}, {}), np.zeros(1), predictor), tmp_path / "model")
    assert not list(tmp_path.iterdir())
