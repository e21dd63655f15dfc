"""The patterns of `${v#p}` and `${v/p/r}`: `*` any characters, `?` one, backslash for themselves.

Matched by carrying sets of states along the text, never by trying again: time is the text's length times
the pattern's, whatever they are (regular expressions of Python go back, and a hostile pattern takes hours).
"""

from __future__ import annotations

from nagaya.build.language.ast import DockerfileError

MAX_STEPS = 1 << 22  # some seconds
STAR, ONE = 0, 1  # instead of a character
Pattern = tuple[str | int, ...]


def parse(text: str) -> Pattern:
    """The pattern as characters, ONE and STAR. Raises ValueError for an escape of something else."""
    found: list[str | int] = []
    at = 0
    while at < len(text):
        char = text[at]
        at += 1
        if char == "*":
            if not found or found[-1] != STAR:
                found.append(STAR)
        elif char == "?":
            found.append(ONE)
        elif char == "\\":
            escaped = text[at : at + 1]
            at += 1
            if not escaped or escaped not in "*?\\}/":
                raise ValueError(f"invalid escape '\\{escaped}'")
            found.append(escaped)
        else:
            found.append(char)
    return tuple(found)


def without_prefix(text: str, pattern: Pattern, longest: bool) -> str:
    """The text without what the pattern matches at its beginning."""
    if STAR not in pattern and ONE not in pattern:
        return text.removeprefix("".join(map(str, pattern)))
    _bounded(text, pattern)
    states, end = _closed({0}, pattern), -1
    for at in range(len(text) + 1):
        if len(pattern) in states:
            end = at
            if not longest:
                break
        if at == len(text) or not states:
            break
        states = _step(states, pattern, text[at])
    return text if end < 0 else text[end:]


def without_suffix(text: str, pattern: Pattern, longest: bool) -> str:
    """The text without what the pattern matches at its end."""
    return without_prefix(text[::-1], pattern[::-1], longest)[::-1]


def replace(text: str, pattern: Pattern, by: str, everywhere: bool, limit: int) -> str:
    """The text with the first or every longest match replaced. Raises DockerfileError over the limit."""
    found: list[str] = []
    if STAR in pattern or ONE in pattern:
        _bounded(text, pattern)
    size, at = 0, 0
    while at <= len(text):
        match = _find(text, pattern, at)
        if match is None:
            break
        start, end = match
        found += [text[at:start], by]
        if start == end:  # nothing matched: a place, not a piece
            found.append(text[end : end + 1])
            end += 1
        size += end - at + len(by)
        if size > limit:
            raise DockerfileError(f"becomes longer than {limit} characters")
        at = end
        if not everywhere:
            break
    return "".join([*found, text[at:]])


def _bounded(text: str, pattern: Pattern) -> None:
    if len(text) * len(pattern) > MAX_STEPS:
        raise DockerfileError("a pattern is too long for what it is to match")


def _find(text: str, pattern: Pattern, at: int) -> tuple[int, int] | None:
    """The leftmost longest match at or after `at`."""
    if STAR not in pattern and ONE not in pattern:
        start = text.find("".join(map(str, pattern)), at)
        return None if start < 0 else (start, start + len(pattern))
    best: tuple[int, int] | None = None
    starts: dict[int, int] = {}  # state -> the leftmost start that reached it
    for here in range(at, len(text) + 1):
        if best is None:
            for state in _closed({0}, pattern):
                starts.setdefault(state, here)
        done = starts.get(len(pattern))
        if done is not None and (best is None or done <= best[0]):
            best = (done, here)
        if best is not None:
            starts = {state: start for state, start in starts.items() if start <= best[0]}
        if here == len(text) or (best is not None and not starts):
            break
        following: dict[int, int] = {}
        for state, start in starts.items():
            for reached in _step({state}, pattern, text[here]):
                following[reached] = min(start, following.get(reached, start))
        starts = following
    return best


def _closed(states: set[int], pattern: Pattern) -> set[int]:
    """With what is reached without a character: a star may be nothing."""
    found = set(states)
    for state in states:
        while state < len(pattern) and pattern[state] == STAR:
            state += 1
            found.add(state)
    return found


def _step(states: set[int], pattern: Pattern, char: str) -> set[int]:
    found = set()
    for state in states:
        if state == len(pattern):
            continue
        wanted = pattern[state]
        if wanted == STAR and char != "\n":  # as `.` of a regular expression: not the end of a line
            found.add(state)
        elif wanted == char or (wanted == ONE and char != "\n"):
            found.add(state + 1)
    return _closed(found, pattern)
