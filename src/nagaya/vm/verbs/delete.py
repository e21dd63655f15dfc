"""`delete`: remove what is left of a container."""

from __future__ import annotations

from nagaya.runtime.verbs import delete as runtime_delete
from nagaya.vm import launching

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.runtime.command import Settings

USAGE, ARITY, OPTIONS = runtime_delete.USAGE, runtime_delete.ARITY, runtime_delete.OPTIONS


def main(settings: Settings, options: dict[str, Any], positional: list[str]) -> int:
    """0 when nothing is left."""
    for text in launching.remove(settings.root, positional[0], force=options["force"]):
        settings.log.message("warning", text)
    return 0
