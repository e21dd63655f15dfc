"""What builds are made with: a place in the image store, roots to write into, commands that are run.

The build room decides; this does, and takes away what it made. Lives on the event loop.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from nagaya.engine import attachments, files, staging
from nagaya.engine.cachedirs import CacheDirectories
from nagaya.engine.changes import PLACES
from nagaya.engine.containers import Containers
from nagaya.engine.images import Images
from nagaya.engine.model import (
    AttachRequest,
    ContainerConfig,
    Created,
    CreateRequest,
    PullProgress,
    RegistryAuth,
)
from nagaya.engine.world import World
from nagaya.image.building import Bench, Layer
from nagaya.image.jobs import Check
from nagaya.linux.overlay import mount_overlay
from nagaya.oci import reference

T = TypeVar("T")

Output = Callable[[int, bytes], Awaitable[None]]  # stream (1 stdout, 2 stderr), bytes
_PIECE = 64 << 10
_HEAD = 8
_PATIENCE = 10.0  # seconds that builds have to end
_HUB = ("https://index.docker.io/v1/", "index.docker.io")


def home(root: str) -> str:
    """Where builds under way keep their files."""
    return f"{root}/build/work"


class Workshop:
    """The engine's primitives for builds."""

    def __init__(self, world: World, containers: Containers, images: Images) -> None:
        self._world = world
        self._containers = containers
        self._images = images
        self._under_way: set[asyncio.Task[None]] = set()
        self.caches = CacheDirectories(world)
        """What RUN --mount=type=cache keeps."""

    @property
    def world(self) -> World:
        """The engine's rooms."""
        return self._world

    async def work(self, job: Callable[[], T]) -> T:
        """Run blocking work of a build. Cancelled, it still waits for the end: a thread does not stop."""
        return await finished(self._world.pull_job(job))

    def task(self, build: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A build under way, which `close` ends."""
        task: asyncio.Task[None] = self._world.task(build, "build")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

    async def close(self) -> None:
        """End the builds under way, and what they run."""
        for task in self._under_way:
            task.cancel()
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=_PATIENCE)

    def pull(
        self, name: str, platform: str, auths: Mapping[str, RegistryAuth]
    ) -> AsyncIterator[PullProgress]:
        """Pull an image, with the credentials of its registry; one report at a time."""
        registry = reference.parse(name).domain
        names = (registry, f"https://{registry}", *(_HUB if registry == "docker.io" else ()))
        auth = next((auths[known] for known in names if known in auths), None)
        return self._images.pull(name, platform, auth)

    def tell_tagged(self, image_id: str, names: Sequence[str]) -> None:
        """The image has got these names."""
        for name in names:
            self._images.tell_tagged(image_id, name)

    def bench(self) -> Bench:
        """A place for one build, to be closed. Blocking."""
        return self._world.images.builds.open()

    def directory(self) -> str:
        """A new directory for the files of one build, to be removed by `remove_directory`; a crash of the
        daemon does it, too. Blocking."""
        path = f"{home(self._world.settings.root)}/{os.urandom(8).hex()}"
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        os.mkdir(path, 0o700)
        return path

    def remove_directory(self, path: str) -> None:
        """Remove it, whatever is in it. Blocking."""
        files.remove_tree(path)

    def lower(self, diff_ids: Sequence[str]) -> list[str]:
        """The directories of these layers (bottom first), the top one first. Blocking."""
        return self._world.images.builds.lower(diff_ids)

    def files(self, diff_ids: Sequence[str]) -> int:
        """The files of these layers (bottom first), a read-only mount that is attached nowhere. Blocking."""
        return staging.mounted(self.lower(diff_ids))

    def change(
        self,
        bench: Bench,
        diff_ids: Sequence[str],
        work: Callable[[int], None],
        check: Check,
        latest: int | None = None,
    ) -> Layer | None:
        """What `work` writes into the root (a mount that is attached nowhere) of these layers becomes a
        layer. Blocking."""
        name, overlay = bench.snapshot(diff_ids)
        try:
            root = mount_overlay(overlay)
            try:
                work(root)
            finally:
                os.close(root)
            return bench.layer(name, frozenset(), latest, check)
        finally:
            bench.drop(name)

    async def run(
        self,
        bench: Bench,
        config: ContainerConfig,
        output: Output,
        begun: Callable[[str], Awaitable[None]],
        ours: frozenset[str] = PLACES,
        latest: int | None = None,
        hidden: Sequence[str] = (),
    ) -> tuple[int, Layer | None]:
        """Run a container to its end: its exit code and, when that is 0, what it has changed. begun gets its
        id before it starts. ours: as `diff.archive` has it. hidden: variables that no row and no inspect
        has. It is gone afterwards, whatever happens."""
        making = asyncio.ensure_future(self._containers.create(CreateRequest(config)))
        try:
            container_id = (await finished(making)).id
            await begun(container_id)
            slot = self._world.roster.find(container_id)
            slot.hidden = tuple(hidden)
            code = await self._run(container_id, output)
            if code:
                return code, None
            async with slot.lock:
                return 0, await self.work(partial(bench.layer, container_id, ours, latest, lambda: None))
        finally:
            await finished(self._gone(making))

    async def _gone(self, making: asyncio.Future[Created]) -> None:
        if not making.cancelled() and making.exception() is None:
            await self._containers.remove(making.result().id, force=True, volumes_too=True)

    async def _run(self, container_id: str, output: Output) -> int:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours:
            asked = AttachRequest(stdout=True, stderr=True)
            await finished(attachments.attach(self._world, container_id, asked, theirs.detach()))
            reading = asyncio.ensure_future(_read(ours, output))
            ended = self._world.roster.find(container_id).wait("next-exit")
            try:
                await finished(self._containers.start(container_id))
                result = await ended
                await reading
            finally:
                ended.cancel()
                reading.cancel()
                with suppress(asyncio.CancelledError):
                    await reading
        return result.exit_code

    def writable(self, bench: Bench, layers: Sequence[str]) -> tuple[int, Callable[[], None]]:
        """The files of these directories, the top one first, as a mount that is attached nowhere and may be
        written to; and what takes away what was written. Blocking."""
        name, overlay = bench.snapshot(())
        try:
            root = mount_overlay({**overlay, "lower": list(layers)})
        except BaseException:
            bench.drop(name)
            raise
        return root, lambda: bench.drop(name)


async def finished(work: Awaitable[T]) -> T:
    """The result of work that must not stop in the middle: who is cancelled meanwhile is so afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # seen
        raise cancelled
    return task.result()


async def _read(source: socket.socket, output: Output) -> None:
    """Frames until the end (api/docker's multiplexed format)."""
    loop = asyncio.get_running_loop()
    held = bytearray()
    while data := await loop.sock_recv(source, _PIECE):
        held += data
        while len(held) >= _HEAD:
            size = int.from_bytes(held[4:8], "big")
            if len(held) < _HEAD + size:
                break
            piece = bytes(held[_HEAD : _HEAD + size])
            stream = held[0]
            del held[: _HEAD + size]
            await output(stream, piece)


def sweep(world: World) -> None:
    """What builds of a former daemon left. Blocking."""
    with suppress(FileNotFoundError):
        files.remove_tree(home(world.settings.root))
