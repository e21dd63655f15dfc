"""Signal names as Docker takes them: "KILL", "SIGKILL", "9", "RTMIN+3" (signal(7))."""

from __future__ import annotations

import signal

from nagaya.errors import InvalidArgument


def number(text: str) -> int:
    """The signal's number. Raises InvalidArgument ("invalid signal: x")."""
    if text.isascii() and text.isdigit():
        value = int(text[:4])
        if 0 < value < signal.NSIG:
            return value
        raise InvalidArgument(f"invalid signal: {text}", subject="signal")
    name = text.upper().removeprefix("SIG")
    base, plus, offset = name.partition("+")
    if plus and base == "RTMIN" and offset.isdecimal() and len(offset) < 3:
        value = signal.SIGRTMIN + int(offset)
        if value <= signal.SIGRTMAX:
            return value
    base, minus, offset = name.partition("-")
    if minus and base == "RTMAX" and offset.isdecimal() and len(offset) < 3:
        value = signal.SIGRTMAX - int(offset)
        if value >= signal.SIGRTMIN:
            return value
    try:
        return int(signal.Signals[f"SIG{name}"])
    except KeyError:
        raise InvalidArgument(f"invalid signal: {text}", subject="signal") from None
