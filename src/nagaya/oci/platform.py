"""Platforms: os/architecture/variant (OCI image-spec, image-index.md) and which of them a host runs.

The order of preference follows containerd's platforms package: the exact platform first, then
what the same processor also runs (older ARM variants, 386 on amd64).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import msgspec

from nagaya.errors import InvalidArgument

_MACHINES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
    "riscv64": ("riscv64", ""),
    "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""),
    "loongarch64": ("loong64", ""),
}
_ALIASES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "i386": ("386", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
}
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)


class Platform(msgspec.Struct, frozen=True):
    """A platform; variant "" when it has none."""

    os: str = ""
    architecture: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(p for p in (self.os, self.architecture, self.variant) if p)


def host() -> Platform:
    """The platform of the running kernel."""
    machine = os.uname().machine
    return Platform("linux", *_MACHINES.get(machine, (machine, "")))


def normalize(platform: Platform) -> Platform:
    """One spelling for one platform: aliases resolved, the implied variant written out."""
    architecture, variant = platform.architecture.lower(), platform.variant.lower()
    if architecture in _ALIASES:
        architecture, implied = _ALIASES[architecture]
        variant = variant or implied
    if architecture == "arm64" and variant in ("", "8", "v8"):
        variant = "v8"
    elif architecture == "arm":
        variant = {"": "v7", "5": "v5", "6": "v6", "7": "v7", "8": "v8"}.get(variant, variant)
    elif architecture == "amd64" and variant == "v1":
        variant = ""
    return Platform(platform.os.lower(), architecture, variant)


def parse(text: str) -> Platform:
    """ "linux/arm64/v8", "linux/amd64" or "arm64"; what is left out is the host's.

    Raises InvalidArgument.
    """
    parts = text.split("/")
    if not 1 <= len(parts) <= 3 or not all(_WORD.fullmatch(p) for p in parts):
        raise InvalidArgument(
            f'"{text[:200]}" is an invalid platform: want os[/architecture[/variant]]', subject=text[:200]
        )
    mine = host()
    if len(parts) == 1:
        if parts[0].lower() == "linux":
            return normalize(mine)
        known = {a for a, _ in _MACHINES.values()} | set(_ALIASES)
        if parts[0].lower() not in known:
            raise InvalidArgument(f'"{text}": unknown operating system or architecture', subject=text)
        return normalize(Platform("linux", parts[0]))
    return normalize(Platform(*parts))


def candidates(platform: Platform, *, strict: bool = False) -> list[Platform]:
    """What can stand in for the platform, best first. strict: the same architecture only."""
    wanted = normalize(platform)
    system, architecture, variant = wanted.os, wanted.architecture, wanted.variant
    found = [wanted]
    if architecture == "amd64":
        level = int(variant[1:]) if re.fullmatch(r"v[2-9]", variant) else 1
        found += [Platform(system, "amd64", f"v{n}") for n in range(level - 1, 1, -1)]
        if level > 1:
            found.append(Platform(system, "amd64"))
        if not strict:
            found.append(Platform(system, "386"))
    elif architecture == "arm64":
        if variant != "v8":
            found.append(Platform(system, "arm64", "v8"))
        if not strict:
            found += [Platform(system, "arm", f"v{n}") for n in (8, 7, 6, 5)]
    elif architecture == "arm" and re.fullmatch(r"v[5-9]", variant):
        found += [Platform(system, "arm", f"v{n}") for n in range(int(variant[1:]) - 1, 4, -1)]
    return found


def choose(offered: Sequence[Platform | None], wanted: Platform, *, strict: bool = False) -> int:
    """The index of the best offered platform, -1 when none fits.

    An entry without a platform (None) is taken only when nothing else fits: its configuration
    then has to tell.
    """
    known = [normalize(p) if p is not None else None for p in offered]
    for candidate in candidates(wanted, strict=strict):
        if candidate in known:
            return known.index(candidate)
    return known.index(None) if None in known else -1


def fits(actual: Platform, wanted: Platform, *, strict: bool = False) -> bool:
    """May an image of platform `actual` stand in for `wanted`?"""
    return normalize(actual) in candidates(wanted, strict=strict)
