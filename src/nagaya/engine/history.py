"""Events that outlive the daemon: lines of JSON at ROOT/events.jsonl, the older half at events.jsonl.1.

What happened is appended in a pool, a moment after it was told: nobody who starts a container waits for
the disk. A daemon that is killed may lose that moment's; a torn last line is skipped. When the disk is
full, or the file is damaged, history has a gap, and nothing else happens.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Iterator
from contextlib import suppress

import msgspec

from nagaya.engine.model import Event

log = logging.getLogger(__name__)

_DELAY = 0.05
_MOST = 1 << 20  # bytes of a file, when it becomes the older half

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Event).decode


class History:
    """The file. `add` on the event loop, all else blocks."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._new: deque[Event] = deque()
        self._writing: asyncio.Task[None] | None = None

    def load(self, count: int) -> list[Event]:
        """The last `count` events that were written."""
        found: deque[Event] = deque(maxlen=count)
        for path in (f"{self._path}.1", self._path):
            found.extend(_read(path))
        return list(found)

    def add(self, event: Event) -> None:
        """Write it down soon."""
        self._new.append(event)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.get_running_loop().create_task(self._write_soon(), name="events")

    async def _write_soon(self) -> None:
        while self._new:
            await asyncio.sleep(_DELAY)
            await asyncio.get_running_loop().run_in_executor(None, self.flush)

    def flush(self) -> None:
        """Write what is not written yet."""
        lines = []
        while self._new:
            lines.append(_encode(self._new.popleft()))
        if not lines:
            return
        try:
            with suppress(FileNotFoundError):
                if os.stat(self._path).st_size > _MOST:
                    os.replace(self._path, f"{self._path}.1")
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(self._path, flags, 0o600)
            try:
                os.write(fd, b"\n".join([*lines, b""]))  # a part of it is a torn line
            finally:
                os.close(fd)
        except OSError as error:
            log.error(
                "%d events were not written to %s: %s", len(lines), self._path, os.strerror(error.errno or 0)
            )


def _read(path: str) -> Iterator[Event]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    with open(fd, "rb") as file:
        for line in file:
            with suppress(msgspec.MsgspecError):
                yield _decode(line)
