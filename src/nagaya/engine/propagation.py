"""May a bind mount have the propagation it asks for? Only what the source's own mount propagates comes
along (mount_namespaces(7), Documentation/filesystems/sharedsubtree.rst); dockerd refuses the rest."""

from __future__ import annotations

import os

from nagaya.errors import FailedPrecondition


def check(source: str, propagation: str) -> None:
    """Raises FailedPrecondition in dockerd's words for "shared" or "slave" of a mount that is neither."""
    kind = propagation.removeprefix("r")
    if kind not in ("shared", "slave"):
        return
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        place, tags = mount_of(os.path.realpath(source), file.read())
    if "shared" in tags or (kind == "slave" and "master" in tags):
        return
    needed = "shared" if kind == "shared" else "shared or slave"
    raise FailedPrecondition(
        f"path {source} is mounted on {place} but it is not a {needed} mount", subject=source
    )


def mount_of(path: str, mountinfo: str) -> tuple[str, set[str]]:
    """(where the mount that path lies on is mounted, its propagation: "shared", "master" or neither) by
    the text of /proc/self/mountinfo (pure; proc_pid_mountinfo(5))."""
    best, tags = "", set[str]()
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        where = fields[4].replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n")
        where = where.replace("\\134", "\\")
        inside = path == where or path.startswith(where.rstrip("/") + "/")
        if inside and len(where) >= len(best):  # the last of several at one place covers the others
            best = where
            tags = {field.partition(":")[0] for field in fields[6 : fields.index("-")]}
    return best or "/", tags
