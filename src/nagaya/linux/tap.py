"""Tap devices: a network interface whose frames go to and from whoever holds its descriptor (the kernel's
Documentation/networking/tuntap.rst; include/uapi/linux/if_tun.h)."""

from __future__ import annotations

from _struct import pack

from nagaya.linux import os
from nagaya.linux.ffi import buffer, syscall

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x2, 0x1000, 0x4000


def open_tap(name: str) -> int:
    """A descriptor of the tap of that name in the network namespace we are in, made when there is none; it
    goes with its last descriptor. Frames have virtio's header before them. Raises KernelError."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        request = buffer(pack("=16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
        syscall("ioctl", fd, _TUNSETIFF, request, subject=name)
    except BaseException:
        os.close(fd)
        raise
    return fd
