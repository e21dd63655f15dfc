"""A streaming reader of layer archives: ustar, pax, GNU long names, base-256 numbers.

Formats: POSIX.1-2017 pax(1), "ustar Interchange Format" and "pax Interchange Format"; GNU tar's
manual, "Basic Tar Format"; OCI image-spec, layer.md. It opens no file and knows no policy of
names: `image.layers` has that. Everything that is copied into memory is bounded; sparse files are
refused (no image builder writes them, and their maps are a known bomb: CVE-2025-58183).

Written for speed: one `unpack` per header, data handed on in the pieces it came in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from struct import Struct

from nagaya.errors import DataLoss, InvalidArgument, Unimplemented

BLOCK = 512
MAX_EXTENDED = 1 << 20  # bytes of one pax or long-name header
_MAX_PENDING = 64  # extended headers before the entry they belong to

REGULAR, HARDLINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = range(7)
_KINDS = {
    b"0": REGULAR,
    b"\0": REGULAR,
    b"7": REGULAR,
    b"1": HARDLINK,
    b"2": SYMLINK,
    b"3": CHARACTER,
    b"4": BLOCK_DEVICE,
    b"5": DIRECTORY,
    b"6": FIFO,
}
_HEADER = Struct("100s8s8s8s12s12s8s1s100s8s32s32s8s8s155s12s")
_ZEROS = bytes(BLOCK)
_BLANKS = b" \0"
_XATTR = b"SCHILY.xattr."
_MAX_TIME = 2**40  # seconds; what every file system of ours can store is less, the kernel clamps


class Entry:
    """One archive member. name and link are bytes as archived; mtime in nanoseconds."""

    __slots__ = ("gid", "kind", "link", "major", "minor", "mode", "mtime", "name", "size", "uid", "xattrs")

    def __init__(
        self,
        name: bytes,
        kind: int,
        mode: int,
        uid: int,
        gid: int,
        size: int,
        mtime: int,
        link: bytes,
        major: int,
        minor: int,
        xattrs: dict[bytes, bytes] | None,
    ) -> None:
        self.name = name
        self.kind = kind
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.size = size
        self.mtime = mtime
        self.link = link
        self.major = major
        self.minor = minor
        self.xattrs = xattrs


class TarReader:
    """Reads an archive from an iterable of non-empty pieces.

    Call `next_entry`, then `copy` (or nothing: the data is skipped), until it returns None.
    """

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._buffer = b""
        self._at = 0
        self._data = 0  # bytes of the current entry's data not yet read
        self._padding = 0

    def next_entry(self) -> Entry | None:
        """The next member, None at the archive's end.

        Raises InvalidArgument when it is malformed, DataLoss when it is cut short, Unimplemented
        for sparse and multi-volume members.
        """
        self._skip(self._data)
        self._data, padding = 0, self._padding
        self._padding = 0
        if not self._pad(padding):
            return None
        pax: dict[bytes, bytes] = {}
        long_name = long_link = None
        for _ in range(_MAX_PENDING):
            block = self._header()
            if block is None:
                if pax or long_name is not None or long_link is not None:
                    raise DataLoss("the archive ends within an entry", step="read layer")
                return None
            fields = _HEADER.unpack(block)
            flag = fields[7]
            if flag in b"xXLKg":
                length = _number(fields[4], "size")
                if length > MAX_EXTENDED:
                    raise _bad(f"an extended header of {length} bytes is over the limit of {MAX_EXTENDED}")
                data = self._take(length)
                self._skip(-length % BLOCK)
                if flag == b"L":
                    long_name = data.partition(b"\0")[0]
                elif flag == b"K":
                    long_link = data.partition(b"\0")[0]
                elif flag != b"g":  # global headers are comments in practice; dockerd ignores them too
                    _parse_pax(data, pax)
                continue
            return self._entry(fields, pax, long_name, long_link)
        raise _bad(f"more than {_MAX_PENDING} extended headers before one entry")

    def copy(self, write: Callable[[bytes], object]) -> None:
        """Hand the current entry's data to write, in pieces. Raises DataLoss when it is cut short."""
        while self._data:
            at = self._at
            available = len(self._buffer) - at
            if not available:
                self._refill()
                continue
            count = min(available, self._data)
            piece = self._buffer[at : at + count] if at or count < available else self._buffer
            self._at = at + count
            self._data -= count
            write(piece)

    def drain(self) -> None:
        """Read to the end of the stream, so that whoever hashes it has seen everything."""
        self._buffer, self._at = b"", 0
        for _ in self._pieces:
            pass

    def _entry(
        self,
        fields: tuple[bytes, ...],
        pax: dict[bytes, bytes],
        long_name: bytes | None,
        long_link: bytes | None,
    ) -> Entry:
        name = fields[0].partition(b"\0")[0]
        if fields[9] == b"ustar\x0000" and fields[14][0]:
            name = fields[14].partition(b"\0")[0] + b"/" + name
        if long_name is not None:
            name = long_name
        link = long_link if long_link is not None else fields[8].partition(b"\0")[0]
        mode, uid, gid = _number(fields[1], "mode"), _number(fields[2], "uid"), _number(fields[3], "gid")
        size, mtime = _number(fields[4], "size"), _number(fields[5], "mtime", signed=True) * 1_000_000_000
        xattrs: dict[bytes, bytes] | None = None
        if pax:
            name, link = pax.get(b"path", name), pax.get(b"linkpath", link)
            if b"\0" in name or b"\0" in link:
                raise _bad("a name holds a NUL byte")
            uid, gid = _decimal(pax, b"uid", uid), _decimal(pax, b"gid", gid)
            size = _decimal(pax, b"size", size)
            if b"mtime" in pax:
                mtime = _time(pax[b"mtime"])
            for key, value in pax.items():
                if key.startswith(_XATTR):
                    xattrs = xattrs or {}
                    xattrs[key[len(_XATTR) :]] = value
                elif key.startswith(b"GNU.sparse."):
                    raise _sparse(name)
        flag = fields[7]
        kind = _KINDS.get(flag)
        if kind is None:
            if flag == b"S":
                raise _sparse(name)
            raise Unimplemented(f"{show(name)}: archive entries of type {flag!r} are not supported")
        major = minor = 0
        if kind in (CHARACTER, BLOCK_DEVICE):
            major, minor = _number(fields[12], "devmajor"), _number(fields[13], "devminor")
        # only files have data, whatever size others claim: as Go's archive/tar, which all others use,
        # since an archive that two readers see differently is a place to hide things
        if kind == REGULAR:
            self._data = size
            self._padding = -size % BLOCK
            if flag == b"\0" and name.endswith(b"/"):
                kind, size = DIRECTORY, 0  # how archives before POSIX wrote directories
        else:
            size = 0
        return Entry(name, kind, mode & 0o7777, uid, gid, size, mtime, link, major, minor, xattrs)

    def _header(self) -> bytes | None:
        at = self._at
        block = self._buffer[at : at + BLOCK]
        if len(block) == BLOCK:
            self._at = at + BLOCK
        else:
            taken = self._take_or_end(BLOCK)
            if taken is None:
                return None
            block = taken
        if block == _ZEROS:
            return None
        try:
            expected = _number(block[148:156], "checksum")
        except InvalidArgument:
            expected = -1
        unsigned = sum(block) - sum(block[148:156]) + 256
        # some old archivers summed signed characters
        if unsigned != expected and unsigned - 256 * _high_bytes(block) != expected:
            raise _bad("not a tar archive, or a damaged one (header checksum)")
        return block

    def _refill(self) -> None:
        piece = next(self._pieces, None)
        if piece is None:
            raise DataLoss("the archive is cut short", step="read layer")
        self._buffer, self._at = piece, 0

    def _take_or_end(self, count: int) -> bytes | None:
        if self._at == len(self._buffer):
            piece = next(self._pieces, None)
            if piece is None:
                return None
            self._buffer, self._at = piece, 0
        return self._take(count)

    def _take(self, count: int) -> bytes:
        parts = []
        while count:
            if self._at == len(self._buffer):
                self._refill()
            part = self._buffer[self._at : self._at + count]
            self._at += len(part)
            count -= len(part)
            parts.append(part)
        return b"".join(parts)

    def _pad(self, count: int) -> bool:
        """Skip an entry's padding; False at the archive's end: the docker CLI's own writer leaves the last
        entry's away (`docker build -f` of a file outside of the context), and Go's reader takes that."""
        try:
            self._skip(count)
        except DataLoss:
            return False
        return True

    def _skip(self, count: int) -> None:
        while count:
            available = len(self._buffer) - self._at
            if not available:
                self._refill()
                continue
            step = min(available, count)
            self._at += step
            count -= step


def show(name: bytes) -> str:
    """A name for messages: printable, bounded."""
    text = name[:200].decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _number(field: bytes, what: str, *, signed: bool = False) -> int:
    first = field[0]
    if first & 0x80:  # base-256, GNU and star
        value = int.from_bytes(field, "big")
        value = value - (1 << 8 * len(field)) if first & 0x40 else value & ~(0x80 << 8 * (len(field) - 1))
    else:
        text = field.partition(b"\0")[0].strip(_BLANKS)
        if not text:
            return 0
        if not text.isdigit():
            raise _bad(f"bad number in {what}: {field[:16]!r}")
        try:
            value = int(text, 8)
        except ValueError:
            raise _bad(f"bad number in {what}: {field[:16]!r}") from None
    if value < 0 and not signed:
        raise _bad(f"negative {what}")
    if value >= 1 << 63 or value <= -(1 << 63):
        raise _bad(f"{what} out of range")
    return max(-_MAX_TIME, min(value, _MAX_TIME)) if signed else value


def _decimal(pax: dict[bytes, bytes], key: bytes, default: int) -> int:
    text = pax.get(key)
    if not text:
        return default
    if len(text) > 19 or not text.isdigit():
        raise _bad(f"bad pax record {key.decode()}: {show(text)!r}")
    return int(text)


def _time(text: bytes) -> int:
    """Nanoseconds of a pax time, a decimal number of seconds."""
    negative = text.startswith(b"-")
    whole, _, fraction = (text[1:] if negative else text).partition(b".")
    if len(whole) > 19 or not (whole or fraction) or not (whole + fraction).isdigit():
        raise _bad(f"bad pax time {show(text)!r}")
    seconds = min(int(whole or b"0"), _MAX_TIME)
    value = seconds * 1_000_000_000 + int(fraction[:9].ljust(9, b"0"))
    return -value if negative else value


def _parse_pax(data: bytes, records: dict[bytes, bytes]) -> None:
    at, end = 0, len(data)
    while at < end:
        space = data.find(b" ", at, at + 9)
        digits = data[at:space] if space > 0 else b""
        if not digits.isdigit():
            if not data[at:].strip(b"\0"):
                return  # padded with NULs by some writers
            raise _bad("malformed pax record")
        stop = at + int(digits)
        if stop > end or stop <= space + 1 or data[stop - 1] != 10:
            raise _bad("malformed pax record")
        key, equals, value = data[space + 1 : stop - 1].partition(b"=")
        if not equals or not key or b"\0" in key:
            raise _bad("malformed pax record")
        records[key] = value
        at = stop


def _high_bytes(block: bytes) -> int:
    return sum(1 for b in block[:148] + block[156:] if b > 127)


def _bad(what: str) -> InvalidArgument:
    return InvalidArgument(what, step="read layer")


def _sparse(name: bytes) -> Unimplemented:
    return Unimplemented(f"{show(name)}: sparse archive entries are not supported", step="read layer")
