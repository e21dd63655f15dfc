"""`system check`: each kind of damage is named, and mended by --repair, while a container runs on."""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from house import House, wait_for
from rawhttp import call

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"


class Scene:
    """A house in which `alive` runs, with a published port and two volumes, and `idle` was made."""

    def __init__(self, house: House) -> None:
        self.house = house
        house.ok("volume", "create", "--opt", "type=tmpfs", "--opt", "device=tmpfs", "memory")
        house.ok(
            "run", "-d", "--name", "alive", "-p", "18080:80", "-v", "data:/d", "-v", "memory:/m", IMAGE,
            "sh", "-c", "echo page >/d/index.html; exec httpd -f -h /d",
        )  # fmt: skip
        self.idle = house.ok("create", "--name", "idle", IMAGE, "true")
        self.alive = house.ok("inspect", "-f", "{{.Id}}", "alive")
        self.pid = int(house.ok("inspect", "-f", "{{.State.Pid}}", "alive"))
        self.stranger = secrets.token_hex(32)  # an id of nobody

    def serves(self) -> bool:
        """Is its page there, at the published port?"""
        fetch = self.house.inside(["curl", "-s", "-m", "5", "http://10.231.0.1:18080/"])
        return subprocess.run(fetch, capture_output=True).stdout == b"page\n"

    def check(self) -> list[str]:
        """What a look finds, as "KIND: PROBLEM"."""
        found = call(self.house.socket, "GET", "/nagaya/check").json["Findings"]
        return [f"{f['Kind']}: {f['Problem']}" for f in found]

    def repair(self) -> tuple[int, str]:
        """`nagaya system check --repair`: exit code and output."""
        done = self.house.nagaya("system", "check", "--repair")
        return done.returncode, done.stdout.decode()


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with House() as house:
        yield Scene(house)
        house.ok("rm", "-f", "alive", "idle")


def mount(*words: str | Path) -> None:
    subprocess.run(["mount", *words], check=True)


def stray_mount_of_a_volume(scene: Scene) -> None:
    scene.house.ok("volume", "create", "covered")
    mount("-t", "tmpfs", "tmpfs", scene.house.root / "volumes/covered/_data")


def stray_mount_of_a_root(scene: Scene) -> None:
    place = scene.house.root / f"containers/{scene.stranger}/rootfs"
    place.mkdir(parents=True)
    mount("-t", "tmpfs", "tmpfs", place)


def stray_staged(scene: Scene) -> None:
    place = scene.house.run_dir / f"staged/{scene.stranger}/0"
    place.mkdir(parents=True)
    mount("-t", "tmpfs", "tmpfs", place)


def stray_pin(scene: Scene) -> None:
    pin = scene.house.run_dir / f"ns/{scene.stranger}/net"
    pin.parent.mkdir()
    pin.touch()
    mount("--bind", "/proc/self/ns/net", pin)


def lost_pin(scene: Scene) -> None:
    subprocess.run(["umount", scene.house.run_dir / f"ns/{scene.alive}/net"], check=True)


def stray_cgroup(scene: Scene) -> None:
    Path(f"/sys/fs/cgroup/pids/{scene.house.cgroup_parent}/{scene.stranger}/below").mkdir(parents=True)


def nft(scene: Scene, text: str) -> None:
    subprocess.run(scene.house.inside(["nft", text]), check=True)


def lost_element(scene: Scene) -> None:
    nft(scene, f"delete element ip {scene.house.table} published_any {{ tcp . 18080 }}")
    assert not scene.serves()


def stray_element(scene: Scene) -> None:
    nft(scene, f"add element ip {scene.house.table} published_any {{ tcp . 19999 : 10.231.0.77 . 80 }}")


def lost_rules(scene: Scene) -> None:
    nft(scene, f"flush chain ip {scene.house.table} forward")


def ledger(scene: Scene, statement: str, *values: object) -> None:
    with sqlite3.connect(scene.house.root / "ledger.db", timeout=10) as db:
        db.execute(statement, values)
    db.close()


def stray_address(scene: Scene) -> None:
    network = "62726964676500000000000000000000000000000000000000000000000000"
    ledger(scene, "INSERT INTO addresses VALUES(?,?,?)", network, "10.231.0.99", scene.stranger)


def stray_snapshot(scene: Scene) -> None:
    (scene.house.root / f"snapshots/{scene.stranger}/fs/deep").mkdir(parents=True)


def stray_row_of_a_snapshot(scene: Scene) -> None:
    document = json.dumps({"id": scene.stranger, "layers": []})
    ledger(scene, "INSERT INTO snapshots VALUES(?,?)", scene.stranger, document)


def stray_directory(scene: Scene) -> None:
    (scene.house.root / f"containers/{scene.stranger}").mkdir()


def lost_directory(scene: Scene) -> None:
    subprocess.run(["rm", "-r", scene.house.root / f"containers/{scene.idle}"], check=True)


def stray_bundle(scene: Scene) -> None:
    bundle = scene.house.run_dir / f"bundles/{scene.stranger}"
    bundle.mkdir()
    (bundle / "config.json").write_text("{}")


def stray_volume(scene: Scene) -> None:
    data = scene.house.root / "volumes/found/_data"
    data.mkdir(parents=True)
    (data / "precious").touch()


def lost_volume(scene: Scene) -> None:
    scene.house.ok("volume", "create", "lost")
    subprocess.run(["rm", "-r", scene.house.root / "volumes/lost"], check=True)


DAMAGE: dict[Callable[[Scene], None], str] = {
    stray_mount_of_a_volume: "mount: the volume covered is mounted, and nobody who runs has it",
    stray_mount_of_a_root: "mount: mounted for the container",
    stray_staged: "mount: mounted for the container",
    stray_pin: "namespace: pinned, and nobody lives in it",
    lost_pin: "namespace: the container runs, and its namespace is not pinned",
    stray_cgroup: "cgroup: empty, and of no container that runs",
    lost_element: "network: published_any: tcp . 18080 : 10.231.0.2 . 80 is missing",
    stray_element: "network: published_any: tcp . 19999 : 10.231.0.77 . 80 is nobody's",
    lost_rules: "network: chains or rules of ours are not as they were made",
    stray_address: "address: has addresses, and does not run",
    stray_snapshot: "snapshot: of no container",
    stray_row_of_a_snapshot: "snapshot: of no container",
    stray_directory: "container: a directory of no container",
    lost_directory: "container: the container's directory is gone",
    stray_bundle: "bundle: of no container that runs",
    stray_volume: "volume: a directory of no volume",
    lost_volume: "volume: the volume's files are gone",
}


def test_nothing_to_find(scene: Scene) -> None:
    assert scene.check() == []
    said = scene.house.nagaya("system", "check")
    assert (said.returncode, said.stdout) == (0, b"ledger and host agree\n")


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_named_and_mended(scene: Scene, damage: Callable[[Scene], None]) -> None:
    assert scene.check() == []
    damage(scene)
    found = scene.check()
    if damage is not lost_rules:  # which the daemon's own guard may have mended by now
        assert any(line.startswith(DAMAGE[damage]) for line in found), found
    status, text = scene.repair()
    assert status == 0 and text.count("(mended)") == text.count("\n") - ("agree" in text), text
    # what a mended thing uncovers is mended by the next
    scene.repair()
    assert scene.check() == []
    assert scene.serves()
    assert Path(f"/proc/{scene.pid}/exe").exists()
    for volume in ("found", "lost", "covered"):
        scene.house.ok("volume", "rm", "-f", volume)


def test_files_that_were_found_are_a_volume_s(scene: Scene) -> None:
    stray_volume(scene)
    scene.repair()
    assert scene.house.ok("volume", "ls", "-q", "--filter", "name=found") == "found"
    assert scene.house.ok("run", "--rm", "-v", "found:/f", IMAGE, "ls", "/f") == "precious"
    scene.house.ok("volume", "rm", "found")


def test_a_cgroup_in_which_somebody_lives_stays(scene: Scene) -> None:
    path = Path(f"/sys/fs/cgroup/pids/{scene.house.cgroup_parent}/{scene.stranger}")
    path.mkdir()
    with subprocess.Popen(["sleep", "600"]) as sleeper:
        try:
            (path / "cgroup.procs").write_text(str(sleeper.pid))
            assert "cgroup: processes of no container of ours live in it" in scene.check()
            status, text = scene.repair()
            assert status == 1 and "(left alone)" in text
            assert sleeper.poll() is None and path.exists()
        finally:
            sleeper.kill()
    wait_for(lambda: not (path / "cgroup.procs").read_text(), 10, "its end")
    assert scene.repair()[0] == 0 and not path.exists()


def test_what_comes_and_goes_is_no_difference(scene: Scene) -> None:
    """Containers are made, run and removed all the time; no look finds anything, no repair harms."""
    churn = subprocess.Popen(
        ["sh", "-c", f"for n in $(seq 25); do docker run --rm -v /x {IMAGE} true || exit 1; done"],
        env=scene.house.environment,
        stderr=subprocess.PIPE,
    )
    begun = time.monotonic()
    while churn.poll() is None:
        assert call(scene.house.socket, "POST", "/nagaya/check").json == {"Findings": []}
    assert churn.returncode == 0, churn.communicate()
    assert time.monotonic() > begun and os.path.exists(f"/proc/{scene.pid}/exe")
