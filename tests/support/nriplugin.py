"""A plugin of the Node Resource Interface, for tests: it notes what it is told, and answers as it is set."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from nagaya.api.nri import nri_pb2 as nri
from nagaya.api.nri import ttrpc

ALL = (1 << nri.LAST - 1) - 1


class NriPlugin:
    """at: the runtime's socket, or a connection to it. answers: method -> function of the request that gives
    the response, or raises with the words of an error. told: (method, request) in order."""

    def __init__(
        self, at: Path | socket.socket, name: str = "tester", index: str = "10", events: int = ALL
    ) -> None:
        self.told: list[tuple[str, Any]] = []
        self.answers: dict[str, Callable[[Any], Message]] = {}
        self.events = events
        self.ready = threading.Event()
        self.gone = threading.Event()
        self.replies: dict[int, nri.TtrpcResponse] = {}
        self._arrived = threading.Condition()
        self._stream = -1
        self._sending = threading.Lock()
        if isinstance(at, socket.socket):
            self._sock = at
        else:
            self._sock = socket.socket(socket.AF_UNIX)
            self._sock.connect(str(at))
        threading.Thread(target=self._serve, daemon=True).start()
        if name:
            request = nri.RegisterPluginRequest(plugin_name=name, plugin_idx=index, NRI_version="0.12.0")
            self.registered = self.call("RegisterPlugin", request)

    def __enter__(self) -> NriPlugin:
        assert self.ready.wait(10), self.told
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with suppress(OSError):  # it has gone already
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def _send(self, message: ttrpc.Message) -> None:
        data = ttrpc.encode(message)
        with self._sending:  # in pieces, as Go does it: a frame for the head, another for the rest
            inner = data[8:]
            number = message.connection.to_bytes(4, "big")
            for piece in (inner[:10], inner[10:]):
                if piece:
                    self._sock.sendall(number + len(piece).to_bytes(4, "big") + piece)

    def call(self, method: str, request: Message) -> nri.TtrpcResponse:
        """Call the runtime; its whole answer."""
        self._stream += 2
        stream = self._stream
        asked = nri.TtrpcRequest(
            service="nri.pkg.api.v1alpha1.Runtime", method=method, payload=request.SerializeToString()
        )
        self._send(ttrpc.Message(ttrpc.RUNTIME, stream, ttrpc.REQUEST, asked.SerializeToString()))
        with self._arrived:
            assert self._arrived.wait_for(lambda: stream in self.replies, 10), method
            return self.replies[stream]

    def _serve(self) -> None:
        decoder = ttrpc.Decoder()
        try:
            while data := self._sock.recv(65536):
                for message in decoder.feed(data):
                    if message.kind == ttrpc.RESPONSE:
                        with self._arrived:
                            self.replies[message.stream] = nri.TtrpcResponse.FromString(message.data)
                            self._arrived.notify_all()
                    else:
                        threading.Thread(target=self._answer, args=(message,), daemon=True).start()
        except OSError:
            pass
        self.gone.set()

    def _answer(self, message: ttrpc.Message) -> None:
        asked = nri.TtrpcRequest.FromString(message.data)
        request = getattr(nri, f"{asked.method}Request").FromString(asked.payload)
        self.told.append((asked.method, request))
        response = nri.TtrpcResponse()
        try:
            if asked.method in self.answers:
                reply = self.answers[asked.method](request)
            elif asked.method == "Configure":
                reply = nri.ConfigureResponse(events=self.events)
            else:
                reply = getattr(nri, f"{asked.method}Response")()
            response.payload = reply.SerializeToString()
        except Exception as error:
            response.status.code, response.status.message = 2, str(error)
        try:
            data = response.SerializeToString()
            self._send(ttrpc.Message(ttrpc.PLUGIN, message.stream, ttrpc.RESPONSE, data))
        except OSError:
            return
        if asked.method == "Synchronize":
            self.ready.set()

    def methods(self, subject: str) -> list[str]:
        """What it was told about a pod or a container, in order."""
        found = []
        for method, request in self.told:
            part = request.container if hasattr(request, "container") else getattr(request, "pod", None)
            if part is not None and part.id == subject:
                found.append(method)
        return found
