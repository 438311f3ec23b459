"""Columns of dates against Python's own datetime, format by format."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from fixntk.tables.dates import FORMATS, days_since_1970, find_format

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The 13th to the 28th of a month, so that no day can be taken for a month.
TIMES = [datetime(1931 + 9 * k, 1 + 5 * k % 12, 13 + 7 * k % 16, 3 * k % 24, 41, tzinfo=UTC) for k in range(12)]


def has_format(text, date_format):
    try:
        datetime.strptime(text, date_format)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("date_format", FORMATS)
def test_days_are_those_of_datetime_and_the_format_is_found_again(date_format):
    pattern = "%Y-%m-%d %H:%M" if date_format == "ISO8601" else date_format
    texts = [time.strftime(pattern) for time in TIMES]
    column = pd.Series([*texts, None])
    read = [datetime.strptime(text, pattern).replace(tzinfo=UTC) for text in texts]
    expected = [*((time - EPOCH) / timedelta(days=1) for time in read), np.nan]
    np.testing.assert_allclose(days_since_1970(column, date_format), expected, rtol=1e-15)
    assert find_format(column) == date_format


def test_the_format_is_the_first_that_every_value_has():
    columns = [
        ["13/02/2020", "01/02/2020"],
        ["02/13/2020", "01/02/2020"],
        ["01/02/2020", "03/04/2020"],
        ["01/02/2020", "13/13/2020"],
        ["01/02/2020 10:30", "31/12/2020 23:59"],
        ["01/02/2020 10:30", "12/31/2020"],
        ["1.2.2020", "31.12.2020"],
        ["01.02.2020 10:30", "12.31.2020 10:30"],
        ["soon", "01.02.2020"],
        ["3", "4"],
    ]
    written_out = [date_format for date_format in FORMATS if date_format != "ISO8601"]
    for column in columns:
        expected = next((f for f in written_out if all(has_format(text, f) for text in column)), None)
        assert find_format(pd.Series(column)) == expected, column


def test_days_that_may_be_months_are_read_as_in_america():
    assert find_format(pd.Series(["01/02/2020", "03/04/2020"])) == "%m/%d/%Y"
    assert find_format(pd.Series(["01/02/2020 10:30", "03/04/2020 09:15"])) == "%m/%d/%Y %H:%M"


def test_days_are_counted_from_1970():
    given = pd.Series(["1970-01-02", "1970-01-01T12:00:00", "2000-03-01", None])
    expected = [1.0, 0.5, (np.datetime64("2000-03-01") - np.datetime64("1970-01-01")).astype(int), np.nan]
    np.testing.assert_array_equal(days_since_1970(given, "ISO8601"), expected)


def test_times_of_other_zones_are_those_of_utc():
    given = pd.Series(["2020-06-01T12:00:00+02:00", "2020-06-01T10:00:00Z", "2020-06-01T10:00:00"])
    assert days_since_1970(given, "ISO8601").nunique() == 1


def test_values_of_another_format_are_nan_and_the_index_stays():
    given = pd.Series(["31.01.2020", "2020-01-31", "soon"], index=[7.5, 2.0, 0.0])
    days = days_since_1970(given, "%d.%m.%Y")
    np.testing.assert_array_equal(days.index, given.index)
    np.testing.assert_array_equal(days.isna(), [False, True, True])
    assert find_format(given) is None
    # Labels of rows are not their positions.
    assert find_format(given[:1]) == "%d.%m.%Y"


def test_years_may_be_far_away_and_words_of_the_present_are_no_dates():
    given = pd.Series(["2020-01-01", "9999-12-31", "1600-01-01"])
    epoch = np.datetime64("1970-01-01")
    expected = [(np.datetime64(day) - epoch).astype(int) for day in given]
    assert find_format(given) == "ISO8601"
    np.testing.assert_array_equal(days_since_1970(given, "ISO8601"), expected)
    assert find_format(pd.Series(["31.12.9999", "01.01.2020"])) == "%d.%m.%Y"
    assert find_format(pd.Series(["now", "today"])) is None


def test_a_column_without_values_has_no_format():
    assert find_format(pd.Series([None, None], dtype=object)) is None
