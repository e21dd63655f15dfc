"""`nagaya pull`: bring an image here from a registry."""

from __future__ import annotations

from nagaya.cli import progress
from nagaya.cli.flags import Flag
from nagaya.cli.life import tagged

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS] NAME[:TAG|@DIGEST]"
SUMMARY = "Download an image from a registry"
FLAGS = (
    Flag("platform", "Platform of the image: os/architecture[/variant]", kind="text"),
    Flag("quiet", "Print only the image's name", short="q"),
)
ARGS = (1, 1)


def run(given: Given, client: Client) -> int:
    """Show the progress, and the image's name at the end."""
    name = given.args[0]
    if tagged(name) != name and not given["quiet"]:
        print("Using default tag: latest", flush=True)
    progress.pull(client, name, given["platform"], quiet=given["quiet"])
    print(tagged(name))
    return 0
