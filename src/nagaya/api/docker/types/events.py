"""Events as GET /events sends them, and its filters."""

from __future__ import annotations

from typing import Any

from nagaya.api.docker.types.filters import Filters
from nagaya.engine.model import Event

EVENT_FILTERS = frozenset(
    "config container daemon event image label network node plugin scope secret service type volume".split()
)


def event_document(event: Event) -> dict[str, Any]:
    """One event. `status`, `id` and `from` are the old spelling, kept for container and image events."""
    document: dict[str, Any] = {}
    if event.type in ("container", "image"):
        document = {"status": event.action, "id": event.id}
        image = event.attributes.get("image") if event.type == "container" else None
        if image:
            document["from"] = image
    document |= {
        "Type": event.type,
        "Action": event.action,
        "Actor": {"ID": event.id, "Attributes": dict(event.attributes)},
        "scope": "local",
        "time": event.time_ns // 1_000_000_000,
        "timeNano": event.time_ns,
    }
    return document


def event_matches(event: Event, filters: Filters) -> bool:
    """All filters, as moby's events.Filter: names match by id, name or a prefix of either."""
    return (
        filters.matches_any(
            "event", lambda value: event.action == value or event.action.startswith(value + ": ")
        )
        and filters.matches_any("type", lambda value: event.type == value)
        and filters.matches_any("scope", lambda value: value == "local")
        and filters.matches_labels(event.attributes)
        and all(
            not filters.values(kind)
            or (event.type == kind and filters.matches_any(kind, lambda value: _names(event, value)))
            for kind in ("container", "volume", "network", "plugin", "service", "node", "secret", "config")
        )
        and filters.matches_any("daemon", lambda value: _names(event, value))
        and filters.matches_any("image", lambda value: _image(event, value))
    )


def _names(event: Event, value: str) -> bool:
    name = event.attributes.get("name", "")
    return bool(value) and (event.id.startswith(value) or name.startswith(value.removeprefix("/")))


def _image(event: Event, value: str) -> bool:
    key = "name" if event.type == "image" else "image"
    return event.type in ("container", "image") and value in (
        event.id,
        event.attributes.get(key),
        event.attributes.get(key, "").rsplit(":", 1)[0],
    )
