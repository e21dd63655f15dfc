"""How an instruction's line is cut into words: flags, words in quotes, JSON arrays.

The rules are those of moby/buildkit's frontend/dockerfile/parser: quotes and escapes stay in the words,
they are taken away when variables are put in (`expand`).
"""

from __future__ import annotations

import json
import re
from typing import NoReturn

from nagaya.build.language.ast import DockerfileError

# what Go's unicode.IsSpace takes for a blank; str.isspace has four more
BLANKS = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005"
    "\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
GAP = re.compile(r"[\t\v\f\r ]+")


def flags(line: str, escape: str) -> tuple[list[str], str]:
    """The `--flags` at the line's beginning, without quotes and escapes, and what follows them."""
    found: list[str] = []
    at = 0
    while True:
        while at < len(line) and line[at] in BLANKS:
            at += 1
        if not line.startswith("--", at):
            return found, line[at:]
        word, at = _flag(line, at, escape)
        if word == "--":
            return found, line[at:]
        found.append(word)


def _flag(line: str, at: int, escape: str) -> tuple[str, int]:
    word, quote = "", ""
    while at < len(line):
        char = line[at]
        if not quote and char in BLANKS:
            break
        at += 1
        if quote and char == quote:
            quote = ""
        elif not quote and char in "'\"":
            quote = char
        elif char == escape:
            word += line[at : at + 1]
            at += 1
        else:
            word += char
    return word, at


def split(text: str, escape: str) -> list[str]:
    """Words at blanks outside of quotes; quotes and escapes stay. An escape at the end is dropped."""
    found: list[str] = []
    word, quote, at = "", "", 0
    while at < len(text):
        char = text[at]
        at += 1
        if not quote and char in BLANKS:
            if word:
                found.append(word)
            word = ""
        elif char == escape and quote != "'":
            if at == len(text):
                break
            word += char + text[at]
            at += 1
        else:
            if quote:
                quote = "" if char == quote else quote
            elif char in "'\"":
                quote = char
            word += char
    return [*found, word] if word else found


def array(text: str) -> tuple[str, ...] | None:
    """A JSON array of strings; None when it is no JSON array: then it is plain words.

    Raises DockerfileError when it is one of other things than strings.
    """
    text = text.lstrip(BLANKS)
    if not text.startswith("["):
        return None
    try:
        found = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    words = [_scalar(word) for word in found if isinstance(word, str)]
    if len(words) != len(found):
        raise DockerfileError("when using JSON array syntax, arrays must be comprised of strings only")
    return tuple(words)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)  # Python's json knows NaN and Infinity, JSON does not


def _scalar(text: str) -> str:
    """Half of a surrogate pair, which no UTF-8 can hold, becomes U+FFFD, as Go has it."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def listed(text: str) -> tuple[str, ...]:
    """Words at blanks, no quotes known: what FROM, EXPOSE, COPY, ADD and VOLUME have."""
    return tuple(GAP.split(text)) if text else ()
