"""Builds for an API: a request and an archive in, what is said and an image out. Lives on the event loop."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from threading import Event

import msgspec

from nagaya.build import downloads
from nagaya.build.context import MAX_DOCKERFILE, Context
from nagaya.build.execute import Build
from nagaya.build.output import Said, Say
from nagaya.build.request import BuildRequest
from nagaya.engine.images import pieces
from nagaya.engine.workshop import Workshop
from nagaya.errors import Cancelled, InvalidArgument, NagayaError
from nagaya.image import streams
from nagaya.image.building import Record
from nagaya.image.content import disk_error
from nagaya.image.jobs import Check

_WAITING = 256  # things said that nobody has read yet
_TAR_MAGIC = slice(257, 262)


class CacheRecord(msgspec.Struct, frozen=True):
    """One line of the build cache: a step, or a cache mount. Times in nanoseconds since the epoch."""

    id: str
    parent: str
    kind: str
    description: str
    in_use: bool
    shared: bool
    size: int
    created: int
    used: int
    uses: int


class Builds:
    """The builds of a daemon, which keeps what they share."""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop

    async def build(
        self, request: BuildRequest, archive: AsyncIterator[bytes] | None, url: str = ""
    ) -> AsyncGenerator[Said, None]:
        """Build what the archive (or what is at the URL) holds; what is said, the image last. Closing the
        iterator ends the build. Raises NagayaError."""
        queue: asyncio.Queue[Said | None] = asyncio.Queue()
        read = asyncio.Event()

        async def say(said: Said) -> None:
            while queue.qsize() >= _WAITING:
                read.clear()
                await read.wait()
            queue.put_nowait(said)

        async def work() -> None:
            image = await self._build(request, archive, url, say)
            queue.put_nowait(Said(image=image))

        task = self._workshop.task(work())
        task.add_done_callback(lambda _: queue.put_nowait(None))
        try:
            while (said := await queue.get()) is not None:
                read.set()
                yield said
            await task
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # seen, also when nobody asks any more

    async def _build(
        self,
        request: BuildRequest,
        archive: AsyncIterator[bytes] | None,
        url: str,
        say: Say,
    ) -> str:
        try:
            return await self._in_directory(request, archive, url, say)
        except OSError as error:  # of files of our own; those of others are their rooms' to tell
            raise disk_error(error, "build", str(error.filename or "")) from None

    async def _in_directory(
        self, request: BuildRequest, archive: AsyncIterator[bytes] | None, url: str, say: Say
    ) -> str:
        workshop = self._workshop
        directory = await workshop.work(workshop.directory)
        try:
            context = Context(directory)
            try:
                request = await self._take_in(context, request, archive, url)
                bench = await workshop.work(workshop.bench)
                try:
                    return await Build(workshop, bench, context, directory, request, say).run()
                finally:
                    await _to_the_end(workshop, bench.close)
            finally:
                context.close()
        finally:  # nobody waits for it: a context may have as many files as it likes
            workshop.world.task(
                _to_the_end(workshop, lambda: workshop.remove_directory(directory)), "end of a context"
            )

    async def _take_in(
        self, context: Context, request: BuildRequest, archive: AsyncIterator[bytes] | None, url: str
    ) -> BuildRequest:
        """The context's files; a text that is no archive is the Dockerfile itself."""
        ended = Event()

        def check() -> None:
            if ended.is_set():
                raise Cancelled("the build was cancelled")

        loop = asyncio.get_running_loop()

        def work() -> BuildRequest:
            if not url:
                context.unpack(pieces(archive, loop) if archive is not None else (), check)
                return request
            with downloads.stream(url) as found:
                return _fetched(context, found, request, check)

        task = asyncio.ensure_future(self._workshop.world.pull_job(work))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            ended.set()
            await asyncio.wait([task])  # the client has gone: its next piece is an error
            raise

    # the cache

    async def records(self) -> list[CacheRecord]:
        """All of the build cache."""

        def work() -> list[CacheRecord]:
            steps = [_record(found) for found in self._workshop.world.images.builds.records()]
            mounts = [
                CacheRecord(
                    m.key,
                    "",
                    "exec.cachemount",
                    f"cached mount {m.id}",
                    m.in_use,
                    False,
                    m.size,
                    m.made,
                    m.used,
                    0,
                )
                for m in self._workshop.caches.list()
            ]
            return steps + mounts

        return await self._workshop.world.slow_job(work)

    async def prune(
        self, wanted: Callable[[CacheRecord], bool], *, everything: bool, keep: int = 0
    ) -> tuple[list[str], int]:
        """Forget records that are wanted and not in use: their ids, and the bytes of files that went.
        everything: also steps whose layers images have, and cache mounts. keep: bytes of the last used
        that stay."""

        def work() -> tuple[list[str], int]:
            gone: list[str] = []
            freed = 0
            mounts = self._workshop.caches.list() if everything else []
            for mount in mounts:
                record = CacheRecord(
                    mount.key,
                    "",
                    "exec.cachemount",
                    mount.id,
                    mount.in_use,
                    False,
                    mount.size,
                    mount.made,
                    mount.used,
                    0,
                )
                if wanted(record) and not mount.in_use:
                    self._workshop.caches.remove(mount.key)
                    gone.append(mount.key)
                    freed += mount.size

            def chosen(records: Sequence[Record]) -> list[Record]:
                left, found = keep, []
                for record in sorted(records, key=lambda r: -r.row.used):
                    shown = _record(record)
                    if shown.in_use or not wanted(shown) or (record.shared and not everything):
                        continue
                    if left >= record.size > 0:
                        left -= record.size
                        continue
                    found.append(record)
                return found

            keys, bytes_ = self._workshop.world.images.builds.prune(chosen)
            return gone + keys, freed + bytes_

        return await self._workshop.world.slow_job(work)


def _record(found: Record) -> CacheRecord:
    row = found.row
    kind = "source.local" if row.what.upper().startswith(("COPY", "ADD")) else "regular"
    return CacheRecord(
        row.key[:32],
        row.parent[:32],
        kind,
        row.what,
        found.in_use,
        found.shared,
        found.size,
        row.made,
        row.used,
        row.uses,
    )


async def _to_the_end(workshop: Workshop, work: Callable[[], None]) -> None:
    """Also when we are cancelled, and whatever goes wrong in it is not what the client asked about."""
    with suppress(NagayaError, OSError):
        await workshop.work(work)


def _fetched(context: Context, found: Iterator[bytes], request: BuildRequest, check: Check) -> BuildRequest:
    """Take in what a URL gave: an archive of files, else a Dockerfile alone. Blocking."""
    head = b""
    while len(head) < _TAR_MAGIC.stop and (piece := next(found, None)) is not None:
        head += piece
    if streams.is_compressed(head) or head[_TAR_MAGIC] == b"ustar":
        context.unpack(itertools.chain([head], found), check)
        return request
    for piece in found:
        head += piece
        if len(head) > MAX_DOCKERFILE:
            raise InvalidArgument(f"the Dockerfile has more than {MAX_DOCKERFILE} bytes", subject="remote")
    context.fill("Dockerfile", head)
    return msgspec.structs.replace(request, dockerfile="Dockerfile")
