"""How docker's command line writes things: aligned tables, ages, sizes, Go's quoting, short ids."""

from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any


def table(rows: Sequence[Sequence[str]], narrowest: int = 10) -> str:
    """Rows as Go's tabwriter aligns them for docker: columns 3 apart, the last one free."""
    if not rows:
        return ""
    count = max(len(row) for row in rows)
    widths = [
        max(narrowest, *(len(row[column]) + 3 for row in rows if column < len(row) - 1))
        if any(column < len(row) - 1 for row in rows)
        else 0
        for column in range(count)
    ]
    lines = []
    for row in rows:
        cells = [cell.ljust(widths[i]) if i < len(row) - 1 else cell for i, cell in enumerate(row)]
        lines.append("".join(cells))
    return "\n".join(lines)


def write(data: bytes, fd: int = 1) -> None:
    """All of data to a file descriptor, past Python's buffers. Raises BrokenPipeError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def note(text: str) -> None:
    """A line for the person, on stderr."""
    print(text, file=sys.stderr, flush=True)


def human_duration(seconds: float) -> str:
    """ "3 minutes", "About an hour": the words of docker's ages."""
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    minutes = whole // 60
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    if hours < 24 * 7 * 2:
        return f"{hours // 24} days"
    if hours < 24 * 30 * 2:
        return f"{hours // 24 // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{hours // 24 // 30} months"
    return f"{int(seconds / 3600) // 24 // 365} years"


def ago(epoch: float) -> str:
    """The age of a moment: "3 minutes ago"; of Go's zero time docker shows none."""
    if epoch <= -62_135_596_800:
        return "N/A"
    return human_duration(time.time() - epoch) + " ago"


def _scaled(number: float, base: float, units: Sequence[str], precision: int) -> str:
    index = 0
    while number >= base and index < len(units) - 1:
        number /= base
        index += 1
    return f"{_significant(number, precision)}{units[index]}"


def _significant(number: float, precision: int) -> str:
    text = f"{number:.{precision}g}"
    return f"{float(text):.0f}" if "e" in text else text


def human_size(number: float, precision: int = 3) -> str:
    """Decimal units, as sizes of images are shown: "4.26MB"."""
    return _scaled(float(number), 1000.0, ("B", "kB", "MB", "GB", "TB", "PB"), precision)


def human_bytes(number: float) -> str:
    """Binary units, as memory is shown: "1.5MiB"."""
    return _scaled(float(number), 1024.0, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"), 4)


def short_id(digest: str) -> str:
    """The first 12 digits of an id or a digest."""
    return digest.rpartition(":")[2][:12]


def ellipsis(text: str, width: int) -> str:
    """text, cut to width with an ellipsis as its last character."""
    return text if len(text) <= width else text[: width - 1] + "…"


def go_quote(text: str) -> str:
    """strconv.Quote: a Go string literal."""
    known = {"\n": "\\n", "\t": "\\t", "\r": "\\r", '"': '\\"', "\\": "\\\\", "\a": "\\a", "\b": "\\b"}
    known |= {"\f": "\\f", "\v": "\\v"}
    parts = []
    for char in text:
        if char in known:
            parts.append(known[char])
        elif char.isprintable():
            parts.append(char)
        elif ord(char) < 0x80:
            parts.append(f"\\x{ord(char):02x}")
        else:
            parts.append(f"\\u{ord(char):04x}")
    return '"' + "".join(parts) + '"'


def parse_time(text: str) -> float:
    """Seconds since the epoch of an RFC 3339 time; 0 for Go's zero time."""
    if not text or text.startswith("0001-"):
        return 0.0
    from datetime import datetime

    whole, dot, rest = text.partition(".")
    digits = ""
    while dot and rest[:1].isdecimal():
        digits, rest = digits + rest[0], rest[1:]
    zone = rest if dot else ""
    if whole.endswith("Z"):
        whole, zone = whole[:-1], "Z"
    return datetime.fromisoformat(whole + (zone.replace("Z", "+00:00") or "")).timestamp() + float(
        f"0.{digits or 0}"
    )


def local_time(epoch: float) -> str:
    """Go's time.Time.String() of a moment in local time, as docker's CreatedAt: seconds only."""
    broken = time.localtime(epoch)
    return time.strftime("%Y-%m-%d %H:%M:%S %z ", broken) + (broken.tm_zone or "")


def rfc3339(epoch: float) -> str:
    """A moment in local time, "2026-01-02T03:04:05+01:00", "Z" for UTC."""
    text = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(epoch))
    return text[:-5] + "Z" if text.endswith("+0000") else f"{text[:-2]}:{text[-2:]}"


def confirmed(warning: str) -> bool:
    """Does the person in front of it want that?"""
    print(warning)
    print("Are you sure you want to continue? [y/N] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() == "y"


def filters(words: Sequence[str]) -> str:
    """The API's `filters` parameter of --filter KEY=VALUE words; "" for none. Raises FlagError."""
    if not words:
        return ""
    from nagaya.cli.flags import bad_value
    from nagaya.linux import json

    found: dict[str, dict[str, bool]] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise bad_value(word, "-f, --filter", "expected KEY=VALUE")
        found.setdefault(key.strip().lower(), {})[value.strip()] = True
    return json.dumps(found)


def label_fields(labels: Mapping[str, str]) -> dict[str, Any]:
    """A row's {{.Labels}} and {{.Label "name"}}."""
    return {
        "Labels": ",".join(f"{key}={labels[key]}" for key in sorted(labels)),
        "Label": lambda name: labels.get(name, ""),
    }


def rows(
    items: Sequence[Mapping[str, Any]],
    columns: Sequence[tuple[str, str]],
    format: str,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Print items as a table of (field, header) columns, or as --format says: json, [table ]TEMPLATE.

    headers: those of fields that are in no default column. Raises InvalidArgument for a bad template.
    """
    if format in ("", "table"):
        lines = [[header for _, header in columns]]
        lines += [[str(item[field]) for field, _ in columns] for item in items]
        print(table(lines))
        return
    if format == "json":
        from nagaya.linux import json

        for item in items:
            text = json.dumps({key: item[key] for key in sorted(item) if not callable(item[key])})
            # Go's encoder escapes what HTML would take for markup
            print(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))
        return
    from nagaya.cli.template import Template

    with_header = format.startswith("table ")
    source = format.removeprefix("table ") if with_header else format
    source = source.replace("\\t", "\t").replace("\\n", "\n")
    template = Template(source)
    if not with_header:
        for item in items:
            print(template.render(item))
        return
    known: dict[str, Any] = {**dict(columns), **(headers or {}), "Label": lambda name: name}
    texts = [template.render(known), *(template.render(item) for item in items)]
    print(table([text.split("\t") for text in texts]))
