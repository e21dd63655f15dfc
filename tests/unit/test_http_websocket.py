"""Frames of a websocket, in any pieces and with any mistakes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.api.http.websocket import BINARY, Decoder, Piece, encode
from nagaya.errors import InvalidArgument

MASK = b"\x01\x80\xff\x00"


def masked(opcode: int, data: bytes) -> bytes:
    """The frame as a client sends it."""
    plain = encode(opcode, data)
    head = len(plain) - len(data)
    body = bytes(byte ^ MASK[i % 4] for i, byte in enumerate(data))
    return bytes((plain[0], plain[1] | 128)) + plain[2:head] + MASK + body


def together(pieces: list[Piece]) -> bytes:
    return b"".join(piece.data for piece in pieces if piece.kind == "data")


@given(st.lists(st.binary(max_size=300), max_size=4), st.integers(1, 40))
def test_any_pieces(messages: list[bytes], step: int) -> None:
    stream = b"".join(masked(BINARY, m) for m in messages) + masked(9, b"ping")
    decoder, found = Decoder(), []
    for start in range(0, len(stream), step):
        found += decoder.feed(stream[start : start + step])
    assert together(found) == b"".join(messages)
    assert found[-1] == Piece("ping", b"ping")


@pytest.mark.parametrize("size", (0, 125, 126, 65535, 65536, 200_000))
def test_sizes(size: int) -> None:
    assert together(Decoder().feed(masked(BINARY, b"x" * size))) == b"x" * size


def test_a_huge_frame_is_not_kept() -> None:
    decoder = Decoder()
    head = bytes((128 | BINARY, 255)) + (1 << 62).to_bytes(8, "big") + MASK
    assert together(decoder.feed(head + MASK)) == bytes(4)
    assert together(decoder.feed(MASK * 1000)) == bytes(4000)


@pytest.mark.parametrize(
    "data",
    (
        encode(BINARY, b"unmasked"),
        masked(3, b"unknown"),
        b"\xc2\x80" + MASK,
        masked(9, b"x" * 126),
    ),
)
def test_what_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        Decoder().feed(data)


@given(st.binary(max_size=200))
def test_anything_at_all(data: bytes) -> None:
    try:
        assert len(together(Decoder().feed(data))) <= len(data)
    except InvalidArgument:
        pass
