"""Patterns of paths: .dockerignore, and --exclude of COPY and ADD (moby/patternmatcher).

`*` and `?` are within one name, `**/` is any number of directories, `[a-z]` a class, backslash takes the
meaning away. What matches a directory matches all below it; `!` takes back; the last that matches decides.

Each pattern becomes a regular expression that cannot go back (atomic groups): a hostile pattern costs no
more than its length times the path's.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Sequence

import msgspec

from nagaya.build.language.words import BLANKS
from nagaya.errors import InvalidArgument

MAX_SIZE = 4 << 20
STAR, ONE, DEEP, REST = 0, 1, 2, 3  # [^/]*, [^/], (.*/)?, .*


class _Class(msgspec.Struct, frozen=True):
    """A class of characters as a regular expression; never a slash."""

    expression: str


Token = str | int | _Class


class Rule(msgspec.Struct, frozen=True):
    """One pattern. back: it began with `!`. fixed: its leading names without wildcards."""

    pattern: str
    back: bool
    fixed: tuple[str, ...]
    matches: Callable[[str], bool]


class Rules:
    """Patterns in order. Paths are relative, with slashes, without dots."""

    def __init__(self, patterns: Iterable[str]) -> None:
        """Raises InvalidArgument for a pattern that is none."""
        self.rules = tuple(map(_rule, patterns))
        self._directories: dict[str, int] = {"": 0}

    def excludes(self, path: str) -> bool:
        """Does the last pattern that matches the path, or a directory above it, exclude it?"""
        above, _, _ = path.rpartition("/")
        if above not in self._directories:
            names = above.split("/")
            for depth in range(1, len(names) + 1):
                directory = "/".join(names[:depth])
                if directory not in self._directories:
                    parent = directory.rpartition("/")[0]
                    self._directories[directory] = self._judge(directory, self._directories[parent])[0]
        return self._judge(path, self._directories[above])[1]

    def prunes(self, directory: str) -> bool:
        """Is the directory excluded, and nothing below it can be taken back: need it not be read?"""
        if not self.excludes(directory):
            return False
        names = directory.split("/")
        return not any(
            rule.back and rule.fixed[: len(names)] == tuple(names[: len(rule.fixed)]) for rule in self.rules
        )

    def _judge(self, path: str, above: int) -> tuple[int, bool]:
        """(the rules that hit it, one bit each, is it excluded); above: those that hit its directory.

        A rule that would change nothing is not asked, and so does not hit what lies below, either: `!d` after
        a pattern that does not match d takes back nothing in it. Docker's clients and BuildKit do it so.
        """
        hits, out = 0, False
        for number, rule in enumerate(self.rules):
            hit = bool(above >> number & 1) or (rule.back == out and rule.matches(path))
            if hit:
                hits |= 1 << number
                out = not rule.back
        return hits, out


def read(data: bytes) -> list[str]:
    """The patterns of a .dockerignore. Raises InvalidArgument when it is too large."""
    if len(data) > MAX_SIZE:
        raise InvalidArgument(f".dockerignore is larger than {MAX_SIZE} bytes", subject=".dockerignore")
    found = []
    for line in data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape").split("\n"):
        pattern = line.strip(BLANKS)
        if not pattern or line.startswith("#"):
            continue
        back = "!" if pattern.startswith("!") else ""
        pattern = pattern[len(back) :].strip(BLANKS)
        if pattern:
            pattern = posixpath.normpath(pattern)
            pattern = pattern.lstrip("/") or "/"
        found.append(back + pattern)
    return found


def _rule(text: str) -> Rule:
    pattern = text.strip(BLANKS)
    back = pattern.startswith("!")
    pattern = pattern[back:]
    if not pattern:
        raise InvalidArgument(f'illegal exclusion pattern: "{text}"', subject=text)
    pattern = posixpath.normpath(pattern)
    tokens = _tokens(pattern)
    fixed = []
    for name in pattern.split("/"):
        if any(char in name for char in "*?[\\"):
            break
        fixed.append(name)
    suffix = pattern[2:]
    if pattern.startswith("**") and suffix[:1] != "/" and not any(char in suffix for char in "*?[]\\"):
        return Rule(pattern, back, (), lambda path: path.endswith(suffix))  # whatever ends so, as moby has it
    return Rule(pattern, back, tuple(fixed), _matcher(tokens))


def of_name(pattern: str) -> Callable[[str], bool]:
    """One component of COPY's sources, by the rules of Go's filepath.Match: `**` is `*` there. Raises
    InvalidArgument."""
    return _matcher(_tokens(pattern, deep=False))


def _tokens(pattern: str, deep: bool = True) -> list[Token]:
    found: list[Token] = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "*":
            if deep and pattern.startswith("*", at):
                at += 1 + pattern.startswith("/", at + 1)
                found.append(DEEP if at < len(pattern) else REST)
            elif not found or found[-1] != STAR:
                found.append(STAR)
        elif char == "?":
            found.append(ONE)
        elif char == "[":
            made, at = _class(pattern, at)
            found.append(made)
        elif char == "\\":
            if at == len(pattern):
                raise _malformed(pattern)
            found.append(pattern[at])
            at += 1
        else:
            found.append(char)
    return found


def _class(pattern: str, at: int) -> tuple[_Class, int]:
    """A class from behind its bracket; the grammar is that of Go's path/filepath.Match."""
    negated = pattern.startswith("^", at)
    at += negated
    parts: list[str] = []
    while not (parts and pattern.startswith("]", at)):
        low, at = _member(pattern, at)
        high = low
        if pattern.startswith("-", at):
            high, at = _member(pattern, at + 1)
        if low <= high:  # an empty range matches nothing
            parts.append(f"{re.escape(low)}-{re.escape(high)}")
        else:
            parts.append("")
    inner = "".join(parts)
    if not inner:
        return _Class("[^/]" if negated else "(?!)"), at + 1
    return _Class(f"(?!/)[{'^' * negated}{inner}]"), at + 1


def _member(pattern: str, at: int) -> tuple[str, int]:
    at += pattern.startswith("\\", at)
    escaped = at > 0 and pattern[at - 1] == "\\"
    char = pattern[at : at + 1]
    if not char or (char in "-]" and not escaped) or at + 1 >= len(pattern):
        raise _malformed(pattern)
    return char, at + 1


def _malformed(pattern: str) -> InvalidArgument:
    return InvalidArgument(f"syntax error in pattern: {pattern[:200]}", subject=pattern[:200])


def _matcher(tokens: Sequence[Token]) -> Callable[[str], bool]:
    if all(isinstance(token, str) for token in tokens):
        return "".join(map(str, tokens)).__eq__
    if any(token == DEEP and at and tokens[at - 1] != "/" for at, token in enumerate(tokens)):
        return _Walker(tokens).matches  # `a**b`: its directories begin in the middle of a name
    expression = re.compile(_expression(tokens), re.DOTALL)
    return lambda path: expression.fullmatch(path) is not None


def _expression(tokens: Sequence[Token]) -> str:
    """Sections between `**/`: each is taken at the first directory where it fits, for good; only the last,
    which must reach the end, is tried at each directory."""
    sections: list[list[Token]] = [[]]
    for token in tokens:
        if token == DEEP:
            sections.append([])
        else:
            sections[-1].append(token)
    first, *rest = sections
    rest = [section for section in rest[:-1] if section] + rest[-1:]
    found = _section(first)
    for section in rest[:-1]:
        found += rf"(?>(?:[^/]+/)*?{_section(section)})"
    return found + "".join(rf"(?:[^/]+/)*?{_section(section)}" for section in rest[-1:])


def _section(tokens: Sequence[Token]) -> str:
    """Names with stars: each but the last star takes as little as it can, for good."""
    pieces = [""]
    for token in tokens:
        if token == STAR:
            pieces.append("")
        elif token == REST:
            pieces[-1] += ".*"
        else:
            pieces[-1] += _one(token)
    first, *rest = pieces
    found = first + "".join(f"(?>[^/]*?{piece})" for piece in rest[:-1])
    return found + "".join(f"[^/]*{piece}" for piece in rest[-1:])


def _one(token: Token) -> str:
    if isinstance(token, _Class):
        return token.expression
    return "[^/]" if token == ONE else re.escape(str(token))


class _Walker:
    """The same by carrying states along the path: for the patterns that no such expression matches."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self.tokens = tokens
        self.singles = [None if token in (STAR, DEEP, REST) else re.compile(_one(token)) for token in tokens]

    def matches(self, path: str) -> bool:
        """Does the whole path match?"""
        states = self._free({0})
        for char in path:
            following: set[int] = set()
            for state in states:
                if state < 0:  # within a `**`: left behind a slash only
                    following.update((state, -state) if char == "/" else (state,))
                elif state < len(self.tokens):
                    token, single = self.tokens[state], self.singles[state]
                    if single is not None and single.fullmatch(char):
                        following.add(state + 1)
                    elif token == REST or (token == STAR and char != "/"):
                        following.add(state)
            states = self._free(following)
        return len(self.tokens) in states

    def _free(self, states: set[int]) -> set[int]:
        """With what is reached without a character; -(n + 1) is within the `**` that is token n."""
        found, open_ = set(states), list(states)
        while open_:
            state = open_.pop()
            if 0 <= state < len(self.tokens) and self.tokens[state] in (STAR, DEEP, REST):
                if self.tokens[state] == DEEP:
                    found.add(-(state + 1))
                if state + 1 not in found:
                    found.add(state + 1)
                    open_.append(state + 1)
        return found
