"""`nagaya import`: an image out of an archive of files."""

from __future__ import annotations

from nagaya.cli import progress
from nagaya.cli.files import read_from
from nagaya.cli.flags import Flag
from nagaya.cli.http import named

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS] file|URL|- [REPOSITORY[:TAG]]"
SUMMARY = "Import the contents from a tarball to create a filesystem image"
FLAGS = (
    Flag("change", "Apply Dockerfile instruction to the created image", short="c", kind="list"),
    Flag("message", "Set commit message for imported image", short="m", kind="text"),
    Flag("platform", "Platform of the image: os/architecture[/variant]", kind="text"),
)
ARGS = (1, 2)


def run(given: Given, client: Client) -> int:
    """Print the image's id."""
    source = given.args[0]
    remote = source.startswith(("http://", "https://"))  # the daemon fetches it
    repository, tag = progress.split(given.args[1]) if len(given.args) > 1 else ("", "")
    query = {
        "fromSrc": source if remote else "-",
        "repo": repository,
        "tag": tag,
        "message": given["message"],
        "platform": given["platform"],
    }
    path = named("/images/create", query, "changes", given["change"])
    progress.show(client.send("POST", path, upload=None if remote else read_from(source)).objects())
    return 0
