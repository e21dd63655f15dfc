"""What dockerd's classic builder cannot do and BuildKit's front end can, by Docker's Dockerfile reference:
documents, COPY's and ADD's further flags, platforms' arguments, what stages see of one another."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from building import build, run
from house import House

from nagaya.build.settings import PATH
from nagaya.oci import platform

pytestmark = pytest.mark.root

BASE = "FROM nagaya/busybox\n"
LIST = "find /o | sort | xargs stat -c '%n %a %u:%g'"


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        yield started


def made(house: House, directory: Path, dockerfile: str, *arguments: str, **files: str) -> str:
    """What is in /o of the image, after a build without a network."""
    named = {name.replace("__", "/"): text for name, text in files.items()}
    named["Dockerfile"] = dockerfile if dockerfile.startswith(("FROM", "ARG", "#")) else BASE + dockerfile
    build(house, directory, named, "--network", "none", "-t", "made", *arguments)
    return run(house, "made", "sh", "-c", LIST).rstrip("\n")


def names(found: str) -> list[str]:
    return [line.split()[0] for line in found.splitlines()]


def refused(house: House, directory: Path, dockerfile: str, *arguments: str) -> str:
    said = build(
        house, directory, {"Dockerfile": BASE + dockerfile}, "--network", "none", *arguments, ok=False
    )
    return said.stdout + said.stderr


# documents


def test_documents_of_run(house: House, tmp_path: Path) -> None:
    dockerfile = r"""WORKDIR /o
RUN <<EOF
  echo $((1 + 2)) > one
  # the shell's comment
  v=x; echo "$v" >> one
EOF
RUN <<-"END"
	echo tabs > two
	END
RUN cat <<A > three && cat <<B >> three
a $PATH
A
b
B
RUN <<EOF
#!/bin/sh -e
echo "$0" > four
EOF
SHELL ["/bin/sh", "-ec"]
RUN <<EOF
false || echo five > five
EOF
"""
    made(house, tmp_path, dockerfile)
    assert run(house, "made", "cat", "/o/one", "/o/two", "/o/three", "/o/four", "/o/five") == (
        f"3\nx\ntabs\na {PATH}\nb\n/dev/pipes/EOF\nfive\n"
    )


def test_a_document_that_fails_fails_the_build(house: House, tmp_path: Path) -> None:
    assert "returned a non-zero code: 3" in refused(house, tmp_path, "RUN <<E\nexit 3\nE\n")


def test_documents_of_copy_and_add(house: House, tmp_path: Path) -> None:
    dockerfile = f"""{BASE}ARG v=val
COPY <<one <<-'two' three /o/
$v "quoted" \\$v
one
\t\t$v
\ttwo
COPY --chmod=0600 --chown=1:2 <<EOF /o/named
EOF
ADD <<EOF /o/d/added
x
EOF
"""
    assert made(house, tmp_path, dockerfile, three="3").splitlines() == [
        *("/o 755 0:0", "/o/d 755 0:0", "/o/d/added 644 0:0", "/o/named 600 1:2", "/o/one 644 0:0"),
        *("/o/three 644 0:0", "/o/two 644 0:0"),
    ]
    assert run(house, "made", "cat", "/o/one", "/o/two", "/o/d/added") == 'val "quoted" $v\n$v\nx\n'


def test_a_document_of_a_trigger(house: House, tmp_path: Path) -> None:
    build(
        house,
        tmp_path,
        {"Dockerfile": f"{BASE}ONBUILD RUN <<E\nmkdir /o\necho hi > /o/f\nE\n"},
        "-t",
        "base:1",
    )
    made(house, tmp_path, "FROM base:1\n")
    assert run(house, "made", "cat", "/o/f") == "hi\n"


# COPY and ADD


def test_chmod(house: House, tmp_path: Path) -> None:
    found = made(
        house, tmp_path, "COPY --chmod=640 d /o\nARG m=4755\nCOPY --chmod=$m f /o/s\n", d__e__f="", f=""
    )
    assert found == "/o 640 0:0\n/o/e 640 0:0\n/o/e/f 640 0:0\n/o/s 4755 0:0"
    assert "invalid chmod parameter" in refused(house, tmp_path, "COPY --chmod=worse f /o\n")


def test_parents(house: House, tmp_path: Path) -> None:
    files = {"x__a.txt": "", "y__a.txt": "", "y__b.txt": "", "z__deep__c": ""}
    found = made(house, tmp_path, "COPY --parents ./x/a.txt ./y/a.txt /o/\n", **files)
    assert names(found) == ["/o", "/o/x", "/o/x/a.txt", "/o/y", "/o/y/a.txt"]
    found = made(house, tmp_path, "COPY --parents ./y/*.txt z /o/\n")
    assert names(found) == [
        *("/o", "/o/y", "/o/y/a.txt", "/o/y/b.txt", "/o/z", "/o/z/deep", "/o/z/deep/c"),
    ]
    found = made(house, tmp_path, "COPY --parents ./z/./deep/c /o/\n")
    assert names(found) == ["/o", "/o/deep", "/o/deep/c"]
    found = made(house, tmp_path, "COPY --parents **/*.txt /o/\n")
    assert names(found) == ["/o", "/o/x", "/o/x/a.txt", "/o/y", "/o/y/a.txt", "/o/y/b.txt"]


def test_exclude(house: House, tmp_path: Path) -> None:
    files = dict.fromkeys(("d__a.txt", "d__b.md", "d__e__c.txt", "d__e__keep.txt", "home.txt", "home.md"), "")
    found = made(house, tmp_path, "COPY --exclude=**/*.txt --exclude=!**/keep.txt d /o/\n", **files)
    assert names(found) == ["/o", "/o/b.md", "/o/e", "/o/e/keep.txt"]
    found = made(house, tmp_path, "COPY --exclude=*.md home* /o/\n")
    assert names(found) == ["/o", "/o/home.txt"]
    found = made(house, tmp_path, "ADD --exclude=e d /o/\n")
    assert names(found) == ["/o", "/o/a.txt", "/o/b.md"]


def test_link_does_not_look_at_what_is_below(house: House, tmp_path: Path) -> None:
    """A linked copy is found again after its base has changed, and replaces a link at its place."""
    dockerfile = "RUN mkdir /real && ln -s real /o && echo {}\nCOPY --link f /o/f\n"
    found = made(house, tmp_path, dockerfile.format(1), f="1")
    assert found == "/o 755 0:0\n/o/f 644 0:0"
    said = build(house, tmp_path, {"Dockerfile": BASE + dockerfile.format(2)}, "--network", "none")
    assert said.stdout.count("Using cache") == 1 and "Step 3/3" in said.stdout


@cache  # gzip tells the time
def archive() -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as tar:
        info = tarfile.TarInfo("in/f")
        info.uid, info.mode = 7, 0o600
        tar.addfile(info)
    return target.getvalue()


def test_unpacking(house: House, tmp_path: Path) -> None:
    (tmp_path / "a.tgz").write_bytes(archive())
    found = made(house, tmp_path, "ADD --unpack=false a.tgz /o/\nADD a.tgz /o/x/\nCOPY a.tgz /o/y/\n")
    assert names(found) == [
        *("/o", "/o/a.tgz", "/o/x", "/o/x/in", "/o/x/in/f", "/o/y", "/o/y/a.tgz"),
    ]


@pytest.fixture
def site(house: House, tmp_path: Path) -> Iterator[str]:
    """A web server in the daemon's network, with one archive of 2015."""
    files = tmp_path / "site"
    files.mkdir()
    (files / "a.tgz").write_bytes(archive())
    os.utime(files / "a.tgz", (1_420_070_400, 1_420_070_400))
    server = subprocess.Popen(
        house.inside(
            [sys.executable, "-u", "-m", "http.server", "-b", "127.0.0.1", "-d", str(files), "8099"]
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with server:
        assert server.stdout is not None and server.stdout.readline().startswith(b"Serving HTTP")
        yield "http://127.0.0.1:8099"
        server.kill()


def test_urls(house: House, tmp_path: Path, site: str) -> None:
    place = tmp_path / "context"
    place.mkdir()
    digest = hashlib.sha256(archive()).hexdigest()
    dockerfile = f"""ADD --checksum=sha256:{digest} {site}/a.tgz /o/
ADD --chown=3:4 --chmod=644 {site}/a.tgz /o/named
ADD --unpack=true {site}/a.tgz /o/x/
RUN stat -c %Y /o/a.tgz > /time
"""
    assert made(house, place, dockerfile).splitlines() == [
        *("/o 755 0:0", "/o/a.tgz 600 0:0", "/o/named 644 3:4", "/o/x 755 0:0", "/o/x/in 755 0:0"),
        "/o/x/in/f 600 7:0",
    ]
    assert run(house, "made", "cat", "/time") == "1420070400\n"
    wrong = refused(house, place, f"ADD --checksum=sha256:{'0' * 64} {site}/a.tgz /o/\n")
    assert f"digest mismatch sha256:{digest}" in wrong
    assert "status 404" in refused(house, place, f"ADD {site}/nosuch /o/\n")
    assert "connection refused" in refused(house, place, "ADD http://127.0.0.1:9/x /o/\n")


# what instructions see


def test_the_platforms_arguments(house: House, tmp_path: Path) -> None:
    here = platform.host()
    dockerfile = """ARG TARGETARCH
FROM --platform=$BUILDPLATFORM nagaya/busybox AS build
ARG TARGETPLATFORM
ARG BUILDOS TARGETARCH
RUN mkdir /o && echo "$TARGETPLATFORM $BUILDOS $TARGETARCH [$TARGETOS]" > /o/f
"""
    made(house, tmp_path, dockerfile)
    assert run(house, "made", "cat", "/o/f") == f"{here} linux {here.architecture} []\n"


def test_a_stage_inherits_the_arguments_of_its_base(house: House, tmp_path: Path) -> None:
    dockerfile = f"{BASE.strip()} AS one\nARG a=1\nFROM one\nRUN mkdir /o && echo $a > /o/f\n"
    made(house, tmp_path, dockerfile)
    assert run(house, "made", "cat", "/o/f") == "1\n"


def test_copy_from_a_later_stage(house: House, tmp_path: Path) -> None:
    dockerfile = f"{BASE}COPY --from=later /f /o/f\nRUN true\n{BASE.strip()} AS later\nRUN echo 1 > /f\n"
    build(
        house, tmp_path, {"Dockerfile": dockerfile.replace("busybox\nCOPY", "busybox AS first\nCOPY")},
        "--network", "none", "--target", "first", "-t", "made",
    )  # fmt: skip
    assert run(house, "made", "cat", "/o/f") == "1\n"


def test_a_stage_works_before_what_it_copies_from_is_done(house: House, tmp_path: Path) -> None:
    """The first waits for a file of the second."""
    mount = "--mount=type=cache,id=meeting,target=/m"
    files = {
        "Dockerfile": f"{BASE.strip()} AS one\nRUN {mount} i=0; until [ -e /m/go ]; do sleep 0.05;"
        " i=$((i+1)); [ $i -lt 600 ] || exit 1; done && echo met >/f\n"
        f"{BASE}RUN {mount} touch /m/go\nCOPY --from=one /f /o/f\n"
    }
    build(house, tmp_path, files, "--network", "none", "-t", "made")
    assert run(house, "made", "cat", "/o/f") == "met\n"


def test_a_trigger_that_copies_from_a_stage(house: House, tmp_path: Path) -> None:
    build(house, tmp_path, {"Dockerfile": f"{BASE}ONBUILD COPY --from=one /f /o/f\n"}, "-t", "base:2")
    one = f"{BASE.strip()} AS one\nRUN echo 1 >/f\n"
    build(house, tmp_path, {"Dockerfile": f"{one}FROM base:2\nCOPY --from=one /f /g\n"}, "-t", "made")
    assert run(house, "made", "cat", "/o/f") == "1\n"
    # one that nothing else needs is not there; itself it cannot wait for
    for text in (f"{one}FROM base:2\n", "FROM base:2 AS one\n"):
        said = build(house, tmp_path, {"Dockerfile": text}, ok=False)
        assert "invalid from flag value one: no stage that is built before this one" in said.stderr


def test_commands_without_a_network(house: House, tmp_path: Path) -> None:
    files = {"Dockerfile": BASE + "RUN --network=none mkdir /o && ls /sys/class/net > /o/f\n"}
    build(house, tmp_path, files, "-t", "made")
    assert run(house, "made", "cat", "/o/f") == "lo\n"
