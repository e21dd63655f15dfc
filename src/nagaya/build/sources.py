"""Files that COPY, ADD and bind mounts read: found by pattern, listed, hashed.

Their roots are strangers' trees (a client's context, a stage, an image): every path is resolved below the
root's descriptor (openat2(2), RESOLVE_IN_ROOT), and a link that leads out leads nowhere. What lies below a
source is never followed.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator

from nagaya.build.language import ignore
from nagaya.errors import InvalidArgument, KernelError, NotFound
from nagaya.linux import paths

Excluded = Callable[[str], bool]

_WILD = re.compile(r"[*?\[\\]")
_HERE = paths.RESOLVE_BENEATH | paths.RESOLVE_NO_SYMLINKS | paths.RESOLVE_NO_XDEV
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_LONGEST = 4096  # bytes of a path
_CAPABILITY = "security.capability"


def nothing(_: str) -> bool:
    """Excludes no path."""
    return False


def is_wild(pattern: str) -> bool:
    """Has the pattern other than plain characters?"""
    return _WILD.search(pattern) is not None


def find(root: int, pattern: str) -> list[tuple[str, str]]:
    """(path as named, where it leads) of what is meant below root, in order: by a pattern of Go's
    filepath.Match, or a plain path. Raises NotFound, InvalidArgument (a malformed pattern)."""
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    named = _matches(root, parts) if is_wild(pattern) else ["/".join(parts)]
    found = [(path, paths.resolve_in_root(root, path)) for path in named]
    for _, path in found:
        look(root, path)
    return found


def _matches(root: int, parts: list[str]) -> list[str]:
    matches = [""]
    for part in parts:
        fits = ignore.of_name(part)
        matches = [
            f"{base}/{name}".lstrip("/") for base in matches for name in _names(root, base) if fits(name)
        ]
    return sorted(matches)


def look(root: int, path: str) -> os.stat_result:
    """lstat(2) of a path below root, no link followed. Raises NotFound."""
    try:
        fd = paths.openat2(root, path or ".", os.O_PATH | os.O_NOFOLLOW, 0, paths.RESOLVE_BENEATH)
    except KernelError:
        raise NotFound("file does not exist", subject=path) from None
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def _names(root: int, path: str) -> list[str]:
    try:
        fd = paths.openat2(root, path or ".", _DIRECTORY, 0, _HERE)
    except KernelError:
        return []
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


def walk(
    root: int, path: str, excluded: Excluded = nothing
) -> Iterator[tuple[str, int, str, os.stat_result]]:
    """What lies below the directory `path`: (path relative to it, open directory, name, lstat), a directory
    before what is in it. excluded is asked for the paths relative to root; a directory that is excluded is
    looked into all the same. Raises KernelError, InvalidArgument."""
    pending = [""]
    while pending:
        inner = pending.pop()
        here = "/".join(part for part in (path, inner) if part)
        if len(os.fsencode(here)) >= _LONGEST:
            raise InvalidArgument(f"a path of more than {_LONGEST} bytes: {here[:80]}...")
        fd = paths.openat2(root, here or ".", _DIRECTORY, 0, _HERE)
        try:
            deeper = []
            for name in sorted(os.listdir(fd)):
                info = os.stat(name, dir_fd=fd, follow_symlinks=False)
                shown = f"{inner}/{name}".lstrip("/")
                if stat.S_ISDIR(info.st_mode):
                    deeper.append(shown)
                if not excluded(f"{here}/{name}".lstrip("/")):
                    yield shown, fd, name, info
            pending += reversed(deeper)
        finally:
            os.close(fd)


def digest(root: int, path: str, excluded: Excluded = nothing, *, owners: bool = False) -> str:
    """Hexadecimal, of everything at a path that a copy of it has: names, kinds, modes, contents, targets of
    links, and owners where asked; not of times. Raises NotFound, KernelError."""
    info = look(root, path)
    seen = hashlib.sha256()
    if not stat.S_ISDIR(info.st_mode):
        parent, name = paths.split(path)
        fd = paths.openat2(root, parent or ".", _DIRECTORY, 0, _HERE)
        try:
            seen.update(_line("", fd, name, info, owners))
        finally:
            os.close(fd)
        return seen.hexdigest()
    seen.update(b"%o\0" % info.st_mode)
    if owners:
        seen.update(b"%d:%d\0" % (info.st_uid, info.st_gid))
    for shown, fd, name, status in walk(root, path, excluded):
        seen.update(_line(shown, fd, name, status, owners))
    return seen.hexdigest()


def _line(shown: str, directory: int, name: str, info: os.stat_result, owners: bool) -> bytes:
    kind = stat.S_IFMT(info.st_mode)
    what = b""
    if kind == stat.S_IFREG:
        what = _content(directory, name)
    elif kind == stat.S_IFLNK:
        what = os.fsencode(os.readlink(name, dir_fd=directory))
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        what = b"%d" % info.st_rdev
    owner = b"%d:%d\0" % (info.st_uid, info.st_gid) if owners else b""
    return b"%d:%s%o\0%s%d:%s" % (len(shown), os.fsencode(shown), info.st_mode, owner, len(what), what)


def _content(directory: int, name: str) -> bytes:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    with open(fd, "rb", buffering=0) as file:
        found = hashlib.file_digest(file, "sha256").digest()
        try:
            return found + os.getxattr(fd, _CAPABILITY)
        except OSError:
            return found
