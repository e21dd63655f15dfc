"""The layer of a container's changes: all that a layer can say, and what it must not."""

from __future__ import annotations

import os
import stat
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from fakeregistry import file, member, quick, tar
from imagetrees import mounted
from memory_catalog import MemoryCatalog
from parcels import config, docker_archive, left, packed, pieces, saved

from nagaya.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from nagaya.image.layers import Limits
from nagaya.image.making import Recipe
from nagaya.image.store import Image, ImageStore

pytestmark = pytest.mark.root

FOLDER = tarfile.DIRTYPE
BASE = tar(
    *(member("etc", FOLDER, mode=0o755), file("etc/a", b"a"), file("etc/b", b"b")),
    *(member("gone", FOLDER, mode=0o755), file("gone/x", b"1"), member("again", FOLDER, mode=0o755)),
    *(file("again/x", b"1"), member("swap", FOLDER, mode=0o755), file("swap/x", b"1"), file("link", b"1")),
)
RECIPE = Recipe({"Cmd": ["true"]}, "2024-01-02T03:04:05Z", "by", "me", "words")


def store_at(path: Path, **changes: Any) -> ImageStore:
    store = ImageStore(str(path), MemoryCatalog(), quick(**changes))
    document = config(BASE, history=[{"created_by": "base"}])
    store.load(pieces(packed(docker_archive(BASE, tags=["base:1"], document=document))))
    return store


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return store_at(tmp_path / "root")


def changed(store: ImageStore, script: str, where: Path) -> str:
    """A snapshot of base:1 in whose overlay a script has run; its id."""
    name = "c" + os.urandom(8).hex()
    rootfs = store.prepare(name, store.resolve("base:1").id)
    where.mkdir()
    options = f"lowerdir={':'.join(rootfs['lower'])},upperdir={rootfs['upper']},workdir={rootfs['work']}"
    whole = f'mount -t overlay overlay -o "$1" "$2" && cd "$2" && {script}'
    argv = ["unshare", "--mount", "bash", "-ec", whole, "bash", options, str(where)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return name


def commit(store: ImageStore, snapshot: str, ours: frozenset[str] = frozenset()) -> Image:
    return store.commit(snapshot, store.resolve("base:1").id, ours, RECIPE, "new:1")


def test_what_a_container_saw_is_what_the_image_shows(store: ImageStore, tmp_path: Path) -> None:
    snapshot = changed(
        store,
        "rm etc/b; rm -r gone again swap; mkdir again; echo 2 > again/y; ln -s etc swap; echo 3 > etc/a; "
        "ln etc/a etc/hard; mkfifo pipe; mknod null c 1 3; mkdir -m 1777 tmp; chown 7:8 tmp; echo x > tmp/t; "
        "chmod 4755 tmp/t; touch -d @1000000000 tmp/t; mkdir -p d/e/f",
        tmp_path / "one",
    )
    os.setxattr(Path(store.snapshot(snapshot)["upper"], "tmp/t"), "user.colour", b"red")
    before = mounted_snapshot(store, snapshot, tmp_path / "before")
    image = commit(store, snapshot)
    assert mounted(store, image.id, tmp_path / "after") == before
    assert [change.created_by for change in store.history(image)] == ["by", "base"]
    assert image.document.author == "me" and len(image.document.diff_ids) == 2
    # and elsewhere, through an archive
    other = ImageStore(str(tmp_path / "other"), MemoryCatalog(), quick())
    other.load(pieces(saved(store, "new:1")))
    assert other.resolve("new:1").manifest == image.manifest
    assert mounted(other, "new:1", tmp_path / "elsewhere") == before


def mounted_snapshot(store: ImageStore, snapshot: str, where: Path) -> list[tuple[object, ...]]:
    """What a container's overlay shows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "prepare", lambda *_: store.snapshot(snapshot))
        return mounted(store, "base:1", where)


def test_what_is_left_out(store: ImageStore, tmp_path: Path) -> None:
    ours = frozenset(("dev", "dev/pts", "etc", "etc/hosts", ".dockerenv"))
    made = "mkdir -p dev/pts; touch etc/hosts .dockerenv"
    snapshot = changed(store, made, tmp_path / "one")
    assert len(commit(store, snapshot, ours).document.diff_ids) == 1  # no change: no layer
    snapshot = changed(store, f"{made}; echo 1 > dev/own; mkdir sockets", tmp_path / "two")
    upper = Path(store.snapshot(snapshot)["upper"])
    os.mknod(upper / "sockets/s", stat.S_IFSOCK | 0o755)
    os.setxattr(upper / "sockets", "trusted.overlay.origin", b"x")
    image = commit(store, snapshot, ours)
    shown = {row[0] for row in mounted(store, image.id, tmp_path / "after")}
    assert {"dev", "dev/own", "sockets"} <= shown
    assert not shown & {"dev/pts", "etc/hosts", ".dockerenv", "sockets/s"}


def test_a_container_whose_image_or_files_are_gone(store: ImageStore, tmp_path: Path) -> None:
    snapshot = changed(store, "echo 1 > x", tmp_path / "one")
    with pytest.raises(NotFound):
        store.commit("c" * 64, store.resolve("base:1").id, frozenset(), RECIPE)
    base = store.resolve("base:1").id
    store.remove("base:1", ())
    with pytest.raises(NotFound, match="the container's image has been removed"):
        store.commit(snapshot, base, frozenset(), RECIPE)
    store.remove_snapshot(snapshot)
    assert left(tmp_path / "root") == []


def test_paths_that_are_too_long(store: ImageStore, tmp_path: Path) -> None:
    deep = 'for i in $(seq 30); do mkdir "$(printf %0200d 1)"; cd "$(printf %0200d 1)"; done'
    snapshot = changed(store, deep, tmp_path / "one")
    before = left(tmp_path / "root")
    with pytest.raises(FailedPrecondition, match="a path of more than 4096 bytes"):
        commit(store, snapshot)
    assert left(tmp_path / "root") == before


@pytest.mark.parametrize(
    ("data", "kind", "why"),
    [
        (b"text" * 1000, InvalidArgument, "not a tar archive"),
        (BASE[:3000], DataLoss, "cut short"),
        (tar(file("../x", b"1")), InvalidArgument, r"'\.\.' in it"),
        (tar(file("big", bytes(2 << 20))), ResourceExhausted, "unpacks to more than"),
        (tar(*(file(str(n)) for n in range(20))), ResourceExhausted, "more than 10 entries"),
    ],
    ids=["text", "short", "outside", "big", "many"],
)
def test_archives_that_are_no_files(data: bytes, kind: type[Exception], why: str, tmp_path: Path) -> None:
    store = store_at(tmp_path, limits=Limits(size=1 << 20, entries=10))
    before = left(tmp_path)
    with pytest.raises(kind, match=why):
        store.import_files(pieces(data), RECIPE, "x:1")
    assert left(tmp_path) == before and len(store.list()) == 1


def test_an_import_is_its_archive(store: ImageStore, tmp_path: Path) -> None:
    image = store.import_files(pieces(BASE), RECIPE, "imported:1")
    assert image.document.diff_ids == store.resolve("base:1").document.diff_ids
    assert mounted(store, "imported:1", tmp_path / "a") == mounted(store, "base:1", tmp_path / "b")
