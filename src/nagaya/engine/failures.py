"""Why a start failed: exit code and message as dockerd gives them, which clients match on (pure).

The docker CLI maps "executable file not found" and "no such file or directory" to exit code 127,
"permission denied" and "is a directory" to 126; dockerd answers 400 for those.
"""

from __future__ import annotations

from typing import NamedTuple

from nagaya.errors import CommandNotExecutable, CommandNotFound, NagayaError

_CREATE = (
    "failed to create task for container: failed to create shim task: OCI runtime create failed: "
    "runc create failed: unable to start container process: "
)
_EXEC = "OCI runtime exec failed: exec failed: unable to start container process: "
NOT_STARTED = 128


class Failure(NamedTuple):
    """exit_code and message go to the container's state, error to the client."""

    exit_code: int
    message: str
    error: Exception


def _text(error: NagayaError, command: str) -> str:
    text = error.message
    if isinstance(error, CommandNotFound | CommandNotExecutable) and not text.startswith("exec:"):
        text = f'exec: "{error.subject or command}": {text}'
    return text


def _classify(error: Exception, prefix: str, command: str, other: int) -> Failure:
    if isinstance(error, CommandNotFound | CommandNotExecutable):
        message = f"{prefix}{_text(error, command)}: unknown"
        code = 127 if isinstance(error, CommandNotFound) else 126
        return Failure(code, message, type(error)(message, subject=error.subject, errno=error.errno))
    return Failure(other, str(error), error)


def start_failure(error: Exception, command: str) -> Failure:
    """Of `POST /containers/{id}/start`."""
    return _classify(error, _CREATE, command, NOT_STARTED)


def exec_failure(error: Exception, command: str) -> Failure:
    """Of `POST /exec/{id}/start`."""
    return _classify(error, _EXEC, command, 126)
