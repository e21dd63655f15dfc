"""`events`: what a container uses, as the guest's kernel counts it, one JSON object a line."""

from __future__ import annotations

from nagaya.runtime.verbs import events as runtime_events
from nagaya.vm import usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.runtime.command import Settings

USAGE, ARITY, OPTIONS = runtime_events.USAGE, runtime_events.ARITY, runtime_events.OPTIONS


def main(settings: Settings, options: dict[str, Any], positional: list[str]) -> int:
    """Print until the container stops; an "oom" line when the guest's kernel killed a process of it."""
    return runtime_events.follow(settings, options, positional[0], usage.stats, usage.oom_kills)
