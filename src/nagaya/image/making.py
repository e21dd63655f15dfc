"""New images: of what a container has written above its image, and of an archive of files.

A layer is compressed as it is made (gzip, whose fastest level costs less than writing what it saves),
kept as a blob, and unpacked as any other: what later pulls of it would give is what is here.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from isal import isal_zlib

from nagaya.errors import NotFound
from nagaya.image import diff, layers, members
from nagaya.image.content import disk_error, write_all
from nagaya.image.jobs import Check
from nagaya.image.shelf import Shelf
from nagaya.image.streams import limited
from nagaya.oci import digest as digests
from nagaya.oci import imageconfig
from nagaya.oci import manifest as manifests
from nagaya.oci import platform as platforms
from nagaya.oci.manifest import Descriptor, Manifest

DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
_LEVEL = 1
_GZIP = 31  # zlib's number for its window with gzip's frame
_EMPTY_ARCHIVE = 1024  # bytes: two blocks of zeros are the end of one (tar(5))


class Recipe(msgspec.Struct, frozen=True):
    """What a new image is besides its layer. config: what containers get of it, as image-spec's `config`."""

    config: Mapping[str, Any]
    created: str
    created_by: str = ""
    author: str = ""
    comment: str = ""
    platform: platforms.Platform | None = None  # of an image that has no base


def commit(
    shelf: Shelf, snapshot_id: str, base: str, ours: frozenset[str], recipe: Recipe, name: str, check: Check
) -> str:
    """Make an image of the writable layer of a snapshot above the image `base` (an id); its id. name: a
    canonical name for it, or "".

    Raises NotFound when base or snapshot have gone, what `diff.archive` does, ResourceExhausted,
    KernelError; nothing stays then.
    """
    with shelf.work("a commit") as lease:
        with shelf.mutex:
            row = shelf.catalog.image(base)
            if row is None:
                raise NotFound(f"No such image: {base}: the container's image has been removed", subject=base)
            lease((*row.blobs, *row.layers))
        old = msgspec.json.decode(shelf.content.read(base, manifests.MAX_MANIFEST), type=dict[str, Any])
        below = manifests.decode_image(shelf.content.read(row.manifest, manifests.MAX_MANIFEST))
        path = shelf.snapshots.rootfs(snapshot_id)["upper"]
        upper = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            archive = members.joined(diff.archive(upper, ours, check))
            return _make(shelf, archive, old, below, recipe, name, lease, check, parent=base)
        finally:
            os.close(upper)


def written(shelf: Shelf, snapshot_id: str, ours: frozenset[str], path: str, check: Check) -> None:
    """Write the archive of the writable layer of a snapshot to the new file `path`. Raises NotFound, what
    `diff.archive` does, and OSError."""
    upper = os.open(shelf.snapshots.rootfs(snapshot_id)["upper"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with open(path, "xb") as file:
            for piece in members.joined(diff.archive(upper, ours, check)):
                file.write(piece)
            if not file.tell():
                file.write(bytes(_EMPTY_ARCHIVE))  # nothing was written there: an archive all the same
    finally:
        os.close(upper)


def rewritten(shelf: Shelf, snapshot_id: str, pieces: Iterable[bytes], check: Check) -> None:
    """Unpack what `written` wrote into the writable layer of a snapshot that nobody has used yet. Raises
    NotFound, and what `layers.unpack` does."""
    upper = shelf.snapshots.rootfs(snapshot_id)["upper"]
    home = os.open(os.path.dirname(upper), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.rmdir(layers.FILES, dir_fd=home)
        layers.unpack(pieces, home, shelf.config.limits, check)
    finally:
        os.close(home)


def import_files(shelf: Shelf, archive: Iterable[bytes], recipe: Recipe, name: str, check: Check) -> str:
    """Make an image of one layer, of an uncompressed archive of files; its id. Raises as `commit`, and
    what unpacking does."""
    host = recipe.platform or platforms.host()
    old: dict[str, Any] = {"architecture": host.architecture, "os": host.os}
    if host.variant:
        old["variant"] = host.variant
    empty = Manifest(manifests.OCI_MANIFEST, Descriptor("", 0), ())
    with shelf.work("an import") as lease:
        return _make(shelf, archive, old, empty, recipe, name, lease, check)


def _make(
    shelf: Shelf,
    archive: Iterable[bytes],
    base: Mapping[str, Any],
    below: Manifest,
    recipe: Recipe,
    name: str,
    lease: Callable[[Iterable[str]], None],
    check: Check,
    parent: str = "",
) -> str:
    stack = below.layers
    docker = below.media_type == manifests.DOCKER_MANIFEST
    with shelf.content.spool() as directory:
        path = f"{directory}/layer"
        made = compress(limited(archive, shelf.config.limits.size), path, check)
        if made is not None:
            diff_id, blob, size = made
            kind = DOCKER_LAYER if docker else manifests.layer_type("gzip")
            stack = (*stack, Descriptor(blob, size, kind))
            lease((diff_id, blob))
            shelf.content.adopt(path, blob)
            shelf.unpacking.stored(blob, diff_id, check)
        config = msgspec.json.encode(document(base, recipe, made[0] if made else ""))
    diff_ids = imageconfig.decode(config).diff_ids
    image_id = digests.of(config)
    kind = manifests.DOCKER_CONFIG if docker else manifests.OCI_CONFIG
    manifest = manifests.encode(Manifest(below.media_type, Descriptor(image_id, len(config), kind), stack))
    top = digests.of(manifest)
    lease((image_id, top))
    shelf.content.put(config, image_id)
    shelf.content.put(manifest, top)
    blobs = tuple(dict.fromkeys((top, image_id, *(layer.digest for layer in stack))))
    shelf.put_image(image_id, top, diff_ids, blobs, [name] if name else [], parent)
    return image_id


def compress(archive: Iterable[bytes], path: str, check: Check) -> tuple[str, str, int] | None:
    """(diff id, digest, size) of the archive, compressed into the file; None when it has no bytes."""
    plain, packed = hashlib.sha256(), hashlib.sha256()
    compressor = isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, _GZIP)
    size = length = 0

    def seen() -> Iterator[bytes]:
        nonlocal size, length
        for piece, data in _pairs(archive, compressor):
            check()
            plain.update(piece)
            packed.update(data)
            length += len(piece)
            size += len(data)
            yield data

    write_new(path, seen())
    if not length:
        return None
    return f"sha256:{plain.hexdigest()}", f"sha256:{packed.hexdigest()}", size


def write_new(path: str, pieces: Iterable[bytes]) -> None:
    """Write a file that is not there yet. Raises ResourceExhausted, KernelError."""
    try:
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            for piece in pieces:
                write_all(fd, piece)
        finally:
            os.close(fd)
    except OSError as error:
        raise disk_error(error, "make layer", "layer") from None


def _pairs(archive: Iterable[bytes], compressor: Any) -> Iterator[tuple[bytes, bytes]]:
    for piece in archive:
        yield piece, compressor.compress(piece)
    yield b"", compressor.flush()


def document(base: Mapping[str, Any], recipe: Recipe, diff_id: str) -> dict[str, Any]:
    """The configuration of an image above `base`. What only containers and builders of the base had is
    left out; what we do not know stays."""
    rootfs = base.get("rootfs") or {}
    diff_ids: Sequence[str] = [*(rootfs.get("diff_ids") or ()), *((diff_id,) if diff_id else ())]
    step = {
        "created": recipe.created,
        "author": recipe.author,
        "created_by": recipe.created_by,
        "comment": recipe.comment,
        "empty_layer": not diff_id,
    }
    gone = ("container", "container_config", "id", "parent", "docker_version", "author", "comment")
    made = {key: value for key, value in base.items() if key not in gone}
    made |= {
        "created": recipe.created,
        "config": dict(recipe.config),
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [*(base.get("history") or ()), {k: v for k, v in step.items() if v}],
    }
    if recipe.author:
        made["author"] = recipe.author
    return made
