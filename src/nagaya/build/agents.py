"""`RUN --mount=type=ssh`: a socket of the container's behind which a client's ssh agent is, on this host.

The container does not get the agent's own: owner and mode are the mount's, and it ends with the step.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

NAME = "agent"
_PIECE = 64 << 10


@asynccontextmanager
async def served(agent: str, directory: str, owner: tuple[int, int], mode: int) -> AsyncIterator[None]:
    """There is a socket NAME in the directory, until the end, and each connection leads to `agent`."""
    home = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    listening = socket.socket(socket.AF_UNIX)
    relays: set[asyncio.Task[None]] = set()
    try:
        listening.bind(f"/proc/self/fd/{home}/{NAME}")  # a socket's path has 107 bytes
        os.chown(NAME, *owner, dir_fd=home, follow_symlinks=False)
        os.chmod(f"/proc/self/fd/{home}/{NAME}", mode & 0o7777)
        listening.listen()
        listening.setblocking(False)
        accepting = asyncio.ensure_future(_accept(listening, agent, relays))
        try:
            yield
        finally:
            tasks = [accepting, *relays]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
    finally:
        listening.close()
        os.close(home)


async def _accept(listening: socket.socket, agent: str, relays: set[asyncio.Task[None]]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        program, _ = await loop.sock_accept(listening)
        program.setblocking(False)
        task = asyncio.ensure_future(_relay(program, agent))
        relays.add(task)
        task.add_done_callback(relays.discard)


async def _relay(program: socket.socket, agent: str) -> None:
    with program, socket.socket(socket.AF_UNIX) as client, suppress(OSError):
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, agent)
        ways = [
            asyncio.ensure_future(_pump(program, client)),
            asyncio.ensure_future(_pump(client, program)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.wait(ways)


async def _pump(source: socket.socket, target: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        while data := await loop.sock_recv(source, _PIECE):
            await loop.sock_sendall(target, data)
