"""DNS messages: what is understood, what is answered, and that no bytes do harm."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.linux import json
from nagaya.network import dnsmessage as dns
from nagaya.network.dnszone import Zones


def question(name: str, kind: int = dns.A, number: int = 7, flags: int = 0x0100, size: int = 0) -> bytes:
    labels = b"".join(bytes([len(p)]) + p.encode() for p in name.split(".") if p) + b"\0"
    extra = b"\0" + struct.pack("!HHIH", dns.OPT, size, 0, 0) if size else b""
    head = struct.pack("!HHHHHH", number, flags, 1, 0, 0, 1 if size else 0)
    return head + labels + struct.pack("!HH", kind, 1) + extra


def parsed(data: bytes) -> dns.Query:
    query = dns.parse(data)
    assert isinstance(query, dns.Query)
    return query


def test_a_question_and_its_answer() -> None:
    query = parsed(question("Web.Shop.", size=1232))
    assert (query.number, query.name, query.kind, query.size) == (7, "web.shop", dns.A, 1232)
    answer = dns.answer(query, ["10.0.0.2", "10.0.0.3"])
    number, flags, asked, answered, _, _ = struct.unpack_from("!HHHHHH", answer)
    assert (number, flags, asked, answered) == (7, 0x8180, 1, 2)
    assert answer[12:].startswith(query.question)
    assert answer.endswith(b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 600, 4) + bytes([10, 0, 0, 3]))
    assert dns.answers(answer, query) and not dns.answers(question("web.shop"), query)
    assert not dns.answers(dns.answer(parsed(question("web.shap")), ["10.0.0.2"]), query)
    assert struct.unpack_from("!H", dns.failure(query, dns.SERVFAIL), 2) == (0x8182,)


def test_what_does_not_fit_is_cut_and_says_so() -> None:
    query = parsed(question("web"))
    many = [f"10.0.{n >> 8}.{n & 255}" for n in range(100)]
    cut = dns.answer(query, many, limit=query.size)
    assert len(cut) <= 512 and cut[2] & 0x02
    assert len(dns.answer(query, many)) > 512 and not dns.answer(query, many)[2] & 0x02


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", None),
        (b"\0" * 11, None),
        (dns.answer(parsed(question("x")), ["10.0.0.2"]), None),
        (question("x", flags=0x2800), dns.NOTIMP),
        (question("x")[:-2], dns.FORMERR),
        (question("x")[:4] + b"\0\2" + question("x")[6:], dns.FORMERR),
        (question("x")[:12] + b"\xc0\x0c\0\1\0\1", dns.FORMERR),  # a pointer to itself
        (question(".".join(["a" * 63] * 5)), dns.FORMERR),
    ],
)
def test_what_is_no_question(data: bytes, code: int | None) -> None:
    assert dns.parse(data) == code


@given(st.binary(max_size=600))
def test_no_bytes_raise(data: bytes) -> None:
    found = dns.parse(data)
    if isinstance(found, dns.Query):
        dns.answer(found, ["10.0.0.2"], limit=found.size)
        dns.reverse_address(found.name)
    elif found is not None:
        assert len(dns.refusal(data, found)) == 12
    dns.answers(data, parsed(question("x")))


def test_reverse_names() -> None:
    assert dns.reverse_address("3.1.168.192.in-addr.arpa") == "192.168.1.3"
    assert dns.reverse_address("x.1.168.192.in-addr.arpa") == ""
    six = "2." + "0." * 23 + "1.3.2.0.0.0.d.f.ip6.arpa"
    assert dns.reverse_address(six) == "fd00:231::2"
    assert dns.reverse_address("web") == dns.reverse_address("1.in-addr.arpa") == ""


@pytest.fixture
def zones(tmp_path: Path) -> Zones:
    members = {
        "C1": {"names": ["db", "sql"], "addresses": ["10.0.0.2", "fd00::2"]},
        "C2": {"names": ["web", "sql"], "addresses": ["10.0.0.3"]},
    }
    network = {"name": "shop", "internal": False, "members": members}
    (tmp_path / "N").write_bytes(json.dumps(network).encode())
    own = {"networks": ["N", "gone"], "servers": ["10.9.9.9"], "links": {"store": "db"}}
    (tmp_path / "C2").write_bytes(json.dumps(own).encode())
    return Zones(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY))


def test_names_of_a_network(zones: Zones, tmp_path: Path) -> None:
    assert zones.addresses("C2", "db") == zones.addresses("C2", "db.shop") == ["10.0.0.2", "fd00::2"]
    assert zones.addresses("C2", "store") == ["10.0.0.2", "fd00::2"]
    assert zones.addresses("C2", "sql") == ["10.0.0.2", "fd00::2", "10.0.0.3"]
    assert zones.addresses("C2", "nosuch") is None and zones.addresses("C9", "db") is None
    assert zones.name_of("C2", "fd00::2") == "db.shop" and zones.name_of("C2", "10.0.0.9") == ""
    assert zones.servers("C2") == ["10.9.9.9"] and zones.servers("C9") == []
    # another file is another truth, a broken one is none
    (tmp_path / "N").write_bytes(json.dumps({"name": "shop", "internal": True, "members": {}}).encode())
    assert zones.addresses("C2", "db") is None and zones.servers("C2") == []
    (tmp_path / "C2").write_bytes(b"{")
    assert zones.addresses("C2", "db") is None
