"""What the engine's client knows of keepers: their entries, their replies, how to start one.

The client itself is `engine/supervisor.py`.
"""

from __future__ import annotations

import _socket
import asyncio
import errno
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

import nagaya
from nagaya.errors import InternalError, NagayaError, ResourceExhausted, Unavailable
from nagaya.linux import seqpacket
from nagaya.oci.runtime import makes_pid_namespace
from nagaya.wire.messages import TO_DAEMON, TO_KEEPER, check, message

if TYPE_CHECKING:
    from nagaya.wire.messages import Message

log = logging.getLogger(__name__)

CONNECT = 10.0  # seconds for a keeper to answer
_START = 60.0  # seconds for a new one, as long as it lives: an interpreter may have to wait for its turn
_BATCH = 64  # packets read in one turn of the loop
_MOST_REPLY = 16 << 20
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW


class BuilderDied(InternalError):
    """A builder was killed over a request, which may be half done."""


class Exit(msgspec.Struct, frozen=True):
    """How a process ended. code: as a shell gives it (128 + signal); known False: nobody saw it
    (keeper and kernel could not tell), code is -1."""

    token: str
    code: int
    signal: int
    time_ns: int
    known: bool = True


class Reply(msgspec.Struct):
    """A builder's answer. The caller owns the fds; with an error there are none."""

    result: dict[str, Any]
    trace: list[list[Any]]
    fds: list[int] = []
    error: NagayaError | None = None


class Started(msgspec.Struct):
    """A running process. pidfd is the client's, valid until `release`; 0 and -1 for a foreign
    runtime's container until `watch`."""

    token: str
    pid: int
    pidfd: int
    trace: list[list[Any]]
    result: dict[str, Any]


class Entry(msgspec.Struct):
    """A token the keeper has. fds are duplicates of the keeper's."""

    token: str
    pid: int
    stdio: str
    slots: list[int]
    log: dict[str, Any] | None
    fds: dict[str, int]
    exit: Exit | None = None

    @property
    def pidfd(self) -> int:
        """The process, or -1."""
        return self.fds.get("pidfd", -1)


def default_command() -> list[str]:
    """A keeper run by this interpreter from this package, isolated and without `site`."""
    source = os.path.dirname(os.path.dirname(os.path.abspath(nagaya.__file__)))
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from nagaya.supervisor.main import main;"
        " sys.exit(main(sys.argv[2:]))"
    )
    return [sys.executable, "-I", "-S", "-X", "utf8", "-c", code, source]


class Link:
    """A connection to a keeper that never blocks the loop: what does not go now is queued.

    on_message gets checked messages with their descriptors; on_lost is called once, when the keeper
    is gone.
    """

    def __init__(
        self, sock: Any, on_message: Callable[[Message, list[int]], None], on_lost: Callable[[], None]
    ) -> None:
        self._sock = sock
        self._on_message = on_message
        self._on_lost = on_lost
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._loop = asyncio.get_running_loop()
        self._open = True
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._readable)

    def send(self, kind: str, passing: Sequence[int] = (), /, **fields: Any) -> None:
        """Send, or queue with duplicates of the descriptors. Raises Unavailable, ResourceExhausted."""
        data = msgspec.json.encode(message(TO_KEEPER, kind, **fields))
        if len(data) > seqpacket.MAX_PACKET:
            raise ResourceExhausted(f"a {kind} message of {len(data)} bytes is too large", step=kind)
        try:
            if not self._queue and seqpacket.send(self._sock, data, passing):
                return
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF):
                raise Unavailable("the supervisor has died", step=kind) from None
            raise ResourceExhausted(os.strerror(error.errno or 0).lower(), step=kind) from None
        if not self._queue:
            self._loop.add_writer(self._sock.fileno(), self._writable)
        self._queue.append((data, [os.dup(fd) for fd in passing]))

    def close(self) -> None:
        """Close the connection, and what was queued."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
            self._sock.close()
        while self._queue:
            seqpacket.close_all(self._queue.popleft()[1])

    def _writable(self) -> None:
        try:
            while self._queue:
                data, fds = self._queue[0]
                if not seqpacket.send(self._sock, data, fds):
                    return
                seqpacket.close_all(fds)
                self._queue.popleft()
        except OSError:
            pass  # the reader sees the end, and acts on it
        self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        for _ in range(_BATCH):
            if not self._open:
                return
            try:
                packet = seqpacket.receive(self._sock)
            except OSError:
                packet = seqpacket.Packet(b"", [], False)
            if packet is None:
                return
            if not packet.data:
                self.close()
                self._on_lost()
                return
            try:
                self._on_message(check(TO_DAEMON, msgspec.json.decode(packet.data)), packet.fds)
            except (NagayaError, msgspec.DecodeError) as error:
                log.error("bad message of the supervisor: %s", error)
                seqpacket.close_all(packet.fds)


async def reach_keeper(command: list[str], run_dir: str) -> _socket.socket:
    """A connection to the keeper of the directory, which is started when none answers. Raises Unavailable."""
    loop = asyncio.get_running_loop()
    path = f"{run_dir}/supervisor.sock"
    begin = loop.time()
    retry_at = 0.0
    started: asyncio.Future[None] | None = None
    while True:
        try:
            sock = seqpacket.connect(path)
            break
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ECONNREFUSED):
                raise Unavailable(
                    f"cannot reach the supervisor: {error.strerror}", subject=path, errno=error.errno or 0
                ) from None
        now = loop.time()
        starting = started is not None and not started.done()
        if now - begin > (_START if starting else CONNECT):
            raise Unavailable("the supervisor does not answer", subject=path, step="start supervisor")
        if not starting and now >= retry_at:  # the first one may have met the lock of a keeper still dying
            retry_at = now + 2.0
            started = spawn_keeper(command, run_dir)
        await asyncio.sleep(0.005)
    if seqpacket.peer_uid(sock) != os.geteuid():
        sock.close()
        raise Unavailable("the supervisor belongs to another user", subject=path)
    return sock


def shares_builder(request: Mapping[str, Any]) -> bool:
    """May a builder do this that has done, and will do, others? Not what joins a pid namespace, where
    its memory could be read, nor what leaves processes behind, or may wait for a server for ever."""
    if request.get("op") in ("run", "create"):
        return makes_pid_namespace(request.get("spec"))
    return request.get("op") not in ("exec", "spawn-foreign", "mount", "checkpoint", "restore")


def memfd_of(name: str, data: bytes) -> int:
    """A memfd that holds the data: what it says stays out of the memory of who passes it on."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    left = memoryview(data)
    try:
        while left:
            left = left[os.write(fd, left) :]
    except OSError:
        os.close(fd)
        raise
    return fd


def spawn_keeper(command: list[str], run_dir: str) -> asyncio.Future[None]:
    """Start a keeper that outlives us: own session, no standard streams. Reaped when it ends first, which
    the future tells."""
    loop = asyncio.get_running_loop()
    os.makedirs(run_dir, 0o711, exist_ok=True)
    streams = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
        # it says nothing unless it breaks, and then one wants to know why
        (os.POSIX_SPAWN_OPEN, 2, f"{run_dir}/supervisor.log", _APPEND, 0o600),
    ]
    defaults = [signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGHUP, signal.SIGTERM]
    environment = {"PATH": os.environ.get("PATH", os.defpath)}
    pid = os.posix_spawn(
        command[0],
        command,
        environment,
        file_actions=streams,
        setsid=True,
        setsigmask=[],
        setsigdef=defaults,
    )
    pidfd = os.pidfd_open(pid)
    gone = loop.create_future()

    def ended() -> None:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        os.waitpid(pid, 0)
        if not gone.cancelled():
            gone.set_result(None)

    loop.add_reader(pidfd, ended)
    return gone


def exit_of(said: Message) -> Exit:
    """The exit that a message tells."""
    status = said["status"]
    if status is None:
        return Exit(said["token"], -1, 0, said["time_ns"], known=False)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return Exit(said["token"], 128 + number, number, said["time_ns"])
    return Exit(said["token"], os.WEXITSTATUS(status), 0, said["time_ns"])


def status_of(ended: Exit) -> int | None:
    """The wait status that `exit_of` was made from."""
    if not ended.known:
        return None
    return ended.signal if ended.signal else ended.code << 8


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


async def read_reply(sock: socket.socket) -> tuple[bytes, list[int]]:
    """All of a builder's reply: up to the end of its stream."""
    loop = asyncio.get_running_loop()
    parts: list[bytes] = []
    fds: list[int] = []
    total = 0
    try:
        while True:
            packet = seqpacket.receive(sock)
            if packet is None:
                ready: asyncio.Future[None] = loop.create_future()
                loop.add_reader(sock.fileno(), _wake, ready)
                try:
                    await ready
                finally:
                    loop.remove_reader(sock.fileno())
                continue
            fds += packet.fds
            if not packet.data:
                return b"".join(parts), fds
            parts.append(packet.data)
            total += len(packet.data)
            if total > _MOST_REPLY:
                raise ResourceExhausted("a builder's reply is too large", step="read reply")
    except OSError:
        return b"", fds
    except BaseException:
        seqpacket.close_all(fds)
        raise
