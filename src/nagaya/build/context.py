"""The client's files: its archive unpacked into a private directory, as long as the build runs.

The archive is a stranger's: it is unpacked by the image room's own reader, below one descriptor, and bounded.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable

from nagaya.build import sources
from nagaya.errors import DataLoss, InvalidArgument, KernelError, NotFound
from nagaya.image import layers, streams
from nagaya.image.jobs import Check
from nagaya.image.layers import Limits
from nagaya.linux import paths

MAX_DOCKERFILE = 8 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LIMITS = Limits()


class Context:
    """The files below `root`, an open directory. Blocking."""

    def __init__(self, directory: str) -> None:
        """directory: new and private."""
        self.directory = f"{directory}/{layers.FILES}"
        self._home = os.open(directory, _DIRECTORY)
        self.root = -1

    def unpack(self, archive: Iterable[bytes], check: Check) -> None:
        """Take in the client's archive (plain, gzip, bzip2, xz, zstd). Raises InvalidArgument,
        ResourceExhausted, KernelError, and what check raises."""
        try:
            pieces = streams.limited(streams.archive_pieces(archive), _LIMITS.size)
            layers.unpack(pieces, self._home, _LIMITS, check, whiteouts=False)
        except DataLoss as error:  # cut short: a wrong request
            raise InvalidArgument(f"Error processing tar file: {error.message}", subject="context") from None
        self.root = os.open(layers.FILES, _DIRECTORY, dir_fd=self._home)

    def fill(self, name: str, data: bytes) -> None:
        """Instead: one file."""
        os.mkdir(layers.FILES, 0o755, dir_fd=self._home)
        self.root = os.open(layers.FILES, _DIRECTORY, dir_fd=self._home)
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        with open(os.open(name, flags, 0o644, dir_fd=self.root), "wb") as file:
            file.write(data)

    def close(self) -> None:
        """Let the descriptors go; the files are their maker's to remove."""
        for fd in (self.root, self._home):
            if fd >= 0:
                os.close(fd)

    def read(self, path: str, limit: int = MAX_DOCKERFILE) -> bytes:
        """A file's content, links followed inside. Raises NotFound, InvalidArgument."""
        try:
            fd = paths.open_in_root(self.root, path, os.O_RDONLY | os.O_NONBLOCK)
        except KernelError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise NotFound("no such file or directory", subject=path) from None
            raise
        with open(fd, "rb") as file:
            if paths.is_dir(fd):
                raise InvalidArgument(f"{path}: is a directory", subject=path)
            data = file.read(limit + 1)
        if len(data) > limit:
            raise InvalidArgument(f"{path} has more than {limit} bytes", subject=path)
        return data

    def exclude(self, excluded: Callable[[str], bool]) -> None:
        """Remove what .dockerignore leaves out, and directories that hold nothing else."""
        gone = []
        for path, _, _, _ in sources.walk(self.root, "", lambda path: not excluded(path)):
            gone.append(path)
        for path in reversed(gone):  # what is in a directory before it
            parent, name = paths.split(path)
            fd = paths.openat2(self.root, parent or ".", _DIRECTORY, 0, paths.RESOLVE_BENEATH)
            try:
                os.unlink(name, dir_fd=fd)
            except IsADirectoryError:
                try:
                    os.rmdir(name, dir_fd=fd)
                except OSError as error:
                    if error.errno != errno.ENOTEMPTY:  # something in it is wanted
                        raise
            finally:
                os.close(fd)
