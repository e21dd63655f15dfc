"""The engine's errors as Docker's HTTP status and messages.

The status follow moby's api/server/httpstatus; the CLI chooses its exit codes 126 and 127 by words
in the message of a failed start (docker/cli, command/container/run.go, toStatusError).
"""

from __future__ import annotations

import errno
import json
import logging

from nagaya.api.http.messages import PayloadTooLarge, RequestTimeout, Response
from nagaya.errors import (
    AlreadyExists,
    CommandNotExecutable,
    CommandNotFound,
    FailedPrecondition,
    InvalidArgument,
    NagayaError,
    NotFound,
    NotModified,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)

log = logging.getLogger(__name__)

_STATUS: tuple[tuple[type[NagayaError], int], ...] = (
    (NotModified, 304),
    (InvalidArgument, 400),
    (CommandNotFound, 400),
    (CommandNotExecutable, 400),
    (Unauthenticated, 401),
    (PermissionDenied, 403),
    (NotFound, 404),
    (AlreadyExists, 409),
    (FailedPrecondition, 409),
    (RequestTimeout, 408),
    (PayloadTooLarge, 413),
    (Unimplemented, 501),
    (Unavailable, 503),
)


def status_of(error: Exception) -> int:
    """The HTTP status of an error; what is not the client's fault is 500."""
    for cls, status in _STATUS:
        if isinstance(error, cls):
            return status
    return 500


def message_of(error: Exception) -> str:
    """The one line the client shows."""
    if not isinstance(error, NagayaError):
        return f"internal error: {type(error).__name__}: {error}"
    text = " ".join(str(error).splitlines())  # names from requests may hold line breaks
    if isinstance(error, CommandNotFound) and not (
        "executable file not found" in text or "no such file or directory" in text
    ):
        return f"{text}: executable file not found in $PATH"
    if isinstance(error, CommandNotExecutable) and not (
        "permission denied" in text or "is a directory" in text
    ):
        return f"{text}: {'is a directory' if error.errno == errno.EISDIR else 'permission denied'}"
    return text


def error_response(error: Exception) -> Response:
    """{"message": ...} with its status. Defects of ours are logged whole, the client gets one line."""
    status = status_of(error)
    if status == 304:
        return Response(304)
    if not isinstance(error, NagayaError):
        log.error("defect while serving a request", exc_info=error)
    return message_response(status, message_of(error))


def message_response(status: int, message: str) -> Response:
    """An error answer of our own making."""
    return Response(status, json.dumps({"message": message}).encode() + b"\n")
