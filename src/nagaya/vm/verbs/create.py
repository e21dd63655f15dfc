"""`create`: make a container that waits for `start`, in a microVM."""

from __future__ import annotations

from nagaya.errors import NagayaError
from nagaya.runtime.verbs import create as runtime_create
from nagaya.runtime.verbs import launch
from nagaya.vm import launching

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.runtime.command import Settings

USAGE, ARITY, OPTIONS = runtime_create.USAGE, runtime_create.ARITY, runtime_create.OPTIONS


def main(settings: Settings, options: dict[str, Any], positional: list[str]) -> int:
    """0 when the container is there."""
    bundle, spec = launch.bundle_of(options)
    launch.check_console(bool((spec.get("process") or {}).get("terminal")), options, True)
    keywords = {**launch.arguments_for(settings, options, spec), "values": settings.values}
    launched = launching.make(settings.root, positional[0], bundle, spec, waits=True, **keywords)
    try:
        launch.hand_out(options, launched, detached=True)
    except NagayaError:
        launching.remove(settings.root, positional[0], force=True)
        raise
    return 0
