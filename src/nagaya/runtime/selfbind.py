"""The interpreter that enters containers is run from a read-only bind mount of itself.

A program of the container may open /proc/PID/exe of a process that joins it, and write to it later:
CVE-2019-5736 overwrote the host's runtime so, and here it would be the host's Python. Below a
read-only mount there is nothing to write to. Made once per boot and installation, at
/run/nagaya/exe/PATH-OF-THE-INTERPRETER; the launcher starts from it whenever it is there, so that
it costs nothing. The mirror has the environment's pyvenv.cfg and lib, too, and is one itself.
"""

from __future__ import annotations

import sys

from nagaya.errors import KernelError
from nagaya.linux import os

PLACE = "/run/nagaya/exe"


def ensure() -> None:
    """Return when this process runs from the bind of the present interpreter; else make it and start
    over from it. Without the rights to make it there are none to write to the host's file either."""
    executable = sys.executable
    if os.geteuid() != 0:
        return
    original = executable.removeprefix(PLACE)
    try:
        if original != executable and _same(executable, original):
            return
        bound = _bind(original)
    except (OSError, KernelError):
        return
    # who runs from the bind of a former interpreter is as safe, and goes on
    if bound and bound != executable:
        os.execv(bound, [bound, *sys.orig_argv[1:]])


def _same(path: str, other: str) -> bool:
    one, two = os.stat(path), os.stat(other)
    return (one.st_ino, one.st_dev) == (two.st_ino, two.st_dev)


def _bind(original: str) -> str:
    """Mount the interpreter read-only on its mirror path; "" when it has none."""
    import fcntl

    from nagaya.linux import mounts as m

    if not original.startswith("/") or ".." in original.split("/"):
        return ""
    mirror = PLACE + original
    os.makedirs(os.dirname(PLACE), 0o711, exist_ok=True)
    os.makedirs(PLACE, 0o700, exist_ok=True)
    if os.stat(PLACE).st_uid != 0:
        return ""
    os.makedirs(os.dirname(mirror), 0o700, exist_ok=True)
    lock = os.open(f"{PLACE}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.access(mirror, os.X_OK) and not _same(mirror, original):
            m.umount2(mirror, m.MNT_DETACH)  # of an interpreter that was replaced since
        if not os.access(mirror, os.X_OK):
            # not executable: where the mount is missing, in another mount namespace, it is not taken for it
            os.close(os.open(mirror, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
            _mirror_environment(os.dirname(original))
            tree = m.open_tree(m.AT_FDCWD, os.realpath(original), m.OPEN_TREE_CLONE)
            m.mount_setattr(tree, attr_set=m.MOUNT_ATTR_RDONLY | m.MOUNT_ATTR_NOSUID | m.MOUNT_ATTR_NODEV)
            m.mount_setattr(tree, propagation=m.MS_PRIVATE)
            m.move_mount(tree, m.AT_FDCWD, mirror)
            os.close(tree)
    finally:
        os.close(lock)
    return mirror


def _mirror_environment(directory: str) -> None:
    prefix = os.dirname(directory)
    for name in ("pyvenv.cfg", "lib"):
        link = f"{PLACE}{prefix}/{name}"
        if os.exists(f"{prefix}/{name}"):
            try:
                os.symlink(f"{prefix}/{name}", link)
            except FileExistsError:
                pass
