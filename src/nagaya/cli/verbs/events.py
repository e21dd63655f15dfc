"""`nagaya events`: what happens, as it happens."""

from __future__ import annotations

import time

from nagaya.cli import values
from nagaya.cli.flags import Flag
from nagaya.cli.output import filters
from nagaya.linux import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS]"
SUMMARY = "Show events of the daemon as they happen"
FLAGS = (
    Flag("filter", "Show those that match: type=container, event=die", short="f", kind="list"),
    Flag("format", "json, or a Go template", kind="text"),
    Flag("since", "From this time, or this long ago, on", kind="text"),
    Flag("until", "Up to this time", kind="text"),
)
ARGS = (0, 0)


def run(given: Given, client: Client) -> int:
    """Print one line an event until interrupted or until --until."""
    query = {
        "since": values.moment("since", given["since"]),
        "until": values.moment("until", given["until"]),
        "filters": filters(given["filter"]),
    }
    template = None
    if given["format"] not in ("", "json"):
        from nagaya.cli.template import Template

        template = Template(given["format"])
    for event in client.send("GET", "/events", query).objects():
        if template is not None:
            print(template.render(event), flush=True)
        elif given["format"] == "json":
            print(json.dumps(event), flush=True)
        else:
            print(line(event), flush=True)
    return 0


def line(event: dict[str, Any]) -> str:
    """ "TIME TYPE ACTION ID (key=value, ...)", the time as RFC 3339 with nanoseconds."""
    nanoseconds = event.get("timeNano") or event.get("time", 0) * 10**9
    local = time.localtime(nanoseconds // 10**9)
    zone = time.strftime("%z", local)
    when = time.strftime("%Y-%m-%dT%H:%M:%S", local) + f".{nanoseconds % 10**9:09d}{zone[:3]}:{zone[3:]}"
    actor = event.get("Actor") or {}
    attributes = actor.get("Attributes") or {}
    text = f"{when} {event.get('Type', '')} {event.get('Action', '')} {actor.get('ID', '')}"
    if attributes:
        text += " (" + ", ".join(f"{key}={attributes[key]}" for key in sorted(attributes)) + ")"
    return text
