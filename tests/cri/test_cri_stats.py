"""Statistics and metrics over the socket: what is counted grows, and what has ended is not there."""

from __future__ import annotations

import pytest
from grpclib import Status
from house import wait_for
from kubelet import Node, refused

from nagaya.api.cri import runtime_pb2 as cri

pytestmark = pytest.mark.root

BUSY = "dd if=/dev/zero of=/written bs=1M count=2; while :; do :; done"


def test_a_container_s_use_is_counted(node: Node, pod: str) -> None:
    config = node.container_config("sh", "-c", BUSY, labels={"app": "busy"}, annotations={"n": "m"})
    config.linux.resources.memory_limit_in_bytes = 128 << 20
    container = node.start(pod, config=config)

    def stats() -> cri.ContainerStats:
        found: cri.ContainerStats = node.kubelet.ContainerStats(container_id=container).stats
        return found

    wait_for(lambda: stats().writable_layer.used_bytes.value >= 2 << 20, 10, "what is written")
    wait_for(lambda: stats().cpu.usage_core_nano_seconds.value > 0, 10, "processor time")
    found = stats()
    assert found.attributes.id == container
    assert found.attributes.metadata == config.metadata
    assert dict(found.attributes.labels) == {"app": "busy"}
    assert found.cpu.timestamp > 0
    assert found.cpu.HasField("usage_nano_cores")
    assert 0 < found.memory.working_set_bytes.value <= found.memory.usage_bytes.value
    limit = found.memory.working_set_bytes.value + found.memory.available_bytes.value
    assert limit == 128 << 20
    assert found.writable_layer.inodes_used.value >= 1
    assert found.writable_layer.fs_id.mountpoint.startswith(str(node.house.root))
    before = found.cpu.usage_core_nano_seconds.value
    wait_for(lambda: stats().cpu.usage_core_nano_seconds.value > before, 10, "more processor time")


def test_lists_of_statistics(node: Node, pod: str) -> None:
    kubelet = node.kubelet
    running = node.start(pod, labels={"which": "running"})
    created = node.create(pod)

    def ids(**fields: object) -> set[str]:
        wanted = cri.ContainerStatsFilter(**fields)  # type: ignore[arg-type]
        streamed = kubelet.StreamContainerStats(filter=wanted)
        listed = {s.attributes.id for s in kubelet.ListContainerStats(filter=wanted).stats}
        assert {s.attributes.id for message in streamed for s in message.container_stats} == listed
        return listed

    assert ids(pod_sandbox_id=pod) == {running}
    assert ids(id=running[:12]) == {running}
    assert ids(label_selector={"which": "running"}) == {running}
    assert ids(label_selector={"which": "nothing"}) == set()
    assert kubelet.ContainerStats(container_id=created).stats.attributes.id == created
    refused(lambda: kubelet.ContainerStats(container_id="0123"), Status.NOT_FOUND, "container_id")


def test_a_pod_s_use_is_that_of_its_containers_and_its_network(node: Node) -> None:
    kubelet = node.kubelet
    config = node.pod_config(labels={"stats": "pod"})
    pod = node.run_pod(config)
    first, second = (
        node.start(pod),
        node.start(pod, "sh", "-c", "ping -c 3 -i 0.1 10.231.0.1; exec sleep 600"),
    )
    wanted = cri.PodSandboxStatsFilter(label_selector={"stats": "pod"})

    def stats() -> cri.PodSandboxStats:
        found: list[cri.PodSandboxStats] = list(kubelet.ListPodSandboxStats(filter=wanted).stats)
        assert len(found) == 1
        return found[0]

    wait_for(lambda: stats().linux.network.default_interface.tx_bytes.value > 0, 10, "traffic")
    found = stats()
    assert found.attributes.id == pod
    assert found.attributes.metadata == config.metadata
    assert found.linux.network.default_interface.name == "eth0"
    assert {c.attributes.id for c in found.linux.containers} == {first, second}
    assert found.linux.process.process_count.value >= 2
    total = sum(c.memory.usage_bytes.value for c in found.linux.containers)
    assert found.linux.memory.usage_bytes.value == total
    assert kubelet.PodSandboxStats(pod_sandbox_id=pod).stats.attributes.id == pod
    streamed = kubelet.StreamPodSandboxStats(filter=wanted)
    assert [s.attributes.id for message in streamed for s in message.pod_sandbox_stats] == [pod]
    kubelet.StopPodSandbox(pod_sandbox_id=pod)
    assert not kubelet.ListPodSandboxStats(filter=wanted).stats
    kubelet.RemovePodSandbox(pod_sandbox_id=pod)
    refused(lambda: kubelet.PodSandboxStats(pod_sandbox_id=pod), Status.NOT_FOUND, "pod_sandbox_id")


def test_metrics_have_the_labels_that_their_descriptors_tell(node: Node, pod: str) -> None:
    kubelet = node.kubelet
    config = node.container_config("sh", "-c", "exec sleep 600")
    config.linux.resources.cpu_shares = 512
    container = node.start(pod, config=config)
    labels = {d.name: list(d.label_keys) for d in kubelet.ListMetricDescriptors().descriptors}
    assert len(labels) > 40
    assert labels["container_network_receive_bytes_total"][-1] == "interface"
    (found,) = [m for m in kubelet.ListPodSandboxMetrics().pod_metrics if m.pod_sandbox_id == pod]
    (of_container,) = found.container_metrics
    assert of_container.container_id == container
    seen = {}
    for metric in [*found.metrics, *of_container.metrics]:
        assert len(metric.label_values) == len(labels[metric.name]), metric.name
        assert metric.timestamp > 0
        seen[metric.name] = metric.value.value
    assert seen["container_spec_cpu_shares"] == 512
    assert seen["container_processes"] == seen["container_threads"] == 1
    assert seen["container_file_descriptors"] >= 3
    assert seen["container_start_time_seconds"] > 1_700_000_000
    assert seen["container_memory_usage_bytes"] > 0
    assert "container_network_transmit_packets_total" in seen
    streamed = [m for message in kubelet.StreamPodSandboxMetrics() for m in message.pod_sandbox_metrics]
    assert pod in {m.pod_sandbox_id for m in streamed}


def test_new_limits_of_a_pod_are_noted(node: Node, pod: str) -> None:
    update = node.kubelet.UpdatePodSandboxResources
    update(pod_sandbox_id=pod, resources=cri.LinuxContainerResources(cpu_shares=77))
    info = node.kubelet.PodSandboxStatus(pod_sandbox_id=pod, verbose=True).info["info"]
    assert '"cpu_shares": 77' in info
    refused(lambda: update(pod_sandbox_id="0123"), Status.NOT_FOUND, "pod_sandbox_id")
