"""What all operations on images share: files, rows, leases, and telling garbage from the rest."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from nagaya.errors import Cancelled, NagayaError, Unavailable
from nagaya.image.catalog import Catalog, ImageRow, NameRow
from nagaya.image.content import ContentStore
from nagaya.image.leases import Lease, Leases
from nagaya.image.snapshots import Snapshots
from nagaya.image.transport import RegistryConfig
from nagaya.image.unpacking import Unpacking

log = logging.getLogger(__name__)

_WORTH_RESUMING = (Unavailable, Cancelled)


class Shelf:
    """Blobs below ROOT/content, layers below ROOT/snapshots, rows in `catalog`. Thread-safe."""

    def __init__(self, root: str, catalog: Catalog, config: RegistryConfig) -> None:
        self.config = config
        self.catalog = catalog
        self.content = ContentStore(f"{root}/content")
        self.snapshots = Snapshots(f"{root}/snapshots", catalog)
        self.unpacking = Unpacking(self.content, self.snapshots, catalog, config.limits, config.unpacks)
        self.leases = Leases()
        self.mutex = self.leases.mutex
        self.orphans = False  # some layers are here for the sake of containers only

    @contextmanager
    def work(self, what: str) -> Iterator[Lease]:
        """A lease for something that brings content here. When it fails what only it had brought goes,
        but for what a next try of a download takes up (after Unavailable and Cancelled)."""
        with self.leases.hold() as lease:
            try:
                yield lease
            except NagayaError as error:
                with self.mutex:
                    alone = lease.release()
                    if not isinstance(error, _WORTH_RESUMING):
                        # what a registry lied about, or a full disk, is not kept for a next try
                        self.content.discard(alone)
                try:
                    self.collect()
                except NagayaError as second:  # it says less than the first
                    log.warning("what %s left stays for now: %s", what, second)
                raise

    def put_image(
        self,
        image_id: str,
        manifest: str,
        diff_ids: Sequence[str],
        blobs: Sequence[str],
        names: Sequence[str],
        parent: str = "",
    ) -> bool:
        """The image is completely here, under these canonical names, too; does one of them mean
        something new? Its blobs and layers must be leased."""
        with self.mutex:
            newer = any(self.image_of(name) != image_id for name in names)
            if not parent and (known := self.catalog.image(image_id)) is not None:
                parent = known.parent
            row = ImageRow(image_id, manifest, tuple(diff_ids), tuple(blobs), time.time_ns(), parent)
            self.catalog.put_image(row, [NameRow(name, image_id) for name in names])
        return newer

    def image_of(self, name: str) -> str | None:
        """The id of the image of that canonical name."""
        row = self.catalog.name(name)
        return row.image if row else None

    def collect(self) -> dict[str, int]:
        """Remove blobs and layers that nothing refers to: the diff ids that went, and the bytes of their
        files."""
        with self.mutex:
            images = self.catalog.images()
            leased = self.leases.held()
            steps = self.catalog.steps()
            blobs = {b for row in images for b in row.blobs} | {row.blob for row in steps} | leased
            layers = {d for row in images for d in row.layers} | {row.diff_id for row in steps} | leased
            kept = {d for row in self.catalog.snapshots() for d in row.layers}
            self.orphans = not kept <= layers
            layers |= kept
            for digest in self.content.digests():
                if digest not in blobs:
                    self.content.delete(digest)
            # second: on a full disk the blobs made the room that deleting rows takes
            unused = [row for row in self.catalog.layers() if row.diff_id not in layers]
            for row in unused:
                self.catalog.delete_layer(row.diff_id)
        for row in unused:
            self.snapshots.drop_layer(row.directory)
        return {row.diff_id: row.size for row in unused}
