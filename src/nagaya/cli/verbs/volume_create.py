"""`nagaya volume create`: a volume, or what there is of that name."""

from __future__ import annotations

from nagaya.cli.flags import Flag, UsageError
from nagaya.cli.values import pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS] [VOLUME]"
SUMMARY = "Create a volume"
FLAGS = (
    Flag("driver", "Volume driver: local", short="d", kind="text", default="local"),
    Flag("label", "Metadata: KEY=VALUE", kind="list"),
    Flag("name", "Volume name", kind="text"),
    Flag("opt", "What to mount there: type=tmpfs|nfs|none..., device=..., o=...", short="o", kind="list"),
)
ARGS = (0, 1)


def run(given: Given, client: Client) -> int:
    """Print its name."""
    if given["name"] and given.args:
        raise UsageError("conflicting options: cannot specify a volume-name through both --name and as arg")
    body = {
        "Name": given.args[0] if given.args else given["name"],
        "Driver": given["driver"],
        "DriverOpts": pairs(given["opt"]),
        "Labels": pairs(given["label"]),
    }
    print(client.call("POST", "/volumes/create", {}, body)["Name"])
    return 0
