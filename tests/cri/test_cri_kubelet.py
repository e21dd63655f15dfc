"""A static pod as a kubelet asks for it, field by field: nothing that it sends as a matter of course is
refused here."""

from __future__ import annotations

from pathlib import Path

import pytest
from kubelet import Node

from nagaya.api.cri import runtime_pb2 as cri

pytestmark = pytest.mark.root


def pod_config(node: Node, *, host_network: bool) -> cri.PodSandboxConfig:
    made = node.pod_config(
        hostname="" if host_network else "static-web-node1",
        labels={"io.kubernetes.pod.name": "static-web", "io.kubernetes.pod.namespace": "default"},
        annotations={
            "kubernetes.io/config.source": "file",
            "kubernetes.io/config.seen": "2026-11-25T10:00:00Z",
        },
        dns_config=cri.DNSConfig(
            servers=["10.96.0.10"], searches=["default.svc.cluster.local"], options=["ndots:5"]
        ),
    )
    made.port_mappings.add(container_port=80, host_port=80 if host_network else 0)
    made.port_mappings.add(container_port=53, protocol=cri.UDP)
    linux = made.linux
    linux.cgroup_parent = f"/{node.house.cgroup_parent}/besteffort/pod1"
    options = linux.security_context.namespace_options
    options.network = cri.NODE if host_network else cri.POD
    options.pid = cri.CONTAINER
    options.userns_options.mode = cri.NODE
    linux.security_context.seccomp.profile_type = cri.SecurityProfile.RuntimeDefault
    linux.overhead.SetInParent()
    linux.resources.cpu_period = 100_000
    linux.resources.cpu_shares = 2
    return made


def container_config(node: Node, base: Path) -> cri.ContainerConfig:
    (base / "volumes").mkdir(parents=True, exist_ok=True)
    (base / "etc-hosts").write_text("127.0.0.1 localhost\n10.1.2.3 static-web\n")
    (base / "termination").write_text("")
    made = node.container_config(
        *("sh", "-c"),
        "echo $KUBERNETES_SERVICE_HOST; grep static-web /etc/hosts; cat /sys/fs/cgroup/cpu/cpu.shares;"
        " echo gone > /dev/termination-log; cat /proc/self/oom_score_adj",
        envs=[cri.KeyValue(key="KUBERNETES_SERVICE_HOST", value=b"10.96.0.1")],
        log_path="web/0.log",
        labels={"io.kubernetes.container.name": "web"},
        annotations={"io.kubernetes.container.restartCount": "0"},
        mounts=[
            cri.Mount(container_path="/data", host_path=str(base / "volumes")),
            cri.Mount(container_path="/etc/hosts", host_path=str(base / "etc-hosts")),
            cri.Mount(container_path="/dev/termination-log", host_path=str(base / "termination")),
        ],
        devices=[cri.Device(container_path="/dev/full", host_path="/dev/full", permissions="mrw")],
    )
    made.image.image = next(
        i.id for i in node.kubelet.ListImages().images if "nagaya/busybox" in i.repo_tags[0]
    )
    made.image.user_specified_image = "nagaya/busybox"
    limits = made.linux.resources
    limits.cpu_period, limits.cpu_shares, limits.oom_score_adj = 100_000, 102, 1000
    for size in ("2MB", "1GB"):
        limits.hugepage_limits.add(page_size=size, limit=0)
    security = made.linux.security_context
    security.masked_paths.extend(["/proc/asound", "/proc/acpi", "/proc/kcore", "/sys/firmware"])
    security.readonly_paths.extend(["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"])
    security.seccomp.profile_type = cri.SecurityProfile.RuntimeDefault
    security.namespace_options.userns_options.mode = cri.NODE
    return made


@pytest.mark.parametrize("host_network", [False, True])
def test_a_static_pod(node: Node, host_network: bool) -> None:
    node.run(node.run_pod(), "true")  # the built-in image is there
    base = node.house.base / f"kubelet-{host_network}"
    config = pod_config(node, host_network=host_network)
    pod = node.run_pod(config)
    asked = container_config(node, base)
    asked.linux.security_context.namespace_options.network = (
        config.linux.security_context.namespace_options.network
    )
    container = node.start(pod, config=asked)
    lines = node.output(container).splitlines()
    assert lines == ["10.96.0.1", "10.1.2.3 static-web", "102", "1000"]
    assert (base / "termination").read_text() == "gone\n"
    status = node.status(container)
    assert status.log_path.endswith("/web/0.log")
    assert status.image.user_specified_image == "nagaya/busybox"
    found = node.kubelet.PodSandboxStatus(pod_sandbox_id=pod).status
    assert bool(found.network.ip) is not host_network
    assert found.linux.namespaces.options.pid == cri.CONTAINER
    asked.metadata.attempt = 1  # it has ended: the kubelet makes it again
    asked.log_path = "web/1.log"
    assert node.output(node.start(pod, config=asked)).splitlines() == lines
    for made in node.kubelet.ListPodSandbox().items:
        node.kubelet.RemovePodSandbox(pod_sandbox_id=made.id)
    for parent in sorted(
        Path("/sys/fs/cgroup").glob(f"*/{node.house.cgroup_parent}/besteffort"), reverse=True
    ):
        (parent / "pod1").rmdir()  # the kubelet's, as it made them
        parent.rmdir()
