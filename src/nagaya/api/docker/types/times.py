"""Times and durations in Docker's spellings."""

from __future__ import annotations

import re
import time
from datetime import datetime

from nagaya.errors import InvalidArgument

ZERO = "0001-01-01T00:00:00Z"
_STAMP = re.compile(r"(-?[0-9]{1,18})(?:\.([0-9]{1,18}))?")
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1, "us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9, "m": 60e9, "h": 3600e9}


def rfc3339_nano(ns: int) -> str:
    """Go's time.RFC3339Nano in UTC: trailing zeros of the fraction are dropped. 0: Go's zero time."""
    if ns <= 0:
        return ZERO
    seconds, fraction = divmod(ns, 1_000_000_000)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{text}.{fraction:09d}".rstrip("0").rstrip(".") + "Z"


def rfc3339_fixed(ns: int) -> str:
    """The stamp of `docker logs -t`: always nine digits."""
    seconds, fraction = divmod(ns, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{fraction:09d}Z"


def parse_timestamp(text: str, name: str, now_ns: int) -> int:
    """A since/until value: Unix seconds with a fraction (what the CLI sends), an RFC 3339 time, or a
    duration back from now ("10m"). "" and "0" are 0. Raises InvalidArgument."""
    if not text:
        return 0
    match = _STAMP.fullmatch(text)
    if match is not None:
        fraction = int(((match[2] or "") + "0" * 9)[:9])
        seconds = int(match[1])
        return seconds * 1_000_000_000 + (-fraction if match[1].startswith("-") else fraction)
    parts = _DURATION.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return now_ns - int(sum(float(number) * _UNITS[unit] for number, unit in parts))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidArgument(f'invalid value for "{name}": {text!r} is not a time') from None
    if moment.tzinfo is None:
        moment = moment.astimezone()
    return int(moment.timestamp()) * 1_000_000_000 + moment.microsecond * 1000


def human_duration(ns: int) -> str:
    """How long, as docker/go-units says it: "5 minutes", "About an hour"."""
    seconds = max(ns, 0) // 1_000_000_000
    if seconds < 1:
        return "Less than a second"
    if seconds == 1:
        return "1 second"
    if seconds < 60:
        return f"{seconds} seconds"
    minutes = seconds // 60
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    days = hours // 24
    for limit, per, unit in ((14, 1, "days"), (60, 7, "weeks"), (730, 30, "months")):
        if days < limit:
            return f"{days // per} {unit}"
    return f"{days // 365} years"
