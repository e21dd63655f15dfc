"""`list`: the containers below a root, as a table or JSON."""

from __future__ import annotations

from nagaya.errors import InvalidArgument, NotFound
from nagaya.linux import os
from nagaya.linux.json import dumps
from nagaya.runtime import lifecycle
from nagaya.runtime.arguments import FLAG, TEXT, Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.runtime.command import Settings

USAGE = "[command options]"
ARITY = (0, 0)
OPTIONS = [
    Option("format f", TEXT, "select one of: table or json", "table"),
    Option("quiet q", FLAG, "display only container IDs"),
]


def main(settings: Settings, options: dict[str, Any], _positional: list[str]) -> int:
    """Print them."""
    if settings.root_given and not os.isdir(settings.root):
        raise NotFound(f"open {settings.root}: no such file or directory", subject="--root")
    states = lifecycle.list_states(settings.root)
    for document in states:
        document["owner"] = _owner(f"{settings.root}/{document['id']}")
    if options["quiet"]:
        text = "".join(s["id"] + "\n" for s in states)
    elif options["format"] == "table":
        rows: list[tuple[str, ...]] = [("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")]
        rows += [(s["id"], str(s["pid"]), s["status"], s["bundle"], s["created"], s["owner"]) for s in states]
        text = table(rows)
    elif options["format"] == "json":
        for document in states:
            if not document["annotations"]:
                del document["annotations"]
        text = dumps(states or None)
    else:
        raise InvalidArgument("invalid format option", subject="--format")
    os.write(1, text.encode())
    return 0


def _owner(path: str) -> str:
    """The user that the state belongs to: without the C library's lookup, so but root's by number."""
    try:
        uid = os.stat(path).st_uid
    except FileNotFoundError:
        return ""
    return "root" if uid == 0 else f"#{uid}"


def table(rows: list[tuple[str, ...]]) -> str:
    """Columns as wide as their widest cell, and at least 12, as Go's tabwriter of runc sets them."""
    widths = [max(12, *(len(row[i]) + 1 for row in rows)) for i in range(len(rows[0]))]
    return "".join(
        "".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() + "\n"
        for row in rows
    )
