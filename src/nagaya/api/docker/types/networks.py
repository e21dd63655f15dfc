"""Bodies of /networks, and endpoints of a container's NetworkingConfig."""

from __future__ import annotations

import ipaddress

import msgspec

from nagaya.api.docker.types.structs import EndpointBody, Strings
from nagaya.engine import links
from nagaya.engine.model import Attachment, NetworkCreation
from nagaya.errors import InvalidArgument, PermissionDenied
from nagaya.linux.netlink import mac_bytes
from nagaya.network.design import IpamConfig


class IpamConfigBody(msgspec.Struct):
    Subnet: str | None = None
    IPRange: str | None = None
    Gateway: str | None = None
    AuxiliaryAddresses: dict[str, str] | None = None


class IpamBody(msgspec.Struct):
    Driver: str | None = None
    Config: list[IpamConfigBody] | None = None
    Options: dict[str, str] | None = None


class ConfigFromBody(msgspec.Struct):
    Network: str | None = None


class CreateNetworkBody(msgspec.Struct):
    """POST /networks/create."""

    Name: str | None = None
    Driver: str | None = None
    Scope: str | None = None
    Internal: bool | None = None
    Attachable: bool | None = None
    Ingress: bool | None = None
    ConfigOnly: bool | None = None
    ConfigFrom: ConfigFromBody | None = None
    IPAM: IpamBody | None = None
    EnableIPv4: bool | None = None
    EnableIPv6: bool | None = None
    Options: dict[str, str] | None = None
    Labels: dict[str, str] | None = None


class ConnectBody(msgspec.Struct):
    """POST /networks/{id}/connect."""

    Container: str | None = None
    EndpointConfig: EndpointBody | None = None


class DisconnectBody(msgspec.Struct):
    """POST /networks/{id}/disconnect."""

    Container: str | None = None
    Force: bool | None = None


def creation(body: CreateNetworkBody) -> NetworkCreation:
    """What a create request asks for. Raises InvalidArgument for what we have not."""
    if body.Ingress:
        raise InvalidArgument("Ingress is not supported", subject="Ingress")
    if body.Scope not in (None, "", "local"):
        raise PermissionDenied(
            f"cannot create a {body.Scope} scoped network when swarm is not active", subject="Scope"
        )
    ipam = body.IPAM or IpamBody()
    return NetworkCreation(
        name=body.Name or "",
        driver=body.Driver or "bridge",
        internal=bool(body.Internal),
        attachable=bool(body.Attachable),
        ipv6=bool(body.EnableIPv6),
        ipv4=body.EnableIPv4 is not False,
        config_only=bool(body.ConfigOnly),
        config_from=(body.ConfigFrom.Network if body.ConfigFrom else None) or "",
        ipam_driver=ipam.Driver or "default",
        ipam_options=ipam.Options,
        ipam=tuple(
            IpamConfig(c.Subnet or "", c.IPRange or "", c.Gateway or "", c.AuxiliaryAddresses or {})
            for c in ipam.Config or ()
        ),
        options=body.Options or {},
        labels=body.Labels or {},
    )


def attachment(network: str, body: EndpointBody, where: str) -> Attachment:
    """A container's wish about one network. Raises InvalidArgument."""
    ipam = body.IPAMConfig
    if ipam is not None and ipam.LinkLocalIPs:
        raise InvalidArgument(f"{where}IPAMConfig.LinkLocalIPs is not supported", subject=where)
    return Attachment(
        network=network,
        address=_address(ipam.IPv4Address if ipam else None, 4),
        address6=_address(ipam.IPv6Address if ipam else None, 6),
        mac=_mac(body.MacAddress),
        aliases=_names(body.Aliases),
        links=_links(body.Links),
        gateway_priority=body.GwPriority or 0,
        driver_options=body.DriverOpts or {},
    )


def _address(text: str | None, version: int) -> str:
    if not text:
        return ""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        found = None
    if found is None or found.version != version or found.is_unspecified or "%" in text:
        raise InvalidArgument(f"invalid IPv{version} address: {text}", subject="IPAMConfig")
    return str(found)


def _mac(text: str | None) -> str:
    if not text:
        return ""
    try:
        raw = mac_bytes(text.replace("-", ":"))
    except InvalidArgument:
        raise InvalidArgument(f"invalid MAC address: {text}", subject="MacAddress") from None
    if raw[0] & 1 or not any(raw):
        raise InvalidArgument(f"invalid MAC address: {text}", subject="MacAddress")
    return ":".join(f"{byte:02x}" for byte in raw)


def _links(texts: Strings) -> tuple[str, ...]:
    for text in texts or ():
        links.parse(text)
    return tuple(texts or ())


def _names(names: Strings) -> tuple[str, ...]:
    for name in names or ():
        if not name or len(name) > 255 or not name.isprintable() or any(c.isspace() for c in name):
            raise InvalidArgument(f"invalid name in a network: {name[:300]!r}", subject="Aliases")
    return tuple(dict.fromkeys(names or ()))
