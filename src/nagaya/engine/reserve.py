"""Room on the disk that is ours when it is full.

What frees room (rm, rmi) and what must be noted (an exit) needs some itself: the ledger's write-ahead
log grows before anything shrinks. So that log gets its blocks while there are enough, and beside it
lies a file that does nothing but occupy some for the next daemon's log: SQLite deletes the log when
the last connection to it closes, and a full disk fills again at once.
"""

from __future__ import annotations

import os
from contextlib import suppress

LEAST = 2 << 20
_SIZES = (4 << 20, 3 << 20, LEAST)
_PLENTY = 8  # nothing is kept back of a disk with less than this many times as much free


def allocate(path: str, size: int, *, plenty: int = _PLENTY) -> bool:
    """Let a file that is there have blocks for so many bytes, if its disk has `plenty` times as much."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        facts = os.fstatvfs(fd)
        if facts.f_bavail * facts.f_frsize < size * plenty:
            return False
        os.posix_fallocate(fd, 0, size)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


class Reserve:
    """The file ROOT/reserve."""

    def __init__(self, root: str) -> None:
        self._path = f"{root}/reserve"

    def fill(self, *, plenty: int = _PLENTY) -> None:
        """Lay it in, if it is not there and the disk has plenty; as large as that allows."""
        with suppress(OSError):
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            if not any(allocate(self._path, size, plenty=plenty) for size in _SIZES):
                os.unlink(self._path)

    def spend(self) -> bool:
        """Give its room away. False when there is none."""
        try:
            os.unlink(self._path)
        except OSError:
            return False
        return True
