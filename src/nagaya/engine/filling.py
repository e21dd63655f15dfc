"""What a volume begins with: the files that the image has at its place, copied once, all or nothing.

They are copied beside the volume, and moved into it when all are there. A directory's name says how far
that has come, so a crash at any point leaves a volume that is empty, or one whose filling `settle` ends:

    STAGE          being copied: thrown away
    STAGE-whole    complete, being moved: what is still in it belongs into the volume
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable
from contextlib import suppress

from nagaya.engine import files
from nagaya.engine.layered import LayeredRoot
from nagaya.errors import InvalidArgument, NotFound
from nagaya.image.content import disk_error

_COPY_CHUNK = 1 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_HIDDEN = ".nagaya-filling"


def stage_of(data: str, *, mounted: bool) -> str:
    """Where the files for the volume at `data` are gathered: beside it, and in it where something is
    mounted there, as no file can be moved across a mount."""
    return f"{data}/{_HIDDEN}" if mounted else f"{os.path.dirname(data)}/_filling"


def copy_up(
    image: LayeredRoot,
    target: str,
    data: str,
    *,
    mounted: bool = False,
    point: Callable[[str], None] = lambda name: None,
) -> None:
    """Fill the volume at data, if it is empty, with what the image has at target, owners and modes
    included. One fills it at a time: two containers may be made with the same volume.

    Only directories, regular files and symbolic links are taken; links are copied, not followed.
    Raises ResourceExhausted, KernelError; the volume is empty then. point: the journal's failpoint.
    """
    stage = stage_of(data, mounted=mounted)
    try:
        volume = os.open(data, _DIRECTORY)
        try:
            fcntl.flock(volume, fcntl.LOCK_EX)  # let go when it is closed
            settle(stage, data)
            if os.listdir(volume):
                return
            try:
                directories = image.directories(target)
            except (NotFound, InvalidArgument):
                return
            try:
                _gather(image, directories, stage)
            finally:
                for directory in directories:
                    os.close(directory)
            point("fill: gathered")
            os.rename(stage, f"{stage}-whole")
            point("fill: whole")
            settle(stage, data)
        finally:
            os.close(volume)
    except OSError as error:
        raise disk_error(error, "fill volume from image", data) from None


def is_something(image: LayeredRoot, target: str) -> bool:
    """Has the image a directory there?"""
    try:
        directories = image.directories(target)
    except (NotFound, InvalidArgument):
        return False
    for directory in directories:
        os.close(directory)
    return True


def settle(stage: str, data: str) -> None:
    """End or undo a filling that did not come to its end. May be repeated. Raises OSError, KernelError."""
    files.remove_tree(stage)
    try:
        whole = os.open(f"{stage}-whole", _DIRECTORY)
    except FileNotFoundError:
        return
    try:
        volume = os.open(data, _DIRECTORY)
        try:
            info = os.fstat(whole)
            os.fchown(volume, info.st_uid, info.st_gid)
            os.fchmod(volume, stat.S_IMODE(info.st_mode))
            for name in os.listdir(whole):
                with suppress(FileNotFoundError):
                    os.stat(name, dir_fd=volume, follow_symlinks=False)
                    continue  # somebody's own, written since
                os.rename(name, name, src_dir_fd=whole, dst_dir_fd=volume)
        finally:
            os.close(volume)
    finally:
        os.close(whole)
    files.remove_tree(f"{stage}-whole")


def _gather(image: LayeredRoot, directories: list[int], stage: str) -> None:
    os.mkdir(stage, 0o700)
    fd = os.open(stage, _DIRECTORY)
    try:
        try:
            _copy(image, directories, fd)
        except OSError:
            files.remove_tree(stage)
            raise
        info = os.fstat(directories[0])
        os.fchown(fd, info.st_uid, info.st_gid)
        os.fchmod(fd, stat.S_IMODE(info.st_mode))
    finally:
        os.close(fd)


def _copy(image: LayeredRoot, sources: list[int], target: int) -> None:
    for name, holder, info in image.entries(sources):
        kind = stat.S_IFMT(info.st_mode)
        if kind == stat.S_IFDIR:
            os.mkdir(name, 0o700, dir_fd=target)
            below = image.below(sources, holder, name)
            inner = os.open(name, _DIRECTORY, dir_fd=target)
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
