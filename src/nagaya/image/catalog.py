"""What the image room must remember over restarts, and the protocol by which it is kept.

`engine.ledger` implements it in SQLite; `tests/support/memory_catalog.py` in memory. Both pass
`tests/support/catalog_contract.py`, which is the law where these docstrings are vague.

The order of events is the whole trick (docs/adr/0004-images.md): files are written and synced
first, the row comes last. So a row always names files that are there, and a file without a row is
rubbish that `ImageStore.collect` may remove. Deleting goes the other way: first the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec


class ImageRow(msgspec.Struct, frozen=True):
    """An image that is completely here: every blob stored, every layer unpacked and synced."""

    id: str  # digest of the config document, "sha256:..."
    manifest: str  # digest of the image manifest (never of an index)
    layers: tuple[str, ...]  # diff ids, bottom first, as rootfs.diff_ids has them
    blobs: tuple[str, ...]  # digests of all content it keeps alive: index, manifest, config, layers
    stored: int  # when it came here, nanoseconds since the epoch
    parent: str = ""  # the image that it was committed from a container of


class NameRow(msgspec.Struct, frozen=True):
    """A name of an image, in canonical form: "docker.io/library/busybox:latest", or
    "docker.io/library/busybox@sha256:..." for the digest a registry served it under."""

    name: str
    image: str  # ImageRow.id


class LayerRow(msgspec.Struct, frozen=True):
    """An unpacked layer, shared by all images that have it."""

    diff_id: str  # digest of the uncompressed tar
    directory: str  # short name below snapshots/; its files are in DIRECTORY/fs
    size: int  # bytes of its regular files
    entries: int


class SnapshotRow(msgspec.Struct, frozen=True):
    """A container's writable layer and the unpacked layers below it, which it keeps alive even
    when the image is gone."""

    id: str  # the container's id; its files are in snapshots/ID/{fs,work}
    layers: tuple[str, ...]  # diff ids, bottom first


class StepRow(msgspec.Struct, frozen=True):
    """A step of a build that need not be done again: what its instruction made of its parent."""

    key: str  # hexadecimal; of the image it stood on, its instruction and all that went into it
    parent: str  # the key of the step before, "" for the first
    created: str  # RFC 3339, as in the image's history
    what: str  # the instruction, for people
    made: int  # nanoseconds since the epoch
    used: int  # when last
    uses: int = 0  # how often again
    diff_id: str = ""  # "": it made no layer
    blob: str = ""  # the layer's digest, compressed
    size: int = 0  # bytes of the blob


class Catalog(Protocol):
    """Rows of five kinds, each found by its key.

    Every method is atomic, may be called from any thread, and blocks. Methods that write return
    after the change is durable against a crash of the daemon; `put_layer`, `put_image`, `put_build` and the
    deletions of layers and images also against a power cut (SQLite: synchronous=FULL), because
    what follows them relies on it. Lists come ordered by key.
    """

    def images(self) -> list[ImageRow]:
        """All images."""
        ...

    def image(self, image_id: str) -> ImageRow | None:
        """The image of that whole id."""
        ...

    def put_image(self, row: ImageRow, names: Sequence[NameRow] = ()) -> None:
        """Insert or replace the image, and set these names (which may leave another image), in one
        transaction."""
        ...

    def delete_image(self, image_id: str) -> None:
        """Delete the image and all its names in one transaction. Unknown ids do nothing."""
        ...

    def names(self) -> list[NameRow]:
        """All names."""
        ...

    def name(self, name: str) -> NameRow | None:
        """The name's row."""
        ...

    def put_name(self, row: NameRow) -> None:
        """Insert or move the name. Raises NotFound when the image has no row."""
        ...

    def delete_names(self, names: Sequence[str]) -> None:
        """Delete these names in one transaction. Unknown ones do nothing."""
        ...

    def layers(self) -> list[LayerRow]:
        """All unpacked layers."""
        ...

    def layer(self, diff_id: str) -> LayerRow | None:
        """The unpacked layer of that diff id."""
        ...

    def put_layer(self, row: LayerRow) -> None:
        """Insert or replace the layer."""
        ...

    def delete_layer(self, diff_id: str) -> None:
        """Delete the layer's row. Unknown ones do nothing."""
        ...

    def snapshots(self) -> list[SnapshotRow]:
        """All container snapshots."""
        ...

    def snapshot(self, snapshot_id: str) -> SnapshotRow | None:
        """The snapshot of that id."""
        ...

    def put_snapshot(self, row: SnapshotRow) -> None:
        """Insert or replace the snapshot."""
        ...

    def delete_snapshot(self, snapshot_id: str) -> None:
        """Delete the snapshot's row. Unknown ones do nothing."""
        ...

    def steps(self) -> list[StepRow]:
        """All steps of builds."""
        ...

    def step(self, key: str) -> StepRow | None:
        """The step of that key."""
        ...

    def use_steps(self, rows: Sequence[StepRow]) -> None:
        """Replace those that are still there."""
        ...

    def put_build(
        self,
        layers: Sequence[LayerRow],
        steps: Sequence[StepRow],
        image: ImageRow | None = None,
        names: Sequence[NameRow] = (),
    ) -> None:
        """Insert or replace all of them, in one transaction."""
        ...

    def delete_steps(self, keys: Sequence[str]) -> None:
        """Delete these steps in one transaction. Unknown ones do nothing."""
        ...
