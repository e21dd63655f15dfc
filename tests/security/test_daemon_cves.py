"""Holes that daemons had, tried on ours: moby's, and containerd's where a Docker API has the same door.

One test a row, named after it. Rows that other files hold:

    CVE-2018-15664, 2021-41089, 2026-42306, GHSA-vp62-88p7-qqf5   test_copying_races.py
    CVE-2020-15157, 2021-41092      tests/unit/test_image_pull.py, test_image_auth.py
    CVE-2021-21285, 2021-41190, 2023-25153   test_archives_hostile.py, tests/unit/test_image_pull.py
    CVE-2021-32760, 2025-47290      test_layers_hostile.py
    CVE-2022-23471, 2025-64329      tests/fuzz/test_aborted_clients.py
    CVE-2022-29162, 2022-24769, 2025-31133, 2025-52881            test_runtime_cves.py

What we do not have cannot have holes: no builder (2019-13139, 2024-24557, 2026-33748), no authorisation
plugins (2024-41110, 2026-34040), no checkpoints by the API (2026-50195, 2026-53489, 2026-53492), no
logging by `binary://` (2026-53488: labels steer nothing, below).
"""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from dockerd import Dockerd
from house import House, wait_for
from images import layer, write_layout
from rawhttp import call

from nagaya.image import builtin

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        yield started


def load(
    house: House, name: str, tmp_path: Path, entries: Sequence[tuple[str, bytes | str | None]], **config: Any
) -> str:
    """An image of busybox and these entries."""
    with tarfile.open(fileobj=io.BytesIO(builtin.build().layer)) as tar:
        member = tar.extractfile("bin/busybox")
        assert member is not None
        base: list[tuple[str, bytes | str | None]] = [("bin", None), ("bin/busybox", member.read())]
    base += [(f"bin/{tool}", "busybox") for tool in ("sh", "id", "cat", "sleep", "true", "env", "ls", "yes")]
    layout = tmp_path / f"layout-{name}"
    document = {"Env": ["PATH=/bin:/usr/bin"], "Cmd": ["sh"], **config}
    write_layout(layout, [layer(base), layer(list(entries))], document, tag=f"{name}:1")
    packed = subprocess.run(["tar", "-C", layout, "-c", "."], capture_output=True, check=True).stdout
    house.ok("load", input=packed)
    return f"{name}:1"


def run(house: House, *arguments: str) -> str:
    return house.ok("run", "--rm", "--network", "none", *arguments)


def test_cve_2019_14271_and_2026_41567_docker_cp_runs_and_loads_nothing_of_the_container(
    house: House, tmp_path: Path
) -> None:
    """Programs that unpack, libraries for names, and a Python that would be ours: all of the image."""
    evil = b"#!/bin/sh\necho was here >>/tmp/evil-$0; echo was here >/evil\n"
    programs = [
        f"{d}/{p}" for d in ("bin", "usr/bin") for p in ("xz", "unpigz", "gzip", "zstd", "tar", "python3")
    ]
    libraries = [
        f"lib/x86_64-linux-gnu/{name}.so.2" for name in ("libnss_files", "libnss_compat", "libnss_dns")
    ]
    modules = [f"usr/lib/python3.11/{name}.py" for name in ("encodings/__init__", "site", "tarfile", "pwd")]
    image = load(house, "evil", tmp_path, [(n, evil) for n in (*programs, *libraries, *modules)])
    inside = subprocess.run(["xz", "-c"], input=b"x" * 100, capture_output=True).stdout
    (tmp_path / "file.xz").write_bytes(inside)
    before = set(Path("/tmp").glob("evil-*"))
    for name, command in (("running", ["sleep", "600"]), ("stopped", ["true"])):
        house.ok("create", "--name", name, "-u", "65534", "--network", "none", image, *command)
        if name == "running":
            house.ok("start", name)
        house.ok("cp", str(tmp_path / "file.xz"), f"{name}:/file.xz")
        house.ok("cp", f"{name}:/usr", str(tmp_path / name))
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as tar:
            tar.addfile(tarfile.TarInfo("inside"))
        answer = call(house.socket, "PUT", f"/containers/{name}/archive?path=/", packed.getvalue())
        assert answer.status == 200
        house.ok("rm", "-f", name)
    assert (tmp_path / "running/bin/xz").read_bytes() == evil
    assert set(Path("/tmp").glob("evil-*")) == before and not Path("/evil").exists()


def test_cve_2018_15664_follow_up_a_link_of_the_image_still_works(house: House, tmp_path: Path) -> None:
    image = load(
        house, "linked", tmp_path, [("run", None), ("run/file", b"here"), ("var", None), ("var/run", "/run")]
    )
    house.ok("create", "--name", "linked", image)
    house.ok("cp", "linked:/var/run/file", str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "here"
    house.ok("rm", "linked")


def test_cve_2020_13401_the_bridge_takes_no_router_s_advice(house: House) -> None:
    house.ok("run", "-d", "--name", "one", IMAGE, "sleep", "600")
    settings = [f"/proc/sys/net/ipv6/conf/{house.bridge}/{name}" for name in ("accept_ra", "disable_ipv6")]
    told = subprocess.run(house.inside(["cat", *settings]), capture_output=True, text=True, check=True).stdout
    said = told.split()
    assert said[0] == "0" or said[1] == "1"
    house.ok("rm", "-f", "one")


def test_cve_2024_32473_no_ipv6_in_a_network_without_it(house: House) -> None:
    said = house.ok(
        "run",
        "--rm",
        IMAGE,
        "sh",
        "-c",
        "ip -6 addr show eth0; cat /proc/sys/net/ipv6/conf/eth0/disable_ipv6",
    )
    assert said == "1"


def test_cve_2025_54388_isolation_comes_back_with_the_rules(house: House) -> None:
    """A reload of the host's firewall takes our rules; the daemon puts them back by itself."""
    house.ok("network", "create", "other")
    house.ok("run", "-d", "--name", "one", "-p", "18080:80", IMAGE, "httpd", "-f", "-h", "/etc")
    house.ok("run", "-d", "--name", "two", "--network", "other", IMAGE, "sleep", "600")
    address = house.ok("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "one")

    def rules() -> str:
        return subprocess.run(house.inside(["nft", "list", "ruleset"]), capture_output=True, text=True).stdout

    def reached() -> bool:
        fetch = ["exec", "two", "wget", "-q", "-T", "1", "-O", "/dev/null", f"http://{address}/"]
        return house.docker(*fetch).returncode == 0

    before = rules()
    assert not reached() and "18080" in before
    subprocess.run(house.inside(["nft", "flush", "ruleset"]), check=True)
    wait_for(lambda: "18080" in rules(), 60, "the rules")
    assert not reached()
    house.ok("rm", "-f", "one", "two")
    house.ok("network", "rm", "other")


def test_cve_2021_21284_and_41091_and_41103_directories_are_roots_alone(house: House) -> None:
    """What lies in them may be setuid, or somebody's secret."""
    house.ok("run", "-d", "--name", "one", "-v", "data:/d", IMAGE, "sleep", "600")
    closed = [house.root, *(house.root / d for d in ("containers", "snapshots", "content"))]
    closed += [house.run_dir / d for d in ("runtime", "bundles", "ns")]
    closed += [*(house.root / "containers").iterdir(), *(house.run_dir / "bundles").iterdir()]
    for path in closed:
        assert not stat.S_IMODE(path.stat().st_mode) & 0o007, path
    for path in (house.root / "ledger.db", house.root / "events.jsonl"):
        assert (
            not stat.S_IMODE(path.stat().st_mode) & 0o077 or not stat.S_IMODE(house.root.stat().st_mode) & 7
        )
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    for path in (house.root / "volumes/data/_data", house.root / "snapshots", house.root / "ledger.db"):
        assert subprocess.run([*nobody, "ls", path], capture_output=True).returncode != 0, path
    assert (
        subprocess.run([*nobody, "curl", "-s", "--unix-socket", house.socket, "http://d/_ping"]).returncode
        != 0
    )
    house.ok("rm", "-f", "one")
    house.ok("volume", "rm", "data")


def test_cve_2020_15257_nobody_in_the_host_s_network_reaches_us(house: House) -> None:
    """No socket without a file: those a container with the host's network could connect to."""
    house.ok("run", "-d", "--name", "one", "--network", "host", IMAGE, "sleep", "600")
    said = house.ok("exec", "one", "cat", "/proc/net/unix")
    ours = [line for line in said.splitlines()[1:] if "@" in line and ("nagaya" in line or house.tag in line)]
    assert ours == []
    for path in house.run_dir.rglob("*.sock"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o007, path
    house.ok("rm", "-f", "one")


def test_cve_2021_21334_environments_stay_apart(house: House) -> None:
    """Many are made of one image at once, each with a secret of its own."""
    found: dict[int, list[str]] = {}

    def make(number: int) -> None:
        body = {
            "Image": IMAGE,
            "Cmd": ["env"],
            "Env": [f"SECRET{number}=x"],
            "HostConfig": {"NetworkMode": "none"},
        }
        made = call(house.socket, "POST", "/containers/create", body).json["Id"]
        call(house.socket, "POST", f"/containers/{made}/start")
        call(house.socket, "POST", f"/containers/{made}/wait")
        inspected = call(house.socket, "GET", f"/containers/{made}/json").json["Config"]["Env"]
        logs = call(house.socket, "GET", f"/containers/{made}/logs?stdout=1").body.decode(errors="replace")
        found[number] = [*inspected, *logs.splitlines()]
        call(house.socket, "DELETE", f"/containers/{made}")

    threads = [threading.Thread(target=make, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, lines in found.items():
        secrets = {line.partition("SECRET")[2].partition("=")[0] for line in lines if "SECRET" in line}
        assert secrets == {str(number)}
    assert len(found) == 12


@pytest.mark.parametrize("path", ["/../../etc", "/a/../../../etc", "/.."])
def test_cve_2022_23648_volumes_lead_nowhere_else(house: House, tmp_path: Path, path: str) -> None:
    """Of an image, which is refused whole, or of a request: what the volume gets is the image's."""
    layout = tmp_path / "layout"
    write_layout(layout, [layer([("etc", None)])], {"Volumes": {path: {}}}, tag="dots:1")
    packed = subprocess.run(["tar", "-C", layout, "-c", "."], capture_output=True, check=True).stdout
    refused = house.docker("load", input=packed)
    assert refused.returncode == 1 and b"a volume that leads outside the container" in refused.stderr
    made = call(
        house.socket, "POST", "/containers/create", {"Image": IMAGE, "Cmd": ["true"], "Volumes": {path: {}}}
    )
    if made.status == 201:
        for volume in (house.root / "volumes").iterdir():
            assert not (volume / "_data/shadow").exists()
        house.ok("rm", "-v", made.json["Id"])
    else:
        assert made.status == 400


def test_cve_2022_31030_output_that_nobody_reads_fills_no_memory(house: House) -> None:
    house.ok("run", "-d", "--name", "loud", "--network", "none", IMAGE, "sleep", "600")

    def memory() -> int:
        pids = [int((house.run_dir / "nagayad.pid").read_text()), house.supervisor_pid(), house.io_pid()]
        lines = "".join(Path(f"/proc/{pid}/status").read_text() for pid in pids).splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    before = memory()
    made = call(house.socket, "POST", "/containers/loud/exec", {"Cmd": ["yes"], "AttachStdout": True}).json
    client = subprocess.Popen(
        ["docker", "exec", "loud", "yes"], env=house.environment, stdout=subprocess.PIPE
    )  # whose output nobody takes
    detached = call(house.socket, "POST", f"/exec/{made['Id']}/start", {"Detach": True})
    assert detached.status == 200
    time.sleep(2)
    assert memory() - before < 32 << 10
    client.kill()
    client.communicate()
    house.ok("rm", "-f", "loud")


USERS = (
    "0",
    "1000",
    "1000:1000",
    "nobody",
    "nobody:daemon",
    "65534",
    "daemon:0",
    "root:nobody",
    "1000:daemon",
)


def test_cve_2023_25173_and_2022_36109_groups_are_as_docker_has_them(house: House, tmp_path: Path) -> None:
    passwd = b"root:x:0:0::/root:/bin/sh\ndaemon:x:1:1::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"
    group = b"root:x:0:root,nobody\ndaemon:x:1:nobody\nextra:x:7:nobody,daemon\nnobody:x:65534:\n"
    entries: list[tuple[str, bytes | str | None]] = [
        ("etc", None),
        ("etc/passwd", passwd),
        ("etc/group", group),
    ]
    image = load(house, "groups", tmp_path, entries)
    saved = house.docker("save", image).stdout
    ours = {user: run(house, "-u", user, image, "id") for user in USERS}
    with Dockerd() as peer:
        subprocess.run(["docker", "load"], input=saved, env=peer.environment, check=True, capture_output=True)
        for user in USERS:
            theirs = subprocess.run(
                ["docker", "run", "--rm", "--network", "none", "-u", user, image, "id"],
                env=peer.environment, capture_output=True, text=True, check=True,
            ).stdout  # fmt: skip
            assert ours[user] == theirs.strip(), user
    house.ok("rmi", image)


@pytest.mark.parametrize(
    "user", ["4294967296:4294967296", "-1", "2147483648", "0:4294967296", "99999999999999999999"]
)
def test_cve_2024_40635_an_id_that_would_wrap_is_refused(house: House, user: str) -> None:
    said = house.docker("run", "--rm", "--network", "none", "-u", user, IMAGE, "id")
    assert said.returncode != 0 and b"uid=0" not in said.stdout


def test_cve_2026_46680_a_number_is_never_looked_up_as_a_name(house: House, tmp_path: Path) -> None:
    passwd = b"4294967295:x:0:0::/root:/bin/sh\n5000:x:0:0::/root:/bin/sh\n99999999999:x:0:0::/:/bin/sh\n"
    image = load(house, "digits", tmp_path, [("etc", None), ("etc/passwd", passwd)])
    assert run(house, "-u", "5000", image, "id").startswith("uid=5000")
    for user in ("4294967295", "99999999999"):
        said = house.docker("run", "--rm", "--network", "none", "-u", user, image, "id")
        assert said.returncode != 0 and b"uid=0" not in said.stdout
    house.ok("rmi", image)


@pytest.mark.parametrize("kind", ["pipe", "device", "endless link", "directory", "huge"])
def test_cve_2026_47262_passwd_may_be_anything(house: House, tmp_path: Path, kind: str) -> None:
    """The container's own root may be changed between its starts; the daemon reads it at each."""
    image = load(house, "odd", tmp_path, [("etc", None), ("etc/passwd", b"root:x:0:0::/:/bin/sh\n")])
    name = "odd-" + kind.replace(" ", "-")
    made = house.ok("create", "--name", name, "--network", "none", "-u", "somebody", image, "true")
    (upper,) = (house.root / "snapshots").glob(f"{made}/fs")
    (upper / "etc").mkdir(exist_ok=True)
    path = upper / "etc/passwd"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero
    elif kind == "endless link":
        path.symlink_to("/dev/zero")
    elif kind == "directory":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(2 << 30)
    begun = time.monotonic()
    said = house.docker("start", name)
    assert said.returncode != 0 and time.monotonic() - begun < 45
    assert (
        int(Path(f"/proc/{(house.run_dir / 'nagayad.pid').read_text().strip()}/statm").read_text().split()[1])
        < 40000
    )
    house.ok("rm", name)
    house.ok("rmi", image)


def test_ghsa_7ww5_and_jq35_power_and_interrupts_are_hidden(house: House) -> None:
    """How much power was drawn, and which interrupts came, tells of others' secrets."""
    script = (
        "for p in /proc/interrupts /proc/timer_list /proc/kcore /proc/keys; do cat $p; done; "
        "ls /sys/devices/virtual/powercap /sys/firmware; true"
    )
    said = house.docker("run", "--rm", "--network", "none", IMAGE, "sh", "-c", script).stdout
    assert said.replace(b"/sys/devices/virtual/powercap:", b"").replace(b"/sys/firmware:", b"").strip() == b""


def test_cve_2026_53488_labels_of_an_image_steer_nothing(house: House, tmp_path: Path) -> None:
    """Labels that steered other daemons are labels, and no more, here."""
    labels = {
        "containerd.io/restart.loguri": f"binary:///bin/sh?-c=touch%20{tmp_path}/was-here",
        "containerd.io/restart.status": "running",
        "com.docker.volume.anonymous": "",
        "io.nagaya.anything": "x",
    }
    image = load(house, "labelled", tmp_path, [("x", b"")], Labels=labels)
    house.ok("run", "--name", "one", "--network", "none", image, "true")
    assert json.loads(house.ok("inspect", "-f", "{{json .Config.Labels}}", "one")) == labels
    house.stop_daemon()
    house.start()
    assert house.ok("inspect", "-f", "{{.State.Status}}", "one") == "exited"
    assert not (tmp_path / "was-here").exists()
    house.ok("rm", "one")
    house.ok("rmi", image)


def test_cve_2026_31431_kernel_crypto_is_no_container_s(house: House) -> None:
    """socket(AF_ALG) is refused by the default profile; nothing in busybox asks for it, so Python does."""
    program = "import socket\ntry:\n    socket.socket(38, 5)\nexcept OSError as e:\n    print(e.errno)"
    said = run(
        house, "-v", "/usr:/usr:ro", "-v", "/lib:/lib:ro", "-v", "/lib64:/lib64:ro", IMAGE,
        "/usr/bin/python3.11", "-I", "-S", "-c", program,
    )  # fmt: skip
    assert said in ("1", "97")


def test_cve_2024_29018_an_internal_network_resolves_nothing_outside(house: House) -> None:
    house.ok("network", "create", "--internal", "inner")
    said = house.docker("run", "--rm", "--network", "inner", IMAGE, "nslookup", "-timeout=2", "example.com")
    assert said.returncode != 0 and b"Address 1: 9" not in said.stdout
    house.ok("network", "rm", "inner")
