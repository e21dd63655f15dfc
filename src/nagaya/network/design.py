"""What a network shall be, from what somebody asked for: subnets, gateways, options. Pure.

The words are dockerd's where it has some (libnetwork's ipam and bridge drivers); Docker's option names are
the ones people write in compose files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import msgspec

from nagaya.errors import InvalidArgument, NotFound, PermissionDenied, Unimplemented
from nagaya.network import ipam
from nagaya.network.model import NetworkPlan, Subnet

Network = IPv4Network | IPv6Network

_BRIDGE = "com.docker.network.bridge."
_MTU = "com.docker.network.driver.mtu"
_TRUE, _FALSE = ("1", "t", "T", "TRUE", "true", "True"), ("0", "f", "F", "FALSE", "false", "False")
_UNSUPPORTED = (
    f"{_BRIDGE}gateway_mode_ipv4",
    f"{_BRIDGE}gateway_mode_ipv6",
    f"{_BRIDGE}inhibit_ipv4",
    "com.docker.network.container_iface_prefix",
    "com.docker.network.host_ipv4",
    "com.docker.network.host_ipv6",
)
_INTERFACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")
_LOWEST_MTU = {4: 68, 6: 1280}  # RFC 791, RFC 8200


class IpamConfig(msgspec.Struct, frozen=True):
    """One subnet as it was asked for; "" is for us to choose."""

    subnet: str = ""
    ip_range: str = ""
    gateway: str = ""
    auxiliary: dict[str, str] = {}


class NetworkRequest(msgspec.Struct, frozen=True):
    """A network as it was asked for."""

    id: str
    driver: str = "bridge"
    internal: bool = False
    ipv6: bool = False
    ipv4: bool = True
    ipam: tuple[IpamConfig, ...] = ()
    options: dict[str, str] = {}


def decide(
    request: NetworkRequest,
    others: Iterable[NetworkPlan],
    occupied: Iterable[Network],
    pools: Sequence[tuple[str, int]],
    *,
    mtu: int = 1500,
) -> NetworkPlan:
    """The network as it will be. others: those that exist; occupied: what the host routes to, which no pool
    may overlap; pools: where subnets that nobody named come from.

    Raises InvalidArgument, PermissionDenied (it overlaps another), NotFound (no such driver), Unimplemented,
    ResourceExhausted.
    """
    if request.driver not in ("bridge", "macvlan"):
        raise _no_driver(request.driver)
    if not request.ipv4 and not request.ipv6:
        raise InvalidArgument("IPv4 or IPv6 must be enabled", subject="EnableIPv4")
    others = tuple(others)
    taken = [s.network for other in others for s in other.subnets]
    found: dict[int, tuple[Subnet, str]] = {}
    reserved: list[str] = []
    for config in request.ipam:
        if not config.subnet:
            if config.gateway or config.ip_range or config.auxiliary:
                raise InvalidArgument("Invalid subnet  : invalid CIDR address: ", subject="IPAM.Config")
            continue
        network = _network(config.subnet, "subnet")
        if network.version in found:
            raise PermissionDenied("bridge driver doesn't support multiple subnets", subject="IPAM.Config")
        if any(network.version == other.version and network.overlaps(other) for other in taken):
            raise PermissionDenied(
                "Pool overlaps with other one on this address space", subject=config.subnet
            )
        found[network.version] = _subnet(config, network), config.ip_range
        reserved += config.auxiliary.values()
    busy = [*occupied, *taken]
    if request.ipv4 and 4 not in found:
        found[4] = ipam.choose_subnet(pools, busy), ""
    if request.ipv6 and 6 not in found:
        found[6] = ipam.choose_subnet(pools, busy, 6), ""
    # as dockerd: the subnet of a family that is not wanted is noted, and not used
    used = [version for version, wanted in ((4, request.ipv4), (6, request.ipv6)) if wanted]
    four, range4 = found[4] if 4 in used else (None, "")
    six, range6 = found[6] if 6 in used else (None, "")
    plan = NetworkPlan(
        id=request.id,
        interface="",
        kind="macvlan" if request.driver == "macvlan" else "bridge",
        subnet=four,
        subnet6=six,
        ip_range=range4,
        ip_range6=range6,
        reserved=tuple(a for a in reserved if (6 if ":" in a else 4) in used),
        mtu=mtu,
        internal=request.internal,
    )
    return _macvlan(plan, request) if plan.kind == "macvlan" else _bridge(plan, request, others)


def _no_driver(driver: str) -> Exception:
    if driver == "ipvlan":
        return Unimplemented("ipvlan networks are not supported: use macvlan", subject="Driver")
    if driver in ("host", "null"):
        return PermissionDenied(f'only one instance of "{driver}" network is allowed', subject="Driver")
    if driver == "overlay":
        return Unimplemented("overlay networks need a swarm, which is not supported", subject="Driver")
    return NotFound(f'plugin "{driver}" not found', subject="Driver")


def _bridge(plan: NetworkPlan, request: NetworkRequest, others: Sequence[NetworkPlan]) -> NetworkPlan:
    options = request.options
    for name in _UNSUPPORTED:
        if options.get(name) not in (None, "", "nat"):
            raise InvalidArgument(f"the option {name} is not supported", subject=name)
    interface = options.get(f"{_BRIDGE}name") or f"br-{plan.id[:12]}"
    # the kernel has settings for "all" interfaces and for "default" ones
    if not _INTERFACE.fullmatch(interface) or interface in ("all", "default", "lo"):
        raise InvalidArgument(f"{interface!r} is not a name for a bridge", subject=f"{_BRIDGE}name")
    for other in others:
        if other.interface == interface:
            raise PermissionDenied(
                f"cannot create network {plan.id} ({interface}): conflicts with network {other.id} "
                f"({interface}): networks have same bridge name",
                subject=interface,
            )
    return msgspec.structs.replace(
        plan,
        interface=interface,
        icc=_flag(options, f"{_BRIDGE}enable_icc"),
        masquerade=_flag(options, f"{_BRIDGE}enable_ip_masquerade"),
        mtu=_mtu(plan, options),
        host_ip=_host_ip(options),
    )


def _macvlan(plan: NetworkPlan, request: NetworkRequest) -> NetworkPlan:
    options = request.options
    parent = options.get("parent", "")
    if not parent:
        raise InvalidArgument("a macvlan network needs the option parent, an interface", subject="parent")
    if parent == "lo":
        raise InvalidArgument("loopback interface is not a valid macvlan parent link", subject="parent")
    if not _INTERFACE.fullmatch(parent):
        raise InvalidArgument(f"{parent!r} is not the name of an interface", subject="parent")
    mode = options.get("macvlan_mode") or "bridge"
    if mode not in ("bridge", "private", "vepa", "passthru"):
        raise InvalidArgument(f"requested macvlan mode '{mode}' is not valid", subject="macvlan_mode")
    return msgspec.structs.replace(plan, interface=parent, mode=mode, mtu=_mtu(plan, options))


def _network(text: str, what: str) -> Network:
    try:
        found = ip_network(text, strict=False)
        if "/" not in text or "%" in text:
            raise ValueError
    except ValueError:
        raise InvalidArgument(
            f"invalid network config:\ninvalid {what} {text}: invalid CIDR block notation", subject=text
        ) from None
    if str(ip_address(text.partition("/")[0])) != str(found.network_address):
        raise InvalidArgument(
            f"invalid network config:\ninvalid {what} {text}: it should be {found}", subject=text
        )
    return found


def _subnet(config: IpamConfig, network: Network) -> Subnet:
    """The subnet with its gateway, everything about it checked."""
    wrong = "invalid network config:\ninvalid"
    # room for the gateway and one container
    if network.prefixlen > (30 if network.version == 4 else 126) or network.prefixlen < 8:
        raise InvalidArgument(
            "failed to allocate gateway (): No available addresses on this pool", subject=config.subnet
        )
    if config.ip_range:
        part = _network(config.ip_range, "ip-range")
        if part.version != network.version:
            raise InvalidArgument(
                f"{wrong} ip-range {config.ip_range}: parent subnet is an IPv{network.version} block",
                subject=config.ip_range,
            )
        if part.prefixlen < network.prefixlen:
            raise InvalidArgument(
                f"{wrong} ip-range {config.ip_range}: CIDR block is bigger than its parent subnet {network}",
                subject=config.ip_range,
            )
        if not part.subnet_of(network):  # type: ignore[arg-type]
            raise InvalidArgument(
                f"{wrong} ip-range {config.ip_range}: parent subnet {network} doesn't contain ip-range",
                subject=config.ip_range,
            )
    for what, address in (
        *((("gateway", config.gateway),) if config.gateway else ()),
        *((f"auxiliary address {name}", value) for name, value in config.auxiliary.items()),
    ):
        try:
            parsed = ip_address(address)
            if "%" in address:  # what follows as an IPv6 scope may be any text
                raise ValueError
        except ValueError:
            raise InvalidArgument(f"{wrong} {what} {address}: invalid address", subject=address) from None
        if parsed not in network:
            raise InvalidArgument(
                f"{wrong} {what} {address}: parent subnet {network} doesn't contain this address",
                subject=address,
            )
    first = network.network_address + 1
    if config.ip_range:
        first = max(first, ip_network(config.ip_range).network_address)
        first = first if first != network.network_address else first + 1
    gateway = str(ip_address(config.gateway)) if config.gateway else str(first)
    edges = [network.network_address, *([network.broadcast_address] if network.version == 4 else [])]
    if ip_address(gateway) in edges:
        raise InvalidArgument(
            f"failed to allocate gateway ({config.gateway}): Address already in use", subject=gateway
        )
    return Subnet(gateway, network.prefixlen)


def _flag(options: Mapping[str, str], name: str) -> bool:
    text = options.get(name, "true")
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise InvalidArgument(
        f'failed to parse {name} value: {text} (strconv.ParseBool: parsing "{text}": invalid syntax)',
        subject=name,
    )


def _mtu(plan: NetworkPlan, options: Mapping[str, str]) -> int:
    text = options.get(_MTU, "")
    if not text:
        return plan.mtu
    if not text.isascii() or not text.isdigit() or len(text) > 5:
        raise InvalidArgument(
            f'failed to parse {_MTU} value: {text} (strconv.Atoi: parsing "{text}": invalid syntax)',
            subject=_MTU,
        )
    found = int(text) or plan.mtu
    if not _LOWEST_MTU[6 if plan.subnet6 else 4] <= found <= 65535:
        raise InvalidArgument(f"invalid MTU number: {found}", subject=_MTU)
    return found


def _host_ip(options: Mapping[str, str]) -> str:
    name = f"{_BRIDGE}host_binding_ipv4"
    text = options.get(name, "")
    if not text:
        return ""
    try:
        found = ip_address(text)
        if found.version != 4:
            raise ValueError
    except ValueError:
        raise InvalidArgument(f"failed to parse {name} value: {text} (nil ip)", subject=name) from None
    return "" if found.is_unspecified else str(found)
