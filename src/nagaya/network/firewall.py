"""The bridges' nftables tables: masquerading, published ports, what may be forwarded to containers.

One table `ip NAME`, and `ip6 NAME` once a network has IPv6, rebuilt as a whole in one transaction
whenever it is in doubt, so there is no state to repair: static chains, sets of the bridges, and two maps
with one element per published port. Bridges are isolated from one another. Where another table's
forward chain drops by default (ufw, dockerd, firewalld), accepting in ours is not enough, since every
base chain must accept: that chain gets two tagged rules for each bridge at its top, the only ones outside
our tables. They may be broad because our own forward chain still decides (a drop anywhere is final).

Rules are made by pure functions; `Firewall` runs them. docs/network.md draws the packet's way.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from nagaya.errors import FailedPrecondition, InvalidArgument, KernelError
from nagaya.linux.nftables import Nftables
from nagaya.network.model import PublishedPort, Subnet

_TABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,30}")
# what nft's lexer takes in a quoted interface name; "*" at its end would be a wildcard
_BRIDGE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")
_ANY_ADDRESS = ("", "0.0.0.0", "::")
_LOOPBACK = {"ip": "127.0.0.0/8", "ip6": "::1"}
_ADDRESS = {"ip": "ipv4_addr", "ip6": "ipv6_addr"}
_VERSION = {"ip": 4, "ip6": 6}
_TRANSPORT = "meta l4proto { tcp, udp, sctp }"

Element = tuple[str, str, str]  # map, key, value
Published = tuple[str, Sequence[PublishedPort]]  # a container's address, and its ports


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


class Bridging(msgspec.Struct, frozen=True):
    """What the rules need to know of one bridge."""

    name: str
    subnets: tuple[Subnet, ...] = ()
    icc: bool = True
    internal: bool = False
    masquerade: bool = True


def chains(family: str, bridges: Sequence[Bridging], *, relayed: bool = False) -> dict[str, tuple[str, ...]]:
    """The chains of the table of a family ("ip", "ip6"): name -> lines, of which a base chain's first is
    its hook. What is asked of every packet is a look into a set, however many bridges there are.

    relayed: what comes from outside to a published port goes to its reserving socket, past the host's
    INPUT rules; only our containers' own packets are translated."""
    return {
        # before conntrack: nobody but ourselves speaks to or from 127/8. The bridges have route_localnet,
        # and DNAT comes before routing would refuse such packets (CVE-2020-8558's kin)
        "spoofed": (
            "type filter hook prerouting priority raw; policy accept;",
            f'iifname != "lo" {family} daddr {_LOOPBACK[family]} drop',
            f'iifname != "lo" {family} saddr {_LOOPBACK[family]} drop',
        ),
        "publish": (
            f"{_TRANSPORT} dnat {family} to {family} daddr . meta l4proto . th dport map @published_address",
            f"{_TRANSPORT} dnat {family} to meta l4proto . th dport map @published_any",
        ),
        "prerouting": (
            "type nat hook prerouting priority dstnat; policy accept;",
            f"{'iifname @bridges ' if relayed else ''}fib daddr type local jump publish",
        ),
        "output": (
            "type nat hook output priority -100; policy accept;",
            # nothing leads from ::1 to elsewhere: its connections go to the reserving socket
            f"{'ip6 daddr != ::1 ' if family == 'ip6' else ''}fib daddr type local jump publish",
        ),
        "postrouting": (
            "type nat hook postrouting priority srcnat; policy accept;",
            *_postrouting(family, bridges),
        ),
        "forward": (
            "type filter hook forward priority filter; policy accept;",
            "iifname @unrouted oifname @unrouted drop",
            "iifname . oifname @neighbours accept",
            "oifname @bridges jump to_bridge",
            "iifname @internal drop",
            "iifname @bridges accept",
        ),
        "to_bridge": (
            "ct state established,related accept",
            "oifname @internal drop",
            "ct status dnat accept",
            "drop",
        ),
    }


def _postrouting(family: str, bridges: Sequence[Bridging]) -> Iterator[str]:
    for bridge in bridges:
        own = [str(s.network) for s in bridge.subnets if s.network.version == _VERSION[family]]
        name = bridge.name
        if bridge.masquerade and not bridge.internal:
            for network in own:
                yield f'{family} saddr {network} oifname != "{name}" masquerade'
        if own and family == "ip":
            # from this host's 127.0.0.1 to a published port
            yield f'oifname "{name}" {family} saddr {_LOOPBACK[family]} masquerade'
        if own:
            # a container to a published port of its own or of its neighbour: the answer must come back
            # through us to be rewritten, not straight over the bridge
            yield f'oifname "{name}" {family} saddr {{ {", ".join(own)} }} ct status dnat masquerade'


def ruleset(
    table: str,
    bridges: Sequence[Bridging],
    elements: Collection[Element],
    *,
    family: str = "ip",
    unrouted: Collection[str] = (),
    relayed: bool = False,
) -> str:
    """The whole table as one transaction that replaces whatever was there."""
    lines = [f"add table {family} {table}", f"delete table {family} {table}", f"table {family} {table} {{"]
    kind = _ADDRESS[family]
    # neighbours: the bridges whose ports may speak to one another, where frames meet these rules at all;
    # unrouted: interfaces between which this host did not route before we turned forwarding on
    sets = (
        (
            "map published_address",
            f"type {kind} . inet_proto . inet_service : {kind} . inet_service;",
            [f"{key} : {value}" for name, key, value in elements if name == "published_address"],
        ),
        (
            "map published_any",
            f"type inet_proto . inet_service : {kind} . inet_service;",
            [f"{key} : {value}" for name, key, value in elements if name == "published_any"],
        ),
        ("set bridges", "type ifname;", [f'"{b.name}"' for b in bridges]),
        ("set internal", "type ifname;", [f'"{b.name}"' for b in bridges if b.internal]),
        ("set neighbours", "type ifname . ifname;", [f'"{b.name}" . "{b.name}"' for b in bridges if b.icc]),
        ("set unrouted", "type ifname;", [f'"{name}"' for name in unrouted]),
    )
    for head, definition, members in sets:
        lines += [f"  {head} {{", f"    {definition}"]
        if members:
            lines.append(f"    elements = {{ {', '.join(members)} }}")
        lines.append("  }")
    for name, body in chains(family, bridges, relayed=relayed).items():
        lines += [f"  chain {name} {{", *(f"    {line}" for line in body), "  }"]
    return "\n".join([*lines, "}", ""])


def add_elements(table: str, elements: Iterable[Element], family: str = "ip") -> str:
    """The transaction that publishes."""
    return "".join(
        f"add element {family} {table} {name} {{ {key} : {value} }}\n" for name, key, value in elements
    )


def delete_elements(table: str, elements: Iterable[Element], family: str = "ip") -> str:
    """The transaction that unpublishes."""
    return "".join(f"delete element {family} {table} {name} {{ {key} }}\n" for name, key, _ in elements)


def family_of(address: str) -> str:
    """ "ip" or "ip6"."""
    return "ip6" if ":" in address else "ip"


def _joined(part: Any) -> str:
    """A key or value of a map's element, as we write it."""
    return " . ".join(map(str, part["concat"])) if isinstance(part, dict) else str(part)


def _objects(listing: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    return [entry[kind] for entry in listing.get("nftables", ()) if kind in entry]


def foreign_forward_chains(listing: Mapping[str, Any], table: str) -> list[tuple[str, str, str]]:
    """(family, table, chain) of the others' base chains that see forwarded packets, from `list chains`."""
    return [
        (chain["family"], chain["table"], chain["name"])
        for chain in _objects(listing, "chain")
        if chain.get("hook") == "forward"
        and chain["family"] in ("ip", "ip6", "inet")
        and chain["table"] != table
    ]


def foreign_input_chains(listing: Mapping[str, Any], table: str) -> list[tuple[str, str, str]]:
    """(family, table, chain) of the others' base chains that see what is for this host."""
    return [
        (chain["family"], chain["table"], chain["name"])
        for chain in _objects(listing, "chain")
        if chain.get("hook") == "input"
        and chain["family"] in ("ip", "ip6", "inet")
        and chain["table"] != table
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


def tagged_rules(listing: Mapping[str, Any], tag: str) -> dict[int, tuple[str, str]]:
    """The rules of a `list chain` that carry our tag: handle -> ("iifname" or "oifname", the bridge)."""
    found: dict[int, tuple[str, str]] = {}
    for rule in _objects(listing, "rule"):
        if rule.get("comment") == tag:
            match: dict[str, Any] = next(
                (part["match"] for part in rule.get("expr", ()) if "match" in part), {}
            )
            left = match.get("left") or {}
            direction = str(left.get("meta", {}).get("key", "")) if isinstance(left, dict) else ""
            found[rule["handle"]] = (direction, str(match.get("right", "")))
    return found


class Firewall:
    """Our tables in the kernel, one for IPv4 and, once a bridge has IPv6, one for that; and the tagged
    rules in others' chains. Thread-safe as libnftables is; `apply` and `publish` of the same port are the
    caller's to order."""

    def __init__(self, table: str, *, respect_input: bool = False) -> None:
        """respect_input: where a chain of the host's drops what it does not know of what is for it, published
        ports are relayed instead of translated (`relayed`)."""
        self._table = table
        self._respect_input = respect_input
        self.relayed: frozenset[str] = frozenset()  # families
        self._tag = f"nagaya:{table}"
        self._nft: Nftables | None = None
        self._bridges: tuple[Bridging, ...] = ()
        self._had: set[str] | None = None  # families of which there is a table of ours; None: not looked

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

    def _families(self) -> tuple[str, ...]:
        six = any(s.network.version == 6 for bridge in self._bridges for s in bridge.subnets)
        return ("ip", "ip6") if six else ("ip",)

    def apply(
        self,
        bridges: Sequence[Bridging],
        published: Iterable[Published],
        *,
        unrouted: Collection[str] = (),
    ) -> None:
        """Replace our tables by ones with these bridges and published ports ((container address, ports)
        each), and see to the others' chains. One transaction: connections go on, no packet meets half a
        table.

        unrouted: added to those that the table in the kernel already names. Raises KernelError,
        FailedPrecondition (no libnftables; another program owns the table that drops).
        """
        self._bridges = tuple(bridges)
        families = self._families()
        elements = [(family_of(a), element(a, port)) for a, ports in published for port in ports]
        self.relayed = self._families_to_relay()
        text = ""
        for family in families:
            own = [e for where, e in elements if where == family]
            names = sorted({*unrouted, *self._unrouted(family)})
            text += ruleset(
                self._table, bridges, own, family=family, unrouted=names, relayed=family in self.relayed
            )
        for family in self._present() - {*families}:
            text += f"add table {family} {self._table}\ndelete table {family} {self._table}\n"
        self._run(text, f"nft: replace table {self._table}")
        self._had = {*families}
        self.open_forwarding()

    def _families_to_relay(self) -> frozenset[str]:
        found: set[str] = set()
        if self._respect_input:
            for family, table, chain in foreign_input_chains(self._list("chains"), self._table):
                if drops_by_default(self._list(f"chain {family} {table} {chain}")):
                    found |= {"ip", "ip6"} if family == "inet" else {family}
        return frozenset(found)

    def _present(self) -> set[str]:
        if self._had is None:
            own = (t for t in _objects(self._list("tables"), "table") if t["name"] == self._table)
            self._had = {t["family"] for t in own} & {"ip", "ip6"}
        return self._had

    def _unrouted(self, family: str) -> list[str]:
        # the kernel's set is the truth: an administrator may have emptied it
        try:
            listing = self._list(f"set {family} {self._table} unrouted")
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return []
            raise
        members = [entry.get("elem", ()) for entry in _objects(listing, "set")]
        return [str(name) for group in members for name in group]

    def publish(self, published: Iterable[Published]) -> None:
        """Publish ports of containers. Raises KernelError: ENOENT when the table is gone, EEXIST when a
        port leads elsewhere."""
        commands = "".join(
            add_elements(self._table, [element(address, port) for port in ports], family_of(address))
            for address, ports in published
        )
        if commands:
            self._run(commands, "nft: publish ports")

    def unpublish(self, published: Iterable[Published]) -> None:
        """Undo `publish`; elements, or a table, that are gone already are fine. The ports must still be
        reserved: an element is found by its key, whoever it belongs to by then."""
        elements = [(family_of(a), element(a, port)) for a, ports in published for port in ports]
        if not elements:
            return
        step = "nft: unpublish ports"
        one_by_one = [delete_elements(self._table, [one], family) for family, one in elements]
        try:
            self._run("".join(one_by_one), step)
            return
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
        for command in one_by_one:
            try:
                self._run(command, step)
            except KernelError as error:
                if error.errno != errno.ENOENT:
                    raise

    def intact(self) -> bool:
        """Are all our chains there with as many rules as we made, and the right ones for the host's INPUT
        chains? False after `nft flush ruleset`."""
        if not all(self._intact(family) for family in self._families()):
            return False
        return self.relayed == self._families_to_relay()

    def differences(self, published: Iterable[Published]) -> list[tuple[str, str]]:
        """(what, how it differs) between our tables and what these ports would make."""
        if not self.intact():
            return [(f"table {self._table}", "chains or rules of ours are not as they were made")]
        wanted = {(family_of(a), *element(a, port)) for a, ports in published for port in ports}
        present = {(family, *one) for family in self._families() for one in self._elements(family)}
        return [
            (f"table {family} {self._table}", f"{name}: {key} : {value} is {how}")
            for how, some in (("missing", wanted - present), ("nobody's", present - wanted))
            for family, name, key, value in sorted(some)
        ]

    def _elements(self, family: str) -> Iterator[Element]:
        for entry in _objects(self._list(f"table {family} {self._table}"), "map"):
            for key, value in entry.get("elem", ()):
                yield entry["name"], _joined(key), _joined(value)

    def _intact(self, family: str) -> bool:
        try:
            listing = self._list(f"table {family} {self._table}")
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        found = dict.fromkeys((chain["name"] for chain in _objects(listing, "chain")), 0)
        for rule in _objects(listing, "rule"):
            found[rule["chain"]] = found.get(rule["chain"], 0) + 1
        expected = {
            name: len(body) - body[0].startswith("type ")
            for name, body in chains(family, self._bridges).items()
        }
        return found == expected

    def open_forwarding(self) -> None:
        """In every other forward chain that drops by default: two tagged rules for each bridge that let
        its traffic pass on to our own chain. Idempotent; stale ones are removed."""
        for family, table, chain in foreign_forward_chains(self._list("chains"), self._table):
            place = f"{family} {table} {chain}"
            listing = self._list(f"chain {place}")
            found = tagged_rules(listing, self._tag)
            wanted = {
                (direction, bridge.name)
                for bridge in (self._bridges if drops_by_default(listing) else ())
                for direction in ("iifname", "oifname")
            }
            stale = [handle for handle, rule in found.items() if rule not in wanted]
            missing = sorted(wanted - {*found.values()})
            commands = [f"delete rule {place} handle {handle}\n" for handle in stale]
            commands += [
                f'insert rule {place} {direction} "{name}" counter accept comment "{self._tag}"\n'
                for direction, name in missing
            ]
            if not commands:
                continue
            try:
                self._run("".join(commands), f"nft: accept the bridges' traffic in {place}")
            except KernelError as error:
                if error.errno not in (errno.EPERM, errno.EOPNOTSUPP):
                    raise
                name = missing[0][1] if missing else ""
                raise FailedPrecondition(
                    f"{place} drops forwarded traffic and cannot be changed; let its owner accept the "
                    f"interface {name} (firewall-cmd --zone=trusted --add-interface={name})",
                    subject=place,
                    step="nft",
                ) from None

    def remove(self) -> None:
        """Remove our tables and the tagged rules. Idempotent."""
        for family in sorted({"ip", *self._present()}):
            self._run(
                f"add table {family} {self._table}\ndelete table {family} {self._table}\n",
                "nft: delete table",
            )
        self._had = set()
        self._bridges = ()
        self.open_forwarding()
