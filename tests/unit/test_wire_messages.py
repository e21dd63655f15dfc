"""The messages of the supervisor, stream frames, and detach keys."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.errors import InvalidArgument, NagayaError, Unimplemented
from nagaya.wire.messages import FROM_BUILDER, FROM_IO, TO_DAEMON, TO_IO, TO_KEEPER, check, message
from nagaya.wire.streams import Detector, frame, parse_detach_keys

TABLES = [TO_KEEPER, TO_DAEMON, TO_IO, FROM_IO, FROM_BUILDER]


def test_a_message_is_complete_and_has_nothing_unknown() -> None:
    said = check(TO_KEEPER, {"kind": "spawn", "serial": 4, "from a later version": 1})
    assert said == {
        "kind": "spawn",
        "serial": 4,
        "token": "",
        "stdio": "none",
        "stdin": False,
        "log": None,
        "shared": False,
    }
    assert message(TO_KEEPER, "resize", token="t", h=1, w=2) == {
        "kind": "resize",
        "token": "t",
        "h": 1,
        "w": 2,
    }


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"kind": "resize", "token": "t", "h": 1}, "w"),
        ({"kind": "resize", "token": "t", "h": "1", "w": 1}, "h"),
        ({"kind": "resize", "token": None, "h": 1, "w": 1}, "token"),
        ({"kind": "hello", "version": True}, "version"),  # a bool is no number
        ({"kind": "attach", "serial": 1, "token": "t", "stdin": 1}, "stdin"),
    ],
)
def test_what_is_wrong_is_named(data: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check(TO_KEEPER, data)
    assert caught.value.subject == field


@pytest.mark.parametrize("data", [{}, {"kind": "explode"}, {"kind": ["hello"]}, {"kind": None}])
def test_an_unknown_kind_is_refused(data: Any) -> None:
    with pytest.raises(Unimplemented):
        check(TO_KEEPER, data)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(st.sampled_from(TABLES), st.data())
def test_any_data_is_a_message_or_refused(table: Any, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(table)))
    fields = {name: data.draw(anything) for name in table[kind] if data.draw(st.booleans())}
    try:
        said = check(table, {"kind": kind, **fields})
    except NagayaError:
        return
    assert set(said) == {"kind", *table[kind]}
    for name, (types, default) in table[kind].items():
        assert type(said[name]) in types or said[name] == default


def test_a_frame_is_dockers() -> None:
    assert frame(2, b"abc") == b"\x02\x00\x00\x00\x00\x00\x00\x03abc"
    assert struct.unpack(">BxxxI", frame(1, bytes(70000))[:8]) == (1, 70000)


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("ctrl-p,ctrl-q", b"\x10\x11"),
        ("a", b"a"),
        ("ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_", b"\x00\x1b\x1c\x1d\x1e\x1f"),
        ("", b""),
        ("ctrl-A,x", b"\x01x"),
    ],
)
def test_detach_keys(text: str, keys: bytes) -> None:
    assert parse_detach_keys(text) == keys


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-1", "abc", ",", "é"])
def test_detach_keys_that_are_none(text: str) -> None:
    with pytest.raises(InvalidArgument, match="Invalid escape keys"):
        parse_detach_keys(text)


@given(st.text("ab", min_size=1, max_size=4), st.text("abc", max_size=60), st.data())
def test_keys_are_found_over_any_split(keys: str, typed: str, data: st.DataObject) -> None:
    detector = Detector(keys.encode())
    rest, out, found = typed.encode(), b"", False
    while rest and not found:
        size = data.draw(st.integers(1, len(rest)))
        passed, found = detector.feed(rest[:size])
        out += passed
        rest = rest[size:]
    at = typed.find(keys)
    if at < 0:
        assert not found and out + detector.flush() == typed.encode()
    else:
        assert found and out == typed[:at].encode()
