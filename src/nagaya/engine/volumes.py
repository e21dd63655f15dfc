"""Volumes: directories below ROOT/volumes, named or anonymous, filled from the image on first use."""

from __future__ import annotations

import os
import re
import shutil
import stat
import threading
import time

from nagaya.engine import files
from nagaya.engine.layered import LayeredRoot
from nagaya.engine.ledger import Ledger, Volume
from nagaya.engine.model import VolumeSummary
from nagaya.errors import InvalidArgument, NagayaError, NotFound
from nagaya.image import trees
from nagaya.image.content import disk_error

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_COPY_CHUNK = 1 << 20
_filling = threading.Lock()


def check_name(name: str) -> str:
    """A volume name by Docker's grammar. Raises InvalidArgument."""
    if _NAME.fullmatch(name) is None or len(name) > 255:
        raise InvalidArgument(
            f'"{name}" includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" '
            "are allowed. If you intended to pass a host directory, use absolute path",
            subject="volume",
        )
    return name


def path_of(root: str, name: str) -> str:
    """ROOT/volumes/NAME/_data."""
    return f"{root}/volumes/{name}/_data"


def summaries(ledger: Ledger, root: str) -> list[VolumeSummary]:
    """All volumes, by name."""
    return [
        VolumeSummary(row.name, row.created, path_of(root, row.name), row.anonymous, row.labels)
        for row in ledger.volumes()
    ]


def size(root: str, name: str) -> int:
    """Bytes of its files; 0 of a volume that is gone. Blocking. Raises KernelError."""
    try:
        fd = os.open(
            path_of(root, check_name(name)), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        )
    except FileNotFoundError:
        return 0
    try:
        return trees.usage(fd)[0]
    finally:
        os.close(fd)


def ensure(ledger: Ledger, root: str, name: str, *, anonymous: bool) -> str:
    """The host path of a volume, which is made when there is none: the directory first, then the row."""
    check_name(name)
    path = path_of(root, name)
    if ledger.volume(name) is not None:
        return path
    files.make_directory(os.path.dirname(path), 0o711)
    files.make_directory(path, 0o755)
    ledger.put_volume(Volume(name, time.time_ns(), anonymous))
    return path


def remove(ledger: Ledger, root: str, name: str) -> None:
    """Delete a volume and its files; the row goes first. Unknown ones do nothing."""
    ledger.delete_volume(check_name(name))
    shutil.rmtree(f"{root}/volumes/{name}", ignore_errors=True)


def copy_up(image: LayeredRoot, target: str, destination: str) -> None:
    """Fill a volume that is empty, new or not, with what the image has at target, owners and modes
    included. One is filled at a time: two containers may be made with the same volume.

    Only directories, regular files and symbolic links are taken; links are copied, not followed.
    Raises ResourceExhausted, KernelError; the volume is empty again then.
    """
    with _filling:
        try:
            if os.listdir(destination):
                return
            try:
                directories = image.directories(target)
            except (NotFound, InvalidArgument):
                return
            try:
                _fill(image, directories, destination)
            finally:
                for directory in directories:
                    os.close(directory)
        except OSError as error:
            raise disk_error(error, "fill volume from image", destination) from None


def _fill(image: LayeredRoot, directories: list[int], destination: str) -> None:
    fd = os.open(destination, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        info = os.fstat(directories[0])
        os.fchown(fd, info.st_uid, info.st_gid)
        os.fchmod(fd, stat.S_IMODE(info.st_mode))
        try:
            _copy(image, directories, fd)
        except OSError:
            for name in os.listdir(fd):
                trees.remove(fd, name)
            raise
    finally:
        os.close(fd)


def _copy(image: LayeredRoot, sources: list[int], target: int) -> None:
    for name, holder, info in image.entries(sources):
        kind = stat.S_IFMT(info.st_mode)
        if kind == stat.S_IFDIR:
            os.mkdir(name, 0o700, dir_fd=target)
            below = image.below(sources, holder, name)
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=target)
            try:
                _copy(image, below, inner)
                os.fchown(inner, info.st_uid, info.st_gid)
                os.fchmod(inner, stat.S_IMODE(info.st_mode))
            finally:
                os.close(inner)
                for fd in below:
                    os.close(fd)
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=sources[holder]), name, dir_fd=target)
            os.chown(name, info.st_uid, info.st_gid, dir_fd=target, follow_symlinks=False)
        elif kind == stat.S_IFREG:
            _copy_file(sources[holder], target, name)


def _copy_file(source: int, target: int, name: str) -> None:
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    read = os.open(name, os.O_RDONLY | os.O_NONBLOCK | flags, dir_fd=source)
    try:
        info = os.fstat(read)
        write = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags, 0o600, dir_fd=target)
        try:
            while os.sendfile(write, read, None, _COPY_CHUNK):
                pass
            os.fchown(write, info.st_uid, info.st_gid)
            os.fchmod(write, stat.S_IMODE(info.st_mode))
            os.utime(write, ns=(info.st_atime_ns, info.st_mtime_ns))
        finally:
            os.close(write)
    finally:
        os.close(read)


def bind_source(path: str, *, create: bool) -> str:
    """Check, or for `-v` make, the host path of a bind mount. Raises InvalidArgument in dockerd's words."""
    if not path.startswith("/"):
        raise InvalidArgument(f"invalid mount path: '{path}' mount path must be absolute", subject="Source")
    if not os.path.lexists(path):
        if not create:
            raise InvalidArgument(
                f'invalid mount config for type "bind": bind source path does not exist: {path}',
                subject="Source",
            )
        try:
            os.makedirs(path, mode=0o755, exist_ok=True)
        except OSError as error:
            raise NagayaError(
                f"error while creating mount source path '{path}': {os.strerror(error.errno or 0).lower()}",
                subject="Source",
                errno=error.errno or 0,
            ) from None
    return path
