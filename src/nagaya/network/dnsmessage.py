"""DNS messages (RFC 1035, EDNS's size of RFC 6891): what a container asks, and our own answers. Pure.

It runs in the keeper's child and imports what that may. Whatever does not parse is answered with FORMERR or
not at all; nothing here raises for bad bytes.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from _struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

A, PTR, AAAA, OPT = 1, 12, 28, 41
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)

_HEADER = Struct("!HHHHHH")
_QUESTION = Struct("!HH")
_RECORD = Struct("!HHIH")
_QR, _AA, _TC, _RD, _RA = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080
_TTL = 600  # as dockerd's
_LEAST = 512  # bytes that every client takes by UDP
_MOST = 4096
_IN = 1


class Query:
    """A question. name: lower case, without the last dot; question: its bytes, for the answer. size: what
    the client takes by UDP."""

    __slots__ = ("flags", "kind", "name", "number", "question", "size")

    def __init__(self, number: int, flags: int, name: str, kind: int, question: bytes, size: int) -> None:
        self.number = number
        self.flags = flags
        self.name = name
        self.kind = kind
        self.question = question
        self.size = size


def parse(data: bytes) -> Query | int | None:
    """A query; or the code of the error to answer with; or None: no answer, it is no query at all."""
    if len(data) < _HEADER.size:
        return None
    number, flags, questions, _, _, additional = _HEADER.unpack_from(data)
    if flags & _QR:
        return None
    if flags & 0x7800:
        return NOTIMP
    if questions != 1:
        return FORMERR
    parsed = _name(data, _HEADER.size)
    if parsed is None or parsed[1] + _QUESTION.size > len(data):
        return FORMERR
    name, offset = parsed
    kind, _ = _QUESTION.unpack_from(data, offset)
    end = offset + _QUESTION.size
    size = _LEAST
    # of the additional records only an OPT that comes first, as all clients send it
    if additional and data[end : end + 1] == b"\0" and end + 11 <= len(data):
        record, wanted, _, _ = _RECORD.unpack_from(data, end + 1)
        if record == OPT:
            size = max(_LEAST, min(wanted, _MOST))
    return Query(number, flags, name, kind, data[_HEADER.size : end], size)


def _name(data: bytes, offset: int) -> tuple[str, int] | None:
    """(the name, where it ends); no compression: a question comes first, there is nothing to point at."""
    labels: list[str] = []
    start = offset
    while offset < len(data):
        length = data[offset]
        offset += 1
        if not length:
            return ".".join(labels).lower(), offset
        if length > 63 or offset + length - start > 255:
            return None
        labels.append(data[offset : offset + length].decode("latin-1"))
        offset += length
    return None


def answer(query: Query, addresses: Sequence[str] = (), pointer: str = "", *, limit: int = 0) -> bytes:
    """Our own answer: addresses for A and AAAA, a name for PTR. limit: the most bytes, else truncated."""
    records = []
    for address in addresses:
        family = AF_INET6 if ":" in address else AF_INET
        raw = inet_pton(family, address)
        records.append(
            b"\xc0\x0c" + _RECORD.pack(AAAA if family == AF_INET6 else A, _IN, _TTL, len(raw)) + raw
        )
    if pointer:
        raw = b"".join(bytes([len(part)]) + part for part in map(_label, pointer.split("."))) + b"\0"
        records.append(b"\xc0\x0c" + _RECORD.pack(PTR, _IN, _TTL, len(raw)) + raw)
    size = _HEADER.size + len(query.question)
    kept = []
    for record in records:
        size += len(record)
        if limit and size > limit:
            break
        kept.append(record)
    cut = _TC if len(kept) < len(records) else 0
    flags = _QR | _RA | cut | query.flags & _RD
    head = _HEADER.pack(query.number, flags, 1, len(kept), 0, 0)
    return head + query.question + b"".join(kept)


def _label(part: str) -> bytes:
    return part.encode()[:63]


def failure(query: Query, code: int) -> bytes:
    """An answer that says why there is none."""
    flags = _QR | _RA | query.flags & _RD | code
    return _HEADER.pack(query.number, flags, 1, 0, 0, 0) + query.question


def refusal(data: bytes, code: int) -> bytes:
    """The same, to what is not a whole query."""
    number, flags = _HEADER.unpack_from(data)[:2]
    return _HEADER.pack(number, _QR | _RA | flags & _RD | code, 0, 0, 0, 0)


def renumbered(data: bytes, number: int) -> bytes:
    """The message with another id."""
    return number.to_bytes(2, "big") + data[2:]


def answers(data: bytes, query: Query) -> bool:
    """Is it an answer to that question, whatever its id?"""
    if len(data) < _HEADER.size or not data[2] & 0x80:
        return False
    got, asked = data[_HEADER.size : _HEADER.size + len(query.question)], query.question
    # a server may change the case of a name, never its length
    return got.lower() == asked.lower() or data[4:6] == b"\0\0"


def reverse_address(name: str) -> str:
    """The address that a PTR question asks for; "" when it is none."""
    labels = name.split(".")
    if name.endswith(".in-addr.arpa") and len(labels) == 6:
        text = ".".join(labels[3::-1])
        return text if all(part.isdigit() and len(part) < 4 for part in labels[:4]) else ""
    if name.endswith(".ip6.arpa") and len(labels) == 34 and all(len(part) == 1 for part in labels[:32]):
        try:
            return inet_ntop(AF_INET6, bytes.fromhex("".join(labels[31::-1])))
        except ValueError:
            return ""
    return ""
