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
    hard = io.BytesIO()
    with tarfile.open(fileobj=hard, mode="w") as made:
        info = tarfile.TarInfo("stolen")
        info.type, info.linkname = tarfile.LNKTYPE, "/etc/shadow"
        made.addfile(info)
    assert call(house.socket, "PUT", "/containers/box/archive?path=/tmp", hard.getvalue()).status >= 400
    house.ok("rm", "box")


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
