"""A container as GET /containers/{id}/json shows it: every field dockerd 28 shows, with its zero.

What the model does not keep (mount labels, the driver's directories) has the value of a dockerd
without that feature; docs/docker-api.md lists it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from nagaya.api.docker.types.times import rfc3339_nano
from nagaya.engine import apparmor as profiles
from nagaya.engine import links, privileges
from nagaya.engine.model import (
    Attachment,
    Container,
    ContainerConfig,
    DeviceLimit,
    Endpoint,
    MountSpec,
    PortBinding,
)
from nagaya.engine.nettable import attachments, wired
from nagaya.engine.spec_mounts import is_read_only
from nagaya.oci.defaults import MASKED_PATHS, READONLY_PATHS

Json = dict[str, Any]

DRIVER = "overlay2"


def inspect(
    container: Container, root: str, run: str = "", exec_ids: Iterable[str] = (), apparmor: str = ""
) -> Json:
    """The whole resource. `root` and `run` are the daemon's directories, `apparmor` its default profile."""
    home = f"{root}/containers/{container.id}"
    return {
        "Id": container.id,
        "Created": rfc3339_nano(container.created),
        "Path": container.path,
        "Args": list(container.args),
        "State": state(container),
        "Image": container.image_digest,
        "ResolvConfPath": f"{home}/resolv.conf",
        "HostnamePath": f"{home}/hostname",
        "HostsPath": f"{home}/hosts",
        "LogPath": container.log_path if container.config.log.driver == "json-file" else "",
        "Name": "/" + container.name,
        "RestartCount": container.restart_count,
        "Driver": DRIVER,
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": _apparmor(container, apparmor),
        "ExecIDs": list(exec_ids) or None,
        "HostConfig": host_config(container.config, container.name),
        "GraphDriver": {"Data": None, "Name": DRIVER},
        "Mounts": mount_points(container, root),
        "Config": config(container),
        "NetworkSettings": network_settings(container, run),
    }


def _apparmor(container: Container, default: str) -> str:
    """ "unconfined" where there would be one; "" on hosts without AppArmor."""
    if not default:
        return ""
    config = container.config
    named = privileges.security_options(config.security_opt, privileged=config.privileged).apparmor
    return profiles.chosen(named, privileged=config.privileged, default=default) or profiles.UNCONFINED


def state(container: Container) -> Json:
    """The State object."""
    shown: Json = {
        "Status": container.state,
        "Running": container.state in ("running", "paused", "restarting"),
        "Paused": container.state == "paused",
        "Restarting": container.state == "restarting",
        "OOMKilled": container.oom_killed,
        "Dead": container.state == "dead",
        "Pid": container.pid,
        "ExitCode": container.exit_code,
        "Error": container.error,
        "StartedAt": rfc3339_nano(container.started),
        "FinishedAt": rfc3339_nano(container.finished),
    }
    if container.health is not None:
        shown["Health"] = {
            "Status": container.health.status,
            "FailingStreak": container.health.failing_streak,
            "Log": [
                {
                    "Start": rfc3339_nano(probe.start),
                    "End": rfc3339_nano(probe.end),
                    "ExitCode": probe.exit_code,
                    "Output": probe.output,
                }
                for probe in container.health.log
            ],
        }
    return shown


def config(container: Container) -> Json:
    """The Config object: the user's wishes, which the engine has merged with the image's."""
    wish = container.config
    shown: Json = {
        "Hostname": container.hostname or wish.hostname,
        "Domainname": wish.domainname,
        "User": wish.user,
        "AttachStdin": wish.attach_stdin,
        "AttachStdout": wish.attach_stdout,
        "AttachStderr": wish.attach_stderr,
        "Tty": wish.tty,
        "OpenStdin": wish.open_stdin,
        "StdinOnce": wish.stdin_once,
        "Env": list(wish.env),
        "Cmd": list(wish.command) if wish.command else None,
        "Image": wish.image,
        "Volumes": {path: {} for path in wish.image_volumes} or None,
        "WorkingDir": wish.working_dir,
        "Entrypoint": list(wish.entrypoint) if wish.entrypoint else None,
        "OnBuild": None,
        "Labels": dict(wish.labels),
    }
    if wish.health is not None:
        names = ("Test", "Interval", "Timeout", "StartPeriod", "StartInterval", "Retries")
        values = zip(names, msgspec.structs.astuple(wish.health), strict=True)
        shown["Healthcheck"] = {name: value for name, value in values if value}
    if wish.exposed_ports:
        shown["ExposedPorts"] = {port: {} for port in wish.exposed_ports}
    if wish.stop_signal:
        shown["StopSignal"] = wish.stop_signal
    if wish.stop_timeout is not None:
        shown["StopTimeout"] = wish.stop_timeout
    return shown


def host_config(wish: ContainerConfig, name: str = "") -> Json:
    """The HostConfig object, all keys. name: the container's."""
    limits = wish.resources
    shown: Json = {
        "Binds": _binds(wish.mounts) or None,
        "ContainerIDFile": "",
        "LogConfig": {"Type": wish.log.driver, "Config": dict(wish.log.options)},
        "NetworkMode": network_mode(wish),
        "PortBindings": _port_map(wish.ports),
        "RestartPolicy": {
            "Name": wish.restart.name,
            "MaximumRetryCount": wish.restart.maximum_retry_count,
        },
        "AutoRemove": wish.auto_remove,
        "VolumeDriver": wish.volume_driver,
        "VolumesFrom": list(wish.volumes_from) or None,
        "ConsoleSize": [0, 0],
        "CapAdd": list(wish.cap_add) or None,
        "CapDrop": list(wish.cap_drop) or None,
        "CgroupnsMode": wish.cgroupns_mode or "private",
        "Dns": list(wish.dns),
        "DnsOptions": list(wish.dns_options),
        "DnsSearch": list(wish.dns_search),
        "ExtraHosts": list(wish.extra_hosts) or None,
        "GroupAdd": list(wish.group_add) or None,
        "IpcMode": wish.ipc_mode or "private",
        "Cgroup": "",
        "Links": [f"/{target}:/{name}/{alias}" for target, alias in map(links.parse, wish.links)] or None,
        "OomScoreAdj": wish.oom_score_adj,
        "PidMode": wish.pid_mode,
        "Privileged": wish.privileged,
        "PublishAllPorts": wish.publish_all,
        "ReadonlyRootfs": wish.read_only_rootfs,
        "SecurityOpt": list(wish.security_opt) or None,
        "UTSMode": wish.uts_mode,
        "UsernsMode": wish.userns_mode,
        "ShmSize": wish.shm_size,
        "Runtime": wish.runtime or "nagaya",
        "Isolation": wish.isolation,
        "CpuShares": limits.cpu_shares,
        "Memory": limits.memory,
        "NanoCpus": limits.nano_cpus,
        "CgroupParent": wish.cgroup_parent,
        "BlkioWeight": limits.blkio_weight,
        "BlkioWeightDevice": [{"Path": d.path, "Weight": d.value} for d in limits.blkio_weight_device],
        "BlkioDeviceReadBps": _rates(limits.blkio_read_bps),
        "BlkioDeviceWriteBps": _rates(limits.blkio_write_bps),
        "BlkioDeviceReadIOps": _rates(limits.blkio_read_iops),
        "BlkioDeviceWriteIOps": _rates(limits.blkio_write_iops),
        "CpuPeriod": limits.cpu_period,
        "CpuQuota": limits.cpu_quota,
        "CpuRealtimePeriod": limits.cpu_rt_period,
        "CpuRealtimeRuntime": limits.cpu_rt_runtime,
        "CpusetCpus": limits.cpuset_cpus,
        "CpusetMems": limits.cpuset_mems,
        "Devices": [
            {
                "PathOnHost": device.host_path,
                "PathInContainer": device.container_path,
                "CgroupPermissions": device.permissions,
            }
            for device in wish.devices
        ],
        "DeviceCgroupRules": list(wish.device_cgroup_rules) or None,
        "DeviceRequests": [
            {
                "Driver": request.driver,
                "Count": request.count,
                "DeviceIDs": list(request.ids) or None,
                "Capabilities": [list(group) for group in request.capabilities] or None,
                "Options": dict(request.options) or None,
            }
            for request in wish.device_requests
        ]
        or None,
        "MemoryReservation": limits.memory_reservation,
        "MemorySwap": limits.memory_swap,
        "MemorySwappiness": limits.memory_swappiness,
        "OomKillDisable": limits.oom_kill_disable,
        "PidsLimit": limits.pids_limit or None,
        "Ulimits": [{"Name": u.name, "Hard": u.hard, "Soft": u.soft} for u in wish.ulimits],
        "CpuCount": 0,
        "CpuPercent": 0,
        "IOMaximumIOps": 0,
        "IOMaximumBandwidth": 0,
        "MaskedPaths": _paths(wish.masked_paths, MASKED_PATHS, wish.privileged),
        "ReadonlyPaths": _paths(wish.readonly_paths, READONLY_PATHS, wish.privileged),
    }
    requested = [_mount_body(mount) for mount in wish.mounts if mount.listed]
    if requested:
        shown["Mounts"] = requested
    if wish.init:
        shown["Init"] = True
    for name, value in (("Sysctls", wish.sysctls), ("Tmpfs", wish.tmpfs), ("Annotations", wish.annotations)):
        if value:
            shown[name] = dict(value)
    return shown


def _rates(devices: Iterable[DeviceLimit]) -> list[Json]:
    return [{"Path": device.path, "Rate": device.value} for device in devices]


def _paths(chosen: tuple[str, ...] | None, default: tuple[str, ...], privileged: bool) -> list[str] | None:
    if chosen is not None:
        return list(chosen)
    return None if privileged else list(default)


def network_mode(wish: ContainerConfig) -> str:
    """dockerd shows the default network by its name."""
    return "bridge" if wish.network_mode in ("", "default") else wish.network_mode


def _binds(mounts: Iterable[MountSpec]) -> list[str]:
    result: list[str] = []
    for mount in mounts:
        if mount.source and not mount.listed and mount.type != "tree":
            mode = ",".join(
                option
                for option, on in (
                    ("ro", mount.read_only),
                    (mount.propagation, bool(mount.propagation)),
                    ("nocopy", mount.no_copy),
                )
                if on
            )
            result.append(":".join(part for part in (mount.source, mount.target, mode) if part))
    return result


def _mount_body(mount: MountSpec) -> Json:
    body: Json = {"Type": mount.type, "Target": mount.target}
    if mount.source:
        body["Source"] = mount.source
    if mount.read_only:
        body["ReadOnly"] = True
    options = {
        "bind": {
            "Propagation": mount.propagation,
            "NonRecursive": not mount.recursive,
            "CreateMountpoint": mount.create_source,
            "ReadOnlyNonRecursive": mount.recursive_ro == "no",
            "ReadOnlyForceRecursive": mount.recursive_ro == "force",
        },
        "volume": {
            "NoCopy": mount.no_copy,
            "Labels": dict(mount.labels),
            "Subpath": mount.subpath,
            "DriverConfig": {
                key: value
                for key, value in (("Name", mount.driver), ("Options", dict(mount.driver_options)))
                if value
            },
        },
        "tmpfs": _tmpfs_options(mount.options),
        "image": {"Subpath": mount.subpath},
    }[mount.type]
    given = {key: value for key, value in options.items() if value}
    if given:
        body[f"{mount.type.capitalize()}Options"] = given
    return body


def _tmpfs_options(words: Iterable[str]) -> Json:
    """TmpfsOptions of the words they were made to."""
    found: Json = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key == "size" and value.isdecimal():
            found["SizeBytes"] = int(value)
        elif key == "mode" and value:
            found["Mode"] = int(value, 8)
        else:
            found.setdefault("Options", []).append([key, value] if equals else [key])
    return found


def mount_points(container: Container, root: str) -> list[Json]:
    """The Mounts array of inspect and list."""
    points: list[Json] = []
    asked = {mount.target for mount in container.config.mounts}
    for mount in container.mount_points or container.config.mounts:
        if mount.type == "tree":  # a build's own
            continue
        point: Json = {"Type": mount.type}
        if mount.type == "volume":
            if mount.source:
                point["Name"] = mount.source
                point["Source"] = f"{root}/volumes/{mount.source}/_data"
            point["Driver"] = "local"
        else:
            point["Source"] = mount.source
        point["Destination"] = mount.target
        point["Mode"] = _mode(mount, asked)
        point["RW"] = not is_read_only(mount)
        point["Propagation"] = (mount.propagation or "rprivate") if mount.type == "bind" else ""
        points.append(point)
    return points


def _mode(mount: MountSpec, asked: set[str]) -> str:
    """dockerd's leftover of SELinux: "z" of volumes, but for those of the image."""
    if mount.type == "volume" and not (mount.read_only and not mount.listed):
        return "z" if mount.target in asked else ""
    return "ro" if mount.read_only and not mount.listed else ""


def _port_map(ports: Iterable[PortBinding], everywhere: str = "") -> dict[str, list[Json]]:
    """`everywhere`: how a binding of all addresses is shown."""
    result: dict[str, list[Json]] = {}
    for port in ports:
        result.setdefault(f"{port.container_port}/{port.protocol}", []).append(
            {"HostIp": port.host_ip or everywhere, "HostPort": _host_port(port)}
        )
    return result


def _host_port(port: PortBinding) -> str:
    if port.last_port:
        return f"{port.host_port}-{port.last_port}"
    return str(port.host_port) if port.host_port else ""


def network_settings(container: Container, run: str) -> Json:
    """The NetworkSettings object: the default bridge's address also at the top, as dockerd keeps it."""
    ports: dict[str, list[Json] | None] = {}
    running = container.state in ("running", "paused", "restarting")
    if running:
        ports.update(dict.fromkeys(container.config.exposed_ports))
        for endpoint in container.endpoints:
            ports.update(_port_map(endpoint.ports, "0.0.0.0"))
    bridge = next((e for e in container.endpoints if e.network == "bridge"), Endpoint("bridge"))
    return {
        "Bridge": "",
        "SandboxID": container.id if running else "",
        "SandboxKey": f"{run}/ns/{container.id}/net" if running and run and wired(container) else "",
        "Ports": ports,
        "HairpinMode": False,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": None,
        "SecondaryIPv6Addresses": None,
        "EndpointID": bridge.endpoint_id,
        "Gateway": bridge.gateway,
        "GlobalIPv6Address": bridge.address6,
        "GlobalIPv6PrefixLen": bridge.prefix6,
        "IPAddress": bridge.address,
        "IPPrefixLen": bridge.prefix,
        "IPv6Gateway": bridge.gateway6,
        "MacAddress": bridge.mac,
        "Networks": networks(container),
    }


def networks(container: Container) -> dict[str, Json]:
    """NetworkSettings.Networks: the endpoints, and those that a start will make."""
    places = {place.network: place for place in container.endpoints}
    found: dict[str, Json] = {}
    for attachment in attachments(container):
        place = next(
            (p for p in places.values() if attachment.network in (p.network, p.network_id)),
            Endpoint(attachment.network),
        )
        found[place.network] = _endpoint(container, attachment, place)
    return found


def _endpoint(container: Container, attachment: Attachment, place: Endpoint) -> Json:
    addresses = {"IPv4Address": attachment.address, "IPv6Address": attachment.address6}
    ipam = {name: address for name, address in addresses.items() if address}
    own = attachment.network in ("bridge", "host", "none")  # where nobody has a name
    names = (container.name, *attachment.aliases, container.id[:12])
    return {
        "IPAMConfig": ipam or None,
        "Links": list(attachment.links) or None,
        "Aliases": list(attachment.aliases) or None,
        "MacAddress": place.mac or attachment.mac,
        "DriverOpts": dict(attachment.driver_options) or None,
        "GwPriority": attachment.gateway_priority,
        "NetworkID": place.network_id,
        "EndpointID": place.endpoint_id,
        "Gateway": place.gateway,
        "IPAddress": place.address,
        "IPPrefixLen": place.prefix,
        "IPv6Gateway": place.gateway6,
        "GlobalIPv6Address": place.address6,
        "GlobalIPv6PrefixLen": place.prefix6,
        "DNSNames": None if own else list(dict.fromkeys(names)),
    }
