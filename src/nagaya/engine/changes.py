"""What a container has changed in its root: its writable layer against the image's (`docker diff`).

As dockerd's naive comparison: a file counts by mode, owner, size and time, a directory by mode and owner,
or by what changed in it. What the engine and the runtime put there as places to mount on does not count.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Literal, NamedTuple

from nagaya.engine.layered import LayeredRoot

_OPAQUE = "trusted.overlay.opaque"
_DEPTH = 512  # of directories, three descriptors and a frame each; what is deeper is not looked at
_OURS = frozenset(
    (
        "/.dockerenv",
        *("/dev", "/dev/console", "/dev/mqueue", "/dev/pts", "/dev/shm", "/proc", "/sys"),
        *("/etc", "/etc/hostname", "/etc/hosts", "/etc/mtab", "/etc/resolv.conf"),
    )
)


PLACES = frozenset(path.lstrip("/") for path in _OURS)
"""The same, relative to the root: what a commit leaves out as long as it is empty."""


class Change(NamedTuple):
    """One path, and what happened to it."""

    path: str
    kind: Literal["modified", "added", "deleted"]


def changes(upper: str, lower: Sequence[str]) -> list[Change]:
    """All changes, a directory before what is in it. The container may run."""
    image = LayeredRoot(lower)
    below = image.directories("/")
    top = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return list(_directory(image, top, below, "", _DEPTH))
    finally:
        _close([top, *below])


def _directory(image: LayeredRoot, top: int, below: list[int], path: str, left: int) -> Iterator[Change]:
    """The changes in one directory of the writable layer; below: the image's, if it has it."""
    old = {name: (holder, info) for name, holder, info in image.entries(below)}
    names = sorted(os.listdir(top))
    if below and _is_opaque(top):
        names = sorted({*names, *old})
    for name in names:
        where = f"{path}/{name}"
        former = old.get(name)
        try:
            info = os.stat(name, dir_fd=top, follow_symlinks=False)
        except FileNotFoundError:
            if former is not None:
                yield Change(where, "deleted")  # by its directory's being another
            continue
        if stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:
            if former is not None:
                yield Change(where, "deleted")
            continue
        if not stat.S_ISDIR(info.st_mode):
            if former is None and where not in _OURS:
                yield Change(where, "added")
            elif former is not None and _differ(former[1], info):
                yield Change(where, "modified")
            continue
        inner = _inner(image, top, below, name, former, where, left)
        if former is None:
            if where not in _OURS:
                yield Change(where, "added")
        elif inner or _differ(former[1], info):
            yield Change(where, "modified")
        yield from inner


def _inner(
    image: LayeredRoot,
    top: int,
    below: list[int],
    name: str,
    former: tuple[int, os.stat_result] | None,
    where: str,
    left: int,
) -> list[Change]:
    if not left:
        return []
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
    except OSError:
        return []  # gone meanwhile
    same = former is not None and stat.S_ISDIR(former[1].st_mode)
    deeper = image.below(below, former[0], name) if same and former is not None else []
    try:
        return list(_directory(image, fd, deeper, where, left - 1))
    finally:
        _close([fd, *deeper])


def _is_opaque(fd: int) -> bool:
    with suppress(OSError):
        return os.getxattr(fd, _OPAQUE) == b"y"
    return False


def _differ(old: os.stat_result, new: os.stat_result) -> bool:
    return _facts(old) != _facts(new)


def _facts(info: os.stat_result) -> tuple[int, ...]:
    found = (info.st_mode, info.st_uid, info.st_gid, info.st_rdev)
    return found if stat.S_ISDIR(info.st_mode) else (*found, info.st_size, info.st_mtime_ns)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
