"""What the standard `os` has, for who cannot wait for it: its calls are `posix`'s, which is built in.

`import os` costs 0.9 ms, a sixth of the interpreter's own start, for the abstract base classes of its
mappings (docs/adr/0001-launchers.md). The rooms of a start import this module in its place; names and
behaviour are those of `os`, and of `os.path` where there is a function of its own here.
"""

from __future__ import annotations

import posix
from posix import *  # noqa: F403  # as os.py does it
from posix import _exit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

__all__ = [
    "_exit",
    "abspath",
    "dirname",
    "execvp",
    "exists",
    "fsdecode",
    "fsencode",
    "isdir",
    "makedirs",
    "realpath",
    *(name for name in dir(posix) if name[0] != "_"),
]

_DIRECTORY = 0o040000
_KIND = 0o170000


def fsencode(text: str | bytes) -> bytes:
    """The bytes of a file name (os.fsencode): UTF-8, with undecodable bytes as they came."""
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")


def fsdecode(data: str | bytes) -> str:
    """The inverse of fsencode."""
    return data if isinstance(data, str) else data.decode("utf-8", "surrogateescape")


def exists(path: str) -> bool:
    """Is there anything? (os.path.exists)"""
    try:
        posix.stat(path)
    except (OSError, ValueError):
        return False
    return True


def isdir(path: str) -> bool:
    """Is it a directory, or a link to one? (os.path.isdir)"""
    try:
        return posix.stat(path).st_mode & _KIND == _DIRECTORY
    except (OSError, ValueError):
        return False


def dirname(path: str) -> str:
    """The path without its last component (os.path.dirname)."""
    head = path[: path.rfind("/") + 1]
    return head.rstrip("/") or head


def abspath(path: str) -> str:
    """An absolute path without ".", ".." and double slashes, links not looked at (os.path.abspath)."""
    done: list[str] = []
    for part in (path if path.startswith("/") else f"{posix.getcwd()}/{path}").split("/"):
        if part == "..":
            del done[-1:]
        elif part not in ("", "."):
            done.append(part)
    return "/" + "/".join(done)


def realpath(path: str) -> str:
    """Where an existing path leads, every link resolved: by the kernel, which os.path.realpath imitates
    with a call for each component. Raises OSError."""
    fd = posix.open(path, posix.O_PATH | posix.O_CLOEXEC)
    try:
        return posix.readlink(f"/proc/self/fd/{fd}")
    finally:
        posix.close(fd)


def execvp(name: str, argv: list[str]) -> NoReturn:
    """Execute a program of PATH (os.execvp). Raises FileNotFoundError."""
    for directory in posix.environ.get(b"PATH", b"/usr/bin:/bin").split(b":"):
        try:
            posix.execv((directory or b".") + b"/" + fsencode(name), argv)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
    raise FileNotFoundError(2, posix.strerror(2), name)


def makedirs(path: str, mode: int = 0o777, exist_ok: bool = False) -> None:
    """Make a directory, and with the usual mode those above it (os.makedirs)."""
    above = dirname(path)
    if above and not exists(above):
        makedirs(above, exist_ok=True)
    try:
        posix.mkdir(path, mode)
    except FileExistsError:
        if not exist_ok or not isdir(path):
            raise
