"""Images as the APIs see them: pulls that report as they go, lists, names given and taken.

The work is the image room's (image.store), in pools; here it gets events and the containers' say.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from types import MappingProxyType
from typing import Any

import msgspec

from nagaya.engine.archives import Archive
from nagaya.engine.model import ImageSummary, PullProgress, RegistryAuth
from nagaya.engine.world import World
from nagaya.errors import DataLoss, FailedPrecondition, NotFound
from nagaya.image import auth as auths
from nagaya.image.making import Recipe
from nagaya.image.pull import Progress, Report
from nagaya.image.removal import Removed, Use
from nagaya.image.store import Image
from nagaya.oci import reference

log = logging.getLogger(__name__)

_NEVER = -62_135_596_800  # 0001-01-01, as dockerd has it
_BODY_PIECE = 512 << 10
_STATES = ("running", "paused", "restarting")


class Images:
    """Lives on the event loop."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._loop = asyncio.get_running_loop()
        self._pruning = asyncio.Lock()
        self._documents: dict[str, dict[str, Any]] = {}  # whole configurations: they never change

    def pull(
        self, name: str, platform: str, auth: RegistryAuth | None, *, all_tags: bool = False
    ) -> AsyncIterator[PullProgress]:
        """Pull; one report at a time. Closing the iterator ends the pull."""
        images = self._world.images
        credentials = _credentials(auth)

        def run(report: Report, cancel: threading.Event) -> None:
            if all_tags:
                pulled = images.pull_all(name, platform, credentials, report, cancel)
            else:
                pulled = [images.pull(name, platform, credentials, report, cancel)]
            named = reference.parse(name)
            for image in pulled[:1]:
                shown = named.familiar_name if all_tags else named.tagged().familiar
                self._loop.call_soon_threadsafe(self._tell, "pull", shown, image.id, _labels(image))

        return self._reported(run, f"pull of {name[:200]}")

    async def login(self, address: str, auth: RegistryAuth) -> None:
        """Ask a registry whether it takes these credentials. Raises Unauthenticated, Unavailable."""
        credentials = auths.RegistryAuth(*msgspec.structs.astuple(auth))
        await self._world.pull_job(lambda: self._world.images.login(address, credentials))

    async def describe(self, name: str, auth: RegistryAuth | None) -> Mapping[str, Any]:
        """What a registry has under a name, as GET /distribution/{name}/json answers it."""
        credentials = _credentials(auth)
        found, platforms = await self._world.pull_job(lambda: self._world.images.describe(name, credentials))
        return {
            "Descriptor": {"mediaType": found.media_type, "digest": found.digest, "size": found.size},
            "Platforms": [
                {key: value for key, value in msgspec.structs.asdict(platform).items() if value}
                for platform in platforms
            ],
        }

    async def search(self, term: str, limit: int, auth: RegistryAuth | None) -> Sequence[Mapping[str, Any]]:
        """The elements of GET /images/search, unfiltered. Raises NotFound for a registry without it."""
        credentials = _credentials(auth)
        found = await self._world.pull_job(lambda: self._world.images.search(term, limit, credentials))
        return [
            {
                "star_count": item.stars,
                "is_official": item.official,
                "name": item.name,
                "is_automated": item.automated,
                "description": item.description,
            }
            for item in found
        ]

    def push(self, name: str, auth: RegistryAuth | None) -> AsyncIterator[PullProgress]:
        """Push a tag, or without one all of the repository; one report at a time. Closing the iterator
        ends it."""
        named, credentials = reference.parse(name), _credentials(auth)

        def run(report: Report, cancel: threading.Event) -> None:
            self._world.images.push(name, credentials, report, cancel)
            self._loop.call_soon_threadsafe(self._told_push, named)

        return self._reported(run, f"push of {name[:200]}")

    def _told_push(self, named: reference.Reference) -> None:
        self._world.bus.publish("image", "push", named.familiar, {"name": named.familiar_name})

    def load(self, body: AsyncIterator[bytes]) -> AsyncIterator[PullProgress]:
        """Take in an archive of images; one report at a time. Closing the iterator ends it."""

        def run(report: Report, cancel: threading.Event) -> None:
            for image in self._world.images.load(pieces(body, self._loop), report, cancel):
                self._loop.call_soon_threadsafe(self._tell, "load", image.id, image.id, _labels(image))

        return self._reported(run, "load of an archive")

    async def import_files(self, body: AsyncIterator[bytes], recipe: Recipe, name: str) -> str:
        """The id of an image of one layer, of an archive. Cancelled, it ends."""
        cancel = threading.Event()

        def run() -> Image:
            return self._world.images.import_files(pieces(body, self._loop), recipe, name, cancel)

        work: asyncio.Task[Image] = self._world.task(self._world.pull_job(run), "import of an archive")
        try:
            image = await asyncio.shield(work)
        finally:
            cancel.set()
        self._tell("import", image.id, image.id, _labels(image))
        return image.id

    def import_url(self, url: str, recipe: Recipe, name: str) -> AsyncIterator[PullProgress]:
        """The same of what is at a URL; the last report has the id for its status. Closing the iterator
        ends it."""

        def run(report: Report, cancel: threading.Event) -> None:
            image = self._world.images.import_url(url, recipe, name, report, cancel)
            report(Progress(image.id))
            self._loop.call_soon_threadsafe(self._tell, "import", image.id, image.id, _labels(image))

        return self._reported(run, "import from a URL")

    def save(self, names: Sequence[str]) -> Archive:
        """The tar stream of these images, to be closed by `aclose`. Its first piece raises NotFound."""
        return Archive(self._world, AsyncExitStack(), self._world.images.save(names))

    async def _reported(
        self, run: Callable[[Report, threading.Event], None], what: str
    ) -> AsyncIterator[PullProgress]:
        """Run work that reports, and waits for others (a registry, a client), in a thread. Closing the
        iterator sets its event."""
        queue: asyncio.Queue[Progress | None] = asyncio.Queue()
        cancel = threading.Event()

        def report(progress: Progress) -> None:
            self._loop.call_soon_threadsafe(queue.put_nowait, progress)

        work = self._world.task(self._world.pull_job(lambda: run(report, cancel)), what)
        work.add_done_callback(lambda _: queue.put_nowait(None))
        try:
            while (progress := await queue.get()) is not None:
                yield PullProgress(*msgspec.structs.astuple(progress))
            await work
        finally:
            cancel.set()
            if work.done() and not work.cancelled():
                work.exception()  # seen, also when nobody asks any more

    async def list(self) -> Sequence[ImageSummary]:
        """All images, the last made first, as dockerd lists them."""

        def read() -> list[ImageSummary]:
            found = []
            for image in self._world.images.list():
                try:
                    found.append(self._summary(image))
                except (DataLoss, NotFound) as error:  # damaged, or removed, since it was listed
                    log.warning("image %s is not listed: %s", image.id, error)
            return sorted(found, key=lambda summary: summary.created, reverse=True)

        return await self._world.job(read)

    async def inspect(self, ref: str) -> ImageSummary:
        """Raises NotFound("No such image: x:tag")."""
        return await self._world.job(lambda: self._summary(self._world.images.resolve(ref)))

    async def history(self, ref: str) -> Sequence[Mapping[str, object]]:
        """The elements of GET /images/{name}/history. Raises NotFound."""

        def read() -> list[Mapping[str, object]]:
            image = self._world.images.resolve(ref)
            return [
                {
                    "Id": change.id,
                    "Created": _seconds(change.created),
                    "CreatedBy": change.created_by,
                    "Tags": [reference.parse(t).familiar for t in change.tags] or None,
                    "Size": change.size,
                    "Comment": change.comment,
                }
                for change in self._world.images.history(image)
            ]

        return await self._world.job(read)

    async def tag(self, ref: str, target: str) -> None:
        """Give an image another name."""
        image = await self._world.job(self._world.images.tag, ref, target)
        self.tell_tagged(image.id, target, _labels(image))

    def tell_tagged(self, image_id: str, name: str, labels: Mapping[str, str] = MappingProxyType({})) -> None:
        """An image has got a name."""
        self._tell("tag", reference.parse_tagged(name).familiar, image_id, labels)

    async def remove(self, ref: str, *, force: bool) -> Sequence[Mapping[str, str]]:
        """[{"Untagged": "x:tag"}, {"Deleted": "sha256:..."}]. Raises NotFound, FailedPrecondition."""
        world = self._world
        uses = self._uses()
        image_id, labels = await world.job(world.images.identify, ref)
        removed = await world.slow_job(lambda: world.images.remove(ref, uses, force=force))
        for line in removed:
            if line.untagged:
                self._tell("untag", line.untagged, image_id, labels)
            elif line.deleted == image_id:
                self._documents.pop(image_id, None)
                self._tell("delete", image_id, image_id, labels)
        return _lines(removed)

    async def prune(
        self, wanted: Callable[[ImageSummary], bool], *, dangling: bool
    ) -> tuple[Sequence[Mapping[str, str]], int]:
        """(lines as `remove` answers, bytes of files that went). Raises FailedPrecondition when another
        client is doing it."""
        if self._pruning.locked():
            raise FailedPrecondition("a prune operation is already running")
        world = self._world
        async with self._pruning:
            labels: dict[str, Mapping[str, str]] = {}

            def chosen(image: Image) -> bool:
                labels[image.id] = _labels(image)
                return wanted(self._summary(image))

            uses = self._uses()
            removed, freed = await world.slow_job(lambda: world.images.prune(uses, chosen, dangling=dangling))
            for line in removed:
                if line.deleted in labels:
                    self._documents.pop(line.deleted, None)
                    self._tell("delete", line.deleted, line.deleted, labels[line.deleted])
            world.bus.publish("image", "prune", "", {"reclaimed": str(freed)})
        return _lines(removed), freed

    async def layers(self) -> Sequence[Mapping[str, Any]]:
        """All images with their layers, as GET /nagaya/images/layers answers."""
        found = await self._world.job(self._world.images.layers)
        return [
            {
                "Id": image.id,
                "RepoTags": sorted(reference.parse(n).familiar for n in image.names if "@" not in n),
                "Layers": [{"DiffId": diff_id, "Size": size} for diff_id, size in layers],
            }
            for image, layers in found
        ]

    async def usage(self) -> tuple[int, Mapping[str, int]]:
        """See `ImageStore.usage_of_layers`."""
        return await self._world.job(self._world.images.usage_of_layers)

    def _uses(self) -> Sequence[Use]:
        return [
            Use(image, slot.container.id, slot.container.state in _STATES)
            for slot in self._world.roster
            for image in (
                slot.container.image_digest,
                *(p.source for p in slot.container.mount_points if p.type == "image"),
            )
        ]

    def _tell(self, action: str, name: str, image_id: str, labels: Mapping[str, str]) -> None:
        subject = name if action == "pull" else image_id
        self._world.bus.publish("image", action, subject, {**labels, "name": name})

    def _summary(self, image: Image) -> ImageSummary:
        document = self._documents.get(image.id)
        if document is None:
            document = msgspec.json.decode(self._world.images.raw_config(image), type=dict[str, Any])
            self._documents[image.id] = document
        names = [reference.parse(n) for n in image.names]
        return ImageSummary(
            id=image.id,
            tags=tuple(n.familiar for n in names if not n.digest),
            digests=tuple(n.familiar for n in names if n.digest),
            created=_seconds(image.document.created or "") * 1_000_000_000,
            size=image.size,
            os=image.document.os,
            architecture=image.document.architecture,
            variant=image.document.variant or "",
            config=document,
            layers=image.document.diff_ids,
            parent=image.parent,
        )


def pieces(body: AsyncIterator[bytes], loop: asyncio.AbstractEventLoop) -> Generator[bytes]:
    """A request's body for a thread, in pieces of some size: each costs a hop to the loop and back. The next
    one comes while the thread is at its work with this one."""

    async def some() -> bytes:
        parts: list[bytes] = []
        size = 0
        while size < _BODY_PIECE and (part := await anext(body, b"")):
            parts.append(part)
            size += len(part)
        return b"".join(parts)

    coming = asyncio.run_coroutine_threadsafe(some(), loop)
    try:
        while piece := coming.result():
            coming = asyncio.run_coroutine_threadsafe(some(), loop)
            yield piece
    finally:
        coming.cancel()


def _credentials(auth: RegistryAuth | None) -> auths.RegistryAuth | None:
    return None if auth is None else auths.RegistryAuth(*msgspec.structs.astuple(auth))


def _lines(removed: Sequence[Removed]) -> list[Mapping[str, str]]:
    return [{"Untagged": r.untagged} if r.untagged else {"Deleted": r.deleted} for r in removed]


def _labels(image: Image) -> Mapping[str, str]:
    return (image.config.labels if image.config else None) or {}


def _seconds(text: str) -> int:
    """Seconds since the epoch of an RFC 3339 time; for what is none Go's zero time, of which docker
    shows no age."""
    try:
        return int(datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError):
        return _NEVER
