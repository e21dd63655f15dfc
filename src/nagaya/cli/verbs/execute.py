"""`nagaya exec`: run another command in a running container. (The module cannot be named as the verb.)"""

from __future__ import annotations

from nagaya.cli import life, values
from nagaya.cli.flags import Flag
from nagaya.cli.http import ApiError, quote
from nagaya.cli.output import note
from nagaya.cli.stream import Session, container_session, require_terminal, size
from nagaya.cli.userconfig import detach_keys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS] CONTAINER COMMAND [ARG...]"
SUMMARY = "Execute a command in a running container"
FLAGS = (
    Flag("detach", "Run the command in the background", short="d"),
    Flag("detach-keys", "Keys that detach from the command", kind="text"),
    Flag("env", "Set a variable", short="e", kind="list"),
    Flag("env-file", "Read variables from a file", kind="list"),
    Flag("interactive", "Keep stdin open", short="i"),
    Flag("privileged", "Give the command all capabilities that we have"),
    Flag("tty", "Give the command a terminal", short="t"),
    Flag("user", "User name or id (format: NAME|UID[:GROUP|GID])", short="u", kind="text"),
    Flag("workdir", "Working directory in the container", short="w", kind="text"),
)
ARGS = (2, None)
INTERSPERSED = False


def body(given: Given) -> dict[str, Any]:
    """The JSON of POST /containers/{id}/exec."""
    attach = not given["detach"]
    found: dict[str, Any] = {
        "Cmd": given.args[1:],
        "User": given["user"],
        "Privileged": given["privileged"],
        "Tty": given["tty"],
        "Detach": given["detach"],
        "AttachStdin": attach and given["interactive"],
        "AttachStdout": attach,
        "AttachStderr": attach,
        "DetachKeys": detach_keys(given),
        "Env": values.variables(given["env"], given["env-file"]) or None,
        "WorkingDir": given["workdir"],
    }
    return {key: value for key, value in found.items() if value not in (None, "", False)}


def run(given: Given, client: Client) -> int:
    """The command's exit code."""
    stdin = given["interactive"] and not given["detach"]
    require_terminal(given["tty"], stdin)
    request = body(given)
    console: dict[str, Any] = {}
    window = size() if given["tty"] else None
    if window:
        console = {"ConsoleSize": list(window)}
    identity = client.call("POST", life.path(given.args[0]) + "/exec", body=request | console)["Id"]
    path = "/exec/" + quote(identity)
    start = {"Detach": given["detach"], "Tty": given["tty"], **console}
    try:
        if given["detach"]:
            client.call("POST", path + "/start", body=start)
            return 0
        streams = client.hijack(path + "/start", body=start)
    except ApiError as error:
        note(str(error))
        status = life.start_status(error)
        return 1 if status == 125 else status
    with Session(given["tty"], stdin, request.get("DetachKeys", "")) as session:
        container_session(session, client, path, sig_proxy=False, tty=given["tty"])
        detached = session.copy(streams)
    if detached:
        note("read escape sequence")
        return 1
    return int(client.call("GET", path + "/json").get("ExitCode") or 0)
