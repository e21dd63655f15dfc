"""What a volume has in it when a container first sees it: the image's files, once, if it is empty."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from house import House

from nagaya.engine import filling
from nagaya.engine.layered import LayeredRoot

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        yield started


def layers(base: Path) -> LayeredRoot:
    upper, lower = base / "upper", base / "lower"
    (lower / "data/deep").mkdir(parents=True)
    (lower / "data/deep/below").write_text("below")
    (lower / "data/both").write_text("lower")
    (lower / "gone").write_text("hidden")
    (upper / "data").mkdir(parents=True, mode=0o750)
    (upper / "data").chmod(0o750)
    (upper / "data/both").write_text("upper")
    (upper / "all").symlink_to("/")
    os.mknod(upper / "gone", stat.S_IFCHR, 0)  # a whiteout
    return LayeredRoot([str(upper), str(lower)])


@pytest.mark.parametrize("target", ["/", "/all", "/data/.."])
def test_the_root_of_an_image(tmp_path: Path, target: str) -> None:
    (tmp_path / "volume").mkdir()
    filling.copy_up(layers(tmp_path), target, str(tmp_path / "volume"))
    assert sorted(p.name for p in (tmp_path / "volume").iterdir()) == ["all", "data"]
    assert (tmp_path / "volume/data/both").read_text() == "upper"
    assert (tmp_path / "volume/data/deep/below").read_text() == "below"
    assert stat.S_IMODE((tmp_path / "volume/data").stat().st_mode) == 0o750


def test_many_fill_one_volume(tmp_path: Path) -> None:
    image, place = layers(tmp_path), tmp_path / "volume"
    place.mkdir()
    failed: list[Exception] = []

    def fill() -> None:
        try:
            filling.copy_up(image, "/data", str(place))
        except Exception as error:
            failed.append(error)

    threads = [Thread(target=fill) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert sorted(p.name for p in place.iterdir()) == ["both", "deep"]


def test_an_empty_volume_is_filled_whoever_made_it(house: House) -> None:
    house.ok("run", "--rm", "-v", "tools:/nothing/there", IMAGE, "true")
    data = house.root / "volumes/tools/_data"
    assert list(data.iterdir()) == []
    assert house.docker("run", "--rm", "-v", "tools:/bin:nocopy", IMAGE, "/bin/true").returncode == 127
    assert list(data.iterdir()) == []
    house.ok("run", "--rm", "-v", "tools:/bin", IMAGE, "/bin/true")
    assert "busybox" in {p.name for p in data.iterdir()}


def test_a_volume_with_something_in_it_is_left_alone(house: House) -> None:
    house.ok("run", "--rm", "-v", "mine:/nothing", IMAGE, "touch", "/nothing/mine")
    assert house.docker("run", "--rm", "-v", "mine:/bin", IMAGE, "/bin/true").returncode == 127
    assert [p.name for p in (house.root / "volumes/mine/_data").iterdir()] == ["mine"]
