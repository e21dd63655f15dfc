"""Requests to actions: which method and path with which body asks for what. Pure.

The table of actions says when each may be asked for: Firecracker refuses most of what configures the machine
after its start, and what acts on it before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import msgspec

from nagaya.api.firecracker import models, serde
from nagaya.api.firecracker.faults import Fault

BEFORE, AFTER, ALWAYS = "before", "after", "always"

ACTIONS = {
    "configure_boot_source": BEFORE,
    "configure_logger": BEFORE,
    "configure_metrics": BEFORE,
    "configure_serial": BEFORE,
    "create_snapshot": AFTER,
    "flush_metrics": AFTER,
    "get_balloon": ALWAYS,
    "get_balloon_stats": AFTER,
    "get_hinting_status": AFTER,
    "get_instance_info": ALWAYS,
    "get_machine_config": ALWAYS,
    "get_memory_hotplug": AFTER,
    "get_mmds": ALWAYS,
    "get_version": ALWAYS,
    "get_vm_config": ALWAYS,
    "hot_unplug": AFTER,
    "insert_drive": BEFORE,
    "insert_network_interface": BEFORE,
    "insert_pmem": BEFORE,
    "load_snapshot": BEFORE,
    "patch_mmds": ALWAYS,
    "pause": AFTER,
    "put_mmds": ALWAYS,
    "resume": AFTER,
    "send_ctrl_alt_del": AFTER,
    "set_balloon": BEFORE,
    "set_cpu_config": BEFORE,
    "set_entropy": BEFORE,
    "set_memory_hotplug": BEFORE,
    "set_mmds_config": BEFORE,
    "set_vsock": BEFORE,
    "start": BEFORE,
    "start_hinting": AFTER,
    "stop_hinting": AFTER,
    "update_balloon": AFTER,
    "update_balloon_stats": AFTER,
    "update_drive": AFTER,
    "update_machine_config": BEFORE,
    "update_memory_hotplug": AFTER,
    "update_network_interface": AFTER,
    "update_pmem": AFTER,
}
_INSTANCE_ACTIONS = {
    "FlushMetrics": "flush_metrics",
    "InstanceStart": "start",
    "SendCtrlAltDel": "send_ctrl_alt_del",
}
_CONFIGURED: dict[str, tuple[str, type[msgspec.Struct]]] = {
    "balloon": ("set_balloon", models.BalloonDeviceConfig),
    "boot-source": ("configure_boot_source", models.BootSourceConfig),
    "cpu-config": ("set_cpu_config", models.CustomCpuTemplate),
    "entropy": ("set_entropy", models.EntropyDeviceConfig),
    "logger": ("configure_logger", models.LoggerConfig),
    "metrics": ("configure_metrics", models.MetricsConfig),
    "serial": ("configure_serial", models.SerialConfig),
}
_DEVICES: dict[tuple[str, str], tuple[str, type[msgspec.Struct], str]] = {
    ("PUT", "drives"): ("insert_drive", models.BlockDeviceConfig, "drive_id"),
    ("PUT", "pmem"): ("insert_pmem", models.PmemConfig, "id"),
    ("PUT", "network-interfaces"): ("insert_network_interface", models.NetworkInterfaceConfig, "iface_id"),
    ("PATCH", "drives"): ("update_drive", models.BlockDeviceUpdateConfig, "drive_id"),
    ("PATCH", "pmem"): ("update_pmem", models.PmemDeviceUpdateConfig, "id"),
    ("PATCH", "network-interfaces"): (
        "update_network_interface",
        models.NetworkInterfaceUpdateConfig,
        "iface_id",
    ),
}
_EMPTY = {
    "GET": "GET request cannot have a body.",
    "PUT": "Empty PUT request.",
    "PATCH": "Empty PATCH request.",
    "DELETE": "Empty Delete request.",
}


@dataclasses.dataclass(frozen=True)
class Action:
    """What a request asks for: a name of ACTIONS, its argument, and which deprecated field it used."""

    name: str
    argument: Any = None
    deprecated: str = ""


def parse(method: str, path: str, body: bytes | None) -> Action:
    """The action that a request asks for. Raises Fault."""
    try:
        return _parse(method, path, body)
    except serde.SerdeError as error:
        raise Fault(f"An error occurred when deserializing the json body of a request: {error}.") from None


def _parse(method: str, path: str, body: bytes | None) -> Action:
    words = path.lstrip("/").split("/")
    if words and not words[-1]:
        words.pop()  # what ends with a slash names the same
    tokens = iter(words)
    first = next(tokens, "")
    if method == "PATCH" and first == "balloon":
        return _patch_balloon(body, tokens)
    if method in ("GET", "DELETE"):
        if body is not None:
            raise Fault(_EMPTY[method])
        found = _get(first, tokens) if method == "GET" else _delete(first, tokens)
    elif method in ("PUT", "PATCH"):
        if body is None:
            raise Fault(_EMPTY[method])
        if (method, first) in _DEVICES:
            return _device(method, first, body, tokens)
        found = _put(first, body, tokens) if method == "PUT" else _patch(first, body, tokens)
    else:
        found = None
    if found is None:
        raise Fault(f"Invalid request method and/or path: {method} {first}.")
    return found


def _get(first: str, tokens: Iterator[str]) -> Action | None:
    simple = {
        "": "get_instance_info",
        "version": "get_version",
        "machine-config": "get_machine_config",
        "mmds": "get_mmds",
    }
    if first in simple:
        return Action(simple[first])
    if first == "balloon":
        return _get_balloon(tokens)
    second = next(tokens, None)
    if (first, second) == ("vm", "config"):
        return Action("get_vm_config")
    return Action("get_memory_hotplug") if (first, second) == ("hotplug", "memory") else None


def _get_balloon(tokens: Iterator[str]) -> Action:
    match next(tokens, None):
        case None:
            return Action("get_balloon")
        case "statistics":
            return Action("get_balloon_stats")
        case "hinting":
            third = next(tokens, "")
            if third == "status":
                return Action("get_hinting_status")
            raise Fault(f"Unrecognized GET request path `/hinting/{third}`.")
        case other:
            raise Fault(f"Unrecognized GET request path `{other}`.")


def _patch_balloon(body: bytes | None, tokens: Iterator[str]) -> Action:
    second = next(tokens, None)
    if second == "hinting":
        third = next(tokens, "")
        if third == "start":
            command = serde.decode(models.StartHintingCmd, body) if body else models.StartHintingCmd()
            return Action("start_hinting", command)
        if third == "stop":
            return Action("stop_hinting")
        raise Fault(f"Unrecognized PATCH request path `/hinting/{third}`.")
    if body is None:
        raise Fault(_EMPTY["PATCH"])
    if second == "statistics":
        return Action("update_balloon_stats", serde.decode(models.BalloonUpdateStatsConfig, body))
    return Action("update_balloon", serde.decode(models.BalloonUpdateConfig, body))


def _checked_id(value: str | None) -> str:
    if not value:
        raise Fault("The ID cannot be empty.")
    if not all(c == "_" or c.isalnum() for c in value):
        raise Fault("API Resource IDs can only contain alphanumeric characters and underscores.")
    return value


def _device(method: str, first: str, body: bytes, tokens: Iterator[str]) -> Action:
    name, model, key = _DEVICES[method, first]
    named = _checked_id(next(tokens, None))
    config = serde.decode(model, body)
    inside = getattr(config, key)
    if inside != named:
        if first == "network-interfaces":
            raise Fault(f"The id from the path [{named}] does not match the id from the body [{inside}]!")
        raise Fault("The id from the path does not match the id from the body!")
    return Action(name, config)


def _delete(first: str, tokens: Iterator[str]) -> Action | None:
    if first not in ("drives", "pmem", "network-interfaces"):
        return None
    return Action("hot_unplug", (first, _checked_id(next(tokens, None))))


def _put(first: str, body: bytes, tokens: Iterator[str]) -> Action | None:
    if first in _CONFIGURED:
        name, model = _CONFIGURED[first]
        return Action(name, serde.decode(model, body))
    match first:
        case "actions":
            return Action(_INSTANCE_ACTIONS[serde.decode(models.ActionBody, body).action_type])
        case "machine-config":
            config = serde.decode(models.MachineConfig, body)
            update = models.MachineConfigUpdate(
                **{name: getattr(config, name) for name in config.__struct_fields__}
            )
            old = (
                ""
                if config.cpu_template is None
                else "PUT /machine-config: cpu_template field is deprecated."
            )
            return Action("update_machine_config", update, old)
        case "mmds":
            return _put_mmds(body, next(tokens, None))
        case "snapshot":
            return _put_snapshot(body, next(tokens, None))
        case "vsock":
            vsock = serde.decode(models.VsockDeviceConfig, body)
            return Action(
                "set_vsock", vsock, "PUT /vsock: vsock_id field is deprecated." if vsock.vsock_id else ""
            )
        case "hotplug" if next(tokens, None) == "memory":
            return Action("set_memory_hotplug", serde.decode(models.MemoryHotplugConfig, body))
    return None


def _put_mmds(body: bytes, second: str | None) -> Action:
    if second is None:
        return Action("put_mmds", serde.decode_any(body))
    if second != "config":
        raise Fault(f"Unrecognized PUT request path `{second}`.")
    config = serde.decode(models.MmdsConfig, body)
    old = "PUT /mmds/config: V1 is deprecated. Use V2 instead." if config.version == "V1" else ""
    return Action("set_mmds_config", config, old)


def _put_snapshot(body: bytes, second: str | None) -> Action:
    if second is None:
        raise Fault("Missing snapshot operation type.")
    if second == "create":
        return Action("create_snapshot", serde.decode(models.CreateSnapshotParams, body))
    if second != "load":
        raise Fault(f"Invalid request method and/or path: PUT /snapshot/{second}.")
    config = serde.decode(models.LoadSnapshotConfig, body)
    fields = "either `mem_backend` or `mem_file_path`"
    if config.mem_backend and config.mem_file_path is not None:
        raise serde.SerdeError(f"too many fields: {fields} exclusively is required")
    if not config.mem_backend and config.mem_file_path is None:
        raise serde.SerdeError(f"missing field: {fields} is required")
    old = config.mem_file_path is not None or config.enable_diff_snapshots
    words = "PUT /snapshot/load: mem_file_path and enable_diff_snapshots fields are deprecated."
    return Action("load_snapshot", config, words if old else "")


def _patch(first: str, body: bytes, tokens: Iterator[str]) -> Action | None:
    match first:
        case "machine-config":
            update = serde.decode(models.MachineConfigUpdate, body)
            if update == models.MachineConfigUpdate():
                raise Fault(_EMPTY["PATCH"])
            given = update.cpu_template is not None
            old = "PATCH /machine-config: cpu_template field is deprecated." if given else ""
            return Action("update_machine_config", update, old)
        case "mmds":
            return Action("patch_mmds", serde.decode_any(body))
        case "vm":
            wanted = serde.decode(models.Vm, body).state
            return Action("pause" if wanted == "Paused" else "resume")
        case "hotplug" if next(tokens, None) == "memory":
            return Action("update_memory_hotplug", serde.decode(models.MemoryHotplugSizeUpdate, body))
    return None
