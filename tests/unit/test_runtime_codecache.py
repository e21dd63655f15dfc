"""The one file of compiled modules: used where it fits the sources, else written anew."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "nagaya"
# runs a command of the runtime in a copy of the package; tells how many modules came from the file
CODE = """
import sys
sys.path.insert(0, sys.argv[1])
from nagaya.runtime import codecache, main
count = 0
original = codecache.Finder.exec_module
def exec_module(self, module):
    global count
    count += 1
    original(self, module)
codecache.Finder.exec_module = exec_module
import posix
end = posix._exit
def leave(code):
    print(count, "nagaya.linux.caps" in sys.modules and sys.modules["nagaya.linux.caps"].NAMES[0])
    sys.stdout.flush()
    end(code)
posix._exit = leave
main.main(["features"])
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    shutil.copytree(SOURCE, tmp_path / "nagaya", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "nagaya"


def run(package: Path, *flags: str) -> tuple[int, str]:
    """(modules taken from the file, the first capability's name)."""
    argv = [sys.executable, "-I", "-S", *flags, "-c", CODE, str(package.parent)]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, name = done.stdout.splitlines()[-1].split()
    return int(count), name


def cache(package: Path) -> Path:
    return package / "__pycache__" / f"runtime.{sys.implementation.cache_tag}.cache"


def test_the_second_run_takes_all_from_the_file(package: Path) -> None:
    assert run(package) == (0, "CAP_CHOWN")
    written = cache(package).stat()
    count, _ = run(package)
    assert count > 15
    assert cache(package).stat().st_mtime_ns == written.st_mtime_ns
    assert [p.name for p in cache(package).parent.glob("*.cache*")] == [cache(package).name]


def test_a_changed_source_is_seen_at_once_and_the_file_written_anew(package: Path) -> None:
    run(package)
    before, _ = run(package)
    caps = package / "linux" / "caps.py"
    text = caps.read_text()
    stat = caps.stat()
    caps.write_text(text.replace('"CHOWN DAC', '"CHXWN DAC'))
    assert run(package) == (before - 1, "CAP_CHXWN")
    assert run(package) == (before, "CAP_CHXWN")
    # of the same size and the same second, but not the same time
    caps.write_text(text)
    os.utime(caps, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert run(package)[1] == "CAP_CHOWN"


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 64, b"\x05\0\0\0\0\0\0\0hello", b"\0" * 4096])
def test_a_broken_file_is_ignored_and_replaced(package: Path, content: bytes) -> None:
    run(package)
    cache(package).write_bytes(content)
    assert run(package) == (0, "CAP_CHOWN")
    assert run(package)[0] > 15


def test_another_python_wrote_it(package: Path) -> None:
    run(package)
    data = cache(package).read_bytes()
    cache(package).write_bytes(data.replace(sys.version.encode(), b"4" + sys.version.encode()[1:]))
    assert run(package)[0] == 0


def test_no_file_is_written_where_python_writes_none(package: Path) -> None:
    assert run(package, "-B") == (0, "CAP_CHOWN")
    assert not cache(package).exists()


def test_the_package_moved(package: Path, tmp_path: Path) -> None:
    """The file holds no absolute paths: environments are copied, and reached through links."""
    run(package)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    package.rename(moved / "nagaya")
    assert run(moved / "nagaya")[0] > 15
