"""`kill`: send a signal to a container."""

from __future__ import annotations

from nagaya.runtime import lifecycle
from nagaya.runtime import state as store
from nagaya.runtime.verbs import kill as runtime_kill
from nagaya.vm import control, launching

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.runtime.command import Settings

USAGE, ARITY, OPTIONS = runtime_kill.USAGE, runtime_kill.ARITY, runtime_kill.OPTIONS


def main(settings: Settings, options: dict[str, Any], positional: list[str]) -> int:
    """0 when it was sent."""
    number = runtime_kill.number(positional)
    record = store.load(settings.root, positional[0])
    if options["all"] and number != 9 and store.alive(record):
        directory = launching.directory_of(record)
        control.ask(directory, op="kill", container=positional[0], number=number, all=True)
    else:
        lifecycle.kill(settings.root, positional[0], number)
    return 0
