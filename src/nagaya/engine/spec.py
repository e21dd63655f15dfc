"""The OCI config.json of a container: a pure function of what it was created with and where it runs.

The result is what dockerd would hand to runc for the same `docker run` (golden tests:
tests/unit/test_engine_spec.py). Everything that must be looked up on the host or in the image
(users, devices, volume directories, held capabilities) is done before, by launch.py, and comes in
as `Surroundings`. Source: runtime-spec 1.0.2 config.md, config-linux.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nagaya.engine import limits, merge, privileges, spec_mounts
from nagaya.engine.model import Container, ContainerConfig, ExecConfig, MountSpec
from nagaya.engine.user import Identity

Spec = dict[str, Any]

INIT_PATH = "/sbin/docker-init"


class Device(NamedTuple):
    """A device node of the host, as stat(2) shows it, and where the container sees it."""

    path: str
    type: str  # "c" or "b"
    major: int
    minor: int
    mode: int
    uid: int
    gid: int
    permissions: str = "rwm"


class Surroundings(NamedTuple):
    """What the container meets on this host.

    join: namespaces joined by path ({"network": "/run/.../net", "pid": "/proc/1/ns/pid"}).
    share: namespaces not made at all because they are the host's. seccomp: the runtime-spec's
    linux.seccomp, None for unconfined. told: variables from links. files: target -> host path of
    resolv.conf, hostname, hosts.
    """

    identity: Identity
    root: str
    hostname: str
    capabilities: Sequence[str]
    seccomp: dict[str, Any] | None
    masked: Sequence[str]
    readonly: Sequence[str]
    mounts: Sequence[MountSpec]
    files: Mapping[str, str]
    devices: Sequence[Device] = ()
    device_rules: Sequence[dict[str, Any]] = ()
    block_io: Mapping[str, Any] = {}
    apparmor: str = ""
    join: Mapping[str, str] = {}
    share: frozenset[str] = frozenset()
    shm_source: str = ""
    init: str = ""
    cgroups_path: str = ""
    domainname: str = ""
    default_sysctls: Mapping[str, str] = {}
    default_ulimits: Sequence[dict[str, Any]] = ()
    recursive_ro: bool = True
    told: Sequence[str] = ()


def compose(container: Container, around: Surroundings) -> Spec:
    """The whole config.json. Raises InvalidArgument that names the field at fault."""
    config = container.config
    user = spec_mounts.of_user(
        around.mounts,
        config.tmpfs,
        around.files,
        read_only_files=config.read_only_rootfs,
        recursive_ro=around.recursive_ro,
    )
    if around.init:
        user.insert(
            0,
            {
                "destination": INIT_PATH,
                "type": "bind",
                "source": around.init,
                "options": ["bind", "ro"],
            },
        )
    security = privileges.security_options(config.security_opt, privileged=config.privileged)
    base = spec_mounts.base(
        shm_size=config.shm_size,
        shm_source=around.shm_source,
        privileged=config.privileged,
        ipc_none=config.ipc_mode == "none",
        writable_cgroups=security.writable_cgroups,
    )
    spec: Spec = {
        "ociVersion": "1.0.2",
        "process": _process(container, around),
        "root": {"path": around.root, "readonly": config.read_only_rootfs},
        "mounts": spec_mounts.assemble(base, user, read_only_root=config.read_only_rootfs),
        "linux": _linux(config, around),
    }
    if "uts" not in around.share and "uts" not in around.join:
        spec["hostname"] = around.hostname
        if around.domainname:
            spec["domainname"] = around.domainname
    if config.annotations:
        spec["annotations"] = dict(config.annotations)
    return spec


def _process(container: Container, around: Surroundings) -> dict[str, Any]:
    config = container.config
    arguments = [container.path, *container.args]
    if around.init:
        arguments = [INIT_PATH, "--", *arguments]
    who = around.identity
    security = privileges.security_options(config.security_opt, privileged=config.privileged)
    limits_ = privileges.rlimits(config.ulimits)
    named = {limit["type"] for limit in limits_}
    limits_ += [limit for limit in around.default_ulimits if limit["type"] not in named]
    process: dict[str, Any] = {
        "user": _user(who),
        "args": arguments,
        "env": list(
            merge.environment(
                config.env, hostname=around.hostname, tty=config.tty, home=who.home, base=around.told
            )
        ),
        "cwd": config.working_dir or "/",
        "capabilities": _capabilities(around.capabilities, who.uid),
        "oomScoreAdj": config.oom_score_adj,
        "noNewPrivileges": security.no_new_privileges,
    }
    if around.apparmor:
        process["apparmorProfile"] = around.apparmor
    if config.tty:
        process["terminal"] = True
    if limits_:
        process["rlimits"] = limits_
    return process


def _user(who: Identity) -> dict[str, Any]:
    return {"uid": who.uid, "gid": who.gid, "additionalGids": list(who.groups)}


def _capabilities(names: Sequence[str], uid: int) -> dict[str, list[str]]:
    """Inheritable and ambient stay empty (CVE-2022-24769); another user than root gets what a
    program file may raise, and nothing in effect, as execve(2) would leave it."""
    bounding = list(names)
    if uid != 0:
        return {"bounding": bounding}
    return {"bounding": bounding, "effective": bounding, "permitted": bounding}


def _linux(config: ContainerConfig, around: Surroundings) -> dict[str, Any]:
    kinds = ("mount", "network", "uts", "pid", "ipc", "cgroup")
    namespaces = []
    for kind in kinds:
        if kind in around.share:
            continue
        path = around.join.get(kind, "")
        namespaces.append({"type": kind, "path": path} if path else {"type": kind})
    host_network, host_ipc = "network" in around.share, "ipc" in around.share
    resources = limits.to_oci(config.resources)
    resources["devices"] = list(around.device_rules)
    if around.block_io:
        resources["blockIO"] = {**resources.get("blockIO", {}), **around.block_io}
    linux: dict[str, Any] = {
        "sysctl": {
            **({} if host_network else around.default_sysctls),
            **privileges.sysctls(config.sysctls, host_network=host_network, host_ipc=host_ipc),
        },
        "resources": resources,
        "cgroupsPath": around.cgroups_path,
        "namespaces": namespaces,
        "maskedPaths": list(around.masked),
        "readonlyPaths": list(around.readonly),
    }
    if around.devices:
        linux["devices"] = [
            {
                "path": d.path,
                "type": d.type,
                "major": d.major,
                "minor": d.minor,
                "fileMode": d.mode,
                "uid": d.uid,
                "gid": d.gid,
            }
            for d in around.devices
        ]
    if around.seccomp is not None:
        linux["seccomp"] = around.seccomp
    if any(m.propagation in ("shared", "rshared") for m in around.mounts):
        linux["rootfsPropagation"] = "shared"
    elif any(m.propagation in ("slave", "rslave") for m in around.mounts):
        linux["rootfsPropagation"] = "slave"
    return linux


def exec_process(
    container: Container,
    config: ExecConfig,
    who: Identity,
    *,
    told: Sequence[str] = (),
    capabilities: Sequence[str],
    apparmor: str = "",
) -> dict[str, Any]:
    """The `process` of an exec session: the container's environment and directory unless named."""
    process: dict[str, Any] = {
        "user": _user(who),
        "args": list(config.command),
        "env": list(
            merge.environment(
                config.env,
                hostname=container.hostname,
                tty=config.tty,
                home=who.home,
                base=(*told, *container.config.env),
            )
        ),
        "cwd": config.working_dir or container.config.working_dir or "/",
        "capabilities": _capabilities(capabilities, who.uid),
        "noNewPrivileges": privileges.security_options(
            container.config.security_opt, privileged=container.config.privileged
        ).no_new_privileges,
        "oomScoreAdj": container.config.oom_score_adj,
    }
    if apparmor:
        process["apparmorProfile"] = apparmor
    if config.tty:
        process["terminal"] = True
    rlimits = privileges.rlimits(container.config.ulimits)
    if rlimits:
        process["rlimits"] = rlimits
    return process
