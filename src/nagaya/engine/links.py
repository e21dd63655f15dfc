"""`--link CONTAINER[:ALIAS]` (pure): names that one container has for another."""

from __future__ import annotations

import re

from nagaya.errors import InvalidArgument

_ALIAS = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,252}")


def parse(text: str) -> tuple[str, str]:
    """(container, alias) of "c:a", "c", or "/c:/own/a" as inspect shows it. Raises InvalidArgument."""
    target, colon, alias = text.partition(":")
    target = target.removeprefix("/")
    alias = alias.rpartition("/")[2] if colon else target
    if not target or not _ALIAS.fullmatch(alias):
        raise InvalidArgument(f"bad format for links: {text}", subject="Links")
    return target, alias
