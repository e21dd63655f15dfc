"""The rules of the house that no linter knows (docs/design.md, "Style" and "Python's start-up")."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "nagaya"
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if not p.stem.endswith("_pb2"))  # those are generated
TREES = {path: ast.parse(path.read_text()) for path in MODULES}

# The rooms whose import time is a container's start time, and what they may import besides each other.
FAST_ROOMS = ("errors", "linux", "oci.runtime", "wire", "runtime", "supervisor")
FAST_IMPORTS = frozenset(
    "__future__ posix sys _ctypes _json struct _struct select errno stat _stat time _socket fcntl _fcntl"
    " _signal marshal termios gc _ast".split()
)
OS = frozenset(
    "os os.path posixpath genericpath _collections_abc stat".split()
)  # 0.9 ms: for the room that starts but once


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def modules_of(room: str) -> list[str]:
    base = PACKAGE.joinpath(*room.split("."))
    files = sorted(base.rglob("*.py")) if base.is_dir() else [base.with_suffix(".py")]
    names = [".".join(f.relative_to(ROOT / "src").with_suffix("").parts) for f in files if f.exists()]
    return [name.removesuffix(".__init__") for name in names]


@pytest.mark.parametrize("room", FAST_ROOMS)
def test_the_rooms_of_a_start_import_only_the_allow_list(room: str) -> None:
    """Really imported, in an interpreter as the launchers start it: what counts is what gets loaded."""
    code = (
        "import sys; before = set(sys.modules); sys.path.append(sys.argv[1])\n"
        "for name in sys.argv[2:]: __import__(name)\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    argv = [sys.executable, "-I", "-S", "-c", code, str(ROOT / "src"), *modules_of(room)]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = {name for name in done.stdout.split() if name.partition(".")[0] != "nagaya"}
    allowed = FAST_IMPORTS | OS if room == "supervisor" else FAST_IMPORTS
    assert loaded <= allowed, f"{room} loads {sorted(loaded - allowed)}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_says_what_it_is_and_stays_small(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 600, "is there a second room in it?"
    assert not lines or ast.get_docstring(TREES[path]), "a module begins with what it is"
    assert path.stem not in ("util", "utils", "helpers", "common", "misc")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_public_functions_and_classes_say_what_they_do(path: Path) -> None:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    silent = [
        node.name
        for node in TREES[path].body
        if isinstance(node, kinds) and not node.name.startswith("_") and not ast.get_docstring(node)
        # a struct of named fields is its own description
        if not (isinstance(node, ast.ClassDef) and all(isinstance(n, ast.AnnAssign) for n in node.body))
    ]
    assert not silent


def calls(path: Path) -> list[tuple[str, int]]:
    """Names of what is called in the module, dotted, with line numbers."""
    nodes = [node for node in ast.walk(TREES[path]) if isinstance(node, ast.Call)]
    return [(ast.unparse(node.func), node.lineno) for node in nodes]


def is_edge(path: Path) -> bool:
    """The files that speak to a terminal: the command lines."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] == "cli" or "verbs" in parts or parts[-1] == "main.py"


@pytest.mark.parametrize("path", [p for p in MODULES if not is_edge(p)], ids=name_of)
def test_only_command_lines_print_and_exit(path: Path) -> None:
    found = [f"{name} in line {line}" for name, line in calls(path) if name in ("print", "sys.exit", "exit")]
    assert not found


@pytest.mark.parametrize("path", [p for p in MODULES if p.parent.name != "linux"], ids=name_of)
def test_system_calls_have_one_seam(path: Path) -> None:
    """Numbers and raw calls live in linux/, where a recorder can stand in for the kernel."""
    found = [line for name, line in calls(path) if name in ("ffi.syscall", "syscall")]
    assert not found
    if "ctypes" in path.read_text():
        imported = [n for n in ast.walk(TREES[path]) if isinstance(n, ast.Import | ast.ImportFrom)]
        assert not [n.lineno for n in imported if "ctypes" in ast.unparse(n)]


INSIDE = [PACKAGE / "runtime" / "init.py", *sorted((PACKAGE / "runtime" / "steps").glob("*.py"))]


@pytest.mark.parametrize("path", INSIDE, ids=name_of)
def test_nothing_is_imported_once_the_root_is_the_image_s(path: Path) -> None:
    """CVE-2019-14271's way: whatever these functions import would be looked for in the image."""
    loaded_before = {
        "nagaya.linux.tty",
        "nagaya.runtime.filter.Seccomp",
        "nagaya.runtime.hooks",
        "nagaya.linux.netmove",
        "nagaya.runtime.idmap",
        "nagaya.runtime.steps.scheduling",
    }
    imports = (ast.Import, ast.ImportFrom)
    functions = [n for n in ast.walk(TREES[path]) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    late = {node for function in functions for node in ast.walk(function) if isinstance(node, imports)}
    for node in late:
        names = [a.name for a in node.names]
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name}" for name in names]
        assert set(names) <= loaded_before, f"line {node.lineno}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_is_left_unfinished(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b|raise NotImplementedError|# type: ignore$", text, re.M)
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Assert):
            raise AssertionError(f"line {node.lineno}: an assert is no control flow: python -O drops it")
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            raise AssertionError(
                f"line {node.lineno}: a bare except catches SystemExit and KeyboardInterrupt"
            )


def test_test_files_have_unique_names() -> None:
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert not [name for name, count in names.items() if count > 1]


def test_nothing_names_the_machine_it_was_written_on() -> None:
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True).stdout
    parent = str(ROOT.parent) + "/"
    if len(parent) < 4:  # a checkout in / or one letter below: such a string is everywhere
        return
    for name in listed.split("\0"):
        path = ROOT / name
        if name and path.is_file():
            text = path.read_bytes().decode(errors="replace")
            assert str(ROOT) + "/" not in text, name
            assert not re.search(r"https?://[^\s/]*(pypi|pythonhosted|registry\.npmjs)", text), name


def test_links_between_documents_lead_somewhere() -> None:
    for document in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text()):
            if "://" not in link:
                assert (document.parent / link).exists(), f"{name_of(document)}: {link}"
