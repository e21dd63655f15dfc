"""The journal: multi-step operations that a crash at any point leaves done or undone, never between.

An operation is a row of the ledger's `operations` for as long as it is under way:

    begin(kind, subject, data)  before the first effect: data says what is needed to undo or finish it
    done(number)                in the same transaction as the ledger row that makes it true

Recovery (recovery.py) reads `pending()` before the sockets accept and finishes or undoes each.
`point` is a failpoint: tests put a function there that raises or kills the process at the n-th one
(FreeBSD's fail(9) gave the idea); in service it does nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from nagaya.engine.ledger import Ledger


class Operation(msgspec.Struct, frozen=True):
    """An operation that was under way when the daemon died."""

    number: int
    kind: str
    subject: str
    data: dict[str, object]
    begun: int


class Journal:
    """Operations under way. Blocking, thread-safe: called in the engine's pools."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.failpoint: Callable[[str], None] | None = None

    def point(self, name: str) -> None:
        """A place where a crash is tried by tests."""
        if self.failpoint is not None:
            self.failpoint(name)

    def begin(self, kind: str, subject: str, data: dict[str, object] | None = None) -> int:
        """Note an operation before its first effect; returns its number."""
        self.point(f"{kind}: before begin")
        with self._ledger.write() as db:
            cursor = db.execute(
                "INSERT INTO operations(kind, subject, data, begun) VALUES(?,?,?,?)",
                (kind, subject, msgspec.json.encode(data or {}), time.time_ns()),
            )
            number = cursor.lastrowid or 0
        self.point(f"{kind}: begun")
        return number

    def done(self, number: int) -> None:
        """Forget the operation: it is finished, or undone. Joins an open transaction."""
        with self._ledger.write() as db:
            db.execute("DELETE FROM operations WHERE number=?", (number,))

    def settle(self, kind: str, subject: str) -> None:
        """Forget all operations of a kind on it, also those whose end could not be written (a full
        disk): one that succeeded later makes them true. Joins an open transaction."""
        with self._ledger.write() as db:
            db.execute("DELETE FROM operations WHERE subject=? AND kind=?", (subject, kind))

    def is_pending(self, kind: str, subject: str) -> bool:
        """Has one of that kind begun on it, and not ended?"""
        sql = "SELECT 1 FROM operations WHERE subject=? AND kind=?"
        return bool(self._ledger.read(sql, (subject, kind)))

    def pending(self) -> list[Operation]:
        """What was under way, oldest first."""
        rows = self._ledger.read("SELECT number, kind, subject, data, begun FROM operations ORDER BY number")
        return [
            Operation(
                int(str(number)),
                str(kind),
                str(subject),
                msgspec.json.decode(data if isinstance(data, bytes) else str(data)),
                int(str(begun)),
            )
            for number, kind, subject, data, begun in rows
        ]
