"""COPY and ADD: files of a source become files of a root, which is mounted for us alone.

As dockerd's classic builder: a directory's content is merged into the destination, links in a tree stay
links, a destination that is a link is followed inside the root, parents that are missing are made.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress

import msgspec

from nagaya.build import sources
from nagaya.engine.copying import Unpack
from nagaya.engine.view import Place, View
from nagaya.errors import DataLoss, FailedPrecondition, InvalidArgument, KernelError, NagayaError, NotFound
from nagaya.image import streams
from nagaya.image.content import disk_error, write_all
from nagaya.image.jobs import Check
from nagaya.image.tar import TarReader
from nagaya.linux import paths

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CHUNK = 8 << 20
_KEPT = ("security.capability", "user.", "system.posix_acl_")


class Item(msgspec.Struct, frozen=True):
    """One thing to be copied: a path below an open root, and what a file is called then; below: the
    directories that --parents keeps. unpack: it is an archive, and its files are meant. data: a file's
    content instead. excluded: what of the tree stays away, by paths relative to root."""

    root: int
    path: str
    name: str
    below: str = ""
    unpack: bool = False
    data: bytes | None = None
    mode: int = 0o644
    time: int | None = None  # nanoseconds, of `data`
    excluded: sources.Excluded = sources.nothing


class Placing(msgspec.Struct, frozen=True):
    """Where to, and how. destination: absolute; directory: it is one, as the instruction says. owner None: as
    archives have it and, with `keep`, as the source has it, else root's. mode: of everything, None for as it
    was."""

    destination: str
    directory: bool
    owner: tuple[int, int] | None = None
    mode: int | None = None
    keep: bool = False


def copy(target: int, items: Iterable[Item], placing: Placing, check: Check) -> None:
    """Copy all into the root `target`. Raises FailedPrecondition, InvalidArgument, ResourceExhausted,
    KernelError; what was copied before stays."""
    copier = _Copier(target, placing, check)
    for item in items:
        try:
            copier.copy(item)
        except OSError as error:
            raise disk_error(error, f"copy {item.path}", item.path) from None


def is_archive(root: int, path: str) -> bool:
    """Is the file at a path an archive that ADD unpacks?"""
    try:
        return TarReader(streams.archive_pieces(_pieces(root, path))).next_entry() is not None
    except NagayaError:
        return False


def _pieces(root: int, path: str) -> Iterator[bytes]:
    fd = paths.openat2(root, path, _READ, 0, paths.RESOLVE_BENEATH | paths.RESOLVE_NO_SYMLINKS)
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            while piece := os.read(fd, 1 << 20):
                yield piece
    finally:
        os.close(fd)


class _Copier:
    def __init__(self, target: int, placing: Placing, check: Check) -> None:
        self._target = target
        self._placing = placing
        self._check = check
        self._owner = placing.owner or (0, 0)
        self._keep = placing.keep and placing.owner is None
        self._links: dict[tuple[int, int], tuple[int, str]] = {}

    def copy(self, item: Item) -> None:
        placing = self._placing
        where = posixpath.join(placing.destination, item.below) if item.below else placing.destination
        if item.data is not None:
            directory, name = self._place(where, item.name)
            try:
                self._write(directory, name, item)
            finally:
                os.close(directory)
            return
        info = sources.look(item.root, item.path)
        if stat.S_ISDIR(info.st_mode):
            self._tree(item, where)
            return
        if item.unpack:
            self._unpack(item, where)
            return
        parent, name = paths.split(item.path)
        source = paths.openat2(item.root, parent or ".", _DIRECTORY, 0, paths.RESOLVE_BENEATH)
        try:
            directory, last = self._place(where, item.name)
            try:
                self._file(source, name, directory, last, info)
            finally:
                os.close(directory)
        finally:
            os.close(source)

    def _place(self, where: str, name: str) -> tuple[int, str]:
        """(open directory, name) that a file comes to: below `where` when that is a directory."""
        if self._placing.directory or self._is_directory(where):
            return self._directory(where), name
        final = paths.resolve_in_root(self._target, where)
        parent, last = paths.split(final)
        return self._directory(parent), last

    def _is_directory(self, path: str) -> bool:
        try:
            os.close(paths.open_in_root(self._target, path, os.O_PATH | os.O_DIRECTORY))
        except KernelError:
            return False
        return True

    def _directory(self, path: str, owner: tuple[int, int] | None = None) -> int:
        """Open the directory at a path, made with its parents where it is missing."""
        final = paths.resolve_in_root(self._target, path)
        try:
            os.close(paths.mkdirs_in_root(self._target, final, owner=owner or self._owner))
            return paths.openat2(self._target, final or ".", _DIRECTORY, 0, paths.RESOLVE_BENEATH)
        except NotADirectoryError:
            raise FailedPrecondition(f"cannot copy to non-directory: /{final}", subject=path) from None
        except KernelError as error:
            if error.message == "not a directory":
                raise FailedPrecondition(f"cannot copy to non-directory: /{final}", subject=path) from None
            raise

    def _tree(self, item: Item, where: str) -> None:
        """What lies in a directory comes into `where`, which is made where it is missing."""
        fresh = not self._is_directory(where)
        top = self._directory(where, (0, 0))
        times: list[tuple[str, int]] = []
        open_ = {"": top}
        try:
            for shown, source, name, status in sources.walk(item.root, item.path, item.excluded):
                self._check()
                parent = shown.rpartition("/")[0]
                if parent not in open_:
                    open_ = self._only(open_, parent, top)
                    open_[parent] = self._below(top, parent)
                if stat.S_ISDIR(status.st_mode):
                    self._make(open_[parent], name, source, status)
                    times.append((shown, status.st_mtime_ns))
                else:
                    self._file(source, name, open_[parent], name, status)
            if fresh:
                os.fchown(top, *self._owner)
                if self._placing.mode is not None:
                    os.fchmod(top, self._placing.mode)
            for shown, time in reversed(times):
                fd = self._below(top, shown)
                try:
                    os.utime(fd, ns=(time, time))
                finally:
                    os.close(fd)
        finally:
            for fd in open_.values():
                os.close(fd)
            self._forget()

    @staticmethod
    def _only(open_: dict[str, int], path: str, top: int) -> dict[str, int]:
        """Of the open directories those on the way to a path; the others are closed."""
        kept = {}
        for name, fd in open_.items():
            if fd == top or path.startswith(f"{name}/"):
                kept[name] = fd
            else:
                os.close(fd)
        return kept

    def _below(self, top: int, path: str) -> int:
        """Open a directory of the copy; of an excluded one that holds what is not, it is made here."""
        flags = paths.RESOLVE_BENEATH | paths.RESOLVE_NO_SYMLINKS
        try:
            return paths.openat2(top, path, _DIRECTORY, 0, flags)
        except KernelError:
            os.close(paths.mkdirs_in_root(top, path, owner=self._owner))
            return paths.openat2(top, path, _DIRECTORY, 0, flags)

    def _make(self, directory: int, name: str, source: int, info: os.stat_result) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=directory)
        except FileExistsError:
            there = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if not stat.S_ISDIR(there.st_mode):
                raise FailedPrecondition(f"cannot copy to non-directory: {name}", subject=name) from None
        fd = os.open(name, _DIRECTORY, dir_fd=directory)
        try:
            os.fchown(fd, *self._owned(info))
            os.fchmod(fd, self._mode(info))
            _copy_xattrs(source, name, fd)
        finally:
            os.close(fd)

    def _owned(self, info: os.stat_result) -> tuple[int, int]:
        return (info.st_uid, info.st_gid) if self._keep else self._owner

    def _mode(self, info: os.stat_result) -> int:
        return stat.S_IMODE(info.st_mode) if self._placing.mode is None else self._placing.mode

    def _file(self, source: int, name: str, directory: int, last: str, info: os.stat_result) -> None:
        """Copy what is no directory; what is there goes, but for a directory."""
        kind = stat.S_IFMT(info.st_mode)
        self._clear(directory, last)
        if kind == stat.S_IFREG:
            self._regular(source, name, directory, last, info)
            return
        if kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=source), last, dir_fd=directory)
        elif kind == stat.S_IFSOCK:
            return
        else:
            os.mknod(last, kind | 0o600, info.st_rdev, dir_fd=directory)
            os.chmod(last, self._mode(info), dir_fd=directory)  # made just now, in a root that is ours
        os.chown(last, *self._owned(info), dir_fd=directory, follow_symlinks=False)
        os.utime(last, ns=(info.st_mtime_ns,) * 2, dir_fd=directory, follow_symlinks=False)

    def _regular(self, source: int, name: str, directory: int, last: str, info: os.stat_result) -> None:
        key = (info.st_dev, info.st_ino)
        if info.st_nlink > 1 and key in self._links:
            first, called = self._links[key]
            os.link(called, last, src_dir_fd=first, dst_dir_fd=directory, follow_symlinks=False)
            return
        read = os.open(name, _READ, dir_fd=source)
        try:
            if not stat.S_ISREG(os.fstat(read).st_mode):
                raise DataLoss(f"{name} changed while it was copied", subject=name)
            write = os.open(last, _NEW, 0o600, dir_fd=directory)
            try:
                while os.sendfile(write, read, None, _CHUNK):
                    self._check()
                os.fchown(write, *self._owned(info))
                os.fchmod(write, self._mode(info))
                for attribute in filter(lambda a: a.startswith(_KEPT), os.listxattr(read)):
                    os.setxattr(write, attribute, os.getxattr(read, attribute))
                os.utime(write, ns=(info.st_mtime_ns,) * 2)
            finally:
                os.close(write)
        finally:
            os.close(read)
        if info.st_nlink > 1:
            self._links[key] = (os.dup(directory), last)

    def _write(self, directory: int, name: str, item: Item) -> None:
        self._clear(directory, name)
        fd = os.open(name, _NEW, 0o600, dir_fd=directory)
        try:
            write_all(fd, item.data or b"")
            os.fchown(fd, *self._owner)
            os.fchmod(fd, item.mode if self._placing.mode is None else self._placing.mode)
            if item.time is not None:
                os.utime(fd, ns=(item.time, item.time))
        finally:
            os.close(fd)

    def _clear(self, directory: int, name: str) -> None:
        try:
            os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            pass
        except IsADirectoryError:
            raise FailedPrecondition(f"cannot overwrite directory {name} with a file", subject=name) from None

    def _unpack(self, item: Item, where: str) -> None:
        os.close(self._directory(where))
        view = View([Place("/", os.dup(self._target), "", False)])
        try:
            archive = streams.archive_pieces(_pieces(item.root, item.path))
            final = f"/{paths.resolve_in_root(self._target, where)}"
            Unpack(view, final, "", strict=False, owner=self._placing.owner).run(archive)
        finally:
            view.close()

    def _forget(self) -> None:
        for fd, _ in self._links.values():
            os.close(fd)
        self._links.clear()


def _copy_xattrs(source: int, name: str, target: int) -> None:
    """Of a directory."""
    fd = os.open(name, _DIRECTORY, dir_fd=source)
    try:
        for attribute in os.listxattr(fd):
            if attribute.startswith(_KEPT):
                os.setxattr(target, attribute, os.getxattr(fd, attribute))
    finally:
        os.close(fd)


def make_directory(target: int, path: str, owner: tuple[int, int]) -> None:
    """WORKDIR: the directory is there. Raises FailedPrecondition, KernelError."""
    placing = Placing(path, True, owner)
    with suppress(NotFound):
        os.close(_Copier(target, placing, lambda: None)._directory(path))


def mode_of(text: str) -> int | None:
    """--chmod. Raises InvalidArgument."""
    if not text:
        return None
    if len(text) > 5 or set(text) - set("01234567"):
        raise InvalidArgument(
            f"invalid chmod parameter: '{text[:40]}'. it should be octal string and between 0 and 07777"
        )
    return int(text, 8) & 0o7777
