"""Properties of a container's unit that its annotations ask for: `org.systemd.property.NAME`, as runc and
crun have it. Pure.

A value is GVariant's text: `true`, `'text'`, `12`, `uint64 12` or `@t 12`, `['a', 'b']`, `@as []`. A name
that ends in Sec becomes USec, and its number microseconds: `TimeoutStopSec` of `3` is `TimeoutStopUSec` of
3000000.
Sources: https://docs.gtk.org/glib/gvariant-text-format.html, org.freedesktop.systemd1(5).
"""

from __future__ import annotations

from nagaya.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    # (name, (D-Bus signature, value))
    Property = tuple[str, tuple[str, Any]]

PREFIX = "org.systemd.property."
_WORDS = {
    "boolean": "b",
    "byte": "y",
    "int16": "n",
    "uint16": "q",
    "int32": "i",
    "uint32": "u",
    "int64": "x",
    "uint64": "t",
    "double": "d",
    "string": "s",
    "objectpath": "o",
}
_BITS = {"y": (0, 8), "n": (1, 16), "q": (0, 16), "i": (1, 32), "u": (0, 32), "x": (1, 64), "t": (0, 64)}
_ESCAPES = {"n": "\n", "t": "\t", "\\": "\\", "'": "'", '"': '"'}
_SHORTEST_NAME = 3


def wanted(annotations: Mapping[str, str]) -> list[Property]:
    """The properties, in the order of their names. Raises InvalidArgument naming the annotation."""
    found = []
    for key in sorted(annotations):
        if not key.startswith(PREFIX):
            continue
        name = key[len(PREFIX) :]
        if len(name) < _SHORTEST_NAME or not (name.isascii() and name.isalpha()):
            raise _wrong(key, f"{name!r} is not the name of a property")
        signature, value = parse(annotations[key], key)
        if name.endswith("Sec") and not name.endswith("USec"):
            if signature not in _BITS and signature != "d":
                raise _wrong(key, "seconds are a number")
            name, signature, value = f"{name[:-3]}USec", "t", int(value * 1_000_000)
            _bounded(signature, value, key)
        found.append((name, (signature, value)))
    return found


def parse(text: str, key: str) -> tuple[str, Any]:
    """(signature, value) of a text. Raises InvalidArgument.

    >>> parse("uint64 7", "k"), parse("['a']", "k")
    (('t', 7), ('as', ['a']))
    """
    text = text.strip()
    first, blank, rest = text.partition(" ")
    named = first[1:] if first.startswith("@") else _WORDS.get(first, "")
    if blank and named:
        return named, _typed(named, rest.strip(), key)
    if text in ("true", "false"):
        return "b", text == "true"
    if text[:1] in ("'", '"'):
        return "s", _typed("s", text, key)
    if text[:1] == "[":
        items = _items(text, key)
        if not items:
            raise _wrong(key, "an empty array needs its type, as in '@as []'")
        kind = parse(items[0], key)[0]
        return f"a{kind}", [_typed(kind, item, key) for item in items]
    kind = "d" if any(c in text for c in ".eE") and "x" not in text else "i"
    return kind, _typed(kind, text, key)


def _typed(signature: str, text: str, key: str) -> Any:
    if signature[:1] == "a" and len(signature) > 1:
        return [_typed(signature[1:], item, key) for item in _items(text, key)]
    if signature in ("s", "o", "g"):
        return _string(text, key)
    if signature == "b" and text in ("true", "false"):
        return text == "true"
    try:
        if signature == "d":
            return float(text)
        if signature in _BITS:
            return _bounded(signature, int(text, 0), key)
    except ValueError:
        pass
    raise _wrong(key, f"{text!r:.60} is not of type {signature!r:.10}")


def _bounded(signature: str, value: int, key: str) -> int:
    signed, bits = _BITS[signature]
    low, high = (-(1 << bits - 1), 1 << bits - 1) if signed else (0, 1 << bits)
    if not low <= value < high:
        raise _wrong(key, f"{value} does not fit type {signature!r}")
    return value


def _string(text: str, key: str) -> str:
    if len(text) < 2 or text[0] not in "'\"" or text[-1] != text[0]:
        raise _wrong(key, f"{text!r:.60} is not a quoted string")
    found, at, inner = [], 0, text[1:-1]
    while at < len(inner):
        letter = inner[at]
        if letter == text[0] or "\0" in letter:
            raise _wrong(key, f"{text!r:.60} is not one quoted string")
        if letter == "\\":
            at += 1
            if inner[at : at + 1] not in _ESCAPES:
                raise _wrong(key, f"unknown escape in {text!r:.60}")
            letter = _ESCAPES[inner[at]]
        found.append(letter)
        at += 1
    return "".join(found)


def _items(text: str, key: str) -> list[str]:
    """The elements of `[a, b]` as texts: commas within quotes and brackets are theirs."""
    if len(text) < 2 or text[0] != "[" or text[-1] != "]":
        raise _wrong(key, f"{text!r:.60} is not an array")
    found, depth, quote, begin, at = [], 0, "", 1, 1
    while at < len(text) - 1:
        letter = text[at]
        if quote:
            at += letter == "\\"
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "[]":
            depth += 1 if letter == "[" else -1
        elif letter == "," and not depth:
            found.append(text[begin:at].strip())
            begin = at + 1
        at += 1
    last = text[begin:-1].strip()
    if quote or depth or (found and not last):
        raise _wrong(key, f"{text!r:.60} is not an array")
    return [*found, last] if last else found


def _wrong(key: str, why: str) -> InvalidArgument:
    return InvalidArgument(f"annotations[{key!r}]: {why}", subject=f"annotations[{key!r}]")
