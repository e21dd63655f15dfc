"""Listening on a Unix socket: its permissions, its connections, its end."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import socket
import stat
import sys
from typing import Any

from nagaya.api.http.connection import Connection
from nagaya.api.http.messages import Application, Headers
from nagaya.errors import FailedPrecondition, InvalidArgument

BACKLOG = 1024
GRACE = 10.0
"""Seconds that running operations get to end after `close`."""


class HttpServer:
    """A listening server. `close` stops accepting and ends idle connections and streams;
    `wait_closed` returns when the operations that were running have been answered."""

    def __init__(self, server: asyncio.Server, path: str, inode: tuple[int, int], peers: set[Connection]):
        self._server = server
        self._path = path
        self._inode = inode
        self._peers = peers
        self._closed = False

    def close(self) -> None:
        """Stop accepting; see the class."""
        if self._closed:
            return
        self._closed = True
        self._server.close()
        with contextlib.suppress(FileNotFoundError):
            status = os.lstat(self._path)
            if (status.st_dev, status.st_ino) == self._inode:  # a successor may already listen here
                os.unlink(self._path)
        for peer in list(self._peers):
            peer.close()

    async def wait_closed(self) -> None:
        """Wait at most `GRACE` seconds for what runs, then drop it."""
        deadline = asyncio.get_running_loop().time() + GRACE
        while self._peers and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)
        for peer in list(self._peers):
            peer.abort()
        await asyncio.sleep(0)


def listen_unix(path: str, group: str) -> socket.socket:
    """A listening socket at `path`: 0660 root:group when that group exists, else 0600.

    A stale socket of a dead server is replaced; raises FailedPrecondition when a live one listens,
    InvalidArgument when the path cannot hold a socket."""
    if len(os.fsencode(path)) > 107:  # unix(7): sun_path
        raise InvalidArgument(f"the socket path is longer than 107 bytes: {path}", subject=path)
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            _remove_stale(path)
        else:
            raise FailedPrecondition(f"{path} exists and is not a socket", subject=path)
    except FileNotFoundError:
        pass
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.bind(path)
        # Nobody can connect before listen(): the permissions are in place when it matters.
        try:
            gid = grp.getgrnam(group).gr_gid
        except KeyError:
            os.chmod(path, 0o600)
        else:
            os.chown(path, -1, gid)
            os.chmod(path, 0o660)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise FailedPrecondition(
            f"can't create unix socket {path}: {error.strerror}", subject=path, errno=error.errno or 0
        ) from error
    return sock


def _remove_stale(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return
        except OSError:
            pass
    raise FailedPrecondition(f"can't create unix socket {path}: address already in use", subject=path)


async def serve(application: Application, path: str, *, group: str, headers: Headers) -> HttpServer:
    """Serve `application` at `path`. `headers` are sent with every answer."""
    sock = listen_unix(path, group)
    status = os.lstat(path)
    peers: set[Connection] = set()
    loop = asyncio.get_running_loop()
    # Python 3.13 would unlink the socket file itself; `HttpServer.close` does, and checks whose it is.
    keep_file: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
    server = await loop.create_unix_server(
        lambda: Connection(application, peers, headers), sock=sock, backlog=BACKLOG, **keep_file
    )
    return HttpServer(server, path, (status.st_dev, status.st_ino), peers)
