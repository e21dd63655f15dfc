"""Log lines on their way to syslog or journald: read from the container's own log, sent, and remembered
how far, so that neither the daemon's end nor the other side's loses any. The last ones may come twice."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from typing import Any

import msgspec

from nagaya.engine import logs, logtargets
from nagaya.engine.model import Container, LogLine
from nagaya.engine.roster import Slot
from nagaya.engine.world import World
from nagaya.errors import InternalError, InvalidArgument, NagayaError

log = logging.getLogger(__name__)

_AREA = "forwarded"
_NOTE = 1.0  # seconds between two notes of how far it is
_RETRY = 1.0
_LAST = 10.0  # seconds that the other side may be away once the container has ended


class Position(msgspec.Struct):
    """Up to the line with this time; so many lines of that very time were sent."""

    time_ns: int = 0
    count: int = 0


class Forwarders:
    """All that are under way. Lives on the event loop."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._tasks: dict[str, asyncio.Task[Any]] = {}

    async def prepare(self, container: Container) -> logtargets.Target | None:
        """Before a start: the connection, for `begin`; None where the driver needs none. Raises
        InternalError."""
        target = logtargets.of(container)
        if target is not None:
            await target.open()
        return target

    def begin(self, slot: Slot, target: logtargets.Target | None = None) -> None:
        """Forward what a container that runs writes, from where we were."""
        container = slot.container
        made = target or logtargets.of(container)
        former = self._tasks.get(container.id)
        if made is None:
            return
        work = self._forward(slot, made, former)
        self._tasks[container.id] = self._world.task(work, f"log of {container.id[:12]}")

    def close(self) -> None:
        """The daemon ends; the next goes on."""
        for task in self._tasks.values():
            task.cancel()

    async def _forward(self, slot: Slot, target: logtargets.Target, former: asyncio.Task[Any] | None) -> None:
        world, container_id = self._world, slot.container.id
        if former is not None:  # of the former life: we go on where it was
            former.cancel()
            await asyncio.wait([former])
        position = await world.job(_read, world, container_id)
        noted = time.monotonic()

        def now() -> Container | None:
            found = world.roster.get(container_id)
            return None if found is None else found.container

        batches = logs.read(
            world,
            now,
            stdout=True,
            stderr=True,
            since=position.time_ns,
            until=0,
            tail=None,
            follow=True,
        )
        known = position.count
        try:
            async for lines in batches:
                for line in lines:
                    if line.time_ns == position.time_ns and known:
                        known -= 1
                        continue
                    known = 0
                    if not await self._send(target, line, now):
                        log.error(
                            "container %s: its log's receiver is away, lines are kept", container_id[:12]
                        )
                        return
                    same = line.time_ns == position.time_ns
                    position = Position(line.time_ns, position.count + 1 if same else 1)
                    if time.monotonic() - noted > _NOTE:
                        await world.job(_write, world, container_id, position)
                        noted = time.monotonic()
        finally:
            target.close()
            if self._tasks.get(container_id) is asyncio.current_task():
                del self._tasks[container_id]
            if world.roster.get(container_id) is not None:
                await world.job(_write, world, container_id, position)

    async def _send(self, target: logtargets.Target, line: LogLine, now: Any) -> bool:
        """False: the container has ended, and nobody takes its lines."""
        ended = 0.0
        while True:
            try:
                await target.send(line)
                return True
            except OSError as error:
                container = now()
                if container is None or container.state not in ("running", "paused", "restarting"):
                    ended = ended or time.monotonic()
                    if container is None or time.monotonic() - ended > _LAST:
                        return False
                log.debug("log of %s: %s", "" if container is None else container.id[:12], error)
                await asyncio.sleep(_RETRY)
                try:
                    await target.open()
                except (InternalError, InvalidArgument):
                    continue


def _read(world: World, container_id: str) -> Position:
    rows = world.ledger.read("SELECT document FROM facts WHERE area=? AND key=?", (_AREA, container_id))
    for (document,) in rows:
        return msgspec.json.decode(document if isinstance(document, bytes) else str(document), type=Position)
    return Position()


def _write(world: World, container_id: str, position: Position) -> None:
    try:
        with world.ledger.write() as db:
            db.execute(
                "INSERT OR REPLACE INTO facts(area, key, document) VALUES(?,?,?)",
                (_AREA, container_id, msgspec.json.encode(position)),
            )
    except NagayaError as error:
        log.error("how far the log of %s was forwarded cannot be noted: %s", container_id[:12], error)


def forget(db: sqlite3.Connection, container_id: str) -> None:
    """The container is gone."""
    db.execute("DELETE FROM facts WHERE area=? AND key=?", (_AREA, container_id))
