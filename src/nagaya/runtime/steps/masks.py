"""Steps that hide or protect paths of /proc and /sys.

A masked file is covered by a null device that we opened and verified ourselves: by a path of the
image it could be anything (CVE-2025-31133). Masked directories share one read-only tmpfs.
"""

from __future__ import annotations

import _stat as stat
import errno

from nagaya.errors import FailedPrecondition, KernelError
from nagaya.linux import mounts as m
from nagaya.linux import os, paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.runtime import plan
    from nagaya.runtime.steps.context import Context


def _open(rootfd: int, path: str) -> int:
    """The path as an O_PATH fd; -1 when there is no such thing to protect."""
    try:
        return paths.open_in_root(rootfd, path, os.O_PATH)
    except KernelError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return -1
        raise


def readonly_paths(context: Context, step: plan.ReadonlyPaths) -> None:
    """Cover each path by a read-only bind of itself."""
    for path in step.paths:
        fd = _open(context.rootfd, path)
        if fd < 0:
            continue
        tree = m.open_tree(fd, "", m.OPEN_TREE_CLONE | m.AT_RECURSIVE | m.AT_EMPTY_PATH)
        m.mount_setattr(tree, attr_set=m.MOUNT_ATTR_RDONLY, recursive=True)
        m.move_mount(tree, fd)
        os.close(tree)
        os.close(fd)


def masked_paths(context: Context, step: plan.MaskedPaths) -> None:
    """Cover each file by the null device, each directory by an empty one."""
    null = empty = -1
    for path in step.paths:
        fd = _open(context.rootfd, path)
        if fd < 0:
            continue
        if paths.is_dir(fd):
            if empty < 0:
                empty = tree = _empty_directory(step.label)
                m.move_mount(tree, fd)
            else:
                tree = m.open_tree(empty, "", m.OPEN_TREE_CLONE | m.AT_EMPTY_PATH)
                m.move_mount(tree, fd)
                os.close(tree)
        else:
            if null < 0:
                null = null_device(context.rootfd)
            tree = m.open_tree(null, "", m.OPEN_TREE_CLONE | m.AT_EMPTY_PATH)
            m.move_mount(tree, fd)
            os.close(tree)
        os.close(fd)
    for fd in (null, empty):
        if fd >= 0:
            os.close(fd)


def _empty_directory(label: str) -> int:
    fd = m.fsopen("tmpfs")
    if label:
        m.fsconfig_string(fd, "context", label)
    m.fsconfig_string(fd, "source", "tmpfs")
    m.fsconfig_string(fd, "mode", "0755")
    m.fsconfig_create(fd)
    tree = m.fsmount(fd, m.MOUNT_ATTR_RDONLY | m.MOUNT_ATTR_NOSUID | m.MOUNT_ATTR_NODEV | m.MOUNT_ATTR_NOEXEC)
    os.close(fd)
    return tree


def null_device(rootfd: int) -> int:
    """An O_PATH fd of the container's /dev/null, if that is the null device and nothing else.

    Raises FailedPrecondition: a mask that is skipped would be worse than no container.
    """
    fd = _open_no_follow(rootfd, "dev/null")
    if fd >= 0:
        info = os.fstat(fd)
        if stat.S_ISCHR(info.st_mode) and info.st_rdev == os.makedev(1, 3):
            return fd
        os.close(fd)
    raise FailedPrecondition(
        "/dev/null of the container is not the null device", subject="/dev/null", step="masked paths"
    )


def _open_no_follow(rootfd: int, path: str) -> int:
    try:
        return paths.open_in_root(rootfd, path, os.O_PATH, follow=False)
    except KernelError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return -1
        raise
