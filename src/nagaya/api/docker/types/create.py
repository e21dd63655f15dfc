"""The body of POST /containers/create to `engine.model.CreateRequest`.

What a client sets and we cannot do is refused with the field's name: a container that silently lacks
a limit it was created with is worse than none.
"""

from __future__ import annotations

import re

from nagaya.api.docker.types.limits import (
    device_requests,
    devices,
    resources,
    restart_policy,
    ulimits,
)
from nagaya.api.docker.types.mounts import mounts
from nagaya.api.docker.types.networks import attachment
from nagaya.api.docker.types.ports import exposed_ports, port_bindings
from nagaya.api.docker.types.structs import (
    CreateBody,
    EndpointBody,
    ExecCreateBody,
    HealthcheckBody,
    HostConfigBody,
    LogConfigBody,
    NetworkingConfigBody,
)
from nagaya.engine import links, signals
from nagaya.engine.model import Attachment, ContainerConfig, CreateRequest, ExecConfig, HealthCheck, LogConfig
from nagaya.errors import InvalidArgument

DEFAULT_SHM_SIZE = 64 << 20
_NAME = re.compile(r"/?[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_HOSTNAME = re.compile(r"[a-zA-Z0-9_]([a-zA-Z0-9_.-]*[a-zA-Z0-9_])?")


def container_name(name: str) -> str:
    """A container's name without the leading slash; "" stays "". Raises InvalidArgument."""
    if name and not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", subject="name"
        )
    return name.removeprefix("/")


def create_request(body: CreateBody, name: str, platform: str, online_cpus: int) -> CreateRequest:
    """Everything a create request asks for, validated. Raises InvalidArgument with dockerd's message."""
    return CreateRequest(container_config(body, online_cpus), container_name(name), platform)


def container_config(body: CreateBody, online_cpus: int) -> ContainerConfig:
    """Config, HostConfig and NetworkingConfig in one; see `create_request`."""
    host = body.HostConfig or HostConfigBody()
    _check_config(body)
    _check_host(host)
    network_mode = _network_mode(body, host)
    specs, tmpfs = mounts(host.Binds or (), host.Mounts or (), host.Tmpfs or {})
    exposed, ports = exposed_ports(body.ExposedPorts), port_bindings(host.PortBindings)
    _check_network(body, host, network_mode, bool(exposed), bool(ports))
    restart = restart_policy(host.RestartPolicy)
    if host.AutoRemove and restart.name != "no":
        raise InvalidArgument("can't create 'AutoRemove' container with restart policy")
    return ContainerConfig(
        image=body.Image or "",
        command=_words(body.Cmd),
        entrypoint=_entrypoint(body.Entrypoint),
        env=tuple(body.Env or ()),
        working_dir=body.WorkingDir or "",
        user=body.User or "",
        hostname=body.Hostname or "",
        domainname=body.Domainname or "",
        labels=body.Labels or {},
        tty=bool(body.Tty),
        open_stdin=bool(body.OpenStdin),
        stdin_once=bool(body.StdinOnce),
        attach_stdin=bool(body.AttachStdin),
        attach_stdout=bool(body.AttachStdout),
        attach_stderr=bool(body.AttachStderr),
        stop_signal=body.StopSignal or "",
        stop_timeout=body.StopTimeout,
        exposed_ports=exposed,
        health=_health(body.Healthcheck),
        image_volumes=tuple(sorted(body.Volumes or ())),
        mounts=specs,
        ports=ports,
        publish_all=bool(host.PublishAllPorts),
        network_mode=network_mode,
        networks=_networks(body, network_mode),
        # of a user's network they are the endpoint's; the client sends them twice
        links=_links(host) if network_mode in ("default", "bridge") else (),
        resources=resources(host, online_cpus),
        restart=restart,
        auto_remove=bool(host.AutoRemove),
        privileged=bool(host.Privileged),
        read_only_rootfs=bool(host.ReadonlyRootfs),
        cap_add=tuple(host.CapAdd or ()),
        cap_drop=tuple(host.CapDrop or ()),
        security_opt=tuple(host.SecurityOpt or ()),
        init=bool(host.Init),
        pid_mode=host.PidMode or "",
        ipc_mode=host.IpcMode or "",
        uts_mode=host.UTSMode or "",
        cgroupns_mode=host.CgroupnsMode or "",
        userns_mode=host.UsernsMode or "",
        cgroup_parent=host.CgroupParent or "",
        runtime=host.Runtime or "",
        log=_log_config(host.LogConfig),
        devices=devices(host.Devices),
        device_cgroup_rules=tuple(host.DeviceCgroupRules or ()),
        device_requests=device_requests(host.DeviceRequests),
        volumes_from=tuple(host.VolumesFrom or ()),
        volume_driver=host.VolumeDriver or "",
        isolation=host.Isolation or "",
        ulimits=ulimits(host.Ulimits),
        sysctls=host.Sysctls or {},
        tmpfs=tmpfs,
        shm_size=host.ShmSize or DEFAULT_SHM_SIZE,
        group_add=tuple(host.GroupAdd or ()),
        oom_score_adj=host.OomScoreAdj or 0,
        dns=tuple(host.Dns or ()),
        dns_options=tuple(host.DnsOptions or ()),
        dns_search=tuple(host.DnsSearch or ()),
        extra_hosts=tuple(host.ExtraHosts or ()),
        masked_paths=None if host.MaskedPaths is None else tuple(host.MaskedPaths),
        readonly_paths=None if host.ReadonlyPaths is None else tuple(host.ReadonlyPaths),
        annotations=host.Annotations or {},
    )


def exec_config(body: ExecCreateBody) -> ExecConfig:
    """The body of POST /containers/{id}/exec. Raises InvalidArgument."""
    command = _words(body.Cmd)
    if not command:
        raise InvalidArgument("No exec command specified")
    _check_env(body.Env)
    return ExecConfig(
        command=command,
        tty=bool(body.Tty),
        attach_stdin=bool(body.AttachStdin),
        attach_stdout=bool(body.AttachStdout),
        attach_stderr=bool(body.AttachStderr),
        detach_keys=body.DetachKeys or "",
        env=tuple(body.Env or ()),
        working_dir=body.WorkingDir or "",
        user=body.User or "",
        privileged=bool(body.Privileged),
    )


def _words(value: list[str] | str | None) -> tuple[str, ...] | None:
    """A command: Docker accepts a single string for one word. Empty means: not given."""
    if value is None or value == []:
        return None
    words = (value,) if isinstance(value, str) else tuple(value)
    if any("\0" in word for word in words):
        raise InvalidArgument("invalid command: an argument contains a NUL byte", subject="Cmd")
    return words


def _entrypoint(value: list[str] | str | None) -> tuple[str, ...] | None:
    """`--entrypoint ""` arrives as [""] and resets the image's."""
    if value in ([""], ""):
        return ()
    return _words(value)


def _check_env(env: list[str] | None) -> None:
    for variable in env or ():
        if not variable or variable.startswith("=") or "\0" in variable:
            raise InvalidArgument(f"invalid environment variable: {variable}", subject="Env")


def _check_config(body: CreateBody) -> None:
    if not body.Image:
        raise InvalidArgument("invalid config: no image specified", subject="Image")
    if "\0" in body.Image:
        raise InvalidArgument("invalid reference format", subject="Image")
    _check_env(body.Env)
    if body.WorkingDir and not body.WorkingDir.startswith("/"):
        raise InvalidArgument(
            f"the working directory '{body.WorkingDir}' is invalid, it needs to be an absolute path"
        )
    hostname = body.Hostname or ""
    if hostname and (len(hostname) > 64 or not _HOSTNAME.fullmatch(hostname)):  # sethostname(2)
        raise InvalidArgument(f"invalid hostname: {hostname}", subject="Hostname")
    if any(c in (body.Domainname or "") for c in "\0\n/ "):
        raise InvalidArgument(f"invalid domainname: {body.Domainname!r}", subject="Domainname")
    if body.StopSignal:
        signals.number(body.StopSignal)
    if (body.StopTimeout or 0) < -1:
        raise InvalidArgument(f"invalid stop timeout: {body.StopTimeout}", subject="StopTimeout")
    for path in body.Volumes or ():
        if not path.startswith("/") or not path.strip("/"):
            raise InvalidArgument(f"invalid volume specification: '{path}'", subject="Volumes")


def _check_host(host: HostConfigBody) -> None:
    if host.StorageOpt:
        raise InvalidArgument(
            "--storage-opt is supported only for overlay over xfs with 'pquota' mount option",
            subject="HostConfig.StorageOpt",
        )
    if host.UsernsMode not in (None, "", "host"):
        raise InvalidArgument(f"invalid USER mode: {host.UsernsMode}", subject="HostConfig.UsernsMode")
    if host.Isolation not in (None, "", "default"):
        raise InvalidArgument(
            f"invalid isolation '{host.Isolation}' on linux", subject="HostConfig.Isolation"
        )
    for name, label, fixed, joins in (
        ("PidMode", "PID", ("host",), True),
        ("IpcMode", "IPC", ("host", "none", "private", "shareable"), True),
        ("UTSMode", "UTS", ("host",), False),
        ("CgroupnsMode", "cgroup namespace", ("host", "private"), False),
    ):
        mode = getattr(host, name) or ""
        if mode and mode not in fixed and not (joins and _joined(mode)):
            raise InvalidArgument(f"invalid {label} mode: {mode}", subject=f"HostConfig.{name}")
    if not -1000 <= (host.OomScoreAdj or 0) <= 1000:
        raise InvalidArgument(
            f"Invalid value {host.OomScoreAdj}, range for oom score adj is [-1000, 1000]",
            subject="HostConfig.OomScoreAdj",
        )
    if (host.ShmSize or 0) < 0:
        raise InvalidArgument("SHM size can not be less than 0", subject="HostConfig.ShmSize")
    for entry in host.ExtraHosts or ():
        if ":" not in entry or "\n" in entry or "\0" in entry:
            raise InvalidArgument(f"invalid extra host: {entry!r}", subject="HostConfig.ExtraHosts")


def _joined(mode: str) -> bool:
    """ "container:NAME"."""
    kind, _, name = mode.partition(":")
    return kind == "container" and bool(name)


def _health(body: HealthcheckBody | None) -> HealthCheck | None:
    if body is None:
        return None
    found = HealthCheck(
        tuple(body.Test or ()),
        body.Interval or 0,
        body.Timeout or 0,
        body.StartPeriod or 0,
        body.StartInterval or 0,
        body.Retries or 0,
    )
    return None if found == HealthCheck() else found


def _log_config(body: LogConfigBody | None) -> LogConfig:
    if body is None:
        return LogConfig()
    return LogConfig(body.Type or "json-file", body.Config or {})


def _network_mode(body: CreateBody, host: HostConfigBody) -> str:
    mode = host.NetworkMode or "default"
    if body.NetworkDisabled:
        mode = "none"
    if mode.startswith("container:") and not _joined(mode):
        raise InvalidArgument(f"invalid network mode: {mode}", subject="HostConfig.NetworkMode")
    return mode


def _networks(body: CreateBody, mode: str) -> tuple[Attachment, ...]:
    """NetworkingConfig, the mode's network first; () when it says nothing. The container's own MacAddress is
    that of its mode's endpoint."""
    networking = body.NetworkingConfig or NetworkingConfigBody()
    found = {
        "bridge" if name == "default" else name: endpoint or EndpointBody()
        for name, endpoint in (networking.EndpointsConfig or {}).items()
    }
    own = "bridge" if mode == "default" else mode
    if _joined(mode):
        return ()
    if body.MacAddress and own not in ("host", "none"):
        endpoint = found.setdefault(own, EndpointBody())
        if endpoint.MacAddress and endpoint.MacAddress != body.MacAddress:
            raise InvalidArgument(
                "the container-wide MAC address must match the endpoint-specific MAC address for the main "
                "network, or be left empty",
                subject="MacAddress",
            )
        endpoint.MacAddress = body.MacAddress
    if own in ("host", "none") and set(found) - {own}:
        if own == "none":
            raise InvalidArgument(
                "conflicting options: cannot attach a container to none and another network"
            )
        raise InvalidArgument(
            "conflicting options: cannot attach host network to a container with another network"
        )
    order = sorted(found, key=lambda name: name != own)
    where = "NetworkingConfig.EndpointsConfig"
    wishes = tuple(attachment(name, found[name], f"{where}.{name}.") for name in order)
    return () if wishes == (Attachment(own),) else wishes


def _links(host: HostConfigBody) -> tuple[str, ...]:
    for text in host.Links or ():
        links.parse(text)
    return tuple(host.Links or ())


def _check_network(body: CreateBody, host: HostConfigBody, mode: str, exposed: bool, published: bool) -> None:
    """Combinations that dockerd refuses (moby, runconfig/hostconfig_unix.go, validateNetMode)."""
    if host.UTSMode == "host" and body.Hostname:
        raise InvalidArgument("conflicting options: hostname and the UTS mode")
    if not _joined(mode):
        return
    for set_, what in (
        (body.Hostname, "hostname and the network mode"),
        (host.Dns, "dns and the network mode"),
        (host.ExtraHosts, "custom host-to-IP mapping and the network mode"),
        (published or host.PublishAllPorts, "port publishing and the container type network mode"),
        (exposed, "port exposing and the container type network mode"),
    ):
        if set_:
            raise InvalidArgument(f"conflicting options: {what}")
