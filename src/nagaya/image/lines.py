"""The sockets of one pull, which another thread can cut.

A registry may accept and never answer: then recv(2) waits for the whole time-out, and the pull holds
its places in the queues of all pulls, though its user has long gone. shutdown(2) from another thread
wakes whoever connects to, writes to or reads from a socket; close(2) does not.
"""

from __future__ import annotations

import socket
import threading
from weakref import WeakSet

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util.connection import allowed_gai_family


class Lines:
    """Every connection of one pull, from its connect(2) on. Thread-safe."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._cut = False

    def add(self, line: socket.socket) -> None:
        """Cut this one, too. Raises OSError when they have been cut already."""
        with self._mutex:
            if self._cut:
                raise ConnectionAbortedError("the pull has ended")
            self._sockets.add(line)

    def cut(self) -> None:
        """End all connections and refuse new ones: whoever waits for one gets an error now."""
        with self._mutex:
            self._cut = True
            lines = list(self._sockets)
        for line in lines:
            try:
                # not SSLSocket's own, which would take the TLS state from under the reader
                socket.socket.shutdown(line, socket.SHUT_RDWR)
            except OSError:
                pass  # closed, or never connected

    def adopt(self, manager: urllib3.PoolManager) -> None:
        """All that the manager connects from now on is ours to cut."""
        lines = self

        class Plain(HTTPConnection):
            def _new_conn(self) -> socket.socket:
                return _dial(self, lines)

        class Secure(HTTPSConnection):
            _handshake: socket.socket | None = None

            def _new_conn(self) -> socket.socket:
                line = _dial(self, lines)
                # wrapping takes the fd away from `line`, and shows its own object after the handshake only
                self._handshake = line.dup()
                lines.add(self._handshake)
                return line

            def connect(self) -> None:
                try:
                    super().connect()
                finally:
                    if self._handshake is not None:
                        self._handshake.close()
                if isinstance(self.sock, socket.socket):  # not a TLS session within another one
                    lines.add(self.sock)

        class PlainPool(urllib3.HTTPConnectionPool):
            ConnectionCls = Plain

        class SecurePool(urllib3.HTTPSConnectionPool):
            ConnectionCls = Secure

        manager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}


def _dial(connection: HTTPConnection, lines: Lines) -> socket.socket:
    """urllib3's own `_new_conn`, with each socket known to `lines` before it connects."""
    host, port, timeout = connection._dns_host, connection.port or 0, connection.timeout
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, allowed_gai_family(), socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        gone = error if isinstance(error, socket.gaierror) else socket.gaierror(str(error))
        raise NameResolutionError(connection.host, connection, gone) from error
    last: OSError = OSError("no address")
    for family, kind, protocol, _, address in found:
        line = socket.socket(family, kind, protocol)
        try:
            for option in connection.socket_options or ():
                line.setsockopt(*option)
            line.settimeout(timeout if isinstance(timeout, (int, float)) else None)
            lines.add(line)
            line.connect(address)
        except OSError as error:
            last = error
            line.close()
            continue
        return line
    if isinstance(last, TimeoutError):
        raise ConnectTimeoutError(connection, f"connection to {host} timed out") from last
    raise NewConnectionError(connection, f"cannot connect: {last}") from last
