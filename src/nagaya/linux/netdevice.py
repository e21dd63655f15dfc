"""Network interfaces by ioctl, netdevice(7): for the one thing that needs no rtnetlink."""

from __future__ import annotations

import _socket
from _struct import pack, unpack_from

from nagaya.linux.ffi import buffer, syscall

_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1


def set_up(name: str) -> None:
    """ip link set NAME up, in the network namespace we are in. Raises KernelError."""
    end = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        request = buffer(pack("=16sH22x", name.encode(), 0))
        syscall("ioctl", end.fileno(), _SIOCGIFFLAGS, request, subject=name)
        flags: int = unpack_from("=H", bytes(request), 16)[0]
        request = buffer(pack("=16sH22x", name.encode(), flags | _IFF_UP))
        syscall("ioctl", end.fileno(), _SIOCSIFFLAGS, request, subject=name)
    finally:
        end.close()
