"""Which stages a build needs, and what each of them needs: pure, and of no API.

Stages that the target does not need are left out; those that do not need one another may run at the same
time. Names are resolved as moby/buildkit's dockerfile2llb does: FROM sees the stages before it, COPY --from
and RUN --mount=from= see all.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

import msgspec

from nagaya.build.arguments import Arguments
from nagaya.build.language import expand, mounts
from nagaya.build.language.ast import (
    Copy,
    Dockerfile,
    DockerfileError,
    From,
    Instruction,
    Label,
    Pair,
    Run,
)
from nagaya.errors import InvalidArgument
from nagaya.oci import platform as platforms
from nagaya.oci.platform import Platform

SCRATCH = "scratch"


class Source(msgspec.Struct, frozen=True):
    """Where files come from: a stage of this build (its number), else an image (a reference as written,
    "scratch" for none). platform None: the build's target."""

    stage: int | None = None
    image: str = ""
    platform: Platform | None = None


class Node(msgspec.Struct, frozen=True):
    """A stage. index: its number in the file. first: the number of its FROM among the build's steps, from 1.
    needs: stages that must be complete before, or while, it runs."""

    index: int
    name: str
    begin: From
    base: Source
    instructions: tuple[Instruction, ...]
    needs: frozenset[int]
    first: int = 0


class Graph(msgspec.Struct, frozen=True):
    """nodes: the needed stages, in an order in which each comes after what it needs; the last is the target.
    steps: how many steps there are in all, the global ARGs included. names: of all stages of the file."""

    nodes: tuple[Node, ...]
    steps: int
    names: Mapping[str, int]
    stages: int

    @property
    def target(self) -> Node:
        """The stage whose image is the result."""
        return self.nodes[-1]

    def origin(self, text: str) -> Source:
        """What COPY --from or a mount's from= names. Raises DockerfileError for a number of no stage."""
        return _origin(text, self.names, self.stages)


def plan(
    dockerfile: Dockerfile,
    arguments: Arguments,
    target: str = "",
    labels: Mapping[str, str] | None = None,
) -> Graph:
    """The graph of what `target` ("" is the last stage) needs. Declares the file's global ARGs in
    `arguments`.

    labels: further ones of the target. Raises DockerfileError: an unknown target, a base without a name, a
    circle, a platform that is none.
    """
    if not dockerfile.stages:
        raise DockerfileError("no build stage in current context")
    for arg in dockerfile.args:
        arguments.declare(arg)
    names: dict[str, int] = {}
    bases: list[Source] = []
    for index, stage in enumerate(dockerfile.stages):
        bases.append(_base(stage.begin, names, arguments))
        if stage.begin.name:
            names[stage.begin.name] = index
    last = _target(target, names, len(bases))
    needs = [_needs(dockerfile, index, bases[index], names) for index in range(len(bases))]
    nodes: list[Node] = []
    steps = len(dockerfile.args)
    for index in _ordered(last, needs, dockerfile):
        stage = dockerfile.stages[index]
        instructions = stage.instructions
        if index == last:
            instructions += tuple(_label(name, value) for name, value in sorted((labels or {}).items()))
        node = Node(index, stage.begin.name, stage.begin, bases[index], instructions, needs[index], steps + 1)
        steps += 1 + len(instructions)
        nodes.append(node)
    return Graph(tuple(nodes), steps, names, len(bases))


def _label(name: str, value: str) -> Label:
    return Label(text=f"LABEL {name}={value}", pairs=(Pair(name, value),), literal=True)


def _base(begin: From, names: Mapping[str, int], arguments: Arguments) -> Source:
    try:
        base = expand.word(begin.base, arguments.globals, arguments.escape)
        platform = expand.word(begin.platform, arguments.globals, arguments.escape)
        if not base:
            raise DockerfileError(f"base name ({begin.base}) should not be blank")
        if base.lower() in names:
            return Source(names[base.lower()])
        return Source(None, base, platforms.parse(platform) if platform else None)
    except InvalidArgument as error:
        raise DockerfileError(error.message, begin.line) from None


def _target(target: str, names: Mapping[str, int], stages: int) -> int:
    if not target:
        return stages - 1
    if target.lower() in names:
        return names[target.lower()]
    if target.isdecimal() and len(target) < 6 and int(target) < stages:
        return int(target)
    raise DockerfileError(f'target stage "{target[:80]}" could not be found')


def _origin(text: str, names: Mapping[str, int], stages: int) -> Source:
    if text.lower() in names:
        return Source(names[text.lower()])
    if text.isdecimal():
        if len(text) > 5 or int(text) >= stages:
            raise DockerfileError(f"invalid from flag value {text[:40]}: index out of bounds")
        return Source(int(text))
    return Source(None, text)


def _needs(dockerfile: Dockerfile, index: int, base: Source, names: Mapping[str, int]) -> frozenset[int]:
    found = set() if base.stage is None else {base.stage}
    for instruction in dockerfile.stages[index].instructions:
        try:
            for text in _origins(instruction):
                source = _origin(text, names, len(dockerfile.stages))
                if source.stage == index:
                    raise DockerfileError(
                        f"invalid from flag value {text[:80]}: refers to current build stage"
                    )
                if source.stage is not None:
                    found.add(source.stage)
        except DockerfileError as error:
            raise DockerfileError(error.message, instruction.line) from None
    return frozenset(found)


def _origins(instruction: Instruction) -> list[str]:
    if isinstance(instruction, Copy):
        return [instruction.origin] if instruction.origin else []
    if isinstance(instruction, Run):
        return [found for found in map(mounts.origin, instruction.mount_flags) if found]
    return []


def _ordered(last: int, needs: list[frozenset[int]], dockerfile: Dockerfile) -> list[int]:
    """What `last` needs, each after its own needs, in the file's order where that is free.

    Without recursion: a file may have more stages than Python's stack has frames.
    """
    needed, open_ = {last}, [last]
    while open_:
        fresh = needs[open_.pop()] - needed
        needed |= fresh
        open_ += fresh
    waits = {index: len(needs[index]) for index in needed}
    followers: dict[int, list[int]] = {index: [] for index in needed}
    for index in needed:
        for need in needs[index]:
            followers[need].append(index)
    ready = [index for index in needed if not waits[index]]
    heapq.heapify(ready)
    found: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        found.append(index)
        for follower in followers[index]:
            waits[follower] -= 1
            if not waits[follower]:
                heapq.heappush(ready, follower)
    if len(found) < len(needed):
        begin = dockerfile.stages[min(needed.difference(found))].begin
        raise DockerfileError(
            f"circular dependency detected on stage: {begin.name or begin.base}", begin.line
        )
    found.remove(last)
    return [*found, last]
