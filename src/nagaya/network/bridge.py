"""The bridge, and the veth pairs that make containers its ports.

The bridge stays when the daemon ends, as containers do. What is ours is known by its alias,
"nagaya:TABLE" on the bridge and "nagaya:TABLE:ENDPOINT" on a port, so that leftovers of a crash can be
told from what others plugged in. IPv6 is off on the bridge and its ports while networks are IPv4 only:
a container's router advertisements must not reach the host (CVE-2020-13401, CVE-2024-32473).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable, Sequence

from nagaya.errors import FailedPrecondition, KernelError, NotFound
from nagaya.linux import netlink
from nagaya.linux.netlink import Netlink
from nagaya.network.ipam import mac_of
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

    def subnets(self) -> list[Subnet]:
        """The IPv4 subnets that the bridge has now; empty when it does not exist."""
        with Netlink() as nl:
            link = nl.link(self.name)
            if link is None:
                return []
            return [Subnet(address, prefix) for _, address, prefix in nl.addresses(index=link.index)]

    def ensure(self, subnet: Subnet, keep: Collection[str] = ()) -> None:
        """Make the bridge what it should be, whatever of it exists: address, MTU, sysctls, up.

        keep: addresses of earlier subnets that living containers still use as their gateway. Addresses
        of a bridge that is not ours (no tag) are left alone. Raises KernelError, FailedPrecondition.
        """
        with Netlink() as nl:
            link = nl.link(self.name)
            if link is None:
                # a MAC of its own: else it is the lowest of the ports' and changes under the containers
                nl.batch(
                    [
                        netlink.bridge_add(
                            self.name, address=mac_of(subnet.gateway), mtu=self._mtu, exist_ok=True
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
            self._set_sysctls()
            present = {address: prefix for _, address, prefix in nl.addresses(index=link.index)}
            requests = [
                netlink.address_del(link.index, address, prefix, missing_ok=True)
                for address, prefix in present.items()
                if link.alias == self._tag
                and (address, prefix) != (subnet.gateway, subnet.prefix)
                and address not in keep
            ]
            requests.append(
                netlink.address_add(link.index, subnet.gateway, subnet.prefix, exist_ok=True),
            )
            requests.append(netlink.link_set(index=link.index, up=True))
            nl.batch(requests)

    def _set_sysctls(self) -> None:
        write_sysctl(f"ipv4/conf/{self.name}/route_localnet", "1")
        if read_sysctl(f"ipv6/conf/{self.name}/disable_ipv6") is not None:
            write_sysctl(f"ipv6/conf/{self.name}/accept_ra", "0")
            write_sysctl(f"ipv6/conf/{self.name}/disable_ipv6", "1")

    def connect(self, plan: EndpointPlan, netns: str | int, netns_netlink: int) -> None:
        """Make the endpoint: the veth pair with its far end in the container's namespace, a port of the
        bridge here; address, MAC, loopback and default route there. Two batches.

        netns: path of its pin, or an open fd. netns_netlink: an rtnetlink socket opened inside it; it
        stays the caller's. Raises KernelError (ENODEV: the bridge is gone), NotFound (no such pin);
        nothing is left behind then.
        """
        if isinstance(netns, int):
            self._connect(plan, netns, netns_netlink)
            return
        try:
            fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise NotFound(
                f"network namespace {netns}: {os.strerror(error.errno or 0).lower()}", subject=netns
            ) from None
        try:
            self._connect(plan, fd, netns_netlink)
        finally:
            os.close(fd)

    def _connect(self, plan: EndpointPlan, netns_fd: int, netns_netlink: int) -> None:
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
                self._configure(plan, inner)
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

    def _configure(self, plan: EndpointPlan, inner: Netlink) -> None:
        link = inner.link(plan.interface)
        if link is None:
            raise KernelError(
                f"{plan.interface} is not in the namespace of the given netlink socket",
                subject=plan.interface,
                step="netlink: find the container's interface",
                errno=errno.ENODEV,
            )
        inner.batch(
            [
                netlink.link_set(index=_LOOPBACK_INDEX, up=True),
                netlink.link_no_ipv6_autoconf(index=link.index),
                netlink.address_add(link.index, plan.address, plan.prefix),
                netlink.link_set(index=link.index, up=True),
                netlink.route_add(plan.gateway, index=link.index),
            ]
        )

    def disconnect(self, plans: Iterable[EndpointPlan]) -> None:
        """Delete the endpoints' veth pairs, those that still exist: the kernel deletes a pair itself when
        the container's namespace goes. Each deletion waits 15-30 ms for other CPUs (RCU), idly."""
        with Netlink() as nl:
            for plan in plans:
                if nl.link(plan.host_interface) is not None:
                    nl.batch([netlink.link_del(plan.host_interface, missing_ok=True)])

    def reconcile(self, expected: Iterable[EndpointPlan]) -> tuple[str, ...]:
        """Delete our ports that no endpoint expects, plug expected ones in again that lost the bridge;
        return the ids of endpoints whose interface is gone (only inside can they be made again)."""
        with Netlink() as nl:
            bridge = nl.link(self.name)
            if bridge is None:
                raise KernelError(
                    "no such device", subject=self.name, step=f"find bridge {self.name}", errno=errno.ENODEV
                )
            prefix = f"{self._tag}:"
            links = {link.name: link for link in nl.links()}
            wanted = {plan.host_interface: plan for plan in expected}
            requests: list[netlink.Request] = []
            for link in links.values():
                # a crash between making the pair and naming it leaves a port without alias
                ours = link.alias.startswith(prefix) or (
                    link.master == bridge.index and link.name.startswith(_INTERFACE_PREFIX)
                )
                if ours and link.name not in wanted:
                    requests.append(netlink.link_del(index=link.index, missing_ok=True))
            for name, plan in wanted.items():
                if name in links and links[name].master != bridge.index:
                    requests.append(netlink.link_set(name, master=bridge.index))
                    requests += self._port(plan)
            nl.batch(requests)
            return tuple(plan.endpoint_id for name, plan in wanted.items() if name not in links)

    def other_links(self) -> Sequence[str]:
        """Names of the interfaces that are neither loopback nor ours."""
        with Netlink() as nl:
            return [
                link.name
                for link in nl.links()
                if link.index != _LOOPBACK_INDEX
                and link.name != self.name
                and not link.alias.startswith(f"{self._tag}:")
            ]

    def teardown(self) -> None:
        """Delete our ports, and the bridge when we made it. Idempotent."""
        with Netlink() as nl:
            bridge = nl.link(self.name)
            requests = [
                netlink.link_del(index=link.index, missing_ok=True)
                for link in nl.links()
                if link.alias.startswith(f"{self._tag}:")
            ]
            if bridge is not None and bridge.alias == self._tag:
                requests.append(netlink.link_del(index=bridge.index, missing_ok=True))
            nl.batch(requests)
