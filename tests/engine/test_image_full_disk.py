"""A disk full at any write of a pull, load or commit: one line says so, nothing is left, then it works."""

from __future__ import annotations

import errno
import gzip
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakeregistry import FakeRegistry, file, quick, tar
from house import SOURCE
from images import Registry, write_layout
from imagetrees import free_port, sample
from parcels import docker_archive, packed, pieces

from nagaya.engine.catalog import LedgerCatalog
from nagaya.engine.ledger import Ledger
from nagaya.errors import ResourceExhausted
from nagaya.image.making import Recipe
from nagaya.image.store import ImageStore
from nagaya.linux import sync

pytestmark = pytest.mark.root

# calls that may need room; what only takes away does not
ALLOCATING = ("open", "mkdir", "rename", "link", "symlink", "mknod", "mkfifo", "write", "pwrite", "fsync")


class FullDisk:
    """The n-th call that may need room finds none, and so do all after it until `room` is made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 0
        self.hit = False
        self._lock = threading.Lock()
        for name in (*ALLOCATING, "setxattr"):
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name)))
        monkeypatch.setattr(sync, "syncfs", self._wrapped("syncfs", sync.syncfs))

    def fill(self, at: int) -> None:
        self.left, self.hit = at, False

    def room(self) -> None:
        self.left = 0

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if name != "open" or arguments[1] & os.O_CREAT:
                with self._lock:
                    if self.left > 1:
                        self.left -= 1
                    elif self.left == 1:
                        self.hit = True
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **options)

        return call


def files(root: Path) -> list[str]:
    found = [str(p) for p in (root / "content").rglob("*") if p.is_file()]
    return found + [p.name for p in (root / "snapshots/l").iterdir() if p.name != "empty"]


@pytest.fixture(scope="module")
def name(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    base = tmp_path_factory.mktemp("sample")
    write_layout(base / "layout", sample(), {"Cmd": ["true"]})
    with Registry(base / "registry", port=free_port()) as registry:
        yield registry.push(f"oci:{base}/layout:latest", "sample:1")


def test_at_every_call(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(f"{tmp_path}/ledger.db")
    store = ImageStore(str(tmp_path), LedgerCatalog(ledger), quick())
    disk = FullDisk(monkeypatch)
    number = 0
    try:
        while True:
            number += 1
            disk.fill(number)
            try:
                store.pull(name)
            except ResourceExhausted as error:
                assert "no space left on device" in str(error) and "\n" not in str(error), (number, error)
            else:
                assert not disk.hit, number
                break
            finally:
                disk.room()
            assert files(tmp_path) == [], number
            assert store.list() == [] and LedgerCatalog(ledger).layers() == []
            if number % 10 == 1:
                store.pull(name)
                assert len(files(tmp_path)) == 8
                store.remove(name, ())
    finally:
        ledger.close()
    assert number > 60


def at_every_call(
    disk: FullDisk, work: Callable[[], object], undo: Callable[[], object], state: Callable[[], object]
) -> int:
    """Work with the n-th call failing for n = 1, 2 ... until it gets through; the state must then be as it
    was. How many calls there were."""
    before = state()
    for number in range(1, 10_000):
        disk.fill(number)
        try:
            work()
        except ResourceExhausted as error:
            assert "no space left on device" in str(error) and "\n" not in str(error), (number, error)
        else:
            assert not disk.hit, number
            return number
        finally:
            disk.room()
        assert state() == before, number
        if number % 10 == 1:
            work()
            undo()
            assert state() == before, number
    raise AssertionError("it never got through")


def test_a_load_and_a_commit_and_an_import_at_every_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [gzip.decompress(data) for data in sample()]
    archive = packed(docker_archive(*layers, tags=["one:1"]))
    ledger = Ledger(f"{tmp_path}/ledger.db")
    store = ImageStore(str(tmp_path), LedgerCatalog(ledger), quick())
    disk = FullDisk(monkeypatch)

    def state() -> object:
        spools = [p.name for p in (tmp_path / "content/ingest").iterdir()]
        rows = [row.diff_id for row in LedgerCatalog(ledger).layers()]
        return sorted(files(tmp_path)), spools, rows, len(store.list())

    try:
        calls = at_every_call(
            disk, lambda: store.load(pieces(archive)), lambda: store.remove("one:1", ()), state
        )
        assert calls > 40
        base = store.resolve("one:1").id
        Path(store.prepare("container", base)["upper"], "new").write_text("new")
        recipe = Recipe({}, "2024-01-02T03:04:05Z")
        calls = at_every_call(
            disk,
            lambda: store.commit("container", base, frozenset(), recipe, "new:1"),
            lambda: store.remove("new:1", ()),
            state,
        )
        assert calls > 15
        store.remove("new:1", ())
        data = tar(file("a", b"1"), file("b/c", b"2"))
        calls = at_every_call(
            disk,
            lambda: store.import_files(pieces(data), recipe, "imported:1"),
            lambda: store.remove("imported:1", ()),
            state,
        )
        assert calls > 15
    finally:
        ledger.close()


# In a mount namespace of its own: for each size, a pull on a tmpfs of that size, what is left, and a pull
# once there is room. One line each: size, files left, "ok" of the second pull, error or "".
GROWING = """
import os, subprocess, sys
sys.path[:0] = {path!r}
from pathlib import Path
from fakeregistry import quick
from nagaya.engine.catalog import LedgerCatalog
from nagaya.engine.ledger import Ledger
from nagaya.errors import NagayaError
from nagaya.image.store import ImageStore
root, name = Path(sys.argv[1]), sys.argv[2]
for size in range(int(sys.argv[3]), 4096, 24):
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={{size}}k", "tmpfs", str(root)], check=True)
    ledger, error = None, ""
    try:
        ledger = Ledger(f"{{root}}/ledger.db")
        store = ImageStore(str(root), LedgerCatalog(ledger), quick())
        store.pull(name)
    except NagayaError as failed:
        error = f"{{type(failed).__name__}} {{failed}}"
    left = [p for p in (root / "content").rglob("*") if p.is_file()]
    left += [p for p in (root / "snapshots/l").iterdir() if p.name != "empty"]
    subprocess.run(["mount", "-o", "remount,size=64m", str(root)], check=True)
    store.pull(name)
    print(size, len(left), "ok", error, sep="|", flush=True)
    ledger.close()
    subprocess.run(["umount", str(root)], check=True)
    if not error:
        break
"""


def test_on_disks_of_growing_size(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    code = GROWING.format(path=[str(SOURCE), str(Path(__file__).parents[1] / "support"), *sys.path])
    with FakeRegistry() as registry:
        registry.image(
            tar(*(file(f"a{n}", os.urandom(40_000)) for n in range(8))),
            tar(*(file(f"b/{n}", b"x" * 4096) for n in range(60)), file("big", os.urandom(300_000))),
        )
        done = subprocess.run(
            ["unshare", "--mount", sys.executable, "-c", code, str(root), registry.name(), "256"],
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line.split("|") for line in done.stdout.splitlines()]
    assert rows[-1][3] == "" and len(rows) > 40, done.stdout
    kinds = set()
    for size, left, second, error in rows[:-1]:
        assert (left, second) == ("0", "ok"), (size, left)
        assert error.startswith("ResourceExhausted "), (size, error)
        assert "no space left on device" in error or "the ledger cannot grow" in error, (size, error)
        kinds.add(error.partition(":")[0])
    assert len(kinds) > 2, kinds  # blobs, layers: it was full at different moments
