"""The metadata service: a JSON document of the host's that the guest reads by HTTP. Pure.

Version 1 answers any GET; version 2 only one with a token, which a PUT gives for so many seconds. Tokens are
this process's own: after the restore of a snapshot the guest asks for a new one.
"""

from __future__ import annotations

import hmac
import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from nagaya.api.firecracker.faults import Fault
from nagaya.api.firecracker.server import Reply

_TOKEN_PATH = "/latest/api/token"
_TOKEN = ("x-metadata-token", "x-aws-ec2-metadata-token")
_TTL = {
    "x-metadata-token-ttl-seconds": "X-metadata-token-ttl-seconds",
    "x-aws-ec2-metadata-token-ttl-seconds": "X-aws-ec2-metadata-token-ttl-seconds",
}
_TTL_MAX = 21600
_TOKEN_BYTES = 32


def merge_patch(target: Any, patch: Any) -> Any:
    """The target after a JSON merge patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


class Mmds:
    """The document, and who may read it."""

    def __init__(
        self, limit: int, *, now: Callable[[], float] = time.monotonic, count: Callable[[str], object] = str
    ) -> None:
        self._limit = limit
        self._now = now
        self._count = count
        self._data: Any = None
        self._initialized = False
        self._key = os.urandom(32)
        self.version = "V1"
        self.imds_compat = False

    def get(self) -> Any:
        """All of it, as the host sees it."""
        return {} if self._data is None else self._data

    def put(self, data: Any) -> None:
        """Replace it. Raises Fault when it is too large."""
        if len(_dump(data).encode()) > self._limit:
            raise Fault("MMDS limit exceeded error: The MMDS patch request doesn't fit.", 413)
        self._data, self._initialized = data, True

    def patch(self, patch: Any) -> None:
        """Merge into it. Raises Fault when there is none yet, or it gets too large."""
        if not self._initialized:
            raise Fault("MMDS error: The MMDS data store is not initialized.")
        self.put(merge_patch(self._data, patch))

    def token(self, ttl: int) -> str:
        """A token for so many seconds: a random number, when it ends, and our signature."""
        end = int(self._now() * 1000) + ttl * 1000
        head = os.urandom(16).hex() + f"{end:016x}"
        return head + hmac.digest(self._key, head.encode(), "sha256").hex()[: _TOKEN_BYTES * 2]

    def valid(self, token: str) -> bool:
        """Whether that is a token of ours which has not ended."""
        head, signature = token[:48], token[48:]
        good = hmac.digest(self._key, head.encode("utf-8", "replace"), "sha256").hex()[: _TOKEN_BYTES * 2]
        if not hmac.compare_digest(good, signature.encode("ascii", "replace").decode()):
            return False
        return int(head[32:], 16) > self._now() * 1000

    def answer(self, method: str, path: str, headers: Mapping[str, str]) -> Reply:
        """What the guest gets; the headers' names are in lower case."""
        if method == "PUT":
            return self._put(path, headers)
        if method != "GET":
            return _reply(405, "Not allowed HTTP method.", headers={"Allow": "GET, PUT"})
        token = next((headers[name] for name in _TOKEN if name in headers), None)
        if token is None:
            self._count("rx_no_token")
        elif not self.valid(token):
            self._count("rx_invalid_token")
        if self.version == "V2":
            if token is None:
                words = "No MMDS token provided. Use `X-metadata-token` or `X-aws-ec2-metadata-token` header"
                return _reply(401, f"{words} to specify the session token.")
            if not self.valid(token):
                return _reply(401, "MMDS token not valid.")
        return self._get(path, "application/json" in headers.get("accept", ""))

    def _get(self, path: str, as_json: bool) -> Reply:
        found = self._data
        for word in _simple(path).strip("/").split("/") if _simple(path) != "/" else ():
            word = word.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and word in found:
                found = found[word]
            elif isinstance(found, list) and word.isascii() and word.isdigit() and int(word) < len(found):
                found = found[int(word)]
            else:
                return _reply(404, f"Resource not found: {path}.")
        if as_json and not self.imds_compat:
            return _reply(200, _dump(found), kind="application/json")
        if isinstance(found, str):
            words = found
        elif isinstance(found, dict):
            words = "\n".join(f"{k}/" if isinstance(v, dict) else k for k, v in sorted(found.items()))
        else:
            return _reply(501, "Cannot retrieve value. The value has an unsupported type.")
        return _reply(200, words, kind="application/json" if as_json else "text/plain")

    def _put(self, path: str, headers: Mapping[str, str]) -> Reply:
        if "x-forwarded-for" in headers:  # a proxy that lets strangers through would do that
            return _reply(400, "Invalid header. Reason: Unsupported header name. Key: X-Forwarded-For")
        if _simple(path) != _TOKEN_PATH:
            return _reply(404, f"Resource not found: {path}.")
        name = next((name for name in _TTL if name in headers), None)
        if name is None:
            words = "Token time to live value not found. Use `X-metadata-token-ttl-seconds` or"
            words += " `X-aws-ec2-metadata-token-ttl-seconds` header to specify the token's lifetime."
            return _reply(400, words)
        text = headers[name]
        if not (text.isascii() and text.isdigit() and len(text) <= 10):
            return _reply(400, f"Invalid header. Reason: Invalid value. Key:{_TTL[name]}; Value:{text}")
        if not 1 <= int(text) <= _TTL_MAX:
            words = f"Invalid time to live value provided for token: {int(text)}. Please provide a value"
            return _reply(400, f"{words} between 1 and {_TTL_MAX}.")
        return _reply(200, self.token(int(text)), headers={_TTL[name]: str(int(text))})


def _reply(
    status: int, body: str, *, kind: str = "text/plain", headers: Mapping[str, str] | None = None
) -> Reply:
    return Reply(status, body.encode("utf-8", "replace"), kind=kind, headers=headers)


def _simple(path: str) -> str:
    while "//" in path:
        path = path.replace("//", "/")
    return path
