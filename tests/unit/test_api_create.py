"""The create body: what the real docker CLI sends, and what is refused in dockerd's words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nagaya.api.docker.errors import message_of
from nagaya.api.docker.types.create import container_config, container_name, exec_config
from nagaya.api.docker.types.mounts import parse_bind
from nagaya.api.docker.types.structs import CreateBody, ExecCreateBody, decode_body
from nagaya.engine.model import (
    Attachment,
    ContainerConfig,
    DeviceMapping,
    MountSpec,
    PortBinding,
    Resources,
    RestartPolicy,
    Ulimit,
)
from nagaya.errors import InvalidArgument


def decode(host: dict[str, Any] | None = None, **config: Any) -> ContainerConfig:
    document = {"Image": "img", **config}
    if host is not None:
        document["HostConfig"] = host
    return container_config(decode_body(json.dumps(document).encode(), CreateBody), online_cpus=2)


def test_nulls_zeros_and_unknown_fields_are_nothing() -> None:
    nothing = decode()
    host: dict[str, Any] = dict.fromkeys(
        "Binds PortBindings RestartPolicy LogConfig Dns CapAdd Mounts Ulimits Devices Memory Init "
        "StorageOpt VolumesFrom Links DeviceRequests BlkioWeightDevice PidsLimit MemorySwappiness".split()
    )
    assert decode(host, Cmd=None, Env=None, Labels=None, Volumes=None, NetworkingConfig=None) == nothing
    host = {"StorageOpt": {}, "Links": [], "CpuCount": 0, "NewThing": {"a": 1}, "MemorySwappiness": -1}
    assert decode(host, Cmd=[], Entrypoint=[], Healthcheck={}, OnBuild=["x"], Shell=["y"]) == nothing
    assert (nothing.command, nothing.entrypoint, nothing.network_mode) == (None, None, "default")
    assert (nothing.shm_size, nothing.log.driver) == (64 << 20, "json-file")


def test_words() -> None:
    assert decode(Cmd="one word").command == ("one word",)
    assert decode(Entrypoint=[""]).entrypoint == ()
    assert decode(Entrypoint="/bin/x", Cmd=["a", ""]).command == ("a", "")


def test_resources_and_friends() -> None:
    config = decode(
        {
            "Memory": 64 << 20,
            "NanoCpus": 1_500_000_000,
            "PidsLimit": -1,
            "CpusetCpus": "0-1,3",
            "Ulimits": [{"Name": "nofile", "Soft": 10, "Hard": 20}],
            "Devices": [{"PathOnHost": "/dev/null", "CgroupPermissions": "r"}],
            "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3},
            "Tmpfs": {"/run/": "size=1m"},
            "Init": True,
        }
    )
    assert config.resources == Resources(
        memory=64 << 20, memory_swap=128 << 20, nano_cpus=1_500_000_000, cpuset_cpus="0-1,3"
    )
    assert config.ulimits == (Ulimit("nofile", 10, 20),)
    assert config.devices == (DeviceMapping("/dev/null", "/dev/null", "r"),)
    assert config.restart == RestartPolicy("on-failure", 3)
    assert config.tmpfs == {"/run": "size=1m"}
    assert config.init
    assert decode({"Memory": 64 << 20, "MemorySwap": -1}).resources.memory_swap == -1


def test_ports() -> None:
    config = decode(
        {
            "PortBindings": {
                "80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}, {"HostPort": ""}],
                "53/udp": [{"HostIp": "::1", "HostPort": "53-53"}],
                "9": None,
            }
        },
        ExposedPorts={"80/tcp": {}, "53/UDP": {}, "9": {}},
    )
    assert config.exposed_ports == ("9/tcp", "53/udp", "80/tcp")
    assert config.ports == (
        PortBinding(80, "tcp", "127.0.0.1", 8080),
        PortBinding(80, "tcp", "", 0),
        PortBinding(53, "udp", "::1", 53),
    )


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("/data", MountSpec("volume", "/data")),
        ("vol:/data", MountSpec("volume", "/data", "vol")),
        ("vol:/data:ro,nocopy", MountSpec("volume", "/data", "vol", read_only=True, no_copy=True)),
        ("/h:/c", MountSpec("bind", "/c", "/h", create_source=True)),
        ("/h/../x//:/c/./d/:ro,z", MountSpec("bind", "/c/d", "/x", read_only=True, create_source=True)),
        ("/h:/c:rslave,Z", MountSpec("bind", "/c", "/h", propagation="rslave", create_source=True)),
        ("//h:/c:rw,cached", MountSpec("bind", "/c", "/h", create_source=True)),
    ],
)
def test_binds(raw: str, expected: MountSpec) -> None:
    assert parse_bind(raw) == expected


def test_mounts() -> None:
    config = decode(
        {
            "Binds": ["/h:/a"],
            "Mounts": [
                {"Type": "bind", "Source": "/x", "Target": "/b", "ReadOnly": True},
                {"Type": "volume", "Target": "/c", "VolumeOptions": {"NoCopy": True}},
                {"Type": "tmpfs", "Target": "/d", "TmpfsOptions": {"SizeBytes": 4096, "Mode": 0o700}},
            ],
        }
    )
    assert config.mounts[1:] == (
        MountSpec("bind", "/b", "/x", read_only=True, listed=True),
        MountSpec("volume", "/c", no_copy=True, listed=True),
        MountSpec("tmpfs", "/d", options=("size=4096", "mode=700"), listed=True),
    )


@pytest.mark.parametrize(
    ("host", "config", "message"),
    [
        ({}, {"Image": ""}, "no image specified"),
        ({"Memory": 1000}, {}, "Minimum memory limit allowed is 6MB"),
        ({"Memory": 64 << 20, "MemorySwap": 1 << 20}, {}, "Minimum memoryswap limit should be larger"),
        ({"MemorySwap": 64 << 20}, {}, "You should always set the Memory limit when using Memoryswap"),
        ({"MemorySwappiness": 101}, {}, "valid memory swappiness range is 0-100"),
        ({"MemoryReservation": 1}, {}, "Minimum memory reservation allowed is 6MB"),
        ({"NanoCpus": 3_000_000_000}, {}, "range of CPUs is from 0.01 to 2.00"),
        ({"NanoCpus": 1, "CpuQuota": 5000}, {}, "Nano CPUs and CPU Quota cannot both be set"),
        ({"CpuPeriod": 10}, {}, "CPU cfs period can not be less than 1ms"),
        ({"CpusetCpus": "0;1"}, {}, "Invalid value 0;1 for cpuset cpus"),
        ({"BlkioWeight": 5}, {}, "Range of blkio weight is from 10 to 1000"),
        ({"UsernsMode": "private"}, {}, "invalid USER mode: private"),
        ({"Binds": ["/a:/b:fast"]}, {}, "invalid mode: fast"),
        ({"Binds": ["/a:/b:ro,rw"]}, {}, "invalid mode: ro,rw"),
        ({"Binds": ["/a:ro"]}, {}, "invalid volume specification: '/a:ro'"),
        ({"Binds": ["a:b:c:d"]}, {}, "invalid volume specification: 'a:b:c:d'"),
        ({"Binds": [":/b"]}, {}, "invalid volume specification: ':/b'"),
        ({"Binds": ["/a:/"]}, {}, "destination can't be '/'"),
        ({"Binds": ["/a:/x/.."]}, {}, "destination can't be '/'"),
        ({"Binds": ["/a:b"]}, {}, "mount path must be absolute"),
        ({"Binds": ["../a:/b"]}, {}, "includes invalid characters for a local volume name"),
        ({"Binds": ["/a:/b", "/c:/b/"]}, {}, "Duplicate mount point: /b"),
        ({"Binds": ["/a:/b"], "Tmpfs": {"/b": ""}}, {}, "Duplicate mount point: /b"),
        (
            {"Mounts": [{"Type": "odd", "Target": "/x"}]},
            {},
            'mount config for type "odd": mount type unknown',
        ),
        ({"Mounts": [{"Type": "bind", "Target": "/x"}]}, {}, "field Source must not be empty"),
        ({"Mounts": [{"Type": "bind", "Source": "/x"}]}, {}, "field Target must not be empty"),
        ({"Mounts": [{"Type": "image", "Target": "/x"}]}, {}, "field Source must not be empty"),
        ({"Mounts": [{"Type": "cluster", "Target": "/x"}]}, {}, "of type cluster is not supported yet"),
        ({"PortBindings": {"80x/tcp": []}}, {}, 'invalid port specification: "80x/tcp"'),
        ({"PortBindings": {"80/icmp": []}}, {}, "invalid proto: icmp"),
        ({"PortBindings": {"80": [{"HostPort": "70000"}]}}, {}, 'invalid port specification: "70000"'),
        ({"PortBindings": {"80": [{"HostPort": "9-1"}]}}, {}, 'invalid port specification: "9-1"'),
        ({"PortBindings": {"80": [{"HostPort": "1-"}]}}, {}, 'invalid port specification: "1-"'),
        ({"PortBindings": {"80": [{"HostIp": "nowhere"}]}}, {}, "invalid IP address: nowhere"),
        ({}, {"ExposedPorts": {"0": {}}}, 'invalid port specification: "0"'),
        ({"RestartPolicy": {"Name": "maybe"}}, {}, "invalid restart policy: unknown policy 'maybe'"),
        (
            {"RestartPolicy": {"Name": "always", "MaximumRetryCount": 1}},
            {},
            "maximum retry count can only be used with 'on-failure'",
        ),
        (
            {"RestartPolicy": {"Name": "always"}, "AutoRemove": True},
            {},
            "can't create 'AutoRemove' container",
        ),
        (
            {"Ulimits": [{"Name": "nofile", "Soft": 2, "Hard": 1}]},
            {},
            "less than or equal to hard limit: 2 > 1",
        ),
        ({"Ulimits": [{"Name": "files"}]}, {}, "invalid ulimit type: files"),
        ({"Devices": [{"PathOnHost": "/dev/x", "CgroupPermissions": "x"}]}, {}, "invalid device mode: x"),
        ({"IpcMode": "odd"}, {}, "invalid IPC mode: odd"),
        ({"PidMode": "container:"}, {}, "invalid PID mode: container:"),
        ({"OomScoreAdj": 1001}, {}, "range for oom score adj is [-1000, 1000]"),
        ({"ShmSize": -1}, {}, "SHM size can not be less than 0"),
        ({"UTSMode": "host"}, {"Hostname": "x"}, "conflicting options: hostname and the UTS mode"),
        ({"NetworkMode": "container:x"}, {"Hostname": "y"}, "hostname and the network mode"),
        (
            {"NetworkMode": "container:x", "PortBindings": {"1": [{}]}},
            {},
            "conflicting options: port publishing",
        ),
        ({}, {"Env": ["=x"]}, "invalid environment variable: =x"),
        ({}, {"WorkingDir": "x"}, "the working directory 'x' is invalid, it needs to be an absolute path"),
        ({}, {"Hostname": "a\nb"}, "invalid hostname"),
        ({}, {"Cmd": ["a\0b"]}, "NUL byte"),
        ({}, {"Volumes": {"relative": {}}}, "invalid volume specification: 'relative'"),
        ({"Memory": "1g"}, {}, "$.HostConfig.Memory"),
        (
            {},
            {
                "NetworkingConfig": {
                    "EndpointsConfig": {"default": {"IPAMConfig": {"IPv4Address": "10.0.0.x"}}}
                }
            },
            "invalid IPv4 address: 10.0.0.x",
        ),
    ],
)
def test_refused(host: dict[str, Any], config: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        decode(host, **config)
    assert message in str(caught.value)
    assert "\n" not in message_of(caught.value)


def test_names() -> None:
    assert (container_name(""), container_name("/web-1.a_b")) == ("", "web-1.a_b")
    for bad in ("a", "-ab", "a/b", "a b", "a\n", "ä1"):
        with pytest.raises(InvalidArgument, match="Invalid container name"):
            container_name(bad)


def test_exec_body() -> None:
    body = decode_body(b'{"Cmd":["ls","-l"],"Tty":true,"Env":null,"User":"1:2"}', ExecCreateBody)
    config = exec_config(body)
    assert (config.command, config.tty, config.user) == (("ls", "-l"), True, "1:2")
    with pytest.raises(InvalidArgument, match="No exec command specified"):
        exec_config(ExecCreateBody())


def networks_of(mode: str = "default", networking: object = None, **more: Any) -> tuple[Attachment, ...]:
    endpoints = {"EndpointsConfig": networking}
    return decode({"NetworkMode": mode}, NetworkingConfig=endpoints, **more).networks


def test_networks() -> None:
    wish = {
        "IPAMConfig": {"IPv4Address": "10.9.0.9", "IPv6Address": "FD00::9"},
        "Aliases": ["web", "www", "web"],
        "Links": ["db:store"],
        "MacAddress": "02-42-00-00-00-77",
        "GwPriority": -3,
        "DriverOpts": {"a": "b"},
    }
    found = networks_of("shop", {"front": None, "shop": wish})
    assert found == (
        Attachment(
            "shop", "10.9.0.9", "fd00::9", "02:42:00:00:00:77", ("web", "www"), ("db:store",), -3, {"a": "b"}
        ),
        Attachment("front"),
    )
    # what says nothing is nothing; the container's own MAC is that of its mode's network
    assert networks_of(networking={"default": {}}) == ()
    assert networks_of(MacAddress="02:42:00:00:00:78") == (Attachment("bridge", mac="02:42:00:00:00:78"),)
    assert networks_of("container:x") == ()


@pytest.mark.parametrize(
    ("mode", "endpoints", "why"),
    [
        ("none", {"shop": {}}, "cannot attach a container to none and another network"),
        ("host", {"shop": {}}, "cannot attach host network to a container with another network"),
        ("shop", {"shop": {"MacAddress": "01:42:00:00:00:77"}}, "invalid MAC address"),
        ("shop", {"shop": {"MacAddress": "zz"}}, "invalid MAC address"),
        ("shop", {"shop": {"IPAMConfig": {"IPv4Address": "fd00::1"}}}, "invalid IPv4 address: fd00::1"),
        ("shop", {"shop": {"IPAMConfig": {"IPv6Address": "fd00::1%x"}}}, "invalid IPv6 address"),
        (
            "shop",
            {"shop": {"IPAMConfig": {"LinkLocalIPs": ["169.254.1.1"]}}},
            "LinkLocalIPs is not",
        ),
        ("shop", {"shop": {"Aliases": ["a\nb"]}}, "invalid name in a network"),
        ("shop", {"shop": {"Links": [":x"]}}, "bad format for links"),
    ],
)
def test_refused_networks(mode: str, endpoints: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        networks_of(mode, endpoints)
