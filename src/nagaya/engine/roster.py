"""All containers in memory: found by id, prefix or name; a lock each; who waits for what.

Reads take no lock: a stuck container never stops `ps` (field notes, complaint 2). What is large or
rarely wanted (steps, spec, image configuration) stays in the ledger.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Literal

from nagaya.engine import names
from nagaya.engine.model import Container, WaitResult
from nagaya.errors import InvalidArgument, NotFound

Condition = Literal["not-running", "next-exit", "removed"]


class Slot:
    """One container and what belongs to it only while the daemon lives."""

    __slots__ = ("attached", "container", "hidden", "lock", "restarts", "unwritten", "waiters")

    def __init__(self, container: Container) -> None:
        self.container = container
        self.lock = asyncio.Lock()
        self.waiters: list[tuple[Condition, asyncio.Future[WaitResult]]] = []
        self.restarts = 0  # clients restarting it now: an end is then no reason for `--rm`
        self.unwritten = False  # could its end not be written down yet? Then the keeper keeps it, too
        self.hidden: tuple[str, ...] = ()  # of the environment: known to its process and to no row or inspect
        self.attached = False  # have clients attached that io may keep waiting?

    def wait(self, condition: Condition) -> asyncio.Future[WaitResult]:
        """A future that resolves when the condition holds; at once when it does already."""
        future: asyncio.Future[WaitResult] = asyncio.get_running_loop().create_future()
        state = self.container.state
        if condition == "not-running" and state in ("created", "exited", "dead"):
            future.set_result(WaitResult(self.container.exit_code, ""))
        else:
            self.waiters.append((condition, future))
            future.add_done_callback(self._forget)
        return future

    def _forget(self, future: asyncio.Future[WaitResult]) -> None:
        self.waiters = [w for w in self.waiters if w[1] is not future]

    def notify(self, *conditions: Condition) -> None:
        """Resolve the waiters of these conditions with the container's exit code."""
        result = WaitResult(self.container.exit_code, "")
        for condition, future in tuple(self.waiters):
            if condition in conditions and not future.done():
                future.set_result(result)


class Roster:
    """The table of slots. Lives on the event loop; a name is reserved before its container is made."""

    def __init__(self) -> None:
        self._slots: dict[str, Slot] = {}
        self._names: dict[str, str] = {}

    def __iter__(self) -> Iterator[Slot]:
        return iter(tuple(self._slots.values()))

    def __len__(self) -> int:
        return len(self._slots)

    def reserve(self, name: str, container_id: str) -> str:
        """Take a name ("" invents one). Raises AlreadyExists (Conflict...), InvalidArgument."""
        if not name:
            name = names.invent_name(self._names.__contains__)
        name = names.check_name(name)
        holder = self._names.get(name)
        if holder is not None:
            raise names.conflict(name, holder)
        self._names[name] = container_id
        return name

    def release(self, name: str, container_id: str) -> None:
        """Give a name back, if that container holds it."""
        if self._names.get(name) == container_id:
            del self._names[name]

    def add(self, container: Container) -> Slot:
        """Show a container whose row is written."""
        slot = Slot(container)
        self._slots[container.id] = slot
        self._names[container.name] = container.id
        return slot

    def discard(self, container_id: str) -> None:
        """Forget a container whose row is gone."""
        slot = self._slots.pop(container_id, None)
        if slot is not None:
            self.release(slot.container.name, container_id)

    def get(self, container_id: str) -> Slot | None:
        """The slot of a whole id."""
        return self._slots.get(container_id)

    def named(self, name: str) -> Container | None:
        """The container of a name, once it is made."""
        slot = self._slots.get(self._names.get(name, ""))
        return None if slot is None else slot.container

    def find(self, ref: str) -> Slot:
        """By id, name (with or without a slash), or unambiguous id prefix, as Docker resolves it."""
        slot = self._slots.get(ref)
        if slot is None:
            bare = ref.removeprefix("/")
            slot = self._slots.get(self._names.get(bare, ""))
        if slot is None and ref and all(c in "0123456789abcdef" for c in ref):
            found = [
                i for i, s in self._slots.items() if i.startswith(ref) and s.container.config.pod is None
            ]
            if len(found) > 1:
                raise InvalidArgument(f"multiple IDs found with provided prefix: {ref}", subject=ref)
            if found:
                slot = self._slots[found[0]]
        if slot is None:
            raise NotFound(f"No such container: {ref}", subject=ref)
        return slot
