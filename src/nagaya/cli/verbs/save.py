"""`nagaya save`: images as one archive, to a file or to stdout."""

from __future__ import annotations

import os

from nagaya.cli.files import write_to
from nagaya.cli.flags import Flag
from nagaya.cli.http import named
from nagaya.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS] IMAGE [IMAGE...]"
SUMMARY = "Save one or more images to a tar archive (streamed to stdout by default)"
FLAGS = (Flag("output", "Write to a file, instead of stdout", short="o", kind="text"),)
ARGS = (1, None)


def run(given: Given, client: Client) -> int:
    """Write the archive; a file that was not written to its end is not left behind."""
    if not given["output"] and os.isatty(1):
        raise InvalidArgument("cowardly refusing to save to a terminal. Use the -o flag or redirect")
    path = named("/images/get", {}, "names", given.args)
    write_to(given["output"], client.send("GET", path).chunks())
    return 0
