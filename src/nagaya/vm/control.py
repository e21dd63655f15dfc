"""What verbs and stand-ins say to a monitor: packets of JSON, with descriptors, over STATE/vm.sock.

    to the monitor                                    back: {"ok": ..} or {"error": ..}
    {"op": "exec", "container"} + document, stdio     when it runs; {"exit": code} later
    {"op": "create", "container"} + document, stdio   when it waits for `start`; {"exit": code} later
    {"op": "start", "container"}                      when its program has been executed
    {"op": "ps" | "stats" | "update" | "kill" | "delete" | "release", "container", ..}
    {"op": "hold"}                                    a container of this pod will be made soon

A connection that made a process may send {"signal": number} and {"resize": [rows, columns]}; when it closes,
the process is killed. The document (a process, or a container's config) is a file in memory, for an
environment may be larger than a packet.
"""

from __future__ import annotations

import errno

from nagaya.errors import FailedPrecondition, InternalError, NagayaError, Unavailable, from_wire
from nagaya.linux import os, seqpacket
from nagaya.linux.json import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Sequence
    from typing import Any

NAME = "vm.sock"
_MOST = 8 << 20


def listen(directory: str) -> socket:
    """The monitor's socket in its state directory."""
    return _through(directory, seqpacket.listen)


def connect(directory: str) -> socket:
    """A connection to the monitor. Raises FailedPrecondition when there is none."""
    try:
        return _through(directory, seqpacket.connect)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ECONNREFUSED):
            raise
        raise FailedPrecondition("container not running", subject=directory) from None


def _through(directory: str, act: Any) -> socket:
    # a socket's path has 107 bytes; a state directory's may have more
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock: socket = act(f"/proc/self/fd/{fd}/{NAME}")
    finally:
        os.close(fd)
    return sock


def document_fd(document: Any) -> int:
    """A document as a file in memory; the caller's to close."""
    fd = os.memfd_create("document", os.MFD_CLOEXEC)
    data = memoryview(dumps(document).encode("utf-8", "surrogateescape"))
    while data:
        data = data[os.write(fd, data) :]
    os.lseek(fd, 0, 0)
    return fd


def read_document(fd: int) -> Any:
    """The document of such a descriptor. Raises InvalidArgument."""
    data = b""
    while len(data) < _MOST and (chunk := os.pread(fd, 1 << 20, len(data))):
        data += chunk
    return loads(data)


def send(sock: socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """One message. Raises Unavailable when the other side has gone."""
    try:
        seqpacket.send(sock, dumps(message).encode("utf-8", "surrogateescape"), fds, wait=True)
    except OSError as error:
        if error.errno == errno.EMSGSIZE:
            raise InternalError("a message too long for the monitor") from None
        raise Unavailable("the microVM has ended") from None


def receive(sock: socket, *, wait: bool = True) -> tuple[dict[str, Any], list[int]] | None:
    """The next message; None at the end, and when there is none now."""
    try:
        packet = seqpacket.receive(sock, wait=wait)
    except OSError:
        return None
    if packet is None or not packet.data:
        return None
    message: dict[str, Any] = loads(packet.data)
    return message, packet.fds


def answer(sock: socket) -> Any:
    """The `ok` of the next message. Raises its error, Unavailable."""
    received = receive(sock)
    if received is None:
        raise Unavailable("the microVM has ended")
    message, _ = received
    if "error" in message:
        raise from_wire(message["error"])
    return message.get("ok")


def ask(directory: str, **message: Any) -> Any:
    """One question to the monitor of that directory. Raises FailedPrecondition, the monitor's error."""
    sock = connect(directory)
    try:
        send(sock, message)
        return answer(sock)
    finally:
        sock.close()


def failure(error: BaseException) -> dict[str, Any]:
    """The message that tells an error."""
    if not isinstance(error, NagayaError):
        error = InternalError(f"{type(error).__name__}: {error}")
    return {"error": error.to_wire()}
