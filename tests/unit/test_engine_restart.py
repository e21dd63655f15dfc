"""Restart policies: whether, and after how long."""

from __future__ import annotations

import pytest

from nagaya.engine.model import Container, ContainerConfig, RestartPolicy, State
from nagaya.engine.restart import after_exit, at_daemon_start


def ended(policy: str, *, code: int = 1, stopped: bool = False, count: int = 0, most: int = 0) -> Container:
    restart = RestartPolicy(policy, most)  # type: ignore[arg-type]
    return Container(
        "id",
        "name",
        ContainerConfig("i", restart=restart),
        state="exited",
        exit_code=code,
        restart_count=count,
        has_been_manually_stopped=stopped,
        started=1_000_000_000,
        finished=2_000_000_000,
    )


@pytest.mark.parametrize(
    ("container", "again"),
    [
        (ended("no"), False),
        (ended("always", code=0), True),
        (ended("always", stopped=True), False),
        (ended("unless-stopped", code=0), True),
        (ended("unless-stopped", stopped=True), False),
        (ended("on-failure", code=0), False),
        (ended("on-failure", code=1), True),
        (ended("on-failure", count=2, most=3), True),
        (ended("on-failure", count=3, most=3), False),
        (ended("on-failure", stopped=True), False),
    ],
)
def test_after_an_exit(container: Container, again: bool) -> None:
    assert (after_exit(container, 0.0) is not None) is again


def test_the_delay_doubles_up_to_a_minute_and_a_long_run_resets_it() -> None:
    container = ended("always")
    delay, seen = 0.0, []
    for _ in range(12):
        found = after_exit(container, delay)
        assert found is not None
        delay = found
        seen.append(delay)
    assert seen[:4] == [0.1, 0.2, 0.4, 0.8]
    assert seen[-2:] == [60.0, 60.0]
    container.finished = container.started + 10_000_000_000
    assert after_exit(container, 60.0) == 0.1


@pytest.mark.parametrize(
    ("policy", "state", "stopped", "was_up", "code", "again"),
    [
        ("no", "exited", False, True, 1, False),
        ("always", "exited", True, False, 0, True),
        ("always", "created", False, False, 0, False),
        ("unless-stopped", "exited", False, True, 0, True),
        ("unless-stopped", "exited", True, False, 0, False),
        ("unless-stopped", "created", False, False, 0, False),
        ("on-failure", "exited", False, True, 1, True),
        ("on-failure", "exited", False, True, 0, False),
        ("on-failure", "exited", False, False, 1, False),
        ("on-failure", "exited", True, True, 1, False),
    ],
)
def test_when_the_daemon_starts(
    policy: str, state: State, stopped: bool, was_up: bool, code: int, again: bool
) -> None:
    container = ended(policy, code=code, stopped=stopped)
    container.state = state
    assert at_daemon_start(container, was_up=was_up) is again
