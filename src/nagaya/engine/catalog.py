"""The image room's rows in the ledger: the implementation of `nagaya.image.catalog.Catalog`.

Rows that a commit to disk must precede or follow (layers, images, their deletion) are written with
durable transactions; names and snapshots with ordinary ones, as the protocol allows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from nagaya.engine.ledger import Ledger
from nagaya.errors import NotFound
from nagaya.image.catalog import ImageRow, LayerRow, NameRow, SnapshotRow, StepRow

_encode = msgspec.json.Encoder().encode
_image = msgspec.json.Decoder(ImageRow).decode
_layer = msgspec.json.Decoder(LayerRow).decode
_snapshot = msgspec.json.Decoder(SnapshotRow).decode
_step = msgspec.json.Decoder(StepRow).decode
_STEPS = "build"  # the ledger's facts of that area


class LedgerCatalog:
    """Images, names, layers and snapshots; see `image.catalog.Catalog` for the contract."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def _documents(self, table: str) -> list[bytes]:
        key = "diff_id" if table == "layers" else "id"
        return [_bytes(d) for (d,) in self._ledger.read(f"SELECT document FROM {table} ORDER BY {key}")]

    def _document(self, table: str, key: str, value: str) -> bytes | None:
        rows = self._ledger.read(f"SELECT document FROM {table} WHERE {key}=?", (value,))
        return _bytes(rows[0][0]) if rows else None

    def images(self) -> list[ImageRow]:
        return [_image(d) for d in self._documents("images")]

    def image(self, image_id: str) -> ImageRow | None:
        found = self._document("images", "id", image_id)
        return None if found is None else _image(found)

    def put_image(self, row: ImageRow, names: Sequence[NameRow] = ()) -> None:
        with self._ledger.write(durable=True) as db:
            _put_image(db, row, names)

    def delete_image(self, image_id: str) -> None:
        with self._ledger.write(durable=True) as db:
            db.execute("DELETE FROM names WHERE image=?", (image_id,))
            db.execute("DELETE FROM images WHERE id=?", (image_id,))

    def names(self) -> list[NameRow]:
        rows = self._ledger.read("SELECT name, image FROM names ORDER BY name")
        return [NameRow(str(name), str(image)) for name, image in rows]

    def name(self, name: str) -> NameRow | None:
        rows = self._ledger.read("SELECT name, image FROM names WHERE name=?", (name,))
        return NameRow(str(rows[0][0]), str(rows[0][1])) if rows else None

    def put_name(self, row: NameRow) -> None:
        with self._ledger.write() as db:
            if db.execute("SELECT 1 FROM images WHERE id=?", (row.image,)).fetchone() is None:
                raise NotFound(f"No such image: {row.image}", subject=row.image)
            db.execute("INSERT OR REPLACE INTO names(name, image) VALUES(?,?)", (row.name, row.image))

    def delete_names(self, names: Sequence[str]) -> None:
        with self._ledger.write() as db:
            db.executemany("DELETE FROM names WHERE name=?", [(n,) for n in names])

    def layers(self) -> list[LayerRow]:
        return [_layer(d) for d in self._documents("layers")]

    def layer(self, diff_id: str) -> LayerRow | None:
        found = self._document("layers", "diff_id", diff_id)
        return None if found is None else _layer(found)

    def put_layer(self, row: LayerRow) -> None:
        with self._ledger.write(durable=True) as db:
            _put_layers(db, [row])

    def delete_layer(self, diff_id: str) -> None:
        with self._ledger.write(durable=True) as db:
            db.execute("DELETE FROM layers WHERE diff_id=?", (diff_id,))

    def snapshots(self) -> list[SnapshotRow]:
        return [_snapshot(d) for d in self._documents("snapshots")]

    def snapshot(self, snapshot_id: str) -> SnapshotRow | None:
        found = self._document("snapshots", "id", snapshot_id)
        return None if found is None else _snapshot(found)

    def put_snapshot(self, row: SnapshotRow) -> None:
        with self._ledger.write() as db:
            db.execute("INSERT OR REPLACE INTO snapshots(id, document) VALUES(?,?)", (row.id, _encode(row)))

    def delete_snapshot(self, snapshot_id: str) -> None:
        with self._ledger.write() as db:
            db.execute("DELETE FROM snapshots WHERE id=?", (snapshot_id,))

    def steps(self) -> list[StepRow]:
        rows = self._ledger.read("SELECT document FROM facts WHERE area=? ORDER BY key", (_STEPS,))
        return [_step(_bytes(document)) for (document,) in rows]

    def step(self, key: str) -> StepRow | None:
        rows = self._ledger.read("SELECT document FROM facts WHERE area=? AND key=?", (_STEPS, key))
        return _step(_bytes(rows[0][0])) if rows else None

    def use_steps(self, rows: Sequence[StepRow]) -> None:
        with self._ledger.write() as db:
            db.executemany(
                "UPDATE facts SET document=? WHERE area=? AND key=?",
                [(_encode(row), _STEPS, row.key) for row in rows],
            )

    def put_build(
        self,
        layers: Sequence[LayerRow],
        steps: Sequence[StepRow],
        image: ImageRow | None = None,
        names: Sequence[NameRow] = (),
    ) -> None:
        with self._ledger.write(durable=True) as db:
            _put_layers(db, layers)
            db.executemany(
                "INSERT OR REPLACE INTO facts(area, key, document) VALUES(?,?,?)",
                [(_STEPS, step.key, _encode(step)) for step in steps],
            )
            if image is not None:
                _put_image(db, image, names)

    def delete_steps(self, keys: Sequence[str]) -> None:
        with self._ledger.write(durable=True) as db:
            db.executemany("DELETE FROM facts WHERE area=? AND key=?", [(_STEPS, key) for key in keys])


def _put_image(db: sqlite3.Connection, row: ImageRow, names: Sequence[NameRow]) -> None:
    db.execute("INSERT OR REPLACE INTO images(id, document) VALUES(?,?)", (row.id, _encode(row)))
    db.executemany(
        "INSERT OR REPLACE INTO names(name, image) VALUES(?,?)", [(n.name, n.image) for n in names]
    )


def _put_layers(db: sqlite3.Connection, rows: Sequence[LayerRow]) -> None:
    db.executemany(
        "INSERT OR REPLACE INTO layers(diff_id, document) VALUES(?,?)",
        [(row.diff_id, _encode(row)) for row in rows],
    )


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
