"""After a power cut only what was synced is there: strace shows that files are, before the ledger says so.

The log of a pull's system calls is replayed against a model of the disk: what was written or renamed is dirty
until an fsync(2) of it, or a syncfs(2), that began later has ended.
"""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from house import SOURCE
from images import Registry, write_layout
from imagetrees import free_port, sample
from parcels import docker_archive, packed

pytestmark = pytest.mark.root

CODE = """
import sys
sys.path[:0] = {path!r}
from fakeregistry import quick
from nagaya.engine.catalog import LedgerCatalog
from nagaya.engine.ledger import Ledger
from nagaya.image.store import ImageStore
store = ImageStore(sys.argv[1], LedgerCatalog(Ledger(sys.argv[1] + "/ledger.db")), quick())
store.load(open(sys.argv[2], "rb")) if sys.argv[2].startswith("/") else store.pull(sys.argv[2])
"""
SYNCS = ("fsync", "fdatasync", "syncfs")
CHANGES = (
    "write,pwrite64,ftruncate,rename,renameat,renameat2,mkdir,mkdirat,openat,link,linkat,symlinkat,mknodat,"
    "unlink,unlinkat,fchown,fchownat,fchmod,fchmodat,utimensat,fsetxattr,setxattr"
)
_CALL = re.compile(r"^(\d+) +(?:<\.\.\. (\w+) resumed>|(\w+)\()(.*)$")
_FD = re.compile(r"\d+<([^>]*)>")
_QUOTED = re.compile(r'"([^"]*)"')


class Call(NamedTuple):
    """begun and ended: places in the log."""

    name: str
    paths: tuple[str, ...]
    begun: int
    ended: int


def calls(log: str) -> Iterator[Call]:
    """Every successful call, in the order of their ends; two halves of one are put together."""
    halves: dict[str, tuple[str, str, int]] = {}
    for number, line in enumerate(log.splitlines()):
        found = _CALL.match(line)
        if found is None:
            continue
        thread, resumed, name, rest = found.groups()
        begun = number
        if resumed:
            name, first, begun = halves.pop(thread)
            rest = first + rest
        if rest.endswith("<unfinished ...>"):
            halves[thread] = (name, rest.removesuffix("<unfinished ...>"), begun)
            continue
        if re.search(r"= -1 E", rest) or (name == "openat" and "O_CREAT" not in rest):
            continue
        yield Call(name, (*_FD.findall(rest), *_QUOTED.findall(rest)), begun, number)


class Disk:
    """What would be lost: path or area -> places in the log where it became dirty."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.dirty: dict[str, int] = {}
        self.layers: list[str] = []
        self.commits: list[set[str]] = []  # what was dirty when the ledger's log was synced

    def replay(self, call: Call) -> None:
        """One more call."""
        if call.name in SYNCS:
            (path,) = call.paths[:1]
            if path.endswith("ledger.db-wal"):
                self.commits.append({what for what, when in self.dirty.items() if when < call.ended})
            for what, when in list(self.dirty.items()):
                if when < call.begun and (call.name == "syncfs" or what == path):
                    del self.dirty[what]
            return
        for area in self.touched(call):
            self.dirty[area] = call.ended

    def touched(self, call: Call) -> set[str]:
        """A layer is one area; elsewhere a file, and a directory that gained or lost names."""
        found = set()
        for path in call.paths:
            layer = re.match(rf"{re.escape(self.root)}/snapshots/l/[0-9a-f]{{8}}", path)
            if layer:
                found.add(layer[0])
                if layer[0] not in self.layers:
                    self.layers.append(layer[0])
            elif path.startswith(f"{self.root}/content/"):
                found.add(path)
                if call.name not in ("write", "pwrite64", "ftruncate"):
                    found.add(path.rpartition("/")[0])
        if call.name.startswith("rename"):
            old, new = call.paths[-2:]
            assert old not in self.dirty, f"{old} was renamed before it was synced"
            found -= {old, new}  # the content is as it was; the directories are not
        return found - {f"{self.root}/content/ingest"}  # what is on its way may be lost


def traced(root: Path, name: str) -> list[Call]:
    """The calls of a process that pulls the image of that name, or loads the archive at that path."""
    root.mkdir()
    support = str(Path(__file__).parents[1] / "support")
    log = root.parent / "strace"
    what = f"trace={','.join(SYNCS)},{CHANGES}"
    argv = ["strace", "-f", "-y", "-s", "4096", "-o", str(log), "-e", what]
    code = CODE.format(path=[str(SOURCE), support, *sys.path])
    subprocess.run(
        [*argv, sys.executable, "-c", code, str(root), name], check=True, capture_output=True, timeout=120
    )
    return list(calls(log.read_text()))


def test_all_of_an_archive_is_on_the_disk_before_the_ledger_says_so(tmp_path: Path) -> None:
    root, archive = tmp_path / "root", tmp_path / "archive.tar"
    archive.write_bytes(packed(docker_archive(*map(gzip.decompress, sample()), tags=["one:1"])))
    disk = Disk(str(root))
    for call in traced(root, str(archive)):
        disk.replay(call)
    assert len(disk.layers) == 3 and len([p for p in (root / "content/blobs").rglob("*") if p.is_file()]) == 5
    *_, first, second, third, image = disk.commits
    ingest = f"{root}/content/ingest/"
    assert {path for path in image if not path.startswith(ingest)} == set(), image
    for count, dirty in enumerate((first, second, third), 1):
        assert len([layer for layer in disk.layers if layer not in dirty]) >= count, (count, dirty)


def test_all_is_on_the_disk_before_the_ledger_says_so(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_layout(tmp_path / "layout", sample(), {"Cmd": ["true"]})
    with Registry(tmp_path / "registry", port=free_port()) as registry:
        every = traced(root, registry.push(f"oci:{tmp_path}/layout:latest", "sample:1"))
    disk = Disk(str(root))
    for call in every:
        disk.replay(call)
    blobs = [p for p in (root / "content/blobs").rglob("*") if p.is_file()]
    assert len(disk.layers) == 3 and len(blobs) == 5
    renamed = {c.paths[-1] for c in every if c.name.startswith("rename")}
    assert renamed == {str(p) for p in blobs}
    # the ledger's tables, then a commit a layer, then the image
    *_, first, second, third, image = disk.commits
    assert image == set(), image
    for count, dirty in enumerate((first, second, third), 1):
        clean = [layer for layer in disk.layers if layer not in dirty]
        assert len(clean) >= count, (count, dirty)
