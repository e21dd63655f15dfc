"""A builder: the keeper's child that carries out requests, one after the other.

It alone reads a request (specs, environments and credentials never enter the keeper's memory),
answers the daemon directly on the reply socket, and tells the keeper the pid, the pidfd and the
terminal of what it made. The table of operations is a parameter; `operations.py` has the real one.
"""

from __future__ import annotations

import gc
import os
from _socket import MSG_NOSIGNAL, SCM_RIGHTS, SOL_SOCKET, socket
from _struct import pack

from nagaya.errors import InternalError, InvalidArgument, KernelError, NagayaError, Unavailable
from nagaya.linux import json, namespaces, pids, process, seqpacket
from nagaya.wire.messages import FROM_BUILDER, message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    # request, job -> result; what has a process calls job.launched
    Operation = Callable[[dict[str, Any], "Job"], dict[str, Any]]

MAX_REQUEST = 16 << 20

# what a job is: see `serve`
ALONE = b"alone"
SHARED = b"shared"


class Job:
    """What an operation works with.

    stdio: descriptors for the new process, (-1, -1, -1) when the request came without. reply_fds:
    descriptors that go out with the reply. trace: rows of (name, detail, start_ns, duration_ns).
    operation: its name, once the request was read. reply_to: the socket whose other end waits for the reply.
    """

    __slots__ = ("_alone", "_notice", "operation", "pid", "reply_fds", "reply_to", "stdio", "trace")

    def __init__(
        self, stdio: tuple[int, int, int], notice: socket | None, alone: bool, reply_to: int = -1
    ) -> None:
        self._alone = alone
        self.stdio = stdio
        self.reply_to = reply_to
        self.reply_fds: list[int] = []
        self.trace: list[list[Any]] = []
        self.pid = 0
        self.operation = "read request"
        self._notice = notice

    def keeper(self) -> socket:
        """Where a new process goes; ask before one is made. Raises InvalidArgument without a token."""
        if self._notice is None:
            raise InvalidArgument("a request that makes a process needs a token", subject="token")
        return self._notice

    def alone(self) -> None:
        """Ask before anything of us joins a pid namespace: what processes there could read must hold
        no other container's secrets. Raises InvalidArgument when this builder has, or will have, others.
        """
        if not self._alone:
            raise InvalidArgument("this request needs a builder of its own", subject="shared")

    def launched(self, pid: int, pidfd: int, console: int = -1) -> None:
        """Hand the new process to the keeper, before the daemon hears of it.

        Raises Unavailable, with the process killed, when the keeper has gone.
        """
        self.pid = pid
        self.reply_fds.append(pidfd)
        fds = [pidfd] if console < 0 else [pidfd, console]
        notice = json.dumps(message(FROM_BUILDER, "launched", pid=pid)).encode()
        try:
            seqpacket.send(self.keeper(), notice, fds, wait=True)
        except OSError as error:
            pids.pidfd_send_signal(pidfd, 9)
            raise Unavailable(
                "the keeper ended while the process was made", step="launched", errno=error.errno or 0
            ) from None


def serve(operations: Mapping[str, Operation], control: socket, nofile: tuple[int, int]) -> int:
    """Do the jobs that come on control, in this process, a fresh fork of the keeper. Returns the exit
    status of the last.

    A job is a packet ALONE or SHARED with descriptors: the request, the reply socket, and for a new
    process the notice socket and its stdio. nofile: the (soft, hard) limit to give back, which the
    keeper raised for itself.
    """
    gc.disable()  # it lives for milliseconds, or for a hundred jobs
    close_others({control.fileno()})
    process.set_name("nagaya-builder")
    process.reset_signals()
    process.set_rlimit(process.RLIMITS["RLIMIT_NOFILE"], *nofile, subject="nofile")
    status = 0
    while (packet := seqpacket.receive(control, wait=True)) is not None and packet.data:
        status = _do(operations, packet)
        if packet.data == ALONE:
            break
        close_others({control.fileno()})  # the new process's, and what a failure forgot
        try:
            seqpacket.send(control, bytes([status]), wait=True)
        except OSError:
            break  # the keeper has ended
    return status


def _do(operations: Mapping[str, Operation], packet: seqpacket.Packet) -> int:
    request_fd, reply_fd, *others = packet.fds
    notice = socket(-1, -1, -1, fileno=others[0]) if others else None
    stdio = (others[1], others[2], others[3]) if len(others) > 1 else (-1, -1, -1)
    job = Job(stdio, notice, packet.data == ALONE, reply_fd)
    try:
        reply = {"ok": True, "result": _run(operations, request_fd, job)}
    except NagayaError as error:
        reply = {"ok": False, "error": error.to_wire()}
    except OSError as error:
        path = str(error.filename or "")
        failure = KernelError(
            os.strerror(error.errno or 0).lower(),
            subject=path,
            step=f"{job.operation} {path}".rstrip(),
            errno=error.errno or 0,
        )
        reply = {"ok": False, "error": failure.to_wire()}
    except Exception as error:
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        line = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else ""
        reply = {
            "ok": False,
            "error": InternalError(f"{type(error).__name__}: {error}", subject=line).to_wire(),
        }
    reply["trace"] = job.trace
    try:
        send_reply(
            reply_fd, json.dumps(reply).encode("utf-8", "replace"), job.reply_fds if reply["ok"] else []
        )
    except OSError:
        pass  # the daemon has gone; a process that was made belongs to the keeper and goes on
    return 0 if reply["ok"] else 1


def _run(operations: Mapping[str, Operation], request_fd: int, job: Job) -> dict[str, Any]:
    size = os.fstat(request_fd).st_size
    if size > MAX_REQUEST:
        raise InvalidArgument(f"a request of {size} bytes is too large", step="read request")
    parts: list[bytes] = []
    done = 0
    while done < size:
        part = os.pread(request_fd, size - done, done)
        if not part:
            break
        parts.append(part)
        done += len(part)
    os.close(request_fd)
    request = json.loads(b"".join(parts))
    if not isinstance(request, dict):
        raise InvalidArgument("a request must be an object")
    operation = operations.get(str(request.get("op")))
    if operation is None:
        raise InvalidArgument(f"unknown operation {request.get('op')!r}", subject="op")
    job.operation = str(request["op"])
    return operation(request, job)


def send_reply(fd: int, data: bytes, fds: list[int]) -> None:
    """Write one reply to its stream socket, descriptors with its first byte. Raises OSError."""
    sock = socket(-1, -1, -1, fileno=fd)
    try:
        ancillary = [(SOL_SOCKET, SCM_RIGHTS, pack(f"={len(fds)}i", *fds))] if fds else []
        sent = sock.sendmsg([data], ancillary, MSG_NOSIGNAL)
        while sent < len(data):
            sent += sock.send(memoryview(data)[sent:], MSG_NOSIGNAL)
    finally:
        sock.close()


def close_others(keep: set[int]) -> None:
    """Close every descriptor above 2 but those to keep: what a forked child of the keeper begins with."""
    first = 3
    for fd in sorted(fd for fd in keep if fd > 2):
        if fd > first:
            namespaces.close_range(first, fd - 1)
        first = fd + 1
    namespaces.close_range(first)
