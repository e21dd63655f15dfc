"""The one file of compiled modules: used where it fits the sources, else written anew."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nagaya.runtime import codecache, codefile

SOURCE = Path(__file__).resolve().parents[2] / "src" / "nagaya"
# runs a command of the runtime in a copy of the package; tells how many modules came from the file
CODE = """
import sys
sys.path.insert(0, sys.argv[1])
from nagaya.runtime import codecache, main
count = 0
original = codecache.Finder._run
def run(self, name):
    global count
    original(self, name)
    count += name in sys.modules
codecache.Finder._run = run
end = codecache._exit
def leave(code):
    print(count, "nagaya.linux.caps" in sys.modules and sys.modules["nagaya.linux.caps"].NAMES[0])
    sys.stdout.flush()
    end(code)
codecache._exit = leave
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


def launcher(package: Path) -> str:
    """The launcher that an environment with this package has; what it says of --version."""
    home = package.parent / "home"
    packages = home / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    if not home.exists():
        packages.mkdir(parents=True)
        (home / "bin").mkdir()
        (home / "bin" / "python3").symlink_to(sys.executable)
        (packages / "nagaya").symlink_to(package)
        shutil.copy2(SOURCE.parents[1] / "scripts" / "nagaya-oci", home / "bin")
    done = subprocess.run([home / "bin" / "nagaya-oci", "--version"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_launcher_runs_what_is_in_the_file_alone(package: Path) -> None:
    said = launcher(package)
    before = cache(package).stat()
    # nothing is imported in another way: what could not be would show
    for bytecode in package.rglob("*.pyc"):
        bytecode.unlink()
    assert launcher(package) == said
    assert not list(package.rglob("*.pyc"))
    assert cache(package).stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("module", ["runtime/codecache.py", "runtime/command.py", "__init__.py"])
def test_the_launcher_sees_a_changed_source(package: Path, module: str) -> None:
    launcher(package)
    source = package / module
    written = cache(package).read_bytes()
    source.write_text(source.read_text() + "\n\nimport posix\nposix.write(1, b'changed ')\n")
    assert "changed " in launcher(package)
    assert cache(package).read_bytes() != written
    assert "changed " in launcher(package)


def test_what_is_read_at_once_holds_the_index(package: Path) -> None:
    data = codefile.compiled(str(package))
    begin = len(codecache.VERSION)
    assert data.startswith(codecache.VERSION)
    assert begin + 4 + int.from_bytes(data[begin : begin + 4], "little") < codecache._HEAD


def test_a_file_written_meanwhile_is_not_mixed_up(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "nagaya.runtime.verbs.checkpoint", raising=False)
    cache(package).parent.mkdir()
    codefile.write(str(package), str(cache(package)))
    finder = codecache.Finder(str(package))
    codefile.write(str(package), str(cache(package)))
    assert not finder.stale
    finder.fetch("nagaya.runtime.command")
    assert finder.find_spec("nagaya.runtime.verbs.checkpoint") is None
    assert finder.stale and finder._pending == {}


def test_code_is_kept_without_what_nothing_looks_at(tmp_path: Path) -> None:
    source = """
from __future__ import annotations
TYPE_CHECKING = False
if TYPE_CHECKING:
    from none import such
a: such = 1
b: such
class C:
    d: such
    "said"
    def f(self, x: such = 2, *y: such, **z: such) -> such:
        "said"
        e: such = x
        return {**z, "e": e, "y": y}
"""
    names: dict[str, object] = {}
    exec(compile(codefile._bare(ast.parse(source)), "x", "exec", dont_inherit=True), names)
    assert names["a"] == 1 and "b" not in names and "__annotations__" not in names
    made = names["C"]
    assert isinstance(made, type)
    function = made.f  # type: ignore[attr-defined]
    assert function.__annotations__ == {} and function(None, 3, 4, q=5) == {"q": 5, "e": 3, "y": (4,)}
