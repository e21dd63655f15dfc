"""`nagaya attach`: join the streams of a running container."""

from __future__ import annotations

from nagaya.cli import life
from nagaya.cli.flags import Flag
from nagaya.cli.output import note
from nagaya.cli.stream import Session, container_session, require_terminal
from nagaya.cli.userconfig import detach_keys
from nagaya.errors import FailedPrecondition

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS] CONTAINER"
SUMMARY = "Attach to a running container's input, output and errors"
FLAGS = (
    Flag("no-stdin", "Do not attach stdin"),
    Flag("sig-proxy", "Pass signals on to the container", default=True),
    Flag("detach-keys", "Keys that detach from the container", kind="text"),
)
ARGS = (1, 1)


def run(given: Given, client: Client) -> int:
    """The container's exit code; 0 when detached."""
    about = client.call("GET", life.path(given.args[0]) + "/json")
    config, state = about["Config"], about["State"]
    if not state.get("Running"):
        raise FailedPrecondition("You cannot attach to a stopped container, start it first")
    if state.get("Paused"):
        raise FailedPrecondition("You cannot attach to a paused container, unpause it first")
    path = life.path(about["Id"])
    stdin = config.get("OpenStdin", False) and not given["no-stdin"]
    require_terminal(config["Tty"], stdin)
    keys = detach_keys(given)
    query = {
        "stream": True,
        "stdin": stdin,
        "stdout": True,
        "stderr": True,
        "detachKeys": keys,
    }
    # begun before attaching, as the container may end while we do
    waiting = client.send("POST", path + "/wait", {"condition": "not-running"})
    streams = client.hijack(path + "/attach", query)
    with Session(config["Tty"], stdin, keys) as session:
        container_session(session, client, path, sig_proxy=given["sig-proxy"], tty=config["Tty"], kill=path)
        detached = session.copy(streams)
    if detached:
        note("read escape sequence")
        return 0
    return life.outcome(waiting.json())
