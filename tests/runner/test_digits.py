import numpy as np
import pytest

from fixntk.runner.digits import format_number, format_numbers


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 20, -3], ["1", "20", "−3"]),
        ([1.0, 2.0], ["1", "2"]),
        ([0.9123456, 0.9, 0.0512], ["0.9123", "0.9000", "0.0512"]),
        ([99.123456, 1.5], ["99.12", "1.50"]),
        ([0.3, 1.234567e-7], ["0.3", "1.23e−7"]),
        ([1.5e9, 2.25], ["1.5e9", "2.25"]),
        ([-0.00001, 12.5], ["−1e−5", "12.5"]),
        ([1234.5, 0.001], ["1234", "0.001"]),
        ([0.5, 0.0, -0.25], ["0.5000", "0.0000", "−0.2500"]),
        ([0.5, np.inf], ["0.5000", "∞"]),
        ([np.inf, -np.inf], ["∞", "−∞"]),
        ([10**20], ["1e20"]),
        ([0.1 + 0.2], ["0.3000"]),
    ],
)
def test_numbers_have_sensible_digits(values, expected):
    assert format_numbers(values) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.95271, "0.9527"),
        (0.8, "0.8"),
        (-12.3456, "−12.35"),
        (123456.7, "123457"),
        (3, "3"),
        (0.0, "0"),
        (1.2346e-7, "1.235e−7"),
        (2e9, "2e9"),
        (-np.inf, "−∞"),
    ],
)
def test_a_number_alone_has_four_significant_digits(value, expected):
    assert format_number(value) == expected
