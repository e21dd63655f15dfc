"""GET, HEAD and PUT /containers/ID/archive: what paths mean, on the original and on ours."""

from __future__ import annotations

import base64
import io
import json
import tarfile
import time
from collections.abc import Iterator

import pytest
from dockerd import Dockerd
from house import House, wait_for
from rawhttp import call

pytestmark = pytest.mark.root

Server = Dockerd | House
IMAGE = "nagaya/busybox"
SETUP = (
    "mkdir -p /d/sub; echo hi >/d/f; ln /d/f /d/hard; ln -s f /d/link; ln -s /d /dl; ln -s /nosuch /dang; "
    "chown 5:6 /d/f; chmod 4755 /d/f; mkfifo /d/fifo; echo kept >/nv/kept; echo done; exec sleep 600"
)


def docker(server: Server, *words: str, input: bytes | None = None) -> bytes:
    import subprocess

    done = subprocess.run(
        ["docker", *words], env=server.environment, input=input, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done
    return done.stdout


@pytest.fixture(params=("running", "stopped"))
def box(request: pytest.FixtureRequest, server: Server) -> Iterator[str]:
    docker(
        server, "run", "-d", "--name", "box", "--network", "none", "-v", "nv:/nv", IMAGE, "sh", "-c", SETUP
    )
    wait_for(lambda: b"done" in docker(server, "logs", "box"), 10, "the set-up")
    if request.param == "stopped":
        docker(server, "kill", "box")
    yield "/containers/box/archive"
    docker(server, "rm", "-f", "box")


def archive(*members: tuple[str, bytes | str | None]) -> bytes:
    """A tar: (name, content), None for a directory, text for a link's target."""
    found = io.BytesIO()
    with tarfile.open(fileobj=found, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.uid, info.gid, info.mode = 1000, 1001, 0o640
            if content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o750
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            else:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return found.getvalue()


def listing(server: Server, path: str) -> dict[str, str]:
    """name -> kind, mode, owner, link of what GET sends."""
    data = server.curl(f"/containers/box/archive?path={path}")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {
            m.name: f"{m.type.decode()} {m.mode & 0o7777:o} {m.uid}:{m.gid} {m.linkname}".rstrip()
            for m in tar
        }


def names(prefix: str) -> dict[str, str]:
    return {
        prefix: "5 755 0:0",
        f"{prefix}/f": "0 4755 5:6",
        f"{prefix}/hard": f"1 4755 5:6 {prefix}/f",
        f"{prefix}/fifo": "6 644 0:0",
        f"{prefix}/link": "2 777 0:0 f",
        f"{prefix}/sub": "5 755 0:0",
    }


def test_what_comes_out(server: Server, box: str) -> None:
    assert listing(server, "/d") == listing(server, "/d/") == listing(server, "d") == names("d")
    assert listing(server, "/dl/") == names("dl")
    assert listing(server, "/d/.") == listing(server, "/dl/.") == names(".")
    assert listing(server, "/dl") == {"dl": "2 777 0:0 /d"}
    assert listing(server, "/dang") == {"dang": "2 777 0:0 /nosuch"}
    assert listing(server, "/d/../d/f") == {"f": "0 4755 5:6"}
    assert listing(server, "/nv") == {"nv": "5 755 0:0", "nv/kept": "0 644 0:0"}
    everything = listing(server, "/")
    assert {"/bin", "/bin/busybox", "/d/f", "/etc/passwd", "/proc", "/.dockerenv"} <= set(everything)
    assert not any(name.startswith(("/proc/", "/sys/")) for name in everything)


def test_stat(server: Server, box: str) -> None:
    def stat(path: str) -> tuple[object, ...]:
        answer = call(server.socket, "HEAD", f"{box}?path={path}")
        assert answer.status == 200
        found = json.loads(base64.b64decode(answer.headers["x-docker-container-path-stat"]))
        return found["name"], found["mode"], found["linkTarget"]

    assert stat("/d") == ("d", 2147484141, "")
    assert stat("/d/.") == (".", 2147484141, "")
    assert stat("/d/..") == ("/", 2147484141, "")
    assert stat("/d/f") == ("f", 8389101, "")
    assert stat("/d/link") == ("link", 134218239, "/d/f")
    assert stat("/dl") == ("dl", 134218239, "/d")
    assert stat("/dang") == ("dang", 134218239, "/nosuch")
    assert stat("/dl/") == ("dl", 2147484141, "")


@pytest.mark.parametrize(
    "path", ["/nosuch", "/nosuch/", "/dang/", "/d/nosuch", "/proc/1/root", "/proc/self/fd/0"]
)
def test_what_is_not_there(server: Server, box: str, path: str) -> None:
    answer = call(server.socket, "GET", f"{box}?path={path}")
    assert (answer.status, answer.message) == (404, f"Could not find the file {path} in container box")
    assert call(server.socket, "HEAD", f"{box}?path={path}").status == 404


def test_refusals(server: Server, box: str) -> None:
    ours = isinstance(server, House)
    some = archive(("a", b"x"))
    assert call(server.socket, "GET", f"{box}?path=").status == 400
    assert call(server.socket, "GET", f"{box}?path=/d/f/").status == (400 if ours else 500)
    assert call(server.socket, "PUT", f"{box}?path=/nosuch", some).status == 404
    answer = call(server.socket, "PUT", f"{box}?path=/d/f", some)
    assert (answer.status, answer.message) == (400 if ours else 500, "extraction point is not a directory")
    assert call(server.socket, "PUT", f"{box}?path=/d", b"no archive at all").status in (400, 500)
    assert call(server.socket, "PUT", "/containers/nosuch/archive?path=/d", some).status == 404
    over = call(server.socket, "PUT", f"{box}?path=/d&noOverwriteDirNonDir=1", archive(("sub", b"x")))
    assert over.status in (409, 500) and "cannot overwrite directory" in over.message
    over = call(server.socket, "PUT", f"{box}?path=/d&noOverwriteDirNonDir=1", archive(("f", None)))
    assert over.status in (409, 500) and "cannot overwrite non-directory" in over.message
    assert listing(server, "/d") == names("d")


def test_a_truncated_archive(server: Server, box: str) -> None:
    whole = archive(("cut", b"x" * 5000))
    answer = call(server.socket, "PUT", f"{box}?path=/d", whole[:2000])
    assert answer.status == (400 if isinstance(server, House) else 500)
    listing(server, "/d")


def test_a_tmpfs_is_shown_empty(server: Server) -> None:
    mount = ("--network", "none", "--tmpfs", "/t")
    docker(server, "run", "-d", "--name", "other", *mount, IMAGE, "sh", "-c", "echo > /t/f; exec sleep 600")
    try:
        for path in ("/t", "/t/", "/t/."):
            answer = call(server.socket, "GET", f"/containers/other/archive?path={path}")
            assert answer.status == 200, path
            with tarfile.open(fileobj=io.BytesIO(answer.body)) as tar:
                assert [m.isdir() for m in tar] == [True]
    finally:
        docker(server, "rm", "-f", "other")


def test_a_stopped_one_s_own_files_and_a_source_that_has_gone(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = tmp_path_factory.mktemp("bind")
    words = ("--network", "none", "--add-host", "far:1.2.3.4", "-v", f"{source}:/bound")
    docker(server, "run", "--name", "other", *words, IMAGE, "sh", "-c", "echo here > /file")
    try:
        for path in ("/etc/hosts", "/etc"):
            data = server.curl(f"/containers/other/archive?path={path}")
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                hosts = tar.extractfile("hosts" if path == "/etc/hosts" else "etc/hosts")
                assert hosts is not None and b"1.2.3.4\tfar" in hosts.read()
        source.rename(source.with_name("moved"))
        if isinstance(server, House):  # the older one then refuses everything
            assert call(server.socket, "GET", "/containers/other/archive?path=/file").status == 200
            gone = call(server.socket, "GET", "/containers/other/archive?path=/bound")
            assert gone.status == 404
            assert call(server.socket, "GET", "/containers/other/archive?path=/").status == 200
    finally:
        docker(server, "rm", "-f", "other")


def test_events(server: Server, box: str) -> None:
    begun = time.time() - 1
    assert call(server.socket, "GET", f"{box}?path=/d").status == 200
    assert call(server.socket, "PUT", f"{box}?path=/d", archive(("told", b"x"))).status == 200
    told = server.curl(f"/events?since={begun:.6f}&until={time.time():.6f}").splitlines()
    actions = [json.loads(line)["Action"] for line in told]
    assert [a for a in actions if a in ("archive-path", "extract-to-dir")][-2:] == [
        "archive-path",
        "extract-to-dir",
    ]


def test_what_goes_in(server: Server, box: str) -> None:
    some = archive(
        (".", None), ("f", b"new"), ("deep/er/x", b"1"), ("l", "/etc/passwd"), ("sub", b"no directory")
    )
    assert call(server.socket, "PUT", f"{box}?path=/dl", some).status == 200
    found = listing(server, "/d")
    assert found["d/f"] == "0 640 1000:1001" and found["d/deep/er/x"] == "0 640 1000:1001"
    assert found["d/l"] == "2 777 1000:1001 /etc/passwd" and found["d/sub"] == "0 640 1000:1001"
    assert found["d/hard"] == "0 4755 5:6"  # the other name keeps the old file
    assert call(server.socket, "PUT", f"{box}?path=/nv", archive(("v", b"x"))).status == 200
    assert set(listing(server, "/nv")) >= {"nv", "nv/kept", "nv/v"}
    # through a link that lies there: inside the container
    assert call(server.socket, "PUT", f"{box}?path=/", archive(("dl/through", b"x"))).status == 200
    assert "d/through" in listing(server, "/d")


def test_nothing_is_written_where_the_container_may_not(server: Server) -> None:
    docker(server, "create", "--name", "fixed", "--network", "none", "--read-only", "-v", "nv:/nv:ro", IMAGE)
    try:
        for path, what in (("/", "container rootfs"), ("/nv", "mounted volume")):
            answer = call(
                server.socket, "PUT", f"/containers/fixed/archive?path={path}", archive(("a", b"x"))
            )
            assert answer.status in (403, 500) and answer.message == f"{what} is marked read-only"
    finally:
        docker(server, "rm", "-f", "fixed")


def test_the_real_command(server: Server, box: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    here = tmp_path_factory.mktemp("cp")
    (here / "big").write_bytes(bytes(range(256)) * 20000)
    docker(server, "cp", f"{here}/big", "box:/tmp/")
    docker(server, "cp", f"{here}/big", "box:/big2")
    docker(server, "cp", "box:/tmp/big", f"{here}/back")
    docker(server, "cp", "box:/d", f"{here}/tree")
    assert (here / "back").read_bytes() == (here / "big").read_bytes()
    assert (here / "tree/f").read_text() == "hi\n" and (here / "tree/link").readlink().name == "f"
    piped = docker(server, "cp", "box:/d/f", "-")
    docker(server, "cp", "-", "box:/nv", input=piped)
    assert listing(server, "/nv/f") == {"f": "0 4755 5:6"}
