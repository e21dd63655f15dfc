"""The ledger: what the daemon must still know after kill -9, in one SQLite file (WAL).

Schema, version 2 (`PRAGMA user_version`):

    containers  id PK | name UNIQUE | state | document (JSON of model.Container) | trace (JSON of steps)
    operations  number PK | kind | subject | data (JSON) | begun     the journal (journal.py)
    volumes     name PK | created | anonymous | labels (JSON) | options (JSON)
    endpoints   container, network PK | document (JSON)                     who is in which network
    addresses   network, address PK | owner                                 unique: no address twice
    images      id PK | document (JSON of image.catalog.ImageRow)
    names       name PK | image                                             a tag or digest -> image
    layers      diff_id PK | document (JSON of LayerRow)
    snapshots   id PK | document (JSON of SnapshotRow)                      a container's writable layer
    facts       area, key PK | document   small documents of other rooms (networks and the like)

One write connection behind a lock is "the one writer": a thread of its own would cost two hops per
operation (docs/adr/0006-ledger-and-journal.md). Ordinary rows are committed with synchronous=NORMAL,
which survives the death of the process; image and GC commits with FULL, which survives power cuts.
All methods block: they are called from the engine's pools, never from the event loop.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec

from nagaya.engine.model import Container, Step
from nagaya.engine.reserve import allocate
from nagaya.errors import AlreadyExists, FailedPrecondition, KernelError, ResourceExhausted

_MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE containers(id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, state TEXT NOT NULL,
                            document BLOB NOT NULL, trace BLOB NOT NULL DEFAULT '[]') WITHOUT ROWID;
    CREATE TABLE operations(number INTEGER PRIMARY KEY, kind TEXT NOT NULL, subject TEXT NOT NULL,
                            data BLOB NOT NULL, begun INTEGER NOT NULL);
    CREATE TABLE volumes(name TEXT PRIMARY KEY, created INTEGER NOT NULL, anonymous INTEGER NOT NULL,
                         labels BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE endpoints(container TEXT NOT NULL, network TEXT NOT NULL, document BLOB NOT NULL,
                           PRIMARY KEY(container, network)) WITHOUT ROWID;
    CREATE TABLE addresses(network TEXT NOT NULL, address TEXT NOT NULL, owner TEXT NOT NULL,
                           PRIMARY KEY(network, address)) WITHOUT ROWID;
    CREATE TABLE images(id TEXT PRIMARY KEY, document BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE names(name TEXT PRIMARY KEY, image TEXT NOT NULL) WITHOUT ROWID;
    CREATE INDEX names_image ON names(image);
    CREATE TABLE layers(diff_id TEXT PRIMARY KEY, document BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE snapshots(id TEXT PRIMARY KEY, document BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE facts(area TEXT NOT NULL, key TEXT NOT NULL, document BLOB NOT NULL,
                       PRIMARY KEY(area, key)) WITHOUT ROWID;
    CREATE INDEX operations_subject ON operations(subject);
    """,
    "ALTER TABLE volumes ADD COLUMN options BLOB NOT NULL DEFAULT '{}'",
)

# The write-ahead log is folded in when it has so many pages of 4 KiB; it has room for half as many more.
_PAGES = 1000
_SCARCE_PAGES = 160

_VOLUME = "name, created, anonymous, labels, options"

_encode = msgspec.json.Encoder().encode
_decode_container = msgspec.json.Decoder(Container).decode
_decode_steps = msgspec.json.Decoder(tuple[Step, ...]).decode


class Volume(msgspec.Struct, frozen=True):
    """A row of `volumes`."""

    name: str
    created: int
    anonymous: bool
    labels: dict[str, str] = {}
    options: dict[str, str] = {}


class Ledger:
    """The open database. Thread-safe."""

    def __init__(self, path: str, *, scarce: bool = False) -> None:
        """Open or create the file and bring its schema up to date. scarce: the disk has only the room
        that was kept for us.

        Raises FailedPrecondition when a newer nagaya wrote it, ResourceExhausted when the disk is full,
        KernelError when it cannot be opened.
        """
        self._path = path
        self._lock = threading.RLock()
        self._depth = 0
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("PRAGMA cache_size=-512")  # KiB; the tables are small, the page cache holds them
            self._migrate(path)
            plenty = not scarce and allocate(f"{path}-wal", 6144 * _PAGES)
            self._db.execute(f"PRAGMA wal_autocheckpoint={_PAGES if plenty else _SCARCE_PAGES}")
            if scarce:
                any(allocate(f"{path}-wal", size << 20, plenty=1) for size in (3, 2, 1))
        except sqlite3.Error as error:
            # SQLite has four messages for it, depending on the file that could not be made
            kind = ResourceExhausted if _is_full(path) else KernelError
            raise kind(f"cannot open the ledger: {error}", subject=path, step="open ledger") from None

    def _migrate(self, path: str) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > len(_MIGRATIONS):
            raise FailedPrecondition(
                f"the ledger has schema version {version}, newer than this nagaya's {len(_MIGRATIONS)}",
                subject=path,
            )
        for number in range(version, len(_MIGRATIONS)):
            statements = [s for s in _MIGRATIONS[number].split(";") if s.strip()]
            with self.write():
                for statement in statements:
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version={number + 1}")

    def close(self) -> int:
        """Close the file; the write-ahead log is folded in. Returns how many bytes of the disk it had."""
        with self._lock:
            try:
                size = os.stat(f"{self._path}-wal").st_size
            except OSError:
                size = 0
            self._db.close()
            return size

    @contextmanager
    def write(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """A write transaction, all or nothing; nested ones join the outer one.

        durable: on disk when this returns. Raises AlreadyExists for a broken unique constraint and
        ResourceExhausted for a full disk.
        """
        with self._lock:
            if self._depth:
                yield self._db
                return
            try:
                if durable:
                    self._db.execute("PRAGMA synchronous=FULL")
                self._db.execute("BEGIN IMMEDIATE")
                self._depth = 1
                try:
                    yield self._db
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
                else:
                    self._db.execute("COMMIT")
                finally:
                    self._depth = 0
                    if self._db.in_transaction:  # the commit itself failed
                        self._db.execute("ROLLBACK")
                    if durable:
                        self._db.execute("PRAGMA synchronous=NORMAL")
            except sqlite3.IntegrityError as error:
                raise AlreadyExists(str(error), subject="ledger") from None
            except sqlite3.OperationalError as error:
                if "full" in str(error) or _is_full(self._path):
                    raise ResourceExhausted(f"the ledger cannot grow: {error}", subject="ledger") from None
                raise KernelError(str(error), subject="ledger", step="write ledger") from None

    def read(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[object, ...]]:
        """All rows of a SELECT."""
        with self._lock:
            return self._db.execute(sql, parameters).fetchall()

    def identity(self) -> str:
        """The id of this daemon's root, which is chosen when it is first asked for."""
        sql = "SELECT document FROM facts WHERE area='daemon' AND key='id'"
        with self.write() as db:
            if not db.execute(sql).fetchone():
                db.execute("INSERT INTO facts VALUES('daemon', 'id', ?)", (str(uuid.uuid4()),))
            return str(db.execute(sql).fetchone()[0])

    # containers

    def put_container(self, container: Container, *, trace: Sequence[Step] | None = None) -> None:
        """Insert or replace a container's row; trace None keeps the steps that are stored."""
        row = (container.id, container.name, container.state, _encode(container))
        with self.write() as db:
            db.execute(
                "INSERT INTO containers(id, name, state, document) VALUES(?,?,?,?) ON CONFLICT(id) DO UPDATE"
                " SET name=excluded.name, state=excluded.state, document=excluded.document",
                row,
            )
            if trace is not None:
                db.execute("UPDATE containers SET trace=? WHERE id=?", (_encode(trace), container.id))

    def delete_container(self, container_id: str) -> None:
        """Forget a container."""
        with self.write() as db:
            db.execute("DELETE FROM containers WHERE id=?", (container_id,))

    def containers(self) -> list[Container]:
        """All containers, oldest first."""
        found = [
            _decode_container(_bytes(document))
            for (document,) in self.read("SELECT document FROM containers")
        ]
        return sorted(found, key=lambda c: (c.created, c.id))

    def trace(self, container_id: str) -> tuple[Step, ...]:
        """The steps of the last start."""
        rows = self.read("SELECT trace FROM containers WHERE id=?", (container_id,))
        return _decode_steps(_bytes(rows[0][0])) if rows else ()

    # volumes

    def put_volume(self, volume: Volume) -> None:
        """Insert a volume. Raises AlreadyExists."""
        with self.write() as db:
            db.execute(
                f"INSERT INTO volumes({_VOLUME}) VALUES(?,?,?,?,?)",
                (
                    volume.name,
                    volume.created,
                    int(volume.anonymous),
                    _encode(volume.labels),
                    _encode(volume.options),
                ),
            )

    def volume(self, name: str) -> Volume | None:
        """One volume, None when there is none of that name."""
        found = self.read(f"SELECT {_VOLUME} FROM volumes WHERE name=?", (name,))
        return _volume(found[0]) if found else None

    def volumes(self) -> list[Volume]:
        """All volumes by name."""
        return [_volume(r) for r in self.read(f"SELECT {_VOLUME} FROM volumes ORDER BY name")]

    def delete_volume(self, name: str) -> None:
        """Forget a volume."""
        with self.write() as db:
            db.execute("DELETE FROM volumes WHERE name=?", (name,))


def _is_full(path: str) -> bool:
    facts = os.statvfs(os.path.dirname(path))
    return facts.f_bavail * facts.f_frsize < 1 << 16 or (facts.f_files > 0 and not facts.f_favail)


def _volume(row: tuple[object, ...]) -> Volume:
    name, created, anonymous, *documents = row
    labels, options = (msgspec.json.decode(_bytes(d), type=dict[str, str]) for d in documents)
    return Volume(str(name), int(str(created)), bool(anonymous), labels, options)


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
