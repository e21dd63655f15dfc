"""One container's log file: appended by single writes, rotated by size.

Names: PATH, PATH.1 (newest old one) ... PATH.(max_file - 1), as dockerd's json-file driver. A reader
that follows has a shared lock (flock(2)) on the newest file it has opened. While that is the one a
rotation would take away, the log grows by up to `HELD` bytes more than it should, and nothing is lost
for a reader that is no further behind.
"""

from __future__ import annotations

import os
import time
from errno import EIO, ENOSPC
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock

from nagaya.supervisor.format import RECORDS, json_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEFAULT_MAX_SIZE = 20 * 1024 * 1024
DEFAULT_MAX_FILE = 5
HELD = 1 << 20
_RETRY = 1.0  # seconds until a file that could not be opened is tried again


class LogFile:
    """A log of both streams of a container. settings: the path, "driver" (of RECORDS), "max_size",
    "max_file", and for json-file "attributes" of every record, as JSON. Errors are OSError; the caller
    counts what was lost."""

    __slots__ = ("_error", "_fd", "_left", "_retry", "_theirs", "max_file", "max_size", "path", "records")

    def __init__(self, settings: dict[str, Any]) -> None:
        self.path = str(settings["path"])
        self.records = RECORDS[settings.get("driver", "json-file")]
        attributes = settings.get("attributes")
        if attributes:
            self.records = lambda segments, stream, time_ns: json_lines(segments, stream, time_ns, attributes)
        self._theirs = settings.get("driver") == "cri"  # a kubelet rotates it, by renaming
        self.max_size = 0 if self._theirs else int(settings.get("max_size") or DEFAULT_MAX_SIZE)
        self.max_file = max(1, int(settings.get("max_file") or DEFAULT_MAX_FILE))
        self._fd = -1
        self._left = -1  # the file before this one, taken away while a reader stood at it
        self._retry = 0.0
        self._error = 0

    @property
    def chunk(self) -> int:
        """How much to read at once, so that small files are not overshot by much: records of short
        lines are a dozen times as long as what was read."""
        return max(1024, min(65536, self.max_size // 32)) if self.max_size > 0 else 65536

    def size(self) -> int:
        """Open the file if need be; the size it has now."""
        if self._fd >= 0:
            facts = os.fstat(self._fd)
            if facts.st_nlink and not (self._theirs and self._moved(facts)):
                return facts.st_size
            self.close()  # removed by someone: begin a new one rather than write into nothing
        self._open()
        return os.fstat(self._fd).st_size

    def _moved(self, facts: os.stat_result) -> bool:
        try:
            named = os.stat(self.path, follow_symlinks=False)
        except OSError:
            return True
        return (named.st_dev, named.st_ino) != (facts.st_dev, facts.st_ino)

    def room(self) -> int:
        """As `size`, but a full file is rotated first: where the next record begins."""
        size = self.size()
        if 0 < self.max_size <= size and (size >= self.max_size + HELD or not self._followed()):
            self._rotate()
            size = os.fstat(self._fd).st_size
        return size

    def append(self, parts: list[bytes], before: int) -> None:
        """Append all of the parts, a few hundred at most, or nothing: after an error the file is cut back to
        `before`."""
        written, size, rest = 0, sum(map(len, parts)), parts
        try:
            while written < size:
                count = os.writev(self._fd, rest)
                if not count:
                    raise OSError(ENOSPC, os.strerror(ENOSPC))
                written += count
                if written < size:  # the disk is full, or a limit was reached: the next one finds out
                    rest = [b"".join(parts)[written:]]
        except OSError:
            if written:
                os.ftruncate(self._fd, before)
            raise

    def truncate(self, size: int) -> None:
        """Cut off a record that a killed io left unfinished."""
        os.ftruncate(self._fd, size)

    def close(self) -> None:
        """Close the file; the next `size` or `room` opens it again."""
        for fd in (self._fd, self._left):
            if fd >= 0:
                os.close(fd)
        self._fd = self._left = -1

    def _followed(self) -> bool:
        """Does a reader stand at the file that a rotation would take away, or before it?"""
        if self._left >= 0:
            if _is_locked(self._left):
                return True
            os.close(self._left)
            self._left = -1
        if self.max_file == 1:
            return _is_locked(self._fd)
        try:
            fd = os.open(
                f"{self.path}.{self.max_file - 1}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            )
        except OSError:
            return False
        try:
            return _is_locked(fd)
        finally:
            os.close(fd)

    def _open(self) -> None:
        now = time.monotonic()
        if now < self._retry:
            raise OSError(self._error, os.strerror(self._error), self.path)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            self._fd = os.open(self.path, flags, 0o640)
        except OSError as error:
            self._retry, self._error = now + _RETRY, error.errno or EIO
            raise

    def _rotate(self) -> None:
        if self.max_file == 1:
            # a new file, not this one emptied: who follows reads the rest of it
            os.unlink(self.path)
            former, self._fd = self._fd, -1
            if self._left >= 0:
                os.close(self._left)
            self._left = former
            self._open()
            return
        # Up to the first gap only: a rotation that a kill interrupted goes on where it stopped,
        # instead of pushing one more old file out.
        last = 1
        while last < self.max_file - 1 and os.path.lexists(f"{self.path}.{last}"):
            last += 1
        for number in range(last, 1, -1):
            os.rename(f"{self.path}.{number - 1}", f"{self.path}.{number}")
        os.rename(self.path, f"{self.path}.1")
        self.close()
        self._open()


def _is_locked(fd: int) -> bool:
    try:
        flock(fd, LOCK_EX | LOCK_NB)
    except OSError:
        return True
    flock(fd, LOCK_UN)
    return False
