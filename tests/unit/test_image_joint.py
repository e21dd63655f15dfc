"""Pulls that share work, places and mirrors: nobody's failure is another's, and nobody waits for nothing."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fakeregistry import Answer, FakeRegistry, digest_of, file, quick, tar
from house import wait_for
from memory_catalog import MemoryCatalog

from nagaya.errors import Cancelled, DataLoss, NotFound
from nagaya.image.pull import Progress
from nagaya.image.removal import Use
from nagaya.image.store import ImageStore

ME = os.getuid()
SMALL = tar(file("a", b"one\n"), owner=ME)
BIG = tar(file("big", os.urandom(4 << 20)), owner=ME)


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as running:
        yield running


def directories(path: Path) -> list[str]:
    return [p.name for p in (path / "snapshots/l").iterdir() if p.name != "empty"]


def test_another_registrys_lie_does_not_fail_who_joined(registry: FakeRegistry, tmp_path: Path) -> None:
    """The liar is asked first and answers last; the honest registry's pull joins its flight meanwhile."""
    store = ImageStore(str(tmp_path), MemoryCatalog(), quick())
    registry.image(BIG)
    begun, go_on = threading.Event(), threading.Event()
    with FakeRegistry() as liar, ThreadPoolExecutor(2) as pool:
        liar.image(BIG)

        def lie(path: str, headers: dict[str, str]) -> None:
            if digest_of(BIG) in path:
                begun.set()
                assert go_on.wait(30)
                raise Answer(200, bytes(len(BIG)))

        liar.script = lie
        misled = pool.submit(store.pull, liar.name())
        assert begun.wait(30)
        honest = pool.submit(store.pull, registry.name())
        wait_for(lambda: registry.count("/blobs/") or registry.count("/manifests/"), 30, "the second pull")
        time.sleep(0.2)
        assert registry.count(digest_of(BIG)) == 0  # it waits for the first
        go_on.set()
        assert isinstance(misled.exception(60), DataLoss)
        assert honest.result(60).names[0] == registry.name()
    assert len(directories(tmp_path)) == 1


def test_who_joined_a_missing_blob_of_the_same_repository_is_not_made_to_wait_twice(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    store = ImageStore(str(tmp_path), MemoryCatalog(), quick())
    registry.image(BIG)
    begun, go_on = threading.Event(), threading.Event()

    def script(path: str, headers: dict[str, str]) -> None:
        if digest_of(BIG) in path:
            begun.set()
            assert go_on.wait(30)
            raise Answer(404)

    registry.script = script
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(store.pull, registry.name())
        assert begun.wait(30)
        second = pool.submit(store.pull, registry.name())
        wait_for(lambda: registry.count("/manifests/") == 2, 30, "the second pull")
        time.sleep(0.2)
        go_on.set()
        assert isinstance(first.exception(60), NotFound) and isinstance(second.exception(60), NotFound)
    assert registry.count(digest_of(BIG)) == 1


def test_a_pull_that_waits_for_its_turn_can_be_cancelled(registry: FakeRegistry, tmp_path: Path) -> None:
    store = ImageStore(str(tmp_path), MemoryCatalog(), quick(downloads=1, unpacks=1))
    registry.image(BIG, tag="slow")
    registry.image(SMALL, tag="waiting")
    begun, go_on, cancel = threading.Event(), threading.Event(), threading.Event()

    def script(path: str, headers: dict[str, str]) -> None:
        if digest_of(BIG) in path:
            begun.set()
            assert go_on.wait(60)

    registry.script = script
    with ThreadPoolExecutor(2) as pool:
        try:
            slow = pool.submit(store.pull, registry.name("slow"))
            assert begun.wait(30)
            told: list[Progress] = []
            waiting = pool.submit(store.pull, registry.name("waiting"), report=told.append, cancel=cancel)
            wait_for(lambda: any(p.layer for p in told), 30, "the second pull's layer")
            time.sleep(0.2)
            cancel.set()
            assert isinstance(waiting.exception(20), Cancelled)  # though the first is as slow as ever
            assert not slow.done()
        finally:
            go_on.set()
        assert slow.result(60).names
    assert registry.count(digest_of(SMALL)) == 0
    assert threading.active_count() < 20


@pytest.mark.parametrize("how", ["wrong bytes", "cut short each time", "too long", "wrong range"])
def test_a_mirror_that_gives_bad_blobs_is_left(how: str, registry: FakeRegistry, tmp_path: Path) -> None:
    registry.image(BIG, SMALL)
    with FakeRegistry() as mirror:
        mirror.blobs, mirror.manifests = registry.blobs, registry.manifests

        def script(path: str, headers: dict[str, str]) -> None:
            if digest_of(BIG) not in path:
                return
            if how == "wrong bytes":
                raise Answer(200, bytes(len(BIG)))
            if how == "too long":
                raise Answer(200, BIG + b"x")
            if how == "wrong range":
                raise Answer(206, BIG[5:], {"Content-Range": f"bytes 5-{len(BIG) - 1}/{len(BIG)}"})
            start = int(headers.get("range", "bytes=0-")[6:-1])
            # half of it, and from then on nothing more
            raise Answer(200, BIG, cut=len(BIG) // 2 if not start else 0)

        mirror.script = script
        config = quick(mirrors={registry.address: [f"http://{mirror.address}"]})
        store = ImageStore(str(tmp_path), MemoryCatalog(), config)
        image = store.pull(registry.name())
    assert len(image.document.diff_ids) == 2
    assert mirror.count(digest_of(BIG)) >= 1 and registry.count(digest_of(BIG)) >= 1
    assert len(directories(tmp_path)) == 2
    assert list((tmp_path / "content/ingest").iterdir()) == []


def test_a_layers_line_goes_through_its_states_in_order(registry: FakeRegistry, tmp_path: Path) -> None:
    """As the docker CLI draws one line per layer: a state that came back would make it flicker."""
    many = tar(*(file(f"d/{n}", os.urandom(20_000)) for n in range(600)), owner=ME)
    registry.image(many, BIG, SMALL)
    told: list[Progress] = []
    ImageStore(str(tmp_path), MemoryCatalog(), quick()).pull(registry.name(), report=told.append)
    order = [
        "Pulling fs layer",
        "Downloading",
        "Verifying Checksum",
        "Download complete",
        "Extracting",
        "Pull complete",
    ]
    for data in (many, BIG, SMALL):
        states = [p.status for p in told if p.layer == digest_of(data)[7:19]]
        ranks = [order.index(s) for s in states]
        assert ranks == sorted(ranks) and states[0] == order[0] and states[-1] == order[-1], states
    assert all(0 < p.current <= p.total for p in told if p.status in ("Downloading", "Extracting"))


def test_layers_go_with_the_last_container_that_needed_them(registry: FakeRegistry, tmp_path: Path) -> None:
    catalog = MemoryCatalog()
    store = ImageStore(str(tmp_path), catalog, quick())
    registry.image(BIG, SMALL)
    image = store.pull(registry.name())
    for name in ("one", "two"):
        store.prepare(name, image.id)
    store.remove(registry.name(), [Use(image.id, "one", running=False)], force=True)
    assert store.list() == [] and len(directories(tmp_path)) == 2
    store.remove_snapshot("one")
    assert len(directories(tmp_path)) == 2
    store.remove_snapshot("two")
    assert directories(tmp_path) == [] and catalog.layers() == []
    assert [p for p in (tmp_path / "content").rglob("*") if p.is_file()] == []
