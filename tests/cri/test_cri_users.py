"""Pods with a user namespace of their own: root there is nobody on the node."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from grpclib import Status
from house import wait_for
from kubelet import Node, refused

from nagaya.api.cri import runtime_pb2 as cri

pytestmark = pytest.mark.root

HOST, LENGTH = 200_000, 65_536


def config(node: Node, pid: cri.NamespaceMode = cri.CONTAINER) -> cri.PodSandboxConfig:
    made = node.pod_config()
    options = made.linux.security_context.namespace_options
    options.pid = pid
    options.userns_options.mode = cri.POD
    options.userns_options.uids.add(host_id=HOST, length=LENGTH)
    options.userns_options.gids.add(host_id=HOST, length=LENGTH)
    return made


def container(node: Node, *command: str, pid: cri.NamespaceMode = cri.CONTAINER) -> cri.ContainerConfig:
    made = node.container_config(*command)
    made.linux.security_context.namespace_options.pid = pid
    return made


@pytest.mark.parametrize("pid", [cri.CONTAINER, cri.POD])
def test_root_is_nobody_on_the_node(node: Node, pid: cri.NamespaceMode) -> None:
    pod = node.run_pod(config(node, pid))
    assert node.kubelet.PodSandboxStatus(pod_sandbox_id=pod).status.network.ip
    script = (
        "id -u; cat /proc/self/uid_map; stat -c %u /bin/busybox; echo mine > /file; stat -c %u:%g /file;"
        " echo x > /dev/shm/x && hostname changed && hostname; exec sleep 600"
    )
    asked = container(node, "sh", "-c", script, pid=pid)
    asked.linux.security_context.capabilities.add_capabilities.append("SYS_ADMIN")  # over its own only
    made = node.start(pod, config=asked)
    log = Path(node.status(made).log_path)
    wait_for(lambda: "changed" in log.read_text(), 10, "the output")
    lines = [line.split(" ", 3)[3] for line in log.read_text().splitlines()]
    assert lines[0] == "0"
    assert lines[1].split() == ["0", str(HOST), str(LENGTH)]
    assert lines[2:5] == ["0", "0:0", "changed"], lines
    pids = Path("/proc").glob("[0-9]*/uid_map")
    found = [p for p in pids if p.stat() and str(HOST) in p.read_text()]
    assert any(p.parent.stat().st_uid == HOST for p in found)
    assert node.exec(made, "id", "-u") == "0\n"
    node.kubelet.StopContainer(container_id=made, timeout=0)
    assert str(made) not in Path("/proc/self/mountinfo").read_text()
    node.kubelet.RemovePodSandbox(pod_sandbox_id=pod)


def test_a_mount_whose_owners_are_mapped(node: Node) -> None:
    source = node.house.base / "owned"
    source.mkdir()
    (source / "file").write_text("x")
    pod = node.run_pod(config(node))
    mount = cri.Mount(container_path="/mnt", host_path=str(source))
    mount.uidMappings.add(host_id=HOST, length=LENGTH)
    mount.gidMappings.add(host_id=HOST, length=LENGTH)
    made = container(node, "sh", "-c", "stat -c %u /mnt/file; echo y > /mnt/new && echo written")
    made.mounts.append(mount)
    assert node.run(pod, config=made).split() == ["0", "written"]
    assert (source / "new").stat().st_uid == 0
    plain = container(node, "stat", "-c", "%u", "/mnt/file")
    plain.mounts.add(container_path="/mnt", host_path=str(source))
    assert node.run(pod, config=plain) == "65534\n"
    node.kubelet.RemovePodSandbox(pod_sandbox_id=pod)


def test_it_outlives_the_daemon(node: Node) -> None:
    pod = node.run_pod(config(node))
    first, second = (node.start(pod, config=container(node)) for _ in range(2))
    node.house.kill_daemon()
    os.kill(node_pid(node, second), 9)
    node.restart()
    assert node.exec(first, "id", "-u") == "0\n"
    assert node.status(second).exit_code == 137
    roots = node.house.run_dir / "pods" / pod / "roots"
    assert [p.name for p in roots.iterdir()] == [first]
    assert node.run(pod, config=container(node, "id", "-u")) == "0\n"
    node.kubelet.RemovePodSandbox(pod_sandbox_id=pod)


def node_pid(node: Node, container_id: str) -> int:
    (found,) = Path("/sys/fs/cgroup/pids").rglob(f"*{container_id}/cgroup.procs")
    return int(found.read_text().split()[0])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda u: u.uids.add(container_id=9, host_id=9, length=9), "uids"),
        (lambda u: setattr(u.uids[0], "container_id", 5), "not mapped"),
        (lambda u: setattr(u.gids[0], "length", 0), "gids"),
        (lambda u: setattr(u.gids[0], "host_id", 7), "differ"),
        (lambda u: setattr(u, "mode", cri.CONTAINER), "mode"),
        (lambda u: setattr(u, "mode", cri.TARGET), "mode"),
        (lambda u: setattr(u, "mode", cri.NODE), "without"),
    ],
)
def test_what_is_no_mapping_is_refused(
    node: Node, change: Callable[[cri.UserNamespace], object], word: str
) -> None:
    made = config(node)
    change(made.linux.security_context.namespace_options.userns_options)
    refused(lambda: node.run_pod(made), Status.INVALID_ARGUMENT, word)


def test_contradictions_are_refused(node: Node) -> None:
    made = config(node)
    made.linux.security_context.namespace_options.network = cri.NODE
    refused(lambda: node.run_pod(made), Status.INVALID_ARGUMENT, "network")
    refused(lambda: node.run_pod(config(node), handler="runc"), Status.UNIMPLEMENTED, "runc")
    pod = node.run_pod(config(node))
    other = container(node)
    options = other.linux.security_context.namespace_options.userns_options
    options.uids.add(host_id=5, length=5)
    options.gids.add(host_id=5, length=5)
    refused(lambda: node.create(pod, config=other), Status.INVALID_ARGUMENT, "not the pod's")
    image = container(node)
    image.mounts.add(container_path="/x", image=cri.ImageSpec(image="nagaya/busybox"), readonly=True)
    refused(lambda: node.create(pod, config=image), Status.UNIMPLEMENTED, "user namespaces")
    node.kubelet.RemovePodSandbox(pod_sandbox_id=pod)


def test_the_node_s_user_namespace_by_name(node: Node) -> None:
    made = node.pod_config()
    made.linux.security_context.namespace_options.userns_options.mode = cri.NODE
    pod = node.run_pod(made)
    assert node.run(pod, "cat", "/proc/self/uid_map") == Path("/proc/self/uid_map").read_text()
    node.kubelet.RemovePodSandbox(pod_sandbox_id=pod)
