"""The whole path, as its users walk it: real clients, a real registry, and what kill -9 leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from house import House, wait_for
from images import Registry, busybox_layers, write_layout

pytestmark = pytest.mark.root


@pytest.fixture
def house() -> Iterator[House]:
    with House() as started:
        yield started


def test_docker_runs_the_built_in_image(house: House) -> None:
    assert house.ok("run", "--rm", "nagaya/busybox", "echo", "hi") == "hi"
    assert house.docker("run", "--rm", "nagaya/busybox", "sh", "-c", "exit 7").returncode == 7


def test_an_image_from_a_registry_runs(house: House, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    write_layout(
        layout, busybox_layers(), {"Cmd": ["sh", "-c", "cat /data/*; ls /opaque"], "Env": ["PATH=/bin"]}
    )
    with Registry(tmp_path / "registry", house.inside([])) as registry:
        reference = registry.push(f"oci:{layout}:latest", "some/multi:1")
        result = house.nagaya("run", "--rm", reference)
        assert (result.returncode, result.stdout) == (0, b"new\nkept\nupper\n"), result.stderr
        assert house.ok("run", "--rm", reference) == "new\nkept\nupper"


def _counting(house: House, name: str, count: int = 3000) -> None:
    script = (
        f"i=0; while [ $i -lt {count} ]; do echo line $i; i=$((i+1)); "
        "[ $((i % 100)) = 0 ] && sleep 0.02; done; exit 9"
    )
    house.ok("run", "-d", "--name", name, "nagaya/busybox", "sh", "-c", script)


def _whole(house: House, name: str, count: int = 3000) -> None:
    assert house.ok("wait", name) == "9"
    assert house.ok("logs", name).splitlines() == [f"line {i}" for i in range(count)]
    assert house.ok("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", name) == "exited 9"


def test_kill_of_the_daemon_loses_nothing(house: House) -> None:
    _counting(house, "long")
    house.ok("run", "-d", "--name", "short", "nagaya/busybox", "sh", "-c", "sleep 0.4; echo bye; exit 3")
    house.kill_daemon()
    time.sleep(0.6)  # "short" ends while nobody is there to see it
    house.start()
    assert house.ok("wait", "short") == "3"
    assert house.ok("logs", "short") == "bye"
    _whole(house, "long")


def test_kill_of_io_loses_nothing(house: House) -> None:
    _counting(house, "long")
    for _ in range(8):
        time.sleep(0.05)
        pid = house.io_pid()
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda pid=pid: not Path(f"/proc/{pid}").exists(), 5, "io's end")  # type: ignore[misc]
        wait_for(lambda: _quietly(house), 5, "a new io")
    _whole(house, "long")


def _quietly(house: House) -> bool:
    try:
        return house.io_pid() > 0
    except (ValueError, OSError):
        return False


def test_kill_of_the_keeper_loses_nothing(house: House) -> None:
    _counting(house, "long")
    house.ok("run", "-d", "--name", "short", "nagaya/busybox", "sh", "-c", "sleep 0.8; echo bye; exit 3")
    old = house.supervisor_pid()
    os.kill(old, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{old}").exists(), 5, "the keeper's end")
    wait_for(lambda: house.supervisor_pid() != old and _quietly(house), 10, "a new keeper")
    assert house.ok("wait", "short") == "3"
    assert house.ok("logs", "short") == "bye"
    _whole(house, "long")
    assert house.ok("run", "--rm", "nagaya/busybox", "echo", "again") == "again"


def test_nothing_is_started_twice_in_one_root(house: House) -> None:
    second = subprocess.run(house.inside(house.daemon_argv()), capture_output=True, timeout=30)
    assert second.returncode != 0
    assert second.stderr.count(b"\n") == 1
