"""Patterns of .dockerignore and of --exclude."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.build.language.ignore import Rules, of_name, read
from nagaya.errors import InvalidArgument


def rules(text: str) -> Rules:
    return Rules(read(text.encode()))


def test_a_file_s_lines() -> None:
    text = b"\xef\xbb\xbf# comment\n  a/ \n\n/b\n ! /c/../d \n #not a comment\n./e//f\n!\n/\r\n"
    assert read(text) == ["a", "b", "!d", "#not a comment", "e/f", "!", "/"]


@pytest.mark.parametrize(
    ("pattern", "path", "excluded"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("a", "a/b/c", True),
        ("a", "b/a", False),
        ("a/", "a/b", True),
        ("/a", "a", True),
        ("*", "a", True),
        ("*", "a/b", True),
        ("*.o", "x.o", True),
        ("*.o", "d/x.o", False),
        ("*/*.o", "d/x.o", True),
        ("*/*.o", "d/e/x.o", False),
        ("?.o", "x.o", True),
        ("?.o", "xy.o", False),
        ("**/*.o", "x.o", True),
        ("**/*.o", "d/e/x.o", True),
        ("**", "a/b", True),
        ("**/a", "a", True),
        ("**/a", "b/a", True),
        ("**/a", "ba", False),
        ("a/**", "a", False),
        ("a/**", "a/b", True),
        ("a/**/b", "a/b", True),
        ("a/**/b", "a/x/y/b", True),
        ("a/**/b", "ab", False),
        ("**/a/**/b", "x/a/y/b/z", True),
        ("a**", "abc/d", True),
        ("**.o", "d/x.o", True),
        ("**.?", "d/x.o", False),
        ("**.?", "d/.o", True),
        ("a**b", "ab", True),
        ("a**b", "axb", False),
        ("a**b", "ax/y/b", True),
        ("a**b", "a/b", True),
        ("[a-c]x", "bx", True),
        ("[a-c]x", "dx", False),
        ("[^a-c]x", "dx", True),
        ("[^a-c]x", "/x", False),
        ("[\\]a]x", "]x", True),
        ("a[^b]c", "a/c", False),
        ("\\*", "*", True),
        ("\\*", "a", False),
        ("a\\b", "ab", True),
        ("a.b", "axb", False),
        ("a(b)+{c}|$^", "a(b)+{c}|$^", True),
        ("ü?", "üö", True),
        ("../a", "a", False),
    ],
)  # fmt: skip
def test_a_pattern(pattern: str, path: str, excluded: bool) -> None:
    assert rules(pattern).excludes(path) is excluded


def test_the_last_that_matches_decides() -> None:
    found = rules("*\n!docs\ndocs/*.tmp\n!docs/keep.tmp\n")
    expected = {"a": True, "docs": False, "docs/x": False, "docs/x.tmp": True, "docs/keep.tmp": False}
    assert {path: found.excludes(path) for path in expected} == expected
    assert rules("a\n!a/b\na/*").excludes("a/b")
    # as Docker has it: what was not excluded is not taken back, nor what lies in it
    assert rules("**/x\n!d").excludes("d/x") and not rules("**/x\nd\n!d").excludes("d/x")
    assert not rules("!a").excludes("a")


def test_what_need_not_be_read() -> None:
    found = rules("a\nb\n!b/c/d\n")
    assert [found.prunes(d) for d in ("a", "b", "b/c", "b/x", "c")] == [True, False, False, True, False]
    assert not rules("a\n!**/keep").prunes("a")
    assert not rules("a\n!a").prunes("a")
    assert rules("*\n!b/*").prunes("a") and not rules("*\n!b/*").prunes("b")


@pytest.mark.parametrize("pattern", ["[", "[a", "a[", "[]a]", "[-a]", "[a-", "a\\", "!", "[^]", "[a-]"])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(InvalidArgument):
        Rules([pattern])


def test_a_file_has_a_bound() -> None:
    with pytest.raises(InvalidArgument, match="larger than"):
        read(b"a\n" * (3 << 20))


@pytest.mark.parametrize(
    "pattern", ["*a" * 30 + "*b", "**/a" * 30 + "/b", "a**" * 30 + "b", "**/*a*a*a*a*a*a/" * 9 + "b"]
)
def test_a_hostile_pattern_takes_no_longer_than_another(pattern: str) -> None:
    found = Rules([pattern])
    started = time.process_time()
    for path in ("a" * 250, "a/" * 120 + "a", ("a" * 60 + "/") * 60 + "a"):
        found.excludes(path)
    assert time.process_time() - started < 20  # by trying again it would be years


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("a**b", "axyb", True),
        ("**", "", True),
        ("*[0-9]", "x7", True),
        ("\\**", "*x", True),
        ("[^a]?", "ab", False),
        ("*a" * 20 + "*b", "a" * 255, False),
    ],
)
def test_one_name_by_go_s_match(pattern: str, name: str, fits: bool) -> None:
    assert of_name(pattern)(name) is fits


def expression(pattern: str) -> str:
    """moby/patternmatcher's translation: right, and slow with a hostile pattern."""
    out, at = "", 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "*" and pattern[at : at + 1] == "*":
            at += 1
            at += pattern[at : at + 1] == "/"
            out += ".*" if at >= len(pattern) else "(.*/)?"
        else:
            out += {"*": "[^/]*", "?": "[^/]", "b": "(?!/)[^a]"}.get(char, re.escape(char))
    return out


@given(
    st.text("ac*?/b", min_size=1, max_size=9).filter(lambda p: p.strip("/") and "//" not in p),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=4),
)
def test_patterns_are_those_of_regular_expressions(pattern: str, names: list[str]) -> None:
    pattern, path = pattern.strip("/"), "/".join(names)
    prefixes = ["/".join(names[: n + 1]) for n in range(len(names))]
    if re.fullmatch(r"\*\*[ac]+", pattern):  # a pattern of its own: whatever ends so
        expected = any(prefix.endswith(pattern[2:]) for prefix in prefixes)
        assert Rules([pattern]).excludes(path) is expected
        return
    expected = any(re.fullmatch(expression(pattern), prefix, re.DOTALL) for prefix in prefixes)
    assert Rules([pattern.replace("b", "[^a]")]).excludes(path) is expected


@given(st.binary(max_size=60), st.text("ab/*.", min_size=1, max_size=20))
def test_any_file_is_rules_or_a_complaint(data: bytes, path: str) -> None:
    try:
        found = Rules(read(data))
    except InvalidArgument:
        return
    found.excludes(path.strip("/"))
    found.prunes(path.strip("/"))
