"""`nagaya images`: the images that are here."""

from __future__ import annotations

from nagaya.cli.flags import Flag, UsageError
from nagaya.cli.output import ago, filters, human_size, local_time, rows, short_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS] [REPOSITORY[:TAG]]"
SUMMARY = "List images"
FLAGS = (
    Flag("all", "Show all images", short="a"),
    Flag("digests", "Show digests"),
    Flag("filter", "Show those that match: reference=busybox, dangling=true", short="f", kind="list"),
    Flag("format", "table, json, or a Go template", kind="text"),
    Flag("no-trunc", "Do not shorten"),
    Flag("quiet", "Show ids only", short="q"),
    Flag("tree", "Draw the layers that images are made of, and share"),
)
ARGS = (0, 1)

_OTHERS = {"CreatedAt": "CREATED AT", "Digest": "DIGEST"}


def run(given: Given, client: Client) -> int:
    """Print one line a name of an image."""
    if given["tree"]:
        return _tree(given, client)
    words = list(given["filter"])
    if given.args:
        if any(word.startswith("reference=") for word in words):
            raise UsageError("give the repository as an argument or as a filter, not both")
        words.append(f"reference={given.args[0]}")
    images = client.call("GET", "/images/json", {"all": given["all"], "filters": filters(words)})
    found = [row for image in images for row in fields(image, given)]
    if given["quiet"]:
        for image in dict.fromkeys(item["ID"] for item in found):
            print(image)
        return 0
    digest = (("Digest", "DIGEST"),) if given["digests"] else ()
    columns = (
        ("Repository", "REPOSITORY"),
        ("Tag", "TAG"),
        *digest,
        ("ID", "IMAGE ID"),
        ("CreatedSince", "CREATED"),
        ("Size", "SIZE"),
    )
    rows(found, columns, given["format"], _OTHERS)
    return 0


def _tree(given: Given, client: Client) -> int:
    from nagaya.cli.layers import draw

    if given.args or given["filter"] or given["format"] or given["quiet"]:
        raise UsageError("--tree shows all images, and takes no other flag than --no-trunc")
    print(*draw(client.call("GET", "/nagaya/images/layers"), full=given["no-trunc"]), sep="\n")
    return 0


def fields(image: Mapping[str, Any], given: Given) -> Iterator[dict[str, Any]]:
    """The fields of one image for each of its names, under docker's names."""
    digests = dict(name.rsplit("@", 1) for name in image.get("RepoDigests") or () if "@" in name)
    names = [tuple(name.rsplit(":", 1)) for name in image.get("RepoTags") or () if name != "<none>:<none>"]
    named = {name for name, _ in names}
    names += [(name, "<none>") for name in digests if name not in named and (given["digests"] or not names)]
    for name, tag in names or [("<none>", "<none>")]:
        yield {
            "Repository": name,
            "Tag": tag,
            "Digest": digests.get(name, "<none>"),
            "ID": image["Id"] if given["no-trunc"] else short_id(image["Id"]),
            "CreatedAt": local_time(image.get("Created", 0)),
            "CreatedSince": ago(image.get("Created", 0)),
            "Size": human_size(image.get("Size", 0)),
        }
