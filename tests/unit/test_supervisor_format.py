"""Log records as dockerd's json-file driver writes them; places in the journal; what io decides."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.errors import InvalidArgument, ResourceExhausted
from nagaya.supervisor import entries
from nagaya.supervisor.entries import Slots, check_entry
from nagaya.supervisor.format import LIMIT, escape, json_lines, split, timestamp
from nagaya.supervisor.journal import (
    COMMIT,
    FLUSHING,
    IDLE,
    LOGGING,
    MOVING,
    NOTHING,
    REDO,
    Intent,
    Journal,
    decide,
)


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_700_000_000_123_456_789, "2023-11-14T22:13:20.123456789Z"),
        (1_700_000_000_120_000_000, "2023-11-14T22:13:20.12Z"),
        (1_700_000_001_000_000_001, "2023-11-14T22:13:21.000000001Z"),
    ],
)
def test_times_as_go_prints_them(time_ns: int, text: str) -> None:
    assert timestamp(time_ns) == text


def test_a_record_is_dockerds_to_the_byte() -> None:
    # the escapes of moby's daemon/logger/jsonfilelog/jsonlog/jsonlogbytes.go: a tab has no short form there
    assert b"".join(json_lines([b'a"b\\\t<&>\x1b\xc3\xa9\xff\n'], "stderr", 1_700_000_000_500_000_000)) == (
        b'{"log":"a\\"b\\\\\\u0009\\u003c\\u0026\\u003e\\u001b\xc3\xa9\\ufffd\\n","stream":"stderr",'
        b'"time":"2023-11-14T22:13:20.5Z"}\n'
    )


@given(st.binary(max_size=300))
def test_any_bytes_are_valid_json_and_come_back(data: bytes) -> None:
    text = json.loads(b'"' + escape(data).replace(b"\n", b"\\n") + b'"')
    # one replacement character for each byte that is not UTF-8, as Go does it
    expected = "".join(
        "�" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in data.decode("utf-8", "surrogateescape")
    )
    assert text == expected


@given(st.lists(st.sampled_from([b"\n", b"a", b"bc\n", b"x" * 5000, "é".encode() * 4000, b"y" * LIMIT])))
def test_splitting_in_any_place_gives_the_same_text(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    whole, rest = split(data, final=True)
    assert b"".join(whole) == data and rest == b""
    carry, parts = b"", []
    for piece in pieces:
        segments, carry = split(carry + piece)
        parts += segments
        assert len(carry) < LIMIT
        assert b"\n" not in carry
    segments, _ = split(carry, final=True)
    records = [json.loads(r)["log"] for r in b"".join(json_lines(parts + segments, "stdout", 1)).splitlines()]
    assert "".join(records).encode() == data
    assert all(len(r.encode()) <= LIMIT for r in records if not r.endswith("\n"))


@pytest.mark.parametrize(
    ("staged", "intent", "size", "answer"),
    [
        (0, Intent(IDLE), 500, (NOTHING, None)),
        (9, Intent(IDLE), 500, (REDO, None)),
        (0, Intent(MOVING, 1), 500, (NOTHING, None)),
        (9, Intent(MOVING, 1), 500, (REDO, None)),
        (9, Intent(LOGGING, 1, before=100, length=50), 100, (REDO, None)),
        (9, Intent(LOGGING, 1, before=100, length=50), 149, (REDO, 100)),
        (9, Intent(LOGGING, 1, before=100, length=50), 150, (COMMIT, None)),
        (0, Intent(LOGGING, 1, before=100, length=50), 150, (NOTHING, None)),
        (0, Intent(FLUSHING, 1, before=100, length=50), 120, (REDO, 100)),
        (0, Intent(FLUSHING, 1, before=100, length=50), 150, (COMMIT, None)),
    ],
)
def test_what_a_new_io_does_first(
    staged: int, intent: Intent, size: int, answer: tuple[int, int | None]
) -> None:
    assert decide(staged, intent, size) == answer


def test_the_journal_keeps_what_was_written() -> None:
    journal = Journal(os.memfd_create("journal"))
    assert journal.intent().state == IDLE
    assert journal.header(7) == (0, 0)
    journal.write_intent(LOGGING, 7, 1 << 40, 99, 1, 5)
    journal.write_carry(7, 1, b"begin")
    journal.write_header(7, 1, 5)
    intent = journal.intent()
    assert [getattr(intent, name) for name in ("state", "slot", "before", "length", "half", "carry")] == [
        LOGGING, 7, 1 << 40, 99, 1, 5,
    ]  # fmt: skip
    assert journal.carry(7, *journal.header(7)) == b"begin"
    assert journal.header(6) == journal.header(8) == (0, 0)
    journal.clear(7)
    assert journal.carry(7, *journal.header(7)) == b""
    os.close(journal.fd)


def test_slots_are_given_once_and_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "MAX_SLOTS", 8)
    slots = Slots()
    slots.reserve([5, 2])
    taken = slots.take(6)
    assert sorted([*taken, 5, 2]) == list(range(8))
    with pytest.raises(ResourceExhausted):
        slots.take(1)
    slots.give(taken[:2])
    with pytest.raises(ResourceExhausted):
        slots.take(3)
    assert sorted(slots.take(2)) == sorted(taken[:2])  # the failed attempt gave back what it had


@pytest.mark.parametrize(
    "wrong",
    [
        {"stdio": "telepathy"},
        {"slots": [-1]},
        {"slots": ["0"]},
        {"slots": [1 << 40]},
        {"fds": ["stdout", "stdout"]},
        {"fds": ["stdout", 3]},
        {"fds": ["stdout"]},
        {"fds": ["stdout", "elsewhere"]},
        {"fds": ["stdout", "pidfd"]},  # the second is none
    ],
)
def test_an_entry_that_cannot_be_is_not_adopted(wrong: dict[str, object]) -> None:
    right = {"stdio": "pipes", "slots": [0, 1], "fds": ["stdout", "stderr"]}
    read, write = os.pipe()
    try:
        check_entry(right, [read, write])
        with pytest.raises(InvalidArgument):
            check_entry({**right, **wrong}, [read, write])
    finally:
        os.close(read)
        os.close(write)
