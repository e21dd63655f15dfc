"""Between protobuf and the engine: messages to structs and back by their field names, errors to codes.

The engine's structs (engine/pods_model.py) have the interface's own names, so nothing is copied by hand:
what a kubelet gave comes back as it was.
"""

from __future__ import annotations

import logging
from typing import Any, TypeVar

import msgspec
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from grpclib import GRPCError, Status

from nagaya.errors import (
    AlreadyExists,
    Cancelled,
    CommandNotExecutable,
    CommandNotFound,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NagayaError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)

log = logging.getLogger(__name__)

S = TypeVar("S", bound=msgspec.Struct)
M = TypeVar("M", bound=Message)

_CODES: tuple[tuple[type[NagayaError], Status], ...] = (
    (InvalidArgument, Status.INVALID_ARGUMENT),
    (NotFound, Status.NOT_FOUND),
    (AlreadyExists, Status.ALREADY_EXISTS),
    (FailedPrecondition, Status.FAILED_PRECONDITION),
    (PermissionDenied, Status.PERMISSION_DENIED),
    (Unauthenticated, Status.UNAUTHENTICATED),
    (ResourceExhausted, Status.RESOURCE_EXHAUSTED),
    (Unavailable, Status.UNAVAILABLE),
    (DeadlineExceeded, Status.DEADLINE_EXCEEDED),
    (Cancelled, Status.CANCELLED),
    (DataLoss, Status.DATA_LOSS),
    (Unimplemented, Status.UNIMPLEMENTED),
    (CommandNotFound, Status.UNKNOWN),
    (CommandNotExecutable, Status.UNKNOWN),
)


def struct(message: Message, kind: type[S], field: str) -> S:
    """The struct that a message is; field: its name in the request, for the error. Raises
    InvalidArgument (a number that no enum has)."""
    document = MessageToDict(message, preserving_proto_field_name=True)
    document.pop("windows", None)
    try:
        return msgspec.convert(document, kind, strict=False)
    except msgspec.ValidationError as error:
        why, _, place = str(error).replace("`", "").partition(" - at $")
        where = f"{field}{place}"
        raise InvalidArgument(f"{where}: {why[:1].lower()}{why[1:]}", subject=where) from None


def fill(message: M, value: msgspec.Struct | dict[str, Any]) -> M:
    """Set a message's fields from a struct of the same names; returns it."""
    document = value if isinstance(value, dict) else msgspec.to_builtins(value, str_keys=True)
    ParseDict(document, message, ignore_unknown_fields=True)
    return message


def failure(error: Exception) -> GRPCError:
    """The error as gRPC tells it, the field at fault in front. A defect of ours is logged whole."""
    if not isinstance(error, NagayaError):
        log.error("defect while serving a request", exc_info=error)
        return GRPCError(Status.INTERNAL, f"internal error: {type(error).__name__}: {error}"[:4096])
    code = next((status for cls, status in _CODES if isinstance(error, cls)), Status.INTERNAL)
    text = " ".join(str(error).splitlines())
    if error.subject and error.subject not in text:
        text = f"{error.subject}: {text}"
    return GRPCError(code, text[:4096])
