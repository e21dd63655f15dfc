"""A registry in the test's own process: honest until told to lie, and it remembers what it was asked."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import socket
import sys
import tarfile
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from nagaya.image.transport import RegistryConfig
from nagaya.oci import platform

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def quick(**changes: Any) -> RegistryConfig:
    """A configuration for tests: no credentials of the user's, no long pauses."""
    settings: dict[str, Any] = {
        "docker_config": "",
        "backoff": 0.01,
        "retries": 2,
        "connect_timeout": 10.0,
        "read_timeout": 20.0,
    }
    return RegistryConfig(**{**settings, **changes})


def tar(*entries: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes], owner: int = 0) -> bytes:
    """An archive of these members, all of one owner."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            info, data = entry if isinstance(entry, tuple) else (entry, b"")
            info.uid = info.gid = info.uid or owner
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return raw.getvalue()


def file(name: str, data: bytes = b"", mode: int = 0o644) -> tuple[tarfile.TarInfo, bytes]:
    """A member: a regular file."""
    return member(name, mode=mode), data


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    """A member of any kind."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    return info


class Answer(Exception):
    """Raised by a `FakeRegistry.script` to answer with this instead of the truth.

    cut: close the connection after so many bytes of the body, whatever Content-Length said.
    """

    def __init__(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, cut: int | None = None
    ) -> None:
        super().__init__(status)
        self.status, self.body, self.headers, self.cut = status, body, headers or {}, cut


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # clients may go away
            super().handle_error(request, client_address)


class FakeRegistry:
    """Serves `blobs` and `manifests` on 127.0.0.1. Use as a context manager.

    script(path, headers) is asked first and may raise `Answer`. asked: (path, headers) in order.
    """

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[bytes, str]] = {}
        self.script: Callable[[str, dict[str, str]], None] = lambda path, headers: None
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.said: list[str] = []  # method and path of the same
        self.takes: Callable[[str, str], int] = lambda method, path: 1 << 60  # bytes of a request's body
        self.uploads: dict[str, bytearray] = {}
        self._numbers = itertools.count()
        self.elsewhere: dict[str, set[str]] = {}  # repository -> blobs that can be mounted from it
        self._mutex = threading.Lock()
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                headers = {key.lower(): value for key, value in self.headers.items()}
                taken = registry.takes(self.command, self.path)
                body = self.rfile.read(min(int(headers.get("content-length", 0)), taken))
                with registry._mutex:
                    registry.asked.append((self.path, headers))
                    registry.said.append(f"{self.command} {self.path}")
                if taken < int(headers.get("content-length", 0)):  # the cable is unplugged here
                    registry.write(self.command, self.path, headers, body)
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                try:
                    try:
                        registry.script(self.path, headers)
                        if self.command in ("POST", "PATCH", "PUT", "DELETE") or "/uploads/" in self.path:
                            raise registry.write(self.command, self.path, headers, body)
                        raise registry._truth(self.path, headers)
                    except Answer as answer:
                        self._send(answer)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            do_POST = do_HEAD = do_PATCH = do_PUT = do_DELETE = do_GET

            def _send(self, answer: Answer) -> None:
                self.send_response(answer.status)
                for key, value in answer.headers.items():
                    self.send_header(key, value)
                if "Content-Length" not in answer.headers:
                    self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                if self.command == "HEAD":
                    return
                self.wfile.write(answer.body if answer.cut is None else answer.body[: answer.cut])
                if answer.cut is not None:
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> FakeRegistry:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _truth(self, path: str, headers: dict[str, str]) -> Answer:
        route = urlsplit(path).path
        if route == "/v2/":
            return Answer(200, b"{}")
        name = route.rpartition("/")[2]
        if "/manifests/" in route:
            if name not in self.manifests:
                return Answer(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}')
            body, kind = self.manifests[name]
            return Answer(200, body, {"Content-Type": kind, "Docker-Content-Digest": digest_of(body)})
        if name not in self.blobs:
            return Answer(404, b'{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown"}]}')
        body = self.blobs[name]
        asked = headers.get("range", "")
        if asked.startswith("bytes="):
            start = int(asked[6:].rstrip("-"))
            said = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
            return Answer(206, body[start:], said)
        return Answer(200, body)

    def write(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        """The writing half of the specification, all repositories in one."""
        route, query = urlsplit(path).path, {k: v[0] for k, v in parse_qs(urlsplit(path).query).items()}
        name = route.rpartition("/")[2]
        if "/manifests/" in route:
            self.manifests[name] = self.manifests[digest_of(body)] = (body, headers["content-type"])
            return Answer(201, b"", {"Docker-Content-Digest": digest_of(body)})
        if method == "POST":
            if query.get("mount") in self.elsewhere.get(query.get("from", ""), ()):
                return Answer(201, b"", {"Location": f"{route[:-8]}{query['mount']}"})
            name = str(next(self._numbers))
            self.uploads[name] = bytearray()
            return Answer(202, b"", {"Location": f"{route}{name}?state=x"})
        if name not in self.uploads:
            return Answer(404, b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN","message":"upload unknown"}]}')
        data = self.uploads[name]
        if method == "DELETE":
            del self.uploads[name]
            return Answer(204)
        if method in ("PATCH", "PUT"):
            start = headers.get("content-range", str(len(data))).partition("-")[0]
            if int(start) != len(data):
                return Answer(416)
            data += body
        if method == "PUT":
            if digest_of(bytes(data)) != query["digest"]:
                return Answer(400, b'{"errors":[{"code":"DIGEST_INVALID","message":"digest invalid"}]}')
            self.blobs[query["digest"]] = bytes(data)
            del self.uploads[name]
            return Answer(201)
        there = {"Range": f"0-{max(len(data) - 1, 0)}", "Location": f"{route}?state=y"}
        return Answer(204 if method == "GET" else 202, b"", there)

    def count(self, part: str) -> int:
        """How many requests had this in their path."""
        return sum(part in path for path, _ in self.asked)

    def blob(self, data: bytes, kind: str, **more: Any) -> dict[str, Any]:
        """Keep a blob; its descriptor."""
        self.blobs[digest_of(data)] = data
        return {"mediaType": kind, "digest": digest_of(data), "size": len(data), **more}

    def manifest(self, document: dict[str, Any], *tags: str, kind: str = OCI_MANIFEST) -> dict[str, Any]:
        """Keep a manifest under its digest and these tags; its descriptor."""
        data = json.dumps(document).encode()
        for name in (digest_of(data), *tags):
            self.manifests[name] = (data, kind)
        return {"mediaType": kind, "digest": digest_of(data), "size": len(data)}

    def image(
        self,
        *layers: bytes,
        tag: str = "1",
        packed: Callable[[bytes], bytes] = lambda data: data,
        diff_ids: Sequence[str] | None = None,
        annotations: dict[str, str] | None = None,
        config: dict[str, Any] | None = None,
        where: platform.Platform | None = None,
    ) -> dict[str, Any]:
        """Keep a whole image of these archives; the descriptor of its manifest."""
        host = where or platform.host()
        document = {
            "architecture": host.architecture,
            "os": host.os,
            **({"variant": host.variant} if host.variant else {}),
            "created": "2024-01-02T03:04:05Z",
            "config": config or {"Cmd": ["true"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids or [digest_of(x) for x in layers]},
            "history": [{"created_by": f"layer {n}"} for n in range(len(layers))],
        }
        more = {"annotations": annotations} if annotations else {}
        return self.manifest(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": self.blob(json.dumps(document).encode(), OCI_CONFIG),
                "layers": [self.blob(packed(x), OCI_LAYER, **more) for x in layers],
            },
            tag,
        )

    def name(self, tag: str = "1", repository: str = "a/b") -> str:
        """A reference to what is here."""
        return f"{self.address}/{repository}:{tag}"
