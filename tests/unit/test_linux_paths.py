"""Paths below a hostile root: nothing is opened or made outside, whatever the links say."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nagaya.errors import KernelError
from nagaya.linux import mounts, paths
from nagaya.linux.ffi import syscall

RENAME_EXCHANGE = 2


@pytest.fixture
def root(tmp_path: Path) -> Iterator[tuple[int, Path, Path]]:
    """(fd of the root, the root, a directory outside that must stay untouched)."""
    inside, outside = tmp_path / "root", tmp_path / "victim"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret").write_text("secret")
    fd = os.open(inside, os.O_PATH | os.O_DIRECTORY)
    yield fd, inside, outside
    os.close(fd)
    assert [p.name for p in outside.iterdir()] == ["secret"]


def test_links_stay_inside(root: tuple[int, Path, Path]) -> None:
    fd, inside, outside = root
    (inside / "etc").mkdir()
    (inside / "etc" / "passwd").write_text("inside")
    (inside / "absolute").symlink_to("/etc")
    (inside / "up").symlink_to("../../../../etc")
    (inside / "host").symlink_to(outside)
    for name in ("absolute/passwd", "up/passwd", "/etc/../../etc/passwd"):
        opened = paths.open_in_root(fd, name, os.O_RDONLY)
        assert os.read(opened, 10) == b"inside"
        os.close(opened)
    with pytest.raises(KernelError) as caught:
        paths.open_in_root(fd, "host/secret", os.O_RDONLY)
    assert caught.value.errno == errno.ENOENT


def test_magic_links_are_refused(root: tuple[int, Path, Path]) -> None:
    proc = os.open("/", os.O_PATH)
    try:
        with pytest.raises(KernelError) as caught:
            paths.open_in_root(proc, "/proc/self/cwd", os.O_PATH)
        assert caught.value.errno == errno.ELOOP
    finally:
        os.close(proc)


def test_not_following_the_last_component(root: tuple[int, Path, Path]) -> None:
    fd, inside, _ = root
    (inside / "link").symlink_to("elsewhere")
    with pytest.raises(KernelError) as caught:
        paths.open_in_root(fd, "link", os.O_RDONLY, follow=False)
    assert caught.value.errno == errno.ELOOP


def test_missing_directories_are_made_inside(root: tuple[int, Path, Path]) -> None:
    fd, inside, _ = root
    (inside / "run").symlink_to("/var/run")
    (inside / "var" / "run").mkdir(parents=True)
    os.close(paths.mkdirs_in_root(fd, "/run/a/./b//c", 0o700))
    assert (inside / "var" / "run" / "a" / "b" / "c").is_dir()
    assert (inside / "var/run/a").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("target", ["/nowhere", "../../victim", "nowhere/../../../victim"])
def test_a_dangling_link_is_not_created_through(root: tuple[int, Path, Path], target: str) -> None:
    fd, inside, _ = root
    (inside / "dangling").symlink_to(target)
    with pytest.raises(KernelError):
        paths.mkdirs_in_root(fd, "dangling/new")
    with pytest.raises(KernelError):
        paths.create_in_root(fd, "dangling")


def test_missing_through_dotdot_is_refused(root: tuple[int, Path, Path]) -> None:
    with pytest.raises(KernelError, match=r"'\.\.'"):
        paths.mkdirs_in_root(root[0], "new/../../victim/x")


def test_create_makes_an_empty_file_and_its_parents(root: tuple[int, Path, Path]) -> None:
    fd, inside, _ = root
    os.close(paths.create_in_root(fd, "/etc/deep/hosts"))
    assert (inside / "etc/deep/hosts").read_bytes() == b""
    (inside / "etc/deep/hosts").write_text("kept")
    os.close(paths.create_in_root(fd, "/etc/deep/hosts"))
    assert (inside / "etc/deep/hosts").read_text() == "kept"


def test_a_racing_exchange_moves_nothing_outside(root: tuple[int, Path, Path]) -> None:
    """CVE-2021-30465, CVE-2024-45310: a directory swapped with a link while we make things below it."""
    fd, inside, outside = root
    (inside / "dir").mkdir()
    (inside / "link").symlink_to(outside)
    stop = threading.Event()

    def racer() -> None:
        rename = os.fsencode(inside / "dir"), os.fsencode(inside / "link")
        while not stop.is_set():
            syscall("renameat2", mounts.AT_FDCWD, rename[0], mounts.AT_FDCWD, rename[1], RENAME_EXCHANGE)

    thread = threading.Thread(target=racer)
    thread.start()
    made = 0
    try:
        for i in range(500):
            try:
                os.close(paths.mkdirs_in_root(fd, f"dir/new{i}/deeper"))
                os.close(paths.create_in_root(fd, f"dir/file{i}"))
                made += 1
            except KernelError:
                pass  # the race was lost safely; the fixture checks the victim
            except FileNotFoundError:
                pass
    finally:
        stop.set()
        thread.join()
    assert made > 0
