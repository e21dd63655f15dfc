"""Overlays: the way of new kernels and that of those before Linux 6.7 make the same mount."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from disks import merged

from nagaya.errors import KernelError
from nagaya.linux import caps, paths
from nagaya.linux import overlay as overlays
from nagaya.runtime import idmap

pytestmark = pytest.mark.root


@pytest.mark.parametrize(
    ("release", "new"),
    [("6.18.44", True), ("6.7.0-rc1", True), ("7.0", True), ("6.1.0-56-cloud-amd64", False), ("6.6.9", False),
     ("5.15.0-91-generic", False), ("6.7-rc1", True), ("6.10.1+", True)],
)  # fmt: skip
def test_which_kernels_take_layers_one_by_one(release: str, new: bool) -> None:
    assert overlays.takes_layers_one_by_one(release) is new


@pytest.fixture(params=["fsconfig", "mount"])
def mount(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], int]:
    """Both ways, on any kernel that has both."""
    if request.param == "fsconfig" and not overlays.takes_layers_one_by_one(os.uname().release):
        pytest.skip("this kernel has the old way only")
    monkeypatch.setattr(overlays, "takes_layers_one_by_one", lambda _release: request.param == "fsconfig")
    return overlays.mount_overlay


def layers(base: Path, count: int) -> dict[str, Any]:
    """That many lower directories, each with a file of its own and one that hides those below."""
    lower = [base / f"{index:03} with a : and a ," for index in range(count)]
    for index, path in enumerate(lower):
        path.mkdir()
        (path / f"file{index}").write_text(f"{index}")
        (path / "same").write_text(f"{index}")
    for name in ("upper", "work"):
        (base / name).mkdir()
    return {
        "lower": [str(path) for path in lower],
        "upper": str(base / "upper"),
        "work": str(base / "work"),
    }


def test_an_upper_where_none_can_be(mount: Callable[[dict[str, Any]], int]) -> None:
    with merged() as place, pytest.raises(KernelError, match="cannot write to its file system"):
        mount(layers(place, 2))


def test_many_layers(mount: Callable[[dict[str, Any]], int], tmp_path: Path) -> None:
    fds = set(os.listdir("/proc/self/fd"))
    overlay = layers(tmp_path, 120)
    tree = mount(overlay)
    try:
        assert paths.is_dir(tree)
        names = {f"file{index}" for index in range(120)}
        assert set(os.listdir(f"/proc/self/fd/{tree}")) == names | {"same"}
        with open(os.open("same", os.O_RDONLY, dir_fd=tree)) as same:
            assert same.read() == "0"
        os.close(os.open("new", os.O_WRONLY | os.O_CREAT, dir_fd=tree))
        assert os.listdir(overlay["upper"]) == ["new"]
    finally:
        os.close(tree)
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert set(os.listdir("/proc/self/fd")) == fds


def test_one_without_a_top_is_read_only(mount: Callable[[dict[str, Any]], int], tmp_path: Path) -> None:
    tree = mount({"lower": layers(tmp_path, 2)["lower"]})
    try:
        with pytest.raises(OSError, match="Read-only"):
            os.open("new", os.O_WRONLY | os.O_CREAT, dir_fd=tree)
    finally:
        os.close(tree)


def test_a_layer_that_is_missing(mount: Callable[[dict[str, Any]], int], tmp_path: Path) -> None:
    overlay = layers(tmp_path, 2)
    overlay["lower"].append(str(tmp_path / "nosuch"))
    fds = set(os.listdir("/proc/self/fd"))
    with pytest.raises((KernelError, OSError)):
        mount(overlay)
    assert set(os.listdir("/proc/self/fd")) == fds


@pytest.fixture
def mapping() -> Iterator[int]:
    """A user namespace whose root is 300000 here, as an open fd."""
    mapped = [{"containerID": 0, "hostID": 300_000, "size": 1000}]
    fd = idmap.namespace_with(mapped, mapped)
    yield fd
    os.close(fd)


@pytest.mark.usefixtures("mount")
def test_owners_are_mapped_in_all_layers(mapping: int, tmp_path: Path) -> None:
    fds = set(os.listdir("/proc/self/fd"))
    overlay = layers(tmp_path, 3)
    os.chown(tmp_path / "000 with a : and a ," / "same", 7, 7)
    tree = overlays.mount_mapped(overlay, mapping, 300_000, 300_000)
    place = f"/proc/self/fd/{tree}"
    try:
        assert os.stat(f"{place}/same").st_uid == 300_007
        assert os.stat(f"{place}/file1").st_uid == os.stat(place).st_uid == 300_000
        with caps.acting_as(300_000, 300_000):  # as root of the namespace does it
            Path(f"{place}/new").write_text("new")
            Path(f"{place}/file2").write_text("changed")  # copied up
            os.chown(f"{place}/file2", 300_005, 300_006)
            os.unlink(f"{place}/file1")
        found = {p.name: p.lstat() for p in (tmp_path / "upper").iterdir()}
        assert {name: (info.st_uid, info.st_gid) for name, info in found.items()} == {
            "new": (0, 0), "file2": (5, 6), "file1": (0, 0)
        }  # fmt: skip
        assert stat.S_ISCHR(found["file1"].st_mode)
        assert os.geteuid() == 0 and os.stat(tmp_path).st_uid == 0
        (tmp_path / "mine").write_text("")
        assert (tmp_path / "mine").stat().st_uid == 0
    finally:
        os.close(tree)
    assert set(os.listdir("/proc/self/fd")) == fds


def test_a_file_system_that_maps_no_owners(mapping: int) -> None:
    with pytest.raises(KernelError, match="its file system cannot have owners mapped"):
        overlays.mapped("/proc/self", mapping)
