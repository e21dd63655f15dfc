"""Variables in words, as moby/buildkit's frontend/dockerfile/shell has them: POSIX's parameter expansion
with `${v/a/b}`, quotes and escapes taken away.

A hostile Dockerfile must end too: nesting and the size of what comes out are bounded.
"""

from __future__ import annotations

from collections.abc import Mapping

from nagaya.build.language import globs
from nagaya.build.language.ast import DockerfileError
from nagaya.build.language.words import BLANKS

MAX_SIZE = 4 << 20  # one string handed to execve(2) has at most 128 KiB; documents are larger
MAX_DEPTH = 50
_SPECIAL = "@*#?-$!0"  # POSIX's special parameters: never set here


class Lexer:
    """Puts variables into texts.

    raw_quotes, raw_escapes: these stay in the result. quotes: ' and " mean something. keep_unset: a variable
    that is not set stays as it is written.
    """

    def __init__(
        self,
        variables: Mapping[str, str],
        escape: str = "\\",
        *,
        raw_quotes: bool = False,
        raw_escapes: bool = False,
        quotes: bool = True,
        keep_unset: bool = False,
    ) -> None:
        self.variables = variables
        self.escape = escape
        self.raw_quotes = raw_quotes
        self.raw_escapes = raw_escapes
        self.quotes = quotes
        self.keep_unset = keep_unset

    def word(self, text: str) -> str:
        """The text with its variables replaced, blanks kept. Raises DockerfileError."""
        return self._run(text)[0]

    def words(self, text: str) -> list[str]:
        """The same cut into words at blanks outside of quotes, after replacing. Raises DockerfileError."""
        return self._run(text)[1]

    def _run(self, text: str) -> tuple[str, list[str]]:
        try:
            return _Reader(self, text).until("", self.raw_escapes)
        except DockerfileError as error:
            raise DockerfileError(f'failed to process "{text[:200]}": {error.message}') from None


def _in_name(char: str) -> bool:
    return char == "_" or char.isalpha() or char.isdecimal()


class _Words:
    """Collects words: what came out of quotes never ends one."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.parts: list[str] = []

    def add(self, text: str) -> None:
        for char in text:
            if char not in BLANKS:
                self.parts.append(char)
            elif self.parts:
                self.end()

    def end(self) -> list[str]:
        word = "".join(self.parts)
        if word:
            self.found.append(word)
        self.parts = []
        return self.found


class _Reader:
    """One pass over one text."""

    def __init__(self, lexer: Lexer, text: str) -> None:
        self.lexer = lexer
        self.text = text
        self.at = 0
        self.depth = 0
        self.size = 0

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def next(self) -> str:
        char = self.text[self.at : self.at + 1]
        self.at += 1
        return char

    def until(self, stop: str, raw_escapes: bool) -> tuple[str, list[str]]:
        """Everything up to the character `stop`, which is consumed; "" is the end of the text."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise DockerfileError("variables are nested too deeply")
        result: list[str] = []
        words = _Words()
        while self.at < len(self.text):
            char = self.peek()
            if char == stop:
                self.at += 1
                self.depth -= 1
                return "".join(result), words.end()
            if char == "$":
                piece = self._bounded(self.dollar(raw_escapes))
                words.add(piece)
            elif char == "<":
                piece = self.heredoc_mark()
                words.parts.append(piece)
            elif char in "'\"" and self.lexer.quotes:
                piece = self.single() if char == "'" else self.double(raw_escapes)
                words.parts.append(piece)
            elif char == self.lexer.escape:
                self.at += 1
                escaped = self.next()
                piece = (char if raw_escapes else "") + escaped
                words.parts.append(piece)
            else:
                self.at += 1
                piece = char
                words.add(char)
            result.append(piece)
        if stop:
            raise DockerfileError(f"unexpected end of statement while looking for matching {stop}")
        self.depth -= 1
        return "".join(result), words.end()

    def single(self) -> str:
        end = self.text.find("'", self.at + 1)
        if end < 0:
            raise DockerfileError("unexpected end of statement while looking for matching single-quote")
        found = self.text[self.at : end + 1] if self.lexer.raw_quotes else self.text[self.at + 1 : end]
        self.at = end + 1
        return found

    def double(self, raw_escapes: bool) -> str:
        quote = '"' if self.lexer.raw_quotes else ""
        self.at += 1
        result = [quote]
        while self.at < len(self.text):
            char = self.peek()
            if char == '"':
                self.at += 1
                return "".join([*result, quote])
            if char == "$":
                result.append(self._bounded(self.dollar(raw_escapes)))
                continue
            self.at += 1
            if char == self.lexer.escape:
                following = self.peek()
                if raw_escapes:
                    result.append(char)
                if not following:
                    break
                if following in ('"', "$", self.lexer.escape):  # the others keep their backslash
                    char = self.next()
            result.append(char)
        raise DockerfileError("unexpected end of statement while looking for matching double-quote")

    def heredoc_mark(self) -> str:
        """`<<` and the blanks before a mark stay together, as one word with it."""
        start = self.at
        self.at += 1
        if self.peek() == "<":
            self.at += 1
            while self.peek() and self.peek() in "\t\r ":
                self.at += 1
        return self.text[start : self.at]

    def name(self) -> str:
        start, text = self.at, self.text
        if self.at < len(text) and text[self.at].isdecimal():
            while self.at < len(text) and text[self.at].isdecimal():
                self.at += 1
        elif self.at < len(text) and text[self.at] in _SPECIAL:
            self.at += 1
        else:
            while self.at < len(text) and _in_name(text[self.at]):
                self.at += 1
        return text[start : self.at]

    def dollar(self, raw_escapes: bool) -> str:
        start = self.at
        self.at += 1
        if self.peek() != "{":
            name = self.name()
            if not name:
                return "$"
            return self._value(name, self.text[start : self.at])
        self.at += 1
        if not self.peek():
            raise DockerfileError("syntax error: missing '}'")
        if self.peek() in "{}:":
            raise DockerfileError("syntax error: bad substitution")
        name = self.name()
        how = self.next()
        if how == "}":
            return self._value(name, self.text[start : self.at])
        if how == "/":
            return self._replaced(name, start)
        nothing_is_unset = how == ":"
        shown = how
        if nothing_is_unset:
            how = self.next()
            shown += how
        if not how:
            raise DockerfileError("syntax error: missing '}'")
        if how not in "+-?#%" or (nothing_is_unset and how in "#%"):
            raise DockerfileError(f"unsupported modifier ({shown}) in substitution")
        word = self._up_to("}", how in "#%")
        value = self.lexer.variables.get(name)
        if value is None and self.lexer.keep_unset:
            return "${" + name + shown + word + "}"
        present = value is not None and not (nothing_is_unset and not value)
        if how == "-":
            return value if present and value is not None else word
        if how == "+":
            return word if present else ""
        if how == "?":
            if not present:
                empty = "unset" if value is None else "empty"
                raise DockerfileError(f"{name}: {word or f'is not allowed to be {empty}'}")
            return value or ""
        greedy = word.startswith(how)
        cut = globs.without_prefix if how == "#" else globs.without_suffix
        return cut(value or "", self._pattern(word[greedy:]), greedy)

    def _replaced(self, name: str, start: int) -> str:
        """${name/pattern/replacement}, ${name//pattern/replacement}."""
        everywhere = self.peek() == "/"
        self.at += everywhere
        pattern = self._up_to("/", True)
        replacement = self._up_to("}", True)
        value = self.lexer.variables.get(name)
        if value is None and self.lexer.keep_unset:
            return self.text[start : self.at]
        return globs.replace(value or "", self._pattern(pattern), replacement, everywhere, MAX_SIZE)

    def _up_to(self, stop: str, raw_escapes: bool) -> str:
        try:
            return self.until(stop, raw_escapes)[0]
        except DockerfileError:
            if self.at < len(self.text):
                raise
            what = "'/' in ${}" if stop == "/" else "'}'"
            raise DockerfileError(f"syntax error: missing {what}") from None

    def _pattern(self, text: str) -> globs.Pattern:
        try:
            return globs.parse(text)
        except ValueError as error:
            raise DockerfileError(f"invalid pattern ({text[:80]}) in substitution: {error}") from None

    def _value(self, name: str, written: str) -> str:
        value = self.lexer.variables.get(name)
        if value is None:
            return written if self.lexer.keep_unset else ""
        return value

    def _bounded(self, text: str) -> str:
        self.size += len(text)
        if self.size > MAX_SIZE:
            raise DockerfileError(f"becomes longer than {MAX_SIZE} characters")
        return text
