"""COPY and ADD: what is meant, what it is called in the cache, and that it is copied once."""

from __future__ import annotations

import posixpath
import re
import stat
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from nagaya.build import downloads, sources, transfer
from nagaya.build.language import commands
from nagaya.build.language.ast import Add, Copy, DockerfileError
from nagaya.build.language.ignore import Rules
from nagaya.build.run import absolute
from nagaya.build.state import State, key
from nagaya.build.transfer import Item, Placing
from nagaya.engine import user
from nagaya.engine.layered import LayeredRoot
from nagaya.errors import FailedPrecondition, InvalidArgument, NotFound, Unimplemented
from nagaya.image.building import Layer

if TYPE_CHECKING:
    from nagaya.build.execute import Build
    from nagaya.build.stage import StageRun

_URL = re.compile(r"https?://", re.IGNORECASE)
_GIT = re.compile(r"git@|git://|https?://[^ ]*\.git(#|$)|github\.com/", re.IGNORECASE)


class _Meant(msgspec.Struct, frozen=True):
    """Everything that is copied. digest: of its content; kind: as history shows it, file, dir or multi."""

    items: tuple[Item, ...]
    digest: str
    kind: str


class _Found(NamedTuple):
    """One source: what is copied, its digest, and whether it is a file or a dir."""

    item: Item
    digest: str
    kind: str


async def place(stage: StageRun, instruction: Copy | Add) -> tuple[bool, State]:
    """Copy, or find that it was done; (was it cached, the state after it)."""
    build, state = stage.build, stage.state
    word = "COPY" if isinstance(instruction, Copy) else "ADD"
    config = dict(state.config)
    mode = transfer.mode_of(instruction.chmod)
    destination = absolute(config, instruction.destination)
    owner = await build.workshop.work(lambda: _owner(build.workshop.lower(state.diff_ids), instruction.chown))
    try:
        meant = await _meant(stage, instruction)
    except (NotFound, InvalidArgument, FailedPrecondition) as error:
        if isinstance(error, DockerfileError):
            raise
        raise FailedPrecondition(f"{word} failed: {error.message}", subject=error.subject) from None
    parents = isinstance(instruction, Copy) and instruction.parents
    slash = instruction.destination.endswith(("/", "/.")) or instruction.destination in (".", "")
    if len(meant.items) > 1 and not slash:
        raise FailedPrecondition(
            f"When using {word} with more than one source file, the destination must be a directory and end "
            "with a /"
        )
    placing = Placing(
        destination,
        slash or parents,
        owner if instruction.chown else None,
        mode,
        bool(isinstance(instruction, Copy) and instruction.origin),
    )
    below = () if instruction.link else state.diff_ids
    name = key("copy", below, destination, placing.directory, owner, mode, parents, meant.digest, build.epoch)

    async def make() -> Layer | None:
        def work() -> Layer | None:
            return build.workshop.change(
                build.bench,
                below,
                lambda root: transfer.copy(root, meant.items, placing, build.check),
                build.check,
                build.epoch,
            )

        try:
            return await build.workshop.work(work)
        except FailedPrecondition as error:
            raise FailedPrecondition(f"{word} failed: {error.message}", subject=error.subject) from None

    shell = " ".join(config.get("Shell") or commands.SHELL)
    chown = f"--chown={instruction.chown}" if instruction.chown else ""
    said = f"{shell} #(nop) {word} {chown}{meant.kind}:{meant.digest} in {instruction.destination} "
    step = await build.cache.step(name, stage.parent, instruction.text, state, said, make)
    stage.parent = name
    return step.cached, state.after(config, step.created, said, step.layer)


def _owner(layers: Sequence[str], text: str) -> tuple[int, int]:
    """--chown in the image. Raises InvalidArgument."""
    if not text:
        return 0, 0
    name, colon, group = text.partition(":")
    root = LayeredRoot(layers)
    try:
        if not (colon and group):  # the group that is called as the user, else the user's own
            try:
                return user.resolve(f"{name}:{name}", (), root)[:2]
            except InvalidArgument:
                return user.resolve(name, (), root)[:2]
        return user.resolve(text, (), root)[:2]
    except InvalidArgument as error:
        raise InvalidArgument(
            f"unable to convert uid/gid chown string to host mapping: {error.message}", subject="chown"
        ) from None


async def _meant(stage: StageRun, instruction: Copy | Add) -> _Meant:
    build = stage.build
    origin = instruction.origin if isinstance(instruction, Copy) else ""
    found: list[_Found] = []
    for text in instruction.sources:
        if isinstance(instruction, Add) and _GIT.search(text):
            raise Unimplemented(f"ADD of a git repository is not supported: {text[:200]}")
        if isinstance(instruction, Add) and _URL.match(text):
            found.append(await _downloaded(build, instruction, text))
            continue
        root, _ = await build.origin(origin, stage.node.index)
        found += await build.workshop.work(partial(_found, root, text, instruction, origin))
    for document in instruction.inline:
        text = document.text
        item = Item(-1, document.name, document.name, data=text.encode("utf-8", "surrogateescape"), time=0)
        found.append(_Found(item, key("document", text), "file"))
    if not found:
        raise NotFound("no source files were specified")
    # the content of a directory is copied, never its name
    names = ["" if kind == "dir" else item.name for item, _, kind in found]
    digest = key([(name, i.below, i.unpack, seen) for name, (i, seen, _) in zip(names, found, strict=True)])
    return _Meant(tuple(item for item, _, _ in found), digest, found[0].kind if len(found) == 1 else "multi")


async def _downloaded(build: Build, instruction: Add, url: str) -> _Found:
    item = await downloads.fetch(build, url, instruction.destination, instruction.checksum)
    if instruction.unpack:
        item = msgspec.structs.replace(item, unpack=True)
    digest = await build.workshop.work(partial(sources.digest, item.root, item.path))
    return _Found(item, digest, "file")


def _found(root: int, text: str, instruction: Copy | Add, origin: str) -> list[_Found]:
    """The files that a source names, with their digests and kinds. Blocking."""
    if posixpath.normpath(text).startswith("..") and not origin:
        raise InvalidArgument(f"forbidden path outside the build context: {text} ()", subject=text)
    pivot, inner = _pivot(text)
    try:
        paths = sources.find(root, inner if not pivot else f"{pivot}/{inner}")
    except NotFound:
        why = "" if origin else "file not found in build context or excluded by .dockerignore: "
        raise NotFound(f"{why}stat {text.strip('/')}: file does not exist", subject=text) from None
    rules = Rules(instruction.exclude)
    found = []
    parents = isinstance(instruction, Copy) and instruction.parents
    for named, path in paths:
        info = sources.look(root, path)
        folder = stat.S_ISDIR(info.st_mode)
        excluded: sources.Excluded = sources.nothing
        if instruction.exclude:
            excluded = _below(
                pivot if parents else path if folder else path.rpartition("/")[0], rules.excludes
            )
        if not folder and excluded(path):
            continue
        below = ""
        if parents:
            shown = named[len(pivot) :].strip("/") if pivot else named
            below = shown if folder else shown.rpartition("/")[0]
        unpack = False
        if isinstance(instruction, Add) and stat.S_ISREG(info.st_mode) and instruction.unpack is not False:
            unpack = transfer.is_archive(root, path)
        digest = sources.digest(root, path, excluded, owners=bool(origin) and not instruction.chown)
        item = Item(root, path, named.rpartition("/")[2], below, unpack, excluded=excluded)
        found.append(_Found(item, digest, "dir" if folder else "file"))
    return found


def _below(directory: str, excludes: sources.Excluded) -> sources.Excluded:
    """Patterns of --exclude are about paths in the source's directory, or where --parents begins."""
    if not directory:
        return excludes
    return lambda path: excludes(path[len(directory) + 1 :])


def _pivot(text: str) -> tuple[str, str]:
    """ "a/./b" is "b" below "a" for --parents: what comes before the dot is not kept."""
    head, mark, tail = text.lstrip("/").removeprefix("./").rpartition("/./")
    return (head, tail) if mark else ("", text)
