"""`nagaya logs`: what a container has written."""

from __future__ import annotations

from nagaya.cli import life, values
from nagaya.cli.flags import Flag
from nagaya.cli.stream import show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS] CONTAINER"
SUMMARY = "Fetch the logs of a container"
FLAGS = (
    Flag("details", "Show extra details provided to logs"),
    Flag("follow", "Follow the output", short="f"),
    Flag("since", "From this time, or this long ago (42m), on", kind="text"),
    Flag("tail", "Number of lines from the end, or all", short="n", kind="text", default="all"),
    Flag("timestamps", "Show times", short="t"),
    Flag("until", "Up to this time, or this long ago (42m)", kind="text"),
)
ARGS = (1, 1)


def run(given: Given, client: Client) -> int:
    """Write the logs to stdout and stderr, as the container wrote them."""
    about = client.call("GET", life.path(given.args[0]) + "/json")
    query = {
        "stdout": True,
        "stderr": True,
        "follow": given["follow"],
        "timestamps": given["timestamps"],
        "details": given["details"],
        "tail": given["tail"],
        "since": values.moment("since", given["since"]),
        "until": values.moment("until", given["until"]),
    }
    answer = client.send("GET", life.path(about["Id"]) + "/logs", query)
    show(answer.chunks(), raw=about["Config"]["Tty"])
    return 0
