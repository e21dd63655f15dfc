"""`run`: create, start, wait, delete."""

from __future__ import annotations

from nagaya.errors import NagayaError
from nagaya.runtime import container
from nagaya.runtime.arguments import FLAG, Option
from nagaya.runtime.trace import Trace
from nagaya.runtime.verbs import launch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.runtime.command import Settings

USAGE = "[command options] <container-id>"
ARITY = (1, 1)
OPTIONS = [
    *launch.COMMON,
    Option("detach d", FLAG, "detach from the container's process"),
    Option("keep", FLAG, "do not delete the container after it exits"),
    Option("no-subreaper", FLAG, "disable the use of the subreaper used to reap reparented processes"),
]


def main(settings: Settings, options: dict[str, Any], positional: list[str]) -> int:
    """Exit code of the container's process; 0 when detached."""
    identifier = positional[0]
    bundle, spec = launch.bundle_of(options)
    terminal = bool((spec.get("process") or {}).get("terminal"))
    detached: bool = options["detach"]
    launch.check_console(terminal, options, detached)
    keywords = launch.arguments_for(settings, options, spec)
    trace = Trace()
    front = None
    if not detached:
        if not options["no-subreaper"]:
            launch.become_subreaper()
        front = launch.Foreground()
    with launch.Telling(settings, trace):
        launched = container.run(
            settings.root, identifier, bundle, spec, trace=trace, relayed=not detached, **keywords
        )
    try:
        launch.hand_out(options, launched, detached=detached)
    except NagayaError:
        from nagaya.runtime import lifecycle

        lifecycle.delete(settings.root, identifier, force=True)
        raise
    if front is None:
        return 0
    from nagaya.runtime import lifecycle

    code = front.wait(launched)
    if not options["keep"]:
        for text in lifecycle.delete(settings.root, identifier, force=True):
            settings.log.message("warning", text)
    return code
