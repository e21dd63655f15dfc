"""The archive operations of containers for the event loop: who waits for whom, and what is let go when.

A stopped container is held by its lock as long as its files are mounted for us: it cannot start meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TypeVar

from nagaya.engine import copying, microvms, user
from nagaya.engine.changes import Change
from nagaya.engine.changes import changes as find_changes
from nagaya.engine.layered import LayeredRoot
from nagaya.engine.model import Container
from nagaya.engine.view import View, open_view
from nagaya.engine.world import World
from nagaya.errors import FailedPrecondition
from nagaya.image import members

T = TypeVar("T")


class Archive:
    """A tar stream being made. Iterate it, and close it also when it was never begun."""

    def __init__(self, world: World, held: AsyncExitStack, pieces: Iterator[bytes]) -> None:
        self._world = world
        self._held = held
        self._pieces = pieces
        self._step: asyncio.Future[bytes | None] | None = None

    def __aiter__(self) -> Archive:
        return self

    async def __anext__(self) -> bytes:
        self._step = asyncio.ensure_future(self._world.slow_job(lambda: next(self._pieces, None)))
        piece = await asyncio.shield(self._step)
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """Let files and container go, once the piece under way is done."""
        if self._step is not None and not self._step.done():
            await asyncio.wait([self._step])
        close: Callable[[], None] = getattr(self._pieces, "close", lambda: None)
        await self._world.slow_job(close)
        await self._held.aclose()


async def look(world: World, ref: str, path: str) -> copying.PathStat:
    """What is at a path of the container. Raises NotFound, InvalidArgument."""
    async with _view(world, ref) as (_, view):
        return await world.slow_job(lambda: copying.look(view, path, ref))


async def read(world: World, ref: str, path: str) -> tuple[copying.PathStat, Archive]:
    """What is at a path, and its tar stream, which is the caller's to close. Raises NotFound,
    InvalidArgument."""
    async with AsyncExitStack() as held:
        container, view = await held.enter_async_context(_view(world, ref))
        found = await world.slow_job(lambda: copying.look(view, path, ref))
        world.bus.container(container, "archive-path")
        return found, Archive(world, held.pop_all(), members.joined(copying.pack(view, path, found)))


async def export(world: World, ref: str) -> Archive:
    """The tar stream of its root, without what is mounted there."""
    container = world.roster.find(ref).container
    if container.state in ("removing", "dead"):
        raise FailedPrecondition(f"container {container.id} is marked for removal")
    microvms.check_files(world, container)
    world.bus.container(container, "export")
    pieces = members.joined(copying.pack_root(await world.job(_layers, world, container.id)))
    return Archive(world, AsyncExitStack(), pieces)


def _layers(world: World, container_id: str) -> LayeredRoot:
    rootfs = world.images.snapshot(container_id)
    return LayeredRoot([rootfs["upper"], *rootfs["lower"]])


async def changes(world: World, ref: str) -> list[Change]:
    """What it has changed in its root."""

    def work() -> list[Change]:
        rootfs = world.images.snapshot(container_id)
        return find_changes(rootfs["upper"], rootfs["lower"])

    container = world.roster.find(ref).container
    microvms.check_files(world, container)
    container_id = container.id
    return await world.slow_job(work)


async def write(
    world: World, ref: str, path: str, body: AsyncIterator[bytes], *, strict: bool, as_user: bool
) -> None:
    """Unpack a tar stream (plain, gzip, zstd) into a directory of the container. strict: no directory
    replaces another thing, nor the reverse. as_user: all becomes the container's user's.
    Raises NotFound, InvalidArgument, PermissionDenied; what was unpacked before stays."""
    loop = asyncio.get_running_loop()

    def pieces() -> Iterator[bytes]:
        while (piece := asyncio.run_coroutine_threadsafe(_next(body), loop).result()) is not None:
            yield piece

    async with _view(world, ref) as (container, view):

        def work() -> None:
            owner = _owner(world, container) if as_user and container.config.user else None
            copying.Unpack(view, path, ref, strict=strict, owner=owner).run(pieces())

        # a thread of its own: it waits for the client
        pool = ThreadPoolExecutor(1, "unpack")
        try:
            await _finished(loop.run_in_executor(pool, work))
            world.bus.container(container, "extract-to-dir")
        finally:
            pool.shutdown(wait=False)


async def _next(body: AsyncIterator[bytes]) -> bytes | None:
    return await anext(body, None)


def _owner(world: World, container: Container) -> tuple[int, int]:
    found = user.resolve(container.config.user, (), _layers(world, container.id))
    return found.uid, found.gid


@asynccontextmanager
async def _view(world: World, ref: str) -> AsyncIterator[tuple[Container, View]]:
    slot = world.roster.find(ref)
    async with AsyncExitStack() as held:
        if slot.container.state not in ("running", "paused"):
            await held.enter_async_context(slot.lock)
            slot = world.roster.find(slot.container.id)  # it may have been removed meanwhile
            await world.reach(p.source for p in slot.container.mount_points if p.type == "bind")
            await held.enter_async_context(world.volumes.mounted_for(slot.container))
        microvms.check_files(world, slot.container)
        view = await _finished(asyncio.ensure_future(world.job(open_view, world, slot.container)))
        try:
            yield slot.container, view
        finally:
            await asyncio.shield(asyncio.ensure_future(world.job(view.close)))


async def _finished(step: asyncio.Future[T]) -> T:
    """The step's result. Cancelled, it still waits for its end: a thread does not stop, and what it
    opened would be lost."""
    try:
        return await asyncio.shield(step)
    except asyncio.CancelledError:
        await asyncio.wait([step])
        with suppress(Exception):
            result = step.result()
            if isinstance(result, View):
                result.close()
        raise
