"""What older clients mean, and are shown: rules of the published API history that are longer than one line
(docs.docker.com, "Engine API version history").
"""

from __future__ import annotations

from typing import Any

from nagaya.api.docker.types.structs import CreateBody, HostConfigBody
from nagaya.errors import InvalidArgument

Version = tuple[int, int]


def as_of(body: CreateBody, version: Version, *, cgroup2: bool) -> None:
    """Change a create request to what it meant in the client's version: fields that did not exist yet are not
    looked at, others had other defaults. Raises InvalidArgument for wishes that need a newer one."""
    if version < (1, 44):
        if body.Healthcheck is not None:
            body.Healthcheck.StartInterval = None
        places = (body.NetworkingConfig.EndpointsConfig if body.NetworkingConfig else None) or {}
        if len(places) > 1:
            raise InvalidArgument(
                f"Container cannot be connected to network endpoints: {', '.join(sorted(places))}"
            )
    host = body.HostConfig
    if host is None:
        host = body.HostConfig = HostConfigBody()
    if version < (1, 40) and not host.IpcMode:
        host.IpcMode = "shareable"
    if version < (1, 41) and not cgroup2 and not host.CgroupnsMode:
        host.CgroupnsMode = "host"
    if version < (1, 43):
        host.Annotations = None
    for mount in host.Mounts or ():
        bind, volume = mount.BindOptions, mount.VolumeOptions
        if bind is not None:
            if version < (1, 40):
                bind.NonRecursive = None
            if version < (1, 42):
                bind.CreateMountpoint = None
            if version < (1, 44):
                bind.ReadOnlyNonRecursive = None
                if bind.ReadOnlyForceRecursive:
                    raise InvalidArgument("BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer")
        if volume is not None and volume.Subpath and version < (1, 45):
            raise InvalidArgument("VolumeOptions.Subpath needs API v1.45 or newer")


def inspected(document: dict[str, Any], version: Version) -> None:
    """Show a container as its client's version did. Since 1.45 its id is no alias, but among its names."""
    if version < (1, 45):
        for place in document["NetworkSettings"]["Networks"].values():
            if place["DNSNames"] and place["EndpointID"]:
                place["Aliases"] = [*(place["Aliases"] or ()), document["Id"][:12]]


def informed(document: dict[str, Any], version: Version) -> None:
    """Show GET /info as its client's version did."""
    for since, field in (((1, 49), "FirewallBackend"), ((1, 50), "DiscoveredDevices")):
        if version < since:
            document.pop(field, None)
    if version >= (1, 50):
        for field in ("BridgeNfIptables", "BridgeNfIp6tables"):
            document.pop(field, None)
