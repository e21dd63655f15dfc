"""Devices of a container: what the host has, and what the cgroup lets it touch.

Rules and nodes as dockerd gives them; runtimes add the default ones of the runtime-spec.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from typing import Any

from nagaya.engine.limits import Abilities
from nagaya.engine.model import DeviceMapping, Resources
from nagaya.engine.spec import Device
from nagaya.errors import InvalidArgument, NagayaError
from nagaya.linux import cgroup
from nagaya.oci import defaults

_RULE = re.compile(r"([acb]) ([0-9]{1,9}|\*):([0-9]{1,9}|\*) ([rwm]{1,3})")
_SKIPPED = frozenset(("pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"))


PRIVILEGED_RULES: tuple[dict[str, Any], ...] = ({"allow": True, "access": "rwm"},)


def _node(host: str, seen: str, permissions: str) -> Device | None:
    info = os.stat(host)
    if stat.S_ISCHR(info.st_mode):
        kind = "c"
    elif stat.S_ISBLK(info.st_mode):
        kind = "b"
    else:
        return None
    return Device(
        seen,
        kind,
        os.major(info.st_rdev),
        os.minor(info.st_rdev),
        stat.S_IMODE(info.st_mode),
        info.st_uid,
        info.st_gid,
        permissions,
    )


def _below(directory: str, seen: str, permissions: str) -> list[Device]:
    found: list[Device] = []
    for entry in sorted(os.scandir(directory), key=lambda e: e.name):
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in _SKIPPED:
                found += _below(entry.path, f"{seen}/{entry.name}", permissions)
        elif entry.name != "console" and not entry.is_symlink():
            try:
                device = _node(entry.path, f"{seen}/{entry.name}", permissions)
            except OSError:
                continue  # it went away meanwhile
            if device is not None:
                found.append(device)
    return found


def of_host() -> list[Device]:
    """Everything in /dev, for a privileged container."""
    return _below("/dev", "/dev", "rwm")


def mapped(mappings: Sequence[DeviceMapping]) -> list[Device]:
    """The devices of `--device`; a directory means all in it. Raises InvalidArgument."""
    found: list[Device] = []
    for mapping in mappings:
        permissions = mapping.permissions or "rwm"
        if not set(permissions) <= set("rwm"):
            raise InvalidArgument(f"invalid device mode: {permissions}", subject="Devices")
        seen = mapping.container_path or mapping.host_path
        try:
            device = _node(mapping.host_path, seen, permissions)
            if device is not None:
                found.append(device)
            elif os.path.isdir(mapping.host_path):
                found += _below(mapping.host_path, seen, permissions)
            else:
                raise InvalidArgument("not a device node", subject=mapping.host_path)
        except (OSError, InvalidArgument) as error:
            why = os.strerror(error.errno or 0).lower() if isinstance(error, OSError) else error.message
            raise InvalidArgument(
                f'error gathering device information while adding custom device "{mapping.host_path}": {why}',
                subject="Devices",
            ) from None
    return found


def rule(text: str) -> dict[str, Any]:
    """A rule of the user's, such as "c 1:* rwm". Raises InvalidArgument."""
    found = _RULE.fullmatch(text)
    if found is None:
        raise InvalidArgument(f"invalid device cgroup rule format: '{text}'", subject="DeviceCgroupRules")
    made: dict[str, Any] = {"allow": True, "type": found[1], "access": found[4]}
    for key, number in (("major", found[2]), ("minor", found[3])):
        if number != "*":
            made[key] = int(number)
    return made


def block_io(limits: Resources) -> dict[str, Any]:
    """`linux.resources.blockIO` as far as it is about single devices. Raises InvalidArgument for a path
    that is none."""
    found: dict[str, Any] = {}
    for key, name, values in (
        ("weightDevice", "weight", limits.blkio_weight_device),
        ("throttleReadBpsDevice", "rate", limits.blkio_read_bps),
        ("throttleWriteBpsDevice", "rate", limits.blkio_write_bps),
        ("throttleReadIOPSDevice", "rate", limits.blkio_read_iops),
        ("throttleWriteIOPSDevice", "rate", limits.blkio_write_iops),
    ):
        if values:
            found[key] = [{**_block_device(v.path), name: v.value} for v in values]
    return found


def _block_device(path: str) -> dict[str, int]:
    try:
        info = os.stat(path)
    except (OSError, ValueError) as error:
        why = os.strerror(error.errno or 0).lower() if isinstance(error, OSError) else "invalid argument"
        raise InvalidArgument(f"stat {path}: {why}", subject="Blkio") from None
    if not stat.S_ISBLK(info.st_mode):
        raise InvalidArgument(f"{path} is not a block device", subject="Blkio")
    return {"major": os.major(info.st_rdev), "minor": os.minor(info.st_rdev)}


def abilities() -> Abilities:
    """What this host's cgroups can limit, where it differs between kernels."""
    try:
        layout = cgroup.layout()
    except NagayaError:
        return Abilities(False, False, False)
    if layout.version == 2:
        return Abilities(True, True, False)

    def has(controller: str, *names: str) -> bool:
        hierarchy = layout.hierarchy(controller)
        return hierarchy is not None and any(os.path.exists(f"{hierarchy.mountpoint}/{n}") for n in names)

    return Abilities(
        has("blkio", "blkio.weight", "blkio.bfq.weight"),
        has("blkio", "blkio.weight_device", "blkio.bfq.weight_device"),
        has("cpu", "cpu.rt_runtime_us"),
    )


def rules(devices: Sequence[Device]) -> list[dict[str, Any]]:
    """The default rules and one per device."""
    return defaults.device_rules() + [
        {"allow": True, "type": d.type, "major": d.major, "minor": d.minor, "access": d.permissions}
        for d in devices
    ]
