"""Paths to handlers.

A pattern is a path with variables: `/containers/{id}/json`; `{name:path}` may span slashes (image
names). Patterns are tried in the order given; the first segment picks the list.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, NamedTuple, TypeVar
from urllib.parse import unquote

from nagaya.api.http.messages import Answer, Request

Context = TypeVar("Context")

_VARIABLE = re.compile(r"\{(\w+)(:path)?\}")


class Route(NamedTuple, Generic[Context]):
    """One method and path. `cancel`: the handler dies with its client; by default only GET and HEAD do."""

    method: str
    pattern: str
    handler: Callable[[Context, Request], Awaitable[Answer]]
    cancel: bool = False


class Router(Generic[Context]):
    """All routes of an application."""

    def __init__(self, routes: Iterable[Route[Context]]) -> None:
        self._table: dict[tuple[str, str], list[tuple[re.Pattern[str], Route[Context]]]] = {}
        for route in routes:
            key = (route.method, _first_segment(route.pattern))
            self._table.setdefault(key, []).append((_compile(route.pattern), route))

    def find(self, method: str, path: str) -> tuple[Route[Context], dict[str, str]] | None:
        """The route for a path without its version prefix, and its variables; None: page not found."""
        for pattern, route in self._table.get((method, _first_segment(path)), ()):
            match = pattern.fullmatch(path)
            if match is not None:
                return route, {key: unquote(value) for key, value in match.groupdict().items()}
        return None


def _first_segment(path: str) -> str:
    return path.split("/", 2)[1] if path.startswith("/") else ""


def _compile(pattern: str) -> re.Pattern[str]:
    parts: list[str] = []
    end = 0
    for match in _VARIABLE.finditer(pattern):
        parts.append(re.escape(pattern[end : match.start()]))
        parts.append(f"(?P<{match[1]}>{'.+' if match[2] else '[^/]+'})")
        end = match.end()
    parts.append(re.escape(pattern[end:]))
    return re.compile("".join(parts))
