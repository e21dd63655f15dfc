"""Commands in containers of pods: run to their end with their output kept, apart by stream."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from nagaya.engine.execs import Execs
from nagaya.engine.model import Container, ExecConfig
from nagaya.engine.world import World
from nagaya.errors import (
    CommandNotExecutable,
    CommandNotFound,
    DeadlineExceeded,
    KernelError,
    ResourceExhausted,
)
from nagaya.linux.pids import pidfd_send_signal
from nagaya.wire.streams import STDOUT

MOST_OUTPUT = 16 << 20  # what a kubelet's gRPC client takes


class Output(NamedTuple):
    """What a command wrote and how it ended."""

    stdout: bytes
    stderr: bytes
    exit_code: int


async def frames(sock: socket.socket) -> AsyncIterator[tuple[int, bytes]]:
    """(stream, payload) of Docker's frames until the end; a payload may come in pieces."""
    loop = asyncio.get_running_loop()
    held = b""
    left, stream = 0, 0
    with suppress(ConnectionResetError):
        while data := await loop.sock_recv(sock, 65536):
            held += data
            while held:
                if not left:
                    if len(held) < 8:
                        break
                    stream, left = held[0], int.from_bytes(held[4:8], "big")
                    held = held[8:]
                    continue
                piece, held = held[:left], held[left:]
                left -= len(piece)
                yield stream, piece


async def run(world: World, execs: Execs, container: Container, words: Sequence[str], timeout: int) -> Output:
    """Run it; timeout 0: as long as it takes. One that has taken too long, or written too much, is
    killed. Raises DeadlineExceeded, ResourceExhausted, and what a start raises."""
    config = ExecConfig(tuple(words), attach_stdout=True, attach_stderr=True)
    exec_id = await execs.create(container.id, config)
    ours, theirs = socket.socketpair()
    kept: dict[int, bytearray] = {}
    with ours:
        ours.setblocking(False)

        async def work() -> int:
            await execs.start(exec_id, theirs.detach())
            async for stream, data in frames(ours):
                kept.setdefault(stream, bytearray()).extend(data)
                if sum(map(len, kept.values())) > MOST_OUTPUT:
                    raise ResourceExhausted(f"the output is larger than {MOST_OUTPUT} bytes", subject="cmd")
            return await execs.end_of(exec_id)

        try:
            async with asyncio.timeout(timeout or None):
                code = await work()
        except TimeoutError:
            raise DeadlineExceeded(
                f"command {words[0]!r} took longer than {timeout} s", subject="cmd"
            ) from None
        except (CommandNotFound, CommandNotExecutable):
            raise
        finally:
            kill(world, exec_id)
    stdout = bytes(kept.pop(STDOUT, b""))
    return Output(stdout, b"".join(map(bytes, kept.values())), code)


def kill(world: World, exec_id: str) -> None:
    """SIGKILL for what still runs of it."""
    entry = world.supervisor.entries.get(exec_id)
    if entry is not None and entry.exit is None and entry.pidfd >= 0:
        with suppress(KernelError):  # it has ended
            pidfd_send_signal(entry.pidfd, 9)
