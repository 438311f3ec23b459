"""Columns of dates and of times of day, as numbers, and the phases of their cycles: year, week and day."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

# Formats of dates in the order in which they are tried, with their names; pandas' own name for ISO 8601.
FORMATS: Mapping[str, str] = MappingProxyType(
    {
        "ISO8601": "ISO 8601",
        "%d.%m.%Y": "day.month.year",
        "%d.%m.%Y %H:%M": "day.month.year hours:minutes",
        "%m/%d/%Y": "month/day/year",
        "%d/%m/%Y": "day/month/year",
        "%m/%d/%Y %H:%M": "month/day/year hours:minutes",
        "%d/%m/%Y %H:%M": "day/month/year hours:minutes",
    }
)
# The format of times of day without a date, each with or without seconds, of 24 hours or of 12 with am or pm.
TIME_OF_DAY = "time of day"
# Number of hours of a day.
_HOURS_PER_DAY = 24
# Number of hours before noon, and after it.
_HOURS_PER_HALF_DAY = 12
# A time of day in this format.
_TIME = (
    r"\A(?P<hour>[0-9]{1,2}):(?P<minute>[0-5][0-9])(?::(?P<second>[0-5][0-9](?:\.[0-9]+)?))?"
    r"(?: ?(?P<half>[ap])\.?m\.?)?\Z"
)
# Smallest range of a feature of a cycle, of at most 2: with less, new rows could be far outside it.
_LEAST_RANGE = 0.1


class _Cycle(NamedTuple):
    """A cycle of dates: from days since 1970 to its phase in [0, 1), and the days that dates must span to have it."""

    phase: Callable[[Float[np.ndarray, " n"]], Float[np.ndarray, " n"]]
    least_days: int


def find_format(column: pd.Series) -> str | None:
    """The first format that all values of a column of strings have, missing ones aside; None if there is none."""
    present = column.dropna()
    for date_format in (*FORMATS, TIME_OF_DAY) if len(present) else ():
        # The first value rules out most formats, and most columns of words, without reading all of them.
        if not any(parse_dates(part, date_format).isna().any() for part in (present[:1], present)):
            return date_format
    return None


def describe_dates(date_format: str) -> str:
    """The kind of a column of a format and the unit of its numbers, in words."""
    if date_format == TIME_OF_DAY:
        return f"{TIME_OF_DAY}, converted to hours"
    return f"date ({FORMATS[date_format]}), converted to days"


def parse_dates(column: pd.Series, date_format: str) -> pd.Series:
    """Days since 1970, or hours of the day for :data:`TIME_OF_DAY`; NaN for what is missing or not of the format."""
    return hours_of_day(column) if date_format == TIME_OF_DAY else days_since_1970(column, date_format)


def days_since_1970(column: pd.Series, date_format: str) -> pd.Series:
    """Days and parts of days since the beginning of 1970 (UTC), NaN for what is missing or not of the format."""
    # pandas takes "now" and "today" as ISO 8601.
    texts = column.astype(object).where(column.astype(str).str.contains(r"\d"))
    times = pd.to_datetime(texts, format=date_format, errors="coerce", utc=True)
    # In seconds, since nanoseconds end in the years 1677 and 2262.
    return (times - pd.Timestamp(0, unit="s", tz="UTC").as_unit("s")) / pd.Timedelta(days=1)


def hours_of_day(column: pd.Series) -> pd.Series:
    """Hours in [0, 24) of texts such as 14:30, 08:15:00 and 2:05 pm, NaN for what is missing or no time of day."""
    parts = column.astype(object).str.lower().str.extract(_TIME)
    hours, minutes, seconds = (
        pd.to_numeric(parts[part].astype(object)).astype("float64") for part in ("hour", "minute", "second")
    )
    has_half = parts["half"].notna()
    is_valid = (hours < _HOURS_PER_DAY).where(~has_half, hours.between(1, _HOURS_PER_HALF_DAY))
    # 12 am is the beginning of a day, 12 pm its middle.
    of_half = hours % _HOURS_PER_HALF_DAY + _HOURS_PER_HALF_DAY * (parts["half"] == "p")
    hours = hours.mask(has_half, of_half) + (minutes + seconds.fillna(0) / 60) / 60
    return pd.Series(hours.where(is_valid), name=column.name)


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
