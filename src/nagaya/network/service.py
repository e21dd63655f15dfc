"""The engine's door to the network room: networks and their endpoints, synchronously.

An endpoint's life, in the order the engine's journal records it:

    ports, fds = service.reserve(ports, endpoint="NAME (ID)")   # fds go to the keeper
    plan = service.plan(endpoint_id, taken, ports)              # stored in the ledger before anything exists
    service.connect(plan, netns_path, nl_fd)                    # a builder made the namespace and the socket
    service.publish(plan)
    ...
    service.unpublish(plan); service.disconnect(plan)           # each idempotent, also after a crash
    # only now the keeper lets the reserving sockets go

A network of the user's making is decided by `design`, stored, and then made by `add`; `remove` undoes it.
Nothing is touched, nor libnftables loaded, before the first endpoint or network (or one found at `start`).
Calls may come from several threads, those about one endpoint or network in order.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from socket import AF_INET6

import msgspec

from nagaya.errors import (
    FailedPrecondition,
    InvalidArgument,
    KernelError,
    NagayaError,
    NotFound,
    ResourceExhausted,
)
from nagaya.linux import conntrack
from nagaya.linux.linkstats import Traffic, link_counters
from nagaya.linux.netlink import Netlink
from nagaya.network import bridge as links
from nagaya.network import design, ipam
from nagaya.network.bridge import read_sysctl, write_sysctl
from nagaya.network.firewall import Firewall, Published, check_names
from nagaya.network.local import Net, Wanted
from nagaya.network.model import (
    DEFAULT,
    EndpointPlan,
    EndpointState,
    NetworkPlan,
    PublishedPort,
    Subnet,
    check_ports,
)
from nagaya.network.ports import reserve as reserve_ports
from nagaya.network.resolv import HOST_RESOLV_CONF, host_source, parse

_FORWARDING = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")
_GRACE = 0.1  # seconds: the kernel takes 15 to 50 ms to clean a dead network namespace up
_NO_WISHES = Wanted()


class NetworkService:
    """The default bridge network, and those that users made."""

    def __init__(
        self,
        *,
        bridge: str = "nagaya0",
        bip: str = "",
        ipv6: bool = False,
        fixed_cidr_v6: str = "",
        nft_table: str = "nagaya",
        mtu: int = 1500,
        icc: bool = True,
        default_pools: Sequence[tuple[str, int]] = ipam.DEFAULT_POOLS,
        firewall: str = "host",
    ) -> None:
        """bip "": the bridge's present subnet, else the first of the pools that overlaps no route; the same
        of fixed_cidr_v6, when ipv6 is wanted. firewall: do published ports pass the host's INPUT rules
        ("host"), or never ("nat")? Raises InvalidArgument; touches nothing."""
        check_names(nft_table, bridge)
        if not 68 <= mtu <= 65535:
            raise InvalidArgument(f"mtu {mtu} is not between 68 and 65535", subject="mtu")
        if firewall not in ("host", "nat"):
            raise InvalidArgument(f"{firewall!r} is neither host nor nat", subject="firewall")
        self._tag = f"nagaya:{nft_table}"
        self._firewall = Firewall(nft_table, respect_input=firewall == "host")
        self._pools = tuple(default_pools)
        self._mtu = mtu
        # guards what follows; never held while a namespace's or a container's work goes on
        self._lock = threading.Lock()
        subnet = ipam.parse_bip(bip) if bip else None
        subnet6 = ipam.parse_cidr6(fixed_cidr_v6) if fixed_cidr_v6 and ipv6 else None
        self._ipv6 = ipv6
        plan = NetworkPlan(DEFAULT, bridge, subnet=subnet, subnet6=subnet6, mtu=mtu, icc=icc)
        self._default = Net(plan, self._tag)
        self._nets = {DEFAULT: self._default}
        self._published: dict[str, EndpointPlan] = {}
        self._doomed: dict[str, EndpointPlan] = {}
        self._reaper: threading.Thread | None = None
        self._ready: set[str] = set()  # networks that are in the kernel

    # the networks

    def start(
        self, endpoints: Iterable[EndpointState], networks: Iterable[NetworkPlan] = ()
    ) -> tuple[str, ...]:
        """Make the kernel agree with the networks and the endpoints that the ledger says are living:
        leftovers of ours go, lost rules and elements come back. Returns the ids of endpoints whose
        interface is gone.
        """
        with self._lock:
            self._nets = {DEFAULT: self._default, **{p.id: Net(p, self._tag) for p in networks}}
            self._default.leases.clear()
            self._published.clear()
            self._ready.clear()
            for lease in endpoints:
                net = self._nets.get(lease.network)
                if net is not None:
                    net.remember(lease)
                    if lease.ports:
                        self._published[lease.endpoint_id] = lease
            wanted = set(self._nets) - {DEFAULT}
            bridge = self._default.bridge
            if self._default.leases or (bridge is not None and bridge.exists()):
                wanted.add(DEFAULT)
            if not wanted:
                links.sweep(self._tag, (), ())
                return ()
            self._ensure(wanted)
            missing = self._reconcile()
            if any(endpoint_id in self._published for endpoint_id in missing):
                for endpoint_id in missing:
                    self._published.pop(endpoint_id, None)
                self._apply()
            return missing

    def reassert(self) -> bool:
        """Put back what someone took away (`nft flush ruleset`, a firewall's reload, a deleted bridge);
        True when something was missing. Also notices that a host's forward chain began to drop.
        About 1 ms when all is well; nothing at all before the first endpoint."""
        with self._lock:
            if not self._ready:
                return False
            bridges = [net.bridge for net in self._in_kernel() if net.bridge is not None]
            if all(bridge.exists() for bridge in bridges) and self._firewall.intact():
                self._firewall.open_forwarding()
                return False
            self._ensure(self._ready)
            self._reconcile()
            return True

    def differences(self) -> list[tuple[str, str]]:
        """(what, how it differs from what we made) of bridges, tables and published ports."""
        with self._lock:
            if not self._ready:
                return []
            bridges = [net.bridge for net in self._in_kernel() if net.bridge is not None]
            found = [(b.name, "the bridge is gone") for b in bridges if not b.exists()]
            published = [one for e in self._published.values() for one in _targets(e)]
            return found + self._firewall.differences(published)

    def restore(self) -> None:
        """Make all of it anew, in one transaction: what is as it should be is not disturbed."""
        with self._lock:
            if self._ready:
                self._ensure(self._ready)
                self._reconcile()

    def teardown(self) -> None:
        """Remove the bridges, their ports, the tables and the tagged rules. For uninstalling, and tests: a
        daemon that ends leaves them to the containers that live on."""
        with self._lock:
            self._ready.clear()
            self._published.clear()
            for net in self._nets.values():
                net.leases.clear()
            links.sweep(self._tag, (), ())
            self._firewall.remove()

    def subnets(self) -> tuple[Subnet, ...]:
        """The subnets the default bridge has or will have."""
        with self._lock:
            self._choose_subnets()
            return self._default.plan.subnets

    def design(self, request: design.NetworkRequest) -> NetworkPlan:
        """Decide what a network will be; its subnets are its own only once it is added. Touches nothing.
        Raises as `design.decide`."""
        with self._lock:
            try:
                self._choose_subnets()  # which the others leave alone
            except ResourceExhausted:
                pass
            others = [net.plan for net in self._nets.values()]
            occupied = _occupied(ipv6=request.ipv6)
            return design.decide(request, others, occupied, self._all_pools(), mtu=self._mtu)

    def _all_pools(self) -> tuple[tuple[str, int], ...]:
        """The pools, with one for IPv6."""
        if any(":" in base for base, _ in self._pools):
            return self._pools
        return (*self._pools, ipam.pool6(os.uname().nodename.encode()))

    def add(self, plan: NetworkPlan) -> None:
        """Make a network. May be repeated. Raises KernelError and kin; nothing of it is left then."""
        with self._lock:
            net = self._nets.get(plan.id)
            if net is None or net.plan != plan:
                net = self._nets[plan.id] = Net(plan, self._tag)
            try:
                self._ensure({plan.id})
            except BaseException:
                self._drop(net)
                raise

    def remove(self, network_id: str) -> None:
        """Remove a network. Idempotent. Raises FailedPrecondition while it has endpoints."""
        with self._lock:
            net = self._nets.get(network_id)
            if net is None or network_id == DEFAULT:
                return
            if any(plan.network == network_id for plan in self._doomed.values()):
                self._free_doomed()
            if net.leases:
                raise FailedPrecondition("has active endpoints", subject=network_id)
            self._drop(net)

    def _drop(self, net: Net) -> None:
        self._nets.pop(net.plan.id, None)
        if net.bridge is not None:
            net.bridge.delete()
        if net.plan.id in self._ready:
            self._ready.discard(net.plan.id)
            self._apply()

    def _choose_subnets(self) -> None:
        """Those of the default bridge, once."""
        for version, field in ((4, "subnet"), (6, "subnet6")) if self._ipv6 else ((4, "subnet"),):
            plan = self._default.plan
            if getattr(plan, field) is not None:
                continue
            bridge = self._default.bridge
            present = bridge.subnets(version) if bridge is not None else []
            others = [s.network for net in self._nets.values() for s in net.plan.subnets]
            busy = [*_occupied(ipv6=version == 6), *others]
            subnet = present[0] if present else ipam.choose_subnet(self._all_pools(), busy, version)
            self._default.plan = msgspec.structs.replace(plan, **{field: subnet})

    def _in_kernel(self) -> list[Net]:
        return [net for network_id, net in self._nets.items() if network_id in self._ready]

    def _ensure(self, wanted: Collection[str]) -> None:
        """Bridges, tables, then forwarding: in that order nothing is ever routed without our rules."""
        if DEFAULT in wanted:
            self._choose_subnets()
        nets = [self._nets[network_id] for network_id in wanted]
        for net in nets:
            if net.bridge is not None:
                net.bridge.ensure(net.plan.subnets, keep={lease.gateway for lease in net.leases.values()})
        self._ready |= {*wanted}
        families = _FORWARDING[: 1 + any(net.plan.subnet6 for net in self._in_kernel())]
        closed = [name for name in families if read_sysctl(name) == "0"]
        self._apply(unrouted=links.foreign_links(self._tag) if closed else ())
        for name in closed:
            if name.startswith("ipv6"):
                _keep_accepting_routers()
            write_sysctl(name, "1")

    def _apply(self, unrouted: Sequence[str] = ()) -> None:
        bridges = [net.bridging() for net in self._in_kernel() if net.bridge is not None]
        published = [one for e in self._published.values() for one in _targets(e)]
        self._firewall.apply(bridges, published, unrouted=unrouted)

    def _reconcile(self) -> tuple[str, ...]:
        nets = self._in_kernel()
        names = [net.plan.interface for net in self._nets.values() if net.bridge is not None]
        plans = [plan for net in self._nets.values() for plan in net.leases.values()]
        found = links.sweep(self._tag, plans, names)
        for net in nets:
            if net.bridge is not None:
                net.bridge.replug(net.leases.values(), found)
        return tuple(p.endpoint_id for p in plans if p.host_interface and p.host_interface not in found)

    # one endpoint

    def reserve(
        self, ports: Sequence[PublishedPort], *, endpoint: str = ""
    ) -> tuple[tuple[PublishedPort, ...], list[int]]:
        """Bind the host's ports; return the ports with the numbers really chosen, and the sockets' fds,
        which are the caller's. endpoint: "NAME (ID)" for the message. See `ports.reserve`."""
        bound, sockets = reserve_ports(ports, endpoint=endpoint)
        return bound, [held.detach() for held in sockets]

    def plan(
        self,
        endpoint_id: str,
        ports: Sequence[PublishedPort] = (),
        *,
        network: str = DEFAULT,
        wanted: Wanted = _NO_WISHES,
    ) -> EndpointPlan:
        """Decide an endpoint: addresses, MAC, names. The addresses are leased until `disconnect`.

        endpoint_id: hexadecimal, a new one for every connection (its interface may outlive it by 0.1 s).
        ports: as `reserve` returned them. Touches nothing. Raises ResourceExhausted, NotFound (no such
        network), InvalidArgument and PermissionDenied (the wanted address cannot be had).
        """
        if not endpoint_id.isalnum() or not endpoint_id.isascii():
            raise InvalidArgument(f"{endpoint_id!r} is not an endpoint id", subject="endpoint")
        check_ports(tuple(ports))
        with self._lock:
            net = self._nets.get(network)
            if net is None:
                raise NotFound(f"network {network} not found", subject=network)
            if net is self._default:
                self._choose_subnets()
            if any(a and a in net.taken() for a in (wanted.address, wanted.address6)):
                self._free_doomed()
            try:
                made = net.lease(endpoint_id, wanted)
            except ResourceExhausted:
                if not self._free_doomed():
                    raise
                made = net.lease(endpoint_id, wanted)
            if ports:
                made = msgspec.structs.replace(made, ports=tuple(ports))
                net.leases[endpoint_id] = made
            return made

    def _free_doomed(self) -> bool:
        """Have the addresses of containers that are just going now; were there any?"""
        doomed, self._doomed = self._doomed, {}
        if doomed:
            links.disconnect(doomed.values())
            for plan in doomed.values():
                self._forget(plan)
        return bool(doomed)

    def _forget(self, plan: EndpointPlan) -> None:
        net = self._nets.get(plan.network)
        if net is not None:
            net.leases.pop(plan.endpoint_id, None)

    def connect(self, plan: EndpointPlan, netns: str | int, nl_fd: int) -> None:
        """Make the endpoint in the container's network namespace (its pin's path, or an fd). nl_fd: an
        rtnetlink socket opened inside; it stays the caller's. Raises KernelError and kin, NotFound (no such
        pin); nothing of the endpoint is left behind then."""
        if isinstance(netns, int):
            self._connect(plan, netns, nl_fd)
            return
        try:
            fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise NotFound(
                f"network namespace {netns}: {os.strerror(error.errno or 0).lower()}", subject=netns
            ) from None
        try:
            self._connect(plan, fd, nl_fd)
        finally:
            os.close(fd)

    def _connect(self, plan: EndpointPlan, netns_fd: int, nl_fd: int) -> None:
        net = self._nets.get(plan.network)
        if net is None:
            raise NotFound(f"network {plan.network} not found", subject=plan.network)
        self._with_network(net, lambda: net.link.connect(plan, netns_fd, nl_fd))

    def route(self, plans: Sequence[EndpointPlan], nl_fd: int) -> None:
        """Lead a container's default routes over the endpoint whose plan says so. May be repeated."""
        links.route(plans, nl_fd)

    def unplug(self, plan: EndpointPlan, nl_fd: int) -> None:
        """Undo `connect` of a container that goes on, and give the address back. nl_fd: as there.
        Idempotent."""
        if plan.host_interface:
            links.disconnect((plan,))
        else:
            links.unplug(plan, nl_fd)
        with self._lock:
            self._forget(plan)

    def replace(self, plan: EndpointPlan) -> None:
        """An endpoint's plan with other ports or routes."""
        with self._lock:
            net = self._nets.get(plan.network)
            if net is not None and plan.endpoint_id in net.leases:
                net.leases[plan.endpoint_id] = plan

    def counters(self, host_interface: str) -> tuple[Traffic, Traffic] | None:
        """What an endpoint's container received and sent; None when the interface is gone. Counted at
        the host's end of its veth, which receives what the container sends: nobody enters a namespace.
        Raises KernelError."""
        with Netlink() as nl:
            counted = link_counters(nl, host_interface)
        return counted and (counted[1], counted[0])

    def publish(self, plan: EndpointPlan) -> None:
        """Lead the plan's host ports to the container. Raises KernelError."""
        if not plan.ports:
            return
        # before the kernel has it: a table rebuilt meanwhile must not forget it
        with self._lock:
            self._published[plan.endpoint_id] = plan
            net = self._nets.get(plan.network, self._default)
        try:
            self._with_network(net, lambda: self._firewall.publish(_targets(plan)))
        except BaseException:
            with self._lock:
                self._published.pop(plan.endpoint_id, None)
            raise
        for port in plan.ports:
            if port.protocol == "udp":
                # a client that never falls silent would keep on talking to whoever had the port before
                conntrack.forget(conntrack.IPPROTO_UDP, port.host_port)

    def relayed(self, plan: EndpointPlan) -> list[PublishedPort]:
        """Those of its ports whose reserving sockets must be served: what cannot be translated, [::] as it is
        ::1, too, and while the host's INPUT rules count all that comes from outside."""
        families = self._firewall.relayed
        return [
            port
            for port in plan.ports
            if not _translated(port, plan)
            or port.host_ip == "::"
            or ("ip6" if ":" in port.host_ip else "ip") in families
        ]

    def unpublish(self, plan: EndpointPlan) -> None:
        """Undo `publish`. Idempotent. Before the reserving sockets are closed."""
        with self._lock:
            self._published.pop(plan.endpoint_id, None)
        self._firewall.unpublish(_targets(plan))

    def disconnect(self, plan: EndpointPlan, *, wait: bool = False) -> None:
        """Undo `connect` and give the address back. Idempotent.

        It returns at once: the kernel removes the interfaces when the container's namespace goes, and
        those that are still there 0.1 s later (something holds the namespace) a thread of ours removes;
        after a crash `start` does. wait: have them removed now, which takes 15-30 ms.
        """
        if wait:
            links.disconnect((plan,))
            with self._lock:
                self._forget(plan)
            return
        with self._lock:
            self._doomed[plan.endpoint_id] = plan
            if self._reaper is None:
                self._reaper = threading.Thread(target=self._reap, name="network-reaper", daemon=True)
                self._reaper.start()

    def drain(self) -> None:
        """Wait until all that `disconnect(wait=False)` put off is done."""
        reaper = self._reaper
        if reaper is not None:
            reaper.join()

    def _reap(self) -> None:
        while True:
            time.sleep(_GRACE)
            with self._lock:
                plans = list(self._doomed.values())
                if not plans:
                    self._reaper = None
                    return
            try:
                links.disconnect(plans)
            except NagayaError:
                # no longer leased, what is left of them goes with the next start() or reassert()
                pass
            with self._lock:
                for plan in plans:
                    if self._doomed.pop(plan.endpoint_id, None) is not None:
                        self._forget(plan)

    def _with_network(self, net: Net, action: Callable[[], None]) -> None:
        """Do it on a network that is there; make the networks again, once, when they turn out to be gone
        (deleted bridge: ENODEV, flushed table: ENOENT)."""
        if net.plan.id not in self._ready:
            with self._lock:
                self._ensure({net.plan.id})
        try:
            action()
            return
        except KernelError as error:
            if error.errno not in (errno.ENODEV, errno.ENOENT):
                raise
        with self._lock:
            self._ensure(self._ready)
            self._reconcile()
        action()


def _translated(port: PublishedPort, plan: EndpointPlan) -> bool:
    """Can rules lead the port to the container? From an IPv6 address only to one, and never from ::1."""
    return ":" not in port.host_ip or (bool(plan.address6) and not ip_address(port.host_ip).is_loopback)


def _targets(plan: EndpointPlan) -> list[Published]:
    """Where its ports lead: of each address family to the container's address of it."""
    four = [port for port in plan.ports if ":" not in port.host_ip]
    six = [port for port in plan.ports if ":" in port.host_ip and _translated(port, plan)]
    found: list[Published] = []
    if plan.address and four:
        found.append((plan.address, four))
    if plan.address6 and six:
        found.append((plan.address6, six))
    return found


def _keep_accepting_routers() -> None:
    """A host that forwards no longer listens to routers, unless told so (ip-sysctl, accept_ra)."""
    base = "/proc/sys/net/ipv6/conf"
    for name in os.listdir(base):
        if name not in ("all", "default", "lo") and read_sysctl(f"ipv6/conf/{name}/accept_ra") == "1":
            write_sysctl(f"ipv6/conf/{name}/accept_ra", "2")


def _occupied(*, ipv6: bool = False) -> list[IPv4Network | IPv6Network]:
    """What the host can reach by a route of its own, and its nameservers."""
    with Netlink() as nl:
        routes = nl.routes() + (nl.routes(family=AF_INET6) if ipv6 else [])
    found = [ip_network(f"{address}/{prefix}", strict=False) for address, prefix in routes]
    text = _read(HOST_RESOLV_CONF)
    source = host_source(text)
    servers = parse(text if source == HOST_RESOLV_CONF else _read(source)).nameservers
    return found + [ip_network(ip_address(server.partition("%")[0])) for server in servers]


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(65536)
    except OSError:
        return ""


def close_all(fds: Iterable[int]) -> None:
    """Close reserving sockets that found no keeper."""
    for fd in fds:
        os.close(fd)
