"""`nagaya build`'s side of the context: what .dockerignore leaves of a directory, as a tar stream."""

from __future__ import annotations

import os
import secrets
import stat
from typing import NamedTuple

from nagaya.cli import tarball
from nagaya.cli.files import read_from
from nagaya.errors import NagayaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import tarfile
    from collections.abc import Iterator

    from nagaya.build.language.ignore import Rules

_IGNORE = ".dockerignore"
_MAX_FILE = 16 << 20  # a Dockerfile is text
_TAR_MAGIC = slice(257, 262)
_COMPRESSED = (b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")


class Context(NamedTuple):
    """dockerfile: its name among the members. members: the tar stream."""

    dockerfile: str
    members: Iterator[bytes]


def of_stdin(dockerfile: str) -> Context:
    """What was piped in: an archive, else a Dockerfile alone. Raises NagayaError."""
    if dockerfile == "-":
        raise NagayaError("invalid argument: can't use stdin for both build context and dockerfile")
    pieces = read_from("-")
    head = b""
    for piece in pieces:
        head += piece
        if len(head) >= _TAR_MAGIC.stop:
            break
    if head[_TAR_MAGIC] == b"ustar" or head.startswith(_COMPRESSED):
        return Context(dockerfile or "Dockerfile", _chain(head, pieces))
    return of_text(head + _rest(pieces, len(head)))


def of_text(text: bytes) -> Context:
    """A Dockerfile without files."""
    return Context("Dockerfile", iter((tarball.made("Dockerfile", text), tarball.END)))


def of_directory(path: str, dockerfile: str) -> Context:
    """A directory. dockerfile: "" for the one in it, "-" for stdin, else a path, which may lie outside.
    Raises NagayaError now for what is missing."""
    root = os.path.realpath(path)
    if not os.path.isdir(root):
        what = "path" if not os.path.exists(root) else "not a directory: path"
        raise NagayaError(f'unable to prepare context: {what} "{path}"' + " not found" * (what == "path"))
    if dockerfile == "-":
        return _with(root, _rest(read_from("-"), 0), "")
    found = os.path.abspath(dockerfile) if dockerfile else f"{root}/Dockerfile"
    if not dockerfile and not os.path.lexists(found) and os.path.lexists(f"{root}/dockerfile"):
        found = f"{root}/dockerfile"
    if not os.path.exists(found):
        raise NagayaError(
            "unable to prepare context: unable to evaluate symlinks in Dockerfile path:"
            f" lstat {found}: no such file or directory"
        )
    inside = os.path.relpath(
        os.path.join(os.path.realpath(os.path.dirname(found)), os.path.basename(found)), root
    )
    if inside == ".." or inside.startswith("../"):
        return _with(root, _read(found), found)
    ignore = _ignore_file(root, found)
    return Context(inside, _members(root, ignore, frozenset((inside, _IGNORE)), {}))


def _with(root: str, text: bytes, found: str) -> Context:
    """A Dockerfile that is not among the files is sent under a name of its own, which no COPY . brings in."""
    name = f".dockerfile.{secrets.token_hex(10)}"
    ignore = _ignore_file(root, found) if found else f"{root}/{_IGNORE}"
    rules = _read(ignore) if os.path.exists(ignore) else f"{_IGNORE}\n".encode()
    more = {name: text, _IGNORE: rules.rstrip(b"\n") + f"\n{name}\n".encode()}
    return Context(name, _members(root, ignore, frozenset(), more))


def _ignore_file(root: str, dockerfile: str) -> str:
    own = f"{dockerfile}{_IGNORE}"
    return own if os.path.exists(own) else f"{root}/{_IGNORE}"


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return _checked(file.read(_MAX_FILE + 1), path)
    except OSError as error:
        raise NagayaError(
            f"unable to prepare context: {path}: {os.strerror(error.errno or 0).lower()}"
        ) from None


def _rest(pieces: Iterator[bytes], have: int) -> bytes:
    found = b""
    for piece in pieces:
        found += piece
        _checked(found, "stdin", have)
    return found


def _checked(data: bytes, what: str, have: int = 0) -> bytes:
    if have + len(data) > _MAX_FILE:
        raise NagayaError(f"unable to prepare context: {what} is larger than a Dockerfile may be")
    return data


def _chain(head: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from pieces


def _members(root: str, ignore: str, kept: frozenset[str], more: dict[str, bytes]) -> Iterator[bytes]:
    """kept: names that are sent although they are excluded: the daemon reads them. more: files made here."""
    rules = None
    if os.path.exists(ignore):
        from nagaya.build.language import ignore as patterns  # `re`: not for other contexts

        rules = patterns.Rules(patterns.read(_read(ignore)))
        if os.path.basename(ignore) != _IGNORE:  # the one of that Dockerfile stands in for the common one
            more = {_IGNORE: _read(ignore), **more}
    return _walk(root, rules, kept, more)


def _walk(root: str, rules: Rules | None, kept: frozenset[str], more: dict[str, bytes]) -> Iterator[bytes]:
    """Names in order, a directory before what is in it, and only if it or something in it is sent."""
    try:
        with tarball.writer() as tar:
            waiting: list[str] = []  # excluded directories, in which something may be taken back
            stack = sorted(os.listdir(root), reverse=True)
            while stack:
                name = stack.pop()
                path = f"{root}/{name}"
                is_directory = stat.S_ISDIR(os.lstat(path).st_mode)
                out = rules is not None and name not in kept and rules.excludes(name)
                while waiting and not name.startswith(f"{waiting[-1]}/"):
                    waiting.pop()
                if is_directory and not (
                    out and rules is not None and rules.prunes(name) and not _above(name, kept)
                ):
                    stack += sorted((f"{name}/{entry}" for entry in os.listdir(path)), reverse=True)
                    if out:
                        waiting.append(name)
                if out or name in more:
                    continue
                yield from _directories(tar, root, waiting)
                waiting = []
                yield from tarball.one(tar, path, name, owned=False)
        for name, data in more.items():
            yield tarball.made(name, data)
    except OSError as error:
        raise NagayaError(
            f"unable to prepare context: {error.filename or root}: {os.strerror(error.errno or 0).lower()}"
        ) from None
    yield tarball.END


def _above(directory: str, names: frozenset[str]) -> bool:
    return any(name.startswith(f"{directory}/") for name in names)


def _directories(tar: tarfile.TarFile, root: str, names: list[str]) -> Iterator[bytes]:
    for name in names:
        yield from tarball.one(tar, f"{root}/{name}", name, owned=False)
