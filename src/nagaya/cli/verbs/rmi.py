"""`nagaya rmi`: take names from images, and remove those that have none left."""

from __future__ import annotations

from nagaya.cli import life
from nagaya.cli.flags import Flag
from nagaya.cli.http import quote
from nagaya.cli.output import note
from nagaya.errors import NagayaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS] IMAGE [IMAGE...]"
SUMMARY = "Remove images"
FLAGS = (
    Flag("force", "Remove it even when it has several names", short="f"),
    Flag("no-prune", "Keep its parents"),
)
ARGS = (1, None)


def run(given: Given, client: Client) -> int:
    """Print what was untagged and deleted."""
    status = 0
    query = {"force": given["force"], "noprune": given["no-prune"]}
    for name in given.args:
        try:
            for change in client.call("DELETE", f"/images/{quote(name)}", query) or ():
                for what, which in change.items():
                    print(f"{what}: {which}", flush=True)
        except NagayaError as error:
            note(str(error))
            status = status if given["force"] and life.is_missing(error) else 1
    return status
