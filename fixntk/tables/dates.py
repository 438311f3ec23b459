"""Columns of dates and of times of day, as numbers, and the phases of their cycles: year, week and day."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

# Parts of formats, which are those of datetime.strptime, as regular expressions for texts in lower case.
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH_NAME = (
    "jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    "|nov(?:ember)?|dec(?:ember)?"
)
_PARTS: Mapping[str, str] = MappingProxyType(
    {
        "%d": "(?P<day>[0-9]{1,2})",
        "%m": "(?P<month>[0-9]{1,2})",
        "%b": f"(?P<name>{_MONTH_NAME})",
        "%Y": "(?P<year>[0-9]{4})",
        "%y": "(?P<year>[0-9]{2})",
    }
)
_WORDS: Mapping[str, str] = MappingProxyType({"%d": "day", "%m": "month", "%b": "month", "%Y": "year", "%y": "year"})
# Years of two digits are of the twentieth century from this one on, as in Python and pandas.
_FIRST_OF_1900 = 69
# A time of day, of 24 hours or of 12 with am or pm, with seconds or without.
_TIME = (
    r"(?P<hour>[0-9]{1,2}):(?P<minute>[0-5][0-9])(?::(?P<second>[0-5][0-9](?:\.[0-9]+)?))?"
    r"(?:\s?(?P<half>[ap])\.?m\.?)?"
)
# What ends the format of dates of which some have a time of day.
_WITH_TIME = " %H:%M"
# pandas' own name for ISO 8601, and the format of quarters of a year.
_ISO = "ISO8601"
_QUARTER = "quarter"
# The format of times of day without a date.
TIME_OF_DAY = "time of day"
# Formats of days in the order in which they are tried. The month comes first where both orders fit, except with dots.
_DAYS = (
    *("%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%m-%d-%Y", "%d-%m-%Y", "%m.%d.%Y"),
    *("%d.%m.%y", "%m/%d/%y", "%d/%m/%y", "%m-%d-%y", "%d-%m-%y"),
    *("%d %b %Y", "%b %d %Y", "%Y %b %d", "%d %b %y", "%b %d %y"),
    # ISO 8601 has no am and pm.
    *("%Y-%m-%d", "%Y/%m/%d"),
)
# Formats of months.
_MONTHLY = ("%b %Y", "%Y %b", "%m/%Y")


def _in_words(date_format: str) -> str:
    words = re.sub("%[dmbYy]", lambda part: _WORDS[part[0]], date_format.removesuffix(_WITH_TIME))
    ends = {_WITH_TIME: " and time", "%b": ", months by their names", "%y": ", years of two digits"}
    return words + "".join(end for part, end in ends.items() if part in date_format)


# Formats of dates in the order in which they are tried, with their names.
FORMATS: Mapping[str, str] = MappingProxyType(
    {_ISO: "ISO 8601"}
    | {name: _in_words(name) for day in _DAYS for name in (day, day + _WITH_TIME)}
    | {name: _in_words(name) for name in _MONTHLY}
    | {_QUARTER: "quarter of a year"}
)
# Texts of digits and separators that people take for dates or times, in lower case.
_LOOKS_LIKE_DATE = re.compile(
    r"(?:[a-z]+,? )?(?:[0-9]{1,2}([-/.])[0-9]{1,2}\1(?:[0-9]{4}|[0-9]{2})|[0-9]{4}([-/.])[0-9]{1,2}\2[0-9]{1,2}"
    rf"|[0-9]{{1,2}}:[0-9]{{2}}(?::[0-9]{{2}})?|(?:[0-9]{{1,2}}[-/., ]+)?(?:{_MONTH_NAME})[-/., ]+"
    r"(?:[0-9]{1,2}[-/., ]+)?[0-9]{4})(?:[, t].*)?"
)
# Number of hours of a day.
_HOURS_PER_DAY = 24
# Number of hours before noon, and after it.
_HOURS_PER_HALF_DAY = 12
# Smallest range of a feature of a cycle, of at most 2: with less, new rows could be far outside it.
_LEAST_RANGE = 0.1


class _Cycle(NamedTuple):
    """A cycle of dates: from days since 1970 to its phase in [0, 1), and the days that dates must span to have it."""

    phase: Callable[[Float[np.ndarray, " n"]], Float[np.ndarray, " n"]]
    least_days: int


def find_format(column: pd.Series) -> str | None:
    """The first format that all values of a column of strings have, missing ones aside; None if there is none."""
    present = column.dropna()
    return next((name for name in (*FORMATS, TIME_OF_DAY) if len(present) and _fits(present, name)), None)


def _fits(present: pd.Series, date_format: str) -> bool:
    """Whether all values have a format."""
    # The first value rules out most formats, and most columns of words, without reading all of them.
    if date_format != _ISO and not re.match(_pattern(date_format), str(present.iloc[0]).lower()):
        return False
    return not any(parse_dates(part, date_format).isna().any() for part in (present[:1], present))


def nearest_format(column: pd.Series) -> str:
    """The first of the formats that most values of a column of strings have."""
    return min((*FORMATS, TIME_OF_DAY), key=lambda name: int(parse_dates(column, name).isna().sum()))


def look_like_dates(column: pd.Series) -> bool:
    """Whether all values of a column of strings, missing ones aside, look like dates or times to people."""
    return all(_LOOKS_LIKE_DATE.fullmatch(text.lower()) for text in column.dropna())


def describe_dates(column: pd.Series, date_format: str) -> str:
    """The kind of a column of a format and the unit of its numbers, in words.

    It says so where every day could be a month as well, as that is then decided by custom.
    """
    if date_format == TIME_OF_DAY:
        return f"{TIME_OF_DAY}, converted to hours"
    names = {"%d": "%m", "%m": "%d"}
    other = re.sub("%[dm]", lambda part: names[part[0]], date_format)
    is_unclear = other != date_format and other in FORMATS and _fits(column.dropna(), other)
    also = f", where {FORMATS[other]} would fit too" if is_unclear else ""
    return f"date ({FORMATS[date_format]}{also}), converted to days"


def parse_dates(column: pd.Series, date_format: str) -> pd.Series:
    """Days since 1970, or hours of the day for :data:`TIME_OF_DAY`; NaN for what is missing or not of the format."""
    return hours_of_day(column) if date_format == TIME_OF_DAY else days_since_1970(column, date_format)


def days_since_1970(column: pd.Series, date_format: str) -> pd.Series:
    """Days and parts of days since the beginning of 1970 (UTC), NaN for what is missing or not of the format.

    Months and quarters are their first days.
    """
    texts = column.astype(object)
    if date_format == _ISO:
        # pandas takes "now" and "today" as ISO 8601, and 1234-5, which is rather a number of something than a month.
        is_date = texts.astype(str).str.contains(r"\d") & ~texts.astype(str).str.fullmatch(r"\d{4}\D\d")
        texts = texts.where(is_date).str.replace(r"(?<=\d) ?(?:UTC|GMT)\Z", "Z", regex=True)
        times = pd.to_datetime(texts, format=_ISO, errors="coerce", utc=True)
        # In seconds, since nanoseconds end in the years 1677 and 2262.
        return (times - pd.Timestamp(0, unit="s", tz="UTC").as_unit("s")) / pd.Timedelta(days=1)
    parts = texts.str.lower().str.extract(_pattern(date_format))
    days = _days_of_parts(parts)
    if date_format.endswith(_WITH_TIME):
        # As some programs write midnight as a date without a time.
        days += _hours(parts).mask(parts["hour"].isna(), 0) / _HOURS_PER_DAY
    return pd.Series(days, name=column.name)


def _pattern(date_format: str) -> str:
    """A regular expression for texts in lower case, whose groups have the names of the parts of dates and times."""
    if date_format == TIME_OF_DAY:
        return rf"\A{_TIME}\Z"
    if date_format == _QUARTER:
        return r"\A(?=.*?(?P<year>[0-9]{4}))(?=.*?q(?P<quarter>[1-4]))(?:[0-9]{4}[-: ]?q[1-4]|q[1-4][-/ ]?[0-9]{4})\Z"
    date = date_format.removesuffix(_WITH_TIME)
    end = rf"(?:(?:, ?|\s+|t){_TIME})?\Z" if date != date_format else r"\Z"
    separator = "[-/ ]|[.,] ?" if "%b" in date else re.escape(date[2])
    parts = [_PARTS[part] for part in re.findall("%[a-zA-Z]", date)]
    # Versions such as 1.2.10 and numbers such as 1-2-10 are none: with a year of two digits, all have two.
    if "%y" in date and date[2] in ".-":
        parts = [part.replace("{1,2}", "{2}") for part in parts]
    return rf"\A{f'(?:{separator})'.join(parts)}{end}"


def _days_of_parts(parts: pd.DataFrame) -> pd.Series:
    """Days since 1970 from the parts of a format, NaN where one is missing or there is no such day."""
    years = parts["year"].astype(object)
    year: pd.Series[float] = _as_numbers(years)
    year += years.str.len().eq(2) * np.where(year < _FIRST_OF_1900, 2000, 1900)
    if "quarter" in parts:
        month = 3 * _as_numbers(parts["quarter"]) - 2
    elif "name" in parts:
        numbers = {name: number for number, name in enumerate(_MONTHS, start=1)}
        month = parts["name"].astype(object).str[:3].map(numbers).astype("float64")
    else:
        month = _as_numbers(parts["month"])
    day = _as_numbers(parts["day"]) if "day" in parts else pd.Series(1.0, parts.index)
    # In integers, with any month where there is none.
    months: np.ndarray = (12 * (year - 1970) + month - 1).fillna(0).to_numpy(np.int64)
    first, after = (
        each.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64) for each in (months, months + 1)
    )
    is_day = year.ge(1) & month.between(1, 12) & day.ge(1) & day.le(after - first)
    return (day + (first - 1)).where(is_day)


def _as_numbers(texts: pd.Series) -> pd.Series[float]:
    return pd.to_numeric(texts.astype(object)).astype("float64")


def hours_of_day(column: pd.Series) -> pd.Series:
    """Hours in [0, 24) of texts such as 14:30, 08:15:00 and 2:05 pm, NaN for what is missing or no time of day."""
    hours = _hours(column.astype(object).str.lower().str.extract(_pattern(TIME_OF_DAY)))
    return pd.Series(hours, name=column.name)


def _hours(parts: pd.DataFrame) -> pd.Series:
    hours, minutes, seconds = (_as_numbers(parts[part]) for part in ("hour", "minute", "second"))
    has_half = parts["half"].notna()
    is_valid = (hours < _HOURS_PER_DAY).where(~has_half, hours.between(1, _HOURS_PER_HALF_DAY))
    # 12 am is the beginning of a day, 12 pm its middle.
    of_half = hours % _HOURS_PER_HALF_DAY + _HOURS_PER_HALF_DAY * (parts["half"] == "p")
    hours = hours.mask(has_half, of_half) + (minutes + seconds.fillna(0) / 60) / 60
    return hours.where(is_valid)


def choose_cycle_features(numbers: pd.Series, date_format: str) -> list[str]:
    """Names of the features of cycles that a column of numbers of :func:`parse_dates` has.

    These are sin and cos of the phase of the year where dates span more than two years, of the day of the week where
    they span more than two weeks, and of the time of day where there are times. A feature that hardly varies is left
    out.
    """
    days = _as_days(numbers, date_format)
    span = days.max() - days.min()
    names = [f"{wave} of the {cycle}" for cycle in _CYCLES if span > _CYCLES[cycle].least_days for wave in _WAVES]
    features = cycle_features(numbers, date_format, names)
    return [name for name in names if features[name].max() - features[name].min() > _LEAST_RANGE]


def cycle_features(numbers: pd.Series, date_format: str, names: Iterable[str]) -> dict[str, pd.Series]:
    """The features of these names, which are some of :data:`CYCLE_FEATURES`; NaN where a number is missing."""
    days = _as_days(numbers, date_format)
    present = days.dropna()
    features = {}
    for name in names:
        wave, _, cycle = name.partition(" of the ")
        values = _WAVES[wave](2 * np.pi * _CYCLES[cycle].phase(present.to_numpy()))
        features[name] = pd.Series(values, present.index).reindex(days.index)
    return features


def describe_cycles(names: Iterable[str]) -> str:
    """Features of cycles in words, such as ', with sin and cos of the year, sin of the hour'; empty for none."""
    waves: dict[str, list[str]] = {}
    for name in names:
        wave, _, cycle = name.partition(" of the ")
        waves.setdefault(cycle, []).append(wave)
    told = [f"{' and '.join(found)} of the {cycle}" for cycle, found in waves.items()]
    return f", with {', '.join(told)}" if told else ""


def _as_days(numbers: pd.Series, date_format: str) -> pd.Series:
    return numbers / _HOURS_PER_DAY if date_format == TIME_OF_DAY else numbers


def _phase_of_year(days: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    dates = np.floor(days).astype(int).astype("datetime64[D]")
    years = dates.astype("datetime64[Y]")
    start, end = years.astype("datetime64[D]"), (years + np.timedelta64(1, "Y")).astype("datetime64[D]")
    return (dates - start).astype(float) / (end - start).astype(float)


def _phase_of_week(days: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    # The first day of 1970 was a Thursday; weeks begin on Monday.
    return (np.floor(days) + 3) % 7 / 7


def _phase_of_day(days: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return days % 1


_WAVES = {"sin": np.sin, "cos": np.cos}
_CYCLES = {
    "time of year": _Cycle(_phase_of_year, 2 * 365),
    "day of the week": _Cycle(_phase_of_week, 14),
    "hour": _Cycle(_phase_of_day, 0),
}
CYCLE_FEATURES = tuple(f"{wave} of the {cycle}" for cycle in _CYCLES for wave in _WAVES)
