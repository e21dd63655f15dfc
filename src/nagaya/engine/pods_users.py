"""User namespaces of pods: root there is nobody here.

The pod's user namespace owns its other ones. A container's layers are seen through mounts that map
owners (mount_setattr(2)), so images stay what they are on the disk; only the writable layer belongs to the
mapped root. The overlay of these is mounted below RUN/pods/ID for as long as the container runs: in the
namespace itself nobody may map the host's file systems.
"""

from __future__ import annotations

import os
from typing import Any

from nagaya.engine.pods_model import IDMapping, PodConfig, UserNamespace
from nagaya.errors import InvalidArgument, Unimplemented
from nagaya.linux import mounts as m
from nagaya.linux.overlay import mapped, mount_overlay

_FIELD = "config.linux.security_context.namespace_options.userns_options"


def of(config: PodConfig) -> UserNamespace | None:
    """The pod's own user namespace; None on the node's."""
    users = config.namespaces.userns_options
    return users if users is not None and users.mode == "POD" else None


def check(config: PodConfig, handler: str) -> None:
    """Refuse what is no mapping. Raises InvalidArgument, Unimplemented."""
    users = config.namespaces.userns_options
    if users is None or users.mode == "NODE":
        if users is not None and (users.uids or users.gids):
            raise InvalidArgument("mappings without a user namespace", subject=_FIELD)
        return
    if users.mode != "POD":
        raise InvalidArgument(f"mode {users.mode} is neither POD nor NODE", subject=f"{_FIELD}.mode")
    for name, given in (("uids", users.uids), ("gids", users.gids)):
        if len(given) != 1:
            raise InvalidArgument(f"{len(given)} mappings, not one", subject=f"{_FIELD}.{name}")
        if given[0].container_id != 0 or not given[0].length:
            raise InvalidArgument("id 0 of containers is not mapped", subject=f"{_FIELD}.{name}")
        if given[0].host_id + given[0].length >= 1 << 32:
            raise InvalidArgument("ids have 32 bits", subject=f"{_FIELD}.{name}")
    if users.uids != users.gids:
        raise InvalidArgument("uids and gids differ", subject=f"{_FIELD}.gids")
    if config.namespaces.network == "NODE":
        raise InvalidArgument("a user namespace on the node's network", subject=_FIELD)
    if handler not in ("", "nagaya"):
        raise Unimplemented(f"handler {handler!r} has no user namespaces here", subject="runtime_handler")


def check_member(config: PodConfig, asked: UserNamespace | None) -> None:
    """A container's user namespace is its pod's. Raises InvalidArgument."""
    if asked is not None and asked.mode == "POD" and asked != of(config):
        raise InvalidArgument("is not the pod's", subject=_FIELD)


def _oci(given: tuple[IDMapping, ...]) -> list[dict[str, int]]:
    return [{"containerID": g.container_id, "hostID": g.host_id, "size": g.length} for g in given]


def mappings(config: PodConfig) -> dict[str, Any]:
    """`linux.uidMappings` and gidMappings; {} on the node's user namespace. Pure."""
    users = of(config)
    return {} if users is None else {"uidMappings": _oci(users.uids), "gidMappings": _oci(users.gids)}


def root_of(config: PodConfig) -> tuple[int, int]:
    """(uid, gid) on the host of the containers' root."""
    users = of(config)
    return (0, 0) if users is None else (users.uids[0].host_id, users.gids[0].host_id)


def mount_root(config: PodConfig, rootfs: dict[str, Any], userns: str, target: str) -> None:
    """Mount a container's root at target, its layers mapped. Blocking. Raises KernelError."""
    for directory in (rootfs["upper"], rootfs["work"]):
        os.chown(directory, *root_of(config))
    namespace = os.open(userns, os.O_RDONLY | os.O_CLOEXEC)
    layers: list[int] = []
    try:
        for directory in rootfs["lower"]:
            layers.append(mapped(directory, namespace))
        tree = mount_overlay({**rootfs, "lower": [f"/proc/self/fd/{fd}" for fd in layers]})
        try:
            os.makedirs(target, 0o755, exist_ok=True)
            m.move_mount(tree, m.AT_FDCWD, target)
        finally:
            os.close(tree)
    finally:
        for fd in (*layers, namespace):
            os.close(fd)
