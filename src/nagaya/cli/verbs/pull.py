"""`nagaya pull`: bring an image here from a registry."""

from __future__ import annotations

from nagaya.cli import progress
from nagaya.cli.flags import Flag, UsageError
from nagaya.cli.life import tagged

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS] NAME[:TAG|@DIGEST]"
SUMMARY = "Download an image from a registry"
FLAGS = (
    Flag("all-tags", "Download all tags of the repository", short="a"),
    Flag("platform", "Platform of the image: os/architecture[/variant]", kind="text"),
    Flag("quiet", "Print only the image's name", short="q"),
)
ARGS = (1, 1)


def run(given: Given, client: Client) -> int:
    """Show the progress, and the image's name at the end."""
    name, everything = given.args[0], given["all-tags"]
    if everything and tagged(name) == name:
        raise UsageError("tag can't be used with --all-tags/-a")
    if tagged(name) != name and not everything and not given["quiet"]:
        print("Using default tag: latest", flush=True)
    progress.pull(client, name, given["platform"], quiet=given["quiet"], all_tags=everything)
    print(name if everything else tagged(name))
    return 0
