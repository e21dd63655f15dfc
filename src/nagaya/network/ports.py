"""Reserving sockets: a published port is bound on the host for as long as it is published.

The traffic itself is rewritten by nftables and never reaches these sockets. They exist so that a
second container, or a server of the host, that wants the port is told so (EADDRINUSE) instead of
being shadowed silently. The engine hands them to the keeper, which outlives the daemon.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence

import msgspec

from nagaya.errors import KernelError, Unimplemented
from nagaya.network.model import PublishedPort, check_ports

# SCTP is often not in the kernel: then nobody else can have the port either
_NO_SUCH_PROTOCOL = (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT)


def reserve(
    ports: Sequence[PublishedPort], *, endpoint: str
) -> tuple[tuple[PublishedPort, ...], list[socket.socket]]:
    """Bind every port; return them with their real host ports, and the sockets that hold them. One on [::]
    that follows one of the same container port on all IPv4 addresses, and names no number, gets its number.

    endpoint: "NAME (ID)", for the message. All or nothing: on failure every socket is closed.
    Raises KernelError with dockerd's words (EADDRINUSE, EADDRNOTAVAIL), InvalidArgument, Unimplemented
    (SCTP with host port 0 in a kernel without SCTP).
    """
    check_ports(tuple(ports))
    sockets: list[socket.socket] = []
    bound: list[PublishedPort] = []
    try:
        for port in ports:
            if port.host_ip == "::" and not port.host_port and bound and _twins(bound[-1], port):
                port = msgspec.structs.replace(port, host_port=bound[-1].host_port)
            held, number = _bind(port, endpoint)
            if held is not None:
                sockets.append(held)
            bound.append(
                PublishedPort(
                    container_port=port.container_port,
                    protocol=port.protocol,
                    host_ip=port.host_ip,
                    host_port=number,
                )
            )
    except BaseException:
        for held in sockets:
            held.close()
        raise
    return tuple(bound), sockets


def _twins(four: PublishedPort, six: PublishedPort) -> bool:
    """Is it one port of all addresses, of both kinds?"""
    return not four.host_ip and (four.container_port, four.protocol) == (six.container_port, six.protocol)


def _bind(port: PublishedPort, endpoint: str) -> tuple[socket.socket | None, int]:
    """Bind the port, or the first free one of its range."""
    if port.last_port <= port.host_port:
        return _bind_one(port, endpoint)
    for number in range(port.host_port, port.last_port + 1):
        try:
            return _bind_one(msgspec.structs.replace(port, host_port=number, last_port=0), endpoint)
        except KernelError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    address = port.host_ip or "0.0.0.0"
    raise KernelError(
        f"Bind for {address}:{port.host_port}-{port.last_port} failed: all ports are allocated",
        subject=f"{address}:{port.host_port}-{port.last_port}/{port.protocol}",
        step=f"driver failed programming external connectivity on endpoint {endpoint}",
        errno=errno.EADDRINUSE,
    )


def _bind_one(port: PublishedPort, endpoint: str) -> tuple[socket.socket | None, int]:
    address = port.host_ip or "0.0.0.0"
    try:
        held = _socket(port)
    except OSError as error:
        if error.errno not in _NO_SUCH_PROTOCOL:
            raise _failure(port, address, endpoint, error) from None
        if not port.host_port:
            raise Unimplemented(
                f"this kernel has no {port.protocol}: name the host port", subject="ports"
            ) from None
        return None, port.host_port
    try:
        _hold(held, port, address)
        return held, held.getsockname()[1]
    except OSError as error:
        held.close()
        raise _failure(port, address, endpoint, error) from None
    except BaseException:
        held.close()
        raise


def _socket(port: PublishedPort) -> socket.socket:
    family = socket.AF_INET6 if ":" in port.host_ip else socket.AF_INET
    if port.protocol == "udp":
        made = socket.socket(family, socket.SOCK_DGRAM)
    else:
        protocol = socket.IPPROTO_SCTP if port.protocol == "sctp" else 0
        made = socket.socket(family, socket.SOCK_STREAM, protocol)
    if family == socket.AF_INET6:  # the IPv4 port of the number is another
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return made


def _hold(held: socket.socket, port: PublishedPort, address: str) -> None:
    if port.protocol != "tcp":
        # broadcasts to the port would pile up in it
        held.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
        held.bind((address, port.host_port))
        return
    if not port.host_port:
        held.bind((address, 0))  # the kernel's choice is free of everything that follows
        return
    # SO_REUSEADDR gets past connections in TIME_WAIT that an earlier server of the host left, but would
    # let the next server past us, too, as long as nobody listens. So listen, which makes the kernel check
    # and forget the permission, then stop: an explicitly bound port stays bound (SOCK_BINDPORT_LOCK in
    # net/ipv4), and connects are refused, not swallowed.
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind((address, port.host_port))
    held.listen(0)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    held.shutdown(socket.SHUT_RDWR)


def _failure(port: PublishedPort, address: str, endpoint: str, error: OSError) -> KernelError:
    number = error.errno or 0
    if number == errno.EADDRINUSE:
        words = f"Bind for {address}:{port.host_port} failed: port is already allocated"
    else:
        words = (
            f"failed to bind host port {address}:{port.host_port}/{port.protocol}: "
            f"{os.strerror(number).lower()}"
        )
    return KernelError(
        words,
        subject=f"{address}:{port.host_port}/{port.protocol}",
        step=f"driver failed programming external connectivity on endpoint {endpoint}",
        errno=number,
    )
