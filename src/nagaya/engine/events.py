"""What happens in the house, told as dockerd tells it (`docker events`).

A ring of the last events is kept for `--since`, and beyond the daemon's end by history.py. A reader
that does not keep up is cut off rather than waited for: nobody's slow terminal may hold the engine or
its memory.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Collection

from nagaya.engine.history import History
from nagaya.engine.model import Container, Event

POD, POD_CONTAINER = "pod", "pod-container"
HIDDEN = frozenset((POD, POD_CONTAINER))  # told to kubelets only
_RING = 1024
_BACKLOG = 4096


class Bus:
    """Publishes to all subscribers. Lives on the event loop."""

    def __init__(self, history: History | None = None) -> None:
        """history: where events are kept, and come from; without, they end with the process."""
        self._history = history
        self._ring: deque[Event] = deque(history.load(_RING) if history else (), maxlen=_RING)
        self.published = 0
        self._queues: set[asyncio.Queue[Event | None]] = set()

    @property
    def listeners(self) -> int:
        """How many read along."""
        return len(self._queues)

    def close(self) -> None:
        """Write down what was told last. Blocking."""
        if self._history is not None:
            self._history.flush()

    def publish(self, kind: str, action: str, subject: str, attributes: dict[str, str]) -> None:
        """Tell everybody that `action` happened to `subject`."""
        event = Event(kind, action, subject, attributes, time.time_ns())
        self._ring.append(event)
        self.published += 1
        if self._history is not None:
            self._history.add(event)
        for queue in tuple(self._queues):
            if queue.qsize() >= _BACKLOG:
                self._queues.discard(queue)
                queue.put_nowait(None)
            else:
                queue.put_nowait(event)

    def container(self, container: Container, action: str, **attributes: str) -> None:
        """A container's event: with its labels, image and name."""
        self.publish(
            "container" if container.config.pod is None else POD_CONTAINER,
            action,
            container.id,
            {
                **container.labels,
                **({} if container.config.pod is None else {"pod": container.config.pod.pod_id}),
                "image": container.config.image,
                "name": container.name,
                **attributes,
            },
        )

    async def subscribe(
        self, since: int = 0, until: int = 0, *, hidden: Collection[str] = ()
    ) -> AsyncIterator[Event]:
        """Events after `since` (nanoseconds; 0: from now on), up to `until` (0: for ever), but of the hidden
        types."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        past = [e for e in self._ring if since and e.time_ns >= since and (not until or e.time_ns <= until)]
        self._queues.add(queue)
        try:
            for event in past:
                if event.type not in hidden:
                    yield event
            while True:
                remaining = None if not until else (until - time.time_ns()) / 1e9
                if remaining is not None and remaining <= 0:
                    return
                try:
                    found = await asyncio.wait_for(queue.get(), remaining)
                except TimeoutError:
                    return
                if found is None:
                    return
                if found.time_ns >= since and found.type not in hidden:
                    yield found
        finally:
            self._queues.discard(queue)
