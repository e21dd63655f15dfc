"""SPDY within WebSocket messages ("SPDY/3.1+portforward.k8s.io"): for clients whose proxies know WebSocket
only (k8s.io/apimachinery, portforward). One end of a byte stream, with what asyncio's streams offer."""

from __future__ import annotations

import asyncio

from nagaya.api.cri.streaming import websocket

PREFIX = "SPDY/3.1+"


class Tunnel:
    """Reads and writes the bytes inside. See asyncio.StreamReader, asyncio.StreamWriter."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = websocket.Decoder()
        self._gone = False

    async def read(self, most: int) -> bytes:
        """Some bytes; b"" at the end. Raises InvalidArgument for what is no WebSocket."""
        while not self._gone:
            data = await self._reader.read(most)
            found = bytearray()
            for message in self._decoder.feed(data):
                match message.kind:
                    case websocket.BINARY:
                        found += message.data
                    case websocket.PING:
                        self._writer.write(websocket.frame(websocket.PONG, message.data))
                    case websocket.CLOSE:
                        self._gone = True
            self._gone = self._gone or not data
            if found:
                return bytes(found)
        return b""

    def write(self, data: bytes) -> None:
        """Send bytes, as one message."""
        self._writer.write(websocket.frame(websocket.BINARY, data))

    async def drain(self) -> None:
        """Wait until there is room for more."""
        await self._writer.drain()

    def close(self) -> None:
        """Say good-bye, and end."""
        self._writer.write(websocket.frame(websocket.CLOSE, (1000).to_bytes(2, "big")))
        self._writer.close()
