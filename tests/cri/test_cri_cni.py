"""Pods on CNI networks: Debian's plugins, and one of the test's own that writes down what it is told."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from grpclib import Status
from house import python_main, wait_for
from kubelet import Node, refused

from nagaya.api.cri import runtime_pb2 as cri

pytestmark = pytest.mark.root

DEBIAN = "/usr/lib/cni"

# writes what it is told to DIR/log as one line of JSON; DIR/NAME.fails makes the command NAME fail
PLUGIN = """#!/bin/sh
DIR={directory}
NAME=$(basename "$0")
INPUT=$(cat)
printf '{{"name":"%s","command":"%s","id":"%s","netns":"%s","ifname":"%s","args":"%s","input":%s}}\\n' \\
    "$NAME" "$CNI_COMMAND" "$CNI_CONTAINERID" "$CNI_NETNS" "$CNI_IFNAME" "$CNI_ARGS" "$INPUT" >> $DIR/log
if [ -e $DIR/$NAME.$CNI_COMMAND.fails ]; then
    printf '{{"cniVersion":"1.1.0","code":11,"msg":"no room","details":"in %s"}}' "$NAME"
    exit 1
fi
[ "$CNI_COMMAND" != ADD ] || printf '{{"cniVersion":"1.1.0",
    "interfaces":[{{"name":"host0"}},{{"name":"eth0","sandbox":"%s"}}],
    "ips":[{{"address":"10.231.8.1/24","interface":0}},{{"address":"10.231.8.7/24","interface":1}},
           {{"address":"fd00:8::7/64","interface":1}}]}}' "$CNI_NETNS"
"""


class Plugins:
    """A directory of own plugins, and what they were told."""

    def __init__(self, node: Node) -> None:
        self.directory = node.house.base / "plugins"
        self.conf = node.cni / "10-own.conflist"

    def install(self, version: str = "1.1.0", **more: Any) -> None:
        self.directory.mkdir(exist_ok=True)
        for name in ("first", "second"):
            path = self.directory / name
            path.write_text(PLUGIN.format(directory=self.directory))
            path.chmod(0o755)
        plugins = [
            {"type": "first", "capabilities": {"portMappings": True, "bandwidth": True}, "own": 1},
            {"type": "second", "capabilities": {"dns": True, "portMappings": False}},
        ]
        self.conf.write_text(json.dumps({"cniVersion": version, "name": "own", "plugins": plugins, **more}))
        self.forget()

    def forget(self) -> None:
        (self.directory / "log").write_text("")

    def fail(self, name: str, command: str) -> Path:
        path = self.directory / f"{name}.{command}.fails"
        path.touch()
        return path

    def told(self, command: str = "") -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (self.directory / "log").read_text().splitlines()]
        return [line for line in lines if command in ("", line["command"])]


@pytest.fixture(scope="module")
def own() -> Iterator[tuple[Node, Plugins]]:
    node = Node()
    plugins = Plugins(node)
    node.house.extra += ["--cni-bin-dir", f"{plugins.directory}:{DEBIAN}"]
    with node:
        yield node, plugins


@pytest.fixture
def plugins(own: tuple[Node, Plugins]) -> Iterator[Plugins]:
    own[1].install()
    yield own[1]
    for path in own[1].directory.glob("*.fails"):
        path.unlink()
    with suppress(FileNotFoundError):
        own[1].conf.unlink()


@pytest.fixture
def node(own: tuple[Node, Plugins]) -> Node:
    return own[0]


def network(node: Node) -> cri.RuntimeCondition:
    conditions: list[cri.RuntimeCondition] = list(node.kubelet.Status().status.conditions)
    return next(c for c in conditions if c.type == "NetworkReady")


def test_pods_on_debian_s_bridge_plugin(node: Node) -> None:
    bridge = f"nagt{node.house.tag[:8]}c"
    leases = node.house.base / "leases"
    conf = node.cni / "20-debian.conflist"
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.231.9.0/24"}]], "dataDir": str(leases)}
    plugins: list[dict[str, Any]] = [
        {"type": "bridge", "bridge": bridge, "isGateway": True, "ipam": ipam},
        {"type": "tuning", "sysctl": {"net.core.somaxconn": "77"}},
    ]
    conf.write_text(json.dumps({"cniVersion": "1.0.0", "name": "debian", "plugins": plugins}))
    try:
        assert "debian" in network(node).message
        first, second = node.run_pod(), node.run_pod()
        addresses = [
            node.kubelet.PodSandboxStatus(pod_sandbox_id=p).status.network.ip for p in (first, second)
        ]
        assert all(address.startswith("10.231.9.") for address in addresses)
        assert "1 packets received" in node.run(first, "ping", "-c", "1", addresses[1])
        assert node.run(first, "cat", "/proc/sys/net/core/somaxconn") == "77\n"
        assert addresses[0] in node.run(first, "cat", "/etc/hosts")
        stats = node.kubelet.PodSandboxStats(pod_sandbox_id=first).stats
        assert stats.linux.network.default_interface.name == "eth0"
        assert {p.name for p in (leases / "debian").glob("10.*")} == set(addresses)
        node.kubelet.StopPodSandbox(pod_sandbox_id=first)
        assert {p.name for p in (leases / "debian").glob("10.*")} == {addresses[1]}
        conf.unlink()  # a pod goes the way it came
        node.kubelet.RemovePodSandbox(pod_sandbox_id=second)
        assert not list((leases / "debian").glob("10.*"))
        node.kubelet.RemovePodSandbox(pod_sandbox_id=first)
    finally:
        conf.unlink(missing_ok=True)
        subprocess.run(node.house.inside(["ip", "link", "del", bridge]), check=True)


def test_what_plugins_are_told(node: Node, plugins: Plugins) -> None:
    config = node.pod_config(
        annotations={"kubernetes.io/ingress-bandwidth": "10M"}, dns_config=cri.DNSConfig(servers=["10.1.1.1"])
    )
    config.port_mappings.add(container_port=80, host_port=18099)
    pod = node.run_pod(config)
    status = node.kubelet.PodSandboxStatus(pod_sandbox_id=pod).status.network
    assert status.ip == "10.231.8.7"
    assert [a.ip for a in status.additional_ips] == ["fd00:8::7"]
    first, second = plugins.told("ADD")
    assert [first["name"], second["name"]] == ["first", "second"]
    assert (first["id"], first["ifname"]) == (pod, "eth0")
    assert f"K8S_POD_NAME={config.metadata.name};" in first["args"]
    assert f"K8S_POD_UID={config.metadata.uid}" in first["args"]
    assert first["args"].startswith("IgnoreUnknown=1;")
    assert Path(first["netns"]) == node.house.run_dir / "ns" / pod / "net"
    given = first["input"]
    assert (given["name"], given["cniVersion"], given["type"], given["own"]) == ("own", "1.1.0", "first", 1)
    assert "prevResult" not in given
    mapping = {"hostPort": 18099, "containerPort": 80, "protocol": "tcp", "hostIP": ""}
    assert given["runtimeConfig"]["portMappings"] == [mapping]
    assert given["runtimeConfig"]["bandwidth"]["ingressRate"] == 10_000_000
    assert second["input"]["prevResult"]["ips"][1]["address"] == "10.231.8.7/24"
    assert second["input"]["runtimeConfig"] == {
        "dns": {"servers": ["10.1.1.1"], "searches": [], "options": []}
    }
    node.kubelet.StopPodSandbox(pod_sandbox_id=pod)
    assert [line["name"] for line in plugins.told("DEL")] == ["second", "first"]
    assert all(line["input"]["prevResult"] for line in plugins.told("DEL"))
    node.kubelet.StopPodSandbox(pod_sandbox_id=pod)
    node.kubelet.RemovePodSandbox(pod_sandbox_id=pod)
    assert len(plugins.told("DEL")) == 2


def test_a_plugin_that_fails_half_way_undoes_the_pod(node: Node, plugins: Plugins) -> None:
    plugins.fail("second", "ADD")
    refused(node.run_pod, Status.UNAVAILABLE, "second", "no room: in second")
    assert [(line["command"], line["name"]) for line in plugins.told()] == [
        ("ADD", "first"),
        ("ADD", "second"),
        ("DEL", "second"),
        ("DEL", "first"),
    ]
    assert not node.kubelet.ListPodSandbox().items
    assert not node.house.leaks()


def test_a_pod_that_cannot_be_disconnected_is_asked_again(node: Node, plugins: Plugins) -> None:
    pod = node.run_pod()
    fails = plugins.fail("first", "DEL")
    stop = node.kubelet.StopPodSandbox
    refused(lambda: stop(pod_sandbox_id=pod), Status.UNAVAILABLE, "first, DEL")
    assert node.kubelet.PodSandboxStatus(pod_sandbox_id=pod).status.state == cri.SANDBOX_NOTREADY
    fails.unlink()
    node.kubelet.RemovePodSandbox(pod_sandbox_id=pod)


def test_the_directory_is_looked_at_for_every_pod(node: Node, plugins: Plugins) -> None:
    assert network(node).reason == "CNI"
    broken = node.cni / "00-broken.conf"
    broken.write_text("{")
    try:
        assert not network(node).status
        refused(node.run_pod, Status.INVALID_ARGUMENT, "00-broken.conf")
        for text, word in (
            ('{"name": "x", "cniVersion": "9.0.0", "type": "first"}', "9.0.0"),
            ('{"name": "x", "cniVersion": "1.0.0", "type": "../../bin/sh"}', "type"),
            ('{"name": "../x", "cniVersion": "1.0.0", "type": "first"}', "name"),
            ('{"name": "x", "cniVersion": "1.0.0", "plugins": []}', "no plugins"),
        ):
            broken.write_text(text)
            refused(node.run_pod, Status.INVALID_ARGUMENT, word)
        broken.write_text('{"name": "x", "cniVersion": "1.0.0", "type": "nosuch"}')
        assert "nosuch" in network(node).message
        refused(node.run_pod, Status.UNAVAILABLE, "nosuch")
    finally:
        broken.unlink()
    plugins.conf.unlink()
    assert network(node).reason == "BuiltInBridge"
    pod = node.run_pod()
    assert node.kubelet.PodSandboxStatus(pod_sandbox_id=pod).status.network.ip.startswith("10.231.0.")
    node.kubelet.RemovePodSandbox(pod_sandbox_id=pod)


def test_plugins_say_whether_they_are_ready(node: Node, plugins: Plugins) -> None:
    assert network(node).status
    assert [line["name"] for line in plugins.told("STATUS")] == ["first", "second"]
    plugins.fail("second", "STATUS")
    found = network(node)
    assert (found.status, found.reason) == (False, "NetworkPluginNotReady")
    assert "no room" in found.message
    plugins.install("1.0.0")  # which has no such command
    assert network(node).status
    assert not plugins.told("STATUS")


def test_a_wrong_bandwidth_is_named(node: Node, plugins: Plugins) -> None:
    config = node.pod_config(annotations={"kubernetes.io/egress-bandwidth": "fast"})
    refused(lambda: node.run_pod(config), Status.INVALID_ARGUMENT, "kubernetes.io/egress-bandwidth")


def test_after_a_restart_plugins_check_and_collect(node: Node, plugins: Plugins) -> None:
    pod = node.run_pod()
    node.house.stop_daemon()
    plugins.forget()
    node.restart()
    wait_for(lambda: len(plugins.told("GC")) == 2, 10, "GC")
    assert [line["name"] for line in plugins.told("CHECK")] == ["first", "second"]
    assert plugins.told("CHECK")[0]["input"]["prevResult"]
    assert plugins.told("GC")[0]["input"]["cni.dev/valid-attachments"] == [
        {"containerID": pod, "ifname": "eth0"}
    ]
    node.kubelet.RemovePodSandbox(pod_sandbox_id=pod)


def test_a_daemon_that_dies_between_two_plugins_undoes_both(node: Node, plugins: Plugins) -> None:
    house = node.house
    house.stop_daemon()
    program, house.program = house.program, [*python_main("crashing"), "pod: plugin added"]
    try:
        node.restart()
        daemon = house.daemon
        assert daemon is not None
        with suppress(Exception):
            node.run_pod()
        assert daemon.wait(20) == -signal.SIGKILL
    finally:
        house.program = program
    assert [line["name"] for line in plugins.told("ADD")] == ["first"]
    node.restart()
    assert [line["name"] for line in plugins.told("DEL")] == ["second", "first"]
    assert not node.kubelet.ListPodSandbox().items
