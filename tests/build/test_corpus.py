"""Dockerfiles that dockerd's classic builder and ours, both asked by the real docker command, make the same
of: configuration, history, and every file with all that a layer can say of it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clients import have_dockerd
from dockerd import Dockerd
from house import House

pytestmark = pytest.mark.root

CORPUS = Path(__file__).parent / "corpus"
CASES = sorted(path.name for path in CORPUS.iterdir() if not path.name.endswith("-base"))
ARGUMENTS = {"arguments": ("--build-arg", "GIVEN=given", "--label", "asked=for")}
# what the engines put there, each its own way
THEIRS = frozenset(("dev", "etc", "proc", "sys", ".dockerenv"))

Server = Dockerd | House


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        yield started


@pytest.fixture(scope="module")
def dockerd(house: House) -> Iterator[Dockerd]:
    if not have_dockerd():
        pytest.skip("no dockerd here")
    with Dockerd() as started:
        same_base(house, started)
        yield started


def same_base(house: House, dockerd: Dockerd) -> None:
    """Both have the same image to build on."""
    image = docker(house, "save", "nagaya/busybox")
    subprocess.run(["docker", "load"], input=image, env=dockerd.environment, check=True, capture_output=True)


def prepare(name: str, directory: Path) -> None:
    """The case's context: its files, and what git cannot keep."""
    shutil.copytree(CORPUS / name, directory, dirs_exist_ok=True, symlinks=True)
    tree = directory / "tree"
    if tree.is_dir():
        (tree / "empty").mkdir(mode=0o750)
        (tree / "link").symlink_to("a")
        (tree / "away").symlink_to("/etc/passwd")
        (tree / "script").write_text("s")
        (tree / "script").chmod(0o711)
        (tree / "directory").mkdir()
        (tree / "directory").chmod(0o1777)
        tree.chmod(0o711)
    if name == "add":
        for suffix, mode in (("", ""), (".gz", "gz"), (".xz", "xz"), (".bz2", "bz2")):
            (directory / f"made.tar{suffix}").write_bytes(_archive(mode))


def _archive(mode: str) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode=f"w:{mode}") as archive:  # type: ignore[call-overload]
        for name, kind, more in (
            ("d", tarfile.DIRTYPE, {"mode": 0o750, "uid": 3, "gid": 4}),
            ("f", tarfile.REGTYPE, {"mode": 0o640, "uid": 1, "gid": 2}),
            ("link", tarfile.SYMTYPE, {"linkname": "f"}),
            ("hard", tarfile.LNKTYPE, {"linkname": "f", "mode": 0o640, "uid": 1, "gid": 2}),
            ("implied/parent", tarfile.REGTYPE, {"mode": 0o600}),
        ):
            info = tarfile.TarInfo(name)
            info.type = kind
            info.mtime = 1_600_000_000
            for key, value in more.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO())
    return target.getvalue()


def build(server: Server, name: str, directory: Path) -> str:
    """What it says, without what names a daemon's own things."""
    done = subprocess.run(
        ["docker", "build", "-t", name, "--network", "none", *ARGUMENTS.get(name, ()), "."],
        cwd=directory,
        env={**server.environment, "DOCKER_BUILDKIT": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = re.sub(r"\b[0-9a-f]{12}\b", "ID", done.stdout.replace("\r", ""))
    # dockerd starts a container for each step, and ours only for RUN
    said = re.sub(r"(Removing intermediate container| ---> Running in) ID\n", "", said)
    return said[said.index("Step 1/") :]


def docker(server: Server, *arguments: str) -> bytes:
    done = subprocess.run(["docker", *arguments], env=server.environment, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def files(server: Server, image: str) -> dict[str, tuple[object, ...]]:
    """Every path of the image: type, mode, owner, content, target of a link, capabilities."""
    container = docker(server, "create", "--entrypoint", "/x", image).decode().strip()
    try:
        data = docker(server, "export", container)
    finally:
        docker(server, "rm", "-v", container)
    found: dict[str, tuple[object, ...]] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            path = member.name.rstrip("/").removeprefix("./")
            if path.partition("/")[0] in THEIRS and not path.startswith("etc/"):
                continue
            if path in ("etc", "etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab", ""):
                continue
            content = ""
            if member.isreg() and (file := archive.extractfile(member)) is not None:
                content = hashlib.sha256(file.read()).hexdigest()
            if member.islnk():  # which of the names comes first is the archiver's affair
                first = archive.getmember(member.linkname)
                file = archive.extractfile(first)
                content = hashlib.sha256(file.read()).hexdigest() if file else ""
                member.type = tarfile.REGTYPE
            kind = "file" if member.isreg() else member.type.decode()
            attributes = {k: v for k, v in member.pax_headers.items() if "xattr" in k}
            found[path] = (
                *(
                    kind,
                    oct(member.mode & 0o7777),
                    member.uid,
                    member.gid,
                    content,
                    member.linkname if kind == "2" else "",
                ),
                *(member.devmajor, member.devminor, str(attributes)),
            )
    return found


def facts(server: Server, image: str) -> dict[str, Any]:
    """The configuration, without what names a daemon's own things."""
    config = json.loads(docker(server, "image", "inspect", image))[0]["Config"]
    return {
        key: value
        for key, value in config.items()
        if value and key not in ("Image", "Hostname", "Domainname", "ArgsEscaped")
    }


def history(server: Server, image: str) -> list[str]:
    """What was done; hashes of contents are each builder's own."""
    shown = docker(server, "history", "--no-trunc", "--format", "{{.CreatedBy}}", image).decode()
    return [re.sub(r"(file|dir|multi):[0-9a-f]{64}", r"\1:HASH", line) for line in shown.splitlines()]


@pytest.mark.parametrize("name", CASES)
def test_both_make_the_same(name: str, house: House, dockerd: Dockerd, tmp_path: Path) -> None:
    os.umask(0o022)
    for image in (f"{name}-base", name):  # what it begins with, where that is a case of its own
        if (CORPUS / image).is_dir():
            check(image, house, dockerd, tmp_path / image)


def check(name: str, house: House, dockerd: Dockerd, directory: Path) -> None:
    directory.mkdir()
    prepare(name, directory)
    said = {server: build(server, name, directory) for server in (dockerd, house)}
    assert said[house] == said[dockerd]
    assert files(house, name) == files(dockerd, name)
    assert facts(house, name) == facts(dockerd, name)
    assert history(house, name) == history(dockerd, name)
