"""`nagaya export`: a container's root file system as a tar archive."""

from __future__ import annotations

import os

from nagaya.cli import life
from nagaya.cli.files import write_to
from nagaya.cli.flags import Flag
from nagaya.errors import NagayaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS] CONTAINER"
SUMMARY = "Export a container's root file system as a tar archive"
FLAGS = (Flag("output", "Write to a file, instead of stdout", short="o", kind="text"),)
ARGS = (1, 1)


def run(given: Given, client: Client) -> int:
    """Write the archive. A file is there only when it is whole."""
    if not given["output"] and os.isatty(1):
        raise NagayaError("cowardly refusing to save to a terminal. Use the -o flag or redirect")
    pieces = client.send("GET", life.path(given.args[0]) + "/export").chunks()
    write_to(given["output"], pieces, "failed to export container")
    return 0
