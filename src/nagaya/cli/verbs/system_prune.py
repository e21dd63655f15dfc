"""`nagaya system prune`: remove what nothing needs, of all kinds."""

from __future__ import annotations

from nagaya.cli.flags import Flag
from nagaya.cli.output import confirmed, filters, human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS]"
SUMMARY = "Remove unused data"
FLAGS = (
    Flag("all", "Remove all unused images, not just dangling ones", short="a"),
    Flag("filter", "Only those that match: until=24h, label=KEY[=VALUE], label!=KEY[=VALUE]", kind="list"),
    Flag("force", "Do not ask", short="f"),
    Flag("volumes", "Remove anonymous volumes, too"),
)
ARGS = (0, 0)


def run(given: Given, client: Client) -> int:
    """Print what has gone, kind by kind."""
    images = (
        "all images without at least one container associated to them"
        if given["all"]
        else "all dangling images"
    )
    volumes = ["all anonymous volumes not used by at least one container"] if given["volumes"] else []
    kinds = [
        "all stopped containers",
        "all networks not used by at least one container",
        *volumes,
        images,
        "unused build cache",
    ]
    warning = "WARNING! This will remove:\n" + "".join(f"  - {kind}\n" for kind in kinds)
    if not given["force"] and not confirmed(warning):
        return 0
    freed = 0

    def prune(path: str, what: str, field: str, words: list[str]) -> None:
        nonlocal freed
        found: dict[str, Any] = client.call("POST", path, {"filters": filters(words)})
        gone = [
            f"{kind.lower()}: {name}" if kind else name
            for item in found[field] or ()
            for kind, name in (item.items() if isinstance(item, dict) else (("", item),))
        ]
        if gone:
            print(f"Deleted {what}:", *gone, "", sep="\n")
        freed += found.get("SpaceReclaimed", 0)

    common = given["filter"]
    prune("/containers/prune", "Containers", "ContainersDeleted", common)
    prune("/networks/prune", "Networks", "NetworksDeleted", common)
    if given["volumes"]:
        prune("/volumes/prune", "Volumes", "VolumesDeleted", [w for w in common if not w.startswith("until")])
    dangling = f"dangling={'false' if given['all'] else 'true'}"
    prune("/images/prune", "Images", "ImagesDeleted", [*common, dangling])
    prune("/build/prune", "build cache objects", "CachesDeleted", common)
    print(f"Total reclaimed space: {human_size(freed)}")
    return 0
