"""Numbers as people write them, against a parser that goes through their characters."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixntk.tables.numbers import PLAIN, NumberFormat, find_number_format, has_decimal_comma, parse_numbers


def texts(*values):
    return pd.Series(values, dtype=object)


@pytest.mark.parametrize(
    ("values", "numbers"),
    [
        (["1,200", "5", "-1,234,567.5"], [1200, 5, -1234567.5]),
        (["1,5", "2"], [1.5, 2]),
        (["1.234,5", "7"], [1234.5, 7]),
        (["1 234,5", "7"], [1234.5, 7]),
        (["1\N{NO-BREAK SPACE}234,5", "7"], [1234.5, 7]),
        (["1'234.5", "7"], [1234.5, 7]),
        (["0,123", "0,5"], [0.123, 0.5]),
        (["$1,200.50", "-$3", "$-4", "($5)", "6"], [1200.5, -3, -4, -5, 6]),
        (["5 EUR", "1.200,50 EUR"], [5, 1200.5]),
        (["12%", "3.5 %"], [0.12, 0.035]),
        (["\N{MINUS SIGN}5", "3"], [-5, 3]),
        (["1e3", "-.5"], [1000, -0.5]),
        # By convention of the language of most files; decimal commas elsewhere in the table decide otherwise.
        (["1,234", "2,345"], [1234, 2345]),
    ],
)
def test_numbers_as_people_write_them(values, numbers):
    number_format = find_number_format(texts(*values, None))
    np.testing.assert_allclose(parse_numbers(texts(*values, None), number_format), [*numbers, np.nan], rtol=1e-15)


@pytest.mark.parametrize(
    "values",
    [
        ["12%", "3"],
        ["€5", "$6"],
        ["079 123"],
        ["--5"],
        ["(5"],
        ["5)"],
        ["1,2,3"],
        ["1.1.2020"],
        ["5 apples"],
        ["1,23,4"],
    ],
)
def test_others_are_no_numbers(values):
    assert find_number_format(texts(*values)) is None


def test_decimal_commas_elsewhere_decide_what_is_ambiguous():
    ambiguous = texts("1,234", "2,345")
    assert has_decimal_comma(texts("1,5", "2,25"))
    assert not has_decimal_comma(ambiguous)
    commas = find_number_format(ambiguous, decimal_comma=True)
    np.testing.assert_array_equal(parse_numbers(ambiguous, commas), [1.234, 2.345])
    assert find_number_format(texts("1", "2"), decimal_comma=True) == PLAIN


FORMATS = [
    NumberFormat(",", ".", "$"),
    NumberFormat(".", ",", ""),
    NumberFormat(" ", ",", "€"),
    NumberFormat("'", ".", "%"),
]


@given(st.lists(st.decimals(-(10**9), 10**9, places=2), min_size=1), st.sampled_from(FORMATS))
def test_what_is_written_is_read(numbers, number_format):
    swap = {",": number_format.thousands, ".": number_format.decimal}
    written = ["".join(swap.get(character, character) for character in f"{number:,.2f}") for number in numbers]
    column = texts(*(f"{text}{number_format.unit}" for text in written))
    share = 100 if number_format.unit == "%" else 1
    np.testing.assert_allclose(parse_numbers(column, number_format) * share, np.array(numbers, float), rtol=1e-14)
