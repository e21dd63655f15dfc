"""What happens on a stream: a command or a container's own streams, or connections into a pod."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from contextlib import suppress

from nagaya.api.cri.streaming.channels import Channels
from nagaya.api.cri.streaming.handshake import Upgrade
from nagaya.engine.model import AttachRequest, Container, ExecConfig
from nagaya.engine.pods_containers import PodService
from nagaya.engine.pods_execs import frames
from nagaya.engine.pods_model import Pod
from nagaya.errors import NagayaError
from nagaya.wire.streams import STDERR

_SPDY = ("v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io")
_WEBSOCKET = ("v5.channel.k8s.io", "v4.channel.k8s.io")
_NUMBERS = {"stdin": 0, "stdout": 1, "stderr": 2, "error": 3, "resize": 4}
_PORTS_SPDY = ("portforward.k8s.io",)
_PORTS_WEBSOCKET = ("SPDY/3.1+portforward.k8s.io", "v4.channel.k8s.io")


def upgrade_of_command(*, tty: bool, stdin: bool, stdout: bool, stderr: bool) -> Upgrade:
    """The channels of a command with these streams."""
    asked = {"stdin": stdin, "stdout": stdout, "stderr": stderr and not tty, "error": True, "resize": tty}
    channels = {number: name for name, number in _NUMBERS.items() if asked[name]}
    return Upgrade(_SPDY, _WEBSOCKET, channels)


def upgrade_of_ports(ports: tuple[int, ...]) -> Upgrade:
    """Port forwarding; over WebSocket the ports are those of the request."""
    return Upgrade(_PORTS_SPDY, _PORTS_WEBSOCKET, None, ports)


async def execute(pods: PodService, container: Container, config: ExecConfig, channels: Channels) -> None:
    """Run a command for the client; one whose client goes is killed."""
    exec_id = await pods.begin_command(container, config)
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        try:
            await pods.start_command(exec_id, theirs.detach())
            resize = _Resize(pods, exec_id, container, config.tty)
            if await _both_ways(channels, ours, resize, tty=config.tty):
                await _tell_end(channels, await pods.end_of_command(exec_id))
        except NagayaError as error:
            await _tell_failure(channels, error)
        finally:
            pods.kill_command(exec_id)


async def attach(pods: PodService, container: Container, request: AttachRequest, channels: Channels) -> None:
    """Join the client to the container's own streams until one of both ends."""
    tty = container.config.tty
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        try:
            await pods.attach(container, request, theirs.detach())
            if await _both_ways(channels, ours, _Resize(pods, "", container, tty), tty=tty):
                await _tell_end(channels, 0)
        except NagayaError as error:
            await _tell_failure(channels, error)


async def _both_ways(channels: Channels, sock: socket.socket, resize: _Resize, *, tty: bool) -> bool:
    """Carry bytes until the process has no more (True) or the client has gone. Raises what the client's
    mistakes are. Nothing waits for the socket any more afterwards: it may be closed."""
    inward = asyncio.create_task(_inward(channels, sock, resize))
    outward = asyncio.create_task(_outward(channels, sock, tty=tty))
    try:
        await asyncio.wait((inward, outward), return_when=asyncio.FIRST_COMPLETED)
        if not outward.done():
            await inward
            return False
        await outward
        return True
    finally:
        inward.cancel()
        outward.cancel()
        await asyncio.gather(inward, outward, return_exceptions=True)


class _Resize:
    """Sets the size of a terminal as the client tells it."""

    def __init__(self, pods: PodService, exec_id: str, container: Container, tty: bool) -> None:
        self._pods = pods
        self._exec_id = exec_id
        self._container = container
        self._tty = tty
        self._held = b""

    async def take(self, data: bytes) -> None:
        """Pieces of JSON objects {"Width": n, "Height": n}, one after the other."""
        self._held = (self._held + data)[-4096:]
        while (end := self._held.find(b"}")) >= 0:
            text, self._held = self._held[: end + 1], self._held[end + 1 :]
            try:
                size = json.loads(text)
                height, width = int(size["Height"]), int(size["Width"])
            except (ValueError, TypeError, KeyError):
                continue
            if self._tty and 0 < height < 65536 and 0 < width < 65536:
                with suppress(NagayaError):  # it has just ended
                    await self._pods.resize(self._exec_id, self._container, height, width)


async def _inward(channels: Channels, sock: socket.socket, resize: _Resize) -> None:
    """From the client to the process, until the client goes."""
    loop = asyncio.get_running_loop()
    try:
        while (piece := await channels.receive()) is not None:
            if piece.channel == "resize" and piece.data:
                await resize.take(piece.data)
            elif piece.channel == "stdin":
                with suppress(ConnectionError):  # it does not read any more
                    if piece.data is None:
                        sock.shutdown(socket.SHUT_WR)
                    else:
                        await loop.sock_sendall(sock, piece.data)
    except OSError:
        pass  # the connection is gone, as if the client had closed it


async def _outward(channels: Channels, sock: socket.socket, *, tty: bool) -> None:
    """From the process to the client, until the process has no more."""
    loop = asyncio.get_running_loop()
    if tty:
        with suppress(ConnectionResetError):
            while data := await loop.sock_recv(sock, 65536):
                await channels.send("stdout", data)
    else:
        async for stream, data in frames(sock):
            await channels.send("stderr" if stream == STDERR else "stdout", data)


async def _tell_end(channels: Channels, code: int) -> None:
    """The exit code, as a Status of Kubernetes (remotecommand, version 4 of its protocol)."""
    status: dict[str, object] = {"metadata": {}, "status": "Success"}
    if code:
        status = {
            "metadata": {},
            "status": "Failure",
            "reason": "NonZeroExitCode",
            "message": f"command terminated with non-zero exit code: {code}",
            "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
        }
    await channels.send("error", json.dumps(status).encode())


async def _tell_failure(channels: Channels, error: NagayaError) -> None:
    status = {
        "metadata": {},
        "status": "Failure",
        "reason": "InternalError",
        "message": str(error),
        "code": 500,
    }
    await channels.send("error", json.dumps(status).encode())


async def forward(pods: PodService, pod: Pod, allowed: tuple[int, ...], channels: Channels) -> None:
    """Connections into the pod, one for each pair of channels. allowed: the ports of the request, () for
    any."""
    links: dict[str, asyncio.Queue[bytes | None]] = {}
    tasks: set[asyncio.Task[None]] = set()
    try:
        while (piece := await channels.receive()) is not None:
            kind, _, name = piece.channel.partition(" ")
            if kind != "data":
                continue
            queue = links.get(name)
            if queue is None:
                queue = links[name] = asyncio.Queue(64)
                task = asyncio.create_task(_connection(pods, pod, allowed, channels, name, queue))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                task.add_done_callback(lambda _, name=name: links.pop(name, None))  # type: ignore[misc]
            if piece.data != b"":
                await queue.put(piece.data)
    finally:
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _connection(
    pods: PodService,
    pod: Pod,
    allowed: tuple[int, ...],
    channels: Channels,
    name: str,
    queue: asyncio.Queue[bytes | None],
) -> None:
    port = int(name.rpartition(":")[2])
    loop = asyncio.get_running_loop()
    try:
        if (allowed and port not in allowed) or not 0 < port < 65536:
            raise ConnectionRefusedError(f"port {port} was not asked for")
        sock = await pods.dial(pod, port)
    except (OSError, NagayaError) as error:
        number = error.errno if isinstance(error, OSError) else 0
        why = os.strerror(number).lower() if number else str(error)
        text = f"cannot connect to port {port} of pod {pod.id[:12]}: {why}"
        await channels.send(f"error {name}", text.encode())
        await _finish(channels, name, queue)
        return
    with sock:

        async def inward() -> None:
            while True:
                data = await queue.get()
                if data is None:
                    sock.shutdown(socket.SHUT_WR)
                    return
                await loop.sock_sendall(sock, data)

        typing = asyncio.create_task(inward())
        try:
            while data := await loop.sock_recv(sock, 65536):
                await channels.send(f"data {name}", data)
        except OSError as error:
            with suppress(ConnectionError):
                await channels.send(f"error {name}", os.strerror(error.errno or 0).encode())
        finally:
            typing.cancel()
            await asyncio.gather(typing, return_exceptions=True)
    await _finish(channels, name, queue)


async def _finish(channels: Channels, name: str, queue: asyncio.Queue[bytes | None]) -> None:
    with suppress(ConnectionError):
        await channels.end(f"error {name}")
        await channels.end(f"data {name}")
    while not queue.empty():  # whoever waits to put more
        queue.get_nowait()
