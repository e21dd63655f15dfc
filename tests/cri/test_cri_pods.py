"""Pods over the socket: what they are, what they share, and what is refused."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from grpclib import Status
from kubelet import Kubelet, Node, refused

from nagaya.api.cri import runtime_pb2 as cri

pytestmark = pytest.mark.root


def test_who_it_is(kubelet: Kubelet) -> None:
    found = kubelet.Version(version="v1")
    assert (found.runtime_name, found.runtime_api_version) == ("nagaya", "v1")
    refused(lambda: kubelet.Version(version="v9"), Status.INVALID_ARGUMENT, "version")


def test_status_names_conditions_handlers_and_features(node: Node) -> None:
    found = node.kubelet.Status(verbose=True)
    conditions = {c.type: c for c in found.status.conditions}
    assert conditions["RuntimeReady"].status
    assert conditions["NetworkReady"].status
    assert node.house.bridge in conditions["NetworkReady"].message
    handlers = {h.name: h.features for h in found.runtime_handlers}
    assert handlers[""].recursive_read_only_mounts
    assert {"", "nagaya", "runc"} <= set(handlers)
    assert found.features.supplemental_groups_policy
    assert str(node.house.root) in found.info["config"]
    assert not node.kubelet.Status().info


def test_the_cgroup_driver_is_told(kubelet: Kubelet) -> None:
    assert kubelet.RuntimeConfig().linux.cgroup_driver == cri.CGROUPFS
    kubelet.UpdateRuntimeConfig(
        runtime_config=cri.RuntimeConfig(network_config=cri.NetworkConfig(pod_cidr="10.0.0.0/24"))
    )


def test_a_pod_from_its_beginning_to_its_end(node: Node) -> None:
    kubelet = node.kubelet
    config = node.pod_config(labels={"app": "web", "tier": "front"}, annotations={"note": "one two"})
    pod = node.run_pod(config)
    status = kubelet.PodSandboxStatus(pod_sandbox_id=pod).status
    assert status.metadata == config.metadata
    assert status.state == cri.SANDBOX_READY
    assert status.network.ip.startswith("10.231.0.")
    assert (dict(status.labels), dict(status.annotations)) == (dict(config.labels), dict(config.annotations))
    assert status.created_at > 0
    kubelet.StopPodSandbox(pod_sandbox_id=pod)
    status = kubelet.PodSandboxStatus(pod_sandbox_id=pod).status
    assert status.state == cri.SANDBOX_NOTREADY
    kubelet.StopPodSandbox(pod_sandbox_id=pod)
    kubelet.RemovePodSandbox(pod_sandbox_id=pod)
    kubelet.RemovePodSandbox(pod_sandbox_id=pod)
    kubelet.StopPodSandbox(pod_sandbox_id=pod)
    refused(lambda: kubelet.PodSandboxStatus(pod_sandbox_id=pod), Status.NOT_FOUND, "pod_sandbox_id")


def test_lists_are_filtered(node: Node) -> None:
    kubelet = node.kubelet
    first = node.run_pod(node.pod_config(labels={"filter": "a"}))
    second = node.run_pod(node.pod_config(labels={"filter": "b"}))
    kubelet.StopPodSandbox(pod_sandbox_id=second)

    def ids(**fields: object) -> set[str]:
        wanted = cri.PodSandboxFilter(**fields)  # type: ignore[arg-type]
        streamed = kubelet.StreamPodSandboxes(filter=wanted)
        listed = {p.id for p in kubelet.ListPodSandbox(filter=wanted).items}
        assert {p.id for message in streamed for p in message.pod_sandboxes} == listed
        return listed

    assert ids(id=first[:13]) == {first}
    assert ids(label_selector={"filter": "b"}) == {second}
    assert (
        ids(label_selector={"filter": "b"}, state=cri.PodSandboxStateValue(state=cri.SANDBOX_READY)) == set()
    )
    stopped = cri.PodSandboxStateValue(state=cri.SANDBOX_NOTREADY)
    assert second in ids(state=stopped)
    assert first not in ids(state=stopped)
    assert ids(id="ffff") == set()
    for pod in (first, second):
        kubelet.RemovePodSandbox(pod_sandbox_id=pod)


def test_the_same_request_again_is_the_same_pod(node: Node) -> None:
    config = node.pod_config()
    pod = node.run_pod(config)
    assert node.run_pod(config) == pod
    other = node.pod_config(labels={"x": "y"})
    other.metadata.CopyFrom(config.metadata)
    refused(lambda: node.run_pod(other), Status.ALREADY_EXISTS, "metadata")
    other.metadata.attempt = 1
    again = node.run_pod(other)
    assert again != pod
    for made in (pod, again):
        node.kubelet.RemovePodSandbox(pod_sandbox_id=made)


def test_a_request_whose_caller_gives_up_is_joined_by_the_next(node: Node) -> None:
    config = node.pod_config()
    request = cri.RunPodSandboxRequest(config=config)
    run = node.kubelet.method("RunPodSandbox")

    async def impatient() -> None:
        with pytest.raises((TimeoutError, asyncio.TimeoutError)):
            await asyncio.wait_for(run(request), 0.002)

    node.kubelet.wait(impatient())
    pod = node.run_pod(config)
    same = [p for p in node.kubelet.ListPodSandbox().items if p.metadata == config.metadata]
    assert [p.id for p in same] == [pod]
    node.kubelet.RemovePodSandbox(pod_sandbox_id=pod)


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        (lambda c: c.metadata.ClearField("name"), Status.INVALID_ARGUMENT, "config.metadata.name"),
        (lambda c: c.metadata.ClearField("uid"), Status.INVALID_ARGUMENT, "config.metadata.uid"),
        (lambda c: c.metadata.ClearField("namespace"), Status.INVALID_ARGUMENT, "config.metadata.namespace"),
        (lambda c: setattr(c, "hostname", "a b"), Status.INVALID_ARGUMENT, "hostname"),
        (lambda c: setattr(c, "hostname", "a" * 65), Status.INVALID_ARGUMENT, "hostname"),
        (lambda c: setattr(c, "log_directory", "logs"), Status.INVALID_ARGUMENT, "log_directory"),
        (
            lambda c: c.dns_config.servers.append("1.1.1.1\nx"),
            Status.INVALID_ARGUMENT,
            "config.dns_config.servers",
        ),
        (
            lambda c: c.port_mappings.add(host_port=70000, container_port=1),
            Status.INVALID_ARGUMENT,
            "port_mappings[0]",
        ),
        (lambda c: c.port_mappings.add(host_port=7000), Status.INVALID_ARGUMENT, "port_mappings[0]"),
        (
            lambda c: setattr(c.linux.security_context.namespace_options, "network", cri.TARGET),
            Status.INVALID_ARGUMENT,
            "namespace_options.network",
        ),
        (
            lambda c: setattr(c.linux.security_context.namespace_options, "pid", cri.TARGET),
            Status.INVALID_ARGUMENT,
            "namespace_options.pid",
        ),
        (lambda c: c.linux.sysctls.update({"kernel.nonsense": "1"}), Status.INVALID_ARGUMENT, "sysctl"),
        (lambda c: c.linux.sysctls.update({"kernel.hostname": "x"}), Status.INVALID_ARGUMENT, "sysctl"),
    ],
)
def test_what_cannot_be_a_pod_is_refused_and_leaves_nothing(
    node: Node, change: object, status: Status, words: str
) -> None:
    config = node.pod_config()
    assert callable(change)
    change(config)
    before = node.kubelet.ListPodSandbox().items
    refused(lambda: node.run_pod(config), status, words)
    assert node.kubelet.ListPodSandbox().items == before
    assert len(list((node.house.run_dir / "pods").iterdir())) == len(before)


def test_an_unknown_handler_is_refused(node: Node) -> None:
    refused(lambda: node.run_pod(handler="nosuch"), Status.NOT_FOUND, "runtime_handler")


def test_a_host_port_that_is_taken_undoes_the_pod(node: Node) -> None:
    first = node.pod_config()
    first.port_mappings.add(container_port=80, host_port=18080)
    pod = node.run_pod(first)
    second = node.pod_config()
    second.port_mappings.add(container_port=80, host_port=18080)
    with pytest.raises(Exception, match="18080"):
        node.run_pod(second)
    assert [p.id for p in node.kubelet.ListPodSandbox().items] == [pod]
    node.kubelet.RemovePodSandbox(pod_sandbox_id=pod)
    node.kubelet.RemovePodSandbox(pod_sandbox_id=node.run_pod(second))


def test_containers_of_a_pod_share_what_the_pod_has(node: Node) -> None:
    config = node.pod_config(
        hostname="together", dns_config=cri.DNSConfig(servers=["10.1.2.3"], searches=["a.b"])
    )
    config.linux.sysctls["net.ipv4.ip_local_port_range"] = "1024 2048"
    config.linux.sysctls["kernel.shmmni"] = "77"
    pod = node.run_pod(config)
    first = node.start(pod)
    script = (
        "hostname; cat /etc/resolv.conf; cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/shmmni;"
        " for n in net ipc uts pid mnt; do readlink /proc/self/ns/$n; done"
    )
    text = node.run(pod, "sh", "-c", script).splitlines()
    assert text[:3] == ["together", "nameserver 10.1.2.3", "search a.b"]
    assert [line.split() for line in text[3:5]] == [["1024", "2048"], ["77"]]
    theirs = [
        node.exec(first, "readlink", f"/proc/self/ns/{n}").strip()
        for n in ("net", "ipc", "uts", "pid", "mnt")
    ]
    assert text[5:8] == theirs[:3]
    assert set(text[8:]).isdisjoint(theirs[3:])
    node.exec(first, "sh", "-c", "echo shared > /dev/shm/file")
    assert node.run(pod, "cat", "/dev/shm/file") == "shared\n"
    node.kubelet.RemovePodSandbox(pod_sandbox_id=pod)


def test_a_shared_pid_namespace_has_an_init_and_ends_with_it(node: Node) -> None:
    config = node.pod_config()
    config.linux.security_context.namespace_options.pid = cri.POD
    pod = node.run_pod(config)

    def shared(*command: str) -> cri.ContainerConfig:
        made = node.container_config(*command)
        made.linux.security_context.namespace_options.pid = cri.POD
        return made

    first = node.start(pod, config=shared("sleep", "5151"))
    seen = node.run(pod, config=shared("ps", "-o", "pid,args"))
    lines = [line.split() for line in seen.splitlines()[1:]]
    assert lines[0] == ["1", "/init", "-P"]
    assert ["sleep", "5151"] in [line[1:] for line in lines]
    node.kubelet.StopPodSandbox(pod_sandbox_id=pod)
    assert node.status(first).state == cri.CONTAINER_EXITED
    node.kubelet.RemovePodSandbox(pod_sandbox_id=pod)


def test_a_pod_on_the_node_s_namespaces(node: Node) -> None:
    config = node.pod_config()
    options = config.linux.security_context.namespace_options
    options.network = options.pid = options.ipc = cri.NODE
    pod = node.run_pod(config)
    assert node.kubelet.PodSandboxStatus(pod_sandbox_id=pod).status.network.ip == ""
    made = node.container_config("sh", "-c", "for n in net ipc uts pid; do readlink /proc/self/ns/$n; done")
    made.linux.security_context.namespace_options.CopyFrom(options)
    text = node.run(pod, config=made).splitlines()
    daemon = int((node.house.run_dir / "nagayad.pid").read_text())
    assert text == [str(Path(f"/proc/{daemon}/ns/{n}").readlink()) for n in ("net", "ipc", "uts", "pid")]
    node.kubelet.RemovePodSandbox(pod_sandbox_id=pod)


def test_removing_a_pod_takes_its_running_containers(node: Node) -> None:
    pod = node.run_pod()
    running, created = node.start(pod), node.create(pod)
    node.kubelet.RemovePodSandbox(pod_sandbox_id=pod)
    for container in (running, created):
        refused(lambda c=container: node.status(c), Status.NOT_FOUND, "container_id")  # type: ignore[misc]


def test_pods_are_none_of_docker_s(node: Node, pod: str) -> None:
    container = node.start(pod)
    assert container not in node.house.ok("ps", "-aq", "--no-trunc")
    assert node.house.docker("inspect", container[:12]).returncode == 1
    created = node.create(pod)
    assert created not in node.house.ok("container", "prune", "-f")
    assert node.status(created).state == cri.CONTAINER_CREATED


@pytest.mark.parametrize(
    "name", ["PodSandboxStatus", "ContainerStatus", "StartContainer", "ReopenContainerLog", "ExecSync"]
)
def test_an_empty_and_an_unknown_id_are_named(kubelet: Kubelet, name: str) -> None:
    field = "pod_sandbox_id" if name.startswith("Pod") else "container_id"
    refused(lambda: getattr(kubelet, name)(), Status.INVALID_ARGUMENT, field)
    refused(lambda: getattr(kubelet, name)(**{field: "0123abcd"}), Status.NOT_FOUND, field)
