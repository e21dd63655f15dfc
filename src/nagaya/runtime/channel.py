"""The messages between the runtime and a container's first process.

One SOCK_SEQPACKET pair per launch; a packet is a JSON list whose first member is one of the kinds
below, and may carry file descriptors. Both ends are one package, forked from one another: the
format has no version. The child's end is close-on-exec, so its end of file says "exec succeeded".
"""

from __future__ import annotations

import _socket
from _struct import pack, unpack_from

from nagaya.errors import InternalError
from nagaya.linux import os
from nagaya.linux.json import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

# child -> parent
PID = "pid"  # [PID, pid]: the first process, cloned by a stage; the stage exits
HOOKS = "hooks"  # [HOOKS]: namespaces and mounts are there, root not changed yet: answered by GO
CLOCKS = "clocks"  # [CLOCKS]: our time namespace is there, empty: answered by GO
DEVICES = "devices"  # [DEVICES]: our network namespace is there: answered by [GO, what was moved to it]
LISTENER = "listener"  # [LISTENER, fd]: the filter is loaded, its listener is that fd of ours: answered by GO
SOURCE = "source"  # [SOURCE, index]: a mount whose source only we see, and may not open: answered by GO + fd
READY = "ready"  # [READY, trace, warnings] + pty master: all is prepared but the exec: answered by GO
ERROR = "error"  # [ERROR, error.to_wire()]
# parent -> child
PLACE = "place"  # [PLACE, paths, joins, leaves] + fds: ids are mapped, cgroups made: their files
FILTER = "filter"  # [FILTER, hex of the program, flags, early_clone, agent]: at any time before READY
GO = "go"

_LIMIT = 1 << 17
_CONTROL = 512  # for some hundred fds: a file per cgroup hierarchy


class Channel:
    """One end of the pair."""

    __slots__ = ("_socket",)

    def __init__(self, end: _socket.socket) -> None:
        self._socket = end

    def fileno(self) -> int:
        return self._socket.fileno()

    def write(self, *message: Any) -> None:
        """Send by write(2): the one call that a filter with a listener never stops. Raises OSError."""
        os.write(self._socket.fileno(), dumps(message).encode())

    def send(self, *message: Any, fds: Sequence[int] = ()) -> None:
        """Send one message. Raises InternalError when the other end is gone."""
        data = dumps(message).encode()
        control = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, pack(f"={len(fds)}i", *fds))] if fds else []
        try:
            self._socket.sendmsg([data], control, _socket.MSG_NOSIGNAL)
        except OSError as error:
            raise InternalError(
                f"the other process is gone: {error.strerror}", step="send " + str(message[0])
            ) from None

    def receive(self) -> tuple[list[Any], list[int]] | None:
        """(message, fds), or None at the end of file."""
        try:
            data, control, _, _ = self._socket.recvmsg(_LIMIT, _CONTROL, _socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            # it ended without reading all of ours; its own last words are behind this error
            data, control, _, _ = self._socket.recvmsg(_LIMIT, _CONTROL, _socket.MSG_CMSG_CLOEXEC)
        fds: list[int] = []
        for level, kind, payload in control:
            if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
                fds.extend(unpack_from(f"={len(payload) // 4}i", payload))
        return (loads(data), fds) if data else None

    def close(self) -> None:
        self._socket.close()


def pair() -> tuple[Channel, Channel]:
    """(parent's end, child's end), both close-on-exec."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    return Channel(ours), Channel(theirs)
