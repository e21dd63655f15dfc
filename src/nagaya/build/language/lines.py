"""A Dockerfile's bytes to its logical lines: directives, comments, continuation lines, documents.

The rules are those of moby/buildkit's frontend/dockerfile/parser; what surprises is said where it stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from nagaya.build.language import words
from nagaya.build.language.ast import DockerfileError, Heredoc, Warning
from nagaya.build.language.variables import Lexer

MAX_LINE = 65535  # the longest line that Go's bufio.Scanner takes
_DIRECTIVE = re.compile(r"#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+?)\s*\Z", re.ASCII)
_HEREDOC = re.compile(r"(\d*)<<(-?)\s*([^<]*)\Z", re.ASCII)
_DIRECTIVES = ("syntax", "escape", "check")
_WITH_DOCUMENTS = ("add", "copy", "run")


class Line(msgspec.Struct, frozen=True):
    """One instruction as written. keyword: as written. flags: their words. rest: what follows the flags."""

    text: str
    keyword: str
    flags: tuple[str, ...]
    rest: str
    line: int
    end: int
    heredocs: tuple[Heredoc, ...] = ()


class Lines(msgspec.Struct, frozen=True):
    """A whole file's."""

    lines: tuple[Line, ...]
    escape: str
    directives: dict[str, str]
    warnings: tuple[Warning, ...]


def read(data: bytes) -> Lines:
    """All instructions of a Dockerfile. Raises DockerfileError."""
    text = data.decode("utf-8", "replace").removeprefix("\ufeff")
    physical = text.split("\n")
    if physical[-1] == "":
        physical.pop()
    directives = _directives(physical)
    escape = directives.get("escape", "\\")
    found: list[Line] = []
    warnings: list[Warning] = []
    source = _Source(physical)
    for number, first in source:
        joined = _joined(number, first, source, re.escape(escape), warnings)
        if not joined:
            continue
        try:
            found.append(_line(joined, number, source, escape))
        except DockerfileError as error:
            raise DockerfileError(error.message, error.line or number) from None
    if not found:
        raise DockerfileError("file with no instructions")
    return Lines(tuple(found), escape, directives, tuple(warnings))


class _Source:
    """The physical lines with their numbers, each handed out once."""

    def __init__(self, physical: list[str]) -> None:
        self.physical = physical
        self.number = 0

    def __iter__(self) -> Iterator[tuple[int, str]]:
        while self.number < len(self.physical):
            self.number += 1
            line = self.physical[self.number - 1]
            if len(line) > MAX_LINE:
                raise DockerfileError(
                    f"dockerfile line greater than max allowed size of {MAX_LINE}", self.number
                )
            yield self.number, line


def _directives(physical: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, line in enumerate(physical, 1):
        match = _DIRECTIVE.match(line.strip(words.BLANKS))
        if match is None or match[1].lower() not in _DIRECTIVES:
            break  # directives come before all else, other comments included
        name = match[1].lower()
        if name in found:
            raise DockerfileError(f"only one {name} parser directive can be used", number)
        if name == "escape" and match[2] not in ("\\", "`"):
            raise DockerfileError(f"invalid escape token '{match[2][:40]}' does not match ` or \\", number)
        found[name] = match[2]
    return found


def _joined(number: int, first: str, source: _Source, escape: str, warnings: list[Warning]) -> str:
    """One logical line; "" when there is none. Comments and empty lines within it vanish."""
    line = first.rstrip("\r").lstrip(words.BLANKS)
    if line.startswith("#"):
        return ""
    # the mark of continuation is the last that is not blank, and not escaped itself
    continued = re.compile(rf"(?:(?<=[^{escape}])|\A){escape}[ \t]*\Z")
    line, more = continued.subn("", line, count=1)
    parts = [line]
    empty = False
    while more:
        following = next(iter(source), None)
        if following is None:
            break
        line = following[1].rstrip("\r")
        bare = line.lstrip(words.BLANKS)
        if bare.startswith("#"):
            continue
        if not bare:
            empty = True
            continue
        line, more = continued.subn("", line, count=1)
        parts.append(line)
    joined = "".join(parts)
    if empty:
        message = f"Empty continuation line found in: {joined}"
        warnings.append(Warning("NoEmptyContinuation", message, source.number))
    return joined if joined.strip(words.BLANKS) else ""


def cut(text: str, escape: str) -> tuple[str, list[str], str]:
    """An instruction's keyword, flags and the rest."""
    keyword, *rest = words.GAP.split(text.strip(words.BLANKS), maxsplit=1)
    if not rest:
        return keyword, [], ""
    flags, arguments = words.flags(rest[0], escape)
    return keyword, flags, arguments.strip(words.BLANKS)


def _line(text: str, number: int, source: _Source, escape: str) -> Line:
    keyword, flags, rest = cut(text, escape)
    heredocs: tuple[Heredoc, ...] = ()
    if "<<" in text and _takes_documents(keyword, rest, escape):
        heredocs = tuple(_document(mark, number, source) for mark in _marks(text))
    return Line(text, keyword, tuple(flags), rest, number, source.number, heredocs)


def _takes_documents(keyword: str, rest: str, escape: str) -> bool:
    if keyword.lower() == "onbuild":
        keyword, _, rest = cut(rest, escape)
    return keyword.lower() in _WITH_DOCUMENTS and words.array(rest) is None


def _marks(text: str) -> list[Heredoc]:
    """The marks of documents in a line, in order, without their contents."""
    lexer = Lexer({}, raw_quotes=True, raw_escapes=True, keep_unset=True)
    try:
        found = [mark(word) for word in lexer.words(text)]
    except DockerfileError:
        return []  # such quotes are for the shell to judge
    return [heredoc for heredoc in found if heredoc is not None]


def mark(word: str) -> Heredoc | None:
    """The document that a word such as `<<EOF` begins, still without content; None when it is none.

    Raises DockerfileError when the quotes of the mark are not closed.
    """
    match = _HEREDOC.match(word)
    if match is None or not match[3]:
        return None
    bare = Lexer({}, keep_unset=True).words(match[3])
    if len(bare) != 1:
        return None
    raw = Lexer({}, keep_unset=True, raw_quotes=True).words(match[3])
    if len(raw) != 1:
        raise DockerfileError(f"the mark of a document is not understood: {word[:80]}")
    quotes = [sum(text.count(quote) for quote in "'\"") for text in (bare[0], raw[0])]
    return Heredoc(bare[0], "", expand=quotes[0] == quotes[1], chomp=match[2] == "-")


def _document(heredoc: Heredoc, start: int, source: _Source) -> Heredoc:
    content: list[str] = []
    for _, line in source:
        end = line.rstrip("\r")
        if (end.lstrip("\t") if heredoc.chomp else end) == heredoc.name:
            return msgspec.structs.replace(heredoc, content="".join(content))
        content.append(line + "\n")
    raise DockerfileError("unterminated heredoc", start)
