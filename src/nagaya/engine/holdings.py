"""Duplicates of every descriptor a keeper has: with them another keeper goes on where it stopped."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from nagaya.engine.keeper import Entry, Exit, exit_of, status_of
from nagaya.linux import seqpacket

if TYPE_CHECKING:
    from nagaya.wire.messages import Message


class Holdings:
    """What one keeper has told: its entries, what it holds for us, and io's state (journal and stage).
    The descriptors are ours."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.held: dict[str, list[int]] = {}
        self.state: list[int] = []

    def __bool__(self) -> bool:
        """Is there anything that needs a keeper?"""
        return bool(self.entries or self.held)

    def note(self, said: Message, fds: list[int]) -> Entry:
        """An entry as a message tells it, in place of one of its token: a foreign container whose init
        is known now."""
        self.forget(said["token"])
        entry = Entry(
            said["token"],
            said["pid"],
            said["stdio"],
            list(said["slots"]),
            said["log"],
            dict(zip(said["fds"], fds, strict=False)),
        )
        if said["exited"]:
            entry.exit = exit_of(said)
        self.entries[entry.token] = entry
        return entry

    def forget(self, token: str) -> None:
        """The entry is gone, or was never there."""
        entry = self.entries.pop(token, None)
        if entry is not None:
            seqpacket.close_all(entry.fds.values())

    def hold(self, token: str, fds: Sequence[int]) -> None:
        """More that is held under the token."""
        self.held.setdefault(token, []).extend(fds)

    def unhold(self, token: str) -> None:
        """Nothing more is held under it."""
        seqpacket.close_all(self.held.pop(token, []))

    def close_stdin(self, token: str) -> None:
        """The process reads no more from us."""
        entry = self.entries.get(token)
        if entry is not None and "stdin" in entry.fds:
            os.close(entry.fds.pop("stdin"))

    def close(self) -> None:
        """Let all go."""
        for token in tuple(self.entries):
            self.forget(token)
        for token in tuple(self.held):
            self.unhold(token)
        seqpacket.close_all(self.state)
        self.state = []

    def take_over(self, former: Holdings) -> None:
        """What a dead keeper had, for one that has nothing yet. From one that has: another daemon was
        first, and only what was held for us comes along."""
        if former.state and not self.entries:
            self.entries, former.entries = former.entries, {}
            self.state, former.state = former.state, self.state
        for token, fds in former.held.items():
            self.unhold(token)
            self.held[token] = fds
        former.held = {}
        former.close()

    def restoring(self) -> Iterator[tuple[str, list[int], dict[str, Any]]]:
        """The messages (kind, descriptors, fields) that give entries and io's state to a new keeper."""
        yield "restore", self.state, {"entries": len(self.entries)}
        for entry in self.entries.values():
            ended = entry.exit
            fields = {
                "token": entry.token,
                "pid": entry.pid,
                "stdio": entry.stdio,
                "slots": entry.slots,
                "log": entry.log,
                "fds": list(entry.fds),
                "exited": ended is not None,
                "status": status_of(ended) if ended else None,
                "time_ns": ended.time_ns if ended else 0,
            }
            yield "adopt", list(entry.fds.values()), fields

    def holding(self) -> Iterator[tuple[str, list[int], dict[str, Any]]]:
        """The messages that give what is held, in packets that are not too large."""
        for token, fds in self.held.items():
            yield from holding(token, fds)

    def ended_since(self, former: Holdings) -> list[Exit]:
        """The exits that came while the same keeper was not listened to."""
        found = []
        for token, old in former.entries.items():
            now = self.entries.get(token)
            if old.exit is None and now is not None and now.exit is not None:
                found.append(now.exit)
        return found


def holding(token: str, fds: Sequence[int]) -> Iterator[tuple[str, list[int], dict[str, Any]]]:
    """The "hold" messages for these descriptors."""
    for first in range(0, len(fds), seqpacket.MAX_FDS):
        yield "hold", list(fds[first : first + seqpacket.MAX_FDS]), {"token": token}
