"""`kill`: send a signal to a container."""

from __future__ import annotations

from nagaya.errors import InvalidArgument
from nagaya.linux.pids import signal_number
from nagaya.runtime import lifecycle
from nagaya.runtime.arguments import FLAG, Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.runtime.command import Settings

USAGE = "[command options] <container-id> [signal]"
ARITY = (1, 2)
OPTIONS = [Option("all a", FLAG, "send the specified signal to all processes inside the container")]


def main(settings: Settings, options: dict[str, Any], positional: list[str]) -> int:
    """0 when it was sent."""
    lifecycle.kill(settings.root, positional[0], number(positional), all=options["all"])
    return 0


def number(positional: list[str]) -> int:
    """The signal that the arguments name, SIGTERM by default. Raises InvalidArgument."""
    text = positional[1] if len(positional) > 1 else "SIGTERM"
    found = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else signal_number(text)
    if not found and text != "0":
        raise InvalidArgument(f"unknown signal {text!r}".replace("'", '"'), subject="signal")
    return found
