"""`nagaya start`: start stopped containers, with -a or -i attached to one."""

from __future__ import annotations

from nagaya.cli import life
from nagaya.cli.flags import Flag, UsageError
from nagaya.cli.output import note
from nagaya.cli.stream import Session, container_session, require_terminal
from nagaya.cli.userconfig import detach_keys
from nagaya.errors import NagayaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS] CONTAINER [CONTAINER...]"
SUMMARY = "Start stopped containers"
FLAGS = (
    Flag("attach", "Attach to its output, and pass signals on", short="a"),
    Flag("interactive", "Attach to its stdin", short="i"),
    Flag("detach-keys", "Keys that detach from the container", kind="text"),
)
ARGS = (1, None)


def run(given: Given, client: Client) -> int:
    """0, or attached: the container's exit code."""
    if not (given["attach"] or given["interactive"]):
        return life.each(given.args, lambda name: client.call("POST", life.path(name) + "/start"))
    if len(given.args) > 1:
        raise UsageError("you cannot start and attach multiple containers at once")
    path = life.path(given.args[0])
    about = client.call("GET", path + "/json")
    config = about["Config"]
    path = life.path(about["Id"])
    stdin = given["interactive"] and config.get("OpenStdin", False)
    require_terminal(config["Tty"], stdin)
    keys = detach_keys(given)
    query = {
        "stream": True,
        "stdin": stdin,
        "stdout": True,
        "stderr": True,
        "detachKeys": keys,
    }
    streams = client.hijack(path + "/attach", query)
    condition = "removed" if about["HostConfig"].get("AutoRemove") else "next-exit"
    waiting = client.send("POST", path + "/wait", {"condition": condition})
    with Session(config["Tty"], stdin, keys) as session:
        if not config["Tty"]:
            container_session(session, client, path, sig_proxy=True, tty=False, kill=path)
        try:
            client.call("POST", path + "/start")
        except NagayaError as error:
            note(str(error))
            return 1
        if config["Tty"]:
            container_session(session, client, path, sig_proxy=False, tty=True)
        return 0 if session.copy(streams) else life.outcome(waiting.json())
