"""The launchers, as a plain `pip install` puts them into a virtual environment."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

import pytest

import nagaya

ROOT = Path(__file__).resolve().parents[2]
LAUNCHERS = sorted((ROOT / "scripts").iterdir())
ROOMS = {
    "nagaya": "cli",
    "nagayad": "daemon",
    "nagaya-supervisor": "supervisor",
    "nagaya-oci": "runtime",
    "nagaya-vm": "vm",
    "nagaya-vmm": "api.firecracker",
}

# Stands in for a room's main: tells how it was started, so that no test depends on what the room does.
PROBE = """
import sys
def main(argv, *program):
    print(repr({"argv": argv, "argv0": sys.argv[0], "flags": [sys.flags.isolated, sys.flags.no_site,
        sys.flags.ignore_environment, sys.flags.utf8_mode], "file": __file__,
        "executable": sys.executable, "site": "site" in sys.modules, "path": sys.path}))
    return 7
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as pip builds it from this tree."""
    where = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", where, ROOT],
        check=True,
        capture_output=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    (built,) = where.glob("*.whl")
    return built


def install(wheel: Path, where: Path) -> Path:
    """Install the wheel into a new virtual environment at `where`; its bin directory."""
    venv.create(where, symlinks=True, with_pip=False)
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", where, "install", "-q", "--no-deps", wheel],
        check=True,
        capture_output=True,
    )
    packages = where / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    for dependency in Path(
        sysconfig.get_path("purelib")
    ).iterdir():  # no .pth file: launchers run without site
        if not (packages / dependency.name).exists() and not dependency.name.endswith(".pth"):
            (packages / dependency.name).symlink_to(dependency)
    return where / "bin"


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(wheel, tmp_path_factory.mktemp("env"))


@pytest.fixture(scope="module")
def probed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation below a path too long for a shebang line, every room's main replaced by the probe."""
    where = tmp_path_factory.mktemp("a") / ("long-" * 30) / ("er-" * 30) / "with a space"
    where.mkdir(parents=True)
    bin_directory = install(wheel, where)
    assert len(str(bin_directory)) > 127
    (package,) = where.glob("lib/python*/site-packages/nagaya")
    for room in ROOMS.values():
        (package / room.replace(".", "/") / "main.py").write_text(PROBE)
    return bin_directory


def tell(argv: Sequence[str | Path], **options: object) -> dict[str, object]:
    done = subprocess.run(argv, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 7, done.stderr
    told = eval(done.stdout)
    assert isinstance(told, dict)
    return told


def test_the_wheel_has_all_launchers_and_they_differ_in_name_and_room_only() -> None:
    assert {p.name for p in LAUNCHERS} == set(ROOMS)
    texts = {
        p.read_text()
        .replace(f"# {p.name}:", "# NAME:")
        .replace(f"nagaya.{ROOMS[p.name]}.main", "ROOM")
        .replace(", sys.argv[0])", ")")  # nagaya-vm's name is in its messages
        for p in LAUNCHERS
        if p.name != "nagaya-oci"
    }
    # what enters containers starts from its read-only bind, and from its modules in one file
    lines = (ROOT / "scripts" / "nagaya-oci").read_text().splitlines(keepends=True)
    more = [n for n, line in enumerate(lines) if "/run/nagaya/exe" in line or "selfbind" in line]
    first = next(n for n, line in enumerate(lines) if "nagaya.runtime.codecache)" in line)
    last = next(n for n, line in enumerate(lines) if "loader[" in line)
    assert len(more) == 2 and last - first == 12
    text = "".join(line for n, line in enumerate(lines) if n not in more and not first <= n <= last)
    texts.add(text.replace("# nagaya-oci:", "# NAME:").replace("nagaya.runtime.main", "ROOM"))
    assert len(texts) == 1
    assert all(os.access(p, os.X_OK) for p in LAUNCHERS)


@pytest.mark.parametrize("name", ROOMS)
def test_it_runs_isolated_without_site_from_its_own_environment(probed: Path, name: str) -> None:
    told = tell([probed / name, "a b", "--c", ""], env={"PATH": "/usr/bin:/bin"})
    assert told["argv"] == ["a b", "--c", ""]
    assert told["argv0"] == str(probed / name)
    assert told["flags"] == [1, 1, 1, 1]
    assert told["site"] is False
    assert str(told["file"]).startswith(str(probed.parent))
    assert told["executable"] == str(probed / "python3")


@pytest.mark.parametrize("name", ROOMS)
def test_the_real_thing_runs(installed: Path, name: str) -> None:
    done = subprocess.run([installed / name, "--help"], capture_output=True, text=True, cwd="/", env={})
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower() and name in done.stdout
    done = subprocess.run([installed / name, "--version"], capture_output=True, text=True, cwd="/", env={})
    assert done.returncode == 0, done.stderr
    assert name in done.stdout and nagaya.__version__ in done.stdout


@pytest.mark.parametrize("name", ROOMS)
def test_it_imports_from_bytecode(installed: Path, name: str) -> None:
    (cache,) = installed.parent.glob(
        f"lib/python*/site-packages/nagaya/{ROOMS[name].replace('.', '/')}/__pycache__"
    )
    assert list(cache.glob("__init__.*.pyc")), "pip compiles; nothing may switch that off"


def test_it_is_found_through_links_path_and_other_directories(probed: Path, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "runc").symlink_to(probed / "nagaya-oci")
    (tmp_path / "again").symlink_to("inner/runc")  # a relative link to a link under another name
    (tmp_path / "linked-bin").symlink_to(probed)
    home = str(probed.parent)
    for argv, cwd, name in (
        ([inner / "runc"], "/", str(inner / "runc")),
        ([tmp_path / "again"], "/", str(tmp_path / "again")),
        (["./again"], str(tmp_path), "./again"),
        (["inner/runc"], str(tmp_path), "inner/runc"),
        (["./nagaya-oci"], str(probed), "./nagaya-oci"),
        (["bin/nagaya-oci"], home, "bin/nagaya-oci"),
        ([tmp_path / "linked-bin" / "nagaya-oci"], "/", str(tmp_path / "linked-bin" / "nagaya-oci")),
        (["sh", "nagaya-oci"], str(probed), "nagaya-oci"),
    ):
        told = tell(argv, cwd=cwd)
        assert told["argv0"] == name
        assert str(told["file"]).startswith(home), argv
    for directory in (str(probed), str(inner)):
        name = "nagaya-oci" if directory == str(probed) else "runc"
        found = tell(["env", f"PATH={directory}:/usr/bin:/bin", name], cwd="/")
        assert found["argv0"] == f"{directory}/{name}"


def test_a_hostile_environment_and_directory_change_nothing(probed: Path, tmp_path: Path) -> None:
    for module in ("nagaya", "os", "json", "sitecustomize"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit('hijacked')")
    told = tell(
        [probed / "nagaya-oci"],
        cwd=tmp_path,
        env={
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "PYTHONPATH": str(tmp_path),
            "PYTHONHOME": str(tmp_path),
            "PYTHONSTARTUP": str(tmp_path / "nagaya.py"),
            "PYTHONWARNINGS": "error",
            "PYTHONVERBOSE": "1",
            "PYTHONOPTIMIZE": "2",
            "PYTHONUTF8": "0",
            "LC_ALL": "C",
            "CDPATH": str(tmp_path),
            "ENV": str(tmp_path / "nagaya.py"),
        },
    )
    path = told["path"]
    assert isinstance(path, list)
    assert str(tmp_path) not in path
    assert "" not in path


def test_an_editable_like_installation_is_found_by_its_pth_file(probed: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", symlinks=True, with_pip=False)
    (source,) = probed.parent.glob("lib/python*/site-packages")
    (packages,) = (tmp_path / "env").glob("lib/python*/site-packages")
    (packages / "editable.pth").write_text(f"{source}\n")
    launcher = tmp_path / "env" / "bin" / "nagaya-oci"
    launcher.write_bytes((ROOT / "scripts" / "nagaya-oci").read_bytes())
    launcher.chmod(0o755)
    told = tell([launcher])
    assert told["site"] is True
    assert str(told["file"]).startswith(str(source))
