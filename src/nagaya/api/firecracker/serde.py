"""JSON to typed structs, with the complaints of serde_json.

Clients of Firecracker match on what its deserializer says ("missing field `vcpu_count` at line 1 column 21"),
so the words and positions here are serde_json's: the column counts the bytes of the line that had been read
when the fault was seen. What is expected is read from the annotations of msgspec structs; `Annotated` with
one of the kinds below says what Python's types do not (how wide an integer is).
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NoReturn, TypeVar

import msgspec

_SPACE = b" \t\n\r"
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_PLAIN = re.compile(rb'[^"\\\x00-\x1f]*')
_ESCAPES = {b'"': '"', b"\\": "\\", b"/": "/", b"b": "\b", b"f": "\f", b"n": "\n", b"r": "\r", b"t": "\t"}
_WORDS: dict[bytes, tuple[bytes, object]] = {
    b"t": (b"true", True),
    b"f": (b"false", False),
    b"n": (b"null", None),
}
_DEPTH = 128  # serde_json's own limit
T = TypeVar("T")


class SerdeError(Exception):
    """What serde_json would have said."""


class Kind:
    """What a value may be; `read` takes it from the reader, or complains."""

    expected = "a value"

    def read(self, reader: Reader) -> Any:
        return reader.any()


class Unsigned(Kind):
    """An unsigned integer of so many bits, named as Rust names it."""

    def __init__(self, bits: int, name: str = "") -> None:
        self.top = (1 << bits) - 1
        self.expected = name or f"u{bits}"

    def read(self, reader: Reader) -> int:
        value = reader.scalar(self.expected)
        if type(value) is not int:
            reader.wrong("type", value, self.expected)
        if not 0 <= value <= self.top:
            reader.wrong("value", value, self.expected)
        return value


class Text(Kind):
    """A string; `check` turns it into what is kept, and raises ValueError with the complaint."""

    def __init__(self, expected: str = "a string", check: Callable[[str], object] = str) -> None:
        self.expected = expected
        self.check = check

    def read(self, reader: Reader) -> object:
        value = reader.scalar(self.expected)
        if type(value) is not str:
            reader.wrong("type", value, self.expected)
        try:
            return self.check(value)
        except ValueError as error:
            reader.fail(str(error))


class _Boolean(Kind):
    expected = "a boolean"

    def read(self, reader: Reader) -> bool:
        value = reader.scalar(self.expected)
        if type(value) is not bool:
            reader.wrong("type", value, self.expected)
        return value


class _Variant(Kind):
    """One of some words; serde_json takes nothing but a string for it."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.words = words

    def read(self, reader: Reader) -> str:
        if reader.peek() != b'"':
            reader.fail("expected value", reader.at + 1)
        word = reader.string()
        if word not in self.words:
            reader.fail(f"unknown variant `{word}`, expected {_one_of(self.words)}")
        return word


class _Optional(Kind):
    def __init__(self, inner: Kind) -> None:
        self.inner = inner

    def read(self, reader: Reader) -> Any:
        return reader.word() if reader.peek() == b"n" else self.inner.read(reader)


class _Sequence(Kind):
    expected = "a sequence"

    def __init__(self, inner: Kind) -> None:
        self.inner = inner

    def read(self, reader: Reader) -> list[Any]:
        if reader.peek() != b"[":
            reader.wrong("type", reader.scalar(self.expected), self.expected)
        return reader.sequence(self.inner.read)


class _Map(Kind):
    expected = "a map"

    def __init__(self, inner: Kind) -> None:
        self.inner = inner

    def read(self, reader: Reader) -> dict[str, Any]:
        if reader.peek() != b"{":
            reader.wrong("type", reader.scalar(self.expected), self.expected)
        found: dict[str, Any] = {}

        def member(key: str) -> None:
            reader.colon()
            found[key] = self.inner.read(reader)

        reader.members(member)
        return found


class _Struct(Kind):
    def __init__(self, cls: type[msgspec.Struct]) -> None:
        self.cls = cls
        self.expected = f"struct {cls.__name__}"
        hints = typing.get_type_hints(cls, include_extras=True)
        self.fields = {
            field.encode_name: (field.name, kind_of(hints[field.name]), field.required)
            for field in msgspec.structs.fields(cls)
        }
        self.strict = cls.__struct_config__.forbid_unknown_fields

    def read(self, reader: Reader) -> msgspec.Struct:
        if reader.peek() != b"{":
            reader.wrong("type", reader.scalar(self.expected), self.expected)
        found: dict[str, Any] = {}

        def member(key: str) -> None:
            if key not in self.fields:
                if self.strict:
                    reader.fail(f"unknown field `{key}`, expected {_one_of(tuple(self.fields))}")
                reader.colon()
                reader.any()
                return
            name, kind, _ = self.fields[key]
            if name in found:
                reader.fail(f"duplicate field `{key}`")
            reader.colon()
            found[name] = kind.read(reader)

        reader.members(member)
        for key, (name, kind, required) in self.fields.items():
            if required and name not in found:
                if not isinstance(kind, _Optional):
                    reader.fail(f"missing field `{key}`")
                found[name] = None
        return self.cls(**found)


def _one_of(words: tuple[str, ...]) -> str:
    quoted = [f"`{word}`" for word in words]
    if len(quoted) < 3:
        return " or ".join(quoted) or "nothing"
    return f"one of {', '.join(quoted)}"


_KINDS: dict[Any, Kind] = {}


def kind_of(hint: Any) -> Kind:
    """The kind that an annotation asks for. Raises TypeError for what this module does not know."""
    if hint not in _KINDS:
        _KINDS[hint] = _make(hint)
    return _KINDS[hint]


def _make(hint: Any) -> Kind:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return typing.cast(Kind, arguments[1])
    if origin is typing.Literal:
        return _Variant(arguments)
    if origin in (typing.Union, types.UnionType) and len(arguments) == 2 and arguments[1] is type(None):
        return _Optional(kind_of(arguments[0]))
    if origin is list:
        return _Sequence(kind_of(arguments[0]))
    if origin is dict:
        return _Map(kind_of(arguments[1]))
    if hint is str:
        return Text()
    if hint is bool:
        return _Boolean()
    if hint is Any:
        return Kind()
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return _Struct(hint)
    raise TypeError(f"no JSON kind for {hint}")


def decode(cls: type[T], body: bytes) -> T:
    """The body as a `cls`. Raises SerdeError."""
    reader = Reader(body)
    value: T = kind_of(cls).read(reader)
    reader.end()
    return value


def decode_any(body: bytes) -> Any:
    """The body as plain data. Raises SerdeError."""
    reader = Reader(body)
    value = reader.any()
    reader.end()
    return value


class Reader:
    """A cursor in a JSON text that reads what it is asked for. Every method may raise SerdeError."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.at = 0
        self.depth = 0

    def fail(self, complaint: str, at: int | None = None) -> NoReturn:
        """Complain about where the cursor is, or about another place."""
        read = self.text[: self.at if at is None else min(at, len(self.text))]
        line = read.count(b"\n") + 1
        column = len(read) - read.rfind(b"\n") - 1
        raise SerdeError(f"{complaint} at line {line} column {column}")

    def wrong(self, what: str, value: object, expected: str) -> NoReturn:
        """Complain that the value just read has the wrong type, or the wrong value."""
        self.fail(f"invalid {what}: {_unexpected(value)}, expected {expected}")

    def peek(self) -> bytes:
        """The next byte that is no space; the text may not end here."""
        while (byte := self.text[self.at : self.at + 1]) and byte in _SPACE:
            self.at += 1
        if not byte:
            self.fail("EOF while parsing a value")
        return byte

    def end(self) -> None:
        """Nothing but space may follow."""
        while (byte := self.text[self.at : self.at + 1]) and byte in _SPACE:
            self.at += 1
        if byte:
            self.fail("trailing characters", self.at + 1)

    def scalar(self, expected: str) -> Any:
        """A string, number, boolean or null; what begins a collection is not what was expected."""
        byte = self.peek()
        if byte in b"[{":
            found = "map" if byte == b"{" else "sequence"
            self.fail(f"invalid type: {found}, expected {expected}")
        return self.any()

    def any(self) -> Any:
        """Whatever comes."""
        byte = self.peek()
        if byte == b'"':
            return self.string()
        if byte in _WORDS:
            return self.word()
        if byte == b"[":
            return self.sequence(Reader.any)
        if byte == b"{":
            return _Map(Kind()).read(self)
        return self.number()

    def word(self) -> Any:
        """true, false or null."""
        word, value = _WORDS[self.text[self.at : self.at + 1]]
        for byte in word:
            if self.at == len(self.text):
                self.fail("EOF while parsing a value")
            self.at += 1
            if self.text[self.at - 1] != byte:
                self.fail("expected ident")
        return value

    def number(self) -> int | float:
        """An integer of at most 64 bits, or a floating point number."""
        found = _NUMBER.match(self.text, self.at)
        if found is None:
            if self.text[self.at : self.at + 1] != b"-":
                self.fail("expected value", self.at + 1)
            self.fail(
                "EOF while parsing a value" if self.at + 1 == len(self.text) else "invalid number",
                self.at + 2,
            )
        self.at = found.end()
        follow = self.text[self.at : self.at + 1]
        if follow.isdigit() or (follow in (b".", b"e", b"E") and found[2] is None):
            self.fail("invalid number", self.at + 1)
        digits = found[0]
        if found[1] is None and found[2] is None and len(digits) <= 20:
            value = int(digits)
            if -(1 << 63) <= value < 1 << 64:
                return value
        real = float(digits)
        if real in (float("inf"), float("-inf")):
            self.fail("number out of range")
        return real

    def string(self) -> str:
        """The string whose quote is next."""
        self.at += 1
        parts: list[str] = []
        while True:
            begin, self.at = self.at, _end(_PLAIN, self.text, self.at)
            try:
                parts.append(self.text[begin : self.at].decode())
            except UnicodeDecodeError:
                self.fail("invalid unicode code point")
            byte = self.text[self.at : self.at + 1]
            self.at += 1
            if byte == b'"':
                return "".join(parts)
            if not byte:
                self.fail("EOF while parsing a string")
            if byte != b"\\":
                self.fail("control character (\\u0000-\\u001F) found while parsing a string")
            parts.append(self._escape())

    def _escape(self) -> str:
        byte = self.text[self.at : self.at + 1]
        self.at += 1
        if byte in _ESCAPES:
            return _ESCAPES[byte]
        if byte != b"u":
            self.fail("invalid escape" if byte else "EOF while parsing a string")
        first = self._hex()
        if 0xDC00 <= first < 0xE000:
            self.fail("lone leading surrogate in hex escape")
        if 0xD800 <= first < 0xDC00:
            if self.text[self.at : self.at + 2] != b"\\u":
                self.fail("unexpected end of hex escape")
            self.at += 2
            second = self._hex()
            if not 0xDC00 <= second < 0xE000:
                self.fail("lone leading surrogate in hex escape")
            first = 0x10000 + ((first - 0xD800) << 10) + second - 0xDC00
        return chr(first)

    def _hex(self) -> int:
        digits = self.text[self.at : self.at + 4]
        if len(digits) < 4:
            self.at = len(self.text)
            self.fail("EOF while parsing a string")
        self.at += 4
        if not re.fullmatch(rb"[0-9a-fA-F]{4}", digits):
            self.fail("invalid escape")
        return int(digits, 16)

    def _deeper(self) -> None:
        self.at += 1
        self.depth += 1
        if self.depth >= _DEPTH:
            self.fail("recursion limit exceeded")

    def _next(self, closing: bytes, first: bool, what: str) -> bool:
        """Whether another item comes; the closing bracket and the commas are read."""
        try:
            byte = self.peek()
        except SerdeError:
            self.fail(f"EOF while parsing {what}")
        if byte == closing:
            self.at += 1
            self.depth -= 1
            return False
        if first:
            return True
        if byte != b",":
            self.fail(f"expected `,` or `{closing.decode()}`", self.at + 1)
        self.at += 1
        if self.peek() == closing:
            self.fail("trailing comma", self.at + 1)
        return True

    def sequence(self, item: Callable[[Reader], Any]) -> list[Any]:
        """The array whose bracket is next."""
        self._deeper()
        found: list[Any] = []
        while self._next(b"]", not found, "a list"):
            found.append(item(self))
        return found

    def members(self, member: Callable[[str], None]) -> None:
        """The object whose brace is next: `member` is called after each key, to read colon and value."""
        self._deeper()
        first = True
        while self._next(b"}", first, "an object"):
            first = False
            if self.peek() != b'"':
                self.fail("key must be a string", self.at + 1)
            member(self.string())

    def colon(self) -> None:
        """What stands between a key and its value."""
        try:
            byte = self.peek()
        except SerdeError:
            self.fail("EOF while parsing an object")
        if byte != b":":
            self.fail("expected `:`", self.at + 1)
        self.at += 1


def _end(pattern: re.Pattern[bytes], text: bytes, at: int) -> int:
    """Where that ends which begins here."""
    found = pattern.match(text, at)
    return found.end() if found else at


def _unexpected(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"boolean `{str(value).lower()}`"
    if isinstance(value, int):
        return f"integer `{value}`"
    if isinstance(value, float):
        # Rust prints no exponents
        digits = format(Decimal(repr(value)), "f")
        return f"floating point `{digits if '.' in digits else digits + '.0'}`"
    return f"string {msgspec.json.encode(value).decode()}"
