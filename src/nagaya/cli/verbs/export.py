"""`nagaya export`: a container's root file system as a tar archive."""

from __future__ import annotations

import os

from nagaya.cli import life
from nagaya.cli.flags import Flag
from nagaya.cli.output import write
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
    name = given["output"]
    if not name:
        if os.isatty(1):
            raise NagayaError("cowardly refusing to save to a terminal. Use the -o flag or redirect")
        for data in client.send("GET", life.path(given.args[0]) + "/export").chunks():
            write(data)
        return 0
    answer = client.send("GET", life.path(given.args[0]) + "/export")
    part = f"{name}.{os.getpid()}.part"
    try:
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise NagayaError(f"failed to export container: {name}: {os.strerror(error.errno or 0)}") from None
    try:
        for data in answer.chunks():
            write(data, fd)
        os.rename(part, name)
    except BaseException:
        os.unlink(part)
        raise
    finally:
        os.close(fd)
    return 0
