"""Health checks: a command that is run again and again in a container, and what its answers mean.

The rules are dockerd's: a success makes it healthy, `retries` failures in a row make it unhealthy, and
failures do not count while a container that was never well is in its start period. One that ends, or is
paused, is unhealthy until a check says otherwise. Checks of a container never overlap: one that cannot
even be killed counts as failed once an interval until it has ended.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import msgspec

from nagaya.engine.execs import Execs, Run
from nagaya.engine.model import Container, Health, HealthCheck, Probe
from nagaya.engine.roster import Slot
from nagaya.engine.world import World
from nagaya.errors import InvalidArgument, NagayaError

log = logging.getLogger(__name__)

_MS = 1_000_000
_SECOND = 1000 * _MS
_INTERVAL = 30 * _SECOND
_TIMEOUT = 30 * _SECOND
_START_INTERVAL = 5 * _SECOND
_RETRIES = 3
_KEPT = 5
_MOST_OUTPUT = 4096
_DEATH = 5.0  # seconds that a killed check has to end


def check(wish: HealthCheck) -> None:
    """Raise InvalidArgument, with dockerd's words, for what is no health check."""
    for value, name in (
        (wish.interval, "Interval"),
        (wish.timeout, "Timeout"),
        (wish.start_period, "StartPeriod"),
        (wish.start_interval, "StartInterval"),
    ):
        if value and value < _MS:
            raise InvalidArgument(f"{name} in Healthcheck cannot be less than 1ms", subject="Healthcheck")
    if wish.retries < 0:
        raise InvalidArgument("Retries in Healthcheck cannot be negative", subject="Healthcheck")


def command(wish: HealthCheck | None) -> tuple[str, ...]:
    """What is run in the container; () when nothing is, also for a kind of test that nobody knows."""
    match wish.test if wish else ():
        case ("CMD", *words) if words:
            return tuple(words)
        case ("CMD-SHELL", *words) if words:
            return ("/bin/sh", "-c", *words)
        case _:
            return ()


def at_start(container: Container) -> Health | None:
    """The health of a container that is just starting: the log of its former life stays."""
    if not command(container.config.health):
        return None
    return Health(log=container.health.log if container.health else ())


def after(health: Health, probe: Probe, wish: HealthCheck, started: int) -> Health:
    """What the outcome of one more check means."""
    kept = (*health.log, probe)[-_KEPT:]
    if probe.exit_code == 0:
        return Health("healthy", 0, kept)
    if health.status == "starting" and probe.start - started < wish.start_period:
        return msgspec.structs.replace(health, log=kept)
    streak = health.failing_streak + 1
    return Health("unhealthy" if streak >= (wish.retries or _RETRIES) else health.status, streak, kept)


def pause(health: Health, wish: HealthCheck, started: int, now: int) -> float:
    """Seconds until the next check."""
    starting = health.status == "starting" and now - started < wish.start_period
    interval = wish.start_interval or _START_INTERVAL if starting else wish.interval or _INTERVAL
    return interval / _SECOND


def duration(nanoseconds: int) -> str:
    """As Go writes a time.Duration of whole milliseconds: "1m30s", "1.5s", "200ms"."""
    if nanoseconds < _SECOND:
        return f"{nanoseconds / _MS:.6f}".rstrip("0").rstrip(".") + "ms"
    minutes, rest = divmod(nanoseconds, 60 * _SECOND)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{rest / _SECOND:.9f}".rstrip("0").rstrip(".") + "s"
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + seconds


class Monitors:
    """The checks of all running containers. Lives on the event loop."""

    def __init__(self, world: World, execs: Execs) -> None:
        self._world = world
        self._execs = execs
        self._tasks: dict[str, asyncio.Task[Any]] = {}

    def begin(self, slot: Slot) -> None:
        """Check a container that runs now, if it is to be checked."""
        container = slot.container
        words = command(container.config.health)
        if words and container.id not in self._tasks:
            watch = self._watch(slot, words, container.config.health or HealthCheck())
            self._tasks[container.id] = self._world.task(watch, f"health of {container.id[:12]}")

    def end(self, slot: Slot) -> None:
        """It does not run any more: no more checks. The caller writes its row."""
        container = slot.container
        task = self._tasks.pop(container.id, None)
        if task is not None:
            task.cancel()
        if container.health is not None:
            container.health = msgspec.structs.replace(container.health, status="unhealthy")

    def close(self) -> None:
        """The daemon ends; what it knew of the containers stays."""
        for task in self._tasks.values():
            task.cancel()

    async def _watch(self, slot: Slot, words: tuple[str, ...], wish: HealthCheck) -> None:
        container = slot.container
        last: Run | None = None
        while True:
            known = container.health or Health()
            await asyncio.sleep(pause(known, wish, container.started, time.time_ns()))
            try:
                last, probe = await self._probe(container, words, wish.timeout or _TIMEOUT, last)
                await self._note(slot, after(container.health or Health(), probe, wish, container.started))
            except NagayaError as error:
                log.error("health of container %s: %s", container.id[:12], error)

    async def _probe(
        self, container: Container, words: tuple[str, ...], patience: int, former: Run | None
    ) -> tuple[Run | None, Probe]:
        """Run the check once, unless the former one still lives. Returns one that would not die."""
        start = time.time_ns()
        late = f"Health check exceeded timeout ({duration(patience)})"

        def outcome(code: int, output: str) -> Probe:
            return Probe(start, time.time_ns(), code, output)

        if former is not None and not former.ended:
            return former, outcome(-1, late)
        run = Run(self._world, self._execs, container, words, _MOST_OUTPUT)
        try:
            try:
                async with asyncio.timeout(patience / _SECOND):
                    code = await run.finish()
                return None, outcome(code, run.output)
            except TimeoutError:
                await run.kill(_DEATH)
                said = run.output
                return run, outcome(-1, f"{late}: {said}" if said else late)
            except NagayaError as error:
                return None, outcome(-1, error.message)
        finally:
            run.close()

    async def _note(self, slot: Slot, found: Health) -> None:
        world, container = self._world, slot.container
        async with slot.lock:
            if container.state != "running" or world.roster.get(container.id) is not slot:
                return
            before, container.health = container.health, found
            await world.job(world.ledger.put_container, container)
        if before is None or before.status != found.status:
            world.bus.container(container, f"health_status: {found.status}")
