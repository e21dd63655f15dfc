"""`nagaya explain`: how a container came to life, step by step, drawn as a timeline."""

from __future__ import annotations

import os
import sys

from nagaya.cli import life, timeline
from nagaya.cli.flags import Flag
from nagaya.linux import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS] CONTAINER"
SUMMARY = "Show how a container came to life, step by step"
FLAGS = (
    Flag("json", "Print the steps as JSON"),
    Flag("format", "json, the same as --json", kind="text"),
)
ARGS = (1, 1)


def run(given: Given, client: Client) -> int:
    """Print the timeline, as wide as the terminal."""
    path = life.path(given.args[0]).removeprefix("/")
    answer = client.call("GET", f"/nagaya/{path}/steps")
    if given["json"] or given["format"] == "json":
        print(json.dumps_indented(answer))
        return 0
    terminal = os.isatty(1)
    width = os.get_terminal_size().columns if terminal else 100
    color = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    sys.stdout.write(timeline.draw(answer["Steps"], width or 100, color=color))
    return 0
