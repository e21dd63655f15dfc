"""What need not be done again: steps by their key, in the ledger and in the build itself.

A key is the digest of everything that a step's result depends on (docs/build.md, "The cache"): the layers it
stands on, the instruction after its variables were put in, the content of the files it reads. What is found
is a layer and a time, never a configuration: that is made anew, so no image can bring one along that differs
from what the Dockerfile says (CVE-2024-24557). Images that were loaded or pulled are no candidates at all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from nagaya.build.state import State
from nagaya.engine.workshop import Workshop
from nagaya.image.building import Base, Bench, Layer
from nagaya.image.catalog import StepRow
from nagaya.oci import manifest as manifests
from nagaya.oci.manifest import Descriptor


class Step(msgspec.Struct, frozen=True):
    """What a step has made: when, and a layer or none. cached: by an earlier build."""

    created: str
    layer: Layer | None
    cached: bool


class Cache:
    """One build's. Lives on the event loop."""

    def __init__(self, workshop: Workshop, bench: Bench, *, use: bool, epoch: int | None = None) -> None:
        """epoch: the time that all gets (SOURCE_DATE_EPOCH)."""
        self._workshop = workshop
        self._bench = bench
        self._use = use
        self._epoch = epoch
        self._steps: dict[str, asyncio.Task[Step]] = {}
        self.candidates: list[Base] = []
        """Images that the user trusts to be made by the same steps (--cache-from)."""
        self.limited = False
        """--cache-from was said: what is in none of the candidates is made anew, as by dockerd."""
        self.made: dict[str, StepRow] = {}
        self.used: dict[str, StepRow] = {}

    async def step(
        self,
        key: str,
        parent: str,
        what: str,
        state: State,
        said: str,
        make: Callable[[], Awaitable[Layer | None]] | None = None,
    ) -> Step:
        """The step of that key: what an earlier build, another stage of this one or a candidate made, else
        what `make` makes (None: no layer). state, said: what it stands on, and its line in the history.
        Raises what make raises."""
        task = self._steps.get(key)
        if task is None or task.cancelled():
            task = asyncio.ensure_future(self._step(key, parent, what, state, said, make))
            self._steps[key] = task
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait([task])
            raise

    async def _step(
        self,
        key: str,
        parent: str,
        what: str,
        state: State,
        said: str,
        make: Callable[[], Awaitable[Layer | None]] | None,
    ) -> Step:
        if self._use:
            row = await self._workshop.work(lambda: self._bench.step(key))
            if row is not None and (not self.limited or any(_has(c, state, row) for c in self.candidates)):
                self.used[key] = row
                return Step(self._time(row.created), _layer(row), True)
            for candidate in self.candidates:
                if (found := _of_candidate(candidate, state, said)) is not None:
                    return Step(self._time(found.created), found.layer, True)
        layer = await make() if make is not None else None
        now = time.time_ns()
        row = StepRow(key, parent, self._time(rfc3339(now)), what[:200], now, now)
        if layer is not None:
            row = msgspec.structs.replace(
                row, diff_id=layer.diff_id, blob=layer.blob.digest, size=layer.blob.size
            )
        self.made[key] = row
        return Step(row.created, layer, False)

    def _time(self, found: str) -> str:
        return found if self._epoch is None else rfc3339(self._epoch * 10**9)

    async def finish(self, state: State | None, names: tuple[str, ...]) -> str:
        """Keep what was made and, if one is given, the image under these names; its id."""
        made, used = list(self.made.values()), list(self.used.values())

        def work() -> str:
            if not made and state is None:
                return ""
            found = self._bench.finish(made, state.base() if state is not None else None, names)
            self._bench.use(used)
            return found

        return await self._workshop.work(work)


def _layer(row: StepRow) -> Layer | None:
    if not row.diff_id:
        return None
    return Layer(row.diff_id, Descriptor(row.blob, row.size, manifests.layer_type("gzip")))


def _has(image: Base, state: State, row: StepRow) -> bool:
    """Does the image stand on what the state stands on, and then the step's layer?"""
    wanted = [*state.diff_ids, *([row.diff_id] if row.diff_id else [])]
    return [layer.diff_id for layer in image.layers[: len(wanted)]] == wanted


def _of_candidate(image: Base, state: State, said: str) -> Step | None:
    """What the image says was made by that step of that state: its history is the state's and then this."""
    lines, before = _history(image.document), _history(state.document)
    here = len(before)
    told = [str(line.get("created_by") or "") for line in lines[: here + 1]]
    if told != [*(str(line.get("created_by") or "") for line in before), said]:
        return None
    below = len(state.layers)
    if tuple(layer.diff_id for layer in image.layers[:below]) != state.diff_ids:
        return None
    made = not lines[here].get("empty_layer")
    if made and below >= len(image.layers):
        return None
    return Step(str(lines[here].get("created") or ""), image.layers[below] if made else None, True)


def _history(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = document.get("history")
    return [line for line in found if isinstance(line, dict)] if isinstance(found, list) else []


def rfc3339(nanoseconds: int) -> str:
    """A time as image configurations have it."""
    whole, rest = divmod(nanoseconds, 10**9)
    text = datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{rest:09d}Z" if rest else f"{text}Z"
