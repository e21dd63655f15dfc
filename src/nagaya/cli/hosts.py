"""Which daemon to talk to, and starting one when none was chosen and none runs."""

from __future__ import annotations

import fcntl
import os
import sys
import time

from nagaya.cli.http import Client, Stream
from nagaya.errors import InvalidArgument, NotFound, PermissionDenied, Unavailable

DEFAULT_RUN = "/run/nagaya"
DEFAULT_SOCKET = DEFAULT_RUN + "/docker.sock"
DEFAULT_LOG = "/var/log/nagayad.log"
START_TIMEOUT = 30.0


def choose(host: str) -> tuple[str | tuple[str, int], bool]:
    """(address, chosen) from -H, NAGAYA_HOST, DOCKER_HOST, in this order, else the default socket.

    Raises InvalidArgument for a host that is not unix:///path or tcp://address:port.
    """
    text = host or os.environ.get("NAGAYA_HOST", "") or os.environ.get("DOCKER_HOST", "")
    return (address(text), True) if text else (DEFAULT_SOCKET, False)


def address(text: str) -> str | tuple[str, int]:
    """The address that a host names."""
    scheme, _, rest = text.partition("://")
    if scheme == "unix" and rest.startswith("/"):
        return rest
    if scheme == "tcp":
        name, _, port = rest.rstrip("/").rpartition(":")
        if name and port.isdecimal():
            return (name.strip("[]"), int(port))
    raise InvalidArgument(f"unable to parse docker host `{text}`: use unix:///path or tcp://address:port")


class StartingClient(Client):
    """A client of the default daemon that starts it when nobody answers and we may."""

    def connect(self) -> Stream:
        """A new connection, to a new daemon if need be."""
        try:
            return super().connect()
        except Unavailable:
            if os.geteuid() != 0:
                raise
        _start()
        return super().connect()


def client(host: str) -> Client:
    """A client of the chosen daemon; it connects when first used."""
    where, chosen = choose(host)
    return Client(where) if chosen else StartingClient(where)


def _beside() -> str:
    """nagayad's path: it lies where our interpreter lies, or else on PATH."""
    places = [os.path.dirname(sys.executable), *os.environ.get("PATH", os.defpath).split(":")]
    for place in places:
        path = os.path.join(place, "nagayad")
        if place and os.access(path, os.X_OK):
            return path
    raise NotFound(
        "nagayad is neither beside this command's interpreter nor on PATH", step="start the daemon"
    )


def _start() -> None:
    """Start nagayad, detached, unless somebody else just did; return when its socket accepts.

    The lock makes callers at the same time wait for one daemon instead of starting several.
    """
    program = _beside()
    os.makedirs(DEFAULT_RUN, 0o711, exist_ok=True)
    try:
        lock = os.open(DEFAULT_RUN + "/start.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except PermissionError:
        raise PermissionDenied(f"may not write to {DEFAULT_RUN}", step="start the daemon") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        probe = Client(DEFAULT_SOCKET)
        try:
            probe.connect().sock.close()
            return
        except Unavailable:
            pass
        _wait(_spawn(program), probe)
    finally:
        os.close(lock)


def _spawn(program: str) -> int:
    """Run nagayad in a session of its own, its output in the log file; its pid."""
    log = os.open(DEFAULT_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.posix_spawn(
            program,
            [program],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, null, 0),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
            ],
            setsid=True,
        )
    finally:
        os.close(log)
        os.close(null)


def _wait(pid: int, probe: Client) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        try:
            probe.connect().sock.close()
            return
        except Unavailable:
            pass
        if os.waitpid(pid, os.WNOHANG)[0]:
            raise Unavailable(
                f"nagayad ended at once; its last words are in {DEFAULT_LOG}", step="start the daemon"
            )
        time.sleep(0.02)
    raise Unavailable(
        f"nagayad did not answer within {START_TIMEOUT:.0f} s; see {DEFAULT_LOG}", step="start the daemon"
    )
