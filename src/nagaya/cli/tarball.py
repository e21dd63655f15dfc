"""`nagaya cp`'s side of the tar streams: made of our own files, and unpacked into them.

What comes from a container is not trusted: no name leads out of the directory, and no link that lies there,
or comes in the same stream, is followed on the way to a name.
"""

from __future__ import annotations

import os
import stat
import tarfile
from contextlib import suppress

from nagaya.errors import InvalidArgument, NagayaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

_PIECE = 1 << 18
_WAY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Counted:
    """Pieces as a file to read, and how many bytes they were."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""
        self.size = 0

    def read(self, count: int = -1) -> bytes:
        """So many bytes, fewer at the end."""
        parts, have = [self._rest], len(self._rest)
        while have < count or count < 0:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self.size += len(piece)
            parts.append(piece)
            have += len(piece)
        data = b"".join(parts)
        cut = len(data) if count < 0 else count
        self._rest = data[cut:]
        return data[:cut]


def renamed(name: str, old: str, new: str) -> str:
    """A member's name with its first component, `old`, changed to `new`."""
    if name == old:
        return new
    return new + name[len(old) :] if old and name.startswith(f"{old}/") else name


def pack(path: str, name: str, *, follow: bool) -> Iterator[bytes]:
    """The stream of a file or a directory with all that is in it; name: of the first member. follow: a link
    at the path itself. Raises NagayaError."""
    try:
        with writer() as tar:
            yield from _members(tar, os.path.realpath(path) if follow else path, name)
    except OSError as error:
        raise NagayaError(f"{error.filename or path}: {os.strerror(error.errno or 0).lower()}") from None
    yield END


class _Nowhere:
    """TarFile wants a file to write to; we take its members' headers ourselves."""

    mode = "wb"

    def write(self, data: bytes) -> int:
        return len(data)

    def tell(self) -> int:
        return 0


def _members(tar: tarfile.TarFile, path: str, name: str) -> Iterator[bytes]:
    yield from one(tar, path, name)
    if os.path.isdir(path) and not os.path.islink(path):
        for entry in sorted(os.listdir(path)):
            yield from _members(tar, f"{path}/{entry}", f"{name}/{entry}")


def one(tar: tarfile.TarFile, path: str, name: str, *, owned: bool = True) -> Iterator[bytes]:
    """A file's member alone, nothing for a socket. owned: by whom it is, else by root. Raises OSError, and
    NagayaError for one that shrinks."""
    info = tar.gettarinfo(path, name)
    if info is None:  # a socket
        return
    info.name = name
    info.mtime = int(info.mtime)  # a fraction would take a header of its own
    if not owned:
        info.uid = info.gid = 0
        info.uname = info.gname = ""
    if not info.isreg():
        yield info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        return
    with open(path, "rb") as file:
        info.size = left = os.fstat(file.fileno()).st_size
        yield info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        while left:
            piece = file.read(min(left, _PIECE))
            if not piece:
                raise NagayaError(f"{path} became shorter while it was read")
            left -= len(piece)
            yield piece
    yield bytes(-info.size % tarfile.BLOCKSIZE)


def made(name: str, data: bytes) -> bytes:
    """The member of a file that is nowhere."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o600
    head = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    return head + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def writer() -> tarfile.TarFile:
    """What makes members' headers, and knows which files are the same."""
    return tarfile.TarFile(fileobj=_Nowhere(), mode="w", format=tarfile.PAX_FORMAT)  # type: ignore[arg-type]


END = bytes(2 * tarfile.BLOCKSIZE)


def unpack(stream: IO[bytes], directory: str, old: str, new: str, *, owners: bool) -> None:
    """Unpack into a directory, the first component of all names changed. owners: as archived, else ours.
    Raises NagayaError; what was unpacked before stays."""
    top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    times: list[tuple[str, float]] = []
    try:
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                name = renamed(member.name.strip("/"), old, new)
                _one(tar, member, top, name, (old, new), owners)
                if member.isdir():
                    times.append((name, member.mtime))
        for name, moment in reversed(times):
            with suppress(OSError):
                os.utime(name or ".", (moment, moment), dir_fd=top, follow_symlinks=False)
    except tarfile.TarError as error:
        raise NagayaError(f"what the daemon sent is no tar archive: {error}") from None
    except OSError as error:
        raise NagayaError(f"{error.filename or directory}: {os.strerror(error.errno or 0).lower()}") from None
    finally:
        os.close(top)


def _parent(top: int, name: str) -> tuple[int, str]:
    """(open directory that holds the last component, that component); made where it is missing."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidArgument(f"a name with '..' in the archive: {name!r}")
    fd = os.dup(top)
    for part in parts[:-1]:
        with suppress(FileExistsError):
            os.mkdir(part, 0o755, dir_fd=fd)
        below = os.open(part, _WAY, dir_fd=fd)
        os.close(fd)
        fd = below
    return fd, parts[-1] if parts else "."


def _one(
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    top: int,
    name: str,
    change: tuple[str, str],
    owners: bool,
) -> None:
    fd, last = _parent(top, name)
    try:
        there = None if last == "." else _kind(fd, last)
        if there is not None and last != ".":
            if stat.S_ISDIR(there) != member.isdir():
                had, now = (
                    ("directory", "non-directory") if stat.S_ISDIR(there) else ("non-directory", "directory")
                )
                raise NagayaError(f'cannot overwrite {had} "{name}" with {now}')
            if not member.isdir():
                os.unlink(last, dir_fd=fd)
        if member.isdir():
            if there is None and last != ".":
                os.mkdir(last, 0o700, dir_fd=fd)
        elif member.issym():
            os.symlink(member.linkname, last, dir_fd=fd)
        elif member.islnk():
            source, base = _parent(top, renamed(member.linkname.strip("/"), *change))
            try:
                os.link(base, last, src_dir_fd=source, dst_dir_fd=fd, follow_symlinks=False)
            finally:
                os.close(source)
            return
        elif member.isreg():
            _write(tar, member, fd, last)
        else:
            kind = stat.S_IFIFO if member.isfifo() else stat.S_IFBLK if member.isblk() else stat.S_IFCHR
            os.mknod(last, kind | 0o600, os.makedev(member.devmajor, member.devminor), dir_fd=fd)
        if owners:
            os.chown(last, member.uid, member.gid, dir_fd=fd, follow_symlinks=False)
        if not member.issym():
            os.chmod(last, member.mode & 0o7777, dir_fd=fd)
        if not member.isdir():
            os.utime(last, (member.mtime, member.mtime), dir_fd=fd, follow_symlinks=False)
    finally:
        os.close(fd)


def _kind(fd: int, name: str) -> int | None:
    try:
        return os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, fd: int, name: str) -> None:
    content = tar.extractfile(member)
    made = os.open(
        name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=fd
    )
    with open(made, "wb") as file:
        while content is not None and (piece := content.read(_PIECE)):
            file.write(piece)
