"""What happened, step by step, with times: `nagaya explain` shows it, errors name their step."""

from __future__ import annotations

from time import monotonic_ns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any


class Trace:
    """The steps of one operation: (name, detail, start_ns on the monotonic clock, duration_ns).

    Entries of the container's first process are merged in when it reports; the clock is the same.
    """

    __slots__ = ("notes", "steps", "warnings")

    def __init__(self) -> None:
        self.steps: list[tuple[str, str, int, int]] = []
        self.warnings: list[str] = []
        self.notes: list[str] = []

    def add(self, name: str, detail: str, start_ns: int) -> None:
        """Record a step that began at start_ns and ends now."""
        self.steps.append((name, detail, start_ns, monotonic_ns() - start_ns))

    def warn(self, text: str) -> None:
        """Record something the caller should be told, though the operation goes on."""
        self.warnings.append(text)

    def note(self, text: str) -> None:
        """Record something for --debug."""
        self.notes.append(text)

    def merge(self, steps: Iterable[Any]) -> None:
        """Take in the steps another process recorded (as `to_wire` gives them)."""
        self.steps.extend((str(n), str(d), int(s), int(t)) for n, d, s, t in steps)

    def to_wire(self) -> list[list[Any]]:
        """The steps as plain data, in the order of their start."""
        return [list(step) for step in sorted(self.steps, key=_start)]


def _start(step: tuple[str, str, int, int]) -> int:
    return step[2]
