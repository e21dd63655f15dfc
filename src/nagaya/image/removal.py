"""What `rmi` may take away: dockerd's rules, as a pure function (moby, daemon/images/image_delete.go).

A name goes first; the image goes with its last name, unless a container stands on it. By id, all
names of one repository go at once; names in several repositories need force.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from nagaya.errors import FailedPrecondition
from nagaya.oci import digest as digests
from nagaya.oci import reference


class Use(msgspec.Struct, frozen=True):
    """A container that was made from an image."""

    image: str
    container: str
    running: bool


class Removed(msgspec.Struct, frozen=True):
    """One line of the answer: a name that went, or content that did."""

    untagged: str = ""
    deleted: str = ""


class Plan(msgspec.Struct, frozen=True):
    """names: to be taken away, in this order; image: the image goes too."""

    names: tuple[str, ...]
    image: bool


def plan(image_id: str, names: Sequence[str], name: str, uses: Sequence[Use], *, force: bool) -> Plan:
    """What removing `name` ("": the image by its id) takes away. Raises FailedPrecondition."""
    mine = [u for u in uses if u.image == image_id]
    if name:
        rest = [n for n in names if n != name]
        repository = reference.parse(name).name
        if not any("@" not in n for n in rest) and "@" not in name:
            # digests are names that a pull left behind the user's back: they go with the last tag
            ours = [n for n in rest if reference.parse(n).name == repository]
            rest = [n for n in rest if n not in ours]
        else:
            ours = []
        going = (name, *ours)
        if rest:
            return Plan(going, image=False)
        if mine and not force:
            raise FailedPrecondition(
                f'conflict: unable to remove repository reference "{reference.parse(name).familiar}" '
                f"(must force) - container {mine[0].container[:12]} is using its referenced image "
                f"{digests.short(image_id)}",
                subject=name,
            )
        if any(u.running for u in mine):
            return Plan(going, image=False)  # dockerd, too, only takes the name
        return Plan(going, image=True)
    repositories = {reference.parse(n).name for n in names}
    tags = [n for n in names if "@" not in n]
    if (len(repositories) > 1 or len(tags) > 1) and not force:
        raise _conflict(image_id, "must be forced", "image is referenced in multiple repositories")
    for use in mine:
        if use.running:
            raise _conflict(
                image_id,
                "cannot be forced",
                f"image is being used by running container {use.container[:12]}",
            )
    if mine and not force:
        raise _conflict(
            image_id, "must be forced", f"image is being used by stopped container {mine[0].container[:12]}"
        )
    return Plan(tuple(sorted(names, key=lambda n: "@" in n)), image=True)


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """The chain ids of layers given bottom first (image-spec, config.md, "Layer ChainID")."""
    found: list[str] = []
    for diff_id in diff_ids:
        if found:
            diff_id = "sha256:" + hashlib.sha256(f"{found[-1]} {diff_id}".encode()).hexdigest()
        found.append(diff_id)
    return found


def _conflict(image_id: str, how: str, why: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"conflict: unable to delete {digests.short(image_id)} ({how}) - {why}", subject=image_id
    )
