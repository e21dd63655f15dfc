"""Leases: what work under way needs, and garbage collection leaves alone.

Whoever is about to look for, bring or read content names its digests and diff ids first. `mutex`
is held by those who tell garbage from the rest, and by those who turn a lease into a row.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class Leases:
    """All leases of one store. Thread-safe."""

    def __init__(self) -> None:
        self.mutex = threading.RLock()
        self._held: Counter[str] = Counter()

    @contextmanager
    def hold(self) -> Iterator[Lease]:
        """A lease to add to, given back at the end."""
        lease = Lease(self)
        try:
            yield lease
        finally:
            lease.release()

    def held(self) -> set[str]:
        """Everything that somebody has leased."""
        with self.mutex:
            return set(self._held)


class Lease:
    """What one piece of work needs."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._names: list[str] = []

    def __call__(self, wanted: Iterable[str]) -> None:
        """These, too."""
        found = list(wanted)
        with self._leases.mutex:
            self._names += found
            self._leases._held.update(found)

    def release(self) -> set[str]:
        """Give all back; those that nobody else holds. A second time does nothing."""
        with self._leases.mutex:
            given, self._names = self._names, []
            self._leases._held.subtract(given)
            self._leases._held = +self._leases._held
            return set(given) - set(self._leases._held)
