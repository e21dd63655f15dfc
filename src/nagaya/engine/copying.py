"""`docker cp`: files out of a container as a tar stream, and a tar stream into it.

What names mean is dockerd's (GET and PUT /containers/ID/archive); how they are reached safely is
`view`'s. The container's processes may rename, replace and remove at any moment: every object is opened
once, by its name in an open directory, never followed, and used by its fd.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from nagaya.engine.layered import LayeredRoot
from nagaya.engine.view import View, clean
from nagaya.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    KernelError,
    NotFound,
    PermissionDenied,
)
from nagaya.image import members, streams, trees
from nagaya.image.tar import (
    BLOCK_DEVICE,
    CHARACTER,
    DIRECTORY,
    FIFO,
    HARDLINK,
    REGULAR,
    Entry,
    TarReader,
    show,
)
from nagaya.linux import paths
from nagaya.linux.caps import acting_as

_PIECE = 256 << 10
_HERE = paths.RESOLVE_BENEATH | paths.RESOLVE_NO_SYMLINKS | paths.RESOLVE_NO_XDEV
_ENTRY = paths.RESOLVE_BENEATH | paths.RESOLVE_NO_XDEV  # with O_NOFOLLOW: the link itself
_LONGEST = 4096  # bytes of a path: deeper trees are cut there, as the kernel would refuse them
_CAPABILITY = "security.capability"
_MAX_ID = 2**32 - 2
_OPEN = os.O_NOFOLLOW | os.O_CLOEXEC
_NODES = {FIFO: stat.S_IFIFO, CHARACTER: stat.S_IFCHR, BLOCK_DEVICE: stat.S_IFBLK}


Owner = tuple[int, int] | None


class PathStat(NamedTuple):
    """What is at a path: its name as asked for, lstat, and where a link leads in the container."""

    name: str
    info: os.stat_result
    link: str


def look(view: View, path: str, ref: str) -> PathStat:
    """A link at the end is followed only before "/" or "/.". Raises NotFound, InvalidArgument."""
    name = "." if path.endswith("/.") else clean(path).rpartition("/")[2] or "/"
    try:
        if path.endswith(("/", "/.")):
            return PathStat(name, _directory_at(view, path), "")
        fd, last = view.parent(path)
        try:
            info = os.stat(last, dir_fd=fd, follow_symlinks=False)
            link = os.readlink(last, dir_fd=fd) if stat.S_ISLNK(info.st_mode) else ""
        finally:
            os.close(fd)
    except (NotFound, FileNotFoundError, NotADirectoryError) as error:
        if error.errno == errno.ENOTDIR:
            raise InvalidArgument(f"{path}: not a directory", subject="path") from None
        raise NotFound(f"Could not find the file {path} in container {ref}", subject=path) from None
    return PathStat(
        name, info, clean(f"{clean(path)}/../{link}" if link[:1] != "/" else link) if link else ""
    )


def _directory_at(view: View, path: str) -> os.stat_result:
    """Of a directory, also of one that the view does not enter: a tmpfs, one of the kernel's."""
    try:
        fd = view.directory(path)
    except NotFound as error:
        if error.errno != errno.EXDEV:
            raise
        fd, last = view.parent(path)
        try:
            info = os.stat(last, dir_fd=fd, follow_symlinks=False)
        finally:
            os.close(fd)
        if not stat.S_ISDIR(info.st_mode):
            raise
        return info
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


# out of the container


def pack(view: View, path: str, found: PathStat) -> Iterator[bytes]:
    """The tar stream of what `look` found: named by the last component asked for, "." included."""
    links: dict[tuple[int, int], str] = {}
    if not stat.S_ISDIR(found.info.st_mode):
        fd, last = view.parent(path)
        try:
            yield from members.member(fd, last, found.name, links, owners=view.inside)
        finally:
            os.close(fd)
    elif _is_ours(view, path):
        yield from _tree(view, clean(path), found.name, links)
    else:  # one of the kernel's file systems, or a tmpfs: left empty
        yield members.header(members.info_of(found.info, found.name, tarfile.DIRTYPE, view.inside))
    yield bytes(2 * tarfile.BLOCKSIZE)


def pack_root(layers: LayeredRoot) -> Iterator[bytes]:
    """The tar stream of a whole root from its layers, without what is mounted in it. It may be changing."""
    links: dict[tuple[int, int], str] = {}
    pending = [""]
    while pending:
        path = pending.pop()
        try:
            fds = layers.directories(path)
        except NotFound:
            continue  # gone meanwhile
        try:
            deeper = []
            for name, holder, info in sorted(layers.entries(fds)):
                shown = f"{path}/{name}".lstrip("/")
                if not stat.S_ISDIR(info.st_mode):
                    yield from members.member(fds[holder], name, shown, links)
                    continue
                yield members.header(members.info_of(info, shown, tarfile.DIRTYPE))
                if len(os.fsencode(shown)) < _LONGEST:
                    deeper.append(shown)
            pending += reversed(deeper)
        finally:
            for fd in fds:
                os.close(fd)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _is_ours(view: View, path: str) -> bool:
    """Is the directory one that the view reaches?"""
    try:
        os.close(view.directory(path))
    except NotFound:
        return False
    return True


def _tree(view: View, path: str, name: str, links: dict[tuple[int, int], str]) -> Iterator[bytes]:
    """A directory and all below it, in order, as deep as it goes with a few open fds."""
    top = view.directory(path)
    pending: list[tuple[str, os.stat_result]] = [(".", os.fstat(top))]
    try:
        while pending:
            current, before = pending.pop()
            inner = current.removeprefix(".").removeprefix("/")
            shown = f"{name.rstrip('/')}/{inner}" if inner else name
            mounted = view.mounted_at(clean(f"{path}/{inner}")) if inner else None
            if mounted is not None and not mounted.name:
                yield from _tree(view, clean(f"{path}/{inner}"), shown, links)
                continue
            try:
                fd = paths.openat2(top, current, os.O_RDONLY | os.O_DIRECTORY, 0, _HERE)
            except KernelError as error:
                if error.errno == errno.EXDEV:  # one of the kernel's file systems, or a tmpfs: left empty
                    yield members.header(members.info_of(before, shown, tarfile.DIRTYPE, view.inside))
                elif error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # gone meanwhile
                    raise
                continue
            try:
                yield members.header(members.info_of(os.fstat(fd), shown, tarfile.DIRTYPE, view.inside))
                deeper = []
                for entry in sorted(os.listdir(fd)):
                    try:
                        info = os.stat(entry, dir_fd=fd, follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    if stat.S_ISDIR(info.st_mode):
                        if len(os.fsencode(f"{current}/{entry}")) < _LONGEST:
                            deeper.append((f"{current}/{entry}", info))
                        continue
                    name_there = f"{shown.rstrip('/')}/{entry}"
                    file = view.mounted_at(clean(f"{path}/{inner}/{entry}"))
                    if file is not None and file.name:
                        yield from members.member(file.fd, file.name, name_there, links, owners=view.inside)
                    else:
                        yield from members.member(fd, entry, name_there, links, owners=view.inside)
                pending += reversed(deeper)
            finally:
                os.close(fd)
    finally:
        os.close(top)


# into the container


class Unpack:
    """A tar stream's way into the directory `path`. owner: whose everything becomes, None for as archived."""

    def __init__(self, view: View, path: str, ref: str, *, strict: bool, owner: Owner) -> None:
        """strict: a directory never replaces another thing, nor is replaced by one. Raises
        PermissionDenied where nothing may be written, NotFound, InvalidArgument."""
        self._view = view
        self._path = clean(path)
        self._strict = strict
        self._owner = owner
        self._times: dict[str, int] = {}
        try:
            os.close(view.directory(self._path))
        except NotFound as error:
            if error.errno == errno.ENOTDIR:
                raise InvalidArgument("extraction point is not a directory", subject="path") from None
            raise NotFound(f"Could not find the file {path} in container {ref}", subject=path) from None
        check_writable(view, self._path)

    def run(self, pieces: Iterable[bytes]) -> None:
        """Unpack it all. Raises NagayaError; what was unpacked before it stays. The thread makes the files as
        root of the container: it must be one for this work."""
        try:
            with acting_as(*self._view.outside(0, 0)):
                self._run(TarReader(streams.pieces(pieces)))
        except DataLoss as error:  # an archive cut short is a wrong request
            raise InvalidArgument(error.message, subject="archive") from None

    def _run(self, reader: TarReader) -> None:
        while (entry := reader.next_entry()) is not None:
            try:
                self._add(entry, reader)
            except OSError as error:
                raise KernelError(
                    os.strerror(error.errno or 0).lower(),
                    subject=show(entry.name),
                    step=f"unpack {show(entry.name)}",
                    errno=error.errno or 0,
                ) from None
        reader.drain()
        for path in sorted(self._times, reverse=True):
            with suppress(NotFound):  # the container may have removed it
                fd = self._view.directory(path)
                try:
                    os.utime(paths.fd_path(fd), ns=(self._times[path],) * 2)
                finally:
                    os.close(fd)

    def _target(self, name: bytes) -> str:
        parts = [part for part in os.fsdecode(name).split("/") if part not in ("", ".")]
        if ".." in parts or len(name) > _LONGEST:
            raise InvalidArgument(f"a name with '..' in it, or too long: {show(name)}", subject="archive")
        return clean("/".join([self._path, *parts]))

    def _add(self, entry: Entry, reader: TarReader) -> None:
        path = self._target(entry.name)
        if path == self._path:
            if entry.kind != DIRECTORY:
                raise InvalidArgument("the archive's root is not a directory", subject="archive")
            return
        if not 0 <= entry.uid <= _MAX_ID or not 0 <= entry.gid <= _MAX_ID:
            raise InvalidArgument(f"{show(entry.name)}: owner {entry.uid}:{entry.gid} is out of range")
        check_writable(self._view, path)
        if self._view.place(path)[0].name:
            raise _busy(entry)
        os.close(self._view.make_directory(path.rpartition("/")[0] or "/"))
        directory, name = self._view.parent(path)
        try:
            if name == ".":
                return  # a volume's own directory: it stays as it is
            self._clear(directory, name, entry)
            if entry.kind == DIRECTORY:
                self._directory(directory, name, path, entry)
            elif entry.kind == REGULAR:
                self._regular(directory, name, entry, reader)
            elif entry.kind == HARDLINK:
                self._hardlink(directory, name, entry)
            else:
                self._special(directory, name, entry)
        finally:
            os.close(directory)

    def _clear(self, directory: int, name: str, entry: Entry) -> None:
        """Make room: what is there goes, a directory only for something else than a directory. What is
        mounted stays: unlinking below it would unmount it in the container (rename(2) says EBUSY there)."""
        try:
            fd = paths.openat2(directory, name, os.O_PATH | os.O_NOFOLLOW, 0, _ENTRY)
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return
            if error.errno == errno.EXDEV and entry.kind != DIRECTORY:
                raise _busy(entry) from None
            if error.errno == errno.EXDEV:
                return
            raise
        try:
            there = stat.S_ISDIR(os.fstat(fd).st_mode)
        finally:
            os.close(fd)
        if there and entry.kind == DIRECTORY:
            return
        if self._strict and (there or entry.kind == DIRECTORY):
            had, new = ("directory", "non-directory") if there else ("non-directory", "directory")
            raise FailedPrecondition(
                f'cannot overwrite {had} "{show(entry.name)}" with {new} in "{self._path}"', subject="archive"
            )
        # trees.remove needs an fd that lists, and never follows
        holder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
        try:
            trees.remove(holder, name)
        finally:
            os.close(holder)

    def _owned(self, entry: Entry) -> tuple[int, int]:
        return self._view.outside(*(self._owner or (entry.uid, entry.gid)))

    def _directory(self, directory: int, name: str, path: str, entry: Entry) -> None:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=directory)
        try:
            fd = paths.openat2(directory, name, os.O_RDONLY | os.O_DIRECTORY, 0, _HERE)
        except KernelError as error:
            if error.errno == errno.EXDEV:
                return  # something is mounted there: its root stays as it is
            raise
        try:
            os.fchown(fd, *self._owned(entry))
            os.fchmod(fd, entry.mode & 0o7777)
        finally:
            os.close(fd)
        self._times[path] = entry.mtime

    def _regular(self, directory: int, name: str, entry: Entry, reader: TarReader) -> None:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OPEN, 0o600, dir_fd=directory)
        with open(fd, "wb", buffering=0) as file:

            def write(piece: bytes) -> None:
                view = memoryview(piece)
                while view:
                    view = view[file.write(view) :]

            reader.copy(write)
            os.fchown(fd, *self._owned(entry))
            os.fchmod(fd, entry.mode & 0o7777)
            capability = (entry.xattrs or {}).get(_CAPABILITY.encode())
            if capability is not None:
                os.setxattr(fd, _CAPABILITY, capability)
            os.utime(fd, ns=(entry.mtime, entry.mtime))

    def _hardlink(self, directory: int, name: str, entry: Entry) -> None:
        try:
            source, last = self._view.parent(self._target(entry.link))
        except NotFound:
            raise InvalidArgument(
                f"{show(entry.name)}: hard link to {show(entry.link)}, which is not there", subject="archive"
            ) from None
        try:
            os.link(last, name, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)
        finally:
            os.close(source)

    def _special(self, directory: int, name: str, entry: Entry) -> None:
        kind = _NODES.get(entry.kind)
        if kind is None:
            os.symlink(entry.link, os.fsencode(name), dir_fd=directory)
        else:
            os.mknod(name, kind | 0o600, os.makedev(entry.major, entry.minor), dir_fd=directory)
        os.chown(name, *self._owned(entry), dir_fd=directory, follow_symlinks=False)
        if kind is not None:
            # by an fd that cannot be a link: chmod(2) by name would follow what was put there meanwhile
            fd = os.open(name, os.O_PATH | _OPEN, dir_fd=directory)
            try:
                if stat.S_IFMT(os.fstat(fd).st_mode) == kind:
                    os.chmod(paths.fd_path(fd), entry.mode & 0o7777)
            finally:
                os.close(fd)
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=directory, follow_symlinks=False)


def _busy(entry: Entry) -> FailedPrecondition:
    return FailedPrecondition(f"unlinkat {show(entry.name)}: device or resource busy", subject="archive")


def check_writable(view: View, path: str) -> None:
    """Raises PermissionDenied, in dockerd's words, where the container may not write either."""
    place, _ = view.place(clean(path))
    if place.read_only:
        what = "container rootfs" if place.target == "/" else "mounted volume"
        raise PermissionDenied(f"{what} is marked read-only", subject=path)
