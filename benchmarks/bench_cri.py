"""How long a pod takes over the Container Runtime Interface, step by step (`./dev bench cri`).

One life: RunPodSandbox, CreateContainer, StartContainer, ExecSync, StopContainer, StopPodSandbox, and both
removed. nagayad with its built-in bridge, nagayad with CNI's bridge plugin, and containerd with the same
plugins and runc take turns with lives, one at a time and several at once. Each stack has a cgroup of its own:
the kernel counts there what a life cost in processor time, whoever spent it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.message_factory import GetMessageClass
from grpclib import GRPCError
from grpclib.client import Channel, UnaryUnaryMethod

import measure
import stage
from measure import Failed
from nagaya.api.cri import runtime_pb2 as cri
from stage import BIN, IMAGE, Command, need, say

_METHODS = {m.name: (s.full_name, m) for s in cri.DESCRIPTOR.services_by_name.values() for m in s.methods}
_LIFE, _RATE, _CPU = "a whole life", "pods in a second", "processor time of a life"
_WARMUPS, _TOGETHER = 2, 4
_CGROUPS = Path("/sys/fs/cgroup")
_PLUGINS = "/usr/lib/cni"
_CONTAINERD = """version = 2
root = "{where}/root"
state = "{where}/state"
[grpc]
address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{image}"
restrict_oom_score_adj = true
disable_apparmor = true
stream_server_address = "127.0.0.1"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{where}/cni"
"""
_CNI = {
    "cniVersion": "1.0.0",
    "name": "nagtb",
    "plugins": [
        {
            "type": "bridge",
            "isGateway": True,
            "ipMasq": True,
            "promiscMode": True,
            "ipam": {"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}]},
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}


class Node:
    """A stack that serves the interface: `name` in the table, its socket, and its cgroup."""

    def __init__(self, base: Path, name: str, key: str, number: int, top: Path = _CGROUPS) -> None:
        self.name = name
        self.key = key
        self.base = base / key
        self.socket = self.base / "cri.sock"
        self.cgroup = f"{base.name}/{key}"
        self.subnet = f"10.231.{number}.0/24"
        self.failure = ""
        self._numbers = itertools.count()
        self._channel: Channel | None = None
        (self.base / "cni").mkdir(parents=True)
        hierarchy = top if (top / "cgroup.controllers").exists() else top / "cpuacct"
        self._place = hierarchy / self.cgroup
        self._procs = self._place / "daemon" / "cgroup.procs"
        self._procs.parent.mkdir(parents=True)

    def inside(self, argv: Sequence[str]) -> list[str]:
        """The command line, started in the stack's own cgroup."""
        return ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(self._procs), *argv]

    def processes(self) -> list[int]:
        """The stack's own, without those in pods."""
        return [int(pid) for pid in self._procs.read_text().split()]

    def cpu(self) -> float:
        """Milliseconds of processor time that the whole stack has spent, with all that ran in its pods."""
        counter = self._place / "cpuacct.usage"
        if counter.exists():
            return int(counter.read_text()) / 1e6
        usage = dict(line.split() for line in (self._place / "cpu.stat").read_text().splitlines())
        return int(usage["usage_usec"]) / 1e3

    def plugins(self) -> None:
        """Let CNI's plugins connect its pods."""
        config = json.loads(json.dumps(_CNI))
        bridge = config["plugins"][0]
        bridge["bridge"] = f"nagtb-{self.key}"
        bridge["ipam"].update(ranges=[[{"subnet": self.subnet}]], dataDir=f"{self.base}/ipam")
        (self.base / "cni" / "10-bridge.conflist").write_text(json.dumps(config))

    async def call(self, method: str, **fields: Any) -> Any:
        """The answer of an RPC. Raises Failed."""
        service, described = _METHODS[method]
        if self._channel is None:
            self._channel = Channel(path=str(self.socket))
        request, reply = GetMessageClass(described.input_type), GetMessageClass(described.output_type)
        ask = UnaryUnaryMethod(self._channel, f"/{service}/{method}", request, reply)
        try:
            return await ask(request(**fields), timeout=60)
        except (GRPCError, OSError, TimeoutError) as error:
            raise Failed(f"{method}: {error}") from None

    def close(self) -> None:
        """End the connection."""
        if self._channel is not None:
            self._channel.close()

    def pod(self) -> cri.PodSandboxConfig:
        """What the next pod is asked to be."""
        number = f"{self.key}{next(self._numbers)}"
        config = cri.PodSandboxConfig(
            metadata=cri.PodSandboxMetadata(name=number, uid=number, namespace="bench"),
            hostname=number,
            log_directory=f"{self.base}/logs/{number}",
        )
        config.linux.cgroup_parent = f"/{self.cgroup}/pods"
        config.linux.security_context.namespace_options.pid = cri.CONTAINER
        return config

    @staticmethod
    def container() -> cri.ContainerConfig:
        """What its container is asked to be: a process that ends with SIGTERM."""
        config = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name="main"),
            image=cri.ImageSpec(image=IMAGE),
            command=["/catatonit", "-P"],
            log_path="main.log",
        )
        config.linux.security_context.namespace_options.pid = cri.CONTAINER
        return config


@dataclass
class Steps:
    """Times of one stack, in milliseconds, by what was timed."""

    times: dict[str, list[float]] = field(default_factory=dict)

    def note(self, name: str, milliseconds: float) -> None:
        """Keep one."""
        self.times.setdefault(name, []).append(milliseconds)


async def begin(node: Node, steps: Steps) -> tuple[str, str]:
    """A pod with a container that runs: their ids. Raises Failed."""
    pod = node.pod()
    answer = await _timed(steps, node, "RunPodSandbox", config=pod)
    fields = {"config": node.container(), "sandbox_config": pod, "pod_sandbox_id": answer.pod_sandbox_id}
    container = (await _timed(steps, node, "CreateContainer", **fields)).container_id
    await _timed(steps, node, "StartContainer", container_id=container)
    return answer.pod_sandbox_id, container


async def end(node: Node, steps: Steps, pod: str, container: str) -> None:
    """Stop and remove them, as a kubelet does. Raises Failed."""
    await _timed(steps, node, "StopContainer", container_id=container, timeout=10)
    await _timed(steps, node, "StopPodSandbox", pod_sandbox_id=pod)
    await _timed(steps, node, "RemoveContainer", container_id=container)
    await _timed(steps, node, "RemovePodSandbox", pod_sandbox_id=pod)


async def live(node: Node, steps: Steps) -> None:
    """One life. Raises Failed."""
    started = time.perf_counter_ns()
    pod, container = await begin(node, steps)
    said = await _timed(steps, node, "ExecSync", container_id=container, cmd=["/bin/echo", "hi"])
    if said.exit_code or said.stdout != b"hi\n":
        raise Failed(f"ExecSync: {said}")
    await end(node, steps, pod, container)
    steps.note(_LIFE, (time.perf_counter_ns() - started) / 1e6)


async def _timed(steps: Steps, node: Node, method: str, **fields: Any) -> Any:
    started = time.perf_counter_ns()
    answer = await node.call(method, **fields)
    steps.note(method, (time.perf_counter_ns() - started) / 1e6)
    return answer


async def turn(node: Node, steps: Steps, together: int) -> None:
    """So many lives at once; one that fails takes its stack out."""
    if node.failure:
        return
    began, spent = time.perf_counter_ns(), node.cpu()
    try:
        await asyncio.gather(*(live(node, steps) for _ in range(together)))
    except Failed as failed:
        node.failure = str(failed)
        return
    steps.note(_RATE, together * 1e9 / (time.perf_counter_ns() - began))
    steps.note(_CPU, (node.cpu() - spent) / together)


def result(title: str, nodes: Sequence[Node], values: Sequence[Sequence[float]], unit: str) -> dict[str, Any]:
    """Medians of one thing that was measured, with the ratio of each stack to the last one."""
    middle = [statistics.median(found) if found else 0.0 for found in values]
    rows: list[dict[str, Any]] = []
    for node, value in zip(nodes, middle, strict=True):
        if node.failure or not value:
            rows.append({"peer": node.name, "left_out": node.failure or "nothing was measured"})
            continue
        row: dict[str, Any] = {"peer": node.name, "value": round(value, 2)}
        if node is not nodes[-1] and middle[-1] and not nodes[-1].failure:
            row["ours_over_theirs"] = round(value / middle[-1], 3)
        rows.append(row)
    return {"title": title, "unit": unit, "rows": rows}


async def play(nodes: Sequence[Node], rounds: int, together: int) -> list[dict[str, Any]]:
    """All rounds of one kind: a result for each thing that was timed."""
    kept = [Steps() for _ in nodes]
    for number in range(rounds + _WARMUPS):
        for node, steps in zip(nodes, kept, strict=True):
            await turn(node, steps if number >= _WARMUPS else Steps(), together)
    names = list(dict.fromkeys(name for steps in kept for name in steps.times))
    note = f", {together} at once" if together > 1 else ""
    return [
        result(f"{name}{note}, {unit}", nodes, [steps.times.get(name, []) for steps in kept], unit)
        for name in names
        for unit in ["pods/s" if name == _RATE else "ms"]
    ]


async def _memory(node: Node) -> int:
    await asyncio.sleep(2)  # what was started for a start alone is gone by then
    return stage.pss(node.processes())


async def memory(nodes: Sequence[Node], count: int) -> list[dict[str, Any]]:
    """Memory of the stacks' own processes, without pods and with so many, a container in each."""
    without, with_pods = [], []
    for node in nodes:
        say(f"memory of {node.name}")
        made: list[tuple[str, str]] = []
        before = held = 0
        if not node.failure:
            try:
                before = await _memory(node)
                while len(made) < count:
                    some = min(_TOGETHER, count - len(made))
                    made += await asyncio.gather(*(begin(node, Steps()) for _ in range(some)))
                held = await _memory(node)
                while made:
                    ending, made = made[:_TOGETHER], made[_TOGETHER:]
                    await asyncio.gather(*(end(node, Steps(), *pair) for pair in ending))
            except Failed as failed:
                node.failure = str(failed)
        without.append([before / 1024])
        with_pods.append([held / 1024])
    return [
        result("memory without pods, MB", nodes, without, "MB"),
        result(f"memory with {count} pods, MB", nodes, with_pods, "MB"),
    ]


class Nodes(stage.Daemons):
    """The stacks, started."""

    def __init__(self, base: Path, archive: Path) -> None:
        super().__init__(base)
        self._archive = archive
        self.bridge = Node(base, "nagayad", "n", 3)
        self.cni = Node(base, "nagayad, CNI", "m", 4)
        self.theirs = Node(base, "containerd, CNI, runc", "c", 5)

    def all(self) -> list[Node]:
        """Start them: ours, ours with plugins, theirs. What fails is left out."""
        self.cni.plugins()
        self.theirs.plugins()
        for node, start in (
            (self.bridge, self._ours),
            (self.cni, self._ours),
            (self.theirs, self._containerd),
        ):
            try:
                start(node)
            except Failed as failed:
                node.failure = str(failed)
        return [self.bridge, self.cni, self.theirs]

    def _ours(self, node: Node) -> None:
        where = node.base
        argv = [str(BIN / "nagayad"), "--root", f"{where}/root", "--run", f"{where}/run"]
        argv += ["--docker-socket", f"{where}/docker.sock", "--cri-socket", str(node.socket)]
        argv += ["--cgroup-parent", f"{node.cgroup}/own", "--bridge", f"nagtb-{node.key}b"]
        argv += ["--nft-table", f"nagtb_{node.key}", "--bip", f"10.231.{10 + ord(node.key)}.1/24"]
        argv += ["--cni-conf-dir", f"{where}/cni", "--cni-bin-dir", _PLUGINS]
        self._start(node.key, node.inside(argv), node.socket.exists)
        env = {"NAGAYA_HOST": f"unix://{where}/docker.sock"}
        Command(where, str(BIN / "nagaya"), "load", "-i", str(self._archive), env=env)()

    def _containerd(self, node: Node) -> None:
        where = node.base
        config = where / "config.toml"
        config.write_text(_CONTAINERD.format(where=where, socket=node.socket, image=IMAGE, plugins=_PLUGINS))
        self._start(node.key, node.inside([need("containerd"), "--config", str(config)]), node.socket.exists)
        argv = [need("ctr"), "--address", str(node.socket), "--namespace", "k8s.io"]
        Command(where, *argv, "images", "import", str(self._archive))()


async def compete(base: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Start the stacks, play, and return the results."""
    root = stage.rootfs(base)
    shutil.copy2(need("catatonit"), root / "catatonit")
    stacks = Nodes(base, stage.archive(base, root, ["/catatonit", "-P"]))
    nodes: list[Node] = []
    try:
        nodes = stacks.all()
        results = []
        for together in (1, _TOGETHER):
            say(f"lives, {together} at once")
            results += await play(nodes, max(3, options.rounds // together), together)
        if options.pods:
            results += await memory(nodes, options.pods)
        return results
    finally:
        for node in nodes:
            node.close()
        stacks.stop()


def main() -> int:
    """Measure, print, and keep the JSON in benchmarks/results."""
    parser = argparse.ArgumentParser(prog="./dev bench cri", description=__doc__)
    parser.add_argument("--rounds", type=int, default=40, help="timed lives of each stack (default 40)")
    parser.add_argument("--pods", type=int, default=100, help="idle pods; 0 leaves memory out")
    stage.add_options(parser)
    options = parser.parse_args()
    base = stage.enter()
    about = stage.machine()
    return stage.publish("cri", asyncio.run(compete(base, options)), about, options, measure.matrix)


if __name__ == "__main__":
    sys.exit(main())
