"""What inspect, list, images, stats and events look like: fields, zeros, words."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest

from nagaya.api.docker.types import image as images
from nagaya.api.docker.types.events import event_document, event_matches
from nagaya.api.docker.types.filters import Filters
from nagaya.api.docker.types.inspect import host_config, inspect
from nagaya.api.docker.types.listing import select, status, summary
from nagaya.api.docker.types.stats import Machine, Reading, stats_document
from nagaya.api.docker.types.times import human_duration, parse_timestamp, rfc3339_nano
from nagaya.engine.model import (
    Container,
    ContainerConfig,
    Endpoint,
    Event,
    ImageSummary,
    MountSpec,
    PortBinding,
    PullProgress,
    RegistryAuth,
    Resources,
)
from nagaya.errors import InvalidArgument, NotFound

SECOND = 1_000_000_000
NOW = 1_700_000_000 * SECOND

# Every key that `docker inspect` of 28.x shows for a plain container.
TOP = """Id Created Path Args State Image ResolvConfPath HostnamePath HostsPath LogPath Name RestartCount
Driver Platform MountLabel ProcessLabel AppArmorProfile ExecIDs HostConfig GraphDriver Mounts Config
NetworkSettings""".split()
STATE = """Status Running Paused Restarting OOMKilled Dead Pid ExitCode Error StartedAt FinishedAt""".split()
HOST = """Binds ContainerIDFile LogConfig NetworkMode PortBindings RestartPolicy AutoRemove VolumeDriver
VolumesFrom ConsoleSize CapAdd CapDrop CgroupnsMode Dns DnsOptions DnsSearch ExtraHosts GroupAdd IpcMode
Cgroup Links OomScoreAdj PidMode Privileged PublishAllPorts ReadonlyRootfs SecurityOpt UTSMode UsernsMode
ShmSize Runtime Isolation CpuShares Memory NanoCpus CgroupParent BlkioWeight BlkioWeightDevice
BlkioDeviceReadBps BlkioDeviceWriteBps BlkioDeviceReadIOps BlkioDeviceWriteIOps CpuPeriod CpuQuota
CpuRealtimePeriod CpuRealtimeRuntime CpusetCpus CpusetMems Devices DeviceCgroupRules DeviceRequests
MemoryReservation MemorySwap
MemorySwappiness OomKillDisable PidsLimit Ulimits CpuCount CpuPercent IOMaximumIOps IOMaximumBandwidth
MaskedPaths ReadonlyPaths""".split()
CONFIG = """Hostname Domainname User AttachStdin AttachStdout AttachStderr Tty OpenStdin StdinOnce Env Cmd
Image Volumes WorkingDir Entrypoint OnBuild Labels""".split()
NETWORK = """Bridge SandboxID SandboxKey Ports HairpinMode LinkLocalIPv6Address LinkLocalIPv6PrefixLen
SecondaryIPAddresses SecondaryIPv6Addresses EndpointID Gateway GlobalIPv6Address GlobalIPv6PrefixLen IPAddress
IPPrefixLen IPv6Gateway MacAddress Networks""".split()
ENDPOINT = """IPAMConfig Links Aliases MacAddress DriverOpts GwPriority NetworkID EndpointID Gateway IPAddress
IPPrefixLen IPv6Gateway GlobalIPv6Address GlobalIPv6PrefixLen DNSNames""".split()


def container(name: str = "web", config: ContainerConfig | None = None, **fields: Any) -> Container:
    base: dict[str, Any] = {"created": NOW, "path": "sh", "args": ("-c", "echo hi")}
    return Container(
        fields.pop("id", "ab" * 32), name, config or ContainerConfig("img"), **{**base, **fields}
    )


def test_inspect_has_every_field_of_a_plain_container() -> None:
    shown = inspect(container(), "/root")
    assert sorted(shown) == sorted(TOP)
    assert sorted(shown["State"]) == sorted(STATE)
    assert sorted(shown["HostConfig"]) == sorted(HOST)
    assert sorted(shown["Config"]) == sorted(CONFIG)
    assert sorted(shown["NetworkSettings"]) == sorted(NETWORK)
    assert sorted(shown["NetworkSettings"]["Networks"]["bridge"]) == sorted(ENDPOINT)
    assert shown["State"]["StartedAt"] == "0001-01-01T00:00:00Z"
    assert (shown["Name"], shown["HostConfig"]["NetworkMode"]) == ("/web", "bridge")
    msgspec.json.encode(shown)


def test_inspect_of_a_running_container_with_all_kinds_of_things() -> None:
    config = ContainerConfig(
        "img",
        entrypoint=("/bin/sh",),
        command=("-c", "x"),
        mounts=(
            MountSpec("bind", "/c", "/h", read_only=True, create_source=True),
            MountSpec("volume", "/v", "vol"),
            MountSpec("bind", "/m", "/n", listed=True),
        ),
        ports=(PortBinding(80, host_port=8080),),
        exposed_ports=("80/tcp", "81/tcp"),
        resources=Resources(memory=64 << 20, memory_swap=128 << 20, pids_limit=7),
        init=True,
        stop_timeout=0,
        privileged=True,
    )
    endpoint = Endpoint(
        "bridge", "n" * 64, "e" * 64, "10.0.0.2", 24, "10.0.0.1", "02:00:00:00:00:01",
        ports=(PortBinding(80, host_ip="0.0.0.0", host_port=8080),),
    )  # fmt: skip
    running = container("web", config, state="running", pid=7, started=NOW + 5, endpoints=(endpoint,))
    shown = inspect(running, "/r")
    assert shown["State"]["StartedAt"] == "2023-11-14T22:13:20.000000005Z"
    assert (shown["Config"]["Entrypoint"], shown["Config"]["Cmd"]) == (["/bin/sh"], ["-c", "x"])
    assert sorted(shown["Config"]["ExposedPorts"]) == ["80/tcp", "81/tcp"]
    assert shown["Config"]["StopTimeout"] == 0
    settings = shown["NetworkSettings"]
    assert settings["Ports"] == {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}], "81/tcp": None}
    assert settings["IPAddress"] == settings["Networks"]["bridge"]["IPAddress"] == "10.0.0.2"
    host = shown["HostConfig"]
    assert host["Binds"] == ["/h:/c:ro", "vol:/v"]
    assert host["Mounts"] == [{"Type": "bind", "Target": "/m", "Source": "/n"}]
    assert host["PortBindings"] == {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}
    assert (host["Init"], host["PidsLimit"], host["MaskedPaths"]) == (True, 7, None)
    assert shown["Mounts"][1]["Source"] == "/r/volumes/vol/_data"
    exited = inspect(container("web", config, state="exited", endpoints=()), "/r")
    assert exited["NetworkSettings"]["Ports"] == {}


def test_the_resolved_mounts_are_shown() -> None:
    config = ContainerConfig("img", image_volumes=("/anon",))
    shown = inspect(container(config=config, mount_points=(MountSpec("volume", "/anon", "f00"),)), "/r")
    assert (shown["Mounts"][0]["Name"], shown["HostConfig"]["Binds"]) == ("f00", None)
    assert shown["Config"]["Volumes"] == {"/anon": {}}


def test_network_none_is_a_network() -> None:
    shown = inspect(container(config=ContainerConfig("i", network_mode="none")), "")
    assert list(shown["NetworkSettings"]["Networks"]) == ["none"]
    assert host_config(ContainerConfig("i", network_mode="container:x"))["NetworkMode"] == "container:x"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"state": "running", "started": NOW - 300 * SECOND}, "Up 5 minutes"),
        ({"state": "paused", "started": NOW - SECOND}, "Up 1 second (Paused)"),
        ({"state": "exited", "finished": NOW - 3 * SECOND, "exit_code": 4}, "Exited (4) 3 seconds ago"),
        ({"state": "created"}, "Created"),
        ({"state": "restarting", "finished": NOW, "exit_code": 1}, "Restarting (1) Less than a second ago"),
        ({"state": "dead"}, "Dead"),
        ({"state": "removing"}, "Removal In Progress"),
    ],
)
def test_status(fields: dict[str, Any], expected: str) -> None:
    assert status(container(**fields), NOW) == expected


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "Less than a second"), (59, "59 seconds"), (60, "About a minute"), (119, "About a minute"),
        (120, "2 minutes"), (3600, "About an hour"), (7200, "2 hours"), (47 * 3600, "47 hours"),
        (48 * 3600, "2 days"), (14 * 86400, "2 weeks"), (60 * 86400, "2 months"), (800 * 86400, "2 years"),
    ],
)  # fmt: skip
def test_durations(seconds: int, text: str) -> None:
    assert human_duration(seconds * SECOND) == text


def test_times() -> None:
    assert rfc3339_nano(NOW) == "2023-11-14T22:13:20Z"
    assert rfc3339_nano(NOW + 120_000_000) == "2023-11-14T22:13:20.12Z"
    for text, expected in [
        ("", 0),
        ("1700000000", NOW),
        ("1700000000.000000005", NOW + 5),
        ("1700000000.5", NOW + SECOND // 2),
        ("2023-11-14T22:13:20Z", NOW),
        ("2023-11-14T22:13:20.25Z", NOW + SECOND // 4),
        ("10m", NOW - 600 * SECOND),
        ("1m30s", NOW - 90 * SECOND),
    ]:
        assert parse_timestamp(text, "since", NOW) == expected, text
    for bad in ("yesterday", "1.2.3", "-", "10x"):
        with pytest.raises(InvalidArgument, match="since"):
            parse_timestamp(bad, "since", NOW)


def test_summary() -> None:
    shown = summary(container(state="running", started=NOW), "/r", NOW)
    assert (shown["Names"], shown["Command"]) == (["/web"], "sh -c 'echo hi'")
    assert sorted(shown) == sorted(
        "Id Names Image ImageID Command Created Ports Labels State Status HostConfig NetworkSettings "
        "Mounts".split()
    )


THREE = [
    container(
        "old",
        id="a" * 64,
        created=NOW - 9,
        state="running",
        config=ContainerConfig("img", labels={"k": "v"}),
        image_digest="sha256:1",
    ),
    container(
        "mid",
        id="b" * 64,
        created=NOW - 8,
        state="exited",
        exit_code=3,
        config=ContainerConfig("img", labels={"k": "w"}),
    ),
    container("new", id="c" * 64, created=NOW - 7, state="created", config=ContainerConfig("other:1")),
]


@pytest.mark.parametrize(
    ("filters", "options", "names"),
    [
        ("", {}, ["old"]),
        ("", {"everything": True}, ["new", "mid", "old"]),
        ("", {"limit": 2}, ["new", "mid"]),
        ('{"status":{"exited":true,"created":true}}', {}, ["new", "mid"]),
        ('{"status":["exited"]}', {}, ["mid"]),
        ('{"exited":{"3":true}}', {}, []),
        ('{"exited":{"3":true}}', {"everything": True}, ["mid"]),
        ('{"name":{"^/o":true}}', {"everything": True}, ["old"]),
        ('{"name":{"/mid":true}}', {"everything": True}, ["mid"]),
        ('{"id":{"cc":true}}', {"everything": True}, ["new"]),
        ('{"label":{"k":true}}', {"everything": True}, ["mid", "old"]),
        ('{"label":{"k=w":true}}', {"everything": True}, ["mid"]),
        ('{"label":{"k":true,"k=w":true}}', {"everything": True}, ["mid"]),
        ('{"before":{"new":true}}', {}, ["old"]),
        ('{"before":{"new":true}}', {"everything": True}, ["mid", "old"]),
        ('{"since":{"old":true}}', {"everything": True}, ["new", "mid"]),
        ('{"ancestor":{"img":true}}', {"everything": True, "images": {"img": "sha256:1"}}, ["old"]),
        ('{"ancestor":{"other:1":true}}', {"everything": True}, ["new"]),
        ('{"network":{"bridge":true}}', {"everything": True}, ["new", "mid", "old"]),
        ('{"health":{"none":true}}', {}, ["old"]),
        ('{"volume":{"x":true}}', {"everything": True}, []),
        ('{"name":{"(":true}}', {"everything": True}, []),
    ],
)
def test_list_filters(filters: str, options: dict[str, Any], names: list[str]) -> None:
    chosen = select(
        THREE, Filters.parse(filters), **{"everything": False, "limit": -1, "images": {}, **options}
    )
    assert [c.name for c in chosen] == names


@pytest.mark.parametrize(
    ("filters", "error"),
    [
        ('{"status":{"odd":true}}', InvalidArgument),
        ('{"exited":{"x":true}}', InvalidArgument),
        ('{"colour":{"red":true}}', InvalidArgument),
        ('{"before":{"nobody":true}}', NotFound),
        ("[]", InvalidArgument),
        ('{"a":1}', InvalidArgument),
    ],
)
def test_bad_list_filters(filters: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        select(THREE, Filters.parse(filters), everything=True, limit=-1, images={})


def image(*tags: str, **fields: Any) -> ImageSummary:
    base: dict[str, Any] = {
        "id": "sha256:" + "1" * 64, "digests": (), "created": NOW, "size": 5, "os": "linux",
        "architecture": "amd64", "variant": "",
        "config": {"config": {"Cmd": ["sh"], "Labels": {"a": "b"}}, "author": "me"}, "layers": ("sha256:2",),
    }  # fmt: skip
    return ImageSummary(tags=tags, **{**base, **fields})


def test_image_inspect_and_summary() -> None:
    shown = images.inspect(image("x:1"), (1, 51))
    assert (shown["Config"]["Cmd"], shown["RootFS"]) == (["sh"], {"Type": "layers", "Layers": ["sha256:2"]})
    assert "VirtualSize" not in shown and images.inspect(image(), (1, 43))["VirtualSize"] == 5
    assert images.summary(image(), 0, (1, 51))["RepoTags"] == []
    assert images.summary(image(), 0, (1, 42))["RepoTags"] == ["<none>:<none>"]


def test_image_filters() -> None:
    two = [image("127.0.0.1:5000/a/b:1", created=NOW), image(id="sha256:3", created=NOW - 1)]

    def chosen(filters: str) -> list[int]:
        return [two.index(i) for i in images.select(two, Filters.parse(filters))]

    assert chosen("") == [0, 1]
    assert chosen('{"dangling":{"true":true}}') == [1]
    assert chosen('{"dangling":{"false":true}}') == [0]
    assert chosen('{"reference":{"127.0.0.1:5000/*/b":true}}') == [0]
    assert chosen('{"reference":{"b":true}}') == []
    assert chosen('{"before":{"127.0.0.1:5000/a/b:1":true}}') == [1]
    assert chosen('{"label":{"a=b":true}}') == [0, 1]
    with pytest.raises(InvalidArgument):
        chosen('{"dangling":{"maybe":true}}')


@pytest.mark.parametrize(
    ("pattern", "reference", "expected"),
    [
        ("busybox", "busybox:latest", True), ("busy*", "busybox:latest", True),
        ("busybox:1", "busybox:2", False),
        ("busybox:*", "busybox:2", True), ("*/b", "a/b:1", True), ("*", "a/b:1", False),
        ("h:5/x", "h:5/x:1", True), ("x", "x@sha256:0", True),
        ("b[^a]sy", "busy:1", True), ("b[a-t]sy", "busy:1", False), ("b\\usy", "busy:1", True),
        ("?usy:?", "busy:1", True), ("*s*y", "busybusy", True), ("*u*s", "busy:1", False),
        ("*a" * 60 + "b", "a" * 200, False),  # and it does not take until tomorrow
    ],
)  # fmt: skip
def test_reference_patterns(pattern: str, reference: str, expected: bool) -> None:
    assert images.reference_matches(pattern, reference) is expected


@pytest.mark.parametrize("pattern", ["[", "[]a]", "[a", "[a-", "[-a]", "x\\", "[z-a]"])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^syntax error in pattern$"):
        images.reference_matches(pattern, "busybox:latest")


def test_pull_words() -> None:
    assert images.pull_reference("a", "1") == "a:1"
    assert images.pull_reference("a", "sha256:00") == "a@sha256:00"
    assert images.pull_reference("a:1", "") == "a:1"
    line = images.progress_document(PullProgress("Downloading", "abc", 500_000, 1_000_000))
    assert line["progress"] == "[" + "=" * 25 + ">" + " " * 24 + "]  500kB/1MB"
    assert images.progress_document(PullProgress("Pull complete", "abc"))["progressDetail"] == {}
    assert images.progress_document(PullProgress("Pulling from a/b", "1")) == {
        "status": "Pulling from a/b",
        "id": "1",
    }


def test_registry_credentials() -> None:
    def header(text: str) -> bytes:
        return base64.urlsafe_b64encode(text.encode())

    assert images.registry_auth(b"") is None
    assert images.registry_auth(header("{}")) is None
    assert images.registry_auth(b"%%%") is None
    assert images.registry_auth(header('{"username":"u","password":"p"}').rstrip(b"=")) == RegistryAuth(
        "u", "p"
    )
    packed = base64.b64encode(b"u:p:q").decode()
    assert images.registry_auth(header(f'{{"auth":"{packed}"}}')) == RegistryAuth("u", "p:q")
    assert images.registry_auth(header('{"identitytoken":"t"}')) == RegistryAuth(identity_token="t")


def test_stats() -> None:
    data = {
        "cpu": {"usage": {"total": 5, "kernel": 2, "user": 3, "percpu": [5]}, "throttling": {"periods": 1}},
        "memory": {"usage": {"usage": 10, "max": 20, "limit": 30, "failcnt": 0}, "raw": {"cache": 4}},
        "pids": {"current": 2, "limit": 9},
        "network_interfaces": [{"Name": "eth0", "RxBytes": 1}],
    }
    shown = stats_document(container(), Reading({}, 0, 0), Reading(data, 77, NOW), Machine(2, 1 << 30))
    assert shown["cpu_stats"]["system_cpu_usage"] == 77
    assert "system_cpu_usage" not in shown["precpu_stats"]
    assert shown["memory_stats"]["stats"] == {"cache": 4} and shown["memory_stats"]["limit"] == 30
    unlimited = {"memory": {"usage": {"usage": 10, "limit": 2**63 - 4096}}}
    shown_all = stats_document(
        container(), Reading({}, 0, 0), Reading(unlimited, 0, NOW), Machine(2, 1 << 30)
    )
    assert shown_all["memory_stats"]["limit"] == 1 << 30
    assert shown["networks"]["eth0"]["rx_bytes"] == 1
    empty = stats_document(container(), Reading({}, 0, 0), Reading({}, 0, 0), Machine(2, 1 << 30))
    assert (empty["memory_stats"], empty["pids_stats"], empty["read"]) == ({}, {}, "0001-01-01T00:00:00Z")


def test_events() -> None:
    event = Event("container", "die", "abc", {"name": "web", "image": "x:1", "exitCode": "3"}, NOW + 5)
    shown = event_document(event)
    assert (shown["status"], shown["id"], shown["from"], shown["timeNano"]) == ("die", "abc", "x:1", NOW + 5)
    for filters, expected in [
        ("", True), ('{"type":{"image":true}}', False), ('{"container":{"web":true}}', True),
        ('{"container":{"other":true}}', False), ('{"image":{"x":true}}', True),
        ('{"event":{"die":true}}', True),
        ('{"event":["start"]}', False), ('{"label":{"exitCode=3":true}}', True), ('{"network":["n"]}', False),
    ]:  # fmt: skip
        assert event_matches(event, Filters.parse(filters)) is expected, filters
