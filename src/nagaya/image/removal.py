"""What `rmi` may take away: dockerd's rules, as a pure function (moby, daemon/images/image_delete.go).

A name goes first; the image goes with its last name, unless a container stands on it. By id, all
names of one repository go at once; names in several repositories need force.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Sequence

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


def plan(
    image_id: str, names: Sequence[str], name: str, uses: Sequence[Use], *, force: bool, asked: str = ""
) -> Plan:
    """What removing `name` ("": the image by its id) takes away.

    names: all canonical names of the image. asked: how the user wrote the name, for the message.
    Raises FailedPrecondition in dockerd's words.
    """
    mine = [use for use in uses if use.image == image_id]
    running = next((use for use in mine if use.running), None)
    short = digests.short(image_id)
    if name:
        if mine and not force and _single(names):
            shown = asked or reference.parse(name).familiar
            raise FailedPrecondition(
                f'conflict: unable to remove repository reference "{shown}" '
                f"(must force) - container {mine[0].container[:12]} is using its referenced image {short}",
                subject=name,
            )
        rest = [n for n in names if n != name]
        repository = _repository(name)
        own = [n for n in rest if _repository(n) == repository]
        if _is_digest(name) or not all(_is_digest(n) for n in own):
            own = []
        # digests are names that a pull left behind the user's back: they go with a repository's last tag
        gone = (name, *own)
        # of a running container's image dockerd, too, takes the name only
        return Plan(gone, image=len(gone) == len(names) and running is None)
    if running is not None:
        raise _conflict(
            image_id, "cannot be forced", f"image is being used by running container {running.container[:12]}"
        )
    if not force and not _single(names):
        raise _conflict(image_id, "must be forced", "image is referenced in multiple repositories")
    if mine and not force:
        raise _conflict(
            image_id, "must be forced", f"image is being used by stopped container {mine[0].container[:12]}"
        )
    return Plan(tuple(sorted(names)), image=True)


def _single(names: Sequence[str]) -> bool:
    """Do the names, digests apart, come down to one (image_delete.go, isSingleReference)?"""
    tags = [n for n in names if not _is_digest(n)]
    return len(tags) <= 1 and len({_repository(n) for n in names}) <= 1


def _is_digest(name: str) -> bool:
    return "@" in name


def _repository(name: str) -> str:
    return reference.parse(name).name


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """The chain ids of layers given bottom first (image-spec, config.md, "Layer ChainID")."""
    found: list[str] = []
    for diff_id in diff_ids:
        if found:
            diff_id = "sha256:" + hashlib.sha256(f"{found[-1]} {diff_id}".encode()).hexdigest()
        found.append(diff_id)
    return found


def layers_gone(diff_ids: Sequence[str], gone: Container[str]) -> list[Removed]:
    """The lines for an image's layers that went with it, top first."""
    chain = zip(chain_ids(diff_ids), diff_ids, strict=True)
    return [Removed(deleted=c) for c, diff_id in reversed(list(chain)) if diff_id in gone]


def _conflict(image_id: str, how: str, why: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"conflict: unable to delete {digests.short(image_id)} ({how}) - {why}", subject=image_id
    )
