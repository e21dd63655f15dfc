"""The mounts that a kubelet asks for: binds with propagation, read-only trees, mapped owners, and images."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from typing import Any

import msgspec

from nagaya.engine import propagation, spec_mounts, staging
from nagaya.engine.model import MountSpec
from nagaya.engine.pods_model import IDMapping, Mount
from nagaya.engine.world import World
from nagaya.errors import FailedPrecondition, InvalidArgument, KernelError, NotFound, Unimplemented

_PROPAGATION = {
    "PROPAGATION_PRIVATE": "rprivate",
    "PROPAGATION_HOST_TO_CONTAINER": "rslave",
    "PROPAGATION_BIDIRECTIONAL": "rshared",
}
_OPTIONS = ("noexec", "nodev", "nosuid")


def check(mounts: Sequence[Mount]) -> None:
    """Refuse contradictions. Raises InvalidArgument that names the field."""
    for index, mount in enumerate(mounts):
        field = f"config.mounts[{index}]"
        if not mount.container_path or "\0" in mount.container_path + mount.host_path:
            raise InvalidArgument("container_path is empty or has a null byte", subject=field)
        if not mount.container_path.startswith("/"):
            raise InvalidArgument(f"container_path {mount.container_path!r} is not absolute", subject=field)
        if posixpath.normpath(mount.container_path) in ("/", "//"):
            raise InvalidArgument("nothing can be mounted at /", subject=field)
        if mount.image is not None and mount.image.image:
            if mount.host_path:
                raise InvalidArgument("a mount has a host_path or an image, not both", subject=field)
            if not mount.readonly:
                raise InvalidArgument("an image is mounted readonly", subject=f"{field}.readonly")
            if mount.propagation != "PROPAGATION_PRIVATE":
                raise InvalidArgument("an image has nothing to propagate", subject=f"{field}.propagation")
        elif not mount.host_path.startswith("/"):
            raise InvalidArgument(
                f"host_path {mount.host_path!r} is not absolute", subject=f"{field}.host_path"
            )
        if mount.image_sub_path and not (mount.image and mount.image.image):
            raise InvalidArgument("image_sub_path without an image", subject=f"{field}.image_sub_path")
        if mount.recursive_read_only:
            if not mount.readonly:
                raise InvalidArgument("recursive_read_only needs readonly", subject=field)
            if mount.propagation != "PROPAGATION_PRIVATE":
                raise InvalidArgument("recursive_read_only needs private propagation", subject=field)
        if mount.selinux_relabel and os.path.isdir("/sys/fs/selinux/class"):
            raise Unimplemented("SELinux labels are not set", subject=f"{field}.selinux_relabel")
        for option in mount.mount_options:
            if option not in _OPTIONS:
                known = ", ".join(_OPTIONS)
                raise InvalidArgument(f"{option!r} is none of {known}", subject=f"{field}.mount_options")


def image_point(world: World, index: int, mount: Mount) -> MountSpec:
    """The engine's word for a mounted image; `staging` finds its files. Blocking. Raises NotFound."""
    name = mount.image.image if mount.image is not None else ""
    try:
        image = world.images.resolve(name)
    except NotFound as error:
        raise NotFound(error.message, subject=f"config.mounts[{index}].image") from None
    target = spec_mounts.clean_target(mount.container_path)
    point = MountSpec("image", target, image.id, read_only=True, subpath=mount.image_sub_path)
    staging.check(world, point)
    return point


def known(mounts: Sequence[Mount], points: Sequence[MountSpec]) -> tuple[Mount, ...]:
    """The mounts with the ids of their images, as a status tells them. Pure."""
    ids = {point.target: point.source for point in points if point.type == "image"}
    return tuple(
        msgspec.structs.replace(
            m,
            image=msgspec.structs.replace(
                m.image, image_ref=ids.get(spec_mounts.clean_target(m.container_path), "")
            ),
        )
        if m.image is not None
        else m
        for m in mounts
    )


def add(document: dict[str, Any], mounts: Sequence[Mount]) -> None:
    """Put them into a config.json in the order in which they were asked for, shallow ones first, in the
    place of what is mounted there by default. Blocking. Raises FailedPrecondition, KernelError."""
    made = [_bind(index, mount) for index, mount in enumerate(mounts) if mount.image is None]
    made.sort(key=lambda m: m["destination"].count("/"))
    targets = {m["destination"] for m in made}
    kept = [m for m in document["mounts"] if m["destination"] not in targets]
    document["mounts"] = kept + made
    asked = {m.propagation for m in mounts}
    if "PROPAGATION_BIDIRECTIONAL" in asked:
        document["linux"]["rootfsPropagation"] = "shared"
    elif "PROPAGATION_HOST_TO_CONTAINER" in asked:
        document["linux"]["rootfsPropagation"] = "slave"


def _bind(index: int, mount: Mount) -> dict[str, Any]:
    field = f"config.mounts[{index}].host_path"
    source = os.path.realpath(mount.host_path)
    if not os.path.exists(source):
        try:
            os.makedirs(source, 0o755)
        except OSError as error:
            raise KernelError(
                os.strerror(error.errno or 0).lower(), subject=field, step=f"make directory {source}"
            ) from None
    try:
        propagation.check(source, _PROPAGATION[mount.propagation])
    except FailedPrecondition as error:
        raise FailedPrecondition(error.message, subject=field) from None
    options = ["rbind", _PROPAGATION[mount.propagation], *mount.mount_options]
    if mount.readonly:
        options.append("rro" if mount.recursive_read_only else "ro")
    found: dict[str, Any] = {
        "destination": posixpath.normpath("/" + mount.container_path.lstrip("/")),
        "type": "bind",
        "source": source,
        "options": options,
    }
    if mount.uidMappings or mount.gidMappings:
        found["uidMappings"] = _mappings(mount.uidMappings)
        found["gidMappings"] = _mappings(mount.gidMappings)
        options.append("ridmap")
    return found


def _mappings(given: Sequence[IDMapping]) -> list[dict[str, int]]:
    return [{"containerID": m.container_id, "hostID": m.host_id, "size": m.length} for m in given]
