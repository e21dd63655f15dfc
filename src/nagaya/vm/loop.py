"""What a monitor waits for: descriptors, each with what is to be done when it is ready, and times.

poll(2) and nothing more: a monitor is small and lives as long as its machine.
"""

from __future__ import annotations

import select
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

POLLIN, POLLOUT = select.POLLIN, select.POLLOUT


class Loop:
    """One thread's waiting. A callback gets the events of poll(2) of its descriptor."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._masks: dict[int, int] = {}
        self._timers: dict[int, tuple[float, Callable[[], None]]] = {}
        self._count = 0

    def watch(self, fd: int, mask: int, callback: Callable[[int], None]) -> None:
        """Call back when one of the events of the mask, an error or a hang-up comes; again replaces. A mask
        of 0 waits for nothing, not even a hang-up, which poll(2) would tell for ever."""
        self._callbacks[fd] = callback
        if mask == self._masks.get(fd):
            return
        if mask:
            self._poll.register(fd, mask)
        elif self._masks.get(fd):
            self._poll.unregister(fd)
        self._masks[fd] = mask

    def forget(self, fd: int) -> None:
        """Wait for it no longer: before it is closed."""
        if self._masks.pop(fd, 0):
            self._poll.unregister(fd)
        self._callbacks.pop(fd, None)

    def after(self, seconds: float, callback: Callable[[], None]) -> int:
        """Call back once, then; the number to `cancel` it."""
        self._count += 1
        self._timers[self._count] = (monotonic() + seconds, callback)
        return self._count

    def cancel(self, number: int) -> None:
        """That callback is not wanted any more."""
        self._timers.pop(number, None)

    def turn(self, longest: float | None = None) -> None:
        """Wait once, at most so many seconds, and call back for all that is ready."""
        now = monotonic()
        waits = [due - now for due, _ in self._timers.values()]
        if longest is not None:
            waits.append(longest)
        timeout = max(0, int(min(waits) * 1000) + 1) if waits else None
        for fd, events in self._poll.poll(timeout):
            callback = self._callbacks.get(fd)
            if callback is not None and self._masks.get(fd):  # an earlier one may have let it go
                callback(events)
        now = monotonic()
        for number, (due, timer) in list(self._timers.items()):
            if due <= now and self._timers.pop(number, None) is not None:
                timer()
