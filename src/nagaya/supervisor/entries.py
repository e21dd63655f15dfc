"""What the keeper holds for one process: descriptors, places in the journal, its exit."""

from __future__ import annotations

import os

from nagaya.errors import InvalidArgument, ResourceExhausted
from nagaya.linux import seqpacket
from nagaya.supervisor.format import RECORDS
from nagaya.supervisor.journal import MAX_SLOTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.wire.messages import Message

_OUTPUTS = {"pipes": 2, "pty": 1, "none": 0}
_NAMES = ("pidfd", "stdin", "stdout", "stderr", "tty")


class Entry:
    """One token. pid 0: not started yet, or a foreign container whose init is not known.

    fds: "pidfd", and by kind of stdio "stdin" "stdout" "stderr" or "tty".
    """

    __slots__ = (
        "announced",
        "closing",
        "deadline",
        "exited",
        "fds",
        "log",
        "pid",
        "ready",
        "slots",
        "status",
        "stdio",
        "time_ns",
        "timer",
        "token",
    )

    def __init__(self, token: str, stdio: str, log: dict[str, Any] | None) -> None:
        self.token = token
        self.stdio = stdio
        self.log = log
        self.pid = 0
        self.fds: dict[str, int] = {}
        self.slots: list[int] = []
        self.ready = False  # the builder has done its part: io may read, daemons may know
        self.closing = False  # stdin is to be closed when io has written what was typed
        self.exited = False
        self.announced = False  # the exit went to the daemons: its output is in the log
        self.status: int | None = None
        self.time_ns = 0
        self.deadline = 0.0  # > 0: when to stop waiting for the status
        self.timer: object = None  # ends the wait for io

    def fields(self) -> dict[str, Any]:
        """The entry as messages carry it; the descriptors in the order of its "fds"."""
        return {
            "token": self.token,
            "pid": self.pid,
            "stdio": self.stdio,
            "slots": self.slots,
            "log": self.log,
            "fds": list(self.fds),
            "exited": self.announced,
            "status": self.status if self.announced else None,
            "time_ns": self.time_ns if self.announced else 0,
        }

    def streams(self) -> dict[str, int]:
        """The descriptors that io needs."""
        return {name: fd for name, fd in self.fds.items() if name != "pidfd"}

    def close(self, name: str = "") -> None:
        """Close one descriptor, or all."""
        for key in [name] if name else list(self.fds):
            fd = self.fds.pop(key, -1)
            if fd >= 0:
                os.close(fd)


class Slots:
    """Places in the journal, one for each output stream."""

    __slots__ = ("_free", "_next")

    def __init__(self) -> None:
        self._free: list[int] = []
        self._next = 0

    def take(self, count: int) -> list[int]:
        """Some free places. Raises ResourceExhausted."""
        taken: list[int] = []
        while len(taken) < count:
            if self._free:
                taken.append(self._free.pop())
            elif self._next < MAX_SLOTS:
                taken.append(self._next)
                self._next += 1
            else:
                self._free += taken
                raise ResourceExhausted("too many output streams", step="reserve a place in the journal")
        return taken

    def reserve(self, slots: list[int]) -> None:
        """Places that a former keeper gave."""
        for slot in slots:
            while self._next <= slot:
                self._free.append(self._next)
                self._next += 1
            if slot in self._free:
                self._free.remove(slot)

    def give(self, slots: list[int]) -> None:
        """Places that are free again."""
        self._free += slots


def check_entry(entry: Message, fds: list[int]) -> None:
    """Refuse what an adopted entry cannot be. Raises InvalidArgument."""
    if entry["stdio"] not in _OUTPUTS:
        raise InvalidArgument(f"unknown stdio {entry['stdio']!r}", subject="stdio")
    for slot in entry["slots"]:
        if type(slot) is not int or not 0 <= slot < MAX_SLOTS:
            raise InvalidArgument(f"bad slot {slot!r}", subject="slots")
    names = entry["fds"]
    if not all(type(name) is str and name in _NAMES for name in names) or len(set(names)) != len(fds):
        raise InvalidArgument("descriptors and their names do not match", subject="fds")
    if "pidfd" in names and not is_pidfd(fds[names.index("pidfd")]):
        raise InvalidArgument("the pidfd is none", subject="fds")


def is_pidfd(fd: int) -> bool:
    """Is it one (pidfd_open(2), proc(5): fdinfo has a field Pid)?"""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        return b"\nPid:" in file.read()


def make_stdio(entry: Entry, stdin: bool) -> tuple[int, int, int]:
    """Make the pipes of a new entry; return the container's ends, which the caller closes.

    Raises OSError (EMFILE) with nothing left open.
    """
    if entry.stdio != "pipes":
        return (-1, -1, -1)
    opened: list[int] = []
    try:
        if stdin:
            child_in, parent_in = os.pipe2(os.O_CLOEXEC)
            opened += [child_in, parent_in]
        else:
            child_in = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            opened += [child_in]
        parent_out, child_out = os.pipe2(os.O_CLOEXEC)
        opened += [parent_out, child_out]
        parent_err, child_err = os.pipe2(os.O_CLOEXEC)
        opened += [parent_err, child_err]
    except OSError:
        seqpacket.close_all(opened)
        raise
    # Only our ends: each end of a pipe is an open file of its own, and the container's stay blocking.
    if stdin:
        os.set_blocking(parent_in, False)
        entry.fds["stdin"] = parent_in
    os.set_blocking(parent_out, False)
    os.set_blocking(parent_err, False)
    entry.fds["stdout"] = parent_out
    entry.fds["stderr"] = parent_err
    return (child_in, child_out, child_err)


def outputs(stdio: str, log: dict[str, Any] | None) -> int:
    """How many places in the journal an entry needs: none without a log."""
    return _OUTPUTS[stdio] if log and log.get("driver") in RECORDS else 0
