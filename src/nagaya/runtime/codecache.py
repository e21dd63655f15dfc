"""The runtime's modules in one file, beside the .pyc files and of the same worth.

The import system looks into a directory, stats, opens and reads for each of some 45 modules: 5 of
8 ms. Here one file holds the compiled code of them all (without docstrings, which nobody reads at
run time); a module that differs from its source in size or time is imported as ever, and the file
is then written anew. docs/adr/0001-launchers.md has the measurements.
"""

from __future__ import annotations

import marshal
import sys
from posix import access, close, getpid, listdir, open, read, rename, stat, unlink, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

    # path below the package, is it a package?, time and size of the source, where the code lies
    Entry = tuple[str, bool, int, int, int, int]

_O_RDONLY, _O_NEW, _O_CLOEXEC, _W_OK = 0, 0o301, 0o2000000, 2  # O_NEW: O_WRONLY | O_CREAT | O_EXCL
_ROOMS = ("errors.py", "linux", "oci", "runtime", "runtime/cgroups", "runtime/steps", "runtime/verbs")
# what lies in these rooms and the runtime does not use
_OTHERS = frozenset(
    "conntrack netlink nftables seqpacket splice defaults digest imageconfig manifest platform reference"
    " seccomp_default main codecache".split()
)
_Spec: Any = type(__spec__)


class Finder:
    """A finder and loader for sys.meta_path. `stale`: something had to be imported the long way."""

    __slots__ = ("_base", "_code", "_entries", "_file", "stale")

    def __init__(self, package: str) -> None:
        """package: the directory of the package nagaya."""
        self._base = package
        self._file = f"{package}/__pycache__/runtime.{sys.implementation.cache_tag}.cache"
        self._entries: dict[str, Entry] = {}
        self._code = memoryview(b"")
        self.stale = False
        try:
            fd = open(self._file, _O_RDONLY | _O_CLOEXEC)
            try:
                data = read(fd, stat(fd).st_size)
            finally:
                close(fd)
            begin = 8 + int.from_bytes(data[:8], "little")
            version, entries = marshal.loads(data[8:begin])
            if version == sys.version:
                self._entries, self._code = entries, memoryview(data)[begin:]
        except (OSError, ValueError, EOFError, TypeError):
            pass

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> Any:
        """The spec of a module whose source is the one that was compiled, else None."""
        entry = self._entries.get(name)
        if entry is not None:
            relative, package, time, size, begin, end = entry
            path = f"{self._base}/{relative}"
            try:
                now = stat(path)
            except OSError:
                now = None
            if now is not None and now.st_mtime_ns == time and now.st_size == size:
                spec = _Spec(name, self, origin=path, loader_state=self._code[begin:end], is_package=package)
                spec.has_location = True
                if package:
                    spec.submodule_search_locations.append(path[: -len("/__init__.py")])
                return spec
        if name.startswith("nagaya."):
            self.stale = True
        return None

    def create_module(self, _spec: object) -> None:
        """The import system makes modules as it does."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's code."""
        exec(marshal.loads(module.__spec__.loader_state), module.__dict__)  # type: ignore[union-attr]

    def renew(self) -> None:
        """Write the file anew, if we may. Nothing fails when not."""
        folder = self._file.rpartition("/")[0]
        if sys.flags.dont_write_bytecode or not access(folder, _W_OK):
            return
        entries: dict[str, Entry] = {}
        codes: list[bytes] = []
        temporary = f"{self._file}.{getpid()}"
        try:
            for room in _ROOMS:
                where = f"{self._base}/{room}"
                for path in [where] if room.endswith(".py") else [f"{where}/{n}" for n in listdir(where)]:
                    if path.endswith(".py") and path[path.rindex("/") + 1 : -3] not in _OTHERS:
                        self._compile(path, entries, codes)
            index = marshal.dumps((sys.version, entries))
            data = b"".join([len(index).to_bytes(8, "little"), index, *codes])
            fd = open(temporary, _O_NEW | _O_CLOEXEC, 0o644)
            try:
                complete = write(fd, data) == len(data)
            finally:
                close(fd)
            if complete:
                rename(temporary, self._file)
            else:
                unlink(temporary)
        except (OSError, ValueError, SyntaxError):
            pass

    def _compile(self, path: str, entries: dict[str, Entry], codes: list[bytes]) -> None:
        before = stat(path)
        fd = open(path, _O_RDONLY | _O_CLOEXEC)
        try:
            source = read(fd, before.st_size + 1)
        finally:
            close(fd)
        code = marshal.dumps(compile(source, path, "exec", dont_inherit=True, optimize=2))
        relative = path[len(self._base) + 1 :]
        name = "nagaya." + relative.removesuffix(".py").replace("/", ".")
        package = name.endswith(".__init__")
        begin = sum(map(len, codes))
        codes.append(code)
        entry = (relative, package, before.st_mtime_ns, len(source), begin, begin + len(code))
        entries[name.removesuffix(".__init__")] = entry
