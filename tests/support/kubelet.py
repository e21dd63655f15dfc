"""A kubelet's side of the Container Runtime Interface, for tests: every RPC by its name, synchronously."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message_factory import GetMessageClass
from grpclib import GRPCError, Status
from grpclib.client import Channel, UnaryStreamMethod, UnaryUnaryMethod
from house import House, wait_for

from nagaya.api.cri import runtime_pb2 as cri

_METHODS = {m.name: (s, m) for s in cri.DESCRIPTOR.services_by_name.values() for m in s.methods}
_numbers = itertools.count()


class Kubelet:
    """A connection. `kubelet.Version(version="v1")` calls the RPC of that name with a request of these
    fields, and returns its answer; of an RPC that streams, a list of what came until its end."""

    def __init__(self, path: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._channel = self.wait(self._open(str(path)))

    @staticmethod
    async def _open(path: str) -> Channel:
        return Channel(path=path)

    def wait(self, work: Coroutine[Any, Any, Any], timeout: float = 60) -> Any:
        """The result of work on the connection's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    def begin(self, work: Coroutine[Any, Any, Any]) -> concurrent.futures.Future[Any]:
        """Let work run on the connection's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """End the connection."""

        async def end() -> None:
            self._channel.close()
            await asyncio.sleep(0)

        self.wait(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def method(self, name: str) -> Any:
        """The grpclib method of an RPC."""
        service, method = _METHODS[name]
        kind = UnaryStreamMethod if method.server_streaming else UnaryUnaryMethod
        request, reply = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        return kind(self._channel, f"/{service.full_name}/{name}", request, reply)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in _METHODS:
            raise AttributeError(name)
        kind = GetMessageClass(_METHODS[name][1].input_type)

        def call(request: Any = None, within: float = 60, **fields: Any) -> Any:
            asked = request if request is not None else kind(**fields)
            return self.wait(self.method(name)(asked, timeout=within), within + 5)

        return call


def refused(call: Callable[[], object], status: Status, *words: str) -> str:
    """The message of a call that must fail with this status and these words in it."""
    with pytest.raises(GRPCError) as caught:
        call()
    message = caught.value.message or ""
    assert caught.value.status is status, (caught.value.status, message)
    assert all(word in message for word in words), message
    return message


class Node:
    """A house that serves the interface, and short ways to its pods."""

    def __init__(self, *arguments: str, config: str = "") -> None:
        self.house = House(*arguments, config=config)
        self.path = self.house.run_dir / "cri.sock"
        self.house.base.chmod(0o711)  # as /run is: the roots of user namespaces are nobody here
        self.cni = self.house.base / "cni"  # the host's own networks are none of ours
        self.cni.mkdir()
        self.house.extra += ["--cri-socket", str(self.path), "--cni-conf-dir", str(self.cni)]
        self.house.extra += ["--cdi-spec-dirs", str(self.house.base / "cdi")]
        self.logs = self.house.base / "logs"

    def __enter__(self) -> Node:
        self.house.__enter__()
        wait_for(self.path.exists, 30, "the socket")  # it comes after the plugins
        self.kubelet = Kubelet(self.path)
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        left: list[str] = []
        try:
            if self.house.daemon is None or self.house.daemon.poll() is not None:
                self.restart()
            for pod in self.kubelet.ListPodSandbox().items:
                self.kubelet.RemovePodSandbox(pod_sandbox_id=pod.id)
            left = [p.name for p in (self.house.run_dir / "pods").iterdir()]
        finally:
            self.kubelet.close()
            self.house.__exit__(kind, *rest)
        assert not left or kind is not None, left

    def restart(self) -> None:
        """Start the daemon again after it was ended, and connect."""
        self.house.start()
        wait_for(self.path.exists, 10, "the socket")
        self.kubelet.close()
        self.kubelet = Kubelet(self.path)

    def pod_config(self, **fields: Any) -> cri.PodSandboxConfig:
        """A pod's configuration with a name of its own; each container has its own processes."""
        number = next(_numbers)
        made = cri.PodSandboxConfig(
            metadata=cri.PodSandboxMetadata(name=f"pod{number}", uid=f"uid{number}", namespace="tests"),
            log_directory=str(self.logs / f"pod{number}"),
        )
        made.linux.security_context.namespace_options.pid = cri.CONTAINER
        made.MergeFrom(cri.PodSandboxConfig(**fields))
        return made

    def run_pod(self, config: cri.PodSandboxConfig | None = None, handler: str = "") -> str:
        """A pod's id."""
        asked = config if config is not None else self.pod_config()
        return str(self.kubelet.RunPodSandbox(config=asked, runtime_handler=handler).pod_sandbox_id)

    def container_config(self, *command: str, **fields: Any) -> cri.ContainerConfig:
        """A container's configuration, of the built-in image."""
        number = next(_numbers)
        made = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name=f"c{number}"),
            image=cri.ImageSpec(image="nagaya/busybox"),
            command=command or ("sleep", "600"),
            log_path=f"c{number}.log",
        )
        made.linux.security_context.namespace_options.pid = cri.CONTAINER
        made.MergeFrom(cri.ContainerConfig(**fields))
        return made

    def create(
        self, pod: str, *command: str, config: cri.ContainerConfig | None = None, **fields: Any
    ) -> str:
        """A container's id."""
        asked = config if config is not None else self.container_config(*command, **fields)
        return str(self.kubelet.CreateContainer(pod_sandbox_id=pod, config=asked).container_id)

    def start(self, pod: str, *command: str, config: cri.ContainerConfig | None = None, **fields: Any) -> str:
        """The id of a container that was started."""
        made = self.create(pod, *command, config=config, **fields)
        self.kubelet.StartContainer(container_id=made)
        return made

    def status(self, container: str) -> cri.ContainerStatus:
        """A container's status."""
        found: cri.ContainerStatus = self.kubelet.ContainerStatus(container_id=container).status
        return found

    def ended(self, container: str) -> cri.ContainerStatus:
        """Its status once it has ended."""
        wait_for(lambda: self.status(container).state == cri.CONTAINER_EXITED, 20, "the container's end")
        return self.status(container)

    def output(self, container: str) -> str:
        """What it wrote to its standard output, once it has ended with code 0."""
        status = self.ended(container)
        lines = Path(status.log_path).read_text().splitlines()
        assert status.exit_code == 0, (status.exit_code, status.message, lines)
        return "".join(text + "\n" for text in log_lines(lines, "stdout"))

    def run(self, pod: str, *command: str, **fields: Any) -> str:
        """What a container wrote to its standard output until it ended with code 0."""
        return self.output(self.start(pod, *command, **fields))

    def exec(self, container: str, *command: str) -> str:
        """What a command in a container wrote, which must end with code 0."""
        found = self.kubelet.ExecSync(container_id=container, cmd=command)
        assert found.exit_code == 0, found
        return str(found.stdout.decode())


def log_lines(lines: list[str], stream: str) -> Iterator[str]:
    """The text of a log's lines of one stream."""
    for line in lines:
        _, name, _, text = line.split(" ", 3)
        if name == stream:
            yield text
