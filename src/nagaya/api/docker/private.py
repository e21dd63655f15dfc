"""What of a build is secret, as `nagaya build` sends it: a line of JSON before the context.

Not in the query or the headers: those are logged, and small. Nothing of it is kept on disk.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from collections.abc import AsyncIterator

import msgspec

from nagaya.api.http.messages import Request
from nagaya.build.request import BuildRequest
from nagaya.errors import InvalidArgument

MEDIA_TYPE = b"application/vnd.nagaya.build"
MAX_LINE = 16 << 20


class Private(msgspec.Struct, frozen=True):
    """secrets: base64 by id. ssh: sockets of agents by id. insecure: RUN --security=insecure is allowed."""

    secrets: dict[str, str] = {}
    ssh: dict[str, str] = {}
    insecure: bool = False


async def taken(wanted: BuildRequest, request: Request) -> tuple[BuildRequest, AsyncIterator[bytes]]:
    """The request with what is secret in it, and the context that follows. Raises InvalidArgument."""
    body = request.chunks()
    if request.header(b"content-type") != MEDIA_TYPE:
        return wanted, body
    line = b""
    async for piece in body:
        head, newline, rest = piece.partition(b"\n")
        line += head
        if len(line) > MAX_LINE:
            break
        if newline:
            return _with(wanted, _decode(line)), _chained(rest, body)
    raise InvalidArgument("the build's secrets are cut short or too large", subject="secrets")


def _decode(line: bytes) -> Private:
    try:
        return msgspec.json.decode(line, type=Private)
    except (msgspec.MsgspecError, RecursionError):
        raise InvalidArgument("the build's secrets are not understood", subject="secrets") from None


def _with(wanted: BuildRequest, private: Private) -> BuildRequest:
    try:
        secrets = {name: base64.b64decode(text, validate=True) for name, text in private.secrets.items()}
    except (binascii.Error, ValueError):
        raise InvalidArgument("the build's secrets are not understood", subject="secrets") from None
    for name, path in private.ssh.items():
        try:
            is_socket = path.startswith("/") and stat.S_ISSOCK(os.stat(path).st_mode)
        except (OSError, ValueError):
            is_socket = False
        if not is_socket:
            raise InvalidArgument(
                f"ssh agent {name[:80]}: the daemon finds no socket at its path", subject="ssh"
            )
    return msgspec.structs.replace(wanted, secrets=secrets, agents=private.ssh, insecure=private.insecure)


async def _chained(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if first:
        yield first
    async for piece in rest:
        yield piece
