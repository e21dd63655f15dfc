"""What carries out each step of a plan that makes a container, or that gives a process a terminal."""

from __future__ import annotations

from nagaya.runtime import plan
from nagaya.runtime.steps import cgroupfs, devices, hooks, masks, namespaces, rootfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from nagaya.runtime.steps.context import Context

PERFORM: dict[type[plan.Step], Callable[[Context, Any], None]] = {
    plan.Join: namespaces.join,
    plan.Enter: namespaces.enter_container,
    plan.Placed: namespaces.placed,
    plan.MappedRoot: namespaces.mapped_root,
    plan.Unshare: namespaces.unshare,
    plan.OwnTime: namespaces.own_time,
    plan.NetDevices: namespaces.network_devices,
    plan.Keyring: namespaces.keyring,
    plan.Loopback: namespaces.loopback,
    plan.Hostname: namespaces.hostname,
    plan.Sysctl: namespaces.sysctl,
    plan.Propagation: rootfs.propagation,
    plan.Root: rootfs.root,
    plan.Mount: rootfs.mount,
    plan.ChangeRoot: rootfs.change_root,
    plan.MakeDirectory: rootfs.make_directory,
    plan.ReadonlyRoot: rootfs.readonly_root,
    plan.CgroupMount: cgroupfs.mount,
    plan.Devices: devices.devices,
    plan.Console: devices.console,
    plan.ReadonlyPaths: masks.readonly_paths,
    plan.MaskedPaths: masks.masked_paths,
    plan.HostHooks: hooks.host_hooks,
    plan.Hooks: hooks.container_hooks,
}
