"""A stage: its instructions one after the other, each making of one state the next."""

from __future__ import annotations

import codecs
from functools import partial
from typing import TYPE_CHECKING

from nagaya.build import copying, run, settings
from nagaya.build.arguments import StageArguments
from nagaya.build.graph import Node
from nagaya.build.language.ast import (
    Add,
    Arg,
    Cmd,
    Copy,
    DockerfileError,
    Healthcheck,
    Instruction,
    Maintainer,
    Run,
    Workdir,
)
from nagaya.build.language.expand import expand
from nagaya.build.language.parse import parse_trigger
from nagaya.build.output import Lane
from nagaya.build.state import State, key
from nagaya.build.transfer import make_directory
from nagaya.engine import filling
from nagaya.engine.layered import LayeredRoot
from nagaya.image.building import Layer
from nagaya.oci import digest as digests

if TYPE_CHECKING:
    from nagaya.build.execute import Build


_Decoder = codecs.getincrementaldecoder("utf-8")

_QUICK = 1 << 14  # characters that are expanded at once


class StageRun:
    """One stage of one build. Lives on the event loop."""

    def __init__(self, build: Build, node: Node, lane: Lane, state: State, arguments: StageArguments) -> None:
        self.build = build
        self.node = node
        self.lane = lane
        self.state = state
        self.arguments = arguments
        self.parent = ""  # the last step's key
        self._commanded = False
        self._container = ""  # of the last RUN
        self._decoders = {number: _Decoder("replace") for number in (1, 2)}

    async def run(self) -> State:
        """The state after the last instruction. Raises NagayaError."""
        empty = not (self.state.layers or self.state.document.get("config"))  # FROM scratch is no image
        triggers = [str(t) for t in self.state.config.get("OnBuild") or ()]
        self.state = self.state.with_config(settings.with_path(self.state.config))
        if triggers:
            await self.lane.text(f"# Executing {len(triggers)} build trigger{'s' * (len(triggers) > 1)}\n")
        for trigger in triggers:
            await self._step(parse_trigger(trigger))
        await self._arrived("" if empty and not triggers else digests.short(self.state.id))
        for number, instruction in enumerate(self.node.instructions, self.node.first + 1):
            await self.lane.text(f"Step {number}/{self.build.graph.steps} : {instruction.text}\n")
            if isinstance(instruction, Healthcheck):
                await self._overriding()
            await self._step(instruction)
            await self._arrived(digests.short(self.state.id))
        return self.state

    async def _arrived(self, at: str) -> None:
        """The image to which a step, or FROM with its triggers, has led."""
        await self.lane.text(f" ---> {at}\n")

    async def _overriding(self) -> None:
        test = (self.state.config.get("Healthcheck") or {}).get("Test") or ["NONE"]
        if test[0] != "NONE":
            await self.lane.text(f"Note: overriding previous HEALTHCHECK: [{' '.join(test)}]\n")

    async def _step(self, instruction: Instruction) -> None:
        try:
            instruction = await self._expanded(instruction)
            cached, self.state = await self._made(instruction)
        except DockerfileError as error:
            raise DockerfileError(error.message, error.line or instruction.line) from None
        if cached:
            await self.lane.text(" ---> Using cache\n")
        elif self._container:
            await self.lane.text(f"Removing intermediate container {self._container[:12]}\n")
        self._container = ""

    async def _expanded(self, instruction: Instruction) -> Instruction:
        """Beside the loop when that may take long: a Dockerfile is a stranger's."""
        visible = self.arguments.visible(self.state.config.get("Env") or ())
        work = partial(expand, instruction, visible, self.build.escape)
        documents = instruction.inline if isinstance(instruction, Copy | Add) else ()
        size = len(instruction.text) + sum(len(document.content) for document in documents)
        if size + sum(map(len, visible.values())) > _QUICK:
            return await self.build.workshop.work(work)
        return work()

    async def _made(self, instruction: Instruction) -> tuple[bool, State]:
        match instruction:
            case Run():
                return await run.run(self, instruction)
            case Copy() | Add():
                return await copying.place(self, instruction)
            case Workdir():
                return await self._workdir(instruction)
            case Arg():
                self.arguments.declare(instruction.args)
        self._commanded = self._commanded or isinstance(instruction, Cmd)
        config = settings.apply(self.state.config, instruction, self._commanded)
        author = instruction.name if isinstance(instruction, Maintainer) else None
        said = settings.created_by(config, instruction)
        name = key("config", self.state.config, self.state.diff_ids, said, author)
        step = await self.build.cache.step(name, self.parent, instruction.text, self.state, said)
        self.parent = name
        return step.cached, self.state.after(config, step.created, said, author=author)

    async def _workdir(self, instruction: Workdir) -> tuple[bool, State]:
        """The directory is made when it is not there."""
        state, build = self.state, self.build
        config = settings.apply(state.config, instruction)
        path = str(config["WorkingDir"])
        name = key("directory", state.diff_ids, path, build.epoch)

        async def make() -> Layer | None:
            def work() -> Layer | None:
                if filling.is_something(LayeredRoot(build.workshop.lower(state.diff_ids)), path):
                    return None
                return build.workshop.change(
                    build.bench,
                    state.diff_ids,
                    lambda root: make_directory(root, path, (0, 0)),
                    build.check,
                    build.epoch,
                )

            return await build.workshop.work(work)

        said = settings.created_by(config, instruction)
        step = await build.cache.step(name, self.parent, instruction.text, state, said, make)
        self.parent = name
        return step.cached, state.after(config, step.created, said, step.layer)

    async def output(self, stream: int, data: bytes) -> None:
        """What RUN's command writes."""
        text = self._decoders[stream].decode(data)  # a character may come in two pieces
        if text:
            await self.lane.text(run.coloured(stream, text))

    async def running(self, container_id: str) -> None:
        """RUN's container is there."""
        self._container = container_id
        self._decoders = {number: _Decoder("replace") for number in (1, 2)}
        await self.lane.text(f" ---> Running in {container_id[:12]}\n")
