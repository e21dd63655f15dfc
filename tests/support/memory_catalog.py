"""The image room's catalog in memory, for tests that need no disk."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from nagaya.errors import NotFound
from nagaya.image.catalog import ImageRow, LayerRow, NameRow, SnapshotRow, StepRow


class MemoryCatalog:
    """`nagaya.image.catalog.Catalog` in five dictionaries."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._images: dict[str, ImageRow] = {}
        self._names: dict[str, NameRow] = {}
        self._layers: dict[str, LayerRow] = {}
        self._snapshots: dict[str, SnapshotRow] = {}
        self._steps: dict[str, StepRow] = {}

    def images(self) -> list[ImageRow]:
        with self._lock:
            return [self._images[k] for k in sorted(self._images)]

    def image(self, image_id: str) -> ImageRow | None:
        with self._lock:
            return self._images.get(image_id)

    def put_image(self, row: ImageRow, names: Sequence[NameRow] = ()) -> None:
        with self._lock:
            self._images[row.id] = row
            for name in names:
                self._put_name(name)

    def delete_image(self, image_id: str) -> None:
        with self._lock:
            self._images.pop(image_id, None)
            for name in [n.name for n in self._names.values() if n.image == image_id]:
                del self._names[name]

    def names(self) -> list[NameRow]:
        with self._lock:
            return [self._names[k] for k in sorted(self._names)]

    def name(self, name: str) -> NameRow | None:
        with self._lock:
            return self._names.get(name)

    def put_name(self, row: NameRow) -> None:
        with self._lock:
            self._put_name(row)

    def _put_name(self, row: NameRow) -> None:
        if row.image not in self._images:
            raise NotFound(f"No such image: {row.image}", subject=row.image)
        self._names[row.name] = row

    def delete_names(self, names: Sequence[str]) -> None:
        with self._lock:
            for name in names:
                self._names.pop(name, None)

    def layers(self) -> list[LayerRow]:
        with self._lock:
            return [self._layers[k] for k in sorted(self._layers)]

    def layer(self, diff_id: str) -> LayerRow | None:
        with self._lock:
            return self._layers.get(diff_id)

    def put_layer(self, row: LayerRow) -> None:
        with self._lock:
            self._layers[row.diff_id] = row

    def delete_layer(self, diff_id: str) -> None:
        with self._lock:
            self._layers.pop(diff_id, None)

    def snapshots(self) -> list[SnapshotRow]:
        with self._lock:
            return [self._snapshots[k] for k in sorted(self._snapshots)]

    def snapshot(self, snapshot_id: str) -> SnapshotRow | None:
        with self._lock:
            return self._snapshots.get(snapshot_id)

    def put_snapshot(self, row: SnapshotRow) -> None:
        with self._lock:
            self._snapshots[row.id] = row

    def delete_snapshot(self, snapshot_id: str) -> None:
        with self._lock:
            self._snapshots.pop(snapshot_id, None)

    def steps(self) -> list[StepRow]:
        with self._lock:
            return [self._steps[k] for k in sorted(self._steps)]

    def step(self, key: str) -> StepRow | None:
        with self._lock:
            return self._steps.get(key)

    def use_steps(self, rows: Sequence[StepRow]) -> None:
        with self._lock:
            self._steps.update({row.key: row for row in rows if row.key in self._steps})

    def put_build(
        self,
        layers: Sequence[LayerRow],
        steps: Sequence[StepRow],
        image: ImageRow | None = None,
        names: Sequence[NameRow] = (),
    ) -> None:
        with self._lock:
            self._layers.update({row.diff_id: row for row in layers})
            self._steps.update({row.key: row for row in steps})
            if image is not None:
                self._images[image.id] = image
            for name in names:
                self._put_name(name)

    def delete_steps(self, keys: Sequence[str]) -> None:
        with self._lock:
            for key in keys:
                self._steps.pop(key, None)
