"""Mistakes of containerd, CRI-O and their network plugins, as tests of pods. Each is named after the first
report of its kind. Elsewhere:

    CVE-2022-1708, 2022-31030      tests/cri/test_cri_streams.py (16 MiB of an exec's output)
    CVE-2023-25173, 2024-40635, 2026-46680, 2026-47262            test_daemon_cves.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from grpclib import Status
from kubelet import Node, refused

from nagaya.api.cri import runtime_pb2 as cri

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node() as made:
        yield made


@pytest.fixture
def pod(node: Node) -> Iterator[str]:
    """A pod that is removed with all that is in it."""
    made = node.run_pod()
    yield made
    node.kubelet.RemovePodSandbox(pod_sandbox_id=made)


def bundle(node: Node, container: str) -> dict[str, object]:
    """The config.json that the runtime was given."""
    found: dict[str, object] = json.loads(
        (node.house.run_dir / "bundles" / container / "config.json").read_text()
    )
    return found


@pytest.mark.parametrize(
    ("namespace", "name"), [("ipc", "kernel.shm_rmid_forced"), ("network", "net.core.somaxconn")]
)
def test_cve_2022_0532_no_sysctl_in_a_namespace_of_the_host(node: Node, namespace: str, name: str) -> None:
    config = node.pod_config()
    setattr(config.linux.security_context.namespace_options, namespace, cri.NODE)
    config.linux.sysctls[name] = "1"
    before = Path("/proc/sys", *name.split(".")).read_text()
    refused(lambda: node.run_pod(config), Status.INVALID_ARGUMENT, name)
    assert Path("/proc/sys", *name.split(".")).read_text() == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kernel.core_pattern", "|/bin/x"),
        ("kernel/core_pattern", "|/bin/x"),
        ("kernel.shm_rmid_forced+kernel.core_pattern", "1"),
        ("kernel.shm_rmid_forced=1+kernel.core_pattern", "|/bin/x"),
        ("net.../kernel.core_pattern", "|/bin/x"),
        ("net.ipv4.ip_forward\nkernel.core_pattern", "|/bin/x"),
    ],
)
def test_cve_2022_0811_a_sysctl_is_one_of_the_namespaces_own(node: Node, name: str, value: str) -> None:
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    config = node.pod_config()
    config.linux.sysctls[name] = value
    refused(lambda: node.run_pod(config), Status.INVALID_ARGUMENT)
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before


def test_cve_2022_0811_a_value_is_no_further_sysctl(node: Node) -> None:
    """What stands behind a + or the end of a line is a wrong value, never another setting."""
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    config = node.pod_config()
    config.linux.sysctls["kernel.shm_rmid_forced"] = "1\nkernel.core_pattern=|/bin/x"
    try:
        pod = node.run_pod(config)
    except Exception:
        pass
    else:
        node.kubelet.RemovePodSandbox(pod_sandbox_id=pod)
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before


def test_cve_2024_3154_annotations_give_the_runtime_no_orders(node: Node, pod: str) -> None:
    """Also CVE-2023-6476, limits by annotation: of a pod nothing arrives, of a container only its notes."""
    orders = {
        "org.systemd.property.ExecStartPre": "[('/bin/sh', ['sh', '-c', 'x'], false)]",
        "org.criu.config": "/etc/shadow",
        "run.oci.hooks.stderr": "/etc/cron.d/x",
        "io.kubernetes.cri-o.UnifiedCgroup.c1": "memory.max=max",
    }
    config = node.pod_config(annotations=orders)
    other = node.run_pod(config)
    for where in (pod, other):
        container = node.start(where, annotations={**orders, "note": "x"})
        told = bundle(node, container)["annotations"]
        assert isinstance(told, dict) and told["note"] == "x"
        assert not [key for key in told if key.startswith(("org.systemd", "org.criu", "run.oci"))]
        # the kubelet's list shows it as it was sent
        assert node.status(container).annotations["org.criu.config"] == "/etc/shadow"
    node.kubelet.RemovePodSandbox(pod_sandbox_id=other)


@pytest.mark.parametrize("home", ["/root\nevil:x:0:0::/:/bin/sh", "/a:/b"])
def test_cve_2022_4318_an_environment_writes_no_passwd(node: Node, pod: str, home: str) -> None:
    """Also CVE-2026-15809. HOME may be any text: it is a variable, and no line of a file."""
    container = node.start(pod, envs=[cri.KeyValue(key="HOME", value=home.encode())])
    assert "evil" not in node.exec(container, "cat", "/etc/passwd")
    assert node.exec(container, "sh", "-c", 'printf %s "$HOME"') == home


@pytest.mark.parametrize("kind", ["../../bin/sh", "/bin/sh", "..", "a/b", "", "a\0b"])
def test_cve_2021_20206_a_network_plugin_is_a_name(node: Node, kind: str) -> None:
    conf = node.cni / "10-evil.conflist"
    document = {"cniVersion": "1.0.0", "name": "evil", "plugins": [{"type": kind}]}
    conf.write_text(json.dumps(document))
    try:
        refused(node.run_pod, Status.INVALID_ARGUMENT, "type")
    finally:
        conf.unlink()


def test_cve_2020_14370_environments_of_a_pods_containers_stay_apart(node: Node, pod: str) -> None:
    """Also CVE-2021-21334."""
    for number in range(3):
        variable = cri.KeyValue(key=f"SECRET{number}", value=b"x")
        said = node.run(pod, "env", envs=[variable])
        assert [line for line in said.splitlines() if line.startswith("SECRET")] == [f"SECRET{number}=x"]


def test_cve_2025_47291_a_pod_with_its_own_users_is_below_its_cgroup(node: Node) -> None:
    parent = f"/{node.house.tag}/pods"
    config = node.pod_config()
    config.linux.cgroup_parent = parent
    users = config.linux.security_context.namespace_options.userns_options
    users.mode = cri.POD
    for mapping in (users.uids.add(), users.gids.add()):
        mapping.host_id, mapping.container_id, mapping.length = 300000, 0, 65536
    pod = node.run_pod(config)
    made = node.container_config()
    made.linux.security_context.namespace_options.CopyFrom(config.linux.security_context.namespace_options)
    made.linux.security_context.namespace_options.pid = cri.CONTAINER
    container = node.start(pod, config=made)
    info = json.loads(node.kubelet.ContainerStatus(container_id=container, verbose=True).info["info"])
    lines = Path(f"/proc/{info['pid']}/cgroup").read_text().splitlines()
    memory = next(line for line in lines if line.split(":")[1] in ("memory", ""))
    assert memory.split(":")[2].startswith(f"{parent}/")
    node.kubelet.RemovePodSandbox(pod_sandbox_id=pod)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: setattr(c.metadata, "name", "../../x"),
        lambda c: setattr(c.metadata, "uid", "../../x"),
        lambda c: setattr(c.metadata, "namespace", "../../x"),
    ],
)
def test_cve_2026_33747_a_name_is_never_a_path(
    node: Node, change: Callable[[cri.PodSandboxConfig], None]
) -> None:
    """What a client names is a label: state lies below ids of our own."""
    before = {path for path in node.house.base.rglob("*") if path.name == "x"}
    config = node.pod_config()
    change(config)
    pod = node.run_pod(config)
    assert {path for path in node.house.base.rglob("*") if path.name == "x"} == before
    node.kubelet.RemovePodSandbox(pod_sandbox_id=pod)
