"""Directories of the host for a guest: bound below one directory, which its machine serves by 9p.

QEMU is nobody on the host, and still the guest's root may have any file of a volume: each directory is bound
with its owners mapped (mount_setattr(2), MOUNT_ATTR_IDMAP) to the ids that QEMU's user namespace has, so that
it has root's rights over these files and over no others.
"""

from __future__ import annotations

import errno

from nagaya.errors import FailedPrecondition, KernelError
from nagaya.linux import mounts, os
from nagaya.linux import namespaces as ns
from nagaya.vm import leavings
from nagaya.vm.confine import IDS

TAG = "share"


class Shares:
    """The directory of one machine. Later machines of the same place begin with an empty one."""

    def __init__(self, directory: str, base: int) -> None:
        """base: the first of the host's ids that are QEMU's. Raises KernelError."""
        leavings.clear(directory)
        os.makedirs(directory, 0o755, exist_ok=True)
        self.directory = directory
        self._userns = _user_namespace(base)
        # shared with QEMU's mount namespace: what is bound later is there, too (mount_namespaces(7))
        mounts.mount(directory, directory, None, mounts.MS_BIND)
        mounts.mount(None, directory, None, mounts.MS_PRIVATE)
        mounts.mount(None, directory, None, mounts.MS_SHARED)

    def add(self, name: str, source: str, *, file: bool = False) -> None:
        """Bind a directory, or a file, there. Raises FailedPrecondition where its file system cannot map
        owners, KernelError."""
        target = f"{self.directory}/{name}"
        if file:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        else:
            os.mkdir(target, 0o755)
        tree = mounts.open_tree(mounts.AT_FDCWD, source, mounts.OPEN_TREE_CLONE)
        try:
            mounts.mount_setattr(tree, attr_set=mounts.MOUNT_ATTR_IDMAP, userns_fd=self._userns)
            mounts.move_mount(tree, mounts.AT_FDCWD, target)
        except KernelError as error:
            if error.errno != errno.EINVAL:
                raise
            raise FailedPrecondition(
                f"{source} cannot be shared with a microVM: its file system has no mounts with mapped owners",
                subject=source,
            ) from None
        finally:
            os.close(tree)

    def remove(self, name: str) -> None:
        """Take it away again. May be repeated."""
        leavings.clear_one(f"{self.directory}/{name}")

    def close(self) -> None:
        """Take all of it away. May be repeated."""
        if self._userns >= 0:
            os.close(self._userns)
            self._userns = -1
        leavings.clear(self.directory)


def _user_namespace(base: int) -> int:
    """A user namespace that maps 0 and on to base and on; nobody is in it. The caller closes it."""
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    pid, pidfd = ns.clone3(ns.CLONE_NEWUSER | ns.CLONE_PIDFD)
    if not pid:
        try:
            os.close(theirs)
            os.read(ours, 1)  # until the other side is done, or gone
        finally:
            os._exit(0)
    os.close(pidfd)
    os.close(ours)
    try:
        for name in ("uid_map", "gid_map"):
            fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, f"0 {base} {IDS}".encode())
            finally:
                os.close(fd)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(theirs)
        os.waitpid(pid, 0)
