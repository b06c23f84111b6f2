"""Parse dates and times as people write them."""

from __future__ import annotations

import datetime as dt
import re
from typing import Final

_NS: Final = 1_000_000_000
_SECONDS: Final = {"min": 60, "minute": 60, "h": 3600, "hour": 3600, "d": 86400, "day": 86400}
_UNITS: Final = {**_SECONDS, "w": 7 * 86400, "week": 7 * 86400}
_AGO: Final = r"([0-9]{1,6}) ?([a-z]+?)s? ago"
_NAMED: Final = r"(today|yesterday)(?:[ T](.+))?"


def parse_date(text: str) -> int | None:
    """Return the end of a date or time in ns since 1970, or None if `text` is neither.

    Accepted are ISO 8601, with `T` or a space before the time, which may end with `Z`, `UTC` or an offset;
    `today` and `yesterday`, optionally with a time; `3 days ago` and `12h ago` (minutes, hours, days, weeks).
    Times are local unless a zone is given. A day means its last nanosecond, and so does a minute or second.
    """
    now = dt.datetime.now().astimezone()
    if (ago := re.fullmatch(_AGO, text)) is not None:
        seconds = _UNITS.get(ago[2])
        return None if seconds is None else _ns(now - dt.timedelta(seconds=int(ago[1]) * seconds))
    if (named := re.fullmatch(_NAMED, text)) is not None:
        day = now.date() - dt.timedelta(days=named[1] == "yesterday")
        text = f"{day.isoformat()} {named[2]}" if named[2] else day.isoformat()
    # fromisoformat requires two digits for the hour, and no space before the zone.
    text = re.sub(r"([ T])(\d:)", r"\g<1>0\2", text)
    text = re.sub(r"(?<=\d) ?(?:UTC|GMT)$", "Z", text)
    text = re.sub(r"(?<=\d) (?=[+-]\d\d:?\d\d$|Z$)", "", text)
    return _of_iso(text)


def _of_iso(text: str) -> int | None:
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        return None
    span = dt.timedelta(seconds=1)
    if re.fullmatch(r"\d{4}-?\d\d-?\d\d|\d{4}-?W\d\d-?\d", text):
        span = dt.timedelta(days=1)
    elif re.fullmatch(r".*[T ]\d\d:?\d\d(Z|[+-]\d\d:?\d\d)?", text):
        span = dt.timedelta(minutes=1)
    try:
        end = _ns(moment + span)
    except OverflowError:  # beyond the range of the calendar
        return None
    return None if end is None else end - 1


def _ns(moment: dt.datetime) -> int | None:
    """Return nanoseconds since 1970, or None beyond the range of the calendar."""
    try:
        return int(moment.astimezone().timestamp() * _NS)
    except (OverflowError, ValueError):
        return None
