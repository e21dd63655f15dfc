"""Mounts that dockerd 20.10 has not: parts of volumes, images, read-only all the way down; and volumes
whose file system is mounted while somebody runs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from house import House, wait_for

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"
TMPFS = "--opt type=tmpfs --opt device=tmpfs --opt o=size=1m".split()


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        yield started


def mounted(house: House) -> list[str]:
    """What is mounted below the house's directories, but for pinned namespaces."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [p for p in (line.split()[4] for line in lines) if str(house.base) in p and "/ns/" not in p]


def refused(house: House, *arguments: str) -> str:
    said = house.docker("run", "--rm", "--network", "none", *arguments)
    assert said.returncode in (125, 127), said  # 127: the client reads "no such file" as a missing program
    return said.stderr.decode()


def run(house: House, *arguments: str) -> str:
    return house.ok("run", "--rm", "--network", "none", *arguments)


class TestSubpath:
    def parts(self, house: House) -> None:
        """A volume with something in it."""
        run(house, "-v", "parts:/v", IMAGE, "sh", "-c", "mkdir -p /v/a/b; echo hi >/v/a/b/file; touch /v/out")

    def test_a_part_of_a_volume(self, house: House) -> None:
        self.parts(house)
        mount = "type=volume,src=parts,dst=/m,volume-subpath=a/b"
        assert run(house, "--mount", mount, IMAGE, "ls", "/m") == "file"
        assert run(house, "--mount", f"{mount}/file", IMAGE, "cat", "/m") == "hi"
        run(house, "--mount", mount, IMAGE, "touch", "/m/more")
        assert sorted(p.name for p in (house.root / "volumes/parts/_data/a/b").iterdir()) == ["file", "more"]
        assert mounted(house) == []
        assert not list((house.run_dir / "staged").iterdir())

    def test_docker_cp_of_a_stopped_container(self, house: House, tmp_path: Path) -> None:
        run(house, "-v", "cp:/v", IMAGE, "sh", "-c", "mkdir /v/a; echo hi >/v/a/file; ln -s / /v/a/up")
        mount = "type=volume,src=cp,dst=/m,volume-subpath=a"
        house.ok("create", "--name", "stopped", "--mount", mount, IMAGE, "true")
        house.ok("cp", "stopped:/m/file", str(tmp_path / "file"))
        assert (tmp_path / "file").read_text() == "hi\n"
        house.ok("rm", "stopped")

    def test_what_is_not_there(self, house: House) -> None:
        mount = "type=volume,src=parts,dst=/m,volume-subpath=nothing"
        assert "cannot access path nothing of volume parts" in refused(house, "--mount", mount, IMAGE, "true")

    @pytest.mark.parametrize("subpath", ["../..", "/etc", "a/../../b"])
    def test_ways_out(self, house: House, subpath: str) -> None:
        mount = f"type=volume,src=parts,dst=/m,volume-subpath={subpath}"
        assert "relative path" in refused(house, "--mount", mount, IMAGE, "true")

    @pytest.mark.parametrize("link", ["/", "/etc", "../../..", "/proc/self/root"])
    def test_links_lead_nowhere_but_into_the_volume(self, house: House, link: str) -> None:
        """As CVE-2017-1002101 of another volume-subpath, which followed them on the host."""
        run(house, "-v", "bad:/v", IMAGE, "sh", "-c", f"rm -rf /v/*; ln -s {link} /v/up; touch /v/mine")
        mount = "type=volume,src=bad,dst=/m,volume-subpath=up"
        said = house.docker("run", "--rm", "--network", "none", "--mount", mount, IMAGE, "ls", "-A", "/m")
        if said.returncode == 0:  # to the volume's own root
            assert sorted(said.stdout.decode().split()) == ["mine", "up"]
        else:
            assert b"cannot access path up of volume bad" in said.stderr

    def test_under_a_foreign_runtime(self, house: House) -> None:
        if "runc" not in house.ok("info", "-f", "{{json .Runtimes}}"):
            pytest.skip("no runc here")
        self.parts(house)
        mount = "type=volume,src=parts,dst=/m,volume-subpath=a/b,readonly"
        assert "file" in run(house, "--runtime", "runc", "--mount", mount, IMAGE, "ls", "/m")
        assert mounted(house) == []


class TestImage:
    def test_its_files_are_there_and_stay_as_they_are(self, house: House) -> None:
        mount = f"type=image,src={IMAGE},dst=/i"
        assert "busybox" in run(house, "--mount", mount, IMAGE, "ls", "/i/bin")
        said = house.docker("run", "--rm", "--network", "none", "--mount", mount, IMAGE, "touch", "/i/x")
        assert b"Read-only file system" in said.stderr
        assert mounted(house) == []

    def test_a_part_of_it(self, house: House) -> None:
        mount = f"type=image,src={IMAGE},dst=/i,image-subpath=bin"
        assert "busybox" in run(house, "--mount", mount, IMAGE, "ls", "/i")

    def test_one_that_is_not_here(self, house: House) -> None:
        assert "No such image: nosuch:latest" in refused(
            house, "--mount", "type=image,src=nosuch,dst=/i", IMAGE, "true"
        )

    def test_inspect(self, house: House) -> None:
        house.ok("create", "--name", "shown", "--mount", f"type=image,src={IMAGE},dst=/i", IMAGE, "true")
        assert house.ok("inspect", "-f", "{{(index .HostConfig.Mounts 0).Source}}", "shown") == IMAGE
        template = "{{range .Mounts}}{{.Type}} {{.Destination}} {{.RW}}{{end}}"
        assert house.ok("inspect", "-f", template, "shown") == "image /i false"
        house.ok("rm", "shown")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    base = tmp_path_factory.mktemp("tree")
    (base / "inner").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", base / "inner"], check=True)
    (base / "inner/file").touch()
    yield base
    subprocess.run(["umount", base / "inner"], check=True)


class TestRecursion:
    """A directory of the host with a file system mounted in it."""

    @pytest.mark.parametrize(
        ("more", "outer", "inner"),
        [
            ("", True, True),
            (",readonly", False, False),
            (",readonly,bind-recursive=enabled", False, False),
            (",readonly,bind-recursive=writable", False, True),
            (",readonly,bind-recursive=readonly,bind-propagation=rprivate", False, False),
        ],
    )
    def test_who_may_write(self, house: House, tree: Path, more: str, outer: bool, inner: bool) -> None:
        script = "for d in /m /m/inner; do touch $d/x 2>/dev/null && rm $d/x && echo yes || echo no; done"
        said = run(house, "--mount", f"type=bind,src={tree},dst=/m{more}", IMAGE, "sh", "-c", script)
        assert said.split() == ["yes" if may else "no" for may in (outer, inner)]

    def test_ro_of_a_short_v(self, house: House, tree: Path) -> None:
        assert run(house, "-v", f"{tree}:/m:ro", IMAGE, "sh", "-c", "touch /m/inner/x 2>&1 || true").endswith(
            "Read-only file system"
        )

    def test_without_what_is_mounted_below(self, house: House, tree: Path) -> None:
        mount = f"type=bind,src={tree},dst=/m,bind-recursive=disabled"
        assert run(house, "--mount", mount, IMAGE, "ls", "-A", "/m/inner") == ""
        assert house.nagaya("run", "--rm", "--mount", mount, IMAGE, "ls", "-A", "/m/inner").stdout == b""

    def test_a_source_that_is_made(self, house: House, tmp_path: Path) -> None:
        mount = f"type=bind,src={tmp_path}/new/one,dst=/m"
        assert "does not exist" in refused(house, "--mount", mount, IMAGE, "true")
        said = house.nagaya("run", "--rm", "--mount", f"{mount},bind-create-mountpoint", IMAGE, "true")
        assert said.returncode == 0, said
        assert (tmp_path / "new/one").is_dir()


class TestOptions:
    def test_mounted_as_long_as_somebody_runs(self, house: House) -> None:
        house.ok("volume", "create", *TMPFS, "memory")
        path = str(house.root / "volumes/memory/_data")
        assert mounted(house) == []
        house.ok("run", "-d", "--name", "one", "-v", "memory:/m", IMAGE, "sleep", "600")
        house.ok("run", "-d", "--name", "two", "-v", "memory:/m", IMAGE, "sleep", "600")
        assert mounted(house) == [path]
        house.kill_daemon()
        house.start()
        assert mounted(house) == [path]
        house.ok("rm", "-f", "one")
        assert mounted(house) == [path]
        house.ok("stop", "-t", "0", "two")
        wait_for(lambda: mounted(house) == [], 30, "unmounting")
        house.ok("start", "two")
        assert mounted(house) == [path]
        house.ok("restart", "-t", "0", "two")
        assert mounted(house) == [path]
        house.ok("rm", "-f", "two")
        assert mounted(house) == []
        house.ok("volume", "rm", "memory")

    def test_of_those_that_ended_meanwhile(self, house: House) -> None:
        house.ok("volume", "create", *TMPFS, "memory")
        house.ok("run", "-d", "--name", "one", "-v", "memory:/m", IMAGE, "sleep", "600")
        pid = int(house.ok("inspect", "-f", "{{.State.Pid}}", "one"))
        house.kill_daemon()
        os.kill(pid, 9)
        wait_for(lambda: not Path(f"/proc/{pid}/exe").exists(), 10, "its end")
        house.start()
        wait_for(lambda: mounted(house) == [], 30, "unmounting")
        house.ok("rm", "one")
        house.ok("volume", "rm", "memory")

    def test_a_failed_start_leaves_nothing_mounted(self, house: House) -> None:
        house.ok("volume", "create", *TMPFS, "memory")
        assert house.docker("run", "--rm", "-v", "memory:/m", IMAGE, "/no/such/program").returncode == 127
        assert mounted(house) == []
        house.ok("volume", "rm", "memory")

    def test_filled_before_the_first_start(self, house: House, tmp_path: Path) -> None:
        house.ok(
            "volume", "create", "--opt", "type=none", "--opt", f"device={tmp_path}", "--opt", "o=bind", "host"
        )
        house.ok("create", "--name", "filled", "-v", "host:/bin", IMAGE, "true")
        assert (tmp_path / "busybox").exists()
        assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]
        assert mounted(house) == []
        (tmp_path / "busybox").rename(tmp_path / "other")
        house.ok("create", "--name", "again", "-v", "host:/bin", IMAGE, "true")
        assert not (tmp_path / "busybox").exists()
        house.ok("cp", "filled:/bin/other", str(tmp_path / "copy"))
        house.ok("rm", "filled", "again")
        house.ok("volume", "rm", "host")

    def test_remove_and_create_at_once(self, house: House) -> None:
        """A volume is never taken away under a container that is being made with it."""
        for number in range(8):
            house.ok("volume", "create", "busy")
            removal = subprocess.Popen(
                ["docker", "volume", "rm", "busy"], env=house.environment,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            house.ok("create", "--name", f"c{number}", "-v", "busy:/bin", IMAGE, "true")
            removal.wait()
            assert (house.root / "volumes/busy/_data/busybox").exists()
            house.ok("start", "-a", f"c{number}")
            house.ok("rm", f"c{number}")
            house.ok("volume", "rm", "busy")
