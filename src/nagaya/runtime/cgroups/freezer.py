"""Is a container frozen? Every verb asks; most of them need nothing else of its cgroups."""

from __future__ import annotations

from nagaya.linux import os


def is_frozen(version: int, path: str) -> bool:
    """Are the processes of a cgroup frozen, of v1's freezer or of v2? Not while they are freezing, and not
    when it is gone."""
    # cgroup.freeze says what was asked for, cgroup.events what is
    file, said = ("freezer.state", b"FROZEN\n") if version == 1 else ("cgroup.events", b"frozen 1\n")
    try:
        fd = os.open(f"{path}/{file}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return said in os.read(fd, 4096)
        finally:
            os.close(fd)
    except OSError:
        return False
