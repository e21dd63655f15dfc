"""Where a build's files and layers come from besides the context: registries, URLs, other images."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from building import build, run, send, tar
from house import House, wait_for
from images import Registry

pytestmark = pytest.mark.root

BASE = "FROM nagaya/busybox\n"
PORT = 8099


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        yield started


@pytest.fixture(scope="module")
def web(house: House, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory that is served at http://127.0.0.1:PORT/ where the daemon lives."""
    place = tmp_path_factory.mktemp("web")
    server = subprocess.Popen(
        house.inside([sys.executable, "-m", "http.server", str(PORT), "-b", "127.0.0.1", "-d", str(place)]),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        ask = house.inside(["curl", "-s", f"http://127.0.0.1:{PORT}/"])
        wait_for(lambda: subprocess.run(ask, capture_output=True).returncode == 0, 30, "the server")
        yield place
    finally:
        server.kill()
        server.wait()


def test_a_base_that_is_pulled_and_what_was_built_is_pushed(house: House, tmp_path: Path) -> None:
    with Registry(tmp_path / "registry", house.inside([]), 5077) as registry:
        base, made = f"{registry.address}/base:1", f"{registry.address}/made:1"
        house.ok("tag", "nagaya/busybox", base)
        house.ok("push", base)
        house.ok("rmi", base)
        said = build(house, tmp_path, {"Dockerfile": f"FROM {base}\nRUN echo x >/x\n"}, "-t", made).stdout
        assert "Pulling from base" in said
        assert "Pulling from" not in build(house, tmp_path, {}).stdout
        assert "Pulling from base" in build(house, tmp_path, {}, "--pull").stdout
        house.ok("push", made)
        digest = house.ok("image", "inspect", "-f", "{{.Id}}", made)
        house.ok("rmi", "-f", made)
        house.ok("builder", "prune", "-af")
        house.ok("pull", made)
        assert house.ok("image", "inspect", "-f", "{{.Id}}", made) == digest
        assert run(house, made, "cat", "/x") == "x\n"
        missing = build(house, tmp_path, {"Dockerfile": f"FROM {registry.address}/none\n"}, ok=False)
        assert "none" in missing.stderr and "Traceback" not in house.log.read_text()


def test_what_is_unpacked_after_a_pull_is_what_the_build_left(house: House, tmp_path: Path) -> None:
    """Save, remove, load: the same files with the same times, links and attributes."""
    lines = (
        f"{BASE}RUN mkdir /d && echo 1 >/d/1 && ln /d/1 /d/2 && ln -s 1 /d/3 && mkfifo /d/4\n"
        "RUN chown 5:6 /d/4 && chmod 2755 /d\n"
        "RUN rm /d/3 && rm -r /tmp && mkdir /tmp && chmod 1777 /tmp && touch -d '2001-02-03 04:05:06' /d/1\n"
        "COPY a /d/\n"
    )
    build(house, tmp_path, {"a": "a", "Dockerfile": lines}, "-t", "left")
    look = ("sh", "-c", "find /d /tmp -exec stat -c '%n %A %u %g %s %Y %y %h' {} + | sort")
    before = run(house, "left", *look)
    saved = house.docker("save", "left").stdout
    house.ok("rmi", "left")
    house.ok("builder", "prune", "-af")
    assert house.docker("load", input=saved).returncode == 0
    assert run(house, "left", *look) == before


def test_images_named_as_caches(house: House, tmp_path: Path) -> None:
    lines = f"{BASE}ARG WHO=me\nCOPY a /a\nRUN echo $WHO >/b\nWORKDIR /c\nENV D=e\nRUN true\n"
    build(house, tmp_path, {"a": "a", "Dockerfile": lines}, "-t", "source")
    identity = house.ok("image", "inspect", "-f", "{{.Id}}", "source")
    house.ok("builder", "prune", "-af")
    said = build(
        house, tmp_path, {}, "--cache-from", "source", "--cache-from", "none:at-all", "-t", "again"
    ).stdout
    assert said.count("Using cache") == 6
    assert house.ok("image", "inspect", "-f", "{{.Id}}", "again") == identity
    house.ok("builder", "prune", "-af")
    said = build(house, tmp_path, {"a": "other"}, "--cache-from", "source").stdout
    assert said.count("Using cache") == 1
    assert "Using cache" not in build(house, tmp_path, {}, "--no-cache", "--cache-from", "source").stdout
    # what an earlier build made counts only when it is in one of them, too
    assert "Using cache" not in build(house, tmp_path, {}, "--cache-from", "none:at-all").stdout
    assert "Using cache" in build(house, tmp_path, {}).stdout


def test_add_of_urls(house: House, web: Path, tmp_path: Path) -> None:
    (web / "file").write_text("from the web\n")
    (web / "a.tar").write_bytes(tar(("inside", "x")))
    url = f"http://127.0.0.1:{PORT}"
    digest = hashlib.sha256(b"from the web\n").hexdigest()
    lines = (
        f"{BASE}ADD {url}/file /renamed\nADD {url}/file {url}/a.tar /d/\n"
        f"ADD --checksum=sha256:{digest} --chown=3:4 {url}/file /checked\n"
        f"ADD --unpack=true {url}/a.tar /unpacked/\n"
    )
    build(house, tmp_path, {"Dockerfile": lines}, "-t", "added")
    said = run(
        house,
        "added",
        "stat",
        "-c",
        "%n %a %u",
        "/renamed",
        "/d/file",
        "/d/a.tar",
        "/checked",
        "/unpacked/inside",
    )
    assert said.splitlines() == [
        *("/renamed 600 0", "/d/file 600 0", "/d/a.tar 600 0", "/checked 600 3", "/unpacked/inside 644 0")
    ]
    assert build(house, tmp_path, {}).stdout.count("Using cache") == 4
    (web / "file").write_text("changed\n")
    changed = build(house, tmp_path, {}, ok=False)
    assert "digest mismatch" in changed.stderr and changed.stdout.count("Using cache") == 0
    missing = build(house, tmp_path, {"Dockerfile": f"{BASE}ADD {url}/none /x\n"}, ok=False)
    assert "404" in missing.stderr
    nobody = build(house, tmp_path, {"Dockerfile": f"{BASE}ADD http://127.0.0.1:1/x /x\n"}, ok=False)
    assert "refused" in nobody.stderr


def test_a_context_at_a_url(house: House, web: Path) -> None:
    context = tar(("Dockerfile", f"{BASE}COPY x /x\n"), ("x", "x"))
    (web / "context.tar.gz").write_bytes(gzip.compress(context))
    (web / "Dockerfile.txt").write_text(f"{BASE}RUN echo text >/x\n")
    for name, content in (("context.tar.gz", "x"), ("Dockerfile.txt", "text\n")):
        status, said = send(house, b"", remote=f"http://127.0.0.1:{PORT}/{name}", t="remote")
        assert status == 200 and "Successfully tagged" in said, said
        assert run(house, "remote", "cat", "/x") == content


def test_images_as_sources_of_copies(house: House, tmp_path: Path) -> None:
    lines = "FROM scratch\nCOPY --from=nagaya/busybox:latest /bin/busybox /bin/busybox\n"
    build(house, tmp_path, {"Dockerfile": lines}, "-t", "copied")
    assert run(house, "copied", "/bin/busybox", "echo", "hi") == "hi\n"
    lines = "FROM scratch\nCOPY --from=no/such:image /x /x\n"
    assert "no/such" in build(house, tmp_path, {"Dockerfile": lines}, ok=False).stderr


def test_numbers_of_the_build_cache_add_up(house: House, tmp_path: Path) -> None:
    house.ok("builder", "prune", "-af")
    (tmp_path / "big").write_bytes(b"x" * 300_000)
    build(
        house,
        tmp_path,
        {"Dockerfile": f"{BASE}COPY big /big\nRUN head -c 100000 /big >/less\n"},
        "-t",
        "shared",
    )
    used = json.loads(house.curl("/system/df"))
    records = {r["Type"]: r for r in used["BuildCache"] if r["Size"]}
    assert {r["Size"] for r in records.values()} == {300_000, 100_000}
    assert all(r["Shared"] and not r["InUse"] for r in records.values())
    layers = used["LayersSize"]
    assert "0B" in house.ok("builder", "prune", "-f")  # an image has them
    house.ok("rmi", "shared")
    freed = json.loads(house.curl("/build/prune", "-X", "POST"))
    assert freed["SpaceReclaimed"] == 400_000 and len(freed["CachesDeleted"]) >= 2
    after = json.loads(house.curl("/system/df"))
    assert after["BuildCache"] == [] and layers - after["LayersSize"] == 400_000
