"""`nagaya push`: an image to a registry."""

from __future__ import annotations

from nagaya.cli import progress
from nagaya.cli.auth import registry_auth
from nagaya.cli.flags import Flag, UsageError
from nagaya.cli.http import quote
from nagaya.cli.life import tagged

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS] NAME[:TAG]"
SUMMARY = "Upload an image to a registry"
FLAGS = (
    Flag("all-tags", "Push all tags of the repository", short="a"),
    Flag("quiet", "Print only the image's name", short="q"),
)
ARGS = (1, 1)


def run(given: Given, client: Client) -> int:
    """Show the progress."""
    name, everything = given.args[0], given["all-tags"]
    if everything and tagged(name) == name:
        raise UsageError("tag can't be used with --all-tags/-a")
    if tagged(name) != name and not everything and not given["quiet"]:
        print("Using default tag: latest", flush=True)
    repository, tag = (name, "") if everything else progress.split(name)
    headers = {"X-Registry-Auth": registry_auth(repository)}
    answer = client.send("POST", f"/images/{quote(repository)}/push", {"tag": tag}, headers=headers)
    progress.show(answer.objects(), quiet=given["quiet"])
    if given["quiet"]:
        print(name if everything else tagged(name))
    return 0
