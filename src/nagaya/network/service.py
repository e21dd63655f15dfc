"""The engine's door to the network room: the default bridge and its endpoints, synchronously.

An endpoint's life, in the order the engine's journal records it:

    ports, fds = service.reserve(ports, endpoint="NAME (ID)")   # fds go to the keeper
    plan = service.plan(endpoint_id, taken, ports)              # stored in the ledger before anything exists
    service.connect(plan, netns_path, nl_fd)                    # a builder made the namespace and the socket
    service.publish(plan)
    ...
    service.unpublish(plan); service.disconnect(plan)           # each idempotent, also after a crash
    # only now the keeper lets the reserving sockets go

Nothing is touched, nor libnftables loaded, before the first endpoint (or one found at `start`). Calls
may come from several threads, those about one endpoint in order.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Network

from nagaya.errors import InvalidArgument, KernelError, NagayaError, ResourceExhausted
from nagaya.linux import conntrack
from nagaya.linux.linkstats import Traffic, link_counters
from nagaya.linux.netlink import Netlink
from nagaya.network import ipam
from nagaya.network.bridge import Bridge, interface_name, read_sysctl, write_sysctl
from nagaya.network.firewall import Firewall, check_names
from nagaya.network.model import EndpointPlan, EndpointState, PublishedPort, Subnet, check_ports
from nagaya.network.ports import reserve as reserve_ports
from nagaya.network.resolv import HOST_RESOLV_CONF, host_source, parse

_FORWARDING = "ipv4/ip_forward"
_GRACE = 0.1  # seconds: the kernel takes 15 to 50 ms to clean a dead network namespace up


class NetworkService:
    """The default bridge network."""

    def __init__(
        self,
        *,
        bridge: str = "nagaya0",
        bip: str = "",
        nft_table: str = "nagaya",
        mtu: int = 1500,
        icc: bool = True,
        default_pools: Sequence[tuple[str, int]] = ipam.DEFAULT_POOLS,
    ) -> None:
        """bip "": the bridge's present subnet, else the first of the pools that overlaps no route.
        Raises InvalidArgument; touches nothing."""
        check_names(nft_table, bridge)
        if not 68 <= mtu <= 65535:
            raise InvalidArgument(f"mtu {mtu} is not between 68 and 65535", subject="mtu")
        tag = f"nagaya:{nft_table}"
        self._bridge = Bridge(bridge, mtu=mtu, tag=tag, icc=icc)
        self._firewall = Firewall(nft_table, bridge, icc=icc)
        self._bip = ipam.parse_bip(bip) if bip else None
        self._pools = tuple(default_pools)
        self._mtu = mtu
        # guards what follows; never held while a namespace's or a container's work goes on
        self._lock = threading.Lock()
        self._subnet: Subnet | None = self._bip
        self._leases: dict[str, EndpointPlan] = {}
        self._published: dict[str, EndpointPlan] = {}
        self._last_address = ""
        self._doomed: dict[str, EndpointPlan] = {}
        self._reaper: threading.Thread | None = None
        self._ready = False

    # the network as a whole

    def start(self, endpoints: Iterable[EndpointState]) -> tuple[str, ...]:
        """Make the kernel agree with the endpoints that the ledger says are living: leftovers of ours go,
        lost rules and elements come back. Returns the ids of endpoints whose interface is gone.
        """
        with self._lock:
            self._leases = {e.endpoint_id: e for e in endpoints}
            self._published = {e.endpoint_id: e for e in self._leases.values() if e.ports}
            for lease in self._leases.values():
                self._last_address = lease.address
            self._ready = False
            if not self._leases and not self._bridge.exists():
                return ()
            self._ensure()
            missing = self._bridge.reconcile(self._leases.values())
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
            if self._bridge.exists() and self._firewall.intact():
                self._firewall.open_forwarding()
                return False
            self._ensure()
            self._bridge.reconcile(self._leases.values())
            return True

    def teardown(self) -> None:
        """Remove the bridge, its ports, the table and the tagged rules. For uninstalling, and tests: a
        daemon that ends leaves them to the containers that live on."""
        with self._lock:
            self._ready = False
            self._leases, self._published = {}, {}
            self._bridge.teardown()
            self._firewall.remove()

    def subnet(self) -> Subnet:
        """The subnet the bridge has or will have."""
        with self._lock:
            return self._choose_subnet()

    def _choose_subnet(self) -> Subnet:
        if self._subnet is None:
            present = self._bridge.subnets()
            self._subnet = present[0] if present else ipam.choose_subnet(self._pools, _occupied())
        return self._subnet

    def _ensure(self) -> None:
        """Bridge, table, then forwarding: in that order nothing is ever routed without our rules."""
        subnet = self._choose_subnet()
        self._bridge.ensure(subnet, keep={lease.gateway for lease in self._leases.values()})
        forwards = read_sysctl(_FORWARDING) == "1"
        self._apply(unrouted=() if forwards else self._bridge.other_links())
        if not forwards:
            write_sysctl(_FORWARDING, "1")
        self._ready = True

    def _apply(self, unrouted: Sequence[str] = ()) -> None:
        subnets = {self._choose_subnet(), *(Subnet(e.gateway, e.prefix) for e in self._leases.values())}
        published = [(e.address, e.ports) for e in self._published.values()]
        self._firewall.apply(subnets, published, unrouted=unrouted)

    # one endpoint

    def reserve(
        self, ports: Sequence[PublishedPort], *, endpoint: str = ""
    ) -> tuple[tuple[PublishedPort, ...], list[int]]:
        """Bind the host's ports; return the ports with the numbers really chosen, and the sockets' fds,
        which are the caller's. endpoint: "NAME (ID)" for the message. See `ports.reserve`."""
        bound, sockets = reserve_ports(ports, endpoint=endpoint)
        return bound, [held.detach() for held in sockets]

    def plan(
        self, endpoint_id: str, taken: Iterable[str] = (), ports: Sequence[PublishedPort] = ()
    ) -> EndpointPlan:
        """Decide an endpoint: address, MAC, names. The address is leased until `disconnect`.

        endpoint_id: hexadecimal, a new one for every connection (its interface may outlive it by 0.1 s).
        taken: further addresses not to use. ports: as `reserve` returned them. Touches nothing.
        Raises ResourceExhausted.
        """
        if not endpoint_id.isalnum() or not endpoint_id.isascii():
            raise InvalidArgument(f"{endpoint_id!r} is not an endpoint id", subject="endpoint")
        check_ports(tuple(ports))
        with self._lock:
            subnet = self._choose_subnet()
            address = self._free_address(subnet, set(taken))
            made = EndpointPlan(
                endpoint_id=endpoint_id,
                address=address,
                prefix=subnet.prefix,
                gateway=subnet.gateway,
                mac=ipam.mac_of(address),
                host_interface=interface_name(endpoint_id),
                mtu=self._mtu,
                ports=tuple(ports),
            )
            self._leases[endpoint_id] = made
            self._last_address = address
            return made

    def _free_address(self, subnet: Subnet, taken: set[str]) -> str:
        leased = {lease.address for lease in self._leases.values()}
        try:
            return ipam.next_address(subnet, taken | leased, self._last_address)
        except ResourceExhausted:
            if not self._doomed:
                raise
        # the last addresses are those of containers that are just going
        doomed, self._doomed = self._doomed, {}
        self._bridge.disconnect(doomed.values())
        for endpoint_id in doomed:
            self._leases.pop(endpoint_id, None)
        leased = {lease.address for lease in self._leases.values()}
        return ipam.next_address(subnet, taken | leased, self._last_address)

    def connect(self, plan: EndpointPlan, netns: str | int, nl_fd: int) -> None:
        """Make the endpoint in the container's network namespace (its pin's path, or an fd). nl_fd: an
        rtnetlink socket opened inside; it stays the caller's. Raises KernelError and kin; nothing of the
        endpoint is left behind then."""
        self._with_network(lambda: self._bridge.connect(plan, netns, nl_fd))

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
        try:
            self._with_network(lambda: self._firewall.publish(plan.address, plan.ports))
        except BaseException:
            with self._lock:
                self._published.pop(plan.endpoint_id, None)
            raise
        for port in plan.ports:
            if port.protocol == "udp":
                # a client that never falls silent would keep on talking to whoever had the port before
                conntrack.forget(conntrack.IPPROTO_UDP, port.host_port)

    def unpublish(self, plan: EndpointPlan) -> None:
        """Undo `publish`. Idempotent. Before the reserving sockets are closed."""
        with self._lock:
            self._published.pop(plan.endpoint_id, None)
        self._firewall.unpublish(plan.address, plan.ports)

    def disconnect(self, plan: EndpointPlan, *, wait: bool = False) -> None:
        """Undo `connect` and give the address back. Idempotent.

        It returns at once: the kernel removes the interfaces when the container's namespace goes, and
        those that are still there 0.1 s later (something holds the namespace) a thread of ours removes;
        after a crash `start` does. wait: have them removed now, which takes 15-30 ms.
        """
        if wait:
            self._bridge.disconnect((plan,))
            with self._lock:
                self._leases.pop(plan.endpoint_id, None)
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
                self._bridge.disconnect(plans)
            except NagayaError:
                # no longer leased, what is left of them goes with the next start() or reassert()
                pass
            with self._lock:
                for plan in plans:
                    self._doomed.pop(plan.endpoint_id, None)
                    self._leases.pop(plan.endpoint_id, None)

    def _with_network(self, action: Callable[[], None]) -> None:
        """Do it on a network that is there; make the network again, once, when it turns out to be gone
        (deleted bridge: ENODEV, flushed table: ENOENT)."""
        with self._lock:
            if not self._ready:
                self._ensure()
        try:
            action()
            return
        except KernelError as error:
            if error.errno not in (errno.ENODEV, errno.ENOENT):
                raise
        with self._lock:
            self._ensure()
            self._bridge.reconcile(self._leases.values())
        action()


def _occupied() -> list[IPv4Network]:
    """What the host can reach by a route of its own, and its nameservers."""
    with Netlink() as nl:
        found = [IPv4Network(route) for route in nl.routes()]
    text = _read(HOST_RESOLV_CONF)
    source = host_source(text)
    servers = parse(text if source == HOST_RESOLV_CONF else _read(source)).nameservers
    return found + [IPv4Network(server) for server in servers if ":" not in server]


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
