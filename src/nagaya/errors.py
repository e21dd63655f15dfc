"""The error classes that every room raises.

They are typed at the bottom (class, subject, step, errno) and translated only at the edges:
`api/docker` to HTTP status, `runtime.verbs` to runc's messages and exit codes. The names follow
the canonical gRPC codes, as containerd's errdefs do, so that both APIs have one table each.

This module is imported by the low-level runtime: it imports nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


class NagayaError(Exception):
    """Base of all errors that a user may see.

    message: one line a person can act on. subject: the thing it is about (a path, an id, a field
    such as "linux.resources.memory.limit"). step: what was being done ("mount /proc").
    errno: the kernel's error number, 0 when it was not the kernel.
    """

    code = "internal"

    def __init__(self, message: str, *, subject: str = "", step: str = "", errno: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.subject = subject
        self.step = step
        self.errno = errno

    def __str__(self) -> str:
        return f"{self.step}: {self.message}" if self.step else self.message

    def to_wire(self) -> dict[str, object]:
        """The error as plain data, for the messages of `wire` (inverse of `from_wire`)."""
        return {
            "code": self.code,
            "message": self.message,
            "subject": self.subject,
            "step": self.step,
            "errno": self.errno,
        }


class InternalError(NagayaError):
    """A defect of ours, or a state that should be impossible."""


class InvalidArgument(NagayaError):
    """The request is wrong whatever the state of the system (HTTP 400)."""

    code = "invalid_argument"


class NotFound(NagayaError):
    """The named thing does not exist (HTTP 404)."""

    code = "not_found"


class AlreadyExists(NagayaError):
    """The name or id is taken (HTTP 409)."""

    code = "already_exists"


class FailedPrecondition(NagayaError):
    """The thing is in a state that forbids the request (HTTP 409)."""

    code = "failed_precondition"


class NotModified(NagayaError):
    """The thing already is as the request wants it (HTTP 304)."""

    code = "not_modified"


class PermissionDenied(NagayaError):
    """The caller, or we, may not do that (HTTP 403)."""

    code = "permission_denied"


class Unauthenticated(NagayaError):
    """A registry refused our credentials, or wants some (HTTP 401)."""

    code = "unauthenticated"


class ResourceExhausted(NagayaError):
    """A bound was hit: disk, memory, size of an input, addresses."""

    code = "resource_exhausted"


class Unavailable(NagayaError):
    """A peer (registry, supervisor) cannot be reached now; a retry may help (HTTP 503)."""

    code = "unavailable"


class DeadlineExceeded(NagayaError):
    """A step took longer than its bound."""

    code = "deadline_exceeded"


class Cancelled(NagayaError):
    """The caller went away."""

    code = "cancelled"


class DataLoss(NagayaError):
    """Content does not match its digest or size."""

    code = "data_loss"


class Unimplemented(NagayaError):
    """Known, and not offered (HTTP 501)."""

    code = "unimplemented"


class CommandNotFound(NagayaError):
    """The container's executable does not exist: exit code 127."""

    code = "command_not_found"


class CommandNotExecutable(NagayaError):
    """The container's executable cannot be executed: exit code 126."""

    code = "command_not_executable"


class KernelError(NagayaError):
    """A system call failed. `step` names it with its object, `errno` says why."""

    code = "kernel"


_BY_CODE: dict[str, type[NagayaError]] = {
    c.code: c
    for c in (
        InternalError,
        InvalidArgument,
        NotFound,
        AlreadyExists,
        FailedPrecondition,
        NotModified,
        PermissionDenied,
        Unauthenticated,
        ResourceExhausted,
        Unavailable,
        DeadlineExceeded,
        Cancelled,
        DataLoss,
        Unimplemented,
        CommandNotFound,
        CommandNotExecutable,
        KernelError,
    )
}


def from_wire(data: Mapping[str, object]) -> NagayaError:
    """Rebuild an error from `to_wire`'s data. An unknown code becomes InternalError."""
    cls = _BY_CODE.get(str(data.get("code")), InternalError)
    number = data.get("errno")
    return cls(
        str(data.get("message", "")),
        subject=str(data.get("subject", "")),
        step=str(data.get("step", "")),
        errno=number if isinstance(number, int) else 0,
    )
