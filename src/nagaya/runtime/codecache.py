"""The runtime's modules in one file, beside the .pyc files and of the same worth.

The import system looks into a directory, stats, opens and reads for each of some 45 modules: 5 of
8 ms. Here one file holds the compiled code of them all (without docstrings, which nobody reads at
run time), in groups: a verb, or what each side loads after the clone, with all that it imports. A
group's modules are run one after another, in the order of their imports. A module that differs from
its source in size or time is imported as ever, and the file is then written anew.
docs/adr/0001-launchers.md has the measurements.

    sys.version NUL, length of what follows (4 bytes), (this module's code, index); codes; groups

The launcher runs this module's code from there: so not even this much is imported.
"""

from __future__ import annotations

import gc
import marshal
import sys
from posix import O_CLOEXEC, _exit, access, close, open, pread, read, stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, NoReturn

    # name, path below the package, is it a package?, time and size of the source, begin and end of its code
    Entry = tuple[str, str, bool, int, int, int, int]

_W_OK = 2
_HEAD = 1 << 14  # what is read at once: the index, and the modules of `command`
_COMMAND = "nagaya.runtime.command"
VERSION = sys.version.encode() + b"\0"
STAMP = 8  # how many bytes tell one writing from another
_Module = type(sys)
_START = len(VERSION) + 4
_Spec: Any = type(__spec__) if __spec__ else type(sys.__spec__)


def start(package: str, argv: list[str], head: bytes, index: Any) -> None:
    """Where the launcher comes in, with the file's beginning, and its index. Runs one command and exits with
    its code; returns when the file is not of the present sources. package: the directory of nagaya."""
    finder = Finder(package, head, index)
    if not finder.stale:
        run(finder, argv)


def run(finder: Finder, argv: list[str]) -> NoReturn:
    """Run one command of nagaya-oci and exit with its code. argv is without the program's name."""
    gc.disable()  # a process this short has nothing worth collecting
    sys.meta_path.insert(0, finder)
    finder.fetch(_COMMAND)
    from nagaya.runtime.command import main

    # named runc, it is to be taken for it: dockerd and podman read the name in --version
    code = main(argv, sys.argv[0].rpartition("/")[2])
    if finder.stale:
        finder.renew()
    # nothing is buffered; taking the interpreter down would cost 2 ms
    _exit(code)


def path_of(package: str) -> str:
    """The file."""
    return f"{package}/__pycache__/runtime.{sys.implementation.cache_tag}.cache"


class Finder:
    """A finder and loader for sys.meta_path. `stale`: something has to be imported the long way."""

    __slots__ = ("_base", "_fd", "_file", "_groups", "_head", "_pending", "_stamp", "_start", "stale")

    def __init__(self, package: str, head: bytes = b"", index: Any = None) -> None:
        self._base = package
        self._file = path_of(package)
        self._groups: dict[str, tuple[int, int]] = {}
        self._head = head
        self._pending: dict[str, Entry] = {}
        self._fd = -1
        self._stamp = b""
        self._start = 0
        self.stale = True
        try:
            if index is None:
                fd = open(self._file, O_CLOEXEC)
                try:
                    self._head = head = read(fd, _HEAD)
                finally:
                    close(fd)
                if not head.startswith(VERSION):
                    return
                _, index = marshal.loads(head[_START:])
            time, size, self._stamp, groups = index
            own = stat(f"{package}/runtime/codecache.py")
            if (own.st_mtime_ns, own.st_size) == (time, size):
                self._start = _START + int.from_bytes(head[_START - 4 : _START], "little")
                self._groups = groups
                self.stale = False
        except (OSError, ValueError, EOFError, TypeError):
            pass

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> Any:
        """The spec of a module that was run from the file, None for one that has to be imported."""
        if name in self._groups:
            self.fetch(name)
        elif name in self._pending:  # imported by one before it in the order, which has its package in it
            self._run(name)
        module = sys.modules.get(name)
        if module is not None:
            return _Spec(name, self, is_package=hasattr(module, "__path__"))
        if name.startswith("nagaya"):
            self.stale = True
        return None

    def create_module(self, spec: Any) -> ModuleType:
        """It is there."""
        return sys.modules[spec.name]

    def exec_module(self, _module: ModuleType) -> None:
        """It has been run."""

    def fetch(self, name: str) -> None:
        """Run the modules of a group that have not been."""
        span = self._groups.pop(name, None)
        if span is None:
            return
        former = self._fd
        try:
            self._fd = open(self._file, O_CLOEXEC)
        except OSError:
            return
        # not kept open: who passes descriptors on to a container counts them
        try:
            data = self._read(*span)
            if data[:STAMP] != self._stamp:
                return  # it was written anew meanwhile
            members: list[Entry] = marshal.loads(data[STAMP:])
            for member in members:
                if member[0] not in sys.modules:
                    self._pending[member[0]] = member
            for member in members:
                if member[0] in self._pending:
                    self._run(member[0])
        finally:
            close(self._fd)
            self._fd = former

    def _read(self, begin: int, end: int) -> bytes:
        begin += self._start
        end += self._start
        return self._head[begin:end] if end <= len(self._head) else pread(self._fd, end - begin, begin)

    def _run(self, name: str) -> None:
        _, relative, package, time, size, begin, end = self._pending.pop(name)
        path = f"{self._base}/{relative}"
        try:
            now = stat(path)
        except OSError:
            now = None
        if now is None or now.st_mtime_ns != time or now.st_size != size:
            self.stale = True
            return
        module = _Module(name)
        module.__file__ = path
        if package:
            module.__path__ = [path[: -len("/__init__.py")]]
        sys.modules[name] = module
        try:
            exec(marshal.loads(self._read(begin, end)), module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
        parent, _, child = name.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], child, module)

    def renew(self) -> None:
        """Write the file anew, if we may. Nothing fails when not."""
        if sys.flags.dont_write_bytecode or not access(self._file.rpartition("/")[0], _W_OK):
            return
        from nagaya.runtime import codefile

        codefile.write(self._base, self._file)
