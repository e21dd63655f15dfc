"""The bridge's nftables table: masquerading, published ports, what may be forwarded to containers.

One table `ip NAME`, rebuilt as a whole in one transaction whenever it is in doubt, so there is no
state to repair: static chains, and two maps with one element per published port. Where another
table's forward chain drops by default (ufw, dockerd, firewalld), accepting in ours is not enough, since
every base chain must accept: that chain gets two tagged rules at its top, the only ones outside our
table. They may be broad because our own forward chain still decides (a drop anywhere is final).

Rules are made by pure functions; `Firewall` runs them. docs/network.md draws the packet's way.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from nagaya.errors import FailedPrecondition, InvalidArgument, KernelError
from nagaya.linux.nftables import Nftables
from nagaya.network.model import PublishedPort, Subnet

_TABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,30}")
# what nft's lexer takes in a quoted interface name; "*" at its end would be a wildcard
_BRIDGE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")
_ANY_ADDRESS = ("", "0.0.0.0")
_TRANSPORT = "meta l4proto { tcp, udp, sctp }"

Element = tuple[str, str, str]  # map, key, value


def check_names(table: str, bridge: str) -> None:
    """Raise InvalidArgument unless both names are safe inside nft's language and sysctl paths."""
    if not _TABLE_NAME.fullmatch(table):
        raise InvalidArgument(f"{table!r} is not a name for an nftables table", subject="nft-table")
    if not _BRIDGE_NAME.fullmatch(bridge):
        raise InvalidArgument(f"{bridge!r} is not a name for a bridge", subject="bridge")


def element(address: str, port: PublishedPort) -> Element:
    """The map element of a published port: where it is looked up, and what it is rewritten to."""
    target = f"{address} . {port.container_port}"
    if port.host_ip in _ANY_ADDRESS:
        return "published_any", f"{port.protocol} . {port.host_port}", target
    return "published_address", f"{port.host_ip} . {port.protocol} . {port.host_port}", target


def chains(bridge: str, *, icc: bool = True) -> dict[str, tuple[str, ...]]:
    """The static chains: name -> lines, of which a base chain's first is its hook."""
    return {
        # before conntrack: nobody but ourselves speaks to or from 127/8. The bridge has route_localnet,
        # and DNAT comes before routing would refuse such packets (CVE-2020-8558's kin)
        "spoofed": (
            "type filter hook prerouting priority raw; policy accept;",
            'iifname != "lo" ip daddr 127.0.0.0/8 drop',
            'iifname != "lo" ip saddr 127.0.0.0/8 drop',
        ),
        "publish": (
            f"{_TRANSPORT} dnat ip to ip daddr . meta l4proto . th dport map @published_address",
            f"{_TRANSPORT} dnat ip to meta l4proto . th dport map @published_any",
        ),
        "prerouting": (
            "type nat hook prerouting priority dstnat; policy accept;",
            "fib daddr type local jump publish",
        ),
        "output": (
            "type nat hook output priority -100; policy accept;",
            "fib daddr type local jump publish",
        ),
        "postrouting": (
            "type nat hook postrouting priority srcnat; policy accept;",
            f'ip saddr @subnets oifname != "{bridge}" masquerade',
            # from this host's 127.0.0.1 to a published port
            f'oifname "{bridge}" ip saddr 127.0.0.0/8 masquerade',
            # a container to a published port of its own or of its neighbour: the answer must come back
            # through us to be rewritten, not straight over the bridge
            f'oifname "{bridge}" ip saddr @subnets ct status dnat masquerade',
        ),
        "forward": (
            "type filter hook forward priority filter; policy accept;",
            "iifname @unrouted oifname @unrouted drop",
            f'oifname "{bridge}" jump to_bridge',
            f'iifname "{bridge}" accept',
        ),
        "to_bridge": (
            "ct state established,related accept",
            "ct status dnat accept",
            f'iifname "{bridge}" {"accept" if icc else "drop"}',
            "drop",
        ),
    }


def ruleset(
    table: str,
    bridge: str,
    subnets: Iterable[Subnet],
    elements: Collection[Element],
    *,
    icc: bool = True,
    unrouted: Collection[str] = (),
) -> str:
    """The whole table as one transaction that replaces whatever was there."""
    lines = [f"add table ip {table}", f"delete table ip {table}", f"table ip {table} {{"]
    sets = (
        (
            "map published_address",
            "type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service;",
            [f"{key} : {value}" for name, key, value in elements if name == "published_address"],
        ),
        (
            "map published_any",
            "type inet_proto . inet_service : ipv4_addr . inet_service;",
            [f"{key} : {value}" for name, key, value in elements if name == "published_any"],
        ),
        (
            "set subnets",
            "type ipv4_addr; flags interval; auto-merge;",
            sorted({str(subnet.network) for subnet in subnets}),
        ),
        # interfaces between which this host did not route before we turned forwarding on
        ("set unrouted", "type ifname;", [f'"{name}"' for name in unrouted]),
    )
    for head, kind, members in sets:
        lines += [f"  {head} {{", f"    {kind}"]
        if members:
            lines.append(f"    elements = {{ {', '.join(members)} }}")
        lines.append("  }")
    for name, body in chains(bridge, icc=icc).items():
        lines += [f"  chain {name} {{", *(f"    {line}" for line in body), "  }"]
    return "\n".join([*lines, "}", ""])


def add_elements(table: str, elements: Iterable[Element]) -> str:
    """The transaction that publishes."""
    return "".join(f"add element ip {table} {name} {{ {key} : {value} }}\n" for name, key, value in elements)


def delete_elements(table: str, elements: Iterable[Element]) -> str:
    """The transaction that unpublishes."""
    return "".join(f"delete element ip {table} {name} {{ {key} }}\n" for name, key, _ in elements)


def _objects(listing: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    return [entry[kind] for entry in listing.get("nftables", ()) if kind in entry]


def foreign_forward_chains(listing: Mapping[str, Any], table: str) -> list[tuple[str, str, str]]:
    """(family, table, chain) of the others' base chains that see forwarded IPv4, from `list chains`."""
    return [
        (chain["family"], chain["table"], chain["name"])
        for chain in _objects(listing, "chain")
        if chain.get("hook") == "forward"
        and chain["family"] in ("ip", "inet")
        and (chain["family"], chain["table"]) != ("ip", table)
    ]


def drops_by_default(listing: Mapping[str, Any]) -> bool:
    """Does the chain of a `list chain` end every packet it does not know? By its policy, or by a last
    rule that drops or rejects unconditionally (firewalld, RHEL's classic iptables)."""
    if any(chain.get("policy") == "drop" for chain in _objects(listing, "chain")):
        return True
    rules = _objects(listing, "rule")
    if not rules:
        return False
    last = [part for part in rules[-1].get("expr", ()) if "counter" not in part]
    return len(last) == 1 and ("drop" in last[0] or "reject" in last[0])


def tagged_rules(listing: Mapping[str, Any], tag: str) -> list[int]:
    """Handles of the rules of a `list chain` that carry our tag."""
    return [rule["handle"] for rule in _objects(listing, "rule") if rule.get("comment") == tag]


class Firewall:
    """Our table in the kernel, and the tagged rules in others' chains. Thread-safe as libnftables is;
    `apply` and `publish` of the same port are the caller's to order."""

    def __init__(self, table: str, bridge: str, *, icc: bool = True) -> None:
        check_names(table, bridge)
        self._table = table
        self._bridge = bridge
        self._icc = icc
        self._tag = f"nagaya:{table}"
        self._nft: Nftables | None = None

    def _run(self, commands: str, step: str) -> str:
        if self._nft is None:
            self._nft = Nftables()
        return self._nft.run(commands, step=step)

    def _list(self, what: str) -> Mapping[str, Any]:
        if self._nft is None:
            self._nft = Nftables()
        text = self._nft.run(f"list {what}", step=f"nft list {what}", json=True)
        decoded: Mapping[str, Any] = msgspec.json.decode(text) if text else {}
        return decoded

    def apply(
        self,
        subnets: Iterable[Subnet],
        published: Iterable[tuple[str, Sequence[PublishedPort]]],
        *,
        unrouted: Collection[str] = (),
    ) -> None:
        """Replace our table by one with these published ports ((container address, ports) each), and
        see to the others' chains. One transaction: connections go on, no packet meets half a table.

        unrouted: added to those that the table in the kernel already names. Raises KernelError,
        FailedPrecondition (no libnftables; another program owns the table that drops).
        """
        elements = [element(address, port) for address, ports in published for port in ports]
        names = sorted({*unrouted, *self._unrouted()})
        text = ruleset(self._table, self._bridge, subnets, elements, icc=self._icc, unrouted=names)
        self._run(text, f"nft: replace table ip {self._table}")
        self.open_forwarding()

    def _unrouted(self) -> list[str]:
        # the kernel's set is the truth: an administrator may have emptied it
        try:
            listing = self._list(f"set ip {self._table} unrouted")
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return []
            raise
        members = [entry.get("elem", ()) for entry in _objects(listing, "set")]
        return [str(name) for group in members for name in group]

    def publish(self, address: str, ports: Sequence[PublishedPort]) -> None:
        """Publish the ports of the container with that address. Raises KernelError: ENOENT when the
        table is gone, EEXIST when a port leads elsewhere."""
        if ports:
            commands = add_elements(self._table, [element(address, port) for port in ports])
            self._run(commands, f"nft: publish ports of {address}")

    def unpublish(self, address: str, ports: Sequence[PublishedPort]) -> None:
        """Undo `publish`; elements, or a table, that are gone already are fine. The ports must still be
        reserved: an element is found by its key, whoever it belongs to by then."""
        elements = [element(address, port) for port in ports]
        if not elements:
            return
        step = f"nft: unpublish ports of {address}"
        try:
            self._run(delete_elements(self._table, elements), step)
            return
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
        for one in elements:
            try:
                self._run(delete_elements(self._table, [one]), step)
            except KernelError as error:
                if error.errno != errno.ENOENT:
                    raise

    def intact(self) -> bool:
        """Are all our chains there with as many rules as we made? False after `nft flush ruleset`."""
        try:
            listing = self._list(f"table ip {self._table}")
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        found = dict.fromkeys((chain["name"] for chain in _objects(listing, "chain")), 0)
        for rule in _objects(listing, "rule"):
            found[rule["chain"]] = found.get(rule["chain"], 0) + 1
        expected = {
            name: len(body) - body[0].startswith("type ")
            for name, body in chains(self._bridge, icc=self._icc).items()
        }
        return found == expected

    def open_forwarding(self) -> None:
        """In every other forward chain that drops by default: two tagged rules that let the bridge's
        traffic pass on to our own chain. Idempotent; stale ones are removed."""
        for family, table, chain in foreign_forward_chains(self._list("chains"), self._table):
            place = f"{family} {table} {chain}"
            listing = self._list(f"chain {place}")
            handles = tagged_rules(listing, self._tag)
            wanted = 2 if drops_by_default(listing) else 0
            if len(handles) == wanted:
                continue
            commands = [f"delete rule {place} handle {handle}\n" for handle in handles]
            if wanted:
                commands += [
                    f'insert rule {place} {direction} "{self._bridge}" counter accept comment "{self._tag}"\n'
                    for direction in ("iifname", "oifname")
                ]
            try:
                self._run("".join(commands), f"nft: accept the bridge's traffic in {place}")
            except KernelError as error:
                if error.errno not in (errno.EPERM, errno.EOPNOTSUPP):
                    raise
                raise FailedPrecondition(
                    f"{place} drops forwarded traffic and cannot be changed; let its owner accept the "
                    f"interface {self._bridge} (firewall-cmd --zone=trusted --add-interface={self._bridge})",
                    subject=place,
                    step="nft",
                ) from None

    def remove(self) -> None:
        """Remove our table and the tagged rules. Idempotent."""
        self._run(f"add table ip {self._table}\ndelete table ip {self._table}\n", "nft: delete table")
        for family, table, chain in foreign_forward_chains(self._list("chains"), self._table):
            place = f"{family} {table} {chain}"
            handles = tagged_rules(self._list(f"chain {place}"), self._tag)
            self._run(
                "".join(f"delete rule {place} handle {h}\n" for h in handles), "nft: remove tagged rules"
            )
