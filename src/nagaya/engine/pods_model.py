"""What pods and their containers are made of, in the words of the Container Runtime Interface.

The fields are called as in api/cri/runtime.proto, and `api.cri` only copies them: a kubelet gets back
what it gave. Nothing here knows gRPC. Absent numbers are 0, absent texts "".
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

NamespaceMode = Literal["POD", "CONTAINER", "NODE", "TARGET"]


class Struct(msgspec.Struct, frozen=True, omit_defaults=True):
    """What all of them are."""


class PodMetadata(Struct, frozen=True):
    name: str = ""
    uid: str = ""
    namespace: str = ""
    attempt: int = 0


class DNSConfig(Struct, frozen=True):
    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class PortMapping(Struct, frozen=True):
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"
    container_port: int = 0
    host_port: int = 0
    host_ip: str = ""


class IDMapping(Struct, frozen=True):
    host_id: int = 0
    container_id: int = 0
    length: int = 0


class UserNamespace(Struct, frozen=True):
    mode: NamespaceMode = "POD"
    uids: tuple[IDMapping, ...] = ()
    gids: tuple[IDMapping, ...] = ()


class NamespaceOption(Struct, frozen=True):
    network: NamespaceMode = "POD"
    pid: NamespaceMode = "POD"
    ipc: NamespaceMode = "POD"
    target_id: str = ""
    userns_options: UserNamespace | None = None


class Int64Value(Struct, frozen=True):
    value: int = 0


class SecurityProfile(Struct, frozen=True):
    profile_type: Literal["RuntimeDefault", "Unconfined", "Localhost"] = "RuntimeDefault"
    localhost_ref: str = ""


class SELinuxOption(Struct, frozen=True):
    user: str = ""
    role: str = ""
    type: str = ""
    level: str = ""


class HugepageLimit(Struct, frozen=True):
    page_size: str = ""
    limit: int = 0


class LinuxResources(Struct, frozen=True):
    """0 means "not said"; -1 of memory and quota "unlimited"."""

    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_shares: int = 0
    memory_limit_in_bytes: int = 0
    oom_score_adj: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    hugepage_limits: tuple[HugepageLimit, ...] = ()
    unified: dict[str, str] = {}
    memory_swap_limit_in_bytes: int = 0


class PodSecurity(Struct, frozen=True):
    namespace_options: NamespaceOption = NamespaceOption()
    selinux_options: SELinuxOption | None = None
    run_as_user: Int64Value | None = None
    run_as_group: Int64Value | None = None
    readonly_rootfs: bool = False
    supplemental_groups: tuple[int, ...] = ()
    supplemental_groups_policy: Literal["Merge", "Strict"] = "Merge"
    privileged: bool = False
    seccomp: SecurityProfile | None = None
    apparmor: SecurityProfile | None = None
    seccomp_profile_path: str = ""


class LinuxPod(Struct, frozen=True):
    cgroup_parent: str = ""
    security_context: PodSecurity = PodSecurity()
    sysctls: dict[str, str] = {}
    overhead: LinuxResources | None = None
    resources: LinuxResources | None = None


class PodConfig(Struct, frozen=True):
    """What a pod was made with (PodSandboxConfig)."""

    metadata: PodMetadata = PodMetadata()
    hostname: str = ""
    log_directory: str = ""
    dns_config: DNSConfig | None = None
    port_mappings: tuple[PortMapping, ...] = ()
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    linux: LinuxPod = LinuxPod()

    @property
    def namespaces(self) -> NamespaceOption:
        """Which namespaces are the pod's, which the node's."""
        return self.linux.security_context.namespace_options


class Pod(msgspec.Struct):
    """What the engine knows of a pod. The engine owns and changes it; APIs only read."""

    id: str
    config: PodConfig
    runtime_handler: str = ""
    created: int = 0
    ready: bool = False
    addresses: tuple[str, ...] = ()
    connected: bool = False  # is there a network to be taken down?
    cni: bytes = b""  # the configuration list it was connected by; b"" for the built-in bridge
    cni_result: bytes = b""


class ContainerMetadata(Struct, frozen=True):
    name: str = ""
    attempt: int = 0


class ImageSpec(Struct, frozen=True):
    image: str = ""
    annotations: dict[str, str] = {}
    user_specified_image: str = ""
    runtime_handler: str = ""
    image_ref: str = ""


class KeyValue(Struct, frozen=True):
    key: str = ""
    value: bytes = b""


class Mount(Struct, frozen=True):
    container_path: str = ""
    host_path: str = ""
    readonly: bool = False
    selinux_relabel: bool = False
    propagation: Literal[
        "PROPAGATION_PRIVATE", "PROPAGATION_HOST_TO_CONTAINER", "PROPAGATION_BIDIRECTIONAL"
    ] = "PROPAGATION_PRIVATE"
    uidMappings: tuple[IDMapping, ...] = ()
    gidMappings: tuple[IDMapping, ...] = ()
    recursive_read_only: bool = False
    image: ImageSpec | None = None
    image_sub_path: str = ""
    mount_options: tuple[str, ...] = ()


class Device(Struct, frozen=True):
    container_path: str = ""
    host_path: str = ""
    permissions: str = ""


class CDIDevice(Struct, frozen=True):
    name: str = ""


class Capability(Struct, frozen=True):
    add_capabilities: tuple[str, ...] = ()
    drop_capabilities: tuple[str, ...] = ()
    add_ambient_capabilities: tuple[str, ...] = ()


class ContainerSecurity(Struct, frozen=True):
    capabilities: Capability = Capability()
    privileged: bool = False
    namespace_options: NamespaceOption = NamespaceOption()
    selinux_options: SELinuxOption | None = None
    run_as_user: Int64Value | None = None
    run_as_group: Int64Value | None = None
    run_as_username: str = ""
    readonly_rootfs: bool = False
    supplemental_groups: tuple[int, ...] = ()
    supplemental_groups_policy: Literal["Merge", "Strict"] = "Merge"
    no_new_privs: bool = False
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    seccomp: SecurityProfile | None = None
    apparmor: SecurityProfile | None = None
    apparmor_profile: str = ""
    seccomp_profile_path: str = ""


class LinuxContainer(Struct, frozen=True):
    resources: LinuxResources = LinuxResources()
    security_context: ContainerSecurity = ContainerSecurity()


class PodContainerConfig(Struct, frozen=True):
    """What a container of a pod was made with (ContainerConfig)."""

    metadata: ContainerMetadata = ContainerMetadata()
    image: ImageSpec = ImageSpec()
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    envs: tuple[KeyValue, ...] = ()
    mounts: tuple[Mount, ...] = ()
    devices: tuple[Device, ...] = ()
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    log_path: str = ""
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False
    linux: LinuxContainer = LinuxContainer()
    CDI_devices: tuple[CDIDevice, ...] = ()
    stop_signal: str = "SIGNAL_RUNTIME_DEFAULT"

    @property
    def security(self) -> ContainerSecurity:
        """What its processes may do."""
        return self.linux.security_context


class PodMember(msgspec.Struct, frozen=True):
    """A container's place in a pod. log_path: the whole path, "" for no log. user: who its first
    process is, as (uid, gid, supplementary groups). adjustment: what plugins changed (pods_plugins.py).
    image: (a name that people know it by, a digest of its registry where there is one, else its id).
    images: criu's directory, of which its start makes it; "" of a new one."""

    pod_id: str
    config: PodContainerConfig
    log_path: str = ""
    user: tuple[int, int, tuple[int, ...]] = (0, 0, ())
    adjustment: dict[str, Any] = {}
    image: tuple[str, str] = ("", "")
    images: str = ""
