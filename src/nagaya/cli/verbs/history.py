"""`nagaya history`: how an image was made, layer by layer."""

from __future__ import annotations

from nagaya.cli.flags import Flag
from nagaya.cli.http import quote
from nagaya.cli.output import ago, ellipsis, human_size, rfc3339, rows, short_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS] IMAGE"
SUMMARY = "Show the history of an image"
FLAGS = (
    Flag("format", "table, json, or a Go template", kind="text"),
    Flag("human", "Sizes and dates for people", short="H", default=True),
    Flag("no-trunc", "Do not shorten"),
    Flag("quiet", "Show ids only", short="q"),
)
ARGS = (1, 1)

_COLUMNS = (
    ("ID", "IMAGE"),
    ("CreatedSince", "CREATED"),
    ("CreatedBy", "CREATED BY"),
    ("Size", "SIZE"),
    ("Comment", "COMMENT"),
)


def run(given: Given, client: Client) -> int:
    """Print one line a step, the newest first."""
    found = []
    full, people = given["no-trunc"], given["human"]
    for item in client.call("GET", f"/images/{quote(given.args[0])}/history"):
        image, by = item.get("Id") or "<missing>", (item.get("CreatedBy") or "").replace("\t", " ")
        created = item.get("Created", 0)
        found.append(
            {
                "ID": image if full or image == "<missing>" else short_id(image),
                "CreatedAt": rfc3339(created),
                "CreatedSince": _age(created) if people else rfc3339(created),
                "CreatedBy": by if full else ellipsis(by, 45),
                "Size": human_size(item.get("Size", 0)) if people else str(item.get("Size", 0)),
                "Comment": item.get("Comment") or "",
            }
        )
    if given["quiet"]:
        for row in found:
            print(row["ID"])
        return 0
    columns = tuple((f, "CREATED AT" if f == "CreatedSince" and not people else h) for f, h in _COLUMNS)
    rows(found, columns, given["format"], {"CreatedAt": "CREATED AT"})
    return 0


def _age(created: int) -> str:
    """How long ago; of a step that tells no time, as reproducible builds make them, N/A."""
    return ago(created) if created > 0 else "N/A"
