"""The host's side of the guest protocol: what is owed comes through in any pieces, all else is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.errors import CommandNotExecutable, CommandNotFound, DataLoss, InvalidArgument, KernelError
from nagaya.vm import protocol as p

FIELDS = st.lists(
    st.tuples(st.from_regex(r"[a-z]{1,12}", fullmatch=True), st.binary(max_size=200)), max_size=8
)


def frame(kind: int, number: int, payload: bytes = b"", stream: int = 0) -> bytes:
    return struct.pack("<IBBHI", len(payload), kind, stream, 0, number) + payload


def running(**fields: str) -> p.Connection:
    """A connection with one process, 5, of which all is owed still."""
    connection = p.Connection(ready=True)
    number, _ = connection.call("exec", [("process", 5), *fields.items()])
    (reply,) = connection.receive(frame(p.OK, number, p.encode_fields([("pid", 9)])))
    assert isinstance(reply, p.Reply)
    assert p.number_of(reply.fields, "pid") == 9
    return connection


@given(FIELDS)
def test_fields_survive(fields: list[tuple[str, bytes]]) -> None:
    assert p.decode_fields(p.encode_fields(fields)) == fields


@given(st.binary(max_size=300))
def test_fields_of_anything(data: bytes) -> None:
    try:
        p.decode_fields(data)
    except DataLoss:
        pass


@given(st.lists(st.integers(1, 300), max_size=20), st.binary(max_size=5000))
def test_output_comes_in_any_pieces(cuts: list[int], data: bytes) -> None:
    connection = running()
    stream = b"".join(frame(p.DATA, 5, data[at : at + 700], 1) for at in range(0, len(data), 700))
    stream += frame(p.EXIT, 5, p.encode_fields([("status", 256), ("oom", 0)]))
    stream += frame(p.EOF, 5, b"", 2) + frame(p.EOF, 5, b"", 1)
    events: list[p.Event] = []
    for cut in cuts:
        events += connection.receive(stream[:cut])
        stream = stream[cut:]
    events += connection.receive(stream)
    assert b"".join(e.data for e in events if isinstance(e, p.Output)) == data
    assert [(type(e), getattr(e, "stream", None)) for e in events if not isinstance(e, p.Output)] == [
        (p.Exit, None),
        (p.End, 2),
        (p.End, 1),
    ]
    with pytest.raises(DataLoss, match="there is not"):
        list(connection.receive(frame(p.DATA, 5, b"x", 1)))


@given(st.lists(st.one_of(
    st.binary(max_size=64),
    st.builds(
        frame,
        st.integers(0, 12),
        st.sampled_from([0, 1, 2, 5, 2**32 - 1]),
        st.one_of(st.binary(max_size=40), FIELDS.map(p.encode_fields)),
        st.integers(0, 4),
    ),
), max_size=12))  # fmt: skip
def test_anything_at_all(pieces: list[bytes]) -> None:
    """Nothing but DataLoss, and what is kept is bounded by what came."""
    connection = running(stdin="1")
    connection.send(5, b"x" * 1000)
    produced = 0
    try:
        for piece in pieces:
            for event in connection.receive(piece):
                produced += len(event.data) if isinstance(event, p.Output) else 0
    except DataLoss:
        pass
    assert produced <= 2 * p.WINDOW
    assert connection.sendable(5) <= p.STDIN_WINDOW


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<IBBHI", 0xFFFFFFFF, p.OK, 0, 0, 1),  # a length without end is refused at once
        struct.pack("<IBBHI", p.MAX_DATA + 1, p.DATA, 1, 0, 5),
        struct.pack("<IBBHI", 0, p.DATA, 1, 1, 5),
        frame(p.OK, 7),  # nobody asked
        frame(p.OK, 1),  # answered already
        frame(p.READY, 0),  # it has run for long
        frame(p.CALL, 1, p.encode_fields([("call", "ping")])),
        frame(p.DATA, 5, b"x", 0),
        frame(p.DATA, 5, b"x", 3),
        frame(p.DATA, 5, b"", 1),
        frame(p.DATA, 6, b"x", 1),
        frame(p.EOF, 5, b"", 1) * 2,
        frame(p.EXIT, 5, p.encode_fields([("status", 0)])) * 2,
        frame(p.EXIT, 5, p.encode_fields([("status", 1 << 40)])),
        frame(p.EXIT, 5, p.encode_fields([("status", "-1")])),
        frame(p.WINDOW_, 5, struct.pack("<I", 1)),
        frame(p.WINDOW_, 5, b"x"),
        frame(p.DATA, 5, b"x" * p.MAX_DATA, 1) * (p.WINDOW // p.MAX_DATA + 1),
    ],
)
def test_what_is_not_owed(data: bytes) -> None:
    with pytest.raises(DataLoss, match="the guest broke the protocol"):
        list(running(stdin="1").receive(data))


def test_windows_both_ways() -> None:
    connection = running(stdin="1")
    assert connection.sendable(5) == p.STDIN_WINDOW
    sent = connection.send(5, b"x" * p.STDIN_WINDOW)
    assert len(sent) == p.STDIN_WINDOW + 12 * (p.STDIN_WINDOW // p.MAX_DATA)
    with pytest.raises(InvalidArgument):
        connection.send(5, b"x")
    (taken,) = connection.receive(frame(p.WINDOW_, 5, struct.pack("<I", 10)))
    assert isinstance(taken, p.Taken)
    assert connection.sendable(5) == 10
    full = frame(p.DATA, 5, b"x" * p.MAX_DATA, 1) * (p.WINDOW // p.MAX_DATA)
    assert len(list(connection.receive(full))) == p.WINDOW // p.MAX_DATA
    assert connection.grant(5, 1, 7) == frame(p.WINDOW_, 5, struct.pack("<I", 7), 1)
    assert len(list(connection.receive(frame(p.DATA, 5, b"1234567", 1)))) == 1
    with pytest.raises(DataLoss):
        list(connection.receive(frame(p.DATA, 5, b"8", 1)))


@pytest.mark.parametrize(
    ("step", "errno", "kind"),
    [
        ("exec", 2, CommandNotFound),
        ("exec", 13, CommandNotExecutable),
        ("mount", 2, KernelError),
        ("", 0, KernelError),
    ],
)
def test_failures_are_errors_of_ours(step: str, errno: int, kind: type[Exception]) -> None:
    connection = p.Connection(ready=True)
    number, _ = connection.call("mount", [("target", "/x")])
    payload = p.encode_fields([("errno", errno), ("step", step), ("message", "no\nsuch\x1b[31m file")])
    (failure,) = connection.receive(frame(p.ERROR, number, payload))
    assert isinstance(failure, p.Failure)
    assert type(failure.error) is kind
    assert failure.error.message == "no?such?[31m file"


def test_a_call_too_long_for_a_frame() -> None:
    with pytest.raises(InvalidArgument, match="too many"):
        p.Connection().call("write", [("data", b"x" * (p.MAX_CALL + 1))])
