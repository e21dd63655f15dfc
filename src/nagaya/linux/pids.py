"""Processes by number and by pidfd: what proc(5) says of them, signals by name (signal(7), pidfd_open(2)).

Nothing here needs `ffi`: the verbs that only look at a container, or signal it, load without.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]

from nagaya.errors import KernelError
from nagaya.linux import os

# With the aliases that kill(1) knows
SIGNALS = {
    name: number
    for number, names in enumerate(
        (
            "HUP INT QUIT ILL TRAP ABRT,IOT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD,CLD CONT "
            "STOP TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO,POLL PWR SYS"
        ).split(),
        1,
    )
    for name in names.split(",")
}
_SIGRTMIN, SIGRTMAX = 34, 64  # as glibc's SIGRTMIN: 32 and 33 are taken by its threads


def pidfd_open(pid: int) -> int:
    """pidfd_open(2); close-on-exec. Raises KernelError."""
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        raise _failed("pidfd_open", pid, error) from None


def pidfd_send_signal(pidfd: int, number: int) -> None:
    """pidfd_send_signal(2). Raises KernelError with ESRCH when the process is gone."""
    try:
        _signal.pidfd_send_signal(pidfd, number)
    except OSError as error:
        raise _failed("pidfd_send_signal", number, error) from None


def _failed(call: str, subject: int, error: OSError) -> KernelError:
    return KernelError(
        os.strerror(error.errno or 0).lower(),
        subject=str(subject),
        step=f"{call} {subject}",
        errno=error.errno or 0,
    )


def signal_number(text: str) -> int:
    """The number of "9", "KILL", "SIGKILL", "SIGRTMIN+3"; 0 when there is no such signal."""
    if text.isascii() and text.isdigit():
        number = int(text) if len(text) < 4 else 0
        return number if 1 <= number <= SIGRTMAX else 0
    name = text.upper()
    if name.startswith("SIG"):
        name = name[3:]
    if name in SIGNALS:
        return SIGNALS[name]
    for base, origin in (("RTMIN", _SIGRTMIN), ("RTMAX", SIGRTMAX)):
        if name.startswith(base):
            tail = name[5:]
            if not tail:
                return origin
            if tail[0] in "+-" and tail[1:].isdigit() and len(tail) < 5:
                number = origin + int(tail)
                return number if _SIGRTMIN <= number <= SIGRTMAX else 0
    return 0


def stat(pid: int) -> list[bytes] | None:
    """The fields of /proc/PID/stat from the third on (proc(5)); None when it is gone."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = os.read(fd, 4096)
    except OSError:
        return None
    finally:
        os.close(fd)
    tail = data[data.rfind(b")") + 2 :].split()  # the name may hold spaces and parentheses
    return tail if len(tail) > 19 else None


def stat_fields(pid: int) -> tuple[str, int] | None:
    """(state letter, start time in ticks) of a process; None when it is gone."""
    fields = stat(pid)
    return (fields[0].decode(), int(fields[19])) if fields else None


def is_ending(pid: int) -> bool:
    """Whether a process has begun to exit (PF_EXITING among its flags) or is gone. The kernel sets the
    flag before it closes the process's files: whoever has read their end sees it."""
    fields = stat(pid)
    return fields is None or fields[0] in (b"Z", b"X") or bool(int(fields[6]) & 4)
