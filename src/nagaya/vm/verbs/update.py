"""`update`: other limits for a running container, kept by the guest's kernel, and of processors by the
host's, too."""

from __future__ import annotations

from nagaya.runtime.verbs import update as runtime_update
from nagaya.vm import usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.runtime.command import Settings

USAGE, ARITY, OPTIONS = runtime_update.USAGE, runtime_update.ARITY, runtime_update.OPTIONS


def main(settings: Settings, options: dict[str, Any], positional: list[str]) -> int:
    """0 when all limits are set."""
    usage.update(settings.root, positional[0], runtime_update.resources_of(options))
    return 0
