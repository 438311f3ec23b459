"""Columns of dates, as numbers of days."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import pandas as pd

# Formats in the order in which they are tried, with their names; pandas' own name for ISO 8601.
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


def find_format(column: pd.Series) -> str | None:
    """The first format that all values of a column of strings have, missing ones aside; None if there is none."""
    present = column.dropna()
    for date_format in FORMATS if len(present) else ():
        # The first value rules out most formats, and most columns of words, without reading all of them.
        if not any(days_since_1970(part, date_format).isna().any() for part in (present[:1], present)):
            return date_format
    return None


def days_since_1970(column: pd.Series, date_format: str) -> pd.Series:
    """Days and parts of days since the beginning of 1970 (UTC), NaN for what is missing or not of the format."""
    # pandas takes "now" and "today" as ISO 8601.
    texts = column.astype(object).where(column.astype(str).str.contains(r"\d"))
    times = pd.to_datetime(texts, format=date_format, errors="coerce", utc=True)
    # In seconds, since nanoseconds end in the years 1677 and 2262.
    return (times - pd.Timestamp(0, unit="s", tz="UTC").as_unit("s")) / pd.Timedelta(days=1)
