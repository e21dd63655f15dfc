"""`nagaya run`: create a container from an image, attach to it, start it, and end as it ends."""

from __future__ import annotations

from nagaya.cli import life
from nagaya.cli.create import CREATE_FLAGS
from nagaya.cli.flags import Flag
from nagaya.cli.output import note
from nagaya.cli.stream import Session, container_session, keys, require_terminal
from nagaya.cli.userconfig import detach_keys
from nagaya.errors import NagayaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS] IMAGE [COMMAND] [ARG...]"
SUMMARY = "Create and run a new container from an image"
FLAGS = (
    *CREATE_FLAGS,
    Flag("detach", "Run the container in the background and print its id", short="d"),
    Flag("detach-keys", "Keys that detach from the container", kind="text"),
    Flag("sig-proxy", "Pass signals on to the container", default=True),
)
ARGS = (1, None)
INTERSPERSED = False
CREATES = "and runs"


def run(given: Given, client: Client) -> int:
    """The container's exit code; 125, 126 or 127 when it did not come to life."""
    if given["detach"]:
        reference = life.make(client, given, detach=True)
        print(reference, flush=True)  # it is there, also when it does not start
        try:
            client.call("POST", life.path(reference) + "/start")
        except NagayaError as error:
            note(f"nagaya: {error}")
            return life.start_status(error)
        return 0
    attach = {word.lower() for word in given["attach"]} or {"stdout", "stderr", "stdin"}
    stdin = given["interactive"] and "stdin" in attach
    try:
        require_terminal(given["tty"], stdin)
    except NagayaError as error:  # docker's 1: it was no daemon that refused
        note(str(error))
        return 1
    chosen = detach_keys(given)
    keys(chosen)
    reference = life.make(client, given, detach=False)
    path = life.path(reference)
    query = {
        "stream": True,
        "stdin": stdin,
        "stdout": "stdout" in attach,
        "stderr": "stderr" in attach,
        "detachKeys": chosen,
    }
    streams = client.hijack(path + "/attach", query)
    # registered before the start: a short container may be gone before a later wait
    condition = "removed" if given["rm"] else "next-exit"
    waiting = client.send("POST", path + "/wait", {"condition": condition})
    with Session(given["tty"], stdin, chosen) as session:
        if given["sig-proxy"] and not given["tty"]:
            container_session(session, client, path, sig_proxy=True, tty=False, kill=path)
        try:
            client.call("POST", path + "/start")
        except NagayaError as error:
            note(f"nagaya: {error}")
            if given["rm"]:
                waiting.read()  # its removal: the name is free when we return
            return life.start_status(error)
        if given["tty"]:
            container_session(session, client, path, sig_proxy=False, tty=True)
        if session.copy(streams):
            return 0
        return life.outcome(waiting.json())
