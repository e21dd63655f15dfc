"""Compose v2's own program, from PyPI's sdist of it; and images of Debian's packages for it to run."""

from __future__ import annotations

import fcntl
import io
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from images import layer, write_layout

from nagaya.image import builtin

ROOT = Path(__file__).resolve().parents[2]
_REQUIREMENT = ROOT / "requirements/compose.txt"
_PROGRAM = Path(sys.prefix) / "share/docker-compose"  # it goes with the environment


def program() -> Path:
    """The docker-compose executable, fetched once for each environment and checked against its hash."""
    _PROGRAM.parent.mkdir(exist_ok=True)
    with _PROGRAM.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _PROGRAM.exists():
            with tempfile.TemporaryDirectory() as directory:
                fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:"]
                fetch += ["--require-hashes", "-r", str(_REQUIREMENT), "-d", directory]
                subprocess.run(fetch, check=True, timeout=300)
                (archive,) = Path(directory).glob("*.tar.gz")
                with tarfile.open(archive) as tar:
                    (member,) = [m for m in tar if m.name.endswith("/docker-compose")]
                    read = tar.extractfile(member)
                    assert read is not None
                    whole = _PROGRAM.with_suffix(".new")
                    whole.write_bytes(read.read())
                    whole.chmod(0o755)
                    whole.rename(_PROGRAM)
    return _PROGRAM


def redis_archive(name: str) -> bytes:
    """An OCI archive for `docker load`: redis as Debian's redis-tools has it, and busybox."""
    server = "/usr/bin/redis-check-rdb"  # one program; what it is called says what it does
    cli = "/usr/bin/redis-cli"
    files = {path for each in (server, cli) for path in _libraries(each)} | {cli}
    entries: list[tuple[str, bytes | str | None]] = [
        ("usr/bin/redis-server", Path(server).read_bytes()),
        ("data", None),
    ]
    entries += [(path.lstrip("/"), Path(path).read_bytes()) for path in sorted(files)]
    base = layer(_entries(builtin.build().layer))
    with tempfile.TemporaryDirectory() as directory:
        layout = Path(directory) / "layout"
        config: dict[str, object] = {
            "Cmd": ["redis-server", "--dir", "/data", "--bind", "*", "--protected-mode", "no"],
            "Env": ["PATH=/usr/bin:/bin:/usr/sbin:/sbin"],
            "ExposedPorts": {"6379/tcp": {}},
            "Volumes": {"/data": {}},
        }
        write_layout(layout, [base, layer(entries)], config, tag=name)
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w") as tar:
            tar.add(layout, arcname=".")
        return raw.getvalue()


def _libraries(path: str) -> set[str]:
    """What the dynamic linker loads for a program, the linker included."""
    said = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"(/\S+) \(0x", said))


def _entries(tar: bytes) -> list[tuple[str, bytes | str | None]]:
    found: list[tuple[str, bytes | str | None]] = []
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        for member in archive:
            if member.isdir():
                found.append((member.name, None))
            elif member.issym():
                found.append((member.name, member.linkname))
            elif member.islnk():
                found.append((member.name, "/" + member.linkname))
            else:
                read = archive.extractfile(member)
                assert read is not None
                found.append((member.name, read.read()))
    return found
