"""Images by name and id, tags, removal as dockerd does it, history, the built-in image, rubbish."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fakeregistry import FakeRegistry, digest_of, file, quick, tar
from memory_catalog import MemoryCatalog
from parcels import pieces, saved

from nagaya.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound
from nagaya.image import builtin, removal
from nagaya.image.removal import Removed, Use
from nagaya.image.store import ImageStore

ME = os.getuid()
BASE = tar(file("base", b"b" * 100), owner=ME)
TOPS = [tar(file("top", b"%d" % n), owner=ME) for n in range(3)]


class Shop:
    """A store with two images that share their base: "one" and "two"."""

    def __init__(self, path: Path, registry: FakeRegistry) -> None:
        self.path, self.registry, self.catalog = path, registry, MemoryCatalog()
        self.store = ImageStore(str(path), self.catalog, quick())
        for number, tag in enumerate(("one", "two")):
            registry.image(BASE, TOPS[number], tag=tag, config={"Labels": {"n": tag}})
            self.store.pull(registry.name(tag))

    def name(self, tag: str) -> str:
        return self.registry.name(tag)

    def directories(self) -> int:
        return len(list((self.path / "snapshots/l").iterdir())) - 1

    def blobs(self) -> int:
        return len(list((self.path / "content/blobs/sha256").iterdir()))


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with FakeRegistry() as registry:
        yield Shop(tmp_path, registry)


def test_an_image_is_found_by_every_name_it_has(shop: Shop) -> None:
    one = shop.store.resolve(shop.name("one"))
    bare = one.id.removeprefix("sha256:")
    digest = digest_of(shop.registry.manifests["one"][0])
    repository = f"{shop.registry.address}/a/b"
    for text in (one.id, bare, bare[:12], f"sha256:{bare[:12]}", f"{repository}@{digest}"):
        assert shop.store.resolve(text).id == one.id, text
    assert shop.store.resolve(f"{repository}:one@{digest}").id == one.id


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("nothing", "nothing:latest"),
        ("docker.io/library/x", "x:latest"),
        ("a/b:1", "a/b:1"),
        ("f" * 64, "sha256:" + "f" * 64),
        ("sha256:" + "0" * 64, "sha256:" + "0" * 64),
    ],
)
def test_what_is_not_here_is_said_in_dockerds_words(shop: Shop, text: str, shown: str) -> None:
    with pytest.raises(NotFound) as caught:
        shop.store.resolve(text)
    assert str(caught.value) == f"No such image: {shown}"


def test_an_ambiguous_id_is_no_image_so_that_one_of_that_name_may_be_pulled(shop: Shop) -> None:
    ids = [image.id for image in shop.store.list()]
    first = {i[7] for i in ids}
    number = 3
    while len(first) == len(ids):
        shop.registry.image(BASE, tag=str(number), config={"Labels": {"n": str(number)}})
        ids.append(shop.store.pull(shop.name(str(number))).id)
        first, number = {i[7] for i in ids}, number + 1
    twice = next(c for c in first if sum(i[7] == c for i in ids) > 1)
    with pytest.raises(NotFound, match=rf"^No such image: {twice}:latest \(as an id it is ambiguous: 2 "):
        shop.store.resolve(twice)


def test_the_newest_comes_first_and_sizes_are_those_of_the_files(shop: Shop) -> None:
    assert [i.names[0] for i in shop.store.list()] == [shop.name("two"), shop.name("one")]
    assert {i.size for i in shop.store.list()} == {101}


def test_history_names_the_image_once(shop: Shop) -> None:
    shop.store.tag(shop.name("one"), "mine")
    one = shop.store.resolve("mine")
    top, base = shop.store.history(one)
    assert (top.id, top.created_by, top.size) == (one.id, "layer 1", 1)
    assert sorted(top.tags) == sorted([shop.name("one"), "docker.io/library/mine:latest"])
    assert (base.id, base.created_by, base.size, base.tags) == ("<missing>", "layer 0", 100, ())


def test_a_tag_moves(shop: Shop) -> None:
    shop.store.tag(shop.name("one"), "mine:1")
    shop.store.tag(shop.name("two"), "mine:1")
    assert shop.store.resolve("mine:1").id == shop.store.resolve(shop.name("two")).id
    with pytest.raises(NotFound, match="No such image: absent:latest"):
        shop.store.tag("absent", "mine:2")
    with pytest.raises(InvalidArgument, match="invalid reference format"):
        shop.store.tag("mine:1", "mine:")
    with pytest.raises(InvalidArgument, match="refusing to create a tag with a digest reference"):
        shop.store.tag("mine:1", f"mine@{digest_of(b'')}")


def test_a_pull_moves_the_tag_and_leaves_the_old_image_by_its_digest(shop: Shop) -> None:
    old = shop.store.resolve(shop.name("one"))
    shop.registry.image(BASE, TOPS[2], tag="one")
    new = shop.store.pull(shop.name("one"))
    assert new.id != old.id
    assert ["@" in n for n in shop.store.resolve(old.id).names] == [True]


def test_the_last_name_takes_the_image_along_but_not_what_others_need(shop: Shop) -> None:
    one = shop.store.resolve(shop.name("one"))
    blobs = shop.blobs()
    shop.store.tag(one.id, "other:1")
    assert shop.store.remove("other:1", []) == [Removed(untagged="other:1")]
    removed = shop.store.remove(shop.name("one"), [])
    digest = digest_of(shop.registry.manifests["one"][0])
    chain = removal.chain_ids(one.document.diff_ids)
    assert removed == [
        Removed(untagged=shop.name("one")),
        Removed(untagged=f"{shop.registry.address}/a/b@{digest}"),
        Removed(deleted=one.id),
        Removed(deleted=chain[1]),
    ]
    assert (shop.directories(), shop.blobs()) == (2, blobs - 3)
    assert shop.store.remove(shop.store.list()[0].id, [])[-1].deleted == chain[0]
    assert (shop.directories(), shop.blobs(), shop.store.list()) == (0, 0, [])


def test_pruning_races_neither_loads_nor_pulls_nor_saves(shop: Shop) -> None:
    """What a load or a pull has brought is whole when it returns, however many prune meanwhile, and what is
    being saved stays."""
    archives = [saved(shop.store, shop.name(tag)) for tag in ("one", "two")]
    ended, errors = threading.Event(), []

    def prune() -> None:
        while not ended.is_set():
            try:
                shop.store.prune((), lambda _: True, dangling=False)
            except Exception as error:
                errors.append(error)

    def bring(number: int) -> None:
        for n in range(12):
            try:
                if (number + n) % 2:
                    shop.store.pull(shop.name(("one", "two")[number % 2]))
                else:
                    shop.store.load(pieces(archives[number % 2]))
                data = saved(shop.store, shop.name(("one", "two")[number % 2]))
                assert len(data) == len(archives[number % 2])
            except NotFound as error:  # pruned since
                assert str(error).startswith("No such image: ")

    pruners = [threading.Thread(target=prune) for _ in range(2)]
    for thread in pruners:
        thread.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(bring, number) for number in range(4)]:
                done.result()
    finally:
        ended.set()
        for thread in pruners:
            thread.join()
    assert errors == []
    shop.store.prune((), lambda _: True, dangling=False)
    assert (shop.directories(), shop.blobs(), shop.store.list()) == (0, 0, [])


def test_layers_are_counted_once(shop: Shop) -> None:
    total, shared = shop.store.usage_of_layers()
    assert (total, set(shared.values())) == (102, {100})
    one = shop.store.resolve(shop.name("one"))
    removed, freed = shop.store.prune(
        [Use(shop.store.resolve(shop.name("two")).id, "c" * 64, running=False)],
        lambda _: True,
        dangling=False,
    )
    assert freed == 1 and Removed(deleted=one.id) in removed
    assert shop.store.usage_of_layers()[0] == 101


def test_a_container_keeps_its_layers_when_its_image_goes(shop: Shop) -> None:
    one = shop.store.resolve(shop.name("one"))
    rootfs = shop.store.prepare("c" * 64, one.id)
    use = Use(one.id, "c" * 64, running=False)
    with pytest.raises(FailedPrecondition, match="must force"):
        shop.store.remove(shop.name("one"), [use])
    shop.store.remove(shop.name("one"), [use], force=True)
    assert shop.store.snapshot("c" * 64) == rootfs
    assert all(Path(p).is_dir() for p in rootfs["lower"])
    shop.store.remove_snapshot("c" * 64)
    shop.store.remove_snapshot("c" * 64)
    with pytest.raises(NotFound):
        shop.store.snapshot("c" * 64)
    shop.store.recover()
    assert shop.directories() == 2  # the base is image two's, too
    with pytest.raises(NotFound, match="No such image"):
        shop.store.prepare("d" * 64, one.id)


@pytest.mark.parametrize("how", ["damaged", "missing"])
def test_one_damaged_configuration_spoils_no_list_and_can_be_removed_or_pulled_again(
    shop: Shop, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad = shop.store.resolve(shop.name("one"))
    config = shop.path / "content/blobs" / bad.id.replace(":", "/")
    config.unlink()
    if how == "damaged":
        config.write_bytes(b"{}")
    store = ImageStore(str(shop.path), shop.catalog, quick())  # which has nothing in memory
    store.recover()
    assert [i.names[0] for i in store.list()] == [shop.name("two")]
    assert f"image {bad.id[7:19]} is not listed: " in caplog.text
    with pytest.raises((DataLoss, NotFound)):
        store.resolve(bad.id)
    assert store.identify(shop.name("one")) == (bad.id, {})
    store.pull(shop.name("one"))
    assert len(store.list()) == 2
    config.write_bytes(b"{}")
    store = ImageStore(str(shop.path), shop.catalog, quick())
    removed = store.remove(shop.name("one"), ())
    assert removed[-2:] == [
        Removed(deleted=bad.id),
        Removed(deleted=removal.chain_ids(bad.document.diff_ids)[1]),
    ]
    assert [i.names[0] for i in store.list()] == [shop.name("two")]
    assert shop.blobs() == 4 and shop.directories() == 2


def test_recovery_removes_what_has_no_row_and_keeps_what_has(shop: Shop) -> None:
    one = shop.store.resolve(shop.name("one"))
    shop.store.prepare("c" * 64, one.id)
    before = shop.directories(), shop.blobs()
    (shop.path / "snapshots/l/0badc0de/fs/deep").mkdir(parents=True)
    (shop.path / "snapshots" / ("d" * 64) / "fs").mkdir(parents=True)
    (shop.path / "snapshots" / f".gone-{'e' * 64}-0/x").mkdir(parents=True)
    (shop.path / "content/blobs/sha256" / ("0" * 64)).write_bytes(b"x")
    (shop.path / "content/ingest/put-0011").write_bytes(b"x")
    fresh = shop.path / "content/ingest" / f"sha256-{'1' * 64}"
    stale = shop.path / "content/ingest" / f"sha256-{'2' * 64}"
    fresh.write_bytes(b"x")
    stale.write_bytes(b"x")
    os.utime(stale, (0, 0))
    again = ImageStore(str(shop.path), shop.catalog, quick())
    again.recover()
    assert (shop.directories(), shop.blobs()) == before
    assert sorted(p.name for p in (shop.path / "snapshots").iterdir()) == ["c" * 64, "l"]
    assert list((shop.path / "content/ingest").iterdir()) == [fresh]
    assert again.snapshot("c" * 64)["lower"]


def test_directories_are_nobody_elses(shop: Shop) -> None:
    """CVE-2021-41103: what is setuid in an image must not be reachable from outside a container."""
    shop.store.prepare("c" * 64, shop.store.list()[0].id)
    closed = [shop.path / "content", shop.path / "snapshots/l", shop.path / "snapshots" / ("c" * 64)]
    closed += list((shop.path / "snapshots/l").iterdir())
    assert {p.stat().st_mode & 0o7777 for p in closed} == {0o700}
    assert (shop.path / "snapshots" / ("c" * 64) / "fs").stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".hidden", "x" * 200])
def test_a_snapshots_id_is_no_path(shop: Shop, name: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid snapshot id"):
        shop.store.prepare(name, shop.store.list()[0].id)
    with pytest.raises(InvalidArgument, match="invalid snapshot id"):
        shop.store.remove_snapshot(name)


def test_a_missing_layer_is_told(shop: Shop) -> None:
    image = shop.store.resolve(shop.name("one"))
    row = shop.catalog.layer(digest_of(TOPS[0]))
    assert row is not None
    os.rename(shop.path / "snapshots/l" / row.directory, shop.path / "away")
    with pytest.raises(DataLoss, match="is missing: pull the image again"):
        shop.store.prepare("c" * 64, image.id)
    assert not (shop.path / "snapshots" / ("c" * 64)).exists()


# the built-in image


@pytest.mark.root
def test_the_built_in_image_is_assembled_when_first_asked_for(tmp_path: Path) -> None:
    store = ImageStore(str(tmp_path), MemoryCatalog(), quick())
    assert store.list() == []
    image = store.resolve("nagaya/busybox")
    assert image.config is not None and image.config.cmd == ["sh"]
    assert store.resolve(image.id[7:19]).id == image.id
    (lower,) = store.prepare("c" * 64, image.id)["lower"]
    assert os.readlink(f"{lower}/bin/sh") == "busybox" and os.access(f"{lower}/bin/busybox", os.X_OK)
    assert os.path.realpath(f"{lower}/usr/bin/env") == f"{lower}/bin/busybox"
    assert store.pull("nagaya/busybox").id == image.id
    assert [r.deleted for r in store.remove("nagaya/busybox", [])].count(image.id) == 1
    assert store.resolve("nagaya/busybox:latest").id == image.id
    with pytest.raises(NotFound, match=r"No such image: nagaya/busybox:1\.0"):
        store.resolve("nagaya/busybox:1.0")


def test_the_same_busybox_gives_the_same_image() -> None:
    assert builtin.build() == builtin.build()


def test_without_a_busybox_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "_CANDIDATES", (str(tmp_path / "none"),))
    with pytest.raises(NotFound, match="install the package busybox-static"):
        ImageStore(str(tmp_path), MemoryCatalog(), quick()).resolve("nagaya/busybox")
    text = tmp_path / "text"
    text.write_bytes(b"#!/bin/sh\n" * 20)
    monkeypatch.setattr(builtin, "_CANDIDATES", (str(text),))
    with pytest.raises(FailedPrecondition, match="is not a static executable"):
        builtin.build()


# dockerd's rules for rmi, as a table

ID = "sha256:" + "a" * 64
T1, T2 = "docker.io/library/x:1", "docker.io/library/x:2"
D1 = f"docker.io/library/x@{'sha256:' + 'd' * 64}"
OTHER = "localhost:5000/y:1"
STOPPED, RUNNING = Use(ID, "c" * 64, running=False), Use(ID, "e" * 64, running=True)


@pytest.mark.parametrize(
    ("names", "name", "uses", "force", "going", "image"),
    [
        ([T1], T1, [], False, (T1,), True),
        ([T1, D1], T1, [], False, (T1, D1), True),
        ([T1, T2, D1], T1, [], False, (T1,), False),
        ([T1, T2], T1, [RUNNING], False, (T1,), False),
        ([T1, OTHER, D1], T1, [], False, (T1, D1), False),
        ([T1], T1, [STOPPED], True, (T1,), True),
        ([T1], T1, [RUNNING], True, (T1,), False),
        ([T1], T1, [Use("sha256:" + "b" * 64, "c" * 64, running=True)], False, (T1,), True),
        ([D1], D1, [], False, (D1,), True),
        ([T1, D1], "", [], False, (T1, D1), True),
        ([], "", [], False, (), True),
        ([T1, OTHER], "", [], True, (T1, OTHER), True),
        ([T1], "", [STOPPED], True, (T1,), True),
    ],
)
def test_what_rmi_takes_away(
    names: list[str], name: str, uses: list[Use], force: bool, going: tuple[str, ...], image: bool
) -> None:
    assert removal.plan(ID, names, name, uses, force=force) == removal.Plan(going, image)


@pytest.mark.parametrize(
    ("names", "name", "uses", "force", "words"),
    [
        ([T1], T1, [STOPPED], False, 'unable to remove repository reference "x:1" (must force) - container '),
        ([T1], T1, [RUNNING], False, "eeeeeeeeeeee is using its referenced image aaaaaaaaaaaa"),
        (
            [T1],
            "",
            [STOPPED],
            False,
            "(must be forced) - image is being used by stopped container cccccc",
        ),
        ([T1], "", [RUNNING], True, "(cannot be forced) - image is being used by running container eeeeeeee"),
        ([T1, OTHER], "", [], False, "(must be forced) - image is referenced in multiple repositories"),
    ],
)
def test_what_rmi_refuses(names: list[str], name: str, uses: list[Use], force: bool, words: str) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        removal.plan(ID, names, name, uses, force=force)
    assert words in str(caught.value)
    assert str(caught.value).startswith("conflict: unable to ")


def test_chain_ids_are_the_specs() -> None:
    assert removal.chain_ids([]) == []
    two = removal.chain_ids([ID, T1])
    assert two == [ID, digest_of(f"{ID} {T1}".encode())]
