"""Annotations org.systemd.property.*: which properties of a unit they become."""

from __future__ import annotations

import doctest
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.errors import InvalidArgument
from nagaya.runtime.cgroups import unitproperties
from nagaya.runtime.cgroups.unitproperties import PREFIX, parse, wanted


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("true", ("b", True)),
        ("false", ("b", False)),
        ("'a\\'b'", ("s", "a'b")),
        ('"x, y"', ("s", "x, y")),
        ("7", ("i", 7)),
        ("-7", ("i", -7)),
        ("0x10", ("i", 16)),
        ("1.5", ("d", 1.5)),
        ("uint64 7", ("t", 7)),
        ("@t 18446744073709551615", ("t", 2**64 - 1)),
        ("byte 255", ("y", 255)),
        ("['a', 'b,c']", ("as", ["a", "b,c"])),
        ("[1,2]", ("ai", [1, 2])),
        ("@as []", ("as", [])),
        ("@au [1]", ("au", [1])),
        ("[['a'], ['b', ']']]", ("aas", [["a"], ["b", "]"]])),
        ("objectpath '/x'", ("o", "/x")),
    ],
)
def test_values(text: str, expected: tuple[str, Any]) -> None:
    assert parse(text, "k") == expected


@pytest.mark.parametrize(
    "text",
    ["", "word", "'open", "'a'b'", "[", "[1,]", "[]", "[1, 'a']", "byte 256", "@t -1", "2147483648",
     "@(ss) x", "'\\q'", "1e", "@t", "uint64", "[1", "['a]", "nan nan"],
)  # fmt: skip
def test_what_is_no_value(text: str) -> None:
    with pytest.raises(InvalidArgument, match="annotations"):
        parse(text, "k")


@given(st.text(max_size=40))
def test_any_text_is_a_value_or_a_complaint(text: str) -> None:
    try:
        signature, _ = parse(text, "k")
    except InvalidArgument:
        return
    assert signature


def test_seconds_become_microseconds() -> None:
    values = {
        "TimeoutStopSec": "3",
        "RuntimeMaxUSec": "@t 5",
        "CollectMode": "'inactive-or-failed'",
        "JobTimeoutSec": "0.5",
    }
    annotations = {PREFIX + name: value for name, value in values.items()}
    assert wanted({**annotations, "other": "x"}) == [
        ("CollectMode", ("s", "inactive-or-failed")),
        ("JobTimeoutUSec", ("t", 500_000)),
        ("RuntimeMaxUSec", ("t", 5)),
        ("TimeoutStopUSec", ("t", 3_000_000)),
    ]


@pytest.mark.parametrize("name", ["", "ab", "A-B", "Exec Start", "Überall", "A1b"])
def test_names(name: str) -> None:
    with pytest.raises(InvalidArgument, match="name of a property"):
        wanted({PREFIX + name: "1"})


def test_seconds_are_numbers() -> None:
    with pytest.raises(InvalidArgument, match="seconds"):
        wanted({f"{PREFIX}TimeoutStopSec": "'3'"})
    with pytest.raises(InvalidArgument, match="fit"):
        wanted({f"{PREFIX}TimeoutStopSec": "-3"})


def test_the_example() -> None:
    assert doctest.testmod(unitproperties).failed == 0
