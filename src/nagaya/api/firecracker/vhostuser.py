"""A device's back end in a process of its own: vhost-user (QEMU's docs/interop/vhost-user.rst), our side.

QEMU tells on a Unix socket where the guest's memory and the rings are, and when they run. It may have been
taken over by its guest: messages are bounded, and of descriptors only those are mapped that are of the memory
which we made ourselves, as whoever owns a file can truncate it under our hands.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from collections.abc import Callable

from nagaya.api.firecracker.virtqueue import Memory, Queue, Region

_HEADER = struct.Struct("<III")
_U64 = struct.Struct("<Q")
_STATE = struct.Struct("<II")
_ADDRESS = struct.Struct("<IIQQQQ")
_REGION = struct.Struct("<QQQQ")
_CONFIG = struct.Struct("<III")
_VERSION, _REPLY, _NEED_REPLY = 1, 4, 8
_MAX = 4096
_MAX_REGIONS = 8
_NO_FD = 1 << 8

GET_FEATURES, SET_FEATURES, SET_OWNER, RESET_OWNER, SET_MEM_TABLE, SET_LOG_BASE, SET_LOG_FD = range(1, 8)
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE = range(8, 12)
SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR = range(12, 15)
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE = range(15, 19)
GET_CONFIG, SET_CONFIG = 24, 25

# QEMU saves no machine whose back ends cannot log what they write; ours never write while one is saved
_LOG_ALL = 1 << 26
_PROTOCOL_FEATURES = 1 << 30
_VERSION_1 = 1 << 32
_OWN_PROTOCOL = 1 << 1 | 1 << 3 | 1 << 9  # log in shared memory, acknowledgements, configuration space


class ProtocolError(Exception):
    """QEMU said what makes no sense."""


class _Ring:
    def __init__(self) -> None:
        self.size = 0
        self.addresses = (0, 0, 0)
        self.base = 0
        self.kick = -1
        self.call = -1
        self.enabled = True  # older QEMUs say nothing
        self.queue: Queue | None = None


class Backend:
    """The rings of one device. `config`: its configuration space; `is_ours`: whether a descriptor is of the
    guest's memory; `watch` is called with each descriptor that the guest kicks, `forget` before it is
    closed."""

    def __init__(
        self,
        rings: int,
        config: bytes,
        is_ours: Callable[[int], bool],
        watch: Callable[[int], None],
        forget: Callable[[int], None],
    ) -> None:
        self._config = config
        self._is_ours = is_ours
        self._watch = watch
        self._forget = forget
        self._memory = Memory([])
        self.rings = [_Ring() for _ in range(rings)]

    def close(self) -> None:
        """Let everything go."""
        for index in range(len(self.rings)):
            self._stop(index)
            self._keep(index, "kick", -1)
            self._keep(index, "call", -1)
        self._memory.close()

    def queue(self, index: int) -> Queue | None:
        """The ring, when it runs."""
        ring = self.rings[index]
        return ring.queue if ring.enabled else None

    def call(self, index: int) -> None:
        """Tell the guest that buffers were used, if it wants to know."""
        ring = self.rings[index]
        if ring.queue and ring.call >= 0 and ring.queue.wants_call():
            try:
                os.write(ring.call, _U64.pack(1))
            except OSError:
                pass  # full: it has been told

    def serve(self, peer: socket.socket) -> bool:
        """One message, which is there or on its way; False when QEMU has gone.

        Raises ProtocolError, BrokenRing, OSError.
        """
        head, fds = _receive(peer, _HEADER.size)
        try:
            if not head:
                return False
            request, flags, size = _HEADER.unpack(head)
            if flags & 3 != _VERSION or size > _MAX:
                raise ProtocolError(f"vhost-user message {request} of {size} bytes")
            body = b""
            while len(body) < size:
                part, more = _receive(peer, size - len(body))
                fds += more
                if not part:
                    return False
                body += part
            try:
                answer = self._handle(request, body, fds)
            except (struct.error, IndexError, ValueError) as error:
                raise ProtocolError(f"vhost-user message {request}: {error}") from None
        finally:
            for fd in fds:
                os.close(fd)
        if answer is None and flags & _NEED_REPLY:
            answer = _U64.pack(0)
        if answer is not None:
            peer.sendall(_HEADER.pack(request, _VERSION | _REPLY, len(answer)) + answer)
        return True

    def _handle(self, request: int, body: bytes, fds: list[int]) -> bytes | None:
        match request:
            case 1:  # GET_FEATURES
                return _U64.pack(_VERSION_1 | _PROTOCOL_FEATURES | _LOG_ALL)
            case 15:  # GET_PROTOCOL_FEATURES
                return _U64.pack(_OWN_PROTOCOL)
            case 17:  # GET_QUEUE_NUM
                return _U64.pack(len(self.rings))
            case 5:  # SET_MEM_TABLE
                self._set_memory(body, fds)
            case 6:  # SET_LOG_BASE
                return b""
            case 8 | 10 | 18:
                index, value = _STATE.unpack(body)
                self._set(request, index, value)
            case 9:  # SET_VRING_ADDR
                index, _, descriptors, used, available, _ = _ADDRESS.unpack(body)
                self.rings[index].addresses = descriptors, available, used
            case 11:  # GET_VRING_BASE
                index = _STATE.unpack(body)[0]
                base = self._stop(index)
                self._keep(index, "kick", -1)
                return _STATE.pack(index, base)
            case 12 | 13 | 14:
                value = _U64.unpack(body)[0]
                fd = -1 if value & _NO_FD or not fds else fds.pop(0)
                if request == SET_VRING_ERR:
                    fds += [fd] if fd >= 0 else []
                else:
                    self._keep(value & 0xFF, "kick" if request == SET_VRING_KICK else "call", fd)
                    if request == SET_VRING_KICK:
                        self._start(value & 0xFF)
            case 24:  # GET_CONFIG
                offset, size, flags = _CONFIG.unpack_from(body)
                part = self._config[offset : offset + size]
                return _CONFIG.pack(offset, size, flags) + part.ljust(min(size, _MAX), b"\0")
            case _:
                pass  # features, owner, logs: nothing to do
        return None

    def _set(self, request: int, index: int, value: int) -> None:
        ring = self.rings[index]
        if request == SET_VRING_NUM:
            ring.size = value
        elif request == SET_VRING_BASE:
            ring.base = value
        else:
            ring.enabled = bool(value)

    def _keep(self, index: int, what: str, fd: int) -> None:
        ring = self.rings[index]
        if (old := getattr(ring, what)) >= 0:
            if what == "kick":
                self._forget(old)
            os.close(old)
        setattr(ring, what, fd)
        if fd >= 0:
            os.set_blocking(fd, False)
            if what == "kick":
                self._watch(fd)

    def _start(self, index: int) -> None:
        ring = self.rings[index]
        ring.queue = Queue(self._memory, ring.size, *ring.addresses, ring.base)

    def _stop(self, index: int) -> int:
        ring = self.rings[index]
        if ring.queue:
            ring.base, ring.queue = ring.queue.next, None
        return ring.base

    def _set_memory(self, body: bytes, fds: list[int]) -> None:
        count = _STATE.unpack_from(body)[0]
        if count > _MAX_REGIONS or count != len(fds):
            raise ProtocolError(f"{count} regions of memory with {len(fds)} descriptors")
        regions: list[Region] = []
        try:
            for number, fd in enumerate(fds):
                guest, size, user, offset = _REGION.unpack_from(body, 8 + number * _REGION.size)
                if not self._is_ours(fd):
                    raise ProtocolError("memory that is not the guest's")
                regions.append(Region(guest, size, user, offset, fd))
        except BaseException:
            Memory(regions).close()
            raise
        for index in range(len(self.rings)):
            self._stop(index)
        self._memory.close()
        self._memory = Memory(regions)


def _receive(peer: socket.socket, size: int) -> tuple[bytes, list[int]]:
    fds = array.array("i")
    room = socket.CMSG_SPACE(_MAX_REGIONS * fds.itemsize)
    data, control, _, _ = peer.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, fds.tolist()
