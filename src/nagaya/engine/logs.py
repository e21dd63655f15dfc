"""Reading what containers wrote: json-file logs, rotated files included, and following them.

The writer is the supervisor's io (supervisor/logfile.py, format.py). Following polls: the file is
looked at ten times a second while a client is there, which costs nothing without one and needs no
inotify watch per client.
"""

from __future__ import annotations

import asyncio
import calendar
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Literal

import msgspec

from nagaya.engine.model import Container, LogConfig, LogLine
from nagaya.engine.settings import Settings
from nagaya.engine.world import World
from nagaya.errors import InvalidArgument

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_BATCH = 1 << 18
_POLL = 0.1
_LONGEST = 1 << 20  # of one record: 16 KiB of text, escaped


class _Record(msgspec.Struct):
    log: str = ""
    stream: Literal["stdout", "stderr"] = "stdout"
    time: str = ""


_decode = msgspec.json.Decoder(_Record).decode


def _size(text: str) -> int:
    bare = text.strip().lower().removesuffix("b") if len(text) > 1 else text
    number, unit = (bare[:-1], bare[-1:]) if bare[-1:] in ("k", "m", "g") else (bare, "")
    if not number.isdigit() or not number.isascii():
        raise InvalidArgument(f"invalid size: '{text}'", subject="max-size")
    return int(number) * _UNITS[unit]


def log_settings(settings: Settings, container_id: str, config: LogConfig) -> dict[str, Any] | None:
    """What io is told about the log; None for the driver "none". Raises InvalidArgument."""
    driver = config.driver or "json-file"
    if driver == "none":
        return None
    if driver not in ("json-file", "local"):
        raise InvalidArgument(f"logger: no log driver named '{driver}' is registered", subject="LogConfig")
    options = dict(config.options)
    size, count = settings.log_max_size, settings.log_max_file
    if "max-size" in options:
        size = _size(options.pop("max-size"))
    if "max-file" in options:
        text = options.pop("max-file")
        if not (text.isascii() and text[:6].isdigit()) or int(text[:6]) < 1:
            raise InvalidArgument("max-file cannot be less than 1", subject="LogConfig")
        count = int(text[:6])
    for name in options:
        if name not in (
            "labels",
            "labels-regex",
            "env",
            "env-regex",
            "tag",
            "compress",
            "mode",
            "max-buffer-size",
        ):
            raise InvalidArgument(f"unknown log opt '{name}' for {driver} log driver", subject="LogConfig")
    return {
        "driver": "json-file",
        "path": f"{settings.container_dir(container_id)}/{container_id}-json.log",
        "max_size": size,
        "max_file": count,
    }


def parse_time(text: str) -> int:
    """Nanoseconds since the epoch of RFC 3339 in UTC ("2026-01-02T03:04:05.123456789Z"); 0 if malformed."""
    try:
        whole, _, fraction = text.removesuffix("Z").partition(".")
        seconds = calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S"))
        return seconds * 1_000_000_000 + int(fraction.ljust(9, "0")[:9] or "0")
    except ValueError:
        return 0


class _Clock:
    """parse_time with the last second remembered: lines come many to a second."""

    __slots__ = ("_seconds", "_whole")

    def __init__(self) -> None:
        self._whole, self._seconds = "", 0

    def read(self, text: str) -> int:
        whole, _, fraction = text.removesuffix("Z").partition(".")
        if whole != self._whole:
            self._whole, self._seconds = whole, parse_time(whole)
        return self._seconds + (int(fraction.ljust(9, "0")[:9]) if fraction.isdigit() else 0)


def _lines(data: bytes, clock: _Clock) -> Iterator[LogLine]:
    for raw in data.splitlines():
        try:
            record = _decode(raw)
        except msgspec.MsgspecError:
            continue  # a line cut short by a full disk: the next one is whole again
        yield LogLine(record.stream, clock.read(record.time), record.log.encode("utf-8", "surrogatepass"))


class _Files:
    """The log as one stream over its files, oldest first. Blocking; used by one job at a time."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._queue: list[int] = []
        self._rest = b""

    def open(self) -> None:
        """Open all files that are there, so that a rotation takes none away."""
        found: list[int] = []
        for name in self._names():
            fd = self._try(name)
            if fd >= 0:
                found.append(fd)
        self._queue = found

    def _names(self) -> list[str]:
        number = 1
        while os.path.lexists(f"{self._path}.{number}"):
            number += 1
        return [*(f"{self._path}.{n}" for n in range(number - 1, 0, -1)), self._path]

    def _try(self, name: str) -> int:
        try:
            return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return -1

    def read(self) -> bytes:
        """Whole lines; b"" when there are no more for now."""
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

    def renewed(self) -> None:
        """After the end was reached: go on with the files that a rotation put in this one's place,
        oldest first, or from the start of one that was emptied."""
        if self._fd < 0:
            self.open()
            return
        mine = os.fstat(self._fd)
        if mine.st_size < os.lseek(self._fd, 0, os.SEEK_CUR):
            os.lseek(self._fd, 0, os.SEEK_SET)
            self._rest = b""
            return
        newer: list[int] = []
        for name in reversed(self._names()):
            fd = self._try(name)
            if fd < 0:
                continue
            other = os.fstat(fd)
            if (other.st_dev, other.st_ino) == (mine.st_dev, mine.st_ino):
                os.close(fd)
                break
            newer.insert(0, fd)
        self._queue = newer

    def tail(self, wanted: int, keep: Callable[[LogLine], bool]) -> list[LogLine]:
        """The last `wanted` lines that pass; reading goes on behind them."""
        found: list[LogLine] = []
        clock = _Clock()
        last = self._queue[-1:]
        for fd in reversed(self._queue):
            end = os.lseek(fd, 0, os.SEEK_END)
            rest = b""
            while end > 0 and len(found) < wanted:
                start = max(0, end - _BATCH)
                block = os.pread(fd, end - start, start) + rest
                cut = block.find(b"\n") + 1 if start else 0
                rest, whole = block[:cut], block[cut:]
                lines = [line for line in _lines(whole, clock) if keep(line)]
                found = lines[-(wanted - len(found)) :] + found
                end = start
            if fd not in last:
                os.close(fd)
        self._queue = last
        return found

    def close(self) -> None:
        for fd in (self._fd, *self._queue):
            if fd >= 0:
                os.close(fd)
        self._fd, self._queue = -1, []


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
) -> AsyncIterator[LogLine]:
    """The lines in order. container: asked again while following; None when it was removed."""
    first = container()
    if first is None or not first.log_path:
        return
    streams = {name for name, wanted in (("stdout", stdout), ("stderr", stderr)) if wanted}
    clock = _Clock()

    def keep(line: LogLine) -> bool:
        return line.stream in streams and line.time_ns >= since and (not until or line.time_ns <= until)

    log = _Files(first.log_path)
    try:
        await world.job(log.open)
        if tail is not None:
            for line in await world.job(log.tail, tail, keep):
                yield line
        while True:
            # asked before reading: what was written before the end is then read, not missed
            now = container()
            data = await world.job(log.read)
            if data:
                for line in _lines(data, clock):
                    if until and line.time_ns > until and follow:
                        return
                    if keep(line):
                        yield line
                continue
            if not follow or now is None or now.state not in ("running", "paused", "restarting"):
                return
            if until and time.time_ns() > until:
                return
            await asyncio.sleep(_POLL)
            await world.job(log.renewed)
    finally:
        log.close()
