"""Plugins of the Node Resource Interface: what they are told, what they may change, how they fail."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from grpclib import Status
from house import wait_for
from kubelet import Node, refused
from nriplugin import NriPlugin

from nagaya.api.cri import runtime_pb2 as cri
from nagaya.api.nri import nri_pb2 as nri

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    made = Node()
    made.house.extra += ["--nri-socket", str(made.house.run_dir / "nri.sock")]
    with made:
        yield made


def plugin(node: Node, name: str = "tester", index: str = "10") -> NriPlugin:
    return NriPlugin(node.house.run_dir / "nri.sock", name, index)


def adjusting(**fields: object) -> Callable[[nri.CreateContainerRequest], nri.CreateContainerResponse]:
    adjust = nri.ContainerAdjustment(**fields)  # type: ignore[arg-type]
    return lambda _: nri.CreateContainerResponse(adjust=adjust)


def raising(text: str) -> Callable[[object], NoReturn]:
    def answer(_: object) -> NoReturn:
        raise RuntimeError(text)

    return answer


def test_a_life_in_the_right_order(node: Node) -> None:
    with plugin(node) as told:
        config = node.pod_config(labels={"app": "x"}, annotations={"note": "y"})
        pod = node.run_pod(config)
        made = node.create(pod, envs=[cri.KeyValue(key="A", value=b"b")])
        node.kubelet.StartContainer(container_id=made)
        limits = cri.LinuxContainerResources(cpu_shares=333)
        node.kubelet.UpdateContainerResources(container_id=made, linux=limits)
        node.kubelet.StopPodSandbox(pod_sandbox_id=pod)
        node.kubelet.StopPodSandbox(pod_sandbox_id=pod)
        node.kubelet.RemovePodSandbox(pod_sandbox_id=pod)
    assert told.methods(pod) == ["RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"]
    assert told.methods(made) == [
        "CreateContainer",
        "PostCreateContainer",
        "StartContainer",
        "PostStartContainer",
        "UpdateContainer",
        "PostUpdateContainer",
        "StopContainer",
        "RemoveContainer",
    ]
    seen = next(r for m, r in told.told if m == "RunPodSandbox").pod
    assert (seen.name, seen.uid, seen.namespace) == (
        config.metadata.name,
        config.metadata.uid,
        config.metadata.namespace,
    )
    assert (dict(seen.labels), dict(seen.annotations)) == ({"app": "x"}, {"note": "y"})
    assert {n.type for n in seen.linux.namespaces} >= {"network", "ipc", "uts"}
    created = next(r for m, r in told.told if m == "CreateContainer").container
    assert "A=b" in created.env
    assert list(created.args) == ["sleep", "600"]
    updated = next(r for m, r in told.told if m == "UpdateContainer")
    assert updated.linux_resources.cpu.shares.value == 333


def test_an_end_by_itself_is_told_once(node: Node, pod: str) -> None:
    with plugin(node) as told:
        made = node.start(pod, "sh", "-c", "exit 1")
        node.ended(made)
        wait_for(lambda: "StopContainer" in told.methods(made), 10, "the end")
        node.kubelet.StopContainer(container_id=made, timeout=0)
        node.kubelet.RemoveContainer(container_id=made)
    assert told.methods(made)[-2:] == ["StopContainer", "RemoveContainer"]
    assert told.methods(made).count("StopContainer") == 1


def test_what_was_there_before(node: Node, pod: str) -> None:
    made = node.start(pod)
    with plugin(node) as told:
        (known,) = [r for m, r in told.told if m == "Synchronize"]
        assert pod in {p.id for p in known.pods}
        found = {c.id: c for c in known.containers}
        assert found[made].state == nri.CONTAINER_RUNNING
        assert found[made].pid > 0
        (configured,) = [r for m, r in told.told if m == "Configure"]
        assert configured.runtime_name == "nagaya"


def test_adjustments(node: Node, pod: str) -> None:
    source = node.house.base / "from-plugin"
    source.mkdir(exist_ok=True)
    (source / "file").write_text("mounted\n")
    with plugin(node) as told:
        told.answers["CreateContainer"] = adjusting(
            annotations={"added": "yes", "-gone": ""},
            env=[nri.KeyValue(key="ADDED", value="1"), nri.KeyValue(key="-TAKEN")],
            mounts=[
                nri.Mount(destination="/plugin", type="bind", source=str(source), options=["rbind", "ro"])
            ],
            rlimits=[nri.POSIXRlimit(type="RLIMIT_NOFILE", hard=99, soft=98)],
            linux=nri.LinuxContainerAdjustment(
                devices=[nri.LinuxDevice(path="/dev/added", type="c", major=1, minor=5)],
                resources=nri.LinuxResources(memory=nri.LinuxMemory(limit=nri.OptionalInt64(value=48 << 20))),
                oom_score_adj=nri.OptionalInt(value=123),
            ),
        )
        script = (
            "echo $ADDED${TAKEN:-none}; cat /plugin/file; ulimit -n; head -c 2 /dev/added | wc -c;"
            " cat /proc/self/oom_score_adj; exec sleep 600"
        )
        envs = [cri.KeyValue(key="TAKEN", value=b"still")]
        made = node.start(pod, "sh", "-c", script, envs=envs, annotations={"gone": "1", "kept": "2"})
    log = Path(node.status(made).log_path)
    wait_for(lambda: len(log.read_text().splitlines()) == 5, 10, "the output")
    assert [line.split(" ", 3)[3] for line in log.read_text().splitlines()] == [
        "1none",
        "mounted",
        "98",
        "2",
        "123",
    ]
    (limit,) = Path("/sys/fs/cgroup/memory").rglob(f"*{made}/memory.limit_in_bytes")
    assert int(limit.read_text()) == 48 << 20
    info = node.kubelet.ContainerStatus(container_id=made, verbose=True).info["info"]
    assert '"added": "yes"' in info


def test_arguments_and_hooks(node: Node, pod: str) -> None:
    mark = node.house.base / "hooked"
    hook = nri.Hook(path="/bin/sh", args=["sh", "-c", f"cat > {mark}"])
    with plugin(node) as told:
        told.answers["CreateContainer"] = adjusting(
            args=["echo", "replaced"], hooks=nri.Hooks(create_runtime=[hook])
        )
        made = node.start(pod, "echo", "original")
        assert node.output(made) == "replaced\n"
    assert made in mark.read_text()


def test_adjustments_of_scheduling_filters_and_namespaces(node: Node, pod: str) -> None:
    refusing = nri.LinuxSeccomp(
        default_action="SCMP_ACT_ALLOW",
        syscalls=[
            nri.LinuxSyscall(
                names=["sethostname"], action="SCMP_ACT_ERRNO", errno_ret=nri.OptionalUInt32(value=5)
            )
        ],
    )
    with plugin(node) as told:
        told.answers["CreateContainer"] = adjusting(
            linux=nri.LinuxContainerAdjustment(
                io_priority=nri.LinuxIOPriority(**{"class": nri.IOPRIO_CLASS_BE, "priority": 6}),
                scheduler=nri.LinuxScheduler(policy=nri.SCHED_BATCH, nice=3),
                memory_policy=nri.LinuxMemoryPolicy(mode=nri.MPOL_DEFAULT),
                seccomp_policy=refusing,
                namespaces=[nri.LinuxNamespace(type="uts")],
            )
        )
        script = "readlink /proc/$$/ns/uts; ionice -p $$; cut -d' ' -f 19,41 /proc/$$/stat; hostname other"
        made = node.start(pod, "sh", "-c", script)
        status = node.ended(made)
    lines = [line.split(" ", 3)[3] for line in Path(status.log_path).read_text().splitlines()]
    assert lines[1:3] == ["best-effort: prio 6", "3 3"]  # nice, and SCHED_BATCH
    assert status.exit_code == 1 and "Input/output error" in lines[3], lines
    assert node.run(pod, "readlink", "/proc/self/ns/uts").strip() != lines[0]


def test_limits_of_a_pod_and_what_a_plugin_makes_of_a_container_s(node: Node, pod: str) -> None:
    made = node.start(pod)
    with plugin(node) as told:
        limits = cri.LinuxContainerResources(cpu_shares=555)
        node.kubelet.UpdatePodSandboxResources(pod_sandbox_id=pod, resources=limits)
        assert told.methods(pod) == ["UpdatePodSandbox", "PostUpdatePodSandbox"]
        asked = next(r for m, r in told.told if m == "UpdatePodSandbox")
        assert asked.linux_resources.cpu.shares.value == 555
        after = next(r for m, r in told.told if m == "PostUpdatePodSandbox").pod
        assert after.linux.pod_resources.cpu.shares.value == 555
        memory = nri.LinuxResources(memory=nri.LinuxMemory(limit=nri.OptionalInt64(value=96 << 20)))
        own = nri.ContainerUpdate(container_id=made, linux=nri.LinuxContainerUpdate(resources=memory))
        told.answers["UpdateContainer"] = lambda _: nri.UpdateContainerResponse(update=[own])
        node.kubelet.UpdateContainerResources(container_id=made, linux=limits)
        told.answers["UpdatePodSandbox"] = raising("not now")
        refused(
            lambda: node.kubelet.UpdatePodSandboxResources(pod_sandbox_id=pod, resources=limits),
            Status.UNAVAILABLE,
            "not now",
        )
    shown = node.status(made).resources.linux
    assert (shown.cpu_shares, shown.memory_limit_in_bytes) == (555, 96 << 20)
    (limit,) = Path("/sys/fs/cgroup/memory").rglob(f"*{made}/memory.limit_in_bytes")
    assert int(limit.read_text()) == 96 << 20


def test_two_plugins_and_what_both_want(node: Node, pod: str) -> None:
    with plugin(node, "second", "20") as second, plugin(node, "first", "05") as first:
        first.answers["CreateContainer"] = adjusting(env=[nri.KeyValue(key="X", value="first")])
        second.answers["CreateContainer"] = adjusting(env=[nri.KeyValue(key="Y", value="second")])
        assert node.run(pod, "sh", "-c", "echo $X $Y") == "first second\n"
        second.answers["CreateContainer"] = adjusting(env=[nri.KeyValue(key="X", value="second")])
        refused(lambda: node.create(pod), Status.FAILED_PRECONDITION, "20-second", "env X", "05-first")
        second.answers["CreateContainer"] = adjusting()
        second.answers["ValidateContainerAdjustment"] = lambda _: nri.ValidateContainerAdjustmentResponse(
            reject=True, reason="not here"
        )
        refused(lambda: node.create(pod), Status.FAILED_PRECONDITION, "20-second", "not here")
    assert not node.kubelet.ListContainers(
        filter=cri.ContainerFilter(
            pod_sandbox_id=pod, state=cri.ContainerStateValue(state=cri.CONTAINER_CREATED)
        )
    ).containers


def test_what_is_not_carried_out_is_refused(node: Node, pod: str) -> None:
    with plugin(node) as told:
        classes = nri.LinuxRdt(clos_id=nri.OptionalString(value="one"))
        told.answers["CreateContainer"] = adjusting(linux=nri.LinuxContainerAdjustment(rdt=classes))
        refused(lambda: node.create(pod), Status.UNIMPLEMENTED, "linux.rdt")
    assert node.run(pod, "echo", "well") == "well\n"


def test_a_plugin_s_refusal_undoes_what_was_being_made(node: Node, pod: str) -> None:
    with plugin(node) as told:
        told.answers["RunPodSandbox"] = raising("no pods today")
        before = {p.id for p in node.kubelet.ListPodSandbox().items}
        refused(lambda: node.run_pod(), Status.UNAVAILABLE, "10-tester", "no pods today")
        assert {p.id for p in node.kubelet.ListPodSandbox().items} == before
        told.answers["CreateContainer"] = raising("no containers")
        config = node.container_config()
        refused(lambda: node.create(pod, config=config), Status.UNAVAILABLE, "no containers")
        del told.answers["CreateContainer"]
        made = node.create(pod, config=config)
        told.answers["StartContainer"] = raising("no start")
        start = node.kubelet.StartContainer
        refused(lambda: start(container_id=made), Status.UNAVAILABLE, "no start")
        del told.answers["StartContainer"]
        start(container_id=made)
        told.answers["StopPodSandbox"] = raising("never")  # what ends, ends
        del told.answers["RunPodSandbox"]
        second = node.run_pod()
        node.kubelet.RemovePodSandbox(pod_sandbox_id=second)
    assert len(list((node.house.root / "containers").iterdir())) == len(
        node.kubelet.ListContainers().containers
    )


def test_updates_and_evictions(node: Node, pod: str) -> None:
    first, second = node.start(pod), node.start(pod)
    resources = nri.LinuxResources(memory=nri.LinuxMemory(limit=nri.OptionalInt64(value=80 << 20)))
    update = nri.ContainerUpdate(container_id=first, linux=nri.LinuxContainerUpdate(resources=resources))
    unknown = nri.ContainerUpdate(container_id="0123", linux=nri.LinuxContainerUpdate(resources=resources))
    with plugin(node) as told:
        evict = [nri.ContainerEviction(container_id=second, reason="test")]
        request = nri.UpdateContainersRequest(update=[update, unknown], evict=evict)
        reply = told.call("UpdateContainers", request)
        failed = nri.UpdateContainersResponse.FromString(reply.payload).failed
        assert [f.container_id for f in failed] == ["0123"]
    assert node.status(first).resources.linux.memory_limit_in_bytes == 80 << 20
    assert node.ended(second).exit_code == 137


def test_a_plugin_that_goes_is_missed_by_nobody(node: Node, pod: str) -> None:
    with plugin(node) as told:

        def leave(_: object) -> nri.CreateContainerResponse:
            told.close()
            return nri.CreateContainerResponse()

        told.answers["CreateContainer"] = leave
        assert node.run(pod, "echo", "on") == "on\n"
        assert told.gone.wait(10)
    assert node.run(pod, "echo", "and on") == "and on\n"


def test_who_registers_wrongly_is_sent_away(node: Node, pod: str) -> None:
    path = node.house.run_dir / "nri.sock"
    assert "two digits" in NriPlugin(path, "bad", "x").registered.status.message
    with socket.socket(socket.AF_UNIX) as noise:
        noise.connect(str(path))
        noise.sendall(b"\xff" * 64)
        noise.settimeout(10)
        assert noise.recv(1) == b""
    with plugin(node) as told:
        request = nri.RegisterPluginRequest(plugin_name="again", plugin_idx="11")
        assert "already" in told.call("RegisterPlugin", request).status.message
        assert "not served" in told.call("Nonsense", request).status.message
    assert node.run(pod, "echo", "well") == "well\n"


LAUNCHED = """#!{python} -IS
import os, socket, sys
sys.path[:0] = {path!r}
from nriplugin import NriPlugin
sock = socket.socket(fileno=int(os.environ["NRI_PLUGIN_SOCKET"]))
plugin = NriPlugin(sock, "another-name", "99")
plugin.ready.wait()
with open({out!r}, "w") as out:
    (configured,) = [r for m, r in plugin.told if m == "Configure"]
    print(sorted(os.environ), configured.config, [m for m, _ in plugin.told], file=out)
plugin.gone.wait()
with open({out!r}, "a") as out:
    print([m for m, _ in plugin.told if "Pod" in m], file=out)
"""


def test_plugins_are_started_from_a_directory() -> None:
    node = Node()
    base = node.house.base
    plugins, configurations, out = base / "plugins", base / "conf.d", base / "out"
    plugins.mkdir()
    configurations.mkdir()

    def put(name: str, text: str, mode: int = 0o755) -> None:
        (plugins / name).write_text(text)
        (plugins / name).chmod(mode)

    path = [word for word in sys.path if word and "pytest" not in word]
    put("42-teller", LAUNCHED.format(python=sys.executable, path=path, out=str(out)))
    put("07-leaves", "#!/bin/sh\nexit 1\n")
    put("08-no-program", "\x7fnothing")
    put("nameless", "#!/bin/sh\n")
    put("10-readme", "not executable", 0o644)
    (configurations / "teller.conf").write_text("for anybody")
    (configurations / "42-teller.conf").write_text("its: own\n")
    node.house.extra += ["--nri-socket", str(node.house.run_dir / "nri.sock")]
    node.house.extra += ["--nri-plugin-dir", str(plugins), "--nri-plugin-conf-dir", str(configurations)]
    with node:
        node.kubelet.RemovePodSandbox(pod_sandbox_id=node.run_pod())
        environment = ["NRI_PLUGIN_IDX", "NRI_PLUGIN_NAME", "NRI_PLUGIN_SOCKET"]
        wait_for(lambda: out.exists() and out.read_text().endswith("]\n"), 10, "what it was told")
        told = f"{environment} its: own\n ['Configure', 'Synchronize']\n"
        assert out.read_text().replace("'LC_CTYPE', ", "") == told  # Python sets that one itself
        with plugin(node, "second", "50") as second:
            second.answers["CreateContainer"] = adjusting(env=[nri.KeyValue(key="X", value="second")])
            seen: list[str] = []

            def validate(request: nri.ValidateContainerAdjustmentRequest) -> Any:
                seen.extend(f"{p.index}-{p.name}" for p in request.plugins)
                return nri.ValidateContainerAdjustmentResponse()

            second.answers["ValidateContainerAdjustment"] = validate
            pod = node.run_pod()
            node.create(pod)
            assert seen == ["42-teller", "50-second"]
        log = node.house.log.read_text()
        assert "nameless is not started" in log and "08-no-program does not start" in log
    # the end of the connection is the plugin's sign: then it is killed
    assert not [p for p in Path("/proc").iterdir() if p.name.isdigit() and _runs(p, str(plugins))]


def _runs(process: Path, word: str) -> bool:
    try:
        return word in (process / "cmdline").read_text()
    except OSError:
        return False
