"""Files of an open directory become members of an archive, as dockerd writes them.

Whoever made the directory's content may be changing it: every object is opened once, by its name, never
followed, and used by its fd.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress

from nagaya.errors import DataLoss

_PIECE = 256 << 10
_CAPABILITY = "security.capability"
_OPEN = os.O_NOFOLLOW | os.O_CLOEXEC
_HEADER = struct.Struct("100s48s8sc100s8s247x")
_NAME = 100  # bytes of a name that needs no further header
_MAX_OWNER, _MAX_LONG = 8**7, 8**11
_PLAIN = frozenset((tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE))

Owners = Callable[[int, int], tuple[int, int]]  # whom an archive names for a uid and gid
Links = dict[tuple[int, int], str]  # device and inode -> the name it was first archived by


def themselves(uid: int, gid: int) -> tuple[int, int]:
    """The owners as they are."""
    return uid, gid


def joined(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of some size: each costs a hop between threads."""
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= _PIECE:
            yield b"".join(held)
            held, size = [], 0
    yield b"".join(held)


def capability_only(name: str) -> bool:
    """The extended attributes that dockerd archives."""
    return name == _CAPABILITY


def member(
    directory: int,
    name: str,
    shown: str,
    links: Links,
    kept: Callable[[str], bool] = capability_only,
    owners: Owners = themselves,
) -> Iterator[bytes]:
    """One file that is no directory; nothing when it is gone, or a socket. kept: which extended
    attributes go along."""
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISREG(status.st_mode):
            yield from _regular(directory, name, shown, links, kept, owners)
        elif stat.S_ISLNK(status.st_mode):
            info = info_of(status, shown, tarfile.SYMTYPE, owners)
            info.linkname = os.readlink(name, dir_fd=directory)
            yield header(info)
        elif not stat.S_ISSOCK(status.st_mode):
            kind = {stat.S_IFCHR: tarfile.CHRTYPE, stat.S_IFBLK: tarfile.BLKTYPE}
            info = info_of(status, shown, kind.get(stat.S_IFMT(status.st_mode), tarfile.FIFOTYPE), owners)
            info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
            yield header(info)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP, errno.EINVAL):
            raise


def _regular(
    directory: int, name: str, shown: str, links: Links, kept: Callable[[str], bool], owners: Owners
) -> Iterator[bytes]:
    # O_NONBLOCK: it may have become a FIFO since it was looked at
    fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | _OPEN, dir_fd=directory)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return
        info = info_of(status, shown, tarfile.REGTYPE, owners)
        key = (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and key in links:
            info.type, info.linkname = tarfile.LNKTYPE, links[key]
            yield header(info)
            return
        links[key] = shown
        info.size = left = status.st_size
        add_xattrs(info, fd, kept)
        yield header(info)
        while left:
            piece = os.read(fd, min(left, _PIECE))
            if not piece:
                raise DataLoss(f"{shown} became shorter while it was read", subject=shown)
            left -= len(piece)
            yield piece
        yield bytes(-status.st_size % tarfile.BLOCKSIZE)
    finally:
        os.close(fd)


def add_xattrs(info: tarfile.TarInfo, fd: int, kept: Callable[[str], bool]) -> None:
    """The wanted extended attributes of the open file."""
    with suppress(OSError):  # a file system without them
        for name in filter(kept, os.listxattr(fd)):
            value = os.getxattr(fd, name)
            info.pax_headers = {
                **info.pax_headers,
                f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape"),
            }


def info_of(status: os.stat_result, name: str, kind: bytes, owners: Owners = themselves) -> tarfile.TarInfo:
    """A member for what has this status. Times to the second."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.mode = stat.S_IMODE(status.st_mode)
    info.uid, info.gid = owners(status.st_uid, status.st_gid)
    info.mtime = status.st_mtime_ns // 10**9
    return info


def header(info: tarfile.TarInfo) -> bytes:
    """Its header, with extended ones before it where they are needed."""
    # a tenth of what tarfile takes for the same bytes (POSIX.1-2017 pax(1), "ustar Interchange Format")
    name, link = info.name, info.linkname
    if info.isdir() and not name.endswith("/"):
        name += "/"
    plain = (
        len(name) <= _NAME
        and len(link) <= _NAME
        and name.isascii()
        and link.isascii()
        and info.uid < _MAX_OWNER
        and info.gid < _MAX_OWNER
        and info.size < _MAX_LONG
        and isinstance(info.mtime, int)
        and 0 <= info.mtime < _MAX_LONG
        and not info.pax_headers
        and info.type in _PLAIN
    )
    if plain:
        numbers = (info.mode & 0o7777, info.uid, info.gid, info.size, int(info.mtime))
        block = _HEADER.pack(
            *(
                name.encode(),
                b"%07o\0%07o\0%07o\0%011o\0%011o\0" % numbers,
                b" " * 8,
                info.type,
                link.encode(),
            ),
            b"ustar\x0000",
        )
        return b"%s%06o\0%s" % (block[:148], sum(block), block[155:])
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
