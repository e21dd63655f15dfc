"""One network as this process knows it: what it is, and who has which of its addresses.

Not thread-safe: the service's lock guards it.
"""

from __future__ import annotations

from ipaddress import ip_address

import msgspec

from nagaya.errors import InvalidArgument, PermissionDenied
from nagaya.network import ipam
from nagaya.network.bridge import Bridge, Macvlan, interface_name
from nagaya.network.firewall import Bridging
from nagaya.network.model import DEFAULT, EndpointPlan, NetworkPlan, Subnet


class Wanted(msgspec.Struct, frozen=True):
    """What an endpoint asks of its network; "" is for the network to choose."""

    address: str = ""
    address6: str = ""
    mac: str = ""
    interface: str = "eth0"
    default_route: bool = True


class Net:
    """A network with its leases. `bridge` is None for a macvlan."""

    def __init__(self, plan: NetworkPlan, tag: str) -> None:
        self.plan = plan
        self.leases: dict[str, EndpointPlan] = {}
        self.last = {4: "", 6: ""}
        self.bridge: Bridge | None = None
        self.link: Bridge | Macvlan
        if plan.kind == "bridge":
            self.link = self.bridge = Bridge(plan.interface, mtu=plan.mtu, tag=tag, icc=plan.icc)
        else:
            self.link = Macvlan(plan.interface, mtu=plan.mtu, mode=plan.mode)

    def remember(self, lease: EndpointPlan) -> None:
        """An endpoint that was planned by an earlier process."""
        self.leases[lease.endpoint_id] = lease
        self.last[4] = lease.address or self.last[4]
        self.last[6] = lease.address6 or self.last[6]

    def bridging(self) -> Bridging:
        """What the firewall must know: with the subnets of leases that are older than the present one."""
        older = {Subnet(e.gateway, e.prefix) for e in self.leases.values() if e.gateway}
        subnets = (*self.plan.subnets, *sorted(older - {*self.plan.subnets}, key=str))
        plan = self.plan
        return Bridging(plan.interface, subnets, plan.icc, plan.internal, plan.masquerade)

    def taken(self) -> set[str]:
        """The addresses that nobody else may have."""
        leased = {a for e in self.leases.values() for a in (e.address, e.address6) if a}
        return leased | {*self.plan.reserved}

    def check(self, wanted: Wanted) -> None:
        """Raise InvalidArgument, PermissionDenied unless the addresses can be had here."""
        for address, subnet in ((wanted.address, self.plan.subnet), (wanted.address6, self.plan.subnet6)):
            if not address:
                continue
            if subnet is None or ip_address(address) not in subnet.network:
                raise InvalidArgument(
                    f"Invalid address {address}: It does not belong to any of this network's subnets",
                    subject=address,
                )
            if address in self.taken() or address == subnet.gateway:
                raise PermissionDenied("Address already in use", subject=address)

    def lease(self, endpoint_id: str, wanted: Wanted) -> EndpointPlan:
        """Give addresses to an endpoint. Raises as `check`, ResourceExhausted."""
        self.check(wanted)
        plan, taken = self.plan, self.taken()
        four, six = plan.subnet, plan.subnet6
        address, address6 = wanted.address, wanted.address6
        if four is not None and not address:
            address = self.last[4] = ipam.next_address(four, taken, self.last[4], plan.ip_range)
        if six is not None and not address6:
            address6 = self.last[6] = ipam.next_address(six, taken, self.last[6], plan.ip_range6)
        made = EndpointPlan(
            endpoint_id=endpoint_id,
            address=address,
            prefix=four.prefix if four else 0,
            gateway=four.gateway if four and not plan.internal else "",
            mac=wanted.mac or (ipam.mac_of(address) if address else ipam.random_mac()),
            host_interface=interface_name(endpoint_id) if self.bridge else "",
            interface=wanted.interface,
            mtu=plan.mtu,
            network=plan.id or DEFAULT,
            address6=address6,
            prefix6=six.prefix if six else 0,
            gateway6=six.gateway if six and not plan.internal else "",
            default_route=wanted.default_route,
        )
        self.leases[endpoint_id] = made
        return made
