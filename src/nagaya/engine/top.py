"""`docker top`: processes of a container, read from /proc by their host pids (proc_pid_stat(5)).

The daemon runs no ps: the columns of `ps -ef` and `ps aux` and a list after -o are made here.
"""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Callable, Iterable
from typing import Any

from nagaya.errors import InvalidArgument

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_CMDLINE_LIMIT = 4096


class _Process:
    """One process as /proc shows it."""

    __slots__ = ("command", "cpu", "pid", "ppid", "rss", "started", "state", "tty", "uid", "vsz")

    def __init__(self, pid: int, text: str, uid: int, words: bytes, boot: float) -> None:
        """text: its stat; words: its cmdline; boot: when its kernel began."""
        words = words.replace(b"\0", b" ").strip()
        name = text[text.index("(") + 1 : text.rindex(")")]
        fields = text[text.rindex(")") + 2 :].split()
        self.pid = pid
        self.uid = uid
        self.state = fields[0]
        self.ppid = int(fields[1])
        self.tty = int(fields[4])
        self.cpu = (int(fields[11]) + int(fields[12])) / _TICKS
        self.started = boot + int(fields[19]) / _TICKS
        self.vsz = int(fields[20]) // 1024
        self.rss = int(fields[21]) * _PAGE // 1024
        self.command = words.decode("utf-8", "replace") or f"[{name}]"


def _read(pid: int, boot: float) -> _Process:
    """One of this kernel's. Raises OSError when it is gone."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        text = file.read()
    with open(f"/proc/{pid}/cmdline", "rb") as raw:
        words = raw.read(_CMDLINE_LIMIT)
    return _Process(pid, text, os.stat(f"/proc/{pid}").st_uid, words, boot)


def _user(process: _Process) -> str:
    try:
        return pwd.getpwuid(process.uid).pw_name  # the host's, as dockerd's ps shows it
    except KeyError:
        return str(process.uid)


def _tty(process: _Process) -> str:
    major, minor = os.major(process.tty), os.minor(process.tty)
    if not process.tty:
        return "?"
    return f"pts/{minor}" if 136 <= major <= 143 else f"tty{minor}"


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _start(process: _Process) -> str:
    recent = time.time() - process.started < 86400
    return time.strftime("%H:%M" if recent else "%b%d", time.localtime(process.started))


def _share(process: _Process) -> float:
    return 100 * process.cpu / max(time.time() - process.started, 0.01)


_COLUMNS: dict[str, tuple[str, Callable[[_Process], str]]] = {
    "user": ("USER", _user),
    "uid": ("UID", _user),
    "pid": ("PID", lambda p: str(p.pid)),
    "ppid": ("PPID", lambda p: str(p.ppid)),
    "c": ("C", lambda p: str(int(_share(p)))),
    "pcpu": ("%CPU", lambda p: f"{_share(p):.1f}"),
    "pmem": ("%MEM", lambda p: f"{100 * p.rss * 1024 / _memory():.1f}"),
    "vsz": ("VSZ", lambda p: str(p.vsz)),
    "rss": ("RSS", lambda p: str(p.rss)),
    "stime": ("STIME", _start),
    "start": ("START", _start),
    "tty": ("TTY", _tty),
    "tt": ("TT", _tty),
    "stat": ("STAT", lambda p: p.state),
    "s": ("S", lambda p: p.state),
    "time": ("TIME", lambda p: _clock(p.cpu)),
    "etime": ("ELAPSED", lambda p: _clock(time.time() - p.started)),
    "cmd": ("CMD", lambda p: p.command),
    "args": ("COMMAND", lambda p: p.command),
    "command": ("COMMAND", lambda p: p.command),
    "comm": ("COMMAND", lambda p: p.command.split(" ")[0].rpartition("/")[2]),
}
_FULL = ["uid", "pid", "ppid", "c", "stime", "tty", "time", "cmd"]
_BSD = ["user", "pid", "pcpu", "pmem", "vsz", "rss", "tty", "stat", "start", "time", "command"]


def _memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * _PAGE


def columns(ps_args: str) -> list[str]:
    """The columns that ps would show. Raises InvalidArgument for arguments not offered."""
    words = ps_args.split() or ["-ef"]
    match words:
        case ["-ef"] | ["-e", "-f"] | ["-f"] | ["ef"] | ["-fe"]:
            return list(_FULL)
        case ["aux"] | ["-aux"] | ["auxw"] | ["auxww"]:
            return list(_BSD)
    chosen: list[str] = []
    rest = iter(words)
    for word in rest:
        if word in ("-o", "-eo", "o", "-o,"):
            chosen += next(rest, "").split(",")
        elif word.startswith("-o"):
            chosen += word[2:].split(",")
        elif word not in ("-e", "-A", "a", "x", "ax"):
            raise InvalidArgument(
                f"ps argument {word!r} is not offered: use -ef, aux or -o a,b,c", subject="ps_args"
            )
    names = {"%cpu": "pcpu", "%mem": "pmem", "ucmd": "comm", "uname": "user", "euser": "user", "state": "s"}
    chosen = [names.get(c.strip(), c.strip()) for c in chosen if c.strip()]
    if not chosen or any(c not in _COLUMNS for c in chosen):
        raise InvalidArgument(f"unknown columns in {ps_args!r}", subject="ps_args")
    return chosen


def table(pids: Iterable[int], ps_args: str) -> tuple[list[str], list[list[str]]]:
    """(titles, one row per process that still lives). Blocking. Raises InvalidArgument."""
    chosen = columns(ps_args)
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    rows = []
    for pid in pids:
        try:
            process = _read(pid, boot)
        except (OSError, ValueError, IndexError):
            continue
        rows.append([_COLUMNS[c][1](process) for c in chosen])
    return [_COLUMNS[c][0] for c in chosen], rows


def guest_table(found: dict[str, Any], ps_args: str) -> tuple[list[str], list[list[str]]]:
    """The same of a guest's processes, as `nagaya-vm ps --format guest` tells them (pure)."""
    chosen = columns(ps_args)
    boot = time.time() - float(found["uptime"])
    rows = []
    for text, status, words in found["processes"]:
        try:
            uid = int(next(line.split()[1] for line in status.split("\n") if line.startswith("Uid:")))
            process = _Process(int(text.partition(" ")[0]), text, uid, words.encode(), boot)
        except (ValueError, IndexError, StopIteration):
            continue  # it has ended while it was looked at
        rows.append([_COLUMNS[c][1](process) for c in chosen])
    return [_COLUMNS[c][0] for c in chosen], rows
