"""What a build says. Stages run at the same time; their lines come in the order of the stages all the same.

The first stage that is not done speaks at once; what the others say waits, and they with it once it is much.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from nagaya.engine.model import PullProgress

_WAITING = 1 << 20  # bytes that a stage may say before its turn


class Said(msgspec.Struct, frozen=True):
    """One of: text for people; a pull's progress; the image that was made (its id)."""

    text: str = ""
    progress: PullProgress | None = None
    image: str = ""


Say = Callable[[Said], Awaitable[None]]


class Lane:
    """One stage's place in the order."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._turn = asyncio.Event()
        self._held: list[Said] = []
        self._size = 0

    async def text(self, text: str) -> None:
        """Say it, or keep it until it is our turn."""
        await self.say(Said(text))

    async def say(self, said: Said) -> None:
        """The same for all else."""
        if not self._turn.is_set():
            self._held.append(said)
            self._size += len(said.text) or 100
            if self._size < _WAITING:
                return
            await self._turn.wait()
            return
        await self._flush()
        await self._say(said)

    async def begin(self) -> None:
        """It is our turn."""
        self._turn.set()
        await self._flush()

    async def _flush(self) -> None:
        while self._held:
            await self._say(self._held.pop(0))


class Lanes:
    """All of a build's, in order."""

    def __init__(self, say: Say, count: int) -> None:
        self.all: Sequence[Lane] = [Lane(say) for _ in range(count)]
        self._done = [asyncio.Event() for _ in range(count)]

    async def run(self) -> None:
        """Give each its turn, until the last is done."""
        for lane, done in zip(self.all, self._done, strict=True):
            await lane.begin()
            await done.wait()
            await lane.begin()

    def done(self, index: int) -> None:
        """The lane of that number says nothing more."""
        self._done[index].set()
