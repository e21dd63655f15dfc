"""How images lie on the disk: where ext4 puts layers, and file systems that offer less, or too little."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from disks import disk, merged
from fakeregistry import FakeRegistry, file, quick, tar
from house import House
from memory_catalog import MemoryCatalog

from nagaya.image.store import ImageStore

pytestmark = pytest.mark.root

LAYERS = [tar(file(f"file-{number}", b"data")) for number in range(8)]


@pytest.fixture(scope="module")
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        registry.image(*LAYERS, tag="eight")
        yield registry


def pulled(registry: FakeRegistry, root: Path) -> list[Path]:
    """The directories of the image's layers, bottom first."""
    store = ImageStore(str(root), MemoryCatalog(), quick())
    image = store.pull(registry.name("eight"))
    return [Path(path) for path in reversed(store.files_of(image.id))]


def test_layers_are_spread_over_the_block_groups_of_ext4(registry: FakeRegistry) -> None:
    """Else threads that unpack fight for one group's bitmap, and search what was deleted there."""
    with disk(1024, "ext4", "-O", "^has_journal,^flex_bg", "-N", "8192") as place:
        groups = {path.parent.stat().st_ino // 1024 for path in pulled(registry, place / "root")}
        told = subprocess.run(["dumpe2fs", "-h", str(place.parent / "image")], capture_output=True, text=True)
        assert "Inodes per group:         1024" in told.stdout
        assert len(groups) > 1  # of eight; chosen by a hash of the name: some meet


def test_where_there_are_no_such_groups_images_are_kept_all_the_same(registry: FakeRegistry) -> None:
    with disk(16, "tmpfs") as place:
        for number, path in enumerate(pulled(registry, place / "root")):
            assert (path / f"file-{number}").read_bytes() == b"data"


def test_a_root_where_no_container_can_write_is_told_in_one_line() -> None:
    with merged() as place:
        house = House()
        house.root = place / "root"
        with house:
            said = house.docker("run", "--rm", "--network", "none", "nagaya/busybox", "true")
            lines = said.stderr.decode().splitlines()
            assert said.returncode == 125
            assert (
                "an overlay cannot write to its file system: put the daemon's --root on another" in lines[0]
            )
            # images are kept all the same, and files can be looked at
            assert house.ok("images", "-q", "nagaya/busybox")
            assert house.leaks(0) == []
