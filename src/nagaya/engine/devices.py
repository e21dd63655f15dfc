"""Devices of a container: what the host has, and what the cgroup lets it touch.

Rules and nodes as dockerd gives them; runtimes add the default ones of the runtime-spec.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import Any

from nagaya.engine.model import DeviceMapping
from nagaya.engine.spec import Device
from nagaya.errors import InvalidArgument
from nagaya.oci import defaults

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


def rules(devices: Sequence[Device]) -> list[dict[str, Any]]:
    """The default rules and one per device."""
    return defaults.device_rules() + [
        {"allow": True, "type": d.type, "major": d.major, "minor": d.minor, "access": d.permissions}
        for d in devices
    ]
