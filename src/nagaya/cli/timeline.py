"""The steps of a container's start as bars on one time axis (pure)."""

from __future__ import annotations

from nagaya.cli.output import ellipsis

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

_EIGHTHS = " ▏▎▍▌▋▊▉"
_COLORS = ("36", "33", "35", "32", "34", "31")
_NARROWEST = 20


def milliseconds(nanoseconds: int) -> str:
    """ "1.23 ms", with as many digits as the size of the number asks for."""
    number = nanoseconds / 1e6
    return f"{number:.3f}" if number < 1 else f"{number:.2f}" if number < 100 else f"{number:.0f}"


def draw(steps: Sequence[Mapping[str, Any]], width: int, *, color: bool) -> str:
    """Lines of text, each ended by a newline: room, step, duration in ms, bar, detail.

    Steps are the API's {Room, Name, Detail, StartNs, DurationNs}; they are drawn in the order of their start.
    """
    if not steps:
        return "no steps are known: it was never started, or before the daemon's records begin\n"
    ordered = sorted(steps, key=lambda step: (step["StartNs"], -step["DurationNs"]))
    begin = ordered[0]["StartNs"]
    end = max(step["StartNs"] + step["DurationNs"] for step in ordered)
    whole = max(1, end - begin)
    rooms = list(dict.fromkeys(step["Room"] for step in ordered))
    room_width = max(len(room) for room in rooms)
    name_width = min(28, max(len(step["Name"]) for step in ordered))
    left = room_width + name_width + 12
    bar_width = max(_NARROWEST, (width - left) // 2)
    detail_width = max(0, width - left - bar_width - 2)
    lines = [_axis(left, bar_width, whole)]
    for step in ordered:
        start = (step["StartNs"] - begin) * bar_width / whole
        bar = _bar(start, step["DurationNs"] * bar_width / whole, bar_width)
        if color:
            bar = f"\x1b[{_COLORS[rooms.index(step['Room']) % len(_COLORS)]}m{bar}\x1b[0m"
        name = ellipsis(step["Name"], name_width)
        took = milliseconds(step["DurationNs"])
        text = f"{step['Room']:<{room_width}}  {name:<{name_width}} {took:>7}  {bar}"
        detail = _plain(str(step.get("Detail") or ""))
        lines.append(
            f"{text}  {ellipsis(detail, detail_width)}".rstrip() if detail_width > 1 else text.rstrip()
        )
    covered = _covered(ordered)
    lines.append(
        f"{milliseconds(whole)} ms from first to last step, {milliseconds(covered)} ms of it in steps"
    )
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Control characters out: details name paths, and a path may hold an escape sequence."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _axis(left: int, width: int, whole: int) -> str:
    end = f"{milliseconds(whole)} ms"
    return " " * left + "0" + end.rjust(width - 1)


def _bar(start: float, length: float, width: int) -> str:
    """A bar of blocks; its end is drawn to an eighth of a column, and even the shortest step is seen."""
    first = min(int(start), width - 1)
    eighths = max(1, round((start + length - first) * 8))
    full, part = divmod(min(eighths, (width - first) * 8), 8)
    drawn = "█" * full + (_EIGHTHS[part] if part else "")
    return (" " * first + drawn).ljust(width)


def _covered(ordered: Sequence[Mapping[str, Any]]) -> int:
    """Nanoseconds in which at least one step was under way."""
    total, reached = 0, 0
    for step in ordered:
        start, end = step["StartNs"], step["StartNs"] + step["DurationNs"]
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total
