"""What a container has written becomes a layer archive (OCI image-spec, layer.md, "Applying Changesets").

The upper directory of an overlay says it in overlayfs' way (a character device 0:0 is a name that is
gone, trusted.overlay.opaque a directory that hides what was below); an archive says it by names:
`.wh.NAME`, `.wh..wh..opq`. Sockets are left out, as by dockerd.

A builder's upper directory becomes the unpacked layer itself: it is then made to be what unpacking the
archive would give.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable, Iterator

from nagaya.errors import FailedPrecondition, KernelError
from nagaya.image import members, trees
from nagaya.image.members import Links
from nagaya.linux import paths

_OPAQUE = "trusted.overlay.opaque"
_HERE = paths.RESOLVE_BENEATH | paths.RESOLVE_NO_SYMLINKS | paths.RESOLVE_NO_XDEV
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_LONGEST = 4096  # bytes of a path
_SECOND = 10**9


def archive(
    upper: int,
    ours: frozenset[str],
    check: Callable[[], None],
    *,
    tidy: bool = False,
    latest: int | None = None,
) -> Iterator[bytes]:
    """The layer of the open upper directory; no bytes at all when it has no changes.

    ours: paths ("etc/hosts") that were made to be mounted on, and are no change as long as they are
    empty. check may raise to stop. tidy: nobody else has the directory, and it becomes what the archive
    says: what that leaves out is removed, fractions of seconds go. latest: seconds since the epoch that no
    time may be after (only with tidy). Raises FailedPrecondition, KernelError, DataLoss (a file that
    shrinks meanwhile).
    """
    links: Links = {}
    pending = [""]
    begun = False
    while pending:
        path = pending.pop()
        check()
        fd = _open(upper, path)
        try:
            status = os.fstat(fd)
            entries = [
                (name, os.stat(name, dir_fd=fd, follow_symlinks=False)) for name in sorted(os.listdir(fd))
            ]
            if tidy:
                entries = [
                    (name, _settled(fd, name, info, latest))
                    for name, info in entries
                    if not _dropped(upper, fd, name, info, ours, f"{path}/{name}".lstrip("/"))
                ]
                os.utime(fd, ns=(_time(status, latest),) * 2)
            if path:
                yield _folder(fd, path)
            elif _is_opaque(fd):
                yield _gone(".wh..wh..opq")
                begun = True
            deeper = []
            for name, info in entries:
                shown = f"{path}/{name}".lstrip("/")
                if shown in ours and _untouched(upper, fd, name, info, ours, shown):
                    continue
                begun = True
                if name.startswith(".wh."):
                    raise FailedPrecondition(
                        f"/{shown}: a name that begins with .wh. means in a layer that another is gone",
                        subject=f"/{shown}",
                        step="make layer",
                    )
                if stat.S_ISDIR(info.st_mode):
                    deeper.append(shown)
                elif stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:
                    yield _gone(f"{path}/.wh.{name}".lstrip("/"))
                else:
                    yield from members.member(fd, name, shown, links, _kept)
            pending += reversed(deeper)
        finally:
            os.close(fd)
    if begun:
        yield bytes(2 * tarfile.BLOCKSIZE)


def _dropped(
    upper: int, directory: int, name: str, info: os.stat_result, ours: frozenset[str], shown: str
) -> bool:
    """Remove what the archive leaves out; was it so?"""
    if not stat.S_ISSOCK(info.st_mode) and not (
        shown in ours and _untouched(upper, directory, name, info, ours, shown)
    ):
        return False
    trees.remove(directory, name)
    return True


def _settled(directory: int, name: str, info: os.stat_result, latest: int | None) -> os.stat_result:
    """Give what is no directory the time that its archive has."""
    if stat.S_ISDIR(info.st_mode) or info.st_mtime_ns == _time(info, latest):
        return info
    os.utime(name, ns=(_time(info, latest),) * 2, dir_fd=directory, follow_symlinks=False)
    return os.stat(name, dir_fd=directory, follow_symlinks=False)


def _time(info: os.stat_result, latest: int | None) -> int:
    seconds = info.st_mtime_ns // _SECOND
    return _SECOND * (seconds if latest is None else min(seconds, latest))


def _kept(name: str) -> bool:
    """Attributes that a layer brings back (image.layers): not overlayfs' own, nor the host's labels."""
    wanted = name == "security.capability" or name.startswith(("user.", "system.posix_acl_"))
    return wanted and not name.startswith("user.overlay.")


def _open(upper: int, path: str) -> int:
    if len(os.fsencode(path)) >= _LONGEST:
        raise FailedPrecondition(f"/{path[:80]}...: a path of more than {_LONGEST} bytes", step="make layer")
    try:
        return paths.openat2(upper, path or ".", _DIRECTORY, 0, _HERE)
    except KernelError as error:
        raise KernelError(
            error.message, subject=f"/{path}", step=f"make layer of /{path}", errno=error.errno
        ) from None


def _folder(fd: int, path: str) -> bytes:
    info = members.info_of(os.fstat(fd), path, tarfile.DIRTYPE)
    members.add_xattrs(info, fd, _kept)
    head = members.header(info)
    return head + _gone(f"{path}/.wh..wh..opq") if _is_opaque(fd) else head


def _gone(name: str) -> bytes:
    info = tarfile.TarInfo(name)
    info.mode = 0o600
    return members.header(info)


def _is_opaque(fd: int) -> bool:
    try:
        return os.getxattr(fd, _OPAQUE) == b"y"
    except OSError:
        return False


def _untouched(
    upper: int, directory: int, name: str, info: os.stat_result, ours: frozenset[str], shown: str
) -> bool:
    """Is it as it was made to be mounted on: an empty file, or a directory with nothing else in it?"""
    if stat.S_ISREG(info.st_mode):
        return info.st_size == 0
    if not stat.S_ISDIR(info.st_mode):
        return False
    fd = _open(upper, shown)
    try:
        if _is_opaque(fd):
            return False
        for inner in os.listdir(fd):
            path = f"{shown}/{inner}"
            status = os.stat(inner, dir_fd=fd, follow_symlinks=False)
            if path not in ours or not _untouched(upper, fd, inner, status, ours, path):
                return False
        return True
    finally:
        os.close(fd)
