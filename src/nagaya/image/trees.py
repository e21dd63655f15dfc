"""Directory trees whose content is a stranger's: removing and measuring them.

Nothing is followed and no mount is crossed (RESOLVE_NO_XDEV sees bind mounts too); the number of
open fds does not grow with the depth, which an image chooses.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from nagaya.errors import FailedPrecondition, KernelError
from nagaya.linux import paths

_HERE = paths.RESOLVE_BENEATH | paths.RESOLVE_NO_SYMLINKS | paths.RESOLVE_NO_XDEV
_ROUNDS = 1000
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def remove(parent: int, name: str | bytes, scratch: int | None = None) -> None:
    """Remove the tree `name` below the open directory `parent`. A missing one is fine.

    Subdirectories are first renamed into `scratch` (default: parent; the same file system), so
    that depth costs nothing. Raises FailedPrecondition when something is mounted in the tree:
    nothing behind a mount is touched.
    """
    scratch = parent if scratch is None else scratch
    text = os.fsdecode(name)
    pending = [(parent, text)]
    made = rounds = 0
    while pending:
        where, current = pending.pop()
        try:
            fd = paths.openat2(where, current, _DIRECTORY, 0, _HERE)
        except KernelError as error:
            if error.errno == errno.ENOENT:
                continue
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                os.unlink(current, dir_fd=where)
                continue
            if error.errno == errno.EXDEV:
                raise _mounted(text) from None
            raise
        try:
            for entry in _entries(fd):
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.name, dir_fd=fd)
                    continue
                moved = f".gone-{text[:64]}-{made}"
                made += 1
                try:
                    os.rename(entry.name, moved, src_dir_fd=fd, dst_dir_fd=scratch)
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    remove(fd, entry.name, scratch)  # no room for a name: where it is, before all else
                else:
                    pending.append((scratch, moved))
        except OSError as error:
            if error.errno in (errno.EBUSY, errno.EXDEV):
                raise _mounted(text) from None
            raise
        finally:
            os.close(fd)
        try:
            os.rmdir(current, dir_fd=where)
        except OSError as error:
            # some file systems skip names when others vanish under their readdir: look again
            if error.errno != errno.ENOTEMPTY or rounds > _ROUNDS:
                raise
            rounds += 1
            pending.append((where, current))


def _entries(fd: int) -> Iterator[os.DirEntry[str]]:
    with os.scandir(fd) as entries:
        yield from entries


def usage(directory: int) -> tuple[int, int]:
    """(bytes of regular files, number of entries) below the open directory; a file with several
    links counts once. What vanishes meanwhile is not counted."""
    size = count = 0
    seen: set[tuple[int, int]] = set()
    pending = ["."]
    while pending:
        current = pending.pop()
        try:
            fd = paths.openat2(directory, current, _DIRECTORY, 0, _HERE)
        except KernelError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV):
                continue
            raise
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    count += 1
                    if entry.is_dir(follow_symlinks=False):
                        path = f"{current}/{entry.name}"
                        if len(path) < 4096:
                            pending.append(path)
                        continue
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    if entry.is_file(follow_symlinks=False):
                        if status.st_nlink > 1:
                            key = (status.st_dev, status.st_ino)
                            if key in seen:
                                continue
                            seen.add(key)
                        size += status.st_size
        finally:
            os.close(fd)
    return size, count


def _mounted(name: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"something is mounted below {name}: unmount it first", subject=name, step=f"remove {name}"
    )
