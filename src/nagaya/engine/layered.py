"""Files of an overlay that is not mounted, looked up as the kernel would (overlayfs.rst).

A container's root exists only in its own mount namespace; what the engine must know of it (users,
the content that a new volume starts with) is read through the layer directories: the upper one
first, whiteouts and opaque directories honoured. Everything is fd-relative, and links are resolved
here, against the image, never by the kernel against the host.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from nagaya.errors import InvalidArgument, NotFound

MAX_FILE = 10 << 20
_MAX_RESTARTS = 100  # links and ".." of one look-up; the kernel stops at 40 links


class LayeredRoot:
    """Reads files of an overlay that is not mounted: `directories` from the top down."""

    def __init__(self, directories: Sequence[str]) -> None:
        self._directories = directories

    def read(self, path: str, limit: int = MAX_FILE) -> bytes:
        """The content of the regular file at path. Raises NotFound, and InvalidArgument for
        anything that is not a regular file of at most `limit` bytes."""
        dirs, holder, name = self._find(path)
        try:
            if not name:
                raise InvalidArgument("is a directory", subject="/")
            return _read_regular(dirs[holder], name, path, limit)
        finally:
            _close(dirs)

    def directories(self, path: str) -> list[int]:
        """Open the layers' directories that together are the directory at path, from the top down.

        The fds are the caller's. Raises NotFound, also when it is no directory.
        """
        dirs, holder, name = self._find(path)
        if not name:
            return dirs
        try:
            found = _descend(dirs, holder, name)
        finally:
            _close(dirs)
        if not found:
            raise NotFound("not a directory", subject=path)
        return found

    def _find(self, path: str) -> tuple[list[int], int, str]:
        """(open directories that hold the last component, index of the one that has it, its name),
        all links followed; the name is "" for the root itself. Raises NotFound, InvalidArgument."""
        parts = [p for p in path.split("/") if p not in ("", ".")]
        for _ in range(_MAX_RESTARTS):
            # for reading, not O_PATH: the root itself may be what is asked for, and be listed
            dirs = [os.open(d, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for d in self._directories]
            try:
                found = self._walk(dirs, parts)
            except BaseException:
                _close(dirs)
                raise
            if not isinstance(found, list):
                return dirs, *found
            _close(dirs)
            parts = found
        raise InvalidArgument("too many symbolic links", subject=path)

    def _walk(self, dirs: list[int], parts: list[str]) -> tuple[int, str] | list[str]:
        """Descend in place; after a link or "..", the parts to start again with from the root. What
        lies before the current part is then known to be real directories."""
        for index, name in enumerate(parts):
            if name == "..":
                return parts[: max(index - 1, 0)] + parts[index + 1 :]
            holder, info = _first(dirs, name)
            if stat.S_ISLNK(info.st_mode):
                target = os.readlink(name, dir_fd=dirs[holder])
                base = [] if target.startswith("/") else parts[:index]
                inner = [p for p in target.split("/") if p not in ("", ".")]
                return [*base, *inner, *parts[index + 1 :]]
            if index == len(parts) - 1:
                return holder, name
            if not stat.S_ISDIR(info.st_mode):
                raise NotFound("not a directory", subject="/".join(parts[: index + 1]))
            below = _descend(dirs, holder, name)
            _close(dirs)
            dirs[:] = below
        return 0, ""

    def entries(self, dirs: list[int]) -> list[tuple[str, int, os.stat_result]]:
        """(name, index of the layer that has it, lstat) of everything in a merged directory."""
        found: dict[str, tuple[str, int, os.stat_result]] = {}
        hidden: set[str] = set()
        for index, fd in enumerate(dirs):
            for name in os.listdir(fd):
                if name in found or name in hidden:
                    continue
                info = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:
                    hidden.add(name)
                else:
                    found[name] = (name, index, info)
        return list(found.values())

    def below(self, dirs: list[int], holder: int, name: str) -> list[int]:
        """The merged directory `name` in a merged directory; the fds are the caller's."""
        return _descend(dirs, holder, name)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
    fds.clear()


def _first(dirs: list[int], name: str) -> tuple[int, os.stat_result]:
    for index, fd in enumerate(dirs):
        try:
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise NotFound(os.strerror(error.errno or 0), subject=name, errno=error.errno or 0) from None
        if stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:
            break  # a whiteout
        return index, info
    raise NotFound("no such file", subject=name, errno=errno.ENOENT)


def _descend(dirs: list[int], holder: int, name: str) -> list[int]:
    below: list[int] = []
    for fd in dirs[holder:]:
        try:
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        except FileNotFoundError:
            continue
        except OSError:
            break  # a whiteout or a file: what is below is hidden
        below.append(inner)
        try:
            if os.getxattr(inner, "trusted.overlay.opaque") == b"y":
                break
        except OSError:
            continue
    return below


def _read_regular(dirfd: int, name: str, subject: str, limit: int) -> bytes:
    try:
        # O_NONBLOCK: a FIFO must not stop us; opening a device must not have effects
        if not stat.S_ISREG(os.stat(name, dir_fd=dirfd, follow_symlinks=False).st_mode):
            raise InvalidArgument("is not a regular file", subject=f"/{subject}")
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dirfd)
    except OSError as error:
        raise NotFound(os.strerror(error.errno or 0), subject=f"/{subject}", errno=error.errno or 0) from None
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise InvalidArgument("is not a regular file", subject=f"/{subject}")
        if info.st_size > limit:
            raise InvalidArgument(f"is larger than {limit} bytes", subject=f"/{subject}")
        out = bytearray()
        while len(out) <= limit:
            chunk = os.read(fd, min(1 << 20, limit + 1 - len(out)))
            if not chunk:
                return bytes(out)
            out += chunk
        raise InvalidArgument(f"is larger than {limit} bytes", subject=f"/{subject}")
    finally:
        os.close(fd)
