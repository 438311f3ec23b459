"""The part of YAML that configs are written in, against PyYAML's own reader."""

import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fixntk.runner.strict_yaml import describe, parse

SCALARS = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
)


@settings(max_examples=50)
@given(VALUES, st.booleans())
def test_what_pyyaml_writes_is_read_as_it_was(value, flow):
    text = yaml.safe_dump(value, default_flow_style=flow)
    assert parse(text) == value == yaml.safe_load(text)


@pytest.mark.parametrize("text", ["yes", "off", "0x1f", "010", "1_000", "190:20:30", "-.inf", "~", "'1'", "!!str 1"])
def test_scalars_are_those_of_yaml_1_1(text):
    expected = yaml.safe_load(text)
    assert parse(text) == expected
    assert type(parse(text)) is type(expected)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[1e-6, 1E+3, -2e4, .5e1, 3.e2]", [1e-6, 1e3, -2e4, 5.0, 300.0]),
        ("[e5, 1e, 1e5x, 1e-]", ["e5", "1e", "1e5x", "1e-"]),
        ("[2021-02-30, 2021-02-03 10:00:00]", ["2021-02-30", "2021-02-03 10:00:00"]),
        ("{on: 1, 1: 2, ~: 3, 2020-01-01: 4}", {"on": 1, "1": 2, "~": 3, "2020-01-01": 4}),
        # No merging of mappings.
        ("{a: &a {b: 1}, c: {<<: *a, b: 2}}", {"a": {"b": 1}, "c": {"<<": {"b": 1}, "b": 2}}),
        ("[=, <<]", ["=", "<<"]),
    ],
)
def test_the_differences_are_those_that_are_stated(text, value):
    assert parse(text) == value


def test_not_a_number_is_read():
    assert math.isnan(parse(".nan"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3", ", line 3, column 1: the key 'a' is given twice"),
        ("a: !!binary aGk=", ", line 1, column 4: the tag 'tag:yaml.org,2002:binary' is not allowed here"),
        ("a: !mine 1", ", line 1, column 4: the tag '!mine' is not allowed here"),
        ("- &a\n  - *a", ", line 2, column 5: an alias stands for a value that contains it"),
        ("[" * 33 + "]" * 33, ", line 1, column 33: more than 32 levels inside one another"),
        ("[&a [" + "1," * 199 + "]" + ", *a" * 98 + "]", None),
        ("[&a [" + "1," * 199 + "]" + ", *a" * 100 + "]", ", line 1, column 803: more than 20000 values"),
        ("9" * 101, ", line 1, column 1: '999999999999...9999999999999' is not a valid int"),
        ("9" * 100, None),
        ('"\\udc00"', ", line 1, column 1: '\\udc00' has half of a surrogate pair"),
        ("\0", ": unacceptable character #x0000: special characters are not allowed"),
        ("*a", ", line 1, column 1: found undefined alias 'a'"),
        ("a: !!map [1]", ", line 1, column 4: a mapping is expected here"),
        ("!!map foo", ", line 1, column 1: a mapping is expected here"),
        ("a: !!seq {b: 1}", ", line 1, column 4: expected a sequence node"),
        ('"\\UFFFFFFFF"', ": an escape stands for no character"),
        ('"\\U00110000"', ": an escape stands for no character"),
    ],
)
def test_what_is_left_out_is_named_with_its_place_in_one_line(text, expected):
    if expected is None:
        assert parse(text) == yaml.safe_load(text)
        return
    with pytest.raises(yaml.YAMLError) as error:
        parse(text)
    assert describe(error.value).startswith(expected)
    assert "\n" not in describe(error.value)
