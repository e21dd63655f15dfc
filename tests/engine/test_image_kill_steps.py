"""kill -9 at every step of work on images: what is here afterwards is whole, and nothing else."""

from __future__ import annotations

import gzip
import json
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from fakeregistry import quick
from house import House, python_main
from images import Registry, busybox_layers, write_layout
from imagetrees import free_port, mounted, sample, survey
from killsteps import Victims, enumerate_steps, recovered, take_away
from parcels import config, docker_archive, packed, pieces, saved, sha

from nagaya.engine.catalog import LedgerCatalog
from nagaya.engine.ledger import Ledger
from nagaya.image.making import Recipe
from nagaya.image.store import ImageStore

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sample") / "layout"
    write_layout(made, sample(), {"Cmd": ["true"]})
    return made


@pytest.fixture(scope="module")
def name(layout: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Registry(tmp_path_factory.mktemp("registry"), port=free_port()) as registry:
        yield registry.push(f"oci:{layout}:latest", "sample:1")


@pytest.fixture(scope="module")
def umoci(layout: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[object, ...]]:
    tree = tmp_path_factory.mktemp("umoci") / "tree"
    subprocess.run(
        ["umoci", "raw", "unpack", "--image", f"{layout}:latest", str(tree)], check=True, capture_output=True
    )
    return survey(tree)


def files(root: Path) -> list[str]:
    """Everything in the store that is not of its making: no directories that are always there."""
    found = [str(p.relative_to(root)) for p in (root / "content").rglob("*") if p.is_file()]
    found += [f"layer {p.name}" for p in (root / "snapshots/l").iterdir() if p.name != "empty"]
    return found + [f"snapshot {p.name}" for p in (root / "snapshots").iterdir() if p.name != "l"]


def trees(root: Path, store: ImageStore, catalog: LedgerCatalog, name: str) -> list[object]:
    """Every layer of the image as it lies on the disk, but for the times of whiteouts."""
    found: list[object] = []
    for diff_id in store.resolve(name).document.diff_ids:
        row = catalog.layer(diff_id)
        assert row is not None
        top = root / "snapshots/l" / row.directory
        for line in survey(top):
            path, mode, device = top / str(line[0]), int(str(line[1])), line[4]
            whiteout = stat.S_ISCHR(mode) and device == 0
            opaque = stat.S_ISDIR(mode) and "trusted.overlay.opaque" in os.listxattr(path)
            found.append((diff_id, *line[:6], *(line[7:] if whiteout else line[6:]), opaque))
    return found


def kill_at(victims: Victims, number: int, root: Path, name: str, whole: list[object]) -> bool | None:
    """Kill a pull into root at that step, recover, look, pull again, look, remove. Was the image there
    after the recovery? None when the pull got through before the step."""
    root.mkdir()
    ended = victims("pull", root, name, number)
    if ended == 0:
        return None
    assert ended == -signal.SIGKILL, number
    with recovered(root) as (catalog, store):
        listed = store.list()
        if listed:
            assert len(listed) == 1 and len(listed[0].names) == 2, number
            assert trees(root, store, catalog, name) == whole, number
        else:
            # what has arrived of a blob waits for the next try, and nothing else
            assert all(f.startswith("content/ingest/sha256-") for f in files(root)), (number, files(root))
            assert catalog.layers() == [] and catalog.names() == [], number
        store.pull(name)
        assert trees(root, store, catalog, name) == whole, number
        # two documents, three blobs, three layers
        assert len(files(root)) == 8, (number, files(root))
        store.remove(name, ())
        assert files(root) == [], number
    subprocess.run(["rm", "-rf", str(root)], check=True)
    return bool(listed)


def test_kill_at_every_step(name: str, umoci: object, tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.mkdir()
    ledger = Ledger(f"{first}/ledger.db")
    store = ImageStore(str(first), LedgerCatalog(ledger), quick())
    store.pull(name)
    assert mounted(store, name, tmp_path / "merged") == umoci
    whole = trees(first, store, LedgerCatalog(ledger), name)
    ledger.close()
    found = enumerate_steps(lambda victims, n: kill_at(victims, n, tmp_path / str(n), name, whole))
    assert found.count(False) > 100 and found[0], found


def kill_load_at(
    victims: Victims, number: int, root: Path, archive: Path, whole: list[object]
) -> bool | None:
    """The same for a load, of which nothing waits for a next try."""
    root.mkdir()
    ended = victims("load", root, archive, number)
    if ended == 0:
        return None
    assert ended == -signal.SIGKILL, number
    with recovered(root) as (catalog, store):
        assert list((root / "content/ingest").iterdir()) == [], number
        listed = len(store.list())
        if not listed:
            assert files(root) == [] and catalog.layers() == [] and catalog.names() == [], number
        store.load(pieces(archive))
        assert len(store.list()) == 2
        for name in ("one:1", "two:1"):
            assert trees(root, store, catalog, name) == whole, number
        # a layer's three and two images' documents; the layers' directories
        assert len(files(root)) == 3 + 2 * 2 + 3, (number, files(root))
        assert saved(store, "one:1", "two:1")
        for name in ("one:1", "two:1"):
            store.remove(name, ())
        assert files(root) == [], number
    subprocess.run(["rm", "-rf", str(root)], check=True)
    return bool(listed)


def test_kill_at_every_step_of_a_load(tmp_path: Path) -> None:
    layers = [gzip.decompress(data) for data in sample()]
    members = docker_archive(*layers, tags=["one:1"])
    second = config(*layers, author="somebody")
    items = json.loads(members["manifest.json"])
    items.append({**items[0], "Config": "second.json", "RepoTags": ["two:1"]})
    members |= {"second.json": second, "manifest.json": json.dumps(items).encode()}
    archive = tmp_path / "archive.tar"
    archive.write_bytes(packed(members))
    first = tmp_path / "first"
    first.mkdir()
    ledger = Ledger(f"{first}/ledger.db")
    catalog = LedgerCatalog(ledger)
    store = ImageStore(str(first), catalog, quick())
    store.load(pieces(archive))
    whole = trees(first, store, catalog, "one:1")
    ledger.close()
    found = enumerate_steps(lambda victims, n: kill_load_at(victims, n, tmp_path / str(n), archive, whole))
    assert found.count(False) > 100 and found[0], found


def kill_commit_at(victims: Victims, number: int, root: Path, snapshot: str) -> bool | None:
    """The same for a commit: the base and its container stay as they are."""
    ended = victims("commit", root, snapshot, number)
    if ended == 0:
        return None
    assert ended == -signal.SIGKILL, number
    with recovered(root) as (_, store):
        assert list((root / "content/ingest").iterdir()) == [], number
        listed = len(store.list())
        # three blobs and a layer for each image, and the snapshot
        assert len(files(root)) == (9 if listed == 2 else 5), (number, files(root))
        image = store.commit(
            snapshot, store.resolve("base:1").id, frozenset(), Recipe({}, "2024-01-02T03:04:05Z"), "new:1"
        )
        top = store.prepare("look", image.id)["lower"][0]
        assert Path(top, "new").read_text() == "new" and not Path(top, "a").is_file()
    subprocess.run(["rm", "-rf", str(root)], check=True)
    return listed == 2


def test_kill_at_every_step_of_a_commit(tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.mkdir()
    ledger = Ledger(f"{first}/ledger.db")
    store = ImageStore(str(first), LedgerCatalog(ledger), quick())
    store.load(pieces(packed(docker_archive(gzip.decompress(sample()[0]), tags=["base:1"]))))
    upper = Path(store.prepare("container", store.resolve("base:1").id)["upper"])
    (upper / "new").write_text("new")
    os.mknod(upper / "a", stat.S_IFCHR, os.makedev(0, 0))
    ledger.close()

    def at(victims: Victims, number: int) -> bool | None:
        root = tmp_path / str(number)
        subprocess.run(["cp", "-a", str(first), str(root)], check=True)
        return kill_commit_at(victims, number, root, "container")

    found = enumerate_steps(at)
    assert found.count(False) > 25 and found[0], found


class Reading:
    """What a registry has of a tag, as anybody reads it."""

    def __init__(self, address: str) -> None:
        self._address = address

    def whole(self, path: str, tag: str) -> bytes | None:
        """The tag's manifest; all that it names is there and has its digest. None when there is no tag."""
        accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
        url = f"http://{self._address}/v2/{path}"
        try:
            with urlopen(Request(f"{url}/manifests/{tag}", headers=accept), timeout=30) as answer:
                found: bytes = answer.read()
        except HTTPError as error:
            assert error.code == 404
            return None
        document = json.loads(found)
        for part in (document["config"], *document["layers"]):
            with urlopen(f"{url}/blobs/{part['digest']}", timeout=30) as answer:
                assert f"sha256:{sha(answer.read())}" == part["digest"]
        return found


def test_kill_at_every_step_of_a_push(tmp_path: Path) -> None:
    """The tag is there with all that it names, or not; here nothing has changed; the next push works."""
    first = tmp_path / "first"
    first.mkdir()
    ledger = Ledger(f"{first}/ledger.db")
    store = ImageStore(str(first), LedgerCatalog(ledger), quick())
    store.load(pieces(packed(docker_archive(*map(gzip.decompress, sample()[:2]), tags=["base:1"]))))
    manifest = Path(store._content.path(store.resolve("base:1").manifest)).read_bytes()
    ledger.close()
    before = sorted(files(first))

    with Registry(tmp_path / "registry", port=free_port()) as registry:
        reading = Reading(registry.address)

        def at(victims: Victims, number: int) -> bool | None:
            root, path = tmp_path / str(number), f"sample/s{number}"
            name = f"{registry.address}/{path}:1"
            subprocess.run(["cp", "-a", str(first), str(root)], check=True)
            ledger = Ledger(f"{root}/ledger.db")
            ImageStore(str(root), LedgerCatalog(ledger), quick()).tag("base:1", name)
            ledger.close()
            ended = victims("push", root, name, number)
            if ended == 0:
                return None
            assert ended == -signal.SIGKILL, number
            there = reading.whole(path, "1")
            assert there in (None, manifest), number
            with recovered(root) as (_, store):
                assert sorted(files(root)) == before, number
                store.push(name)
                assert reading.whole(path, "1") == manifest, number
                assert len(store.resolve(name).names) == 3, number  # the digest's is new
            subprocess.run(["rm", "-rf", str(root)], check=True)
            return there is not None

        found = enumerate_steps(at)
    assert found.count(False) > 20 and found[0], found


@pytest.mark.parametrize("what", ["remove", "prune", "snapshot"])
def test_kill_at_every_step_of_collecting_garbage(what: str, tmp_path: Path) -> None:
    """The image is whole, or nothing is left of it; what another shares with it never goes."""
    base, middle, top = map(gzip.decompress, sample())
    first = tmp_path / "first"
    first.mkdir()
    ledger = Ledger(f"{first}/ledger.db")
    catalog = LedgerCatalog(ledger)
    store = ImageStore(str(first), catalog, quick())
    for tag, layers in (("one:1", (base, middle, top)), ("two:1", (base, top))):
        store.load(pieces(packed(docker_archive(*layers, tags=[tag]))))
    whole = {name: trees(first, store, catalog, name) for name in ("one:1", "two:1")}
    if what == "snapshot":
        upper = Path(store.prepare("box", store.resolve("one:1").id)["upper"])
        (upper / "deep/er").mkdir(parents=True)
        (upper / "deep/er/file").write_text("x")
        store.remove("one:1", (), force=True)
    ledger.close()

    def at(victims: Victims, number: int) -> bool | None:
        root = tmp_path / str(number)
        subprocess.run(["cp", "-a", str(first), str(root)], check=True)
        ended = victims("collect", root, what, number)
        if ended == 0:
            return None
        assert ended == -signal.SIGKILL, number
        with recovered(root) as (catalog, store):
            there = len(store.list()) == 2 or catalog.snapshot("box") is not None
            if len(store.list()) == 2:
                assert trees(root, store, catalog, "one:1") == whole["one:1"] and saved(store, "one:1"), (
                    number
                )
            if there:
                take_away(store, what)
            # of two:1: a manifest, a configuration, two blobs, two layers
            assert len(files(root)) == 6, (number, files(root))
            assert trees(root, store, catalog, "two:1") == whole["two:1"] and saved(store, "two:1"), number
        subprocess.run(["rm", "-rf", str(root)], check=True)
        return there

    found = enumerate_steps(at)
    assert found.count(True) + found.count(False) > 10 and not found[0], found


@pytest.mark.parametrize("step", [3, 20, 60, 85, 110])
def test_the_daemon_dies_of_a_pull_and_the_image_runs_after_the_next(step: int, tmp_path: Path) -> None:
    write_layout(tmp_path / "layout", busybox_layers(), {"Cmd": ["cat", "/data/kept", "/data/changed"]})
    with House() as house, Registry(tmp_path / "registry", house.inside([])) as registry:
        name = registry.push(f"oci:{tmp_path}/layout", "x:1")
        house.stop_daemon()
        program, house.program = house.program, [*python_main("killsteps"), str(step)]
        house.start()
        house.program = program
        daemon = house.daemon
        assert daemon is not None
        assert house.docker("pull", name).returncode != 0
        assert daemon.wait(20) == -signal.SIGKILL, house.tail()
        house.start()
        assert house.ok("images", "-q", name) == ""
        assert os.listdir(house.root / "snapshots/l") == ["empty"]
        assert house.ok("run", "--rm", "--network", "none", name) == "kept\nnew"
