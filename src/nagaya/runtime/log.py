"""Messages of nagaya-oci, as runc writes them: podman, containerd and dockerd read them.

--log FILE gets every message in --log-format; an error is also on stderr. Without --log all goes to
stderr (logrus: text without a terminal is `time="..." level=error msg="..."`).
"""

from __future__ import annotations

from time import gmtime

from nagaya.linux import os
from nagaya.linux.json import dumps

_LEVELS = ("debug", "info", "warning", "error")


class Log:
    """Where messages go."""

    __slots__ = ("debug", "format", "path")

    def __init__(self, path: str, form: str, debug: bool) -> None:
        self.path = path
        self.format = form
        self.debug = debug

    def message(self, level: str, text: str, plain: str = "") -> None:
        """Write one message; a log that cannot be written stops nothing. plain: what stderr gets instead."""
        if level == "debug" and not self.debug:
            return
        line = (self._line(level, text) + "\n").encode("utf-8", "replace")
        if self.path:
            try:
                fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
                try:
                    os.write(fd, line)
                finally:
                    os.close(fd)
            except OSError:
                pass
            if level != "error":
                return
            line = (text + "\n").encode("utf-8", "replace")
        if plain:
            line = (plain + "\n").encode("utf-8", "replace")
        try:
            os.write(2, line)
        except OSError:
            pass

    def _line(self, level: str, text: str) -> str:
        t = gmtime()
        stamp = f"{t[0]:04}-{t[1]:02}-{t[2]:02}T{t[3]:02}:{t[4]:02}:{t[5]:02}Z"
        if self.format == "json":
            return dumps({"level": level, "msg": text, "time": stamp})
        return f'time="{stamp}" level={level} msg={_quoted(text)}'


def _quoted(text: str) -> str:
    plain = text and all(c.isascii() and (c.isalnum() or c in "-._/@^+") for c in text)
    return text if plain else dumps(text)
