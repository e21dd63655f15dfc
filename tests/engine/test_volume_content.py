"""What a volume has in it when a container first sees it: the image's files, once, if it is empty."""

from __future__ import annotations

import os
import shutil
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from house import House
from killsteps import Victims, enumerate_steps

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


@pytest.mark.parametrize("kind", ["_data", "mounted"])
def test_killed_at_any_step_a_volume_is_empty_or_whole(tmp_path: Path, kind: str) -> None:
    image, whole = layers(tmp_path), {"both": "upper", "deep": {"below": "below"}, "to": "-> both"}
    (tmp_path / "upper/data/to").symlink_to("both")
    os.chown(tmp_path / "lower/data/deep/below", 7, 8)

    def found(place: Path) -> dict[str, Any]:
        return {
            p.name: f"-> {os.readlink(p)}" if p.is_symlink() else found(p) if p.is_dir() else p.read_text()
            for p in place.iterdir()
        }

    def at_step(victims: Victims, number: int) -> bool | None:
        data = tmp_path / f"step{number}" / kind
        data.mkdir(parents=True)
        code = victims("fill", data, tmp_path, number)
        if code == 0:
            return None
        assert code == -signal.SIGKILL, number
        mounted = kind == "mounted"
        filling.settle(filling.stage_of(str(data), mounted=mounted), str(data))  # as the next daemon does
        filled = bool(found(data))
        assert found(data) in ({}, whole), number
        assert [p.name for p in data.parent.iterdir()] == [kind], number
        filling.copy_up(image, "/data", str(data), mounted=mounted)  # as the next container does
        assert found(data) == whole, number
        owner = (data / "deep/below").stat()
        assert (owner.st_uid, owner.st_gid, stat.S_IMODE(data.stat().st_mode)) == (7, 8, 0o750), number
        shutil.rmtree(data.parent)
        return filled

    ends = enumerate_steps(at_step)
    assert ends[0] is True and False in ends and ends.index(None) > 20  # the last moment, and early ones


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
