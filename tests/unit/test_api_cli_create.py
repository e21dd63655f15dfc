"""What the real docker CLI sends for its flags, decoded: no field may be refused or lost."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nagaya.api.docker.server import start_server
from nagaya.engine.model import (
    ContainerConfig,
    Created,
    CreateRequest,
    DeviceMapping,
    LogConfig,
    MountSpec,
    PortBinding,
    RestartPolicy,
    Ulimit,
)

CLIENTS = [p for p in ("/usr/local/bin/docker", "/usr/bin/docker") if os.access(p, os.X_OK)]


class Recorder:
    """An engine that only remembers what it was asked to create."""

    request: CreateRequest | None = None

    async def create_container(self, request: CreateRequest) -> Created:
        self.request = request
        return Created("f" * 64)

    def info(self) -> dict[str, object]:
        return {}


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[tuple[Recorder, str]]:
    engine, path = Recorder(), str(tmp_path / "s")
    loop = asyncio.new_event_loop()
    ready, stop = threading.Event(), asyncio.Event()

    async def main() -> None:
        server = await start_server(engine, path)  # type: ignore[arg-type]
        ready.set()
        await stop.wait()
        server.close()
        await server.wait_closed()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    assert ready.wait(10)
    yield engine, path
    loop.call_soon_threadsafe(stop.set)
    thread.join(15)
    loop.close()


def create(recorder: tuple[Recorder, str], client: str, *arguments: str) -> ContainerConfig:
    engine, path = recorder
    environment = {"DOCKER_HOST": f"unix://{path}", "HOME": os.path.dirname(path), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [client, "create", *arguments], capture_output=True, env=environment, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert engine.request is not None
    return engine.request.config


@pytest.mark.skipif(not CLIENTS, reason="no docker CLI on this machine")
@pytest.mark.parametrize("client", CLIENTS)
def test_plain(recorder: tuple[Recorder, str], client: str) -> None:
    config = create(recorder, client, "busybox", "echo", "hi")
    assert config == ContainerConfig(
        "busybox",
        command=("echo", "hi"),
        attach_stdout=True,
        attach_stderr=True,
        network_mode=config.network_mode,
        oom_score_adj=0,
    )
    assert config.network_mode in ("default", "bridge")


@pytest.mark.skipif(not CLIENTS, reason="no docker CLI on this machine")
@pytest.mark.parametrize("client", CLIENTS)
def test_many_flags(recorder: tuple[Recorder, str], client: str) -> None:
    config = create(
        recorder, client, *"-it -e A=1 -v /h:/c:ro -v vol:/v -v /anon -w /w -u 1:2 --memory 64m".split(),
        *"--pids-limit 9 --read-only --cap-add NET_ADMIN --cap-drop ALL --hostname hh --name nn".split(),
        *"--cpus 1.5 --init -p 127.0.0.1:8080:80 -p 53/udp --expose 99 --restart on-failure:3".split(),
        *"--mount type=bind,src=/ms,dst=/md,ro --ulimit nofile=1:2 --device /dev/null:/dev/n:r".split(),
        *"--sysctl net.ipv4.ip_forward=1 --shm-size 1m --group-add 5 --tmpfs /t:size=1m".split(),
        *"--log-opt max-size=1m --log-driver json-file --stop-signal INT --stop-timeout 3".split(),
        *"--add-host a:1.2.3.4 --label k=v --dns 1.1.1.1".split(),
        *"--security-opt seccomp=unconfined --pid host --ipc host --runtime runc --entrypoint /e".split(),
        *"--cgroup-parent /p --oom-score-adj 5 --cpuset-cpus 0 --cpu-shares 7 --memory-swap 128m".split(),
        "img:1", "x", "y",
    )  # fmt: skip
    assert recorder[0].request is not None and recorder[0].request.name == "nn"
    assert (config.tty, config.open_stdin, config.stdin_once, config.attach_stdin) == (True, True, True, True)
    assert (config.env, config.working_dir, config.user, config.hostname) == (("A=1",), "/w", "1:2", "hh")
    # 20.10 sends its binds in the random order of a Go map
    assert tuple(sorted(config.mounts, key=lambda mount: mount.target)) == (
        MountSpec("bind", "/c", "/h", read_only=True, create_source=True),
        MountSpec("bind", "/md", "/ms", read_only=True, listed=True),
        MountSpec("volume", "/v", "vol"),
    )
    assert config.image_volumes == ("/anon",)
    limits = config.resources
    assert (limits.memory, limits.memory_swap, limits.nano_cpus) == (64 << 20, 128 << 20, 1_500_000_000)
    assert (limits.pids_limit, limits.cpuset_cpus, limits.cpu_shares) == (9, "0", 7)
    assert (config.cap_add, config.cap_drop) in (
        (("NET_ADMIN",), ("ALL",)),
        (("CAP_NET_ADMIN",), ("ALL",)),
    )
    assert sorted(config.ports, key=lambda port: port.container_port) == [
        PortBinding(53, "udp"),
        PortBinding(80, "tcp", "127.0.0.1", 8080),
    ]
    assert config.exposed_ports == ("53/udp", "80/tcp", "99/tcp")
    assert config.restart == RestartPolicy("on-failure", 3)
    assert config.tmpfs == {"/t": "size=1m"}
    assert config.ulimits == (Ulimit("nofile", 1, 2),)
    assert config.devices == (DeviceMapping("/dev/null", "/dev/n", "r"),)
    assert (config.sysctls, config.shm_size) == ({"net.ipv4.ip_forward": "1"}, 1 << 20)
    assert (config.group_add, config.dns, config.extra_hosts) == (("5",), ("1.1.1.1",), ("a:1.2.3.4",))
    assert config.log == LogConfig("json-file", {"max-size": "1m"})
    assert (config.stop_signal, config.stop_timeout, config.labels) == ("INT", 3, {"k": "v"})
    assert (config.security_opt, config.pid_mode, config.ipc_mode) == (
        ("seccomp=unconfined",),
        "host",
        "host",
    )
    assert (config.runtime, config.entrypoint, config.command) == ("runc", ("/e",), ("x", "y"))
    assert (config.cgroup_parent, config.oom_score_adj, config.read_only_rootfs) == ("/p", 5, True)
    assert config.init


@pytest.mark.skipif(not CLIENTS, reason="no docker CLI on this machine")
@pytest.mark.parametrize("network", ["none", "host", "bridge", "container:x"])
def test_networks(recorder: tuple[Recorder, str], network: str) -> None:
    for client in CLIENTS:
        assert create(recorder, client, "--network", network, "img").network_mode == network
