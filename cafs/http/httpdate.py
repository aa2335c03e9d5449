"""Dates of HTTP, read as leniently and written as nginx does (ngx_parse_http_time).

Pure.  Whole seconds since 1970, no time zone but GMT.
"""

from __future__ import annotations

import calendar
import re
from email.utils import formatdate

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_NUMBERS = {month: number for number, month in enumerate(_MONTHS, 1)}
_CLOCK = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)"
_FORMS = tuple(
    re.compile(form, re.ASCII)
    for form in (
        # Sun, 06 Nov 1994 08:49:37 GMT
        rf"[^,]*, *(?P<day>\d\d) (?P<month>\w{{3}}) (?P<year>\d{{4}}) +{_CLOCK}.*",
        # Sunday, 06-Nov-94 08:49:37 GMT
        rf"[^,]*, *(?P<day>\d\d)-(?P<month>\w{{3}})-(?P<year>\d\d) +{_CLOCK}.*",
        # Sun Nov  6 08:49:37 1994
        rf"\w+ (?P<month>\w{{3}}) (?P<day>[ \d]\d) {_CLOCK} (?P<year>\d{{4}}).*",
    )
)


def parse(text: str) -> int | None:
    """Seconds since 1970, or None for what is no date."""
    for form in _FORMS:
        found = form.fullmatch(text.strip(" "))
        if found is not None:
            break
    else:
        return None
    day, month = int(found["day"]), _NUMBERS.get(found["month"])
    hour, minute, second = int(found["hour"]), int(found["minute"]), int(found["second"])
    year = int(found["year"])
    if len(found["year"]) == 2:
        year += 2000 if year < 70 else 1900
    if month is None or hour > 23 or minute > 59 or second > 59 or year < 1970:
        return None
    if not 1 <= day <= calendar.monthrange(year, month)[1]:
        return None
    return calendar.timegm((year, month, day, hour, minute, second))


def render(seconds: int) -> str:
    """The date as ``Sun, 06 Nov 1994 08:49:37 GMT``."""
    return formatdate(seconds, usegmt=True)
