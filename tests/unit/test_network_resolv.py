"""resolv.conf, hosts and hostname of a container, from the host's files and the user's wishes."""

from __future__ import annotations

from typing import Any

import pytest

from nagaya.errors import InvalidArgument
from nagaya.network import resolv

HOST = """\
# a comment
; another
domain old.example
nameserver 127.0.0.1
nameserver 192.0.2.53
nameserver fe80::1%eth0
nameserver 2001:db8::53
nameserver 300.1.1.1
search corp.example lan
options ndots:2 edns0
sortlist 1.2.3.4
"""


def test_the_hosts_own_without_what_only_the_host_reaches() -> None:
    assert resolv.resolv_conf(HOST) == (
        "nameserver 192.0.2.53\nsearch corp.example lan\noptions ndots:2 edns0\n"
    )


def test_public_servers_when_none_is_left() -> None:
    for host in ("", "nameserver 127.0.0.53\noptions edns0 trust-ad\n", "nameserver ::1\n"):
        assert resolv.resolv_conf(host).startswith("nameserver 8.8.8.8\nnameserver 8.8.4.4\n")


def test_the_users_wishes_replace() -> None:
    text = resolv.resolv_conf(
        HOST, dns=("127.0.0.1", "2001:db8::1"), search=("a.example",), options=("timeout:1", "use-vc")
    )
    assert text == (
        "nameserver 127.0.0.1\nnameserver 2001:db8::1\nsearch a.example\noptions timeout:1 use-vc\n"
    )
    assert "search" not in resolv.resolv_conf(HOST, search=(".",))


def test_on_the_hosts_network_local_resolvers_stay() -> None:
    text = resolv.resolv_conf("nameserver 127.0.0.53\n", own_network=False)
    assert text == "nameserver 127.0.0.53\n"
    assert resolv.resolv_conf("", own_network=False) == ""


def test_behind_systemd_resolved() -> None:
    assert resolv.host_source("nameserver 127.0.0.53\noptions edns0\n") == resolv.SYSTEMD_RESOLV_CONF
    assert resolv.host_source("nameserver 127.0.0.53\nnameserver 9.9.9.9\n") == resolv.HOST_RESOLV_CONF
    assert resolv.host_source("") == resolv.HOST_RESOLV_CONF


@pytest.mark.parametrize(
    ("what", "value"),
    [
        *(
            ("dns", v)
            for v in ("", "x", "1.2.3.4\nnameserver 6.6.6.6", "1.2.3.4 ", "fe80::1%eth0\n", "1.2.3")
        ),
        *(("search", v) for v in ("", "a b", "a\nnameserver 6.6.6.6", "-a", "a..b", "x" * 64, "a.example\n")),
        *(("options", v) for v in ("", "a b", "ndots:1\nnameserver 6.6.6.6", "#x", "a\n")),
    ],
)
def test_no_value_becomes_a_line(what: str, value: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        wishes: dict[str, Any] = {what: (value,)}
        resolv.resolv_conf(HOST, **wishes)
    assert "\n" not in str(caught.value)


def test_hosts() -> None:
    text = resolv.hosts(
        addresses=("10.231.0.2",),
        hostname="web",
        domainname="lan.example",
        extra=("db:192.0.2.1", "six:2001:db8::1", "brackets:[::1]", "me:host-gateway"),
        gateway="10.231.0.1",
    )
    assert text.startswith("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
    assert text.splitlines()[6:] == [
        "192.0.2.1\tdb",
        "2001:db8::1\tsix",
        "::1\tbrackets",
        "10.231.0.1\tme",
        "10.231.0.2\tweb.lan.example web",
    ]
    assert resolv.hosts().endswith("ff02::2\tip6-allrouters\n")


@pytest.mark.parametrize(
    "extra", ["", "db", "db:", ":1.2.3.4", "db:1.2.3", "d b:1.2.3.4", "a\n6.6.6.6 b:1.2.3.4", "db:1.2.3.4\nx"]
)
def test_bad_extra_hosts(extra: str) -> None:
    with pytest.raises(InvalidArgument, match="bad format for add-host"):
        resolv.hosts(extra=(extra,))


def test_host_gateway_needs_a_gateway() -> None:
    with pytest.raises(InvalidArgument, match="has no gateway"):
        resolv.hosts(extra=("me:host-gateway",))


@pytest.mark.parametrize("name", ["", "a b", "a\n", "-a", "a-", "x" * 64, "x." * 127, "ü"])
def test_bad_hostnames(name: str) -> None:
    with pytest.raises(InvalidArgument):
        resolv.hostname_file(name)


@pytest.mark.parametrize("name", ["a", "web-1.example", "under_score", "4c01db0b339c", "x" * 63])
def test_hostnames(name: str) -> None:
    assert resolv.hostname_file(name) == f"{name}\n"
