"""The content store: ROOT/content/blobs/ALGORITHM/HEX, written once, never changed.

A blob arrives through `ingest`: bytes go to content/ingest/ALGORITHM-HEX, which survives a crash or
an unplugged cable and is taken up again, and which layers are unpacked from while it grows. Commit
is: digest and size right, fsync(2) of the file, rename(2), fsync of both directories. So a file under
blobs/ is whole, also after a power cut.

The caller sees to it that one digest has one `Ingest` at a time, and that nothing needed is deleted.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from nagaya.errors import DataLoss, KernelError, NagayaError, NotFound, ResourceExhausted
from nagaya.oci import digest as digests

_READ = 1 << 20
_SPOOL = "spool-"
_NEW = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class ContentStore:
    """Blobs below `directory` (made 0700)."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        blobs = f"{directory}/blobs"
        for path in (directory, f"{directory}/ingest", blobs, *(f"{blobs}/{a}" for a in digests.ALGORITHMS)):
            os.makedirs(path, mode=0o700, exist_ok=True)
        for path in (blobs, directory, os.path.dirname(os.path.abspath(directory))):
            _sync(path)

    def path(self, digest: str) -> str:
        """Where the blob is, or would be. Raises InvalidArgument for what is not a digest."""
        algorithm, encoded = digests.parse(digest)
        return f"{self._directory}/blobs/{algorithm}/{encoded}"

    def has(self, digest: str) -> bool:
        """Is the blob here, whole?"""
        return os.path.exists(self.path(digest))

    def size(self, digest: str) -> int:
        """The blob's size. Raises NotFound."""
        try:
            return os.stat(self.path(digest)).st_size
        except FileNotFoundError:
            raise _missing(digest) from None

    def open(self, digest: str) -> int:
        """A fd to read the blob from. Raises NotFound."""
        try:
            return os.open(self.path(digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise _missing(digest) from None

    def pieces(self, digest: str, offset: int = 0) -> Iterator[bytes]:
        """The blob's bytes from offset on, not verified again."""
        fd = self.open(digest)
        try:
            os.lseek(fd, offset, os.SEEK_SET)
            while piece := os.read(fd, _READ):
                yield piece
        finally:
            os.close(fd)

    def read(self, digest: str, limit: int) -> bytes:
        """The whole blob, verified. Raises NotFound, DataLoss, ResourceExhausted (over limit)."""
        fd = self.open(digest)
        try:
            size = os.fstat(fd).st_size
            if size > limit:
                raise ResourceExhausted(f"blob of {size} bytes is over the limit of {limit}", subject=digest)
            parts = []
            while part := os.read(fd, _READ):
                parts.append(part)
        finally:
            os.close(fd)
        data = b"".join(parts)
        if not digests.matches(data, digest):
            raise DataLoss("the stored content does not match its digest: pull it again", subject=digest)
        return data

    def intact(self, digest: str) -> bool:
        """Is the blob here, and its content what its digest says? Reads all of it."""
        seen = digests.hasher(digest)
        try:
            for piece in self.pieces(digest):
                seen.update(piece)
        except (NotFound, OSError):  # an unreadable sector is no blob either
            return False
        return seen.hexdigest() == digests.parse(digest)[1]

    def put(self, data: bytes, digest: str = "") -> str:
        """Store a small blob, over a damaged one if need be; return its digest. Raises DataLoss when
        `digest` was given and is not its."""
        digest = digest or digests.of(data)
        if not digests.matches(data, digest):
            raise DataLoss("content does not match its digest", subject=digest)
        if not self.intact(digest):
            name = f"{self._directory}/ingest/put-{os.urandom(8).hex()}"
            try:
                fd = os.open(name, _NEW, 0o600)
                try:
                    write_all(fd, data)
                    os.fsync(fd)
                finally:
                    os.close(fd)
                self._publish(name, digest)
            except OSError as error:
                _discard(name)
                raise disk_error(error, "store content", digest) from None
        return digest

    @contextmanager
    def spool(self) -> Iterator[str]:
        """A directory for files on their way to `adopt`, removed at the end with what is still in it."""
        path = f"{self._directory}/ingest/{_SPOOL}{os.urandom(8).hex()}"
        try:
            os.mkdir(path, 0o700)
        except OSError as error:
            raise disk_error(error, "store content", "spool") from None
        try:
            yield path
        finally:
            _remove_spool(path)

    def adopt(self, path: str, digest: str) -> None:
        """Make a spooled file, whose digest the caller has seen to be this one, the blob: over a damaged
        one if need be. Raises KernelError, ResourceExhausted."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            self._publish(path, digest)
        except OSError as error:
            raise disk_error(error, "store content", digest) from None

    def adopt_synced(self, files: Mapping[str, str]) -> None:
        """The same for several (digest -> path) that are on the disk already. Raises the same; those that
        came first stay."""
        for digest, path in files.items():
            try:
                os.rename(path, self.path(digest))
            except OSError as error:
                raise disk_error(error, "store content", digest) from None
        for directory in {os.path.dirname(self.path(digest)) for digest in files}:
            _sync(directory)

    def ingest(self, digest: str, size: int) -> Ingest:
        """Begin, or take up again, the arrival of a big blob. Raises InvalidArgument, KernelError,
        ResourceExhausted."""
        algorithm, encoded = digests.parse(digest)
        path = f"{self._directory}/ingest/{algorithm}-{encoded}"
        try:
            return Ingest(path, digest, size, lambda: self._publish(path, digest))
        except OSError as error:
            raise disk_error(error, "store content", digest) from None

    def delete(self, digest: str) -> int:
        """Delete the blob; return its size, 0 when it was not here."""
        path = self.path(digest)
        try:
            size = os.stat(path).st_size
            os.unlink(path)
        except FileNotFoundError:
            return 0
        return size

    def digests(self) -> list[str]:
        """Every blob that is here."""
        found = []
        for algorithm in sorted(os.listdir(f"{self._directory}/blobs")):
            for encoded in os.listdir(f"{self._directory}/blobs/{algorithm}"):
                digest = f"{algorithm}:{encoded}"
                if digests.is_digest(digest):
                    found.append(digest)
        return found

    def discard(self, unwanted: Iterable[str]) -> None:
        """Delete what has arrived of these blobs so far. Nobody may be at one of them."""
        for digest in unwanted:
            _discard(f"{self._directory}/ingest/{'-'.join(digests.parse(digest))}")

    def sweep_ingest(self, older_than: float) -> None:
        """Delete arrivals that nobody has touched since `older_than` (seconds since the epoch), and
        left-overs of `put` and `spool`. Nobody may be at any."""
        with os.scandir(f"{self._directory}/ingest") as entries:
            for entry in entries:
                if entry.name.startswith(_SPOOL):
                    _remove_spool(entry.path)
                elif entry.name.startswith("put-") or entry.stat(follow_symlinks=False).st_mtime < older_than:
                    _discard(entry.path)

    def _publish(self, path: str, digest: str) -> None:
        target = self.path(digest)
        os.rename(path, target)
        _sync(os.path.dirname(target))


class Ingest:
    """One blob on its way: written by one thread, followed by others while it grows."""

    def __init__(self, path: str, digest: str, size: int, publish: Callable[[], None]) -> None:
        self.digest = digest
        self.size = size
        self._path = path
        self._publish = publish
        self._changed = threading.Condition()
        self._error: NagayaError | None = None
        self._done = False
        self._hash = digests.hasher(digest)
        self.fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self.offset = 0
        try:
            self._take_up()
        except BaseException:
            os.close(self.fd)
            raise
        self.resumed = self.offset  # bytes that an earlier process left: not verified yet

    def _take_up(self) -> None:
        if os.fstat(self.fd).st_size > self.size:
            os.ftruncate(self.fd, 0)
        while part := os.pread(self.fd, _READ, self.offset):
            self._hash.update(part)
            self.offset += len(part)

    def write(self, data: bytes) -> None:
        """Append. Raises DataLoss when it is more than was announced, ResourceExhausted on a full disk."""
        if self.offset + len(data) > self.size:
            raise DataLoss(
                f"the registry sent more than the {self.size} bytes it announced", subject=self.digest
            )
        view = memoryview(data)
        at = self.offset
        try:
            while view:
                count = os.pwrite(self.fd, view, at)
                at += count
                view = view[count:]
        except OSError as error:
            raise disk_error(error, "store content", self.digest) from None
        self._hash.update(data)
        with self._changed:
            self.offset = at
            self._changed.notify_all()

    def commit(self) -> None:
        """Verify size and digest, and publish the blob. Raises DataLoss; the arrival then starts over."""
        if self.offset != self.size:
            raise DataLoss(
                f"the blob has {self.offset} bytes, its descriptor says {self.size}", subject=self.digest
            )
        actual = self._hash.hexdigest()
        algorithm, wanted = digests.parse(self.digest)
        if actual != wanted:
            self.discard()
            raise DataLoss(
                f"the blob's digest is {algorithm}:{actual}, not {self.digest}", subject=self.digest
            )
        try:
            os.fsync(self.fd)
            self._publish()
        except OSError as error:
            raise disk_error(error, "store content", self.digest) from None
        with self._changed:
            self._done = True
            self._changed.notify_all()

    def discard(self) -> None:
        """Forget what has arrived: the bytes are not the blob's."""
        _discard(self._path)

    def fail(self, error: NagayaError) -> None:
        """Wake those who follow: nothing more will come. The partial file stays for the next try."""
        with self._changed:
            if not self._done and self._error is None:
                self._error = error
            self._changed.notify_all()

    def follow(self, check: Callable[[], None]) -> Iterator[bytes]:
        """The blob's bytes as they arrive, ending after commit. check may raise to stop.

        Raises what `fail` was given.
        """
        at = 0
        while True:
            with self._changed:
                while self.offset <= at and not self._done and self._error is None:
                    self._changed.wait(0.5)
                    check()
                if self._error is not None:
                    raise self._error
                if self._done and at >= self.size:
                    return
                available = self.offset - at
            piece = os.pread(self.fd, min(available, _READ), at)
            at += len(piece)
            yield piece

    def close(self) -> None:
        """Close the file; nobody may follow any more."""
        os.close(self.fd)


def write_all(fd: int, data: bytes) -> None:
    """write(2) until everything is written."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def disk_error(error: OSError, step: str, subject: str) -> NagayaError:
    """The class for what a disk refused: ResourceExhausted when it is full, KernelError else."""
    number = error.errno or 0
    kind = ResourceExhausted if number in (errno.ENOSPC, errno.EDQUOT) else KernelError
    return kind(os.strerror(number).lower(), step=step, subject=subject, errno=number)


def _sync(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _discard(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _remove_spool(path: str) -> None:
    for name in os.listdir(path):  # files of our own making, and nothing else
        _discard(f"{path}/{name}")
    os.rmdir(path)


def _missing(digest: str) -> NotFound:
    return NotFound(f"content {digest} is not here", subject=digest)
