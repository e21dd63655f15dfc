"""Builds for tests: by the real docker command, and by hand with archives that no client would send."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlencode

from house import House, wait_for
from rawhttp import Connection

TAR = {"Content-Type": "application/x-tar"}


def write_files(directory: Path, files: Mapping[str, str]) -> None:
    """Files of a context."""
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def start_build(
    house: House, directory: Path, files: Mapping[str, str], *arguments: str
) -> subprocess.Popen[str]:
    """`docker build` of these files, under way; its output is one stream."""
    write_files(directory, files)
    return subprocess.Popen(
        house.inside(["docker", "build", *arguments, "."]),
        cwd=directory,
        env={**house.environment, "DOCKER_BUILDKIT": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def build(
    house: House, directory: Path, files: Mapping[str, str], *arguments: str, ok: bool | None = True
) -> subprocess.CompletedProcess[str]:
    """`docker build` of these files, to its end. ok None: whatever that is."""
    write_files(directory, files)
    done = subprocess.run(
        house.inside(["docker", "build", *arguments, "."]),
        cwd=directory,
        env={**house.environment, "DOCKER_BUILDKIT": "0"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert ok is None or (done.returncode == 0) == ok, done.stdout + done.stderr + house.tail()
    return done


def run(house: House, image: str, *command: str) -> str:
    """What a container of the image writes."""
    done = house.docker("run", "--rm", "--network", "none", image, *command)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def tar(*members: tuple[str, bytes | str] | tarfile.TarInfo) -> bytes:
    """An archive of files (name, content), and of whatever else."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            name, content = member
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return target.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    """A link for an archive."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def send(house: House, archive: bytes, **query: str) -> tuple[int, str]:
    """POST /build of an archive: (status, everything that was said; the error's line last)."""
    with Connection(house.socket) as connection:
        connection.send("POST", f"/build?{urlencode(query)}", archive, TAR)
        reply = connection.reply("POST")
    if reply.status != 200:
        return reply.status, reply.message
    lines = [json.loads(line) for line in reply.body.splitlines()]
    said = "".join(str(line.get("stream") or line.get("error") or "") for line in lines)
    return reply.status, said


def work_left(house: House) -> list[str]:
    """What builds have left of their own: files of contexts go in the background."""
    with suppress(AssertionError):
        wait_for(lambda: not _work_left(house), 10)
    return _work_left(house)


def _work_left(house: House) -> list[str]:
    found = [str(path) for path in (house.root / "build" / "work").glob("*")]
    found += [str(path) for path in (house.root / "snapshots").iterdir() if path.name != "l"]
    found += [str(path) for path in (house.root / "content" / "ingest").iterdir()]
    return found
