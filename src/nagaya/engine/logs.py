"""Reading what containers wrote: json-file logs, rotated files included, and following them.

The writer is the supervisor's io (supervisor/logfile.py, format.py). Following polls: the file is
looked at ten times a second while a client is there, which costs nothing without one and needs no
inotify watch per client.
"""

from __future__ import annotations

import asyncio
import calendar
import fcntl
import os
import re
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Literal

import msgspec

from nagaya.engine.model import Container, LogLine
from nagaya.engine.world import World

_BATCH = 1 << 18
_POLL = 0.1
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_SCANS = 100  # of the files of a log that is rotated meanwhile
_SCAN_PAUSE = 0.001
_ROTATED = re.compile(r"\.[1-9][0-9]{0,8}")
_LONGEST = 1 << 20  # of one record: 16 KiB of text, escaped


class _Record(msgspec.Struct):
    log: str = ""
    stream: Literal["stdout", "stderr"] = "stdout"
    time: str = ""
    attrs: dict[str, str] | None = None


_NONE: dict[str, str] = {}
_decode = msgspec.json.Decoder(_Record).decode


def parse_time(text: str) -> int:
    """Nanoseconds since the epoch of RFC 3339 in UTC ("2026-01-02T03:04:05.123456789Z"); 0 if malformed."""
    try:
        whole, _, fraction = text.removesuffix("Z").partition(".")
        seconds = calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S"))
        return seconds * 1_000_000_000 + int(fraction.ljust(9, "0")[:9] or "0")
    except ValueError:
        return 0


class _Clock:
    """parse_time with the last time and second remembered: lines come many to a second, and all that were
    read at once have one time."""

    __slots__ = ("_found", "_seconds", "_text", "_whole")

    def __init__(self) -> None:
        self._text, self._found = "", 0
        self._whole, self._seconds = "", 0

    def read(self, text: str) -> int:
        if text != self._text:
            self._text, self._found = text, self._read(text)
        return self._found

    def _read(self, text: str) -> int:
        whole, _, fraction = text.removesuffix("Z").partition(".")
        if whole != self._whole:
            self._whole, self._seconds = whole, parse_time(whole)
        return self._seconds + (int(fraction.ljust(9, "0")[:9]) if fraction.isdigit() else 0)


def _lines(data: bytes, clock: _Clock) -> list[LogLine]:
    found: list[LogLine] = []
    for raw in data.splitlines():
        try:
            record = _decode(raw)
        except msgspec.MsgspecError:
            continue  # a line cut short by a full disk: the next one is whole again
        found.append(
            LogLine(
                record.stream,
                clock.read(record.time),
                record.log.encode("utf-8", "surrogatepass"),
                record.attrs or _NONE,
            )
        )
    return found


def _identity(path: str) -> tuple[int, int] | None:
    try:
        facts = os.lstat(path)
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def _stand_before(fd: int, wanted: int) -> int:
    """Go to the start of a file's last `wanted` lines, or of all it has; how many these are."""
    position, found = os.lseek(fd, 0, os.SEEK_END), 0
    while position > 0:
        start = max(0, position - _BATCH)
        block = os.pread(fd, position - start, start)
        count = block.count(b"\n")
        if found + count > wanted:  # the newline before them is in here
            end = len(block)
            for _ in range(wanted - found + 1):
                end = block.rfind(b"\n", 0, end)
            os.lseek(fd, start + end + 1, os.SEEK_SET)
            return wanted
        found, position = found + count, start
    os.lseek(fd, 0, os.SEEK_SET)
    return found


class _Files:
    """The log as one stream over its files, oldest first. Blocking; used by one job at a time: a reader
    that goes away closes it once the job under way has ended, for a thread does not stop.

    follow: the newest file that is open has a shared lock, which tells io not to rotate it away before
    we have opened its successors (supervisor/logfile.py).
    """

    def __init__(self, path: str, *, follow: bool) -> None:
        self._path = path
        self._follow = follow
        self._fd = -1
        self._queue: list[int] = []
        self._rest = b""
        self._closed = False
        self._busy = threading.RLock()

    def open(self) -> None:
        """Open all files that are there, so that a rotation takes none away."""
        with self._busy:
            if not self._closed:
                self._open()

    def _open(self) -> None:
        self._queue = self._newer(None)
        if self._follow and not self._queue:  # nothing was written yet: make what io will append to
            with suppress(OSError):
                os.close(os.open(self._path, _MAKE, 0o640))
            self._queue = self._newer(None)
        self._lock()

    def _newer(self, than: tuple[int, int] | None) -> list[int]:
        """The files newer than that one (device, inode), oldest first; all when it is not there."""
        for attempt in range(_MOST_SCANS):
            found: list[int] = []
            seen: list[tuple[str, tuple[int, int]]] = []
            for name in self._names():
                fd = self._try(name)
                if fd < 0:
                    continue
                facts = os.fstat(fd)
                identity = (facts.st_dev, facts.st_ino)
                if identity == than or identity in (i for _, i in seen):
                    os.close(fd)
                    if identity == than:
                        break
                    continue
                seen.append((name, identity))
                found.insert(0, fd)
            # the names move while we look: a scan counts when all were in their place at its end
            if all(_identity(name) == identity for name, identity in seen) or attempt == _MOST_SCANS - 1:
                break
            for fd in found:
                os.close(fd)
            time.sleep(_SCAN_PAUSE)
        return found

    def _names(self) -> list[str]:
        """The names there are now, newest first. One that is missing in between is just being renamed."""
        directory, name = os.path.split(self._path)
        try:
            entries = os.listdir(directory)
        except OSError:
            return []
        numbers = [int(e[len(name) + 1 :]) for e in entries if _ROTATED.fullmatch(e.removeprefix(name))]
        return [self._path, *(f"{self._path}.{n}" for n in sorted(numbers))]

    def _try(self, name: str) -> int:
        try:
            return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return -1

    def _lock(self) -> None:
        """Stand at the newest file; older ones that are open cannot be taken from us."""
        if self._follow:
            newest = self._queue[-1] if self._queue else self._fd
            if newest >= 0:
                fcntl.flock(newest, fcntl.LOCK_SH)
            for fd in (self._fd, *self._queue[:-1]):
                if fd >= 0 and fd != newest:
                    fcntl.flock(fd, fcntl.LOCK_UN)

    def read(self) -> bytes:
        """Whole lines; b"" when there are no more for now."""
        with self._busy:
            return self._read()

    def _read(self) -> bytes:
        while True:
            if self._fd < 0:
                if not self._queue:
                    return b""
                self._fd = self._queue.pop(0)
            data = os.read(self._fd, _BATCH)
            if data:
                data = self._rest + data
                end = data.rfind(b"\n") + 1
                self._rest = data[end:] if len(data) - end < _LONGEST else b""
                if end:
                    return data[:end]
                continue
            if not self._queue:
                return b""
            os.close(self._fd)
            self._fd, self._rest = -1, b""

    def renewed(self) -> bool:
        """After the end was reached: go on with the files that a rotation put in this one's place,
        oldest first, or from the start of one that was emptied. False when there is none."""
        with self._busy:
            return not self._closed and self._renewed()

    def _renewed(self) -> bool:
        if self._fd < 0:
            self.open()
            return bool(self._queue)
        mine = os.fstat(self._fd)
        if mine.st_size < os.lseek(self._fd, 0, os.SEEK_CUR):
            os.lseek(self._fd, 0, os.SEEK_SET)
            self._rest = b""
            return True
        self._queue = self._newer((mine.st_dev, mine.st_ino))
        self._lock()
        return bool(self._queue)

    def skip(self, wanted: int) -> None:
        """Go on with the last `wanted` records; what is before them is not looked at."""
        with self._busy:
            kept: list[int] = []
            for fd in reversed(self._queue):
                if kept and not wanted:
                    os.close(fd)
                    continue
                wanted -= _stand_before(fd, wanted)
                kept.insert(0, fd)
            self._queue = kept

    def close(self) -> None:
        """Let all files go."""
        with self._busy:
            for fd in (self._fd, *self._queue):
                if fd >= 0:
                    os.close(fd)
            self._fd, self._queue = -1, []
            self._closed = True


_YOUNG = 100_000_000  # nanoseconds


async def _grown(container: Callable[[], Container | None]) -> None:
    """A start of dockerd takes so long that a short program has said all when it returns, and people count
    on that: who asks at once waits until the container has ended, or has lived for a tenth of a second."""
    while (now := container()) is not None and now.state == "running":
        if time.time_ns() - now.started > _YOUNG:
            return
        await asyncio.sleep(0.005)


async def read(
    world: World,
    container: Callable[[], Container | None],
    *,
    stdout: bool,
    stderr: bool,
    since: int,
    until: int,
    tail: int | None,
    follow: bool,
) -> AsyncIterator[list[LogLine]]:
    """The lines in order, as many at once as were read at once. container: asked again while following;
    None when it was removed. tail: of both streams together and whenever written, as with dockerd."""
    first = container()
    if first is None or not first.log_path:
        return
    if not follow:
        await _grown(container)
    streams = {name for name, wanted in (("stdout", stdout), ("stderr", stderr)) if wanted}
    clock = _Clock()

    def kept(lines: list[LogLine]) -> list[LogLine]:
        return [
            line
            for line in lines
            if line.stream in streams and line.time_ns >= since and (not until or line.time_ns <= until)
        ]

    log = _Files(first.log_path, follow=follow)
    try:
        await world.job(log.open)
        if tail is not None:
            await world.job(log.skip, tail)
        while True:
            # asked before reading: what was written before the end is then read, not missed
            now = container()
            data = await world.job(log.read)
            if data:
                lines = _lines(data, clock)
                found = kept(lines)
                if found:
                    yield found
                if until and follow and lines and lines[-1].time_ns > until:
                    return
                continue
            if not follow:
                return
            if now is None or now.state not in ("running", "paused", "restarting"):
                if await world.job(log.renewed):  # its last words are in a file of their own
                    continue
                return
            if until and time.time_ns() > until:
                return
            await asyncio.sleep(_POLL)
            await world.job(log.renewed)
    finally:
        await asyncio.shield(asyncio.ensure_future(world.job(log.close)))
