"""`nagaya rm`: remove containers."""

from __future__ import annotations

from nagaya.cli import life
from nagaya.cli.flags import Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS] CONTAINER [CONTAINER...]"
SUMMARY = "Remove containers"
FLAGS = (
    Flag("force", "Kill it first when it runs", short="f"),
    Flag("link", "Remove the link, not the container", short="l"),
    Flag("volumes", "Remove its anonymous volumes", short="v"),
)
ARGS = (1, None)


def run(given: Given, client: Client) -> int:
    """Print each name once it is done."""
    query = {"force": given["force"], "v": given["volumes"], "link": given["link"]}
    return life.each(
        given.args, lambda name: client.call("DELETE", life.path(name), query), lenient=given["force"]
    )
