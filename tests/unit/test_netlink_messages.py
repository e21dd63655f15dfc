"""rtnetlink messages as bytes: attributes, acknowledgements, what is refused. No socket, no root."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.errors import InternalError, InvalidArgument
from nagaya.linux import netlink
from nagaya.linux.nftables import first_error


@given(st.lists(st.tuples(st.integers(1, 0x3FFF), st.binary(max_size=300)), unique_by=lambda a: a[0]))
def test_attributes_come_back(pairs: list[tuple[int, bytes]]) -> None:
    data = b"".join(netlink.attribute(number, payload) for number, payload in pairs)
    assert len(data) % 4 == 0
    assert netlink.attributes(data) == dict(pairs)


@given(st.binary(max_size=200))
def test_malformed_attributes_never_escape(data: bytes) -> None:
    try:
        found = netlink.attributes(data)
    except InternalError:
        return
    assert sum(len(payload) + 4 for payload in found.values()) <= len(data)


@given(st.binary(max_size=200))
def test_malformed_messages_never_escape(data: bytes) -> None:
    try:
        messages = list(netlink.parse_messages(data))
    except InternalError:
        return
    assert sum(len(body) + 16 for *_, body in messages) <= len(data)


def test_an_attribute_cannot_wrap_its_length() -> None:
    assert len(netlink.attribute(1, bytes(65531))) == 65536
    with pytest.raises(InvalidArgument):
        netlink.attribute(1, bytes(65532))


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a b", "sixteen-bytes-xx", "a\0b", "a\n", "eth%d", "x:y"]
)
def test_names_the_kernel_would_refuse_or_expand(name: str) -> None:
    with pytest.raises(InvalidArgument):
        netlink.link_set(name, up=True)


@pytest.mark.parametrize("mac", ["", "02:42", "02:42:00:00:00:0g", "02:42:00:00:00:00:00", "2:-1:0:0:0:0"])
def test_bad_macs(mac: str) -> None:
    with pytest.raises(InvalidArgument):
        netlink.mac_bytes(mac)


def test_addresses_are_checked() -> None:
    for text in ("10.0.0", "10.0.0.1/24", "x", "::g"):
        with pytest.raises(InvalidArgument):
            netlink.address_add(1, text, 24)
    assert netlink.address_add(1, "fd00::1", 64).body[:2] == bytes((10, 64))


def test_veth_is_the_request_that_ip_link_sends() -> None:
    # strace -e sendmsg ip link add ngv1 mtu 1400 master 7 type veth peer name eth0 netns FD mtu 1400
    body = netlink.veth_add(
        "ngv1", "eth0", netns_fd=5, master=7, mtu=1400, peer_address="02:42:0a:e7:00:02"
    ).body
    outer = netlink.attributes(body, 16)
    assert outer[netlink.IFLA_IFNAME] == b"ngv1\0"
    assert outer[netlink.IFLA_MASTER] == struct.pack("=I", 7)
    info = netlink.attributes(outer[netlink.IFLA_LINKINFO])
    assert info[netlink.IFLA_INFO_KIND] == b"veth\0"
    peer = netlink.attributes(netlink.attributes(info[netlink.IFLA_INFO_DATA])[1], 16)
    assert peer == {
        netlink.IFLA_IFNAME: b"eth0\0",
        netlink.IFLA_ADDRESS: bytes.fromhex("02420ae70002"),
        netlink.IFLA_MTU: struct.pack("=I", 1400),
        netlink.IFLA_NET_NS_FD: struct.pack("=I", 5),
    }


def test_extended_acknowledgement() -> None:
    header = bytes(16)
    words = netlink.attribute(1, b"Nexthop has invalid gateway\0")
    body = struct.pack("=i", -errno.ENETUNREACH) + header + words
    assert netlink.parse_acknowledgement(0x300, body) == (errno.ENETUNREACH, "Nexthop has invalid gateway")
    # an old kernel echoes the whole request before the words
    echoed = struct.pack("=I", 24) + bytes(20)
    body = struct.pack("=i", -errno.EPERM) + echoed + words
    assert netlink.parse_acknowledgement(0x200, body)[1] == "Nexthop has invalid gateway"
    assert netlink.parse_acknowledgement(0, struct.pack("=i", 0) + header) == (0, "")
    assert netlink.parse_acknowledgement(0, b"") == (0, "")


def test_nft_errors_are_one_line_with_a_number() -> None:
    text = (
        "/dev/stdin:1:1-3: Error: Could not process rule: File exists\nadd element ip t m { 1 : 2 }\n   ^^^\n"
        "internal:0:0-0: Error: Could not process rule: No such file or directory\n"
    )
    assert first_error(text) == ("Could not process rule: File exists", errno.EEXIST)
    assert first_error("Error: syntax error, unexpected end of file\n x\n")[1] == 0
    assert first_error("") == ("unknown error", 0)
