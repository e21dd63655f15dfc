"""Channels over WebSocket: the first byte of a message is the channel's number.

v5.channel.k8s.io adds to v4 a half-close: the message 255 with the number of the channel that has no
more. For port forwarding v4 has two channels for each port, data and error, which begin with the port's
number in two bytes, the low one first (k8s.io/apimachinery, k8s.io/kubelet, streaming).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence

from nagaya.api.cri.streaming import websocket
from nagaya.api.cri.streaming.channels import Piece

_CLOSE = 255
_MOST = 1 << 16


class WebSocketChannels:
    """See `Channels`."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        protocol: str,
        channels: Mapping[int, str] | None,
        ports: Sequence[int],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._half_close = protocol.startswith("v5.")
        self._ports = ports if channels is None else ()
        self._names = dict(channels or {})
        for index, port in enumerate(self._ports):
            self._names[2 * index] = f"data {index}:{port}"
            self._names[2 * index + 1] = f"error {index}:{port}"
        self._numbers = {name: number for number, name in self._names.items()}
        self._decoder = websocket.Decoder()
        self._pieces: deque[Piece] = deque()
        self._gone = False

    async def open(self) -> None:
        """The channels are there from the beginning; those of ports say whose they are."""
        for index, port in enumerate(self._ports):
            for number in (2 * index, 2 * index + 1):
                said = bytes((number,)) + port.to_bytes(2, "little")
                self._writer.write(websocket.frame(websocket.BINARY, said))
                self._pieces.append(Piece(self._names[number], b""))
        await self._writer.drain()

    async def receive(self) -> Piece | None:
        """The next piece."""
        while not self._pieces:
            if self._gone:
                return None
            data = await self._reader.read(65536)
            if not data:
                self._gone = True
                return None
            for message in self._decoder.feed(data):
                self._take(message)
        return self._pieces.popleft()

    def _take(self, message: websocket.Message) -> None:
        match message.kind:
            case websocket.PING:
                self._writer.write(websocket.frame(websocket.PONG, message.data))
            case websocket.CLOSE:
                self._gone = True
            case websocket.BINARY | websocket.TEXT if message.data:
                number, data = message.data[0], message.data[1:]
                if number == _CLOSE and self._half_close and data:
                    name = self._names.get(data[0])
                    if name is not None:
                        self._pieces.append(Piece(name, None))
                elif number in self._names and data:
                    self._pieces.append(Piece(self._names[number], data))

    async def send(self, channel: str, data: bytes) -> None:
        """Send on a channel that the session has."""
        number = self._numbers.get(channel)
        if number is None:
            return
        for begin in range(0, len(data), _MOST):
            piece = bytes((number,)) + data[begin : begin + _MOST]
            self._writer.write(websocket.frame(websocket.BINARY, piece))
            await self._writer.drain()

    async def end(self, channel: str) -> None:
        """Version 5 tells, the others have no word for it."""
        number = self._numbers.pop(channel, None)
        if number is not None and self._half_close:
            self._writer.write(websocket.frame(websocket.BINARY, bytes((_CLOSE, number))))
            await self._writer.drain()

    async def close(self) -> None:
        """Say good-bye."""
        self._writer.write(websocket.frame(websocket.CLOSE, (1000).to_bytes(2, "big")))
        try:
            await self._writer.drain()
        except ConnectionError:
            return
        self._writer.close()
