"""Roots as disks: what becomes one, what is kept, and what the disk holds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nagaya.errors import FailedPrecondition, InvalidArgument
from nagaya.vm import rootfs

SOURCE = Path(__file__).resolve().parents[2] / "src"
LINE = "36 25 0:32 / {where} rw,relatime shared:1 - {kind} {kind} {options}"


def test_layers_are_read_from_mountinfo() -> None:
    text = "\n".join(
        [
            LINE.format(where="/a", kind="ext4", options="rw"),
            LINE.format(
                where="/m\\040y", kind="overlay", options="rw,lowerdir=/l1:/l\\0402,upperdir=/u,workdir=/w"
            ),
            LINE.format(where="/new", kind="overlay", options="ro,lowerdir+=/l1,lowerdir+=/l2"),
            LINE.format(
                where="/docker", kind="overlay", options="rw,lowerdir=l/A:l/B,upperdir=/u,workdir=/w"
            ),
        ]
    )
    found = rootfs.layers_of(text, "/m y")
    assert found and (found.lower, found.upper) == (["/l1", "/l 2"], "/u")
    found = rootfs.layers_of(text, "/new")
    assert found and (found.lower, found.upper) == (["/l1", "/l2"], "")
    assert rootfs.layers_of(text, "/a") is None and rootfs.layers_of(text, "/b") is None
    assert rootfs.layers_of(text, "/docker") is None  # relative to a directory that we do not know
    over = text + "\n" + LINE.format(where="/new", kind="ext4", options="rw")
    assert rootfs.layers_of(over, "/new") is None  # mounted over


def test_a_directory_s_disk_is_made_again_when_it_has_changed(tmp_path: Path) -> None:
    root, cache = tmp_path / "root", str(tmp_path / "cache")
    (root / "etc").mkdir(parents=True)
    (root / "etc/file").write_text("one")
    disks = rootfs.disks(str(root), cache, str(tmp_path))
    (made,) = disks.images
    assert not disks.writable  # there is no place for one that would go with the container
    before = os.stat(made).st_ino
    assert rootfs.disks(str(root), cache, str(tmp_path)).images == [made] and os.stat(made).st_ino == before
    (root / "etc/file").write_text("two")
    (other,) = rootfs.disks(str(root), cache, str(tmp_path)).images
    assert other != made and b"two" in Path(other).read_bytes()
    assert sorted(os.listdir(cache)) == sorted(os.path.basename(path) for path in (made, other))


def test_no_root_and_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidArgument, match="no such file or directory"):
        rootfs.disks(str(tmp_path / "root"), str(tmp_path / "cache"), str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FailedPrecondition, match="apt-get install erofs-utils"):
        rootfs.disks(str(tmp_path), str(tmp_path / "cache"), str(tmp_path))
    assert os.listdir(tmp_path / "cache") == []


def test_the_least_recently_used_images_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rootfs, "_MOST_KEPT", 3)
    cache = tmp_path / "cache"
    made: list[str] = []
    for number in range(4):
        root = tmp_path / f"root{number}"
        root.mkdir()
        made += rootfs.disks(str(root), str(cache), str(tmp_path)).images
        os.utime(made[-1], (number, number))
        rootfs.disks(str(tmp_path / "root0"), str(cache), str(tmp_path))  # used again and again
    assert sorted(cache.iterdir()) == sorted(Path(made[number]) for number in (0, 2, 3))


@pytest.mark.root
@pytest.mark.skipif(not shutil.which("fsck.erofs"), reason="needs erofs-utils")
def test_an_overlay_is_its_layers_and_what_was_written(tmp_path: Path) -> None:
    for name in ("top/etc", "base/etc", "base/gone", "upper", "work", "merged"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "base/etc/file").write_text("base")
    (tmp_path / "base/etc/other").write_text("other of the base")
    (tmp_path / "top/etc/file").write_text("the top's")
    code = (
        "import sys; from nagaya.vm import rootfs; b = sys.argv[1]\n"
        "d = rootfs.disks(b + '/merged', b + '/cache', b); print(d.writable, *d.images)\n"
        "open(b + '/merged/new', 'w').write('written'); __import__('os').rmdir(b + '/merged/gone')\n"
        "d = rootfs.disks(b + '/merged', b + '/cache', b); print(d.writable, *d.images)"
    )
    mount = 'mount -t overlay o -o "lowerdir=$1/top:$1/base,upperdir=$1/upper,workdir=$1/work" "$1/merged"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", f'{mount}; "$PYTHON" -c "$CODE" "$1"', "sh", str(tmp_path)],
        env={**os.environ, "PYTHON": sys.executable, "CODE": code, "PYTHONPATH": str(SOURCE)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (disk, *first), (again, *second) = (line.split() for line in done.stdout.splitlines())
    assert disk == again == str(tmp_path / "microvm.ext4")  # beside the upper directory, and goes with it
    assert os.stat(disk).st_blocks * 512 < 8 << 20
    assert len(first) == 1 and second == [str(tmp_path / "upper.erofs"), *first]
    data = Path(first[0]).read_bytes()
    assert b"the top's" in data and b"other of the base" in data and b"written" not in data
    assert b"written" in Path(second[0]).read_bytes()
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == [os.path.basename(first[0])]
