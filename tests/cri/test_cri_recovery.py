"""kill -9 at every point of a pod's life, then a restart: done or undone, and nothing left between."""

from __future__ import annotations

import re
import signal
from contextlib import suppress

import pytest
from house import SOURCE, python_main
from kubelet import Kubelet, Node

from nagaya.api.cri import runtime_pb2 as cri

pytestmark = pytest.mark.root

# the state of the pod after crash and restart; None: there is none
POINTS: dict[str, int | None] = {
    "pod: before begin": None,
    "pod: begun": None,
    "pod: directory": None,
    "pod: pinned": None,
    "pod: connected": None,
    "pod: wired": None,
    "pod: init runs": None,
    "pod: done": cri.SANDBOX_READY,
    "pod stop: noted": cri.SANDBOX_NOTREADY,
    "pod stop: taken down": cri.SANDBOX_NOTREADY,
    "pod remove: directory": cri.SANDBOX_NOTREADY,
}


def test_every_point_is_tried() -> None:
    found = set()
    for path in (SOURCE / "nagaya/engine").glob("pods*.py"):
        text = path.read_text()
        found |= set(re.findall(r'\.point\("(pod[^"]+)"\)', text))
        for kind in re.findall(r'journal\.begin\("(pod)"', text):
            found |= {f"{kind}: before begin", f"{kind}: begun"}
    assert found == {*POINTS, "pod: plugin added"}  # that one by test_cri_cni.py


@pytest.mark.parametrize("point", POINTS)
def test_kill_at(node: Node, point: str) -> None:
    house = node.house
    config = node.pod_config()
    config.linux.security_context.namespace_options.pid = cri.POD
    config.port_mappings.add(container_port=80, host_port=18081)
    if house.daemon is not None and house.daemon.poll() is None:
        house.stop_daemon()
    program, house.program = house.program, [*python_main("crashing"), point]
    try:
        node.restart()
        daemon = house.daemon
        assert daemon is not None
        with suppress(Exception):
            pod = node.run_pod(config)
            node.kubelet.StopPodSandbox(pod_sandbox_id=pod)
            node.kubelet.RemovePodSandbox(pod_sandbox_id=pod)
        assert daemon.wait(20) == -signal.SIGKILL, house.tail()
    finally:
        house.program = program
    node.restart()
    assert [p.state for p in pods(node.kubelet)] == ([] if POINTS[point] is None else [POINTS[point]])
    if POINTS[point] == cri.SANDBOX_READY:
        assert node.run_pod(config) == pods(node.kubelet)[0].id
        made = node.container_config("cat", "/proc/1/comm")
        made.linux.security_context.namespace_options.pid = cri.POD
        assert node.run(pods(node.kubelet)[0].id, config=made) == "init\n"
    for found in pods(node.kubelet):
        node.kubelet.RemovePodSandbox(pod_sandbox_id=found.id)
    assert not list((house.run_dir / "pods").iterdir())
    again = node.run_pod(config)  # the port is free, and all works
    node.kubelet.RemovePodSandbox(pod_sandbox_id=again)
    assert not house.leaks()


def pods(kubelet: Kubelet) -> list[cri.PodSandbox]:
    return list(kubelet.ListPodSandbox().items)
