"""An instruction's `--flags` by type, and the durations in them (moby/buildkit's instructions/bflag.go)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from nagaya.build.language.ast import DockerfileError

_DURATION = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_UNITS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 6 * 10**10,
    "h": 36 * 10**11,
}
_SHORTEST = 10**6
_LONGEST = 100  # characters


class Flags(msgspec.Struct, frozen=True):
    """What was given, by name without dashes."""

    values: Mapping[str, list[str]]

    def text(self, name: str, otherwise: str = "") -> str:
        """The value of a flag of one value."""
        return self.values[name][0] if name in self.values else otherwise

    def texts(self, name: str) -> tuple[str, ...]:
        """The values of a flag that can be repeated."""
        return tuple(self.values.get(name, ()))

    def truth(self, name: str) -> bool:
        """Was it given, and not as false?"""
        return self.text(name) == "true"


def parse(given: Sequence[str], known: Mapping[str, type]) -> Flags:
    """Check the flags against those known: bool, str (once) or list (repeated). Raises DockerfileError."""
    found: dict[str, list[str]] = {}
    for flag in given:
        full, equals, value = flag.partition("=")
        name = full[2:]
        kind = known.get(name)
        if kind is None:
            raise DockerfileError(f"unknown flag: {full[:80]}")
        if name in found and kind is not list:
            raise DockerfileError(f"duplicate flag specified: {full}")
        if not equals and kind is not bool:
            raise DockerfileError(f"missing a value on flag: {full}")
        if kind is bool:
            value = _truth(full, bool(equals), value)
        found.setdefault(name, []).append(value)
    return Flags(found)


def _truth(flag: str, assigned: bool, value: str) -> str:
    if assigned and not value:
        raise DockerfileError(f"missing a value on flag: {flag}")
    if value.lower() not in ("", "true", "false"):
        raise DockerfileError(f"expecting boolean value for flag {flag}, not: {value[:80]}")
    return value.lower() or "true"


def interval(given: Flags, name: str) -> int:
    """A duration in nanoseconds, 0 when not given. Raises DockerfileError for less than a millisecond."""
    text = given.text(name)
    if not text:
        return 0
    found = duration(text)
    if found and found < _SHORTEST:
        raise DockerfileError(f'Interval "{name}" cannot be less than 1ms')
    return found


def retries(given: Flags) -> int:
    """HEALTHCHECK --retries, 0 when not given. Raises DockerfileError."""
    text = given.text("retries")
    if not text:
        return 0
    if not re.fullmatch(r"[+-]?\d{1,10}", text, re.ASCII) or abs(int(text)) >= 1 << 31:
        raise DockerfileError(f'strconv.ParseInt: parsing "{text[:40]}": invalid syntax')
    if int(text) < 0:
        raise DockerfileError(f"--retries cannot be negative ({int(text)})")
    return int(text)


def duration(text: str) -> int:
    """Nanoseconds of Go's notation, "1m30s" or "-5s". Raises DockerfileError."""
    bare = text.lstrip("+-") if text[:2] not in ("++", "--", "+-", "-+") else ""
    sign = -1 if text.startswith("-") else 1
    if bare == "0":
        return 0
    parts = _DURATION.findall(bare) if len(bare) <= _LONGEST else []
    if not bare or "".join(number + unit for number, unit in parts) != bare:
        if re.fullmatch(r"[\d.]+", bare, re.ASCII):
            raise DockerfileError(f'time: missing unit in duration "{text[:40]}"')
        raise DockerfileError(f'time: invalid duration "{text[:40]}"')
    total = 0
    for number, unit in parts:
        whole, _, part = number.partition(".")
        total += int(whole or 0) * _UNITS[unit] + int(part[:18] or 0) * _UNITS[unit] // 10 ** len(part[:18])
    if total >= 1 << 63:
        raise DockerfileError(f'time: invalid duration "{text[:40]}"')
    return sign * total
