"""Where log lines are sent to: a syslog (RFC 3164, RFC 5424) or journald (its native protocol).

Formats and defaults are those of dockerd's drivers: moby daemon/logger/syslog with RackSec/srslog,
daemon/logger/journald; systemd's docs/JOURNAL_NATIVE_PROTOCOL.md.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import Mapping
from typing import Protocol

from nagaya.engine import logoptions
from nagaya.engine.model import Container, LogLine
from nagaya.errors import InternalError, InvalidArgument

JOURNAL = "/run/systemd/journal/socket"
_DEFAULT_TAG = "{{.ID}}"
_INFO, _ERROR = 6, 3
_TLS_FILES = ("syslog-tls-ca-cert", "syslog-tls-cert", "syslog-tls-key")
_PATIENCE = 10.0  # seconds to connect


class Target(Protocol):
    """Takes lines, one after the other."""

    async def open(self) -> None:
        """Connect. Raises InternalError, InvalidArgument."""
        ...

    async def send(self, line: LogLine) -> None:
        """Send one. Raises OSError; the next comes after another `open`."""
        ...

    def close(self) -> None: ...


def of(container: Container) -> Target | None:
    """Where a container's lines go besides its log; None for drivers that only keep it."""
    match container.config.log.driver:
        case "syslog":
            return Syslog(container)
        case "journald":
            return Journal(container, JOURNAL)
        case _:
            return None


def tag_of(container: Container) -> str:
    """The tag by which its lines are told from others'."""
    template = container.config.log.options.get("tag") or _DEFAULT_TAG
    return logoptions.tag(template, logoptions.fields(container))


class Syslog:
    """One connection to a syslog."""

    def __init__(self, container: Container) -> None:
        options = container.config.log.options
        self._target = logoptions.target(options)
        facility = options.get("syslog-facility", "daemon")
        self._facility = logoptions.FACILITIES[facility] if not facility.isdecimal() else int(facility)
        self._format = options.get("syslog-format", "")
        self._tag = tag_of(container)
        self._host = os.uname().nodename
        # RFC 5425: over TLS each message of the newer format comes after its length
        self._counted = self._target.kind == "tcp+tls" and self._format.startswith("rfc5424")
        self._options = options
        self._sock: socket.socket | None = None
        self._stream: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        self.close()
        where = self._target
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_PATIENCE):
                if where.kind == "tcp+tls":
                    context = await loop.run_in_executor(None, secured, self._options)
                    _, self._stream = await asyncio.open_connection(where.host, where.port, ssl=context)
                    # what was sent is out of our hands, as with a plain socket
                    self._stream.transport.set_write_buffer_limits(high=0)
                else:
                    self._sock = await self._connected(loop)
        except (OSError, TimeoutError) as error:
            place = where.path or f"{where.host}:{where.port}"
            raise InternalError(
                f"failed to initialize logging driver: dial {where.kind} {place}: connect: {_why(error)}",
                subject="LogConfig",
            ) from None

    async def _connected(self, loop: asyncio.AbstractEventLoop) -> socket.socket:
        where = self._target
        if where.path:
            kind = socket.SOCK_STREAM if where.kind == "unix" else socket.SOCK_DGRAM
            return await self._try(loop, socket.AF_UNIX, kind, where.path)
        kind = socket.SOCK_STREAM if where.kind == "tcp" else socket.SOCK_DGRAM
        found = await loop.getaddrinfo(where.host, where.port, type=kind)
        return await self._try(loop, found[0][0], kind, found[0][4])

    async def _try(
        self, loop: asyncio.AbstractEventLoop, family: int, kind: int, address: object
    ) -> socket.socket:
        sock = socket.socket(family, kind)
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, address)  # type: ignore[arg-type]
        except BaseException:
            sock.close()
            raise
        return sock

    async def send(self, line: LogLine) -> None:
        if self._sock is None and self._stream is None:
            raise ConnectionError("not connected")
        data = record(
            self._format,
            self._facility << 3 | (_ERROR if line.stream == "stderr" else _INFO),
            self._tag,
            self._host,
            line,
        )
        if self._counted:
            data = b"%d " % len(data) + data
        if self._stream is not None:
            self._stream.write(data)
            await self._stream.drain()
        elif self._sock is not None:
            await asyncio.get_running_loop().sock_sendall(self._sock, data)

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        if self._stream is not None:
            self._stream.close()  # what waits is still sent
            self._stream = None


def secured(options: Mapping[str, str]) -> ssl.SSLContext:
    """TLS as the options `syslog-tls-...` want it. Raises InvalidArgument about their files."""
    try:
        context = ssl.create_default_context(cafile=options.get("syslog-tls-ca-cert") or None)
        if "syslog-tls-skip-verify" in options:  # whatever it says, as with dockerd
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if options.get("syslog-tls-cert"):
            context.load_cert_chain(options["syslog-tls-cert"], options.get("syslog-tls-key") or None)
    except OSError as error:
        files = [options[key] for key in _TLS_FILES if options.get(key)]
        raise InvalidArgument(
            f"failed to initialize logging driver: {' '.join(files)}: {_why(error)}", subject="LogConfig"
        ) from None
    return context


def _why(error: OSError | TimeoutError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {(error.reason or 'failed').lower().replace('_', ' ')}"
    return os.strerror(error.errno).lower() if error.errno and error.errno > 0 else "failed"


def record(style: str, priority: int, tag: str, host: str, line: LogLine) -> bytes:
    """One message, with its newline."""
    seconds, fraction = divmod(line.time_ns, 1_000_000_000)
    if style.startswith("rfc5424"):
        digits = f".{fraction // 1000:06d}" if style == "rfc5424micro" else ""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + digits + "Z"
        head = f"<{priority}>1 {stamp} {host} {tag} {os.getpid()} {tag} - "
    else:
        stamp = time.strftime("%b %e %H:%M:%S", time.localtime(seconds))
        name = f"{host} " if style == "rfc3164" else ""
        head = f"<{priority}>{stamp} {name}{tag}[{os.getpid()}]: "
    return head.encode() + line.data.rstrip(b"\n") + b"\n"


class Journal:
    """journald's socket. place: its path."""

    def __init__(self, container: Container, place: str) -> None:
        tag = tag_of(container)
        fields = {
            "CONTAINER_ID": container.id[:12],
            "CONTAINER_ID_FULL": container.id,
            "CONTAINER_NAME": container.name,
            "CONTAINER_TAG": tag,
            "IMAGE_NAME": container.config.image,
            "SYSLOG_IDENTIFIER": tag,
        }
        for key, value in logoptions.attributes(container).items():
            name = "".join(c if c.isascii() and c.isalnum() else "_" for c in key.upper()).lstrip("_")
            fields.setdefault(name, value)
        self._head = b"".join(_field(name, value.encode()) for name, value in fields.items())
        self._place = place
        self._sock: socket.socket | None = None

    async def open(self) -> None:
        self.close()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.setblocking(False)
        try:
            sock.connect(self._place)
        except OSError:
            sock.close()
            raise InternalError(
                "failed to initialize logging driver: journald is not enabled on this host",
                subject="LogConfig",
            ) from None
        self._sock = sock

    async def send(self, line: LogLine) -> None:
        if self._sock is None:
            raise ConnectionError("not connected")
        priority = b"3" if line.stream == "stderr" else b"6"
        data = self._head + _field("PRIORITY", priority) + _field("MESSAGE", line.data.rstrip(b"\n"))
        await asyncio.get_running_loop().sock_sendall(self._sock, data)

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def _field(name: str, value: bytes) -> bytes:
    if b"\n" in value:
        return name.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
    return name.encode() + b"=" + value + b"\n"
