"""What `run`, `create`, `start`, `attach` and `exec` have in common: creating with a pull, exit codes."""

from __future__ import annotations

import os

from nagaya.cli import create
from nagaya.cli.flags import UsageError
from nagaya.cli.http import ApiError, Client, quote
from nagaya.cli.output import note
from nagaya.errors import FailedPrecondition, InvalidArgument, NagayaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.cli.flags import Given

_PULL_POLICIES = ("always", "missing", "never")


def path(reference: str) -> str:
    """ "/containers/REFERENCE". A slash in it would name another resource: it is encoded."""
    if not reference:
        raise InvalidArgument("invalid container name or ID: value is empty")
    return "/containers/" + quote(reference.removeprefix("/")).replace("/", "%2F")


def make(client: Client, given: Given, *, detach: bool) -> str:
    """Create a container, pulling its image as --pull says; its id. Raises ApiError, UsageError."""
    if given["pull"] not in _PULL_POLICIES:
        raise UsageError(
            f'invalid pull option: \'{given["pull"]}\': must be one of "always", "missing" or "never"'
        )
    body = create.body(given, detach=detach)
    terminal = _console_size() if given["tty"] else None
    if terminal:
        body["HostConfig"]["ConsoleSize"] = terminal
    query = {"name": given["name"], "platform": given["platform"]}
    cidfile = _reserve(given["cidfile"])
    made: dict[str, Any] | None = None
    try:
        if given["pull"] == "always":
            _pull(client, given)
        try:
            made = client.call("POST", "/containers/create", query, body)
        except ApiError as error:
            missing = error.status == 404 and "no such image" in error.message.lower()
            if not missing or given["pull"] != "missing":
                raise
            if not given["quiet"]:
                note(f"Unable to find image '{tagged(given.args[0])}' locally")
            _pull(client, given)
            made = client.call("POST", "/containers/create", query, body)
    finally:
        if cidfile >= 0:
            os.write(cidfile, str(made["Id"]).encode() if made else b"")
            os.close(cidfile)
            if not made:
                os.unlink(given["cidfile"])
    for warning in made.get("Warnings") or ():
        note(f"WARNING: {warning}")
    return str(made["Id"])


def tagged(reference: str) -> str:
    """The reference with ":latest" when it has neither tag nor digest."""
    plain = "@" in reference or ":" in reference.rpartition("/")[2]
    return reference if plain else reference + ":latest"


def _console_size() -> list[int] | None:
    from nagaya.cli.stream import size

    found = size()
    return list(found) if found else None


def _reserve(name: str) -> int:
    if not name:
        return -1
    try:
        return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        raise FailedPrecondition(
            f"container ID file found, make sure the other container isn't running or delete {name}"
        ) from None
    except OSError as error:
        raise InvalidArgument(f"failed to create the container ID file: {name}: {error.strerror}") from None


def _pull(client: Client, given: Given) -> None:
    from nagaya.cli.progress import pull

    pull(client, given.args[0], given["platform"], quiet=given["quiet"], fd=2)


def start_status(error: NagayaError) -> int:
    """docker's exit code for a failed start: 127 not found, 126 not executable, else 125."""
    text = str(error).lower()
    if "executable file not found" in text or "no such file or directory" in text:
        return 127
    if "permission denied" in text or "is a directory" in text:
        return 126
    return 125


def outcome(answer: Any) -> int:
    """The exit code in a wait's answer; an error of the wait itself is said and becomes 125."""
    if not isinstance(answer, dict):
        raise InvalidArgument("the daemon closed the connection before the container ended")
    error = answer.get("Error") or {}
    if error.get("Message"):
        note(f"error waiting for container: {error['Message']}")
        return 125
    return int(answer.get("StatusCode", 125))


def is_missing(error: NagayaError) -> bool:
    """Did the daemon say that there is no such object?"""
    return isinstance(error, ApiError) and error.status == 404


def each(references: list[str], action: Any, *, lenient: bool = False) -> int:
    """Do action(reference) for all, print each one done; errors are said and make the exit code 1.
    lenient: what is not there is said, and is no failure (`rm -f`)."""
    status = 0
    for reference in references:
        try:
            action(reference)
        except NagayaError as error:
            note(str(error))
            status = status if lenient and is_missing(error) else 1
        else:
            print(reference, flush=True)
    return status
