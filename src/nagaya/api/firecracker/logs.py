"""The log and the metrics: lines to a file or a named pipe, which are opened without waiting for a reader."""

from __future__ import annotations

import datetime
import json
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from nagaya.api.firecracker import models
from nagaya.api.firecracker.faults import Fault, os_words

_ORDER = ("Trace", "Debug", "Info", "Warn", "Error", "Off")
_SHOWN = {"Trace": "TRACE", "Debug": "DEBUG", "Info": "INFO", "Warn": "WARN", "Error": "ERROR"}


def _open(path: str) -> int:
    # a pipe without a reader, too: O_RDWR does not wait, and O_NONBLOCK drops lines when it is full
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
    return os.open(path, flags, 0o644)


class Log:
    """Lines as Firecracker writes them: to standard output until a file is named."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._fd = 1
        self._level = _ORDER.index("Info")
        self._config = models.LoggerConfig()
        self.missed = 0

    def configure(self, config: models.LoggerConfig) -> None:
        """Change what is given. Raises OSError."""
        if config.log_path is not None:
            fd = _open(config.log_path)
            if self._fd > 2:
                os.close(self._fd)
            self._fd = fd
        self._level = _ORDER.index(config.level or "Info")
        given = {name: getattr(config, name) for name in config.__struct_fields__}
        kept = {name: getattr(self._config, name) for name in config.__struct_fields__}
        self._config = models.LoggerConfig(
            **{name: kept[name] if value is None else value for name, value in given.items()}
        )

    def write(self, level: str, message: str) -> None:
        """One line, whatever the message holds. Never raises: what could not be written is counted."""
        frame = sys._getframe(2)
        module = str(frame.f_globals.get("__name__", "")).removeprefix("nagaya.api.firecracker.")
        if _ORDER.index(level) < self._level or not module.startswith(self._config.module or ""):
            return
        # local time with nanoseconds, as Firecracker's
        seconds, nanos = divmod(time.time_ns(), 10**9)
        stamp = datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%dT%H:%M:%S")
        about = f"{self._instance}:{threading.current_thread().name}"
        if self._config.show_level:
            about += f":{_SHOWN[level]}"
        if self._config.show_log_origin:
            about += f":{module}:{frame.f_lineno}"
        line = f"{stamp}.{nanos:09} [{about}] {message}".replace("\n", "\\n") + "\n"
        try:
            os.write(self._fd, line.encode("utf-8", "replace"))
        except OSError:
            self.missed += 1

    def debug(self, message: str) -> None:
        """For who looks for a fault of ours."""
        self.write("Debug", message)

    def info(self, message: str) -> None:
        """What happens."""
        self.write("Info", message)

    def warn(self, message: str) -> None:
        """What should be changed."""
        self.write("Warn", message)

    def error(self, message: str) -> None:
        """What failed."""
        self.write("Error", message)


class Metrics:
    """Counters by group and name, written as one line of JSON: what was counted since the last line, and what
    `gather` says to be so now."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._fd = -1
        self._config: models.MetricsConfig | None = None
        self._counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self._stored: dict[str, dict[str, int]] = defaultdict(dict)
        self._lock = threading.Lock()
        self.gather: list[Callable[[], dict[str, dict[str, int]]]] = []

    def configure(self, config: models.MetricsConfig) -> None:
        """Where the lines go. Raises Fault when that is known already, or cannot be opened."""
        words = "Metrics error: Cannot initialize the metrics system due to bad user input:"
        if self._config:
            raise Fault(f"{words} Reinitialization of metrics not allowed.")
        try:
            self._fd = _open(config.metrics_path)
        except OSError as error:
            raise Fault(f"{words} {os_words(error)}") from None
        self._config = config

    def count(self, group: str, name: str, by: int = 1) -> None:
        """Something happened."""
        with self._lock:
            self._counts[group][name] += by

    def store(self, group: str, name: str, value: int) -> None:
        """Something was measured."""
        with self._lock:
            self._stored[group][name] = value

    def flush(self) -> None:
        """Write a line, when there is where to. Raises OSError."""
        if self._config is None:
            return
        groups: dict[str, Any] = {"utc_timestamp_ms": time.time_ns() // 10**6}
        if self._config.emit_id:
            groups["id"] = self._instance
        if self._config.properties:
            groups["properties"] = self._config.properties
        with self._lock:
            counts, self._counts = self._counts, defaultdict(lambda: defaultdict(int))
            for source in (*(gather() for gather in self.gather), self._stored, counts):
                for group, values in source.items():
                    groups.setdefault(group, {}).update(values)
        os.write(self._fd, json.dumps(groups, separators=(",", ":")).encode() + b"\n")
