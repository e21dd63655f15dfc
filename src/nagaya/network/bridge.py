"""Bridges, and the veth pairs that make containers their ports.

A bridge stays when the daemon ends, as containers do. What is ours is known by its alias,
"nagaya:TABLE" on a bridge and "nagaya:TABLE:ENDPOINT" on a port, so that leftovers of a crash can be
told from what others plugged in. IPv6 is off on ports, and on bridges without an IPv6 subnet; router
advertisements of containers are not accepted anywhere (CVE-2020-13401, CVE-2024-32473).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from socket import AF_INET, AF_INET6

from nagaya.errors import FailedPrecondition, KernelError
from nagaya.linux import netlink
from nagaya.linux.macvlan import macvlan_add
from nagaya.linux.netlink import Netlink
from nagaya.linux.routes import route_del
from nagaya.network.ipam import mac_of, random_mac
from nagaya.network.model import EndpointPlan, Subnet

_SYSCTL = "/proc/sys/net"
_LOOPBACK_INDEX = 1  # net/core/dev.c: the first device of every network namespace
_INTERFACE_PREFIX = "ngv"


def interface_name(endpoint_id: str) -> str:
    """The host's end of an endpoint's veth pair: 14 of the 15 bytes a name may have."""
    return f"{_INTERFACE_PREFIX}{endpoint_id[:11]}"


def read_sysctl(name: str) -> str | None:
    """The value of net.NAME ("ipv4/ip_forward") in this process's network namespace; None: not there."""
    try:
        with open(f"{_SYSCTL}/{name}", encoding="ascii") as file:
            return file.read().strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _sysctl_error("read", name, error) from None


def write_sysctl(name: str, value: str) -> None:
    """Set net.NAME unless it has that value already (/proc/sys may be read-only and right)."""
    if read_sysctl(name) == value:
        return
    try:
        with open(f"{_SYSCTL}/{name}", "w", encoding="ascii") as file:
            file.write(value)
    except OSError as error:
        raise _sysctl_error("write", name, error) from None


def _sysctl_error(verb: str, name: str, error: OSError) -> KernelError:
    number = error.errno or 0
    return KernelError(
        os.strerror(number).lower(),
        subject=name,
        step=f"{verb} sysctl net.{name.replace('/', '.')}",
        errno=number,
    )


class Bridge:
    """One Linux bridge of this process's network namespace. Every call opens its own netlink socket
    (20 us): calls may come from several threads."""

    def __init__(self, name: str, *, mtu: int = 1500, tag: str, icc: bool = True) -> None:
        self.name = name
        self._mtu = mtu
        self._tag = tag
        self._icc = icc

    def exists(self) -> bool:
        """Is there a link of our name?"""
        with Netlink() as nl:
            return nl.link(self.name) is not None

    def subnets(self, version: int = 4) -> list[Subnet]:
        """The subnets of one family that the bridge has now; empty when it does not exist."""
        with Netlink() as nl:
            link = nl.link(self.name)
            if link is None:
                return []
            family = AF_INET if version == 4 else AF_INET6
            found = nl.addresses(index=link.index, family=family)
            return [Subnet(address, prefix) for _, address, prefix in found if address[:5] != "fe80:"]

    def ensure(self, subnets: Sequence[Subnet], keep: Collection[str] = ()) -> None:
        """Make the bridge what it should be, whatever of it exists: addresses, MTU, sysctls, up.

        keep: addresses of earlier subnets that living containers still use as their gateway. Addresses
        of a bridge that is not ours (no tag) are left alone. Raises KernelError, FailedPrecondition.
        """
        wanted = {(subnet.gateway, subnet.prefix) for subnet in subnets}
        with Netlink() as nl:
            link = nl.link(self.name)
            if link is None:
                # a MAC of its own: else it is the lowest of the ports' and changes under the containers
                nl.batch(
                    [
                        netlink.bridge_add(
                            self.name, address=_bridge_mac(subnets), mtu=self._mtu, exist_ok=True
                        ),
                        netlink.link_set(self.name, alias=self._tag),
                    ]
                )
                link = nl.link(self.name)
            if link is None or link.kind != "bridge":
                raise FailedPrecondition(
                    f"the interface {self.name} exists and is no bridge; choose another name (--bridge)",
                    subject=self.name,
                )
            six = any(subnet.network.version == 6 for subnet in subnets)
            self._set_sysctls(ipv6=six)
            present = nl.addresses(index=link.index)
            if six:
                present = present + nl.addresses(index=link.index, family=AF_INET6)
            requests = [
                netlink.address_del(link.index, address, prefix, missing_ok=True)
                for _, address, prefix in present
                if link.alias == self._tag
                and (address, prefix) not in wanted
                and address not in keep
                and not address.startswith("fe80:")
            ]
            requests += [
                netlink.address_add(link.index, subnet.gateway, subnet.prefix, exist_ok=True)
                for subnet in subnets
            ]
            requests.append(netlink.link_set(index=link.index, up=True))
            nl.batch(requests)

    def _set_sysctls(self, *, ipv6: bool) -> None:
        write_sysctl(f"ipv4/conf/{self.name}/route_localnet", "1")
        if read_sysctl(f"ipv6/conf/{self.name}/disable_ipv6") is not None:
            write_sysctl(f"ipv6/conf/{self.name}/accept_ra", "0")
            write_sysctl(f"ipv6/conf/{self.name}/disable_ipv6", "0" if ipv6 else "1")
        elif ipv6:
            raise FailedPrecondition("this kernel has no IPv6", subject=self.name)

    def connect(self, plan: EndpointPlan, netns_fd: int, netns_netlink: int) -> None:
        """Make the endpoint: the veth pair with its far end in the container's namespace, a port of the
        bridge here; address, MAC, loopback and default route there. Two batches.

        netns_netlink: an rtnetlink socket opened inside the namespace; it stays the caller's. Raises
        KernelError (ENODEV: the bridge is gone); nothing is left behind then.
        """
        with Netlink() as nl, Netlink(netns_netlink) as inner:
            link = nl.link(self.name)
            if link is None:
                raise KernelError(
                    "no such device", subject=self.name, step=f"find bridge {self.name}", errno=errno.ENODEV
                )
            name = plan.host_interface
            nl.batch(
                [
                    netlink.veth_add(
                        name,
                        plan.interface,
                        netns_fd=netns_fd,
                        master=link.index,
                        mtu=plan.mtu,
                        peer_address=plan.mac,
                    )
                ]
            )
            try:
                nl.batch(self._port(plan))
                configure(plan, inner)
            except BaseException:
                nl.batch([netlink.link_del(name, missing_ok=True)])
                raise

    def _port(self, plan: EndpointPlan) -> list[netlink.Request]:
        name = plan.host_interface
        alias = f"{self._tag}:{plan.endpoint_id}"
        # With br_netfilter our forward chain sees, and drops, what neighbours send each other; isolation
        # would then also drop what goes through a published port, since DNAT happens on the bridge.
        isolated = not self._icc and read_sysctl("bridge/bridge-nf-call-iptables") != "1"
        return [
            netlink.bridge_port_set(name, alias=alias, isolated=isolated),
            netlink.link_no_ipv6_autoconf(name),
            netlink.link_set(name, up=True),
        ]

    def replug(self, expected: Iterable[EndpointPlan], links: Mapping[str, netlink.Link]) -> None:
        """Plug expected ports in again that lost the bridge. links: all of them, by name."""
        bridge = links.get(self.name)
        if bridge is None:
            raise KernelError(
                "no such device", subject=self.name, step=f"find bridge {self.name}", errno=errno.ENODEV
            )
        requests: list[netlink.Request] = []
        for plan in expected:
            link = links.get(plan.host_interface)
            if link is not None and link.master != bridge.index:
                requests.append(netlink.link_set(link.name, master=bridge.index))
                requests += self._port(plan)
        if requests:
            with Netlink() as nl:
                nl.batch(requests)

    def delete(self) -> None:
        """Delete the bridge when we made it. Idempotent."""
        with Netlink() as nl:
            link = nl.link(self.name)
            if link is not None and link.alias == self._tag:
                nl.batch([netlink.link_del(index=link.index, missing_ok=True)])


class Macvlan:
    """Containers that are machines of their own on an interface of the host: its endpoints are made with
    the same calls as a bridge's."""

    def __init__(self, parent: str, *, mtu: int, mode: str) -> None:
        self.name = parent
        self._mtu = mtu
        self._mode = mode or "bridge"

    def connect(self, plan: EndpointPlan, netns_fd: int, netns_netlink: int) -> None:
        """As `Bridge.connect`."""
        with Netlink() as nl, Netlink(netns_netlink) as inner:
            parent = nl.link(self.name)
            if parent is None:
                raise KernelError(
                    "no such device", subject=self.name, step=f"find parent {self.name}", errno=errno.ENXIO
                )
            request = macvlan_add(
                plan.interface,
                parent.index,
                netns_fd=netns_fd,
                mode=self._mode,
                mtu=self._mtu,
                address=plan.mac,
            )
            nl.batch([request])
            try:
                configure(plan, inner)
            except BaseException:
                inner.batch([netlink.link_del(plan.interface, missing_ok=True)])
                raise


def _bridge_mac(subnets: Sequence[Subnet]) -> str:
    four = next((s.gateway for s in subnets if s.network.version == 4), "")
    return mac_of(four) if four else random_mac()


def configure(plan: EndpointPlan, inner: Netlink) -> None:
    """Addresses, MAC, loopback and default routes of an interface that is in the container's namespace."""
    link = inner.link(plan.interface)
    if link is None:
        raise KernelError(
            f"{plan.interface} is not in the namespace of the given netlink socket",
            subject=plan.interface,
            step="netlink: find the container's interface",
            errno=errno.ENODEV,
        )
    requests = [netlink.link_set(index=_LOOPBACK_INDEX, up=True)]
    if not plan.address6:
        requests.append(netlink.link_no_ipv6_autoconf(index=link.index))
    if plan.address:
        requests.append(netlink.address_add(link.index, plan.address, plan.prefix))
    if plan.address6:
        requests.append(netlink.address_add(link.index, plan.address6, plan.prefix6))
    requests.append(netlink.link_set(index=link.index, up=True))
    if plan.default_route:
        requests += [
            netlink.route_add(gateway, index=link.index)
            for gateway in (plan.gateway, plan.gateway6)
            if gateway
        ]
    inner.batch(requests)


def route(plans: Sequence[EndpointPlan], netns_netlink: int) -> None:
    """Lead the container's default routes over the endpoint whose plan says so, and no other."""
    with Netlink(netns_netlink) as inner:
        removals, additions = [], []
        for plan in plans:
            link = inner.link(plan.interface)
            gateways = [gateway for gateway in (plan.gateway, plan.gateway6) if gateway]
            if link is None:
                continue
            if plan.default_route:
                additions += [netlink.route_add(g, index=link.index, exist_ok=True) for g in gateways]
            else:
                removals += [route_del(g, index=link.index) for g in gateways]
        if removals or additions:
            inner.batch([*removals, *additions])


def disconnect(plans: Iterable[EndpointPlan]) -> None:
    """Delete the endpoints' veth pairs, those that still exist: the kernel deletes a pair itself when
    the container's namespace goes. Each deletion waits 15-30 ms for other CPUs (RCU), idly."""
    with Netlink() as nl:
        for plan in plans:
            if plan.host_interface and nl.link(plan.host_interface) is not None:
                nl.batch([netlink.link_del(plan.host_interface, missing_ok=True)])


def unplug(plan: EndpointPlan, netns_netlink: int) -> None:
    """Delete an endpoint's interface inside the container. Idempotent."""
    with Netlink(netns_netlink) as inner:
        link = inner.link(plan.interface)
        # another network's may have the name by now
        if link is not None and (not plan.mac or link.address == plan.mac):
            inner.batch([netlink.link_del(index=link.index, missing_ok=True)])


def sweep(tag: str, expected: Iterable[EndpointPlan], bridges: Collection[str]) -> dict[str, netlink.Link]:
    """Delete our ports that no endpoint expects and our bridges that are not among `bridges` (names);
    return the links that are left, by name."""
    with Netlink() as nl:
        links = {link.name: link for link in nl.links()}
        ours = {link.index for link in links.values() if link.alias == tag or link.name in bridges}
        wanted = {plan.host_interface for plan in expected}
        doomed = [
            link
            for link in links.values()
            # a crash between making the pair and naming it leaves a port without alias
            if (
                link.alias.startswith(f"{tag}:")
                or (link.master in ours and link.name.startswith(_INTERFACE_PREFIX))
            )
            and link.name not in wanted
        ]
        doomed += [link for link in links.values() if link.alias == tag and link.name not in bridges]
        nl.batch([netlink.link_del(index=link.index, missing_ok=True) for link in doomed])
        for link in doomed:
            del links[link.name]
        return links


def foreign_links(tag: str) -> list[str]:
    """Names of the interfaces that are neither loopback nor ours."""
    with Netlink() as nl:
        return [
            link.name
            for link in nl.links()
            if link.index != _LOOPBACK_INDEX and link.alias != tag and not link.alias.startswith(f"{tag}:")
        ]
