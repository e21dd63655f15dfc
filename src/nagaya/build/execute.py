"""A build: the graph's stages at the same time, their result an image; whatever happens, nothing else stays.

The graph and the request are of no API; what is said goes to whoever asked (output.py).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from threading import Event
from typing import Any

from nagaya.build import graph
from nagaya.build.arguments import Arguments, StageArguments, platform_values
from nagaya.build.cache import Cache
from nagaya.build.context import Context
from nagaya.build.graph import Graph, Node, Source
from nagaya.build.language.ast import Dockerfile, Warning
from nagaya.build.language.ignore import Rules
from nagaya.build.language.ignore import read as read_ignore
from nagaya.build.language.parse import parse
from nagaya.build.output import Lane, Lanes, Said, Say
from nagaya.build.request import BuildRequest
from nagaya.build.run import coloured
from nagaya.build.stage import StageRun
from nagaya.build.state import State
from nagaya.engine.workshop import Workshop
from nagaya.errors import Cancelled, InvalidArgument, NagayaError, NotFound
from nagaya.image.building import Bench
from nagaya.linux import mounts as kernel
from nagaya.oci import platform as platforms
from nagaya.oci import reference

log = logging.getLogger(__name__)

_IGNORES = (".dockerignore",)


class Build:
    """One build of a request, its context being unpacked already. Use `run` once."""

    def __init__(
        self,
        workshop: Workshop,
        bench: Bench,
        context: Context,
        directory: str,
        request: BuildRequest,
        say: Say,
    ) -> None:
        self.workshop = workshop
        self.bench = bench
        self.context = context
        self.directory = directory
        self.request = request
        self.say = say
        self.escape = "\\"
        self.epoch = _epoch(request)
        self.cache = Cache(workshop, bench, use=request.use_cache, epoch=self.epoch)
        self.graph: Graph
        self._target = platforms.parse(request.platform) if request.platform else platforms.host()
        self._ended = Event()
        self._stages: dict[int, asyncio.Task[tuple[State, StageArguments]]] = {}
        self._roots: dict[tuple[str, ...], asyncio.Task[int]] = {}
        self._bases: dict[tuple[str, str], asyncio.Task[State]] = {}
        self._fds: list[int] = []
        self._lanes: Lanes

    # the whole

    async def run(self) -> str:
        """Build it; the image's id. Raises NagayaError: DockerfileError, CommandFailed and what the rooms
        raise. What was made until then is kept for the next try."""
        dockerfile = await self.workshop.work(self._read)
        self.escape = dockerfile.escape
        arguments = Arguments(
            self.request.arguments,
            platform_values(self._target, platforms.host(), self.request.target),
            dockerfile.escape,
        )
        await self._candidates()
        self.graph = await self.workshop.work(
            lambda: graph.plan(dockerfile, arguments, self.request.target, self.request.labels)
        )
        state: State | None = None
        try:
            found = await self._all(dockerfile, arguments)
            if not found.layers and not found.document.get("history"):
                raise InvalidArgument(
                    "No image was generated. Is your Dockerfile empty?", subject="dockerfile"
                )
            state = found
            names = tuple(reference.parse_tagged(name).canonical for name in self.request.names)
            image = await self.cache.finish(state, names)
            self.workshop.tell_tagged(image, names)
            return image
        except BaseException:
            self._ended.set()
            if state is None:
                await self._keep()
            raise
        finally:
            self._ended.set()
            for fd in self._fds:
                os.close(fd)

    async def _candidates(self) -> None:
        """The images of --cache-from that are here."""
        images = self.workshop.world.images
        self.cache.limited = bool(self.request.cache_from)
        for name in self.request.cache_from:
            with suppress(NotFound):
                found = await self.workshop.work(partial(images.resolve, name))
                self.cache.candidates.append(await self.workshop.work(partial(self.bench.base, found.id)))

    async def _keep(self) -> None:
        """The steps that came to their end are for the next try."""
        keeping = asyncio.ensure_future(self.cache.finish(None, ()))
        try:
            await asyncio.shield(keeping)
        except asyncio.CancelledError:
            await asyncio.wait([keeping])
        except NagayaError as error:
            log.warning("the steps of a failed build are not kept: %s", error)

    def _read(self) -> Dockerfile:
        name, text = self.request.dockerfile, self.request.text
        if text is None:
            try:
                text = self.context.read(name)
            except NotFound:
                raise InvalidArgument(
                    f"Cannot locate specified Dockerfile: {name}", subject="dockerfile"
                ) from None
        if not text.strip():
            raise InvalidArgument(f"the Dockerfile ({name}) cannot be empty", subject="dockerfile")
        dockerfile = parse(text)
        self._ignore(name)
        return dockerfile

    def _ignore(self, name: str) -> None:
        for candidate in (f"{name}.dockerignore", ".dockerignore"):
            with suppress(NotFound):
                rules = Rules(read_ignore(self.context.read(candidate)))
                if rules.rules:
                    self.context.exclude(rules.excludes)
                return

    async def _all(self, dockerfile: Dockerfile, arguments: Arguments) -> State:
        nodes = self.graph.nodes
        self._lanes = lanes = Lanes(self.say, len(nodes))
        if dockerfile.warnings:
            await self.say(Said(_warned(dockerfile.warnings)))
        for number, argument in enumerate(dockerfile.args, 1):
            await self.say(Said(f"Step {number}/{self.graph.steps} : {argument.text}\n"))
        speaking = asyncio.ensure_future(lanes.run())
        for place, node in enumerate(nodes):
            self._stages[node.index] = asyncio.ensure_future(self._stage(place, node, arguments))
        working = list(self._stages.values())
        try:
            await _all_or_first_failure([speaking, *working])
        finally:
            for task in (speaking, *working):
                task.cancel()
            self._ended.set()
            await asyncio.wait([speaking, *working])
        unused = arguments.unused()
        if unused:
            await self.say(Said(f"[Warning] One or more build-args [{' '.join(unused)}] were not consumed\n"))
        return working[-1].result()[0]

    async def _stage(self, place: int, node: Node, arguments: Arguments) -> tuple[State, StageArguments]:
        lane = self._lanes.all[place]
        try:
            if node.base.stage is not None:  # others are waited for when something is copied out of them
                await asyncio.shield(self._stages[node.base.stage])
            await lane.text(f"Step {node.first}/{self.graph.steps} : {node.begin.text}\n")
            parent = None
            if node.base.stage is not None:
                state, parent = self._stages[node.base.stage].result()
            else:
                state = await self.base(node.base, lane)
            stage = StageRun(self, node, lane, state, StageArguments(arguments, parent))
            return await stage.run(), stage.arguments
        finally:
            self._lanes.done(place)

    def check(self) -> None:
        """Raise Cancelled when the build is over. Called in threads."""
        if self._ended.is_set():
            raise Cancelled("the build was cancelled")

    def hold(self, fd: int) -> int:
        """Keep a descriptor open until the end of the build."""
        self._fds.append(fd)
        return fd

    # what is built on, and copied from

    async def base(self, source: Source, lane: Lane) -> State:
        """What FROM an image begins with. Raises NotFound and what a pull raises."""
        platform = source.platform or self._target
        if source.image == graph.SCRATCH:
            return State.scratch(platform)
        wanted = str(platform) if source.platform or self.request.platform else ""
        key = (source.image, wanted)
        if key not in self._bases:
            self._bases[key] = asyncio.ensure_future(self._image(source.image, wanted, lane))
        return await asyncio.shield(self._bases[key])

    async def _image(self, name: str, wanted: str, lane: Lane) -> State:
        images = self.workshop.world.images
        found = None
        if not self.request.pull:
            with suppress(NotFound):
                found = await self.workshop.work(lambda: images.resolve(name, wanted))
        if found is None:
            async for progress in self.workshop.pull(name, wanted, self.request.auths):
                await lane.say(Said(progress=progress))
            found = await self.workshop.work(lambda: images.resolve(name, wanted))
        image = found
        return await self.workshop.work(lambda: State.of(self.bench.base(image.id)))

    async def origin(self, text: str, asking: int) -> tuple[int, list[str]]:
        """(root, its layers' directories from the top down) of what --from names in a stage, "" for the
        context. It may be a trigger of an image that names a stage: that the graph does not know."""
        if not text:
            return self.context.root, [self.context.directory]
        source = self.graph.origin(text)
        if source.stage is not None:
            order = list(self._stages)
            if source.stage not in order[: order.index(asking)]:
                raise InvalidArgument(
                    f"invalid from flag value {text}: no stage that is built before this one", subject=text
                )
            state = (await asyncio.shield(self._stages[source.stage]))[0]
        else:
            state = await self.base(source, self._lanes.all[-1])
        key = state.diff_ids
        if key not in self._roots:
            self._roots[key] = asyncio.ensure_future(
                self.workshop.work(lambda: self.hold(self.workshop.files(key)))
            )
        layers = await self.workshop.work(lambda: self.workshop.lower(key))
        return await asyncio.shield(self._roots[key]), layers

    async def writable(self, layers: list[str], held: AsyncExitStack) -> int:
        """A root in which what is written is thrown away with `held`."""
        root, drop = await self.workshop.work(lambda: self.workshop.writable(self.bench, layers))

        def undo() -> None:
            os.close(root)
            drop()

        held.push_async_callback(self.workshop.work, undo)
        return root

    async def secret(self, data: bytes, owner: tuple[int, int], mode: int, held: AsyncExitStack) -> int:
        """A tmpfs, attached nowhere, with one file: "secret"."""

        def work() -> int:
            fd = kernel.fsopen("tmpfs")
            try:
                kernel.fsconfig_string(fd, "mode", "0700")
                kernel.fsconfig_create(fd)
                root = kernel.fsmount(fd)
            finally:
                os.close(fd)
            try:
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
                with open(os.open("secret", flags, 0o600, dir_fd=root), "wb") as file:
                    file.write(data)
                    os.fchown(file.fileno(), *owner)
                    os.fchmod(file.fileno(), mode & 0o7777)
            except BaseException:
                os.close(root)
                raise
            return root

        root = await self.workshop.work(work)
        held.callback(os.close, root)
        return root

    async def passing(self, state: State) -> str:
        """The id of an image, until the end of the build, of which containers can be made."""
        if not self.bench.is_image(state.id):
            self.bench.pass_image(state.encoded)
        return state.id


def _warned(warnings: Iterable[Warning]) -> str:
    """As moby's parser does, in the colour of stderr."""
    lines = [f"[WARNING]: {warning.message.replace(': ', f':{chr(10)}    ', 1)}" for warning in warnings]
    lines.append("[WARNING]: Empty continuation lines will become errors in a future release.")
    return coloured(2, "".join(f"{line}\n" for line in lines))


async def _all_or_first_failure(tasks: Sequence[asyncio.Future[Any]]) -> None:
    """Raises what the one that fails first of itself raises."""
    pending = set(tasks)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()


def _epoch(request: BuildRequest) -> int | None:
    """SOURCE_DATE_EPOCH. Raises InvalidArgument."""
    text = request.arguments.get("SOURCE_DATE_EPOCH")
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 11:
        raise InvalidArgument(f"invalid SOURCE_DATE_EPOCH: {text[:40]}", subject="SOURCE_DATE_EPOCH")
    return int(text)
