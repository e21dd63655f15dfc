"""`docker cp` against a container that exchanges what it copies (CVE-2018-15664, 2021-41089, 2026-42306),
and clients that leave in the middle."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from house import House, wait_for
from rawhttp import Connection, call

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"
ROUNDS = 150


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        yield started


def tar(*members: tuple[str, bytes | str]) -> bytes:
    found = io.BytesIO()
    with tarfile.open(fileobj=found, mode="w") as made:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            else:
                info.size = len(content)
            made.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return found.getvalue()


def test_a_directory_that_becomes_a_link(house: House, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (victim / "sub").mkdir(parents=True)
    (victim / "sub/secret").write_text("the host's secret")
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    swap = f"while :; do rm -rf /d; mkdir -p /d/sub; rm -rf /d; ln -s {victim} /d; done 2>/dev/null"
    house.ok("run", "-d", "--name", "racer", "--network", "none", IMAGE, "sh", "-c", swap)
    seen = set()
    for number in range(ROUNDS):
        where = ("/d", "/d/sub", "/")[number % 3]
        members = tar(
            ("d/sub/evil" if where == "/" else "evil", b"x"), ("d/f" if where == "/" else "f", b"y")
        )
        seen.add(call(house.socket, "PUT", f"/containers/racer/archive?path={where}", members).status)
        for path in ("/d/", "/d/sub", "/d/sub/secret"):
            answer = house.curl(f"/containers/racer/archive?path={path}")
            assert b"the host's secret" not in answer
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before
    assert 200 in seen, seen  # some of them went in, where they belong
    house.ok("rm", "-f", "racer")
    assert house.leaks() == []


def test_links_in_archives_and_images_stay_inside(house: House, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    house.ok("create", "--name", "box", "--network", "none", IMAGE)
    for members in (
        tar(("l", str(victim)), ("l/evil", b"x")),
        tar(("l", "../../../../.." + str(victim)), ("l/evil", b"x")),
        tar((f"../../../../../../..{victim}/evil", b"x")),
        tar((f"{victim}/evil", b"x")),
    ):
        call(house.socket, "PUT", "/containers/box/archive?path=/tmp", members)
    assert list(victim.iterdir()) == []
    secret = tmp_path / "secret"
    secret.write_text("the host's")
    hard = io.BytesIO()
    with tarfile.open(fileobj=hard, mode="w") as made:
        info = tarfile.TarInfo("stolen")
        info.type, info.linkname = tarfile.LNKTYPE, str(secret)
        made.addfile(info)
    assert call(house.socket, "PUT", "/containers/box/archive?path=/tmp", hard.getvalue()).status >= 400
    house.ok("rm", "box")


@pytest.mark.parametrize("running", [True, False])
def test_binds_whose_sources_the_container_replaced(house: House, tmp_path: Path, running: bool) -> None:
    """A bind inside another writable bind: its source is what it was when it was mounted, not what its
    path leads to by now."""
    shared, victim = tmp_path / "shared", tmp_path / "victim"
    (shared / "sub").mkdir(parents=True)
    (shared / "sub/own").write_text("own")
    (shared / "file").write_text("own")
    victim.mkdir()
    (victim / "own").write_text("the host's secret")
    swap = f"mv /v/sub /v/old; ln -s {victim} /v/sub; rm /v/file; ln -s {victim}/own /v/file; touch /done"
    wait = "; sleep 1000" if running else ""
    binds = ["-v", f"{shared}:/v", "-v", f"{shared}/sub:/sub", "-v", f"{shared}/file:/file"]
    house.ok("run", "-d", "--name", "box", "--network", "none", *binds, IMAGE, "sh", "-c", swap + wait)
    wait_for((shared / "sub").is_symlink, 10, "the swap")
    if running:
        wait_for(lambda: house.docker("exec", "box", "test", "-e", "/done").returncode == 0, 10, "the swap")
        assert b"own" in house.curl("/containers/box/archive?path=/sub/own")
    else:
        house.ok("wait", "box")
    for path in ("/sub/own", "/sub/", "/file", "/"):
        assert b"the host's secret" not in house.curl(f"/containers/box/archive?path={path}")
    for where, name in (("/sub", "own"), ("/", "file"), ("/", "sub/own"), ("/sub", "planted")):
        call(house.socket, "PUT", f"/containers/box/archive?path={where}", tar((name, b"evil")))
    assert {p.name: p.read_text() for p in victim.iterdir()} == {"own": "the host's secret"}
    house.ok("rm", "-f", "box")
    assert house.leaks() == []


def test_what_is_mounted_stays_as_it_is(house: House, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    bind = ["-v", f"{tmp_path}/file:/file", "--tmpfs", "/scratch"]
    house.ok("run", "-d", "--name", "box", "--network", "none", *bind, IMAGE, "sleep", "1000")
    before = house.ok("exec", "box", "stat", "-c", "%a", "/dev", "/proc", "/scratch", "/file")
    for name in ("file", "etc/hosts", "dev/null", "dev", "scratch"):
        answer = call(house.socket, "PUT", "/containers/box/archive?path=/", tar((name, b"new")))
        assert answer.status >= 400, (name, answer)
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name in ("dev", "proc", "scratch"):
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o711
            archive.addfile(info)
    assert call(house.socket, "PUT", "/containers/box/archive?path=/", made.getvalue()).status == 200
    assert house.ok("exec", "box", "stat", "-c", "%a", "/dev", "/proc", "/scratch", "/file") == before
    assert house.ok("exec", "box", "cat", "/file") == (tmp_path / "file").read_text() == "old"
    assert house.ok("exec", "box", "grep", "-c", "localhost", "/etc/hosts") != "0"
    for path in ("/scratch", "/proc"):  # the kernel's own, and tmpfs, come out empty
        with tarfile.open(fileobj=io.BytesIO(house.curl(f"/containers/box/archive?path={path}"))) as archive:
            assert archive.getnames() == [path[1:]]
    house.ok("rm", "-f", "box")
    assert house.leaks() == []


def test_clients_that_leave_keep_nothing(house: House) -> None:
    house.ok("create", "--name", "box", "--network", "none", IMAGE, "true")
    call(house.socket, "PUT", "/containers/box/archive?path=/", tar(("big", bytes(64 << 20))))
    assert house.daemon is not None

    def descriptors() -> int:
        pid = int((house.run_dir / "nagayad.pid").read_text())
        return len(os.listdir(f"/proc/{pid}/fd"))

    wait_for(lambda: descriptors() == descriptors(), 10, "quiet")
    before = descriptors()
    for _ in range(5):
        with Connection(house.socket) as connection:
            connection.sock.sendall(b"GET /containers/box/archive?path=/big HTTP/1.1\r\nHost: d\r\n\r\n")
            assert connection.head()[0] == 200
        with Connection(house.socket) as connection:
            head = (
                b"PUT /containers/box/archive?path=/ HTTP/1.1\r\nHost: d\r\nContent-Length: 9999999\r\n\r\n"
            )
            connection.sock.sendall(head + tar(("x", bytes(100_000)))[:50_000])
            time.sleep(0.05)
    # whoever held the container has let it go
    assert house.docker("start", "-a", "box", timeout=20).returncode == 0
    wait_for(lambda: descriptors() <= before, 10, "closed descriptors")
    house.ok("rm", "-f", "box")
    assert house.leaks() == []
    assert subprocess.run(house.inside(["true"])).returncode == 0
