"""A layer's blob becomes an unpacked layer that the catalog knows: verified, synced, or nothing of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from nagaya.errors import DataLoss
from nagaya.image import layers, streams
from nagaya.image.catalog import Catalog, LayerRow
from nagaya.image.content import ContentStore
from nagaya.image.layers import Limits, Unpacked
from nagaya.image.snapshots import Snapshots
from nagaya.oci import digest as digests

POLL = 0.2  # seconds between looks at whether waiting work was cancelled


class Unpacking:
    """Unpacks for pulls, loads and imports, at most `places` layers at once. Thread-safe."""

    def __init__(
        self, content: ContentStore, snapshots: Snapshots, catalog: Catalog, limits: Limits, places: int
    ) -> None:
        self._content = content
        self._snapshots = snapshots
        self._catalog = catalog
        self._limits = limits
        self._places = threading.Semaphore(places)
        self._mutex = threading.Lock()

    def stored(
        self,
        digest: str,
        diff_id: str,
        check: Callable[[], None],
        seen: Callable[[bytes], object] = lambda _: None,
        *,
        plain: bool = False,
    ) -> None:
        """Unpack a layer whose blob is in the content store; nothing when it is unpacked already.
        seen: shown the blob's bytes. plain: what has this digest was seen, as it came in just now, not to be
        compressed; so where that is the diff id, too, it is not hashed again. Raises as `layer`."""
        if not self._snapshots.has_layer(diff_id):
            pieces = streams.hashed(self._content.pieces(digest), seen)
            self.layer(pieces, diff_id, check, known=plain and digest == diff_id)

    def layer(
        self, blob: Iterable[bytes], diff_id: str, check: Callable[[], None], *, known: bool = False
    ) -> None:
        """Unpack, verify (unless the diff id is known to be right), sync, and tell the catalog; or leave
        nothing.

        check is called while waiting for a place and now and then; it may raise to stop. Raises what
        `layers.unpack` does, DataLoss when the files are not those of diff_id.
        """
        name, home = self._snapshots.new_layer()
        committed = False
        try:
            with slot(self._places, check):
                unpacked = self._unpack(blob, home, diff_id, check, known)
            # the disk may be busy with what others write: meanwhile the next layer is unpacked
            row = LayerRow(diff_id, name, unpacked.size, unpacked.entries)
            committed = self._commit(row, home, unpacked.opaque_root)
        finally:
            os.close(home)
            if not committed:
                self._snapshots.drop_layer(name)

    def _unpack(
        self, blob: Iterable[bytes], home: int, diff_id: str, check: Callable[[], None], known: bool
    ) -> Unpacked:
        seen = digests.hasher(diff_id)
        with streams.Ahead(streams.pieces(blob)) as pieces:
            bounded = streams.limited(pieces, self._limits.size)
            if not known:
                bounded = streams.hashed(bounded, seen.update)
            unpacked = layers.unpack(bounded, home, self._limits, check)
        actual = f"{digests.parse(diff_id)[0]}:{seen.hexdigest()}"
        if not known and actual != diff_id:
            raise DataLoss(
                f"the layer's diff id is {actual}, the configuration says {diff_id}",
                subject=diff_id,
                step="unpack layer",
            )
        return unpacked

    def _commit(self, row: LayerRow, home: int, opaque: bool) -> bool:
        """False when another blob with the same files was quicker."""
        self._snapshots.sync_layer(row.diff_id, home, opaque_root=opaque)
        with self._mutex:
            if self._snapshots.has_layer(row.diff_id):
                return False
            self._catalog.put_layer(row)
        return True


@contextmanager
def slot(semaphore: threading.Semaphore, check: Callable[[], None]) -> Iterator[None]:
    """One of the configured number; check may raise while waiting for it."""
    while not semaphore.acquire(timeout=POLL):
        check()
    try:
        yield
    finally:
        semaphore.release()
