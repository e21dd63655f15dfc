"""What the engine is asked and what it answers: plain data between the APIs and the engine.

`api/docker` decodes JSON into these and encodes them back; `api/cri` will translate protobuf.
Nothing here knows HTTP. Times are `int` nanoseconds since the epoch, 0 for "never"; sizes are bytes.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from nagaya.engine.pods_model import PodMember
from nagaya.network.design import IpamConfig
from nagaya.network.model import NetworkPlan

State = Literal["created", "running", "paused", "restarting", "removing", "exited", "dead"]


class PortBinding(msgspec.Struct, frozen=True):
    """One published port. host_port 0: choose one; with last_port: the first free one from host_port to
    that. host_ip "": all addresses."""

    container_port: int
    protocol: Literal["tcp", "udp", "sctp"] = "tcp"
    host_ip: str = ""
    host_port: int = 0
    last_port: int = 0


class MountSpec(msgspec.Struct, frozen=True):
    """A mount the user asked for. type bind: source is a host path; volume: a name, or "" for an
    anonymous one; tmpfs: no source, options as tmpfs(5); image: a reference (in a container's
    mount_points its id); tree: a directory of ours, with a subpath inside of it (a build's).

    listed: it came as one of Mounts, not of Binds. recursive_ro "": as far as the kernel can.
    labels, driver_options: of a volume that is made for it.
    """

    type: Literal["bind", "volume", "tmpfs", "image", "tree"]
    target: str
    source: str = ""
    read_only: bool = False
    propagation: str = ""
    no_copy: bool = False
    create_source: bool = False
    options: tuple[str, ...] = ()
    listed: bool = False
    subpath: str = ""
    recursive: bool = True
    recursive_ro: Literal["", "no", "force"] = ""
    labels: dict[str, str] = {}
    driver: str = ""
    driver_options: dict[str, str] = {}


class Attachment(msgspec.Struct, frozen=True):
    """A container's wish to be in a network, by name or id; "" is for the network to choose."""

    network: str
    address: str = ""
    address6: str = ""
    mac: str = ""
    aliases: tuple[str, ...] = ()
    links: tuple[str, ...] = ()  # CONTAINER[:ALIAS]
    gateway_priority: int = 0
    driver_options: dict[str, str] = {}


class NetworkCreation(msgspec.Struct, frozen=True):
    """A network as it was asked for."""

    name: str
    driver: str = "bridge"
    internal: bool = False
    attachable: bool = False
    ipv6: bool = False
    ipv4: bool = True
    config_only: bool = False  # settings for others, that nobody can be in
    config_from: str = ""  # the name of one whose settings it has
    ipam_driver: str = "default"
    ipam_options: dict[str, str] | None = None
    ipam: tuple[IpamConfig, ...] = ()
    options: dict[str, str] = {}
    labels: dict[str, str] = {}


class Network(msgspec.Struct, frozen=True):
    """A network: as it was asked for, and as it is. plan None: host, none and settings for others."""

    id: str
    created: int
    asked: NetworkCreation
    plan: NetworkPlan | None = None

    @property
    def name(self) -> str:
        """Its name."""
        return self.asked.name


class RestartPolicy(msgspec.Struct, frozen=True):
    name: Literal["no", "always", "unless-stopped", "on-failure"] = "no"
    maximum_retry_count: int = 0


class DeviceLimit(msgspec.Struct, frozen=True):
    """A weight or a rate (bytes or operations a second) of one block device."""

    path: str
    value: int


class Resources(msgspec.Struct, frozen=True):
    """Limits in the kernel's units; 0 means unlimited, None for swappiness and oom means default."""

    memory: int = 0
    memory_swap: int = 0
    memory_reservation: int = 0
    memory_swappiness: int | None = None
    oom_kill_disable: bool = False
    nano_cpus: int = 0
    cpu_shares: int = 0
    cpu_period: int = 0
    cpu_quota: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    pids_limit: int = 0
    blkio_weight: int = 0
    blkio_weight_device: tuple[DeviceLimit, ...] = ()
    blkio_read_bps: tuple[DeviceLimit, ...] = ()
    blkio_write_bps: tuple[DeviceLimit, ...] = ()
    blkio_read_iops: tuple[DeviceLimit, ...] = ()
    blkio_write_iops: tuple[DeviceLimit, ...] = ()
    cpu_rt_period: int = 0
    cpu_rt_runtime: int = 0


class DeviceMapping(msgspec.Struct, frozen=True):
    host_path: str
    container_path: str
    permissions: str = "rwm"


class DeviceRequest(msgspec.Struct, frozen=True):
    """Devices by name or number (`--gpus`, CDI). count -1: all."""

    driver: str = ""
    count: int = 0
    ids: tuple[str, ...] = ()
    capabilities: tuple[tuple[str, ...], ...] = ()
    options: dict[str, str] = {}


class Ulimit(msgspec.Struct, frozen=True):
    name: str
    soft: int
    hard: int


class LogConfig(msgspec.Struct, frozen=True):
    driver: str = "json-file"
    options: dict[str, str] = {}


class HealthCheck(msgspec.Struct, frozen=True):
    """How to find out whether a container is well. test: ("NONE",), ("CMD", word...), ("CMD-SHELL", line);
    () is the image's. Durations are nanoseconds; 0: the default."""

    test: tuple[str, ...] = ()
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class ContainerConfig(msgspec.Struct, frozen=True):
    """Everything a container was created with: the user's wishes already merged with the image's
    defaults where a field says so. Stored as one JSON document in the ledger."""

    image: str  # the reference as the user wrote it
    command: tuple[str, ...] | None = None  # None: the image's
    entrypoint: tuple[str, ...] | None = None  # None: the image's; (): reset
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    hostname: str = ""
    domainname: str = ""
    labels: dict[str, str] = {}
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    stop_signal: str = ""
    stop_timeout: int | None = None
    exposed_ports: tuple[str, ...] = ()
    image_volumes: tuple[str, ...] = ()
    health: HealthCheck | None = None
    # host side
    mounts: tuple[MountSpec, ...] = ()
    ports: tuple[PortBinding, ...] = ()
    publish_all: bool = False
    network_mode: str = "default"  # default | bridge | none | host | container:ID | a network
    networks: tuple[Attachment, ...] = ()  # (): the one of network_mode
    links: tuple[str, ...] = ()  # of the default bridge: CONTAINER[:ALIAS]
    resources: Resources = Resources()
    restart: RestartPolicy = RestartPolicy()
    auto_remove: bool = False
    privileged: bool = False
    read_only_rootfs: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    security_opt: tuple[str, ...] = ()
    init: bool = False
    pid_mode: str = ""  # "" | host | container:ID
    ipc_mode: str = ""  # "" | private | shareable | host | none | container:ID
    uts_mode: str = ""
    cgroupns_mode: str = ""
    userns_mode: str = ""  # "" (the daemon's) | host
    cgroup_parent: str = ""
    runtime: str = ""
    log: LogConfig = LogConfig()
    devices: tuple[DeviceMapping, ...] = ()
    device_cgroup_rules: tuple[str, ...] = ()
    device_requests: tuple[DeviceRequest, ...] = ()
    volumes_from: tuple[str, ...] = ()  # CONTAINER[:ro|rw]
    volume_driver: str = ""  # of volumes that name none; only "local" makes any
    isolation: str = ""  # "default", of a client that says so
    ulimits: tuple[Ulimit, ...] = ()
    sysctls: dict[str, str] = {}
    tmpfs: dict[str, str] = {}
    shm_size: int = 67108864
    group_add: tuple[str, ...] = ()
    oom_score_adj: int = 0
    dns: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    extra_hosts: tuple[str, ...] = ()
    masked_paths: tuple[str, ...] | None = None  # None: the default list
    readonly_paths: tuple[str, ...] | None = None
    annotations: dict[str, str] = {}
    build: bool = False  # a step of a build, which ends with the daemon
    pod: PodMember | None = None  # a kubelet's container: Docker's API does not show it


class CreateRequest(msgspec.Struct, frozen=True):
    config: ContainerConfig
    name: str = ""  # "": invent one (adjective_noun)
    platform: str = ""
    inherited: tuple[MountSpec, ...] = ()  # mount points that volumes_from names; the engine fills it in


class Created(msgspec.Struct, frozen=True):
    id: str
    warnings: tuple[str, ...] = ()


class Endpoint(msgspec.Struct, frozen=True):
    """A container's place in a network."""

    network: str  # name
    network_id: str = ""
    endpoint_id: str = ""
    address: str = ""  # dotted IPv4
    prefix: int = 0
    gateway: str = ""
    mac: str = ""
    host_interface: str = ""
    ports: tuple[PortBinding, ...] = ()  # with the host ports really chosen
    address6: str = ""
    prefix6: int = 0
    gateway6: str = ""


class Step(msgspec.Struct, frozen=True):
    """One step of a container's start, for `explain`. room: which floor did it ("engine", "network",
    "builder", "init"...). start_ns: CLOCK_MONOTONIC nanoseconds."""

    room: str
    name: str
    detail: str
    start_ns: int
    duration_ns: int


class Probe(msgspec.Struct, frozen=True):
    """One run of a health check. exit_code -1: it did not come to its end."""

    start: int
    end: int
    exit_code: int
    output: str


class Health(msgspec.Struct, frozen=True):
    """What the health checks of a container have said so far; log: the last ones, oldest first."""

    status: Literal["starting", "healthy", "unhealthy"] = "starting"
    failing_streak: int = 0
    log: tuple[Probe, ...] = ()


class Container(msgspec.Struct):
    """What the engine knows of a container. The engine owns and changes it; APIs only read."""

    id: str
    name: str  # without the leading slash
    config: ContainerConfig
    image_digest: str = ""  # image id: digest of the image's config
    created: int = 0
    state: State = "created"
    pid: int = 0
    exit_code: int = 0
    error: str = ""
    oom_killed: bool = False
    started: int = 0
    finished: int = 0
    restart_count: int = 0
    has_been_manually_stopped: bool = False
    path: str = ""  # resolved argv[0]
    args: tuple[str, ...] = ()  # resolved argv[1:]
    networks: tuple[Attachment, ...] | None = None  # where it belongs; None: as its config says
    endpoints: tuple[Endpoint, ...] = ()
    log_path: str = ""
    hostname: str = ""
    env: tuple[str, ...] = ()  # resolved: image's and user's
    working_dir: str = ""
    user: str = ""
    labels: dict[str, str] = {}  # resolved
    stop_signal: str = ""
    trace: tuple[Step, ...] = ()
    health: Health | None = None  # None: it has no health check
    mount_points: tuple[MountSpec, ...] = ()  # resolved: anonymous volumes named, the image's included


class ExecConfig(msgspec.Struct, frozen=True):
    command: tuple[str, ...]
    tty: bool = False
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    detach_keys: str = ""
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    privileged: bool = False


class Exec(msgspec.Struct):
    """One exec session of a container. exit_code None: not finished."""

    id: str
    container_id: str
    config: ExecConfig
    running: bool = False
    exit_code: int | None = None
    pid: int = 0


class AttachRequest(msgspec.Struct, frozen=True):
    """stream False and logs True: replay only. preface: bytes of stdin that came with the HTTP request.
    frames False: both streams as they are, also without a terminal."""

    stdin: bool = False
    stdout: bool = True
    stderr: bool = True
    stream: bool = True
    logs: bool = False
    detach_keys: str = ""
    preface: bytes = b""
    frames: bool = True


class WaitResult(msgspec.Struct, frozen=True):
    exit_code: int
    error: str = ""


class Event(msgspec.Struct, frozen=True):
    """type: container | image | network | volume | daemon; attributes as dockerd's Actor.Attributes."""

    type: str
    action: str
    id: str
    attributes: dict[str, str]
    time_ns: int


class RegistryAuth(msgspec.Struct, frozen=True):
    """Credentials of one request (X-Registry-Auth): a password or an identity token."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""


class PullProgress(msgspec.Struct, frozen=True):
    """One progress report. layer: short id, "" for the image as a whole. status is Docker's words:
    "Pulling fs layer", "Downloading", "Verifying Checksum", "Download complete", "Extracting",
    "Pull complete", "Already exists". Instead of a status: stream, text for people with its line end, or
    aux, a document for programs."""

    status: str
    layer: str = ""
    current: int = 0
    total: int = 0
    stream: str = ""
    aux: dict[str, object] | None = None


class ImageSummary(msgspec.Struct, frozen=True):
    """An image as the APIs list and inspect it. id: digest of its config ("sha256:...")."""

    id: str
    tags: tuple[str, ...]  # familiar names, "busybox:latest"
    digests: tuple[str, ...]  # "busybox@sha256:..."
    created: int
    size: int
    os: str
    architecture: str
    variant: str
    config: dict[str, object]  # the image config document, whole
    layers: tuple[str, ...]  # diff ids
    parent: str = ""
    containers: int = 0


class VolumeSummary(msgspec.Struct, frozen=True):
    """A volume as the APIs list it. path: where its files are on the host."""

    name: str
    created: int
    path: str
    anonymous: bool
    labels: dict[str, str] = {}
    options: dict[str, str] = {}


class Finding(msgspec.Struct, frozen=True):
    """A difference between ledger and host (checking.py). note: why its repair failed."""

    kind: str
    subject: str
    problem: str
    repairable: bool
    repaired: bool = False
    note: str = ""


class LogLine(msgspec.Struct, frozen=True):
    stream: Literal["stdout", "stderr"]
    time_ns: int
    data: bytes
    attributes: dict[str, str] = {}
