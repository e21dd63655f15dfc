"""The guest's serial console: a file or a pipe, or standard output, with standard input as its keyboard."""

from __future__ import annotations

import os
import select
import socket
import termios
import time
import tty
from collections.abc import Callable
from typing import Any

from nagaya.api.firecracker import models
from nagaya.api.firecracker.server import Loop

_CHUNK = 65536


class Bucket:
    """How many bytes may pass now: `size` at once, as many again within `refill_time` ms."""

    def __init__(self, config: models.TokenBucketConfig, now: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._now = now
        self._tokens = float(config.size)
        self._extra = config.one_time_burst or 0
        self._at = now()

    def take(self, wanted: int) -> int:
        """As many of the wanted as may pass."""
        now = self._now()
        self._tokens += (now - self._at) * 1000 / self._config.refill_time * self._config.size
        self._tokens, self._at = min(self._tokens, self._config.size), now
        extra = min(wanted, self._extra)
        self._extra -= extra
        rest = min(wanted - extra, int(self._tokens))
        self._tokens -= rest
        return extra + rest


class Console:
    """Carries what the guest prints, and what is typed. QEMU gets `theirs`, to be closed after its start."""

    def __init__(
        self,
        loop: Loop,
        config: models.SerialConfig,
        bucket: models.TokenBucketConfig | None,
        count: Callable[[str, int], None],
    ) -> None:
        """Raises OSError when the file cannot be opened."""
        self._loop = loop
        self._count = count
        self._bucket = Bucket(bucket) if bucket else None
        self._out, self._in = 1, 0
        if config.serial_out_path is not None:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
            self._out, self._in = os.open(config.serial_out_path, flags, 0o644), -1
        self._modes: list[Any] = []
        self._ours, self.theirs = socket.socketpair()
        self._ours.setblocking(False)
        loop.watch(self._ours.fileno(), select.EPOLLIN, self._print)
        if self._in == 0:
            self._begin_typing()

    def close(self) -> None:
        """The rest of what was printed, and the terminal as it was."""
        self._print(0)
        self._loop.forget(self._ours.fileno())
        self._ours.close()
        self.theirs.close()
        self._end_typing()
        if self._out > 2:
            os.close(self._out)

    def _begin_typing(self) -> None:
        try:
            self._loop.watch(0, select.EPOLLIN, self._type)
        except OSError:  # a plain file, or closed: nobody types there
            self._in = -1
            return
        if os.isatty(0):
            self._modes = termios.tcgetattr(0)
            tty.setraw(0)

    def _end_typing(self) -> None:
        if self._in == 0:
            self._in = -1
            self._loop.forget(0)
        if self._modes:
            termios.tcsetattr(0, termios.TCSANOW, self._modes)
            self._modes = []

    def _type(self, _: int) -> None:
        try:
            typed = os.read(0, 4096)
        except OSError:
            typed = b""
        if not typed:
            self._end_typing()
            return
        try:
            self._ours.send(typed)
        except OSError:
            self._count("missed_read_count", 1)  # the guest does not take it

    def _print(self, _: int) -> None:
        for _ in range(16):
            try:
                data = self._ours.recv(_CHUNK)
            except OSError:
                return
            if not data:
                self._loop.forget(self._ours.fileno())
                return
            if self._bucket:
                allowed = self._bucket.take(len(data))
                self._count("rate_limiter_dropped_bytes", len(data) - allowed)
                data = data[:allowed]
            try:
                while data:
                    # whoever does not read must not stop the machine
                    if not select.select([], [self._out], [], 0)[1]:
                        self._count("missed_write_count", len(data))
                        break
                    written = os.write(self._out, data[:4096])  # as much as a pipe that is ready takes
                    self._count("write_count", written)
                    data = data[written:]
            except OSError:
                self._count("missed_write_count", len(data))
