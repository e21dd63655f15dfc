"""The field names and types of every answer, against a table of our own, made from the published API.

A field that the table does not know fails, as does one that is missing, or of another type: what a
client's decoder depends on does not change unseen. Every route that is served is in the table, or named
as one that answers with no JSON.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pytest
from house import House, wait_for
from images import Registry
from rawhttp import call

from nagaya.api.docker import swarm, unserved
from nagaya.api.docker.server import _ROUTES

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"


class Maybe(NamedTuple):
    """The kind, or null."""

    kind: Any


class Dict(NamedTuple):
    """An object with any names, whose values are of one kind."""

    kind: Any


class Fields(NamedTuple):
    """An object with these fields; optional ones may be absent."""

    fields: Mapping[str, Any]
    optional: frozenset[str]


def fields(*, optional: str = "", more: Mapping[str, Any] | None = None, **named: Any) -> Fields:
    """Fields by kind: str="A B", int="C", strings="E" (a list of them, or null); others one by one."""
    kinds = {
        "str": str,
        "int": int,
        "bool": bool,
        "strings": Maybe([str]),
        "texts": Maybe(Dict(str)),
        "any": object,
    }
    found: dict[str, Any] = dict(more or {})
    for word, value in named.items():
        if word in kinds and isinstance(value, str):
            found |= dict.fromkeys(value.split(), kinds[word])
        else:
            found[word] = value
    return Fields(found, frozenset(optional.split()))


def wrong(value: Any, kind: Any, path: str) -> Iterator[str]:
    """Where the value is not of the kind."""
    if kind is object:
        return
    if isinstance(kind, Maybe):
        if value is not None:
            yield from wrong(value, kind.kind, path)
    elif isinstance(kind, Fields):
        if not isinstance(value, dict):
            yield f"{path}: {type(value).__name__}, not an object"
            return
        yield from (f"{path}.{n}: not in the table" for n in value.keys() - kind.fields.keys())
        yield from (f"{path}.{n}: missing" for n in kind.fields.keys() - value.keys() - kind.optional)
        for name, inner in kind.fields.items():
            if name in value:
                yield from wrong(value[name], inner, f"{path}.{name}")
    elif isinstance(kind, Dict):
        if not isinstance(value, dict):
            yield f"{path}: {type(value).__name__}, not an object"
            return
        for name, item in value.items():
            yield from wrong(item, kind.kind, f"{path}[{name}]")
    elif isinstance(kind, list):
        if not isinstance(value, list):
            yield f"{path}: {type(value).__name__}, not a list"
            return
        for item in value:
            yield from wrong(item, kind[0], f"{path}[]")
    elif type(value) is not kind and not (kind is float and type(value) is int):
        yield f"{path}: {type(value).__name__}, not {kind.__name__}"


PORT = fields(str="HostIp HostPort")
ENDPOINT = fields(
    str="MacAddress NetworkID EndpointID Gateway IPAddress IPv6Gateway GlobalIPv6Address",
    int="GwPriority IPPrefixLen GlobalIPv6PrefixLen",
    strings="Links Aliases DNSNames",
    texts="DriverOpts",
    IPAMConfig=Maybe(
        fields(
            str="IPv4Address IPv6Address",
            strings="LinkLocalIPs",
            optional="IPv4Address IPv6Address LinkLocalIPs",
        )
    ),
)
MOUNT = fields(
    str="Type Name Source Driver Destination Mode Propagation", bool="RW", optional="Name Driver Source"
)
HEALTHCHECK = fields(
    strings="Test", int="Interval Timeout StartPeriod StartInterval Retries",
    optional="Test Interval Timeout StartPeriod StartInterval Retries",
)  # fmt: skip
CONFIG = fields(
    str="Hostname Domainname User Image WorkingDir StopSignal MacAddress",
    bool="AttachStdin AttachStdout AttachStderr Tty OpenStdin StdinOnce ArgsEscaped NetworkDisabled",
    strings="Env Cmd Entrypoint OnBuild Shell",
    texts="Labels",
    int="StopTimeout",
    Volumes=Maybe(Dict(fields())),
    ExposedPorts=Dict(fields()),
    Healthcheck=HEALTHCHECK,
    optional="ExposedPorts Healthcheck StopSignal StopTimeout MacAddress Shell ArgsEscaped NetworkDisabled",
)
WEIGHT = fields(str="Path", int="Weight")
RATE = fields(str="Path", int="Rate")
HOST_CONFIG = fields(
    str="ContainerIDFile NetworkMode VolumeDriver CgroupnsMode IpcMode Cgroup PidMode UTSMode "
    "UsernsMode Runtime "
    "Isolation CgroupParent CpusetCpus CpusetMems",
    int="OomScoreAdj ShmSize CpuShares Memory NanoCpus BlkioWeight CpuPeriod CpuQuota CpuRealtimePeriod "
    "CpuRealtimeRuntime MemoryReservation MemorySwap CpuCount CpuPercent IOMaximumIOps IOMaximumBandwidth",
    bool="AutoRemove Privileged PublishAllPorts ReadonlyRootfs Init",
    strings="Binds VolumesFrom CapAdd CapDrop Dns DnsOptions DnsSearch ExtraHosts GroupAdd Links SecurityOpt "
    "DeviceCgroupRules MaskedPaths ReadonlyPaths",
    texts="Sysctls Tmpfs StorageOpt Annotations",
    LogConfig=fields(str="Type", Config=Maybe(Dict(str))),
    PortBindings=Maybe(Dict(Maybe([PORT]))),
    RestartPolicy=fields(str="Name", int="MaximumRetryCount"),
    ConsoleSize=[int],
    BlkioWeightDevice=Maybe([WEIGHT]),
    BlkioDeviceReadBps=Maybe([RATE]),
    BlkioDeviceWriteBps=Maybe([RATE]),
    BlkioDeviceReadIOps=Maybe([RATE]),
    BlkioDeviceWriteIOps=Maybe([RATE]),
    Devices=Maybe([fields(str="PathOnHost PathInContainer CgroupPermissions")]),
    DeviceRequests=Maybe([fields(str="Driver", int="Count", strings="DeviceIDs", texts="Options",
                                 Capabilities=Maybe([[str]]))]),
    MemorySwappiness=Maybe(int),
    OomKillDisable=Maybe(bool),
    PidsLimit=Maybe(int),
    Ulimits=Maybe([fields(str="Name", int="Hard Soft")]),
    Mounts=[object],
    optional="Init Sysctls Tmpfs StorageOpt Annotations Mounts",
)  # fmt: skip
HEALTH = fields(
    str="Status",
    int="FailingStreak",
    Log=Maybe([fields(str="Start End Output", int="ExitCode")]),
)
STATE = fields(
    str="Status Error StartedAt FinishedAt",
    bool="Running Paused Restarting OOMKilled Dead",
    int="Pid ExitCode",
    Health=HEALTH,
    optional="Health",
)
DRIVER = fields(str="Name", texts="Data")
CONTAINER = fields(
    str="Id Created Path Image ResolvConfPath HostnamePath HostsPath LogPath Name Driver Platform MountLabel "
    "ProcessLabel AppArmorProfile",
    int="RestartCount SizeRw SizeRootFs",
    strings="Args ExecIDs",
    State=STATE,
    HostConfig=HOST_CONFIG,
    GraphDriver=DRIVER,
    Mounts=[MOUNT],
    Config=CONFIG,
    NetworkSettings=fields(
        str="Bridge SandboxID SandboxKey LinkLocalIPv6Address EndpointID Gateway GlobalIPv6Address IPAddress "
        "IPv6Gateway MacAddress",
        int="LinkLocalIPv6PrefixLen GlobalIPv6PrefixLen IPPrefixLen",
        bool="HairpinMode",
        any="SecondaryIPAddresses SecondaryIPv6Addresses",
        Ports=Dict(Maybe([PORT])),
        Networks=Dict(ENDPOINT),
    ),
    optional="SizeRw SizeRootFs",
)
LISTED = fields(
    str="Id Image ImageID Command State Status",
    int="Created SizeRw SizeRootFs",
    strings="Names",
    texts="Labels",
    Ports=[fields(str="IP Type", int="PrivatePort PublicPort", optional="IP PublicPort")],
    HostConfig=fields(str="NetworkMode", texts="Annotations", optional="Annotations"),
    NetworkSettings=fields(Networks=Dict(ENDPOINT)),
    Mounts=[MOUNT],
    optional="SizeRw SizeRootFs",
)
IMAGE_LISTED = fields(
    str="Id ParentId", int="Containers Created SharedSize Size VirtualSize", texts="Labels",
    strings="RepoDigests RepoTags", optional="VirtualSize",
)  # fmt: skip
IMAGE_SHOWN = fields(
    str="Id Parent Comment Created DockerVersion Author Architecture Variant Os",
    int="Size VirtualSize",
    strings="RepoTags RepoDigests",
    Config=Maybe(CONFIG),
    GraphDriver=DRIVER,
    RootFS=fields(str="Type", strings="Layers"),
    Metadata=fields(str="LastTagTime"),
    optional="VirtualSize Variant",
)
VOLUME = fields(
    str="CreatedAt Driver Mountpoint Name Scope", texts="Labels Options",
    UsageData=fields(int="Size RefCount"), optional="UsageData",
)  # fmt: skip
NETWORK = fields(
    str="Name Id Created Scope Driver",
    bool="EnableIPv4 EnableIPv6 Internal Attachable Ingress ConfigOnly",
    texts="Options Labels",
    IPAM=fields(
        str="Driver", texts="Options",
        Config=Maybe([fields(str="Subnet Gateway IPRange", AuxiliaryAddresses=Dict(str),
                             optional="Gateway IPRange AuxiliaryAddresses")]),
    ),
    ConfigFrom=fields(str="Network"),
    Containers=Dict(fields(str="Name EndpointID MacAddress IPv4Address IPv6Address")),
    optional="Containers",
)  # fmt: skip
COMMIT = fields(str="ID")
INFO = fields(
    str="ID Driver SystemTime LoggingDriver CgroupDriver CgroupVersion KernelVersion "
    "OperatingSystem OSVersion OSType "
    "Architecture IndexServerAddress DockerRootDir HttpProxy HttpsProxy NoProxy Name ServerVersion "
    "DefaultRuntime "
    "Isolation InitBinary",
    int="Containers ContainersRunning ContainersPaused ContainersStopped Images NFd NGoroutines "
    "NEventsListener NCPU "
    "MemTotal",
    bool="MemoryLimit SwapLimit CpuCfsPeriod CpuCfsQuota CPUShares CPUSet PidsLimit IPv4Forwarding "
    "Debug OomKillDisable "
    "ExperimentalBuild LiveRestoreEnabled",
    strings="Labels SecurityOptions CDISpecDirs Warnings",
    any="GenericResources",
    DriverStatus=[[str]],
    Plugins=fields(strings="Volume Network Authorization Log"),
    RegistryConfig=fields(
        strings="InsecureRegistryCIDRs Mirrors",
        IndexConfigs=Dict(fields(str="Name", strings="Mirrors", bool="Secure Official")),
    ),
    Runtimes=Dict(fields(str="path", strings="runtimeArgs", optional="runtimeArgs")),
    Swarm=fields(str="NodeID NodeAddr LocalNodeState Error", bool="ControlAvailable", any="RemoteManagers"),
    FirewallBackend=fields(str="Driver"),
    DiscoveredDevices=[fields(str="Source ID")],
    DefaultAddressPools=[fields(str="Base", int="Size")],
    optional="DefaultAddressPools",
    ContainerdCommit=COMMIT,
    RuncCommit=COMMIT,
    InitCommit=COMMIT,
)
USAGE = fields(
    int="total_usage usage_in_kernelmode usage_in_usermode",
    percpu_usage=Maybe([int]),
    optional="percpu_usage",
)
CPU = fields(
    int="system_cpu_usage online_cpus",
    cpu_usage=USAGE,
    throttling_data=fields(int="periods throttled_periods throttled_time"),
    optional="system_cpu_usage online_cpus",
)
STATS = fields(
    str="id name read preread os_type",
    int="num_procs",
    any="storage_stats",
    pids_stats=fields(int="current limit", optional="current limit"),
    blkio_stats=Dict(Maybe([fields(int="major minor value", str="op")])),
    cpu_stats=CPU,
    precpu_stats=CPU,
    memory_stats=fields(
        int="usage max_usage limit failcnt", stats=Dict(int), optional="usage max_usage limit failcnt stats"
    ),
    networks=Dict(
        fields(
            int=" ".join(f"{w}_{k}" for w in ("rx", "tx") for k in ("bytes", "packets", "errors", "dropped"))
        )
    ),
    optional="networks os_type",
)
EVENT = fields(
    str="Type Action scope status id", int="time timeNano", more={"from": str},
    Actor=fields(str="ID", texts="Attributes"), optional="status id from",
)  # fmt: skip
FINDINGS = fields(Findings=[fields(str="Kind Subject Problem Note", bool="Repairable Repaired")])
STEPS = fields(str="Id Name", Steps=[fields(str="Room Name Detail", int="StartNs DurationNs")])

# (method, pattern) -> the kind of its answer, and of each line where it is a stream of them
TABLE: dict[tuple[str, str], Any] = {
    ("GET", "/version"): fields(
        str="Version ApiVersion MinAPIVersion GitCommit GoVersion Os Arch KernelVersion BuildTime",
        Platform=fields(str="Name"),
        Components=[fields(str="Name Version", texts="Details")],
    ),
    ("GET", "/info"): INFO,
    ("GET", "/events"): EVENT,
    ("GET", "/system/df"): fields(
        int="LayersSize",
        Images=[IMAGE_LISTED],
        Containers=[LISTED],
        Volumes=[VOLUME],
        BuildCache=[
            fields(
                str="ID Type Description CreatedAt LastUsedAt",
                strings="Parents",
                bool="InUse Shared",
                int="Size UsageCount",
            )
        ],
    ),
    ("POST", "/build/prune"): fields(int="SpaceReclaimed", strings="CachesDeleted"),
    ("GET", "/nagaya/check"): FINDINGS,
    ("POST", "/nagaya/check"): FINDINGS,
    ("POST", "/containers/create"): fields(str="Id", strings="Warnings"),
    ("GET", "/containers/json"): [LISTED],
    ("POST", "/containers/prune"): fields(int="SpaceReclaimed", strings="ContainersDeleted"),
    ("GET", "/containers/{id}/json"): CONTAINER,
    ("POST", "/containers/{id}/update"): fields(strings="Warnings"),
    ("GET", "/containers/{id}/top"): fields(strings="Titles", Processes=[[str]]),
    ("GET", "/nagaya/containers/{id}/steps"): STEPS,
    ("POST", "/containers/{id}/wait"): fields(
        int="StatusCode", Error=Maybe(fields(str="Message")), optional="Error"
    ),
    ("GET", "/containers/{id}/stats"): STATS,
    ("POST", "/containers/{id}/exec"): fields(str="Id"),
    ("GET", "/exec/{id}/json"): fields(
        str="ID DetachKeys ContainerID",
        bool="Running OpenStdin OpenStderr OpenStdout CanRemove",
        int="Pid",
        ExitCode=Maybe(int),
        ProcessConfig=fields(
            bool="tty privileged", str="entrypoint user", strings="arguments", optional="user privileged"
        ),
    ),
    ("GET", "/containers/{id}/changes"): Maybe([fields(str="Path", int="Kind")]),
    ("GET", "/images/json"): [IMAGE_LISTED],
    ("POST", "/images/prune"): fields(
        int="SpaceReclaimed",
        ImagesDeleted=Maybe([fields(str="Untagged Deleted", optional="Untagged Deleted")]),
    ),
    ("GET", "/images/{name}/json"): IMAGE_SHOWN,
    ("GET", "/images/{name}/history"): [
        fields(str="Id CreatedBy Comment", int="Created Size", strings="Tags")
    ],
    ("DELETE", "/images/{name}"): [fields(str="Untagged Deleted", optional="Untagged Deleted")],
    ("POST", "/commit"): fields(str="Id"),
    ("POST", "/auth"): fields(str="Status IdentityToken", optional="IdentityToken"),
    ("GET", "/distribution/{name}/json"): fields(
        Descriptor=fields(str="mediaType digest", int="size"),
        Platforms=[fields(str="architecture os variant", optional="variant")],
    ),
    ("GET", "/images/search"): [
        fields(str="name description", int="star_count", bool="is_official is_automated")
    ],
    ("GET", "/nagaya/images/layers"): [
        fields(str="Id", strings="RepoTags", Layers=[fields(str="DiffId", int="Size")])
    ],
    ("GET", "/networks"): [NETWORK],
    ("POST", "/networks/create"): fields(str="Id Warning"),
    ("POST", "/networks/prune"): fields(strings="NetworksDeleted"),
    ("GET", "/networks/{id}"): NETWORK,
    ("POST", "/volumes/create"): VOLUME,
    ("GET", "/volumes"): fields(Volumes=[VOLUME], strings="Warnings"),
    ("GET", "/volumes/{name}"): VOLUME,
    ("POST", "/volumes/prune"): fields(int="SpaceReclaimed", strings="VolumesDeleted"),
}
# no content, a raw stream, an archive, text; progress, which needs a registry or an archive and is held
# against dockerd's by tests/cli and tests/unit/test_api_server.py
NO_TABLE = frozenset(
    "POST /build|POST /build/cancel|"
    "GET /_ping|HEAD /_ping|GET /metrics|POST /containers/{id}/start|POST /containers/{id}/stop|"
    "POST /containers/{id}/restart|POST /containers/{id}/kill|POST /containers/{id}/pause|"
    "POST /containers/{id}/unpause|POST /containers/{id}/rename|DELETE /containers/{id}|"
    "POST /containers/{id}/resize|POST /containers/{id}/attach|GET /containers/{id}/attach/ws|"
    "GET /containers/{id}/logs|POST /exec/{id}/start|POST /exec/{id}/resize|GET /containers/{id}/export|"
    "HEAD /containers/{id}/archive|GET /containers/{id}/archive|PUT /containers/{id}/archive|POST "
    "/images/create|"
    "POST /images/load|GET /images/get|GET /images/{name}/get|POST /images/{name}/tag|POST "
    "/images/{name}/push|"
    "DELETE /networks/{id}|"
    "POST /networks/{id}/connect|POST /networks/{id}/disconnect|DELETE /volumes/{name}".split("|")
)


def served() -> set[tuple[str, str]]:
    others = {route.handler for route in (*unserved.ROUTES, *swarm.ROUTES)}
    return {(r.method, r.pattern.replace(":path", "")) for r in _ROUTES if r.handler not in others}


def test_every_route_is_in_the_table() -> None:
    assert served() - TABLE.keys() == {(m, p) for m, _, p in (w.partition(" ") for w in NO_TABLE)} & served()
    assert TABLE.keys() <= served()


BODY: dict[str, Any] = {
    "Image": IMAGE,
    "Cmd": ["sleep", "600"],
    "Env": ["A=1"],
    "Labels": {"a": "b"},
    "ExposedPorts": {"80/tcp": {}, "81/tcp": {}},
    "StopSignal": "SIGINT",
    "StopTimeout": 3,
    "Healthcheck": {"Test": ["CMD", "true"], "Interval": 200_000_000},
    "HostConfig": {
        "Binds": ["named:/v:ro", "/var:/t"],
        "Mounts": [{"Type": "tmpfs", "Target": "/q"}, {"Type": "image", "Source": IMAGE, "Target": "/i"}],
        "Tmpfs": {"/z": "size=1m"},
        "Memory": 64 << 20,
        "Ulimits": [{"Name": "nofile", "Soft": 500, "Hard": 600}],
        "Devices": [{"PathOnHost": "/dev/null", "PathInContainer": "/dev/n", "CgroupPermissions": "r"}],
        "Sysctls": {"net.core.somaxconn": "100"},
        "Init": True,
        "PortBindings": {"80/tcp": [{"HostPort": ""}]},
        "NetworkMode": "lan",
        "Annotations": {"a": "b"},
    },
}


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        yield started


@pytest.fixture(scope="module")
def registry(house: House, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """With the image a/b:1."""
    base = tmp_path_factory.mktemp("registry")
    with Registry(base / "data", house.inside([])) as running:
        running.push_busybox(base, "a/b:1")
        yield running


@pytest.fixture(scope="module")
def answers(house: House, registry: Registry) -> dict[tuple[str, str], list[Any]]:
    """(method, pattern) -> the documents that came."""
    found: dict[tuple[str, str], list[Any]] = {}

    def ask(method: str, pattern: str, path: str = "", body: Any = None) -> Any:
        answer = call(house.socket, method, "/v1.51" + (path or pattern), body)
        assert answer.status < 300, (method, pattern, path, answer)
        documents = [json.loads(line) for line in answer.body.splitlines() if line.strip()]
        found.setdefault((method, pattern), []).extend(documents)
        return documents[0] if documents else None

    lan = {"Name": "lan", "IPAM": {"Config": [{"Subnet": "10.231.5.0/24"}]}}
    ask("POST", "/networks/create", body=lan)
    ask("POST", "/volumes/create", body={"Name": "data", "Labels": {"a": "b"}})
    ask("POST", "/containers/create", "/containers/create?name=box", BODY)
    ask("POST", "/containers/create", "/containers/create?name=idle", {"Image": IMAGE, "Cmd": ["true"]})
    house.ok("start", "box")
    update = {"Memory": 70 << 20, "MemorySwap": 140 << 20}
    ask("POST", "/containers/{id}/update", "/containers/box/update", update)
    session = ask("POST", "/containers/{id}/exec", "/containers/box/exec", {"Cmd": ["touch", "/new"]})["Id"]
    ask("GET", "/exec/{id}/json", f"/exec/{session}/json")
    house.ok("exec", "box", "touch", "/new")
    health = ("inspect", "-f", "{{.State.Health.Status}}", "box")
    wait_for(lambda: house.ok(*health) == "healthy", 60, "health")
    for path in ("/containers/json?all=1&size=1", "/containers/json?all=1"):
        ask("GET", "/containers/json", path)
    for path in ("/containers/box/json?size=1", "/containers/idle/json"):
        ask("GET", "/containers/{id}/json", path)
    for pattern in ("top", "stats", "changes"):
        ask("GET", f"/containers/{{id}}/{pattern}", f"/containers/box/{pattern}?stream=0")
    ask("GET", "/nagaya/containers/{id}/steps", "/nagaya/containers/box/steps")
    for pattern in "/version /info /system/df /nagaya/check /images/json /networks /volumes".split():
        ask("GET", pattern)
    ask("POST", "/nagaya/check")
    ask("GET", "/networks/{id}", "/networks/lan")
    ask("GET", "/volumes/{name}", "/volumes/data")
    for pattern in ("json", "history"):
        ask("GET", f"/images/{{name}}/{pattern}", f"/images/{IMAGE}/{pattern}")
    ask("POST", "/commit", "/commit?container=box&repo=committed&tag=1")
    address = registry.address
    ask("POST", "/auth", body={"serveraddress": address, "username": "me", "password": "x"})
    ask("GET", "/distribution/{name}/json", f"/distribution/{address}/a/b:1/json")
    ask("GET", "/images/search", f"/images/search?term={address}/a")
    ask("GET", "/nagaya/images/layers")
    house.ok("rmi", "committed:1")
    house.ok("tag", IMAGE, "second:1")
    ask("DELETE", "/images/{name}", "/images/second:1")
    ask("POST", "/containers/{id}/wait", "/containers/idle/wait")
    house.ok("rm", "-f", "box")
    for pattern in ("containers", "images", "networks", "volumes", "build"):
        ask("POST", f"/{pattern}/prune")
    ask("GET", "/events", f"/events?since=1&until={time.time()}")
    return found


@pytest.mark.parametrize(("method", "pattern"), TABLE, ids=[f"{m} {p}" for m, p in TABLE])
def test_the_shape(answers: dict[tuple[str, str], list[Any]], method: str, pattern: str) -> None:
    documents = answers[method, pattern]
    assert documents
    for document in documents:
        assert list(wrong(document, TABLE[method, pattern], "")) == []


def test_the_shape_of_errors_and_of_a_path(house: House) -> None:
    for target in ("/containers/nosuch/json", "/nosuch", "/volumes/nosuch", "/images/nosuch/json"):
        assert list(wrong(call(house.socket, "GET", target).json, fields(str="message"), "")) == []
    house.ok("create", "--name", "looked-at", IMAGE, "true")
    headers = call(house.socket, "HEAD", "/containers/looked-at/archive?path=/bin/sh").headers
    stat = json.loads(base64.b64decode(headers["x-docker-container-path-stat"]))
    assert list(wrong(stat, fields(str="name mtime linkTarget", int="size mode"), "")) == []
    house.ok("rm", "looked-at")


@pytest.mark.parametrize("version", ["1.24", "1.30", "1.41", "1.43", "1.44", "1.47", "1.51"])
def test_what_changed_with_the_version(house: House, version: str) -> None:
    """The API's history: VirtualSize went with 1.44; df by kind came with 1.42."""
    number = tuple(map(int, version.split(".")))
    house.ok("run", "--rm", "--network", "none", IMAGE, "true")
    (image,) = call(house.socket, "GET", f"/v{version}/images/json").json
    assert ("VirtualSize" in image) is (number < (1, 44))
    kinds = set(call(house.socket, "GET", f"/v{version}/system/df?type=image").json)
    assert (kinds == {"LayersSize", "Images"}) is (number >= (1, 42))


@pytest.mark.parametrize(
    ("value", "kind", "said"),
    [
        ({"A": 1}, fields(str="A"), [".A: int, not str"]),
        ({"A": "", "B": 1}, fields(str="A"), [".B: not in the table"]),
        ({}, fields(str="A"), [".A: missing"]),
        ({}, fields(str="A", optional="A"), []),
        ({"A": [None]}, fields(strings="A"), [".A[]: NoneType, not str"]),
        ({"A": None}, fields(strings="A"), []),
        ([{"x": True}], [Dict(int)], ["[][x]: bool, not int"]),
        (None, fields(), [": NoneType, not an object"]),
    ],
)
def test_the_table_sees(value: Any, kind: Any, said: list[str]) -> None:
    assert list(wrong(value, kind, "")) == said
