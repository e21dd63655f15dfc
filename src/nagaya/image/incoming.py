"""An archive of images as it comes in, in any order, put down on the disk as it passes.

Its names are a stranger's and never become paths: files are spooled under numbers, and who is called
what, links included, is looked up here. Only few documents are kept in memory, and bounded. All that
is not a file, a link or a directory is passed over.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable

import msgspec

from nagaya.errors import DataLoss, InvalidArgument, ResourceExhausted
from nagaya.image import streams
from nagaya.image.content import disk_error, write_all
from nagaya.image.layers import Limits
from nagaya.image.tar import HARDLINK, REGULAR, SYMLINK, Entry, TarReader, show
from nagaya.oci import digest as digests
from nagaya.oci import manifest as manifests

DOCUMENTS = frozenset(("manifest.json", "index.json", "oci-layout", "repositories"))
_MAX_ENTRIES = 100_000
_MAX_NAMES = 32 << 20  # bytes of all names and links
_MAX_LINKS = 32  # from one name on
_NEW = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class Part(msgspec.Struct, frozen=True):
    """A file of the archive, spooled. digest: what it is called by when it lay below blobs/, else
    sha256; it is right."""

    path: str
    digest: str
    size: int
    compression: str  # as `streams.compression`


class Incoming:
    """What an archive holds, by name."""

    def __init__(self, directory: str, limits: Limits) -> None:
        self.documents: dict[str, bytes] = {}
        self._directory = directory
        self._limits = limits
        self._parts: dict[str, Part] = {}
        self._links: dict[str, str] = {}
        self._digests: dict[str, Part] = {}
        self._count = self._names = 0

    def read(self, pieces: Iterable[bytes], check: Callable[[], None]) -> None:
        """Take in the whole stream (plain, gzip, zstd). Raises InvalidArgument, DataLoss,
        Unimplemented for what is no archive, or a hostile one, ResourceExhausted, KernelError."""
        reader = TarReader(streams.pieces(pieces))
        while (entry := reader.next_entry()) is not None:
            check()
            self._count += 1
            self._names += len(entry.name) + len(entry.link)
            if self._count > _MAX_ENTRIES or self._names > _MAX_NAMES:
                raise ResourceExhausted(
                    f"the archive has more than {_MAX_ENTRIES} entries, or {_MAX_NAMES} bytes of names"
                )
            name = _name(entry)
            if entry.kind == REGULAR:
                self._forget(name)
                self._file(name, entry, reader, check)
            elif entry.kind in (SYMLINK, HARDLINK):
                self._forget(name)
                # a link's target is relative to it, a hard link's to the root of the archive
                base = name.rpartition("/")[0] if entry.kind == SYMLINK else ""
                self._links[name] = _joined(base, _text(entry.link))
        reader.drain()

    def find(self, name: str) -> Part | None:
        """The file of that name, links followed. Raises InvalidArgument when they lead in circles."""
        name = _joined("", name)
        for _ in range(_MAX_LINKS):
            if name in self._parts:
                return self._parts[name]
            if name not in self._links:
                return None
            name = self._links[name]
        raise InvalidArgument(f"too many links from {name[:200]!r}", subject=name[:200])

    def blob(self, digest: str) -> Part | None:
        """The file of that digest, whatever it is called."""
        return self._digests.get(digest)

    def _forget(self, name: str) -> None:
        """A later entry replaces an earlier one of its name, as unpacking them would."""
        self.documents.pop(name, None)
        self._parts.pop(name, None)
        self._links.pop(name, None)

    def _file(self, name: str, entry: Entry, reader: TarReader, check: Callable[[], None]) -> None:
        if name in DOCUMENTS:
            if entry.size > manifests.MAX_MANIFEST:
                raise InvalidArgument(
                    f"{name} of {entry.size} bytes is over the limit of {manifests.MAX_MANIFEST}",
                    subject=name,
                )
            data = bytearray()
            reader.copy(data.extend)
            self.documents[name] = bytes(data)
            return
        if entry.size > self._limits.size:
            raise ResourceExhausted(
                f"{name[:200]} has more than {self._limits.size} bytes (registries.max-layer-size)",
                subject=name[:200],
            )
        claimed = _claimed(name)
        seen = digests.hasher(claimed) if claimed else hashlib.sha256()
        path = f"{self._directory}/{self._count}"
        head = bytearray()
        try:
            fd = os.open(path, _NEW, 0o600)
        except OSError as error:
            raise disk_error(error, "store content", name[:200]) from None

        def write(piece: bytes) -> None:
            check()
            seen.update(piece)
            if len(head) < 6:
                head.extend(piece[:6])
            try:
                write_all(fd, piece)
            except OSError as error:
                raise disk_error(error, "store content", name[:200]) from None

        try:
            reader.copy(write)
        finally:
            os.close(fd)
        digest = f"{digests.parse(claimed)[0] if claimed else 'sha256'}:{seen.hexdigest()}"
        if claimed and digest != claimed:
            raise DataLoss(f"{name} of the archive has digest {digest}", subject=claimed, step="read archive")
        part = Part(path, digest, entry.size, streams.compression(bytes(head)))
        self._parts[name] = part
        # the same content twice needs no second file
        first = self._digests.setdefault(digest, part)
        if first is not part:
            self._parts[name] = first
            os.unlink(path)


def _claimed(name: str) -> str:
    """The digest that a blob of a layout is called by, "" for other files."""
    parts = name.split("/")
    digest = ":".join(parts[1:])
    return digest if len(parts) == 3 and parts[0] == "blobs" and digests.is_digest(digest) else ""


def _name(entry: Entry) -> str:
    if b".." in entry.name.split(b"/"):
        raise InvalidArgument(f"{show(entry.name)}: a name with '..' in it: refused", step="read archive")
    return _joined("", _text(entry.name))


def _text(name: bytes) -> str:
    """What is no UTF-8 names no part of an image, and must not break a message."""
    return name.decode("utf-8", "backslashreplace")


def _joined(base: str, name: str) -> str:
    """The name below base without "." and ".."; what would lead out ends at the root."""
    found: list[str] = [] if name.startswith("/") else [p for p in base.split("/") if p]
    for part in name.split("/"):
        if part == "..":
            found = found[:-1]
        elif part not in ("", "."):
            found.append(part)
    return "/".join(found)
