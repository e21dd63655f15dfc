"""`nagaya load`: images out of an archive that `save` or another tool made."""

from __future__ import annotations

import os

from nagaya.cli import progress
from nagaya.cli.files import read_from
from nagaya.cli.flags import Flag
from nagaya.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS]"
SUMMARY = "Load images from a tar archive or stdin"
FLAGS = (
    Flag("input", "Read from a tar archive file, instead of stdin", short="i", kind="text"),
    Flag("quiet", "Suppress the load output", short="q"),
)
ARGS = (0, 0)


def run(given: Given, client: Client) -> int:
    """Send the archive, and print which images came of it."""
    if not given["input"] and os.isatty(0):
        raise InvalidArgument("requested load from stdin, but stdin is empty")
    quiet = given["quiet"] or not os.isatty(1)
    answer = client.send("POST", "/images/load", {"quiet": quiet}, upload=read_from(given["input"]))
    progress.show(answer.objects())
    return 0
