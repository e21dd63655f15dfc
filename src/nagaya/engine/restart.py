"""Restart policies: shall a container that ended be started again, and after how long (pure).

`docker run --restart`: the delay begins at 100 ms and doubles up to a minute; a run of ten seconds
or more resets it.
"""

from __future__ import annotations

from nagaya.engine.model import Container

_FIRST = 0.1
_LONGEST = 60.0
_LONG_RUN_NS = 10 * 1_000_000_000


def after_exit(container: Container, previous_delay: float) -> float | None:
    """Seconds to wait before the next start, None for never. `restart_count` is the number of
    restarts so far."""
    policy = container.config.restart
    if container.has_been_manually_stopped:
        return None
    match policy.name:
        case "always" | "unless-stopped":
            pass
        case "on-failure":
            if container.exit_code == 0:
                return None
            if policy.maximum_retry_count and container.restart_count >= policy.maximum_retry_count:
                return None
        case _:
            return None
    if previous_delay <= 0 or container.finished - container.started >= _LONG_RUN_NS:
        return _FIRST
    return min(previous_delay * 2, _LONGEST)


def at_daemon_start(container: Container, *, was_up: bool) -> bool:
    """Shall a container that does not run be started when the daemon comes up?

    was_up: the ledger says it ran, or was to be restarted, when the daemon last lived.
    """
    match container.config.restart.name:
        case "always":
            return container.state != "created"
        case "unless-stopped":
            return container.state != "created" and not container.has_been_manually_stopped
        case "on-failure":
            most = container.config.restart.maximum_retry_count
            left = not most or container.restart_count < most
            failed = container.exit_code != 0 and not container.has_been_manually_stopped
            return was_up and failed and left
        case _:
            return False
