"""Columns of dates and times of day against Python's own datetime and pandas, format by format."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from fixntk.tables.dates import (
    CYCLE_FEATURES,
    FORMATS,
    TIME_OF_DAY,
    choose_cycle_features,
    cycle_features,
    days_since_1970,
    describe_cycles,
    find_format,
    hours_of_day,
)

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


@pytest.mark.parametrize("pattern", ["%H:%M", "%H:%M:%S", "%I:%M %p", "%I:%M:%S%p", "%H:%M:%S.%f"])
def test_times_of_day_are_hours_of_datetime(pattern):
    times = [datetime(2000, 1, 1, hour, 7 * hour % 60, 11 * hour % 60, tzinfo=UTC) for hour in range(24)]
    texts = [time.strftime(pattern) for time in times]
    for written in (texts, [text.lower() for text in texts], [text.removeprefix("0") for text in texts]):
        expected = [(datetime.strptime(text, pattern) - datetime(1900, 1, 1)) / timedelta(hours=1) for text in texts]
        np.testing.assert_allclose(hours_of_day(pd.Series([*written, None])), [*expected, np.nan], rtol=1e-15)
        assert find_format(pd.Series([*written, None])) == TIME_OF_DAY


def test_what_is_no_time_of_day_is_none():
    assert hours_of_day(pd.Series(["12:00 a.m.", "12:30 PM"])).tolist() == [0, 12.5]
    wrong = ["24:00", "12:60", "13:00 pm", "0:30 am", "12:3", "12:30:60", "12:30 x", "x 12:30", "1230", "12:30:15:10"]
    assert hours_of_day(pd.Series(wrong)).isna().all()
    assert find_format(pd.Series(["12:30", "24:00"])) is None


def phases_of_pandas(times):
    """Phases of year, week and day in [0, 1), from pandas' own parts of dates."""
    days_of_year = np.where(times.dt.is_leap_year, 366, 365)
    return {
        "time of year": (times.dt.day_of_year - 1) / days_of_year,
        "day of the week": times.dt.day_of_week / 7,
        "hour": (times.dt.hour + times.dt.minute / 60) / 24,
    }


def test_features_of_cycles_are_those_of_the_parts_of_pandas():
    times = pd.Series(pd.date_range("1951-01-01", periods=900, freq="37D7h41min"))
    times[5] = pd.NaT
    days = days_since_1970(times.astype(object).where(times.notna()).map(str, na_action="ignore"), "ISO8601")
    features = cycle_features(days, "ISO8601", CYCLE_FEATURES)
    assert len(features) == 6
    for cycle, phases in phases_of_pandas(times).items():
        expected = np.exp(2j * np.pi * phases)
        found = features[f"cos of the {cycle}"] + 1j * features[f"sin of the {cycle}"]
        np.testing.assert_allclose(found.to_numpy(), expected.to_numpy(), atol=1e-10, err_msg=cycle)


@pytest.mark.parametrize(
    ("texts", "cycles"),
    [
        (["2020-01-01", "2020-01-15"], []),
        (["2020-01-01", "2020-01-16"], ["sin of the day of the week", "cos of the day of the week"]),
        # Mondays; the year would need more than two of them.
        (["2020-01-06", "2021-11-08", "2020-03-09"], []),
        (["2018-01-01", "2020-06-01", "2019-09-02"], ["sin of the time of year", "cos of the time of year"]),
        # The last days of years, which are at almost the same phase; Tuesdays and Fridays.
        (["2019-12-31", "2021-12-31"], ["sin of the day of the week", "cos of the day of the week"]),
        (["2020-01-01 06:00", "2020-01-01 18:00"], ["sin of the hour"]),
        (["2020-01-01 00:00", "2020-01-01 12:00"], ["cos of the hour"]),
        (["2020-01-01 09:00", "2020-01-02 09:00"], []),
        (["06:00", "11:00"], ["sin of the hour", "cos of the hour"]),
        (["06:00", "06:10"], []),
    ],
)
def test_cycles_are_those_that_the_dates_go_through(texts, cycles):
    column = pd.Series(texts)
    date_format = find_format(column)
    numbers = hours_of_day(column) if date_format == TIME_OF_DAY else days_since_1970(column, date_format)
    assert choose_cycle_features(numbers, date_format) == cycles


def test_features_of_times_of_day_are_those_of_their_hours():
    features = cycle_features(pd.Series([0.0, 6.0, 14.5]), TIME_OF_DAY, ["sin of the hour"])
    np.testing.assert_allclose(features["sin of the hour"], np.sin(np.array([0, 6, 14.5]) * np.pi / 12), atol=1e-12)


def test_features_are_described_by_their_cycles():
    described = describe_cycles(["sin of the time of year", "cos of the time of year", "cos of the hour"])
    assert described == ", with sin and cos of the time of year, cos of the hour"
    assert describe_cycles([]) == ""
