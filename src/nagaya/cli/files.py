"""Archives between the command's files, or its stdin and stdout, and the daemon."""

from __future__ import annotations

import os
from contextlib import suppress

from nagaya.cli.output import write
from nagaya.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_PIECE = 1 << 20


def read_from(path: str) -> Iterator[bytes]:
    """A file's bytes, stdin's for "" and "-". Raises InvalidArgument, now, when it cannot be read."""
    fd = 0
    if path not in ("", "-"):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if not os.path.isdir(path):
                return _pieces(fd)
            os.close(fd)
            why = "is a directory"
        except OSError as error:
            why = (error.strerror or "").lower()
        raise InvalidArgument(f"open {path}: {why}")
    return _pieces(fd)


def _pieces(fd: int) -> Iterator[bytes]:
    while piece := os.read(fd, _PIECE):
        yield piece


def write_to(path: str, pieces: Iterable[bytes], failure: str = "invalid output path") -> None:
    """Write them to a file that appears when it is whole, or to stdout for "". What is no regular file
    (a pipe, /dev/null) is written to as it is. Raises InvalidArgument, "FAILURE: PATH: why"."""
    if not path:
        for piece in pieces:
            write(piece, 1)
        return
    whole = os.path.exists(path) and not os.path.isfile(path)
    made = path if whole else f"{path}.{os.getpid()}.part"
    try:
        fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InvalidArgument(f"{failure}: {path}: {(error.strerror or '').lower()}") from None
    try:
        for piece in pieces:
            write(piece, fd)
        if not whole:
            os.rename(made, path)
    except BaseException as error:
        if not whole:
            with suppress(OSError):
                os.unlink(made)
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise InvalidArgument(f"write {path}: {(error.strerror or '').lower()}") from None
        raise
    finally:
        os.close(fd)
