"""Clients attached to a container's stdio: the engine passes their sockets on to the supervisor's io."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import nullcontext

from nagaya.engine import exits, logs
from nagaya.engine.model import AttachRequest, Container
from nagaya.engine.roster import Slot
from nagaya.engine.world import World
from nagaya.errors import FailedPrecondition, NagayaError, NotFound
from nagaya.wire.streams import STDERR, STDOUT, frame


async def attach(world: World, ref: str, request: AttachRequest, fd: int) -> None:
    """Wire the client's socket, which is ours from here. See EngineService.attach_container.

    A container that does not run yet is attached too: io keeps the client for its start.
    """
    try:
        slot = world.roster.find(ref)
        container = slot.container
        if container.state in ("removing", "dead"):
            raise FailedPrecondition(f"container {container.id} is marked for removal")
        # One that has never run has no log, and may be started at once by a client that was told that it is
        # attached: the lock below must come before that start.
        if request.logs and container.state != "created":
            await _replay(world, container, request, fd)
        if request.stream and (request.stdin or request.stdout or request.stderr):
            # What has just ended is still being cleared away: a client that comes for the next start must
            # not join it.
            running = container.state in ("running", "paused")
            async with nullcontext() if running else slot.lock:
                if world.roster.get(container.id) is None:
                    raise NotFound(f"No such container: {container.id}", subject=container.id)
                if not running:
                    await exits.settle(world, slot)
                handed, fd = fd, -1
                slot.attached = True
                await world.supervisor.attach(
                    container.id,
                    handed,
                    stdin=request.stdin and container.config.open_stdin,
                    stdout=request.stdout,
                    stderr=request.stderr,
                    mux=request.frames and not container.config.tty,
                    stdin_once=container.config.stdin_once,
                    detach_keys=request.detach_keys,
                    preface=request.preface,
                )
            world.bus.container(container, "attach")
    finally:
        if fd >= 0:
            os.close(fd)


def drop(world: World, slot: Slot) -> None:
    """Let clients go that attached to a container that will not run: theirs is the keeper's token."""

    async def release() -> None:
        try:
            if slot.container.state not in ("running", "paused"):
                await world.supervisor.release(slot.container.id)
        except NagayaError:
            return  # no keeper, no clients

    if slot.attached:
        slot.attached = False
        world.task(release(), f"drop clients of {slot.container.id[:12]}")


async def _replay(world: World, container: Container, request: AttachRequest, fd: int) -> None:
    """Send what the container has written so far."""
    loop = asyncio.get_running_loop()
    with socket.socket(fileno=os.dup(fd)) as client:
        client.setblocking(False)
        plain = container.config.tty or not request.frames
        async for lines in logs.read(
            world,
            lambda: container,
            stdout=request.stdout,
            stderr=request.stderr,
            since=0,
            until=0,
            tail=None,
            follow=False,
        ):
            parts = [
                line.data if plain else frame(STDERR if line.stream == "stderr" else STDOUT, line.data)
                for line in lines
            ]
            await loop.sock_sendall(client, b"".join(parts))
