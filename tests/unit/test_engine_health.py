"""What the outcomes of health checks mean, and when the next one comes."""

from __future__ import annotations

import pytest

from nagaya.engine.health import after, at_start, command, duration, pause
from nagaya.engine.merge import merge
from nagaya.engine.model import Container, ContainerConfig, Health, HealthCheck, Probe
from nagaya.oci.imageconfig import ContainerDefaults, Healthcheck

SECOND = 1_000_000_000
STARTED = 100 * SECOND


def probe(code: int, at: int = STARTED) -> Probe:
    return Probe(at, at + 1, code, "")


def test_retries_failures_in_a_row_make_it_unhealthy() -> None:
    wish, health = HealthCheck(retries=2), Health("healthy")
    seen = []
    for code in (1, 0, 1, 125, 1, 0):
        health = after(health, probe(code), wish, STARTED)
        seen.append((health.status, health.failing_streak))
    assert seen == [
        ("healthy", 1),
        ("healthy", 0),
        ("healthy", 1),
        ("unhealthy", 2),
        ("unhealthy", 3),
        ("healthy", 0),
    ]
    assert [p.exit_code for p in health.log] == [0, 1, 125, 1, 0]


def test_failures_while_it_starts_up_do_not_count() -> None:
    wish = HealthCheck(retries=1, start_period=10 * SECOND)
    early, late = STARTED + 9 * SECOND, STARTED + 10 * SECOND
    assert after(Health(), probe(1, early), wish, STARTED).status == "starting"
    assert after(Health(), probe(1, late), wish, STARTED).status == "unhealthy"
    well = after(Health(), probe(0, early), wish, STARTED)
    assert well.status == "healthy"
    assert after(well, probe(1, early), wish, STARTED).status == "unhealthy"


def test_the_interval() -> None:
    wish = HealthCheck(interval=2 * SECOND, start_period=10 * SECOND)
    assert pause(Health(), wish, STARTED, STARTED + SECOND) == 5
    assert pause(Health(), wish, STARTED, STARTED + 11 * SECOND) == 2
    assert pause(Health("healthy"), wish, STARTED, STARTED + SECOND) == 2
    assert pause(Health("healthy"), HealthCheck(), STARTED, STARTED) == 30


@pytest.mark.parametrize(
    ("test", "words"),
    [
        (("CMD", "a", "b c"), ("a", "b c")),
        (("CMD-SHELL", "a b"), ("/bin/sh", "-c", "a b")),
        (("NONE",), ()),
        (("CMD",), ()),
        (("SOMETHING", "x"), ()),
        ((), ()),
    ],
)
def test_what_is_run(test: tuple[str, ...], words: tuple[str, ...]) -> None:
    assert command(HealthCheck(test)) == words


def test_a_start_forgets_all_but_the_log() -> None:
    config = ContainerConfig("i", health=HealthCheck(("CMD", "x")))
    former = Health("unhealthy", 4, (probe(1),))
    assert at_start(Container("id", "n", config, health=former)) == Health("starting", 0, (probe(1),))
    assert at_start(Container("id", "n", ContainerConfig("i"))) is None


def test_what_the_user_leaves_out_is_the_image_s() -> None:
    image = ContainerDefaults(cmd=["x"], healthcheck=Healthcheck(["CMD", "probe"], interval=5, retries=7))
    assert merge(ContainerConfig("i"), image).health == HealthCheck(("CMD", "probe"), 5, retries=7)
    own = ContainerConfig("i", health=HealthCheck(timeout=9, retries=1))
    assert merge(own, image).health == HealthCheck(("CMD", "probe"), 5, 9, retries=1)
    none = ContainerConfig("i", health=HealthCheck(("NONE",)))
    assert not command(merge(none, image).health)
    assert merge(ContainerConfig("i"), ContainerDefaults(cmd=["x"])).health is None


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (200_000_000, "200ms"),
        (1_500_000, "1.5ms"),
        (SECOND, "1s"),
        (3 * SECOND // 2, "1.5s"),
        (90 * SECOND, "1m30s"),
        (3600 * SECOND, "1h0m0s"),
    ],
)
def test_durations_as_go_writes_them(nanoseconds: int, text: str) -> None:
    assert duration(nanoseconds) == text
