"""Encoding of tables against pandas' own."""

import numpy as np
import pandas as pd
import pytest
from sklearn.preprocessing import StandardScaler

from fixntk.tables.encode import column_encoder, encode_features, encode_target


@pytest.fixture
def features(rng):
    colours = pd.Categorical(rng.choice(["red", "blue"], 20), ["blue", "green", "red"])
    return pd.DataFrame({"colour": colours, "size": 3 * rng.standard_normal(20) + 5, "age": rng.integers(9, 50, 20)})


def test_features_are_standardised_numbers_then_categories_then_the_bias(features):
    numbers = features[["size", "age"]]
    expected = np.column_stack(
        [(numbers - numbers.mean()) / numbers.std(ddof=0), pd.get_dummies(features["colour"]), np.ones(20)]
    ).astype(float)
    np.testing.assert_allclose(encode_features(features), expected, atol=1e-12)
    only_categories = encode_features(features[["colour"]])
    np.testing.assert_array_equal(only_categories, expected[:, 2:])


def test_the_encoder_names_its_columns(features):
    categories = {"colour": ["blue", "green", "red"]}
    encoder = column_encoder(StandardScaler(), ["size", "age"], categories).fit(features[:10])
    names = ["size", "age", "colour_blue", "colour_green", "colour_red"]
    np.testing.assert_array_equal(encoder.get_feature_names_out(), names)
    assert encoder.transform(features[10:]).shape == (10, 5)


def test_targets_of_numbers_are_standardised_and_classes_are_signs_or_one_hot():
    numbers = np.array([1.0, 2.0, 6.0])
    target = pd.Series(["1", "2", "6"])
    np.testing.assert_allclose(encode_target(target), (numbers - numbers.mean()) / numbers.std())
    np.testing.assert_array_equal(encode_target(pd.Series(["b", "a", "b"])), [1, -1, 1])
    np.testing.assert_array_equal(encode_target(pd.Series(["c", "a", "b"])), np.eye(3)[[2, 0, 1]])
