"""Pods in microVMs, over the CRI: one machine for all containers of a pod."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import microruntime
import pytest
from house import wait_for
from kubelet import Node
from streams import WebSocket

from nagaya.api.cri import runtime_pb2 as cri

pytestmark = microruntime.needed

HANDLER = "nagaya-vm"


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with tempfile.TemporaryDirectory(prefix="nagt-vm-") as directory:
        command = microruntime.command(Path(directory))
        with Node(config=f'[runtimes]\n"nagaya-vm" = "{command}"\n') as made:
            yield made


@pytest.fixture
def pod(node: Node) -> Iterator[str]:
    config = node.pod_config(hostname="podhost")
    made = node.run_pod(config, HANDLER)
    yield made
    node.kubelet.RemovePodSandbox(pod_sandbox_id=made)
    assert machines(node) == []


def machines(node: Node) -> list[str]:
    """The machines of pods that run now, by their monitors' directories."""
    return [str(path) for path in (node.house.run_dir / "foreign").glob("nagaya-vm.pods/*")]


def test_two_containers_in_one_machine(node: Node, pod: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "token").write_text("secret")
    volume = cri.Mount(host_path=str(tmp_path), container_path="/token", readonly=True)
    script = "echo one > /dev/shm/x; httpd -f -h /token -p 8080"
    first = node.start(pod, "sh", "-c", script, mounts=[volume])
    second = node.start(pod, "sleep", "600", mounts=[volume])
    assert len(machines(node)) == 1
    kernels = {node.exec(c, "cat", "/proc/sys/kernel/random/boot_id") for c in (first, second)}
    assert len(kernels) == 1 and node.exec(first, "uname", "-r").strip() != os.uname().release
    # one network and one host name, and two file systems
    fetch = "until wget -q -O - localhost:8080/token; do sleep 0.1; done"
    assert node.exec(second, "sh", "-c", fetch) == "secret"
    assert node.exec(first, "hostname") == node.exec(second, "hostname") == "podhost\n"
    node.exec(first, "touch", "/only-here")
    assert node.kubelet.ExecSync(container_id=second, cmd=["ls", "/only-here"]).exit_code == 1
    assert "httpd" not in node.exec(second, "ps")
    assert node.exec(second, "cat", "/dev/shm/x") == "one\n"
    stats = node.kubelet.ContainerStats(container_id=first).stats
    assert stats.memory.working_set_bytes.value > 0


def test_a_container_ends_and_another_begins(node: Node, pod: str) -> None:
    stays = node.start(pod, "sleep", "600")
    boot = node.exec(stays, "cat", "/proc/sys/kernel/random/boot_id")
    for number in range(3):
        script = f"echo {number}; cat /proc/sys/kernel/random/boot_id"
        assert node.run(pod, "sh", "-c", script) == f"{number}\n{boot}"
    node.kubelet.StopContainer(container_id=stays, timeout=0)
    assert node.status(stays).state == cri.CONTAINER_EXITED
    wait_for(lambda: machines(node) == [], 30, "the machine's end with its last container")
    # the pod lives on: its next container gets another machine, on the same network
    again = node.start(pod, "sleep", "600")
    assert node.exec(again, "cat", "/proc/sys/kernel/random/boot_id") != boot
    assert "eth0" in node.exec(again, "ip", "address")


def test_the_network_of_the_node_is_refused(node: Node) -> None:
    config = node.pod_config()
    config.linux.security_context.namespace_options.network = cri.NODE
    made = node.run_pod(config, HANDLER)
    with pytest.raises(Exception, match="cannot use the host's network"):
        node.start(made, "true")
    node.kubelet.RemovePodSandbox(pod_sandbox_id=made)
    assert machines(node) == []


def test_a_port_is_forwarded_to_the_guest(node: Node, pod: str) -> None:
    script = "mkdir /www; echo hallo > /www/index.html; exec httpd -f -p 8080 -h /www"
    container = node.start(pod, "sh", "-c", script)
    tables = ("cat", "/proc/net/tcp", "/proc/net/tcp6")
    wait_for(lambda: ":1F90 " in node.exec(container, *tables), 60, "the server")
    url = node.kubelet.PortForward(pod_sandbox_id=pod, port=[8080]).url
    made = WebSocket(node.house, url, "v4.channel.k8s.io", ("data", "error"))
    made.until("data", (8080).to_bytes(2, "little"))
    made.send("data", b"GET /index.html HTTP/1.0\r\n\r\n")
    made.until("data", b"hallo\n")
    made.sock.close()
