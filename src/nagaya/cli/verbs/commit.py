"""`nagaya commit`: an image of what a container has become."""

from __future__ import annotations

from nagaya.cli import progress
from nagaya.cli.flags import Flag
from nagaya.cli.http import named

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS] CONTAINER [REPOSITORY[:TAG]]"
SUMMARY = "Create a new image from a container's changes"
FLAGS = (
    Flag("author", "Author of the image", short="a", kind="text"),
    Flag("change", "Apply Dockerfile instruction to the created image", short="c", kind="list"),
    Flag("message", "Commit message", short="m", kind="text"),
    Flag("pause", "Pause container during commit", short="p", default=True),
)
ARGS = (1, 2)


def run(given: Given, client: Client) -> int:
    """Print the image's id."""
    repository, tag = progress.split(given.args[1]) if len(given.args) > 1 else ("", "")
    query = {
        "container": given.args[0],
        "repo": repository,
        "tag": tag,
        "author": given["author"],
        "comment": given["message"],
        "pause": "1" if given["pause"] else "0",
    }
    print(client.call("POST", named("/commit", query, "changes", given["change"]))["Id"])
    return 0
