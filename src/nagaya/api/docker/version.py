"""Which versions of the Docker Engine API are spoken."""

from __future__ import annotations

API_VERSION = "1.51"
MIN_API_VERSION = "1.24"


def parse_version(text: str) -> tuple[int, int]:
    """ "1.51" -> (1, 51)."""
    major, _, minor = text.partition(".")
    return int(major), int(minor)
