"""How a build goes, for the person who waits: line by line, or on a terminal one line a step.

What comes is the classic builder's text: "Step 2/5 : RUN make", " ---> Using cache", and what the step's
program says.
"""

from __future__ import annotations

import os
import time

from nagaya.cli import progress
from nagaya.cli.output import write
from nagaya.errors import NagayaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_CLEAR, _DIM, _BOLD, _RED, _PLAIN = "\r\x1b[K", "\x1b[2m", "\x1b[1m", "\x1b[31m", "\x1b[0m"
_KEPT = 200  # lines of a step's output that are shown when it fails


class BuildFailed(NagayaError):
    """The daemon says so; `status` is the exit code that goes with it."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def show(messages: Iterator[Any], *, how: str, fd: int = 1) -> str:
    """Show a build's messages: how is plain, tty or quiet. The image's id. Raises BuildFailed."""
    image = ""
    screen = Screen(fd) if how == "tty" else None
    for message in messages:
        if "error" in message:
            if screen is not None:
                screen.fail()
            status = (message.get("errorDetail") or {}).get("code") or 1
            raise BuildFailed(str(message["error"]), status if isinstance(status, int) else 1)
        aux = message.get("aux")
        if aux:
            image = str(aux.get("ID", image))
        elif how == "quiet":
            text = str(message.get("stream", "")).strip()
            image = text if text.startswith("sha256:") else image
        elif screen is not None:
            screen.feed(message)
        elif "stream" in message:
            write(str(message["stream"]).encode(), fd)
        elif not message.get("progressDetail"):
            write(progress.line(message).encode() + b"\n", fd)
    if screen is not None:
        screen.end()
    return image


class Screen:
    """One line for each step that is done, and below them the last that the running one said."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._step = ""
        self._note = ""
        self._since = time.monotonic()
        self._said: list[str] = []
        self._rest = ""

    def feed(self, message: dict[str, Any]) -> None:
        """Show what it tells."""
        if "stream" not in message:
            self._running(progress.line(message))
            return
        *lines, self._rest = (self._rest + str(message["stream"])).split("\n")
        for text in lines:
            self._line(text)

    def _line(self, text: str) -> None:
        if text.startswith("Step ") and " : " in text:
            self._done()
            place, _, self._step = text.removeprefix("Step ").partition(" : ")
            self._step = f"[{place}] {self._step}"
            self._running("")
        elif text == " ---> Using cache":
            self._note = "CACHED"
        elif text.startswith((" ---> ", "Removing intermediate container ")):
            pass
        elif text.startswith(("Successfully built ", "Successfully tagged ", "[Warning]")):
            self._done()
            self._write(f"{text}\n")
        elif text:
            self._said = [*self._said[1 - _KEPT :], text]
            self._running(text)

    def fail(self) -> None:
        """The running step's output, to look at."""
        if self._step:
            self._write(f"{_CLEAR}{_RED}{self._cut(self._step)}{_PLAIN}\n")
        for text in [*self._said, *([self._rest] if self._rest else [])]:
            self._write(f"{text}\n")

    def end(self) -> None:
        """All is done."""
        self._done()

    def _done(self) -> None:
        if self._step:
            took = self._note or f"{time.monotonic() - self._since:.1f}s"
            self._write(f"{_CLEAR}{self._cut(self._step, len(took) + 2)}  {_BOLD}{took}{_PLAIN}\n")
        self._step, self._note, self._said = "", "", []
        self._since = time.monotonic()

    def _running(self, text: str) -> None:
        shown = "".join(char if char.isprintable() else " " for char in text.rpartition("\r")[2])
        self._write(f"{_CLEAR}{self._cut(f'{self._step}  {shown}' if self._step else shown)}")

    def _cut(self, text: str, taken: int = 0) -> str:
        try:
            width = os.get_terminal_size(self._fd).columns or 80
        except OSError:
            width = 80
        room = max(width - taken - 1, 20)
        return text if len(text) <= room else text[: room - 1] + "…"

    def _write(self, text: str) -> None:
        write(text.encode("utf-8", "replace"), self._fd)
