"""A layer archive becomes a directory that overlayfs can stack (OCI image-spec, layer.md).

Every name of the archive is a stranger's. It is taken apart here, and each parent directory is
opened below the layer's own directory by `openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)`; the
last component is only ever made, linked or removed relative to that fd and never followed. The
directory is private (its parent is 0700) until the catalog has the layer.

Whiteouts take overlayfs' form: `.wh.NAME` is a character device 0:0 called NAME, an opaque directory
carries trusted.overlay.opaque=y. An opaque root has no such form: it is reported, and the snapshot
then leaves out all layers below it.

As dockerd, and unlike tar(1): a parent directory that the archive does not mention is made as
0755 root:root; an entry replaces what an earlier one left under its name, unless both are directories.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NoReturn

import msgspec

from nagaya.errors import InvalidArgument, KernelError, ResourceExhausted
from nagaya.image import trees
from nagaya.image.tar import (
    BLOCK_DEVICE,
    CHARACTER,
    DIRECTORY,
    FIFO,
    HARDLINK,
    REGULAR,
    SYMLINK,
    Entry,
    TarReader,
    show,
)
from nagaya.linux import paths

FILES = "fs"
OPAQUE_XATTR = "trusted.overlay.opaque"
_PREFIX = b".wh."
_META = b".wh..wh."
_OPAQUE = b".wh..wh..opq"
_PATH_MAX = 4096
_CACHED_DIRECTORIES = 64
_MAX_REMEMBERED = 256 << 20  # bytes of directories' and whiteouts' paths: those of 300 Debians
_ENTRY = 200  # bytes that Python takes for one, beside the path
_MAX_ID = (1 << 32) - 2  # -1 would mean "leave the owner alone" to chown(2)
_NEW_FILE = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_XATTR_PREFIXES = (b"user.", b"system.posix_acl_")
_ENOTSUP = {errno.ENOTSUP, errno.EOPNOTSUPP}


class Limits(msgspec.Struct, frozen=True):
    """Bounds on one layer. size: bytes of the uncompressed archive; entries: members of it."""

    size: int = 64 << 30
    entries: int = 2_000_000


class Unpacked(msgspec.Struct, frozen=True):
    """What came out. size: bytes of regular files; opaque_root: the layer hides everything below it."""

    size: int
    entries: int
    opaque_root: bool


def unpack(
    pieces: Iterable[bytes],
    home: int,
    limits: Limits,
    check: Callable[[], None],
    *,
    whiteouts: bool = True,
) -> Unpacked:
    """Unpack an uncompressed archive into the new directory "fs" below the open directory `home`,
    which is private and otherwise unused (trees on their way out are parked in it).

    whiteouts False: it is no layer, and `.wh.NAME` a name as any other.

    check is called now and then and may raise to stop. The whole stream is read, also what comes
    after the archive's end. Raises InvalidArgument for a hostile or malformed archive,
    ResourceExhausted over a limit or on a full disk, KernelError else. What was made stays.
    """
    try:
        os.mkdir(FILES, 0o755, dir_fd=home)
        target = os.open(FILES, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=home)
    except OSError as error:
        _translate(error, FILES.encode())
    unpacker = _Unpacker(home, target, limits, whiteouts)
    reader = TarReader(pieces)
    try:
        while (entry := reader.next_entry()) is not None:
            unpacker.add(entry, reader)
            if not unpacker.entries & 0xFF:
                check()
        reader.drain()
        unpacker.finish()
    except (OSError, OverflowError, ValueError) as error:
        _translate(error, unpacker.current)
    except KernelError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _translate(OSError(error.errno, os.strerror(error.errno)), unpacker.current)
        if not error.step.startswith("unpack"):
            raise KernelError(
                error.message,
                subject=show(unpacker.current),
                step=f"unpack {show(unpacker.current)}",
                errno=error.errno,
            ) from None
        raise
    finally:
        unpacker.forget()
        os.close(target)
    return Unpacked(unpacker.size, unpacker.entries, unpacker.opaque_root)


class _Unpacker:
    def __init__(self, home: int, target: int, limits: Limits, whiteouts: bool) -> None:
        self._prefix = _PREFIX if whiteouts else b"/"  # which no name has
        self._home = home
        self._root = target
        self._limits = limits
        self._fds: OrderedDict[bytes, int] = OrderedDict()  # by the directory's path as archived
        self._stale = False  # a directory or link was removed: cached fds may no longer be what they were
        self._times: dict[bytes, int] = {}  # directories' mtimes, set when nothing more is put in them
        self._whiteouts: set[bytes] = set()
        self._remembered = 0  # bytes of memory that these two take
        self.current = b""
        self.size = 0
        self.entries = 0
        self.opaque_root = False

    def add(self, entry: Entry, reader: TarReader) -> None:
        self.current = name = entry.name
        self.entries += 1
        if self.entries > self._limits.entries:
            raise ResourceExhausted(
                f"the layer has more than {self._limits.entries} entries (registries.max-layer-entries)",
                step="unpack layer",
            )
        parts = _components(name)
        if not parts:
            if entry.kind != DIRECTORY:
                raise _hostile(name, "the root of a layer must be a directory")
            self._directory_metadata(self._root, entry)
            self._times[b""] = entry.mtime
            return
        last = parts[-1]
        if any(p.startswith(self._prefix) for p in parts[:-1]):
            if parts[0].startswith(_META):
                return  # aufs bookkeeping
            raise _hostile(name, "a file below a whiteout")
        parent = b"/".join(parts[:-1])
        if self._stale:
            self.forget()
        directory = self._open(parent)
        if last.startswith(self._prefix):
            self._whiteout(parent, directory, last)
            return
        path = parent + b"/" + last if parent else last
        kind = entry.kind
        if not 0 <= entry.uid <= _MAX_ID or not 0 <= entry.gid <= _MAX_ID:
            raise _hostile(name, f"owner {entry.uid}:{entry.gid} is out of range")
        if kind == REGULAR:
            self._file(directory, last, entry, reader)
        elif kind == DIRECTORY:
            self._make_directory(directory, last, path, entry)
        elif kind == HARDLINK:
            self._hardlink(directory, last, path, entry)
        else:
            self._special(directory, last, entry)

    def finish(self) -> None:
        """Set the directories' times, deepest first."""
        for path in sorted(self._times, reverse=True):
            self.current = path
            time = self._times[path]
            if not path:
                os.utime(self._root, ns=(time, time))
                continue
            try:
                fd = paths.open_in_root(
                    self._root, os.fsdecode(path), os.O_RDONLY | os.O_DIRECTORY, follow=False
                )
            except KernelError as error:
                # a later entry replaced it by something else
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    continue
                raise
            try:
                os.utime(fd, ns=(time, time))
            finally:
                os.close(fd)

    def forget(self) -> None:
        """Close the cached directories."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        self._stale = False

    # directories

    def _open(self, path: bytes) -> int:
        """A fd, ours to keep, of a directory below the root, made when it is missing."""
        if not path:
            return self._root
        fd = self._fds.get(path)
        if fd is not None:
            self._fds.move_to_end(path)
            return fd
        text = os.fsdecode(path)
        flags = os.O_RDONLY | os.O_DIRECTORY
        try:
            fd = paths.open_in_root(self._root, text, flags)
        except KernelError as error:
            if error.errno == errno.ENOTDIR and self._reveal(path):
                return self._open(path)
            if error.errno != errno.ENOENT:
                raise
            os.close(paths.mkdirs_in_root(self._root, text, 0o755))
            fd = paths.open_in_root(self._root, text, flags)
        self._fds[path] = fd
        if len(self._fds) > _CACHED_DIRECTORIES:
            os.close(self._fds.popitem(last=False)[1])
        return fd

    def _reveal(self, path: bytes) -> bool:
        """A whiteout stands where an implied parent must be: make it an opaque directory."""
        parts = path.split(b"/")
        for count in range(1, len(parts) + 1):
            prefix = b"/".join(parts[:count])
            if prefix not in self._whiteouts:
                continue
            directory = self._open(b"/".join(parts[: count - 1]))
            if stat.S_ISCHR(os.stat(parts[count - 1], dir_fd=directory, follow_symlinks=False).st_mode):
                os.unlink(parts[count - 1], dir_fd=directory)
                os.mkdir(parts[count - 1], 0o755, dir_fd=directory)
                self._set_opaque(self._open(prefix))
                return True
        return False

    def _make_directory(self, directory: int, last: bytes, path: bytes, entry: Entry) -> None:
        try:
            os.mkdir(last, 0o700, dir_fd=directory)
        except FileExistsError:
            status = os.stat(last, dir_fd=directory, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                self._replace(directory, last, status)
                os.mkdir(last, 0o700, dir_fd=directory)
        # not through the cache by `path`: the parent may have been reached over a symbolic link
        fd = os.open(last, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            self._directory_metadata(fd, entry)
            if path in self._whiteouts:
                self._set_opaque(fd)  # lower layers' directory of that name stays hidden
        finally:
            os.close(fd)
        if path not in self._times:
            self._remember(path)
        self._times[path] = entry.mtime

    def _directory_metadata(self, fd: int, entry: Entry) -> None:
        if not 0 <= entry.uid <= _MAX_ID or not 0 <= entry.gid <= _MAX_ID:
            raise _hostile(entry.name, f"owner {entry.uid}:{entry.gid} is out of range")
        os.fchown(fd, entry.uid, entry.gid)
        os.fchmod(fd, entry.mode)
        if entry.xattrs:
            self._xattrs(fd, entry)

    # everything else

    def _file(self, directory: int, last: bytes, entry: Entry, reader: TarReader) -> None:
        try:
            fd = os.open(last, _NEW_FILE, 0o600, dir_fd=directory)
        except FileExistsError:
            self._replace(directory, last)
            fd = os.open(last, _NEW_FILE, 0o600, dir_fd=directory)
        try:
            if entry.size:
                reader.copy(lambda piece: _write(fd, piece))
                self.size += entry.size
            os.fchown(fd, entry.uid, entry.gid)
            os.fchmod(fd, entry.mode)
            if entry.xattrs:
                self._xattrs(fd, entry)
            os.utime(fd, ns=(entry.mtime, entry.mtime))
        finally:
            os.close(fd)

    def _hardlink(self, directory: int, last: bytes, path: bytes, entry: Entry) -> None:
        parts = _components(entry.link)
        if not parts:
            raise _hostile(entry.name, "a hard link to the root")
        if parts == path.split(b"/"):
            return  # to itself: nothing to do, and removing it first would lose it
        parent = b"/".join(parts[:-1])
        try:
            source = paths.open_in_root(self._root, os.fsdecode(parent) or ".", os.O_RDONLY | os.O_DIRECTORY)
        except KernelError as error:
            raise _hostile(entry.name, f"hard link to {show(entry.link)}: {error.message}") from None
        try:
            status = os.stat(parts[-1], dir_fd=source, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                raise _hostile(entry.name, f"hard link to the directory {show(entry.link)}")
            try:
                os.link(parts[-1], last, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)
            except FileExistsError:
                there = os.stat(last, dir_fd=directory, follow_symlinks=False)
                if (there.st_dev, there.st_ino) == (status.st_dev, status.st_ino):
                    return
                self._replace(directory, last, there)
                os.link(parts[-1], last, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            raise _hostile(
                entry.name, f"hard link to {show(entry.link)}, which is not in this layer"
            ) from None
        finally:
            os.close(source)

    def _special(self, directory: int, last: bytes, entry: Entry) -> None:
        try:
            self._make_special(directory, last, entry)
        except FileExistsError:
            self._replace(directory, last)
            self._make_special(directory, last, entry)
        os.chown(last, entry.uid, entry.gid, dir_fd=directory, follow_symlinks=False)
        if entry.kind != SYMLINK:
            # nobody else can reach this directory: the name still is the node made above
            os.chmod(last, entry.mode, dir_fd=directory)
        os.utime(last, ns=(entry.mtime, entry.mtime), dir_fd=directory, follow_symlinks=False)

    @staticmethod
    def _make_special(directory: int, last: bytes, entry: Entry) -> None:
        if entry.kind == SYMLINK:
            if not entry.link:
                raise _hostile(entry.name, "a symbolic link to nothing")
            os.symlink(entry.link, last, dir_fd=directory)
        elif entry.kind == FIFO:
            os.mkfifo(last, 0o600, dir_fd=directory)
        elif entry.kind in (CHARACTER, BLOCK_DEVICE):
            if entry.major >= 1 << 12 or entry.minor >= 1 << 20:
                raise _hostile(entry.name, f"device number {entry.major}:{entry.minor} is out of range")
            kind = stat.S_IFCHR if entry.kind == CHARACTER else stat.S_IFBLK
            os.mknod(last, kind | 0o600, os.makedev(entry.major, entry.minor), dir_fd=directory)

    def _replace(self, directory: int, last: bytes, status: os.stat_result | None = None) -> None:
        status = status or os.stat(last, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            self._stale = True
            trees.remove(directory, last, self._home)
        else:
            self._stale = self._stale or stat.S_ISLNK(status.st_mode)
            os.unlink(last, dir_fd=directory)

    def _whiteout(self, parent: bytes, directory: int, last: bytes) -> None:
        if last == _OPAQUE:
            if parent:
                self._set_opaque(directory)
            else:
                self.opaque_root = True
            return
        if last.startswith(_META):
            return  # aufs bookkeeping (".wh..wh.plnk" and such), which nobody may see
        victim = last[len(_PREFIX) :]
        if victim in (b"", b".", b".."):
            raise _hostile(self.current, "a whiteout of nothing")
        path = parent + b"/" + victim if parent else victim
        try:
            os.mknod(victim, stat.S_IFCHR | 0o600, os.makedev(0, 0), dir_fd=directory)
        except FileExistsError:
            # a whiteout hides lower layers only, never what its own layer brings
            if stat.S_ISDIR(os.stat(victim, dir_fd=directory, follow_symlinks=False).st_mode):
                fd = os.open(
                    victim, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory
                )
                try:
                    self._set_opaque(fd)
                finally:
                    os.close(fd)
            return
        self._remember(path)
        self._whiteouts.add(path)

    def _remember(self, path: bytes) -> None:
        """Long names repeat, so that an archive of gigabytes of them is small."""
        self._remembered += len(path) + _ENTRY
        if self._remembered > _MAX_REMEMBERED:
            raise ResourceExhausted(
                "the names of the layer's directories and whiteouts take more than "
                f"{_MAX_REMEMBERED >> 20} MiB",
                step="unpack layer",
            )

    @staticmethod
    def _set_opaque(fd: int) -> None:
        os.setxattr(fd, OPAQUE_XATTR, b"y")

    @staticmethod
    def _xattrs(fd: int, entry: Entry) -> None:
        for name, value in (entry.xattrs or {}).items():
            # trusted.* and user.overlay.* steer overlayfs itself; other security.* belong to the host
            wanted = name == b"security.capability" or (
                name.startswith(_XATTR_PREFIXES) and not name.startswith(b"user.overlay.")
            )
            if not wanted:
                continue
            try:
                os.setxattr(fd, name, value)
            except OSError as error:
                if error.errno in _ENOTSUP and name != b"security.capability":
                    continue  # a file system without them: as dockerd
                raise


def _components(name: bytes) -> list[bytes]:
    if len(name) > _PATH_MAX:
        raise _hostile(name, f"a name longer than {_PATH_MAX} bytes")
    parts = [p for p in name.split(b"/") if p and p != b"."]
    if b".." in parts:
        raise _hostile(name, "a name with '..' in it")
    return parts


def _write(fd: int, piece: bytes) -> None:
    written = os.write(fd, piece)
    while written < len(piece):
        written += os.write(fd, memoryview(piece)[written:])


def _hostile(name: bytes, why: str) -> InvalidArgument:
    return InvalidArgument(f"{why}: refused", subject=show(name), step=f"unpack {show(name)}")


def _translate(error: Exception, name: bytes) -> NoReturn:
    number = getattr(error, "errno", None) or 0
    step = f"unpack {show(name)}"
    if number in (errno.ENOSPC, errno.EDQUOT):
        raise ResourceExhausted(
            os.strerror(number).lower(), subject=show(name), step=step, errno=number
        ) from None
    if not number:
        raise InvalidArgument(f"{error}: refused", subject=show(name), step=step) from None
    raise KernelError(os.strerror(number).lower(), subject=show(name), step=step, errno=number) from None
