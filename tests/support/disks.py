"""Small file systems of a test's own."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def disk(megabytes: int, kind: str, *options: str) -> Iterator[Path]:
    """A small file system of a test's own, mounted; options: of mkfs."""
    with tempfile.TemporaryDirectory(prefix="nagt-disk-", dir="/tmp") as name:
        base = Path(name)
        place = base / "disk"
        place.mkdir()
        if kind != "tmpfs":
            image = base / "image"
            with image.open("wb") as file:
                file.truncate(megabytes << 20)
            whole = ("-m", "0") if kind == "ext4" else ()  # of which root keeps nothing for itself
            subprocess.run([f"mkfs.{kind}", "-q", *whole, *options, str(image)], check=True)
            subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
        else:
            size = f"size={megabytes}m,mode=0755"
            subprocess.run(["mount", "-t", "tmpfs", "-o", size, "nagt", str(place)], check=True)
        try:
            yield place
        finally:
            subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> Path:
    """Leave no byte; the file that has them all."""
    path = place / "ballast"
    with path.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 16, 1 << 12, 1):
            with suppress(OSError):
                while True:
                    file.write(b"x" * size)
        with suppress(OSError):
            os.fsync(file.fileno())
    return path


@contextmanager
def merged() -> Iterator[Path]:
    """A directory on an overlay, where no other overlay can have its writable layer."""
    with tempfile.TemporaryDirectory(prefix="nagt-disk-", dir="/tmp") as name:
        base = Path(name)
        for part in ("lower", "upper", "work", "disk"):
            (base / part).mkdir()
        options = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
        subprocess.run(["mount", "-t", "overlay", "nagt", "-o", options, str(base / "disk")], check=True)
        try:
            yield base / "disk"
        finally:
            subprocess.run(["umount", "-l", str(base / "disk")], check=True)
