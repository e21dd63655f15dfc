"""Images drawn as what they are made of: a tree of layers, with the images that end at each (pure)."""

from __future__ import annotations

from nagaya.cli.output import human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any


class _Node:
    def __init__(self, diff_id: str, size: int) -> None:
        self.diff_id = diff_id
        self.size = size
        self.images: list[str] = []
        self.above: dict[str, _Node] = {}

    def weight(self) -> int:
        return self.size + sum(node.weight() for node in self.above.values())


def draw(images: Sequence[Mapping[str, Any]], *, full: bool = False) -> list[str]:
    """Lines of a tree, bases first, the biggest branch first; at the end what all layers take, each once.

    images: as GET /nagaya/images/layers answers. full: whole ids.
    """
    root = _Node("", 0)
    for image in images:
        node = root
        for layer in image["Layers"]:
            node = node.above.setdefault(layer["DiffId"], _Node(layer["DiffId"], layer["Size"]))
        short = image["Id"] if full else image["Id"].partition(":")[2][:12]
        node.images.append(f"{short}  {', '.join(image['RepoTags']) or '<none>'}")
    rows = [("LAYER", "SIZE", "IMAGE"), *_rows(root, "", full)]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{a.ljust(widths[0])}   {b.rjust(widths[1])}   {c}".rstrip() for a, b, c in rows]
    once = {layer["DiffId"]: layer["Size"] for image in images for layer in image["Layers"]}
    return [*lines, f"{len(images)} images, {len(once)} layers, {human_size(sum(once.values()))}"]


def _rows(node: _Node, lead: str, full: bool) -> Iterator[tuple[str, str, str]]:
    children = sorted(node.above.values(), key=lambda child: (-child.weight(), child.diff_id))
    for number, child in enumerate(children):
        last = number == len(children) - 1
        name = child.diff_id if full else child.diff_id.partition(":")[2][:12]
        first, *more = child.images or [""]
        yield f"{lead}{'└─' if last else '├─'} {name}", human_size(child.size), first
        inner = lead + ("   " if last else "│  ")
        for image in more:
            yield (f"{inner}│" if child.above else inner.rstrip() or inner), "", image
        yield from _rows(child, inner, full)
    if not node.diff_id:
        for image in node.images:  # of no layer at all
            yield "─", human_size(0), image
