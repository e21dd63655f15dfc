"""Packet sockets: frames as they pass a device (packet(7)), and filters of sockets (the kernel's
Documentation/networking/filter.rst)."""

from __future__ import annotations

import _socket
from _ctypes import addressof
from _struct import pack

from nagaya.linux.ffi import buffer

_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING = 263, 15, 23
_SO_ATTACH_FILTER = 26
_INSTRUCTION = 8


def attach_filter(receiver: _socket.socket, program: bytes) -> None:
    """Let the socket receive only what the program of classic BPF takes. Raises OSError."""
    lines = buffer(program)
    header = pack("=HxxxxxxQ", len(program) // _INSTRUCTION, addressof(lines))  # struct sock_fprog
    receiver.setsockopt(_socket.SOL_SOCKET, _SO_ATTACH_FILTER, header)


def open_packets(device: str, program: bytes) -> _socket.socket:
    """A socket that receives what comes in from that device and passes the filter, and sends out of it. It
    does not block; frames have virtio's header of 10 bytes before them. Raises OSError."""
    # no protocol yet: nothing may come before the filter is there
    packets = _socket.socket(_socket.AF_PACKET, _socket.SOCK_RAW | _socket.SOCK_NONBLOCK, 0)
    try:
        attach_filter(packets, program)
        packets.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        packets.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        packets.bind((device, _ETH_P_ALL))
    except BaseException:
        packets.close()
        raise
    return packets
