"""Writes the file of compiled modules that `codecache` reads, and describes."""

from __future__ import annotations

import _ast
import marshal
from posix import O_CLOEXEC, close, getpid, listdir, open, read, rename, stat, unlink, urandom
from posix import write as posix_write

from nagaya.runtime.codecache import STAMP, VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    # name, path below the package, is it a package?, time and size of the source
    Name = tuple[str, str, bool, int, int]
    Source = tuple[Name, bytes, list[str]]  # its code, and what it imports

_ONLY_AST = 0x400  # compile's flag ast.PyCF_ONLY_AST
_O_NEW = 0o301  # O_WRONLY | O_CREAT | O_EXCL
_ROOMS = "__init__.py errors.py linux oci runtime runtime/cgroups runtime/steps runtime/verbs".split()
# what lies in these rooms and the runtime does not use
_OTHERS = frozenset(
    "conntrack netlink nftables seqpacket splice defaults digest imageconfig manifest platform reference"
    " seccomp_default main codecache codefile".split()
)
_COMMAND = "nagaya.runtime.command"
_CONTAINER = "nagaya.runtime.container"
# modules that bring all they import with them, besides the verbs; and what is there before
_INIT = "nagaya.runtime.init"
_GROUPS = {
    _INIT: _CONTAINER,
    "nagaya.runtime.steps.making": _INIT,
    "nagaya.runtime.steps.joining": _INIT,
    "nagaya.runtime.serving": _CONTAINER,
    "nagaya.runtime.lifecycle": _CONTAINER,
    "nagaya.runtime.cgroups.v1": _COMMAND,
    "nagaya.runtime.cgroups.v2": _COMMAND,
    "nagaya.linux.seccomp": _CONTAINER,
}


def write(package: str, file: str) -> None:
    """Write it, whole or not at all; nothing fails when that cannot be. package: the directory of nagaya."""
    temporary = f"{file}.{getpid()}"
    try:
        data = compiled(package)
        fd = open(temporary, _O_NEW | O_CLOEXEC, 0o644)
        try:
            complete = posix_write(fd, data) == len(data)
        finally:
            close(fd)
        if complete:
            rename(temporary, file)
        else:
            unlink(temporary)
    except (OSError, ValueError, SyntaxError):
        pass


def compiled(package: str) -> bytes:
    """What the file should hold."""
    sources: dict[str, Source] = {}
    for room in _ROOMS:
        where = f"{package}/{room}"
        for path in [where] if room.endswith(".py") else [f"{where}/{n}" for n in sorted(listdir(where))]:
            if path.endswith(".py") and path[path.rindex("/") + 1 : -3] not in _OTHERS:
                _compile(package, path, sources)
    imports = {name: source[2] for name, source in sources.items()}
    command = _closure(_COMMAND, imports)
    codes, at = b"", {}
    for name in [*command, *sorted(sources.keys() - {*command})]:  # those of every start, in the head
        at[name] = (len(codes), len(codes) + len(sources[name][1]))
        codes += sources[name][1]
    stamp = urandom(STAMP)
    lists, spans = b"", {}
    for name in sources:
        if name == _COMMAND or name in _GROUPS or name.startswith("nagaya.runtime.verbs."):
            there = _closure(_GROUPS.get(name, "" if name == _COMMAND else _COMMAND), imports)
            members = [member for member in _closure(name, imports) if member not in there]
        else:
            members = [name]
        listed = stamp + marshal.dumps([(*sources[member][0], *at[member]) for member in members])
        spans[name] = (len(codes) + len(lists), len(codes) + len(lists) + len(listed))
        lists += listed
    _compile(package, f"{package}/runtime/codecache.py", sources)
    (_, _, _, time, size), code, _ = sources["nagaya.runtime.codecache"]
    start = marshal.dumps((marshal.loads(code), (time, size, stamp, spans)))
    return b"".join([VERSION, len(start).to_bytes(4, "little"), start, codes, lists])


def _compile(package: str, path: str, sources: dict[str, Source]) -> None:
    before = stat(path)
    fd = open(path, O_CLOEXEC)
    try:
        source = read(fd, before.st_size + 1)
    finally:
        close(fd)
    tree: _ast.Module = compile(source, path, "exec", _ONLY_AST, dont_inherit=True)
    imported: list[str] = []
    for node in tree.body:
        if isinstance(node, _ast.ImportFrom):
            imported += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    code = marshal.dumps(compile(_bare(tree), path, "exec", dont_inherit=True, optimize=2))
    relative = path[len(package) + 1 :]
    name = "nagaya." + relative.removesuffix(".py").replace("/", ".")
    is_package = name.endswith(".__init__")
    name = name.removesuffix(".__init__")
    sources[name] = (name, relative, is_package, before.st_mtime_ns, len(source)), code, imported


def _bare(tree: Any) -> Any:
    """A tree without what nothing looks at when it runs: annotations, and imports for them alone."""
    for field in tree._fields:
        value = getattr(tree, field, None)
        if field in ("annotation", "returns"):
            setattr(tree, field, None)
        elif isinstance(value, list):
            if value and isinstance(value[0], _ast.stmt):
                value[:] = [kept for kept in map(_unannotated, value) if kept is not None]
                if field == "body" and not value:
                    value.append(_ast.Pass(lineno=1, col_offset=0, end_lineno=1, end_col_offset=0))
            for node in value:
                if isinstance(node, _ast.AST):
                    _bare(node)
        elif isinstance(value, _ast.AST):
            _bare(value)
    return tree


def _unannotated(node: Any) -> Any:
    if isinstance(node, _ast.ImportFrom) and node.module == "__future__":
        return None
    if isinstance(node, _ast.If) and isinstance(node.test, _ast.Name) and node.test.id == "TYPE_CHECKING":
        return None
    if isinstance(node, _ast.AnnAssign):
        places = {name: getattr(node, name) for name in node._attributes}
        return _ast.Assign(targets=[node.target], value=node.value, **places) if node.value else None
    return node


def _closure(name: str, imports: dict[str, list[str]]) -> list[str]:
    """A module and all that it imports, in the order in which they can be run: a package before what is in
    it, else what is imported before who imports it."""
    found: list[str] = []
    seen: set[str] = set()

    def visit(name: str) -> None:
        if name in seen or name not in imports:
            return
        seen.add(name)
        visit(name.rpartition(".")[0])
        package = any(other.startswith(name + ".") for other in imports)
        if package:
            found.append(name)
        for other in imports[name]:
            visit(other)
        if not package:
            found.append(name)

    visit(name)
    return found
