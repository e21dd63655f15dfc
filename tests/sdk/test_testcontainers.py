"""testcontainers for Python on our socket, without its reaper: throwaway servers of a user's tests.

What it starts is reached through published ports, so its programs run in the house's network namespace.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest
from house import House

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"

WEB = """
import urllib.request
from testcontainers.core.container import DockerContainer
from testcontainers.core.waiting_utils import wait_for_logs

web = (
    DockerContainer("nagaya/busybox")
    .with_exposed_ports(80)
    .with_env("GREETING", "hello")
    .with_command(["sh", "-c", "mkdir /w; echo $GREETING >/w/index.html; echo ready; exec httpd -f -h /w"])
)
with web:
    wait_for_logs(web, "ready", timeout=20)
    address = f"http://{web.get_container_host_ip()}:{web.get_exposed_port(80)}/"
    for attempt in range(100):
        try:
            answer = urllib.request.urlopen(address, timeout=5).read()
            break
        except OSError:
            __import__("time").sleep(0.05)
    assert answer == b"hello\\n", answer
    assert web.exec(["cat", "/w/index.html"]).output == b"hello\\n"
    out, err = web.get_logs()
    assert b"ready" in out and err == b""
    identifier = web.get_wrapped_container().id
print(identifier)
"""

FILES = """
import pathlib, tempfile
from testcontainers.core.container import DockerContainer

with tempfile.TemporaryDirectory() as directory:
    pathlib.Path(directory).chmod(0o755)
    pathlib.Path(directory, "file").write_text("content")
    box = (
        DockerContainer("nagaya/busybox")
        .with_volume_mapping(directory, "/host", "ro")
        .with_kwargs(network_mode="none", user="1000")
        .with_tmpfs_mount("/memory", "size=1m")
        .with_name("named")
        .with_command("sleep 600")
    )
    with box:
        assert box.exec("cat /host/file").output == b"content"
        refused = box.exec("touch /host/x")
        assert refused.exit_code == 1 and b"Read-only file system" in refused.output
        assert box.exec("touch /memory/x").exit_code == 0
        assert box.exec("id -u").output == b"1000\\n"
"""

FAILING = """
import docker
from testcontainers.core.container import DockerContainer

try:
    with DockerContainer("nagaya/busybox").with_command("nosuchprogram"):
        raise SystemExit("it was started")
except docker.errors.APIError as error:
    assert "executable file not found" in str(error), error
"""


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        yield started


def program(house: House, text: str) -> str:
    """What a user's program says, which must succeed."""
    done = subprocess.run(
        house.inside([sys.executable, "-c", textwrap.dedent(text)]),
        capture_output=True,
        timeout=120,
        env={**house.environment, "TESTCONTAINERS_RYUK_DISABLED": "true"},
    )
    assert done.returncode == 0, (done.stdout, done.stderr.decode()[-3000:], house.tail())
    return done.stdout.decode()


def test_a_web_server(house: House) -> None:
    identifier = program(house, WEB).split()[-1]
    assert house.docker("inspect", identifier).returncode == 1


def test_files_and_users(house: House) -> None:
    program(house, FILES)


def test_one_that_cannot_start(house: House) -> None:
    program(house, FAILING)
    house.ok("container", "prune", "-f")  # testcontainers leaves it, as it leaves it with dockerd
