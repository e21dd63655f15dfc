"""`create`: make a container that waits for `start`."""

from __future__ import annotations

from nagaya.errors import NagayaError
from nagaya.runtime import container
from nagaya.runtime.trace import Trace
from nagaya.runtime.verbs import launch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.runtime.command import Settings

USAGE = "[command options] <container-id>"
ARITY = (1, 1)
OPTIONS = launch.COMMON


def main(settings: Settings, options: dict[str, Any], positional: list[str]) -> int:
    """0 when the container is there."""
    bundle, spec = launch.bundle_of(options)
    launch.check_console(bool((spec.get("process") or {}).get("terminal")), options, True)
    keywords = launch.arguments_for(settings, options, spec)
    trace = Trace()
    with launch.Telling(settings, trace):
        launched = container.create(settings.root, positional[0], bundle, spec, trace=trace, **keywords)
    try:
        launch.hand_out(options, launched, detached=True)
    except NagayaError:
        from nagaya.runtime import lifecycle

        lifecycle.delete(settings.root, positional[0], force=True)
        raise
    return 0
