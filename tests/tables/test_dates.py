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
    describe_dates,
    find_format,
    hours_of_day,
    look_like_dates,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The 13th to the 28th of a month, so that no day can be taken for a month.
TIMES = [datetime(1931 + 9 * k, 1 + 5 * k % 12, 13 + 7 * k % 16, 3 * k % 24, 41, tzinfo=UTC) for k in range(12)]


# The formats whose parts are those of Python's strptime, without those that are found only with am and pm.
WRITTEN_OUT = [name for name in FORMATS if "%" in name and name not in ("%Y-%m-%d", "%Y/%m/%d")]


def has_format(text, date_format):
    try:
        datetime.strptime(text, date_format)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("date_format", ["ISO8601", *WRITTEN_OUT])
def test_days_are_those_of_datetime_and_the_format_is_found_again(date_format):
    pattern = "%Y-%m-%d %H:%M" if date_format == "ISO8601" else date_format
    if date_format.startswith(("%Y-", "%Y/")):
        pattern = pattern.replace("%H:%M", "%I:%M %p")
    texts = [time.strftime(pattern) for time in TIMES]
    column = pd.Series([*texts, None])
    read = [datetime.strptime(text, pattern).replace(tzinfo=UTC) for text in texts]
    expected = [*((time - EPOCH) / timedelta(days=1) for time in read), np.nan]
    np.testing.assert_allclose(days_since_1970(column, date_format), expected, rtol=1e-15)
    assert find_format(column) == date_format


@pytest.mark.parametrize("end", ["%H:%M:%S", "%I:%M %p", "%I:%M:%S%p", "%H:%M:%S.%f"])
@pytest.mark.parametrize("date_format", [name for name in FORMATS if name.endswith(" %H:%M")])
def test_times_behind_dates_are_written_as_times_of_day_are(date_format, end):
    pattern = date_format.replace("%H:%M", end)
    times = [time + timedelta(seconds=11) for time in TIMES]
    texts = [time.strftime(pattern) for time in times]
    read = [datetime.strptime(text, pattern).replace(tzinfo=UTC) for text in texts]
    expected = [(time - EPOCH) / timedelta(days=1) for time in read]
    np.testing.assert_allclose(days_since_1970(pd.Series(texts), date_format), expected, rtol=1e-15)
    has_pm = "%p" in end
    assert find_format(pd.Series(texts)) == (
        date_format if has_pm or date_format[:3] not in ("%Y-", "%Y/") else "ISO8601"
    )


def test_the_format_is_the_first_that_every_value_has():
    columns = [
        ["13/02/2020", "01/02/2020"],
        ["02/13/2020", "01/02/2020"],
        ["01/02/2020", "03/04/2020"],
        ["01/02/2020", "13/13/2020"],
        ["01-02-2020", "13-02-2020"],
        ["01-02-2020", "03-04-2020"],
        ["1/2/69", "1/20/68"],
        ["13/2/69", "1/12/68"],
        ["01/02/2020 10:30", "31/12/2020 23:59"],
        ["1.2.2020", "31.12.2020"],
        ["01.02.2020 10:30", "12.31.2020 10:30"],
        ["soon", "01.02.2020"],
        ["3", "4"],
    ]
    for column in columns:
        expected = next((f for f in WRITTEN_OUT if all(has_format(text, f) for text in column)), None)
        assert find_format(pd.Series(column)) == expected, column


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("Jan 1 2000", "2000-01-01"),
        ("January 1, 2000", "2000-01-01"),
        ("Sept. 5, 1999", "1999-09-05"),
        ("1 january 2000", "2000-01-01"),
        ("03-Jan-2011", "2011-01-03"),
        ("3-JUN-11", "2011-06-03"),
        ("Jan-1-1995", "1995-01-01"),
        ("2000-May-31", "2000-05-31"),
        ("Jan-2011", "2011-01-01"),
        ("Dec 2000", "2000-12-01"),
        ("2000 Feb", "2000-02-01"),
        ("02/2000", "2000-02-01"),
        ("1974Q1", "1974-01-01"),
        ("1974-q2", "1974-04-01"),
        ("Q3 1974", "1974-07-01"),
        ("Q4/1974", "1974-10-01"),
        ("1/31/2000, 10:30:15 PM", "2000-01-31 22:30:15"),
        ("2000-01-31T2:00 p.m.", "2000-01-31 14:00"),
        ("2000-01-31 14:00:00 UTC", "2000-01-31 14:00"),
        ("2000-01-31T14:00:00.5GMT", "2000-01-31 14:00:00.5"),
    ],
)
def test_dates_as_people_and_programs_write_them_are_read(text, date):
    column = pd.Series([text, None])
    days = days_since_1970(column, find_format(column))
    assert days[0] == pytest.approx((pd.Timestamp(date) - pd.Timestamp(0)) / pd.Timedelta(days=1), rel=1e-15)
    assert np.isnan(days[1])


@pytest.mark.parametrize(
    "text",
    ["192.168.0.1", "10.4.12.1", "1.2.3", "1.2.10", "10.4.15", "555-123-4567", "01-555-1234", "123-45-6789", "12-34-56",
     "1-2-10", "1-2-3", "A-1-2000", "T 1 2000", "Mary 2000", "Marchand 2000", "mars 2000", "Q5 2000", "1974Q", "1234-5",
     "May 5", "Jan", "5-2000", "1/2", "0.5", "12.2000", "31-02-2000", "32/1/2000", "1:2:3", "12:345", "1/1/2000 25:00",
     "1/1/2000 13:00 pm", "x 1/1/2000", "1/1/2000 x", "1/1/200", "1-1/2000"],
)  # fmt: skip
def test_what_is_no_date_is_none(text):
    assert find_format(pd.Series([text])) is None
    # Nor among dates.
    assert find_format(pd.Series(["01/01/2000", text])) is None


def test_midnight_may_be_written_as_a_date_without_a_time():
    column = pd.Series(["13/01/2000", "13/01/2000 12:00"])
    assert np.diff(days_since_1970(column, find_format(column))) == 0.5


def test_a_day_that_may_be_a_month_is_told():
    unclear, clear = pd.Series(["01-02-2020", "03-04-2020"]), pd.Series(["01-02-2020", "03-24-2020"])
    assert describe_dates(unclear, find_format(unclear)) == (
        "date (month-day-year, where day-month-year would fit too), converted to days"
    )
    assert describe_dates(clear, find_format(clear)) == "date (month-day-year), converted to days"


def test_what_looks_like_a_date_to_people_is_known():
    dates = ["13/13/2000", "2000-13-01", "99:99", "5 May 2000", "Mon, Jan 1 2000", "1/1/2000 10h", "31.12.99", None]
    assert look_like_dates(pd.Series(dates))
    for text in ("192.168.0.1", "1.2.3", "555-123-4567", "A-1-2000", "x12", "12", "Mary 2000"):
        assert not look_like_dates(pd.Series([dates[0], text]))


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
