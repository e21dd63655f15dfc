"""Pods on cgroup v2: their limits in the kernel's files, and what a kubelet reads of their use."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from guest import CGROUP_PARENT, Daemon
from house import wait_for
from kubelet import Kubelet

from nagaya.api.cri import runtime_pb2 as cri

pytestmark = pytest.mark.root

ARGUMENTS = ("--cri-socket", "{base}/run/cri.sock", "--cni-conf-dir", "{base}/cni")
MB = 1 << 20
POD = f"{CGROUP_PARENT}/kubepods/pod1"


@pytest.fixture(scope="module")
def kubelet(daemon: Daemon) -> Iterator[Kubelet]:
    path = daemon.base / "run" / "cri.sock"
    wait_for(path.exists, 120, "the socket")
    made = Kubelet(path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def pod(daemon: Daemon, kubelet: Kubelet) -> Iterator[str]:
    """A pod below a cgroup of the kubelet's."""
    config = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name="pod", uid="1", namespace="tests"),
        log_directory=str(daemon.base / "logs"),
    )
    config.linux.cgroup_parent = f"/{POD}"
    config.linux.security_context.namespace_options.pid = cri.CONTAINER
    made = str(kubelet.RunPodSandbox(config=config, within=300).pod_sandbox_id)
    yield made
    kubelet.RemovePodSandbox(pod_sandbox_id=made, within=300)
    place = Path("/sys/fs/cgroup", POD)
    assert [path.name for path in place.glob("*") if path.is_dir()] == []
    for path in (place, *place.parents[:2]):
        path.rmdir()


def container_config(name: str, *command: str, **limits: Any) -> cri.ContainerConfig:
    config = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name=name),
        image=cri.ImageSpec(image="nagaya/busybox"),
        command=command,
        log_path=f"{name}.log",
    )
    config.linux.resources.MergeFrom(cri.LinuxContainerResources(**limits))
    config.linux.security_context.namespace_options.pid = cri.CONTAINER
    return config


def started(kubelet: Kubelet, pod: str, name: str, *command: str, **limits: Any) -> str:
    config = container_config(name, *command, **limits)
    made = str(kubelet.CreateContainer(pod_sandbox_id=pod, config=config, within=300).container_id)
    kubelet.StartContainer(container_id=made, within=300)
    return made


def values(container: str, *files: str) -> list[str]:
    return [Path("/sys/fs/cgroup", POD, container, file).read_text().strip() for file in files]


def test_limits_of_a_container_are_set_and_changed(kubelet: Kubelet, pod: str) -> None:
    limits = {
        "memory_limit_in_bytes": 64 * MB,
        "cpu_quota": 50_000,
        "cpu_period": 100_000,
        "cpu_shares": 1024,
    }
    made = started(kubelet, pod, "limited", "sleep", "6000", **limits)
    files = ("memory.max", "memory.swap.max", "cpu.max")
    assert values(made, *files) == [str(64 * MB), "0", "50000 100000"]
    said = kubelet.ExecSync(container_id=made, cmd=["cat", "/sys/fs/cgroup/memory.max"], within=300)
    assert (said.exit_code, said.stdout) == (0, b"%d\n" % (64 * MB))
    unified = cri.LinuxContainerResources(
        memory_limit_in_bytes=32 * MB, unified={"memory.high": str(16 * MB)}
    )
    kubelet.UpdateContainerResources(container_id=made, linux=unified, within=300)
    assert values(made, "memory.max", "memory.high", "cpu.max") == [
        str(32 * MB),
        str(16 * MB),
        "50000 100000",
    ]


def test_use_and_pressure_are_told(kubelet: Kubelet, pod: str) -> None:
    busy = "while :; do :; done & while :; do :; done"
    made = started(kubelet, pod, "busy", "sh", "-c", busy, cpu_quota=10_000, cpu_period=100_000)

    def total() -> int:
        found = kubelet.ContainerStats(container_id=made, within=300).stats
        assert found.memory.working_set_bytes.value > 0 and found.cpu.usage_core_nano_seconds.value > 0
        assert found.memory.HasField("psi") and found.io.HasField("psi")
        return int(found.cpu.psi.Some.Total)

    before = total()
    said = kubelet.ExecSync(container_id=made, cmd=["sleep", "2"], within=300)
    assert said.exit_code == 0
    (some,) = [line for line in values(made, "cpu.pressure")[0].splitlines() if line.startswith("some ")]
    after = total()
    assert before < after and int(some.rpartition("=")[2]) * 1000 >= before
    known = {d.name for d in kubelet.ListMetricDescriptors(within=300).descriptors}
    (metrics,) = kubelet.ListPodSandboxMetrics(within=300).pod_metrics
    (of_busy,) = [c for c in metrics.container_metrics if c.container_id == made]
    waiting = {m.name for m in of_busy.metrics if m.name.startswith("container_pressure_")}
    assert len(waiting) == 6 and waiting <= known


def test_a_kill_for_memory_is_told(kubelet: Kubelet, pod: str) -> None:
    hungry = ("sh", "-c", "dd if=/dev/zero of=/dev/null bs=64M count=1; exit $?")
    made = started(kubelet, pod, "hungry", *hungry, memory_limit_in_bytes=16 * MB)
    while (
        status := kubelet.ContainerStatus(container_id=made, within=300).status
    ).state != cri.CONTAINER_EXITED:
        pass
    assert (status.exit_code, status.reason) == (137, "OOMKilled")


@pytest.mark.skipif(shutil.which("criu") is None, reason="criu is not installed")
def test_a_checkpoint_of_a_pod_goes_on(daemon: Daemon, kubelet: Kubelet, pod: str, tmp_path: Path) -> None:
    counting = "i=0; while :; do i=$((i + 1)); echo $i > /root/count; sleep 0.1; done"
    made = started(kubelet, pod, "counting", "sh", "-c", counting)

    def count() -> int:
        said = kubelet.ExecSync(container_id=made, cmd=["cat", "/root/count"], within=300)
        return int(said.stdout or 0)

    wait_for(lambda: count() > 0, 60, "the count")
    archive = tmp_path / "one.tar"
    kubelet.CheckpointContainer(container_id=made, location=str(archive), timeout=300, within=330)
    with tarfile.open(archive) as opened:
        names = set(opened.getnames())
    assert {"checkpoint/inventory.img", "checkpoint/descriptors.json", "rootfs-diff.tar"} <= names
    assert any(name.startswith("checkpoint/pages-") for name in names)
    before = count()
    wait_for(lambda: count() > before, 60, "the loop to go on")
    directory = tmp_path / "pod"
    directory.mkdir()
    kubelet.CheckpointPod(pod_sandbox_id=pod, output_path=str(directory), container_ids=[made], within=300)
    assert {path.name for path in directory.iterdir()} == {"pod.json", f"{made}.tar"}
    reached = count()
    config = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name="again", uid="2", namespace="tests"),
        log_directory=str(daemon.base / "logs" / "again"),
    )
    config.linux.cgroup_parent = f"/{POD}-again"
    config.linux.security_context.namespace_options.pid = cri.CONTAINER
    asked = container_config("counting", "sh", "-c", counting)
    answer = kubelet.RestorePod(
        checkpoint_path=str(directory), config=config, container_configs=[asked], within=300
    )
    (restored,) = answer.restored_containers
    try:
        kubelet.StartContainer(container_id=restored.container_id, within=300)
        made = restored.container_id
        wait_for(lambda: count() > reached, 60, "the loop to go on where it was")
        assert count() < reached + 600, "it did not begin anew, nor has it another's count"
    finally:
        kubelet.RemovePodSandbox(pod_sandbox_id=answer.pod_sandbox_id, within=300)
    Path("/sys/fs/cgroup", f"{POD}-again").rmdir()
