"""userns-remap: root of a container is nobody on the host, and its files have the owners they have inside."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from house import House, wait_for

pytestmark = pytest.mark.root

FIRST, COUNT = 300_000, 65_536
IMAGE = "nagaya/busybox"


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    made = House("--userns-remap", "root")
    # a view of /etc of the daemons' own, which stays while they come and go: the ranges of root
    for name in ("etc", "work"):
        (made.base / name).mkdir()
    for name in ("subuid", "subgid"):
        (made.base / "etc" / name).write_text(f"root:{FIRST}:{COUNT}\n")
    options = f"lowerdir=/etc,upperdir={made.base}/etc,workdir={made.base}/work"
    bind = f"mount -t overlay -o {options} etc /etc"
    unshare = ("unshare", "--mount", "--propagation", "slave")
    view = subprocess.Popen(
        [*unshare, "sh", "-c", f"{bind} && echo ready && exec sleep infinity"], stdout=subprocess.PIPE
    )
    assert view.stdout is not None and view.stdout.readline() == b"ready\n"
    made.program = ["nsenter", f"--mount=/proc/{view.pid}/ns/mnt", "--wdns=/", *made.program]
    try:
        with made:
            yield made
    finally:
        view.kill()
        view.wait()


def run(house: House, *arguments: str, code: int = 0) -> str:
    done = house.docker(*arguments)
    assert done.returncode == code, (done, house.tail())
    return (done.stdout if code == 0 else done.stderr).decode()


def inspect(house: House, name: str) -> Any:
    return json.loads(run(house, "inspect", name))[0]


def owners(house: House, place: str) -> dict[str, tuple[int, int]]:
    """Of what `docker cp` brings, by name."""
    archive = house.docker("cp", place, "-").stdout
    return {m.name: (m.uid, m.gid) for m in tarfile.open(fileobj=io.BytesIO(archive)).getmembers()}


@pytest.fixture(autouse=True)
def tidy(house: House) -> Iterator[None]:
    yield
    run(house, "rm", "-f", "nothing", *run(house, "ps", "-aq").split())


def test_root_is_nobody_on_the_host(house: House) -> None:
    script = (
        "cat /proc/self/uid_map; stat -c %u:%g /bin/busybox /etc/hosts /dev/shm; echo mine > /file;"
        " mkdir -p /dir && chown 5:6 /dir && stat -c %u:%g /file /dir && hostname && sleep 600"
    )
    run(house, "run", "-d", "--name", "box", IMAGE, "sh", "-c", script)
    wait_for(lambda: len(run(house, "logs", "box").splitlines()) == 7, 10, "the output")
    lines = run(house, "logs", "box").splitlines()
    assert lines[0].split() == ["0", str(FIRST), str(COUNT)]
    assert lines[1:6] == ["0:0", "0:0", "0:0", "0:0", "5:6"]
    pid = inspect(house, "box")["State"]["Pid"]
    assert Path(f"/proc/{pid}").stat().st_uid == FIRST
    # on the disk they are who they are inside
    upper = next(house.root.glob("**/file")).parent
    assert (upper / "file").stat().st_uid == 0 and (upper / "dir").stat().st_gid == 6
    assert run(house, "exec", "box", "sh", "-c", "id -u; wc -l < /proc/self/uid_map").split() == ["0", "1"]
    script = "id -u; echo > /tmp/x; stat -c %u /tmp/x"
    assert run(house, "exec", "-u", "7", "box", "sh", "-c", script).split() == ["7", "7"]
    assert run(house, "exec", "box", "ip", "addr", "show", "eth0").count("inet ") == 1
    refused = run(house, "exec", "box", "mount", "-t", "tmpfs", "none", "/mnt", code=1)
    assert "ermi" in refused or "denied" in refused
    assert run(house, "diff", "box").splitlines() == ["A /dir", "A /file", "C /tmp", "A /tmp/x"]
    run(house, "rm", "-f", "box")
    assert str(house.run_dir) not in "".join(
        line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "/ns/" in line
    )


def test_files_come_and_go_with_their_owners(house: House, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("in")
    os.chown(tmp_path / "in", 9, 9)
    run(house, "run", "-d", "--name", "box", IMAGE, "sleep", "600")
    run(house, "cp", "-a", str(tmp_path / "in"), "box:/tmp/in")
    assert run(house, "exec", "box", "stat", "-c", "%u:%g", "/tmp/in") == "9:9\n"
    run(house, "exec", "box", "sh", "-c", "echo out > /tmp/out; chown 4:4 /tmp/out")
    assert owners(house, "box:/tmp") == {"tmp": (0, 0), "tmp/in": (9, 9), "tmp/out": (4, 4)}
    run(house, "stop", "-t", "0", "box")
    assert owners(house, "box:/tmp") == {"tmp": (0, 0), "tmp/in": (9, 9), "tmp/out": (4, 4)}
    run(house, "commit", "box", "made")
    for mode in ((), ("--userns=host",)):
        words = ("run", "--rm", *mode, "made", "stat", "-c", "%u:%g", "/tmp/in", "/tmp/out")
        assert run(house, *words).split() == ["9:9", "4:4"]
    run(house, "start", "box")
    run(house, "rm", "-f", "box")


def test_volumes_binds_and_ways_to_share(house: House, tmp_path: Path) -> None:
    script = "echo x > /v/x && chown 8 /v/x; stat -c %u /v /v/x /host; cat /host/plain; echo > /host/no"
    (tmp_path / "plain").write_text("plain\n")
    os.chmod(tmp_path, 0o755)
    done = house.docker("run", "--rm", "-v", "vol:/v", "-v", f"{tmp_path}:/host", IMAGE, "sh", "-c", script)
    assert done.stdout.decode().split() == ["0", "8", "65534", "plain"]
    assert b"Permission denied" in done.stderr
    assert next(house.root.glob("volumes/vol/**/x")).stat().st_uid == 8
    again = ("run", "--rm", "--userns=host", "-v", "vol:/v", IMAGE, "stat", "-c", "%u", "/v/x")
    assert run(house, *again) == "8\n"
    run(house, "run", "--rm", "-v", "vol:/v", IMAGE, "sh", "-c", "mkdir /v/part; echo 1 > /v/part/one")
    part = "type=volume,src=vol,dst=/part,volume-subpath=part"
    script = "stat -c %u /part/one; echo 2 > /part/two; stat -c %u /image/bin/busybox"
    seen = run(house, "run", "--rm", "--mount", part, "--mount", f"type=image,src={IMAGE},dst=/image",
               IMAGE, "sh", "-c", script)  # fmt: skip
    assert seen.split() == ["0", "0"]  # an image of one layer: of several they would be nobody's
    run(house, "run", "-d", "--name", "box", "--ipc", "shareable", IMAGE, "sleep", "600")
    script = "echo y > /dev/shm/y && stat -c %u /dev/shm/y && ip addr show eth0 | grep -c 'inet '; ps"
    words = [f"--{kind}=container:box" for kind in ("network", "ipc", "pid")]
    seen = run(house, "run", "--rm", *words, IMAGE, "sh", "-c", script)
    assert seen.split()[:2] == ["0", "1"] and "sleep 600" in seen
    alone = ("--network", "none", "--read-only", "--tmpfs", "/t", "--init")
    script = "echo > /t/x && stat -c %u /t/x; cat /proc/1/comm"
    assert run(house, "run", "--rm", *alone, IMAGE, "sh", "-c", script).split() == ["0", "docker-init"]
    assert run(house, "run", "--rm", "-t", IMAGE, "tty") == "/dev/pts/0\r\n"
    assert run(house, "run", "--rm", "-u", "3", IMAGE, "sh", "-c", "echo hi > /dev/stdout") == "hi\n"
    write = ("sh", "-c", "echo hi > /dev/stdout")
    assert run(house, "exec", "-u", "4", "box", *write) == "hi\n"


def test_what_only_root_of_the_host_may(house: House) -> None:
    assert "name=userns" in json.loads(house.curl("/info"))["SecurityOptions"]
    for words, said in (
        (("--privileged",), "privileged mode is incompatible with user namespaces."),
        (("--network", "host"), "cannot share the host's network namespace when user namespaces are enabled"),
        (("--pid", "host"), "cannot share the host PID namespace when user namespaces are enabled"),
        (("--runtime", "runc"), "cannot map owners"),
    ):
        assert said in run(house, "create", *words, IMAGE, "true", code=1)
        run(house, "run", "--rm", "--userns=host", *words, IMAGE, "true")
    run(house, "create", "--name", "box", "--userns", "host", IMAGE)
    assert inspect(house, "box")["HostConfig"]["UsernsMode"] == "host"
    run(house, "rm", "box")


def test_a_network_that_comes_later(house: House) -> None:
    run(house, "network", "create", "--subnet", "10.231.77.0/24", "more")
    run(house, "run", "-d", "--name", "one", "--network", "more", "--sysctl", "net.ipv4.ip_forward=0",
        "-p", "18923:80", IMAGE, "sleep", "600")  # fmt: skip
    run(house, "network", "connect", "bridge", "one")
    seen = run(
        house, "exec", "one", "sh", "-c", "cat /proc/sys/net/ipv4/ip_forward; ip -4 addr; nslookup one"
    )
    assert seen.startswith("0\n") and "10.231.77.2/24" in seen and "eth1" in seen
    run(house, "rm", "-f", "one")
    run(house, "network", "rm", "more")


def test_a_daemon_that_comes_back_finds_all_in_its_place(house: House) -> None:
    run(house, "run", "-d", "--name", "box", "--restart", "always", "-v", "vol:/v", IMAGE, "sleep", "600")
    assert house.nagaya("system", "check").returncode == 0
    house.kill_daemon()
    house.start()
    assert run(house, "exec", "box", "stat", "-c", "%u", "/bin/busybox") == "0\n"
    checked = house.nagaya("system", "check")
    assert checked.returncode == 0, checked
    run(house, "restart", "-t", "0", "box")
    assert run(house, "exec", "box", "cat", "/proc/self/uid_map").split() == ["0", str(FIRST), str(COUNT)]
    run(house, "rm", "-f", "box")
    wait_for(lambda: house.nagaya("system", "check").returncode == 0, 10, "all gone")
    assert list((house.run_dir / "ns").iterdir()) == []
