"""`nagaya tag`: give an image another name."""

from __future__ import annotations

from nagaya.cli.http import quote
from nagaya.cli.progress import split

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Flag, Given
    from nagaya.cli.http import Client

USAGE = "SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]"
SUMMARY = "Give an image another name"
FLAGS: tuple[Flag, ...] = ()
ARGS = (2, 2)


def run(given: Given, client: Client) -> int:
    """Nothing is printed."""
    source, wanted = given.args
    name, tag = split(wanted)
    client.call("POST", f"/images/{quote(source)}/tag", {"repo": name, "tag": tag})
    return 0
