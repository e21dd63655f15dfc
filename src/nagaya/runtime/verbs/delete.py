"""`delete`: remove what is left of a container."""

from __future__ import annotations

from nagaya.runtime import lifecycle
from nagaya.runtime.arguments import FLAG, Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.runtime.command import Settings

USAGE = "[command options] <container-id>"
ARITY = (1, 1)
OPTIONS = [Option("force f", FLAG, "Forcibly deletes the container if it is still running (uses SIGKILL)")]


def main(settings: Settings, options: dict[str, Any], positional: list[str]) -> int:
    """0 when nothing is left."""
    for text in lifecycle.delete(settings.root, positional[0], force=options["force"]):
        settings.log.message("warning", text)
    return 0
