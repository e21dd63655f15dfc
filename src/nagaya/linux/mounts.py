"""Mounts: mount(2), umount(2), pivot_root(2) and the file-descriptor interface
(open_tree, move_mount, fsopen, fsconfig, fsmount, mount_setattr; Linux >= 5.2, 5.12).

Targets and sources that belong to an image are file descriptors, never paths (docs/design.md,
"What must never happen").
"""

from __future__ import annotations

import errno
from _struct import pack

from nagaya.errors import KernelError
from nagaya.linux import os
from nagaya.linux.ffi import buffer, syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
AT_SYMLINK_NOFOLLOW = 0x100

# mount(2)
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_SYNCHRONOUS = 16
MS_REMOUNT = 32
MS_MANDLOCK = 64
MS_DIRSYNC = 128
MS_NOSYMFOLLOW = 256
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_BIND = 4096
MS_MOVE = 8192
MS_REC = 16384
MS_SILENT = 32768
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_I_VERSION = 1 << 23
MS_STRICTATIME = 1 << 24
MS_LAZYTIME = 1 << 25

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40

FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_SET_FD = 5
FSCONFIG_CMD_CREATE = 6
FSCONFIG_CMD_RECONFIGURE = 7

# mount_setattr(2), fsmount(2)
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR__ATIME = 0x70
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x100000
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

_AT_NO_AUTOMOUNT = 0x800
_STATX_ATTR_MOUNT_ROOT = 0x2000

OVERLAYFS_SUPER_MAGIC = 0x794C7630  # linux/magic.h
PROC_SUPER_MAGIC = 0x9FA0  # linux/magic.h


def _c(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def mount(source: str | None, target: str, fstype: str | None, flags: int, data: str | None = None) -> None:
    """mount(2). Raises KernelError."""
    syscall("mount", _c(source), _c(target), _c(fstype), flags, _c(data), subject=target)


def umount2(target: str, flags: int = 0) -> None:
    """umount2(2). Raises KernelError."""
    syscall("umount2", _c(target), flags, subject=target)


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2). Raises KernelError."""
    syscall("pivot_root", _c(new_root), _c(put_old), subject=new_root)


def open_tree(dirfd: int, path: str, flags: int) -> int:
    """open_tree(2): a fd of the mount at path, a detached copy with OPEN_TREE_CLONE."""
    return syscall("open_tree", dirfd, _c(path), flags | OPEN_TREE_CLOEXEC, subject=path)


def move_mount(from_fd: int, to_fd: int, to_path: str = "") -> None:
    """move_mount(2): attach the (detached) mount from_fd at to_path below to_fd, or at to_fd itself."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if to_path else MOVE_MOUNT_T_EMPTY_PATH)
    syscall("move_mount", from_fd, b"", to_fd, _c(to_path), flags, subject=to_path)


def fsopen(fstype: str) -> int:
    """fsopen(2): a configuration fd for a new superblock."""
    return syscall("fsopen", _c(fstype), FSOPEN_CLOEXEC, subject=fstype)


def fsconfig_string(fd: int, key: str, value: str) -> None:
    """fsconfig(2) with FSCONFIG_SET_STRING."""
    syscall("fsconfig", fd, FSCONFIG_SET_STRING, _c(key), _c(value), 0, subject=f"{key}={value}")


def fsconfig_fd(fd: int, key: str, value: int) -> None:
    """fsconfig(2) with FSCONFIG_SET_FD."""
    syscall("fsconfig", fd, FSCONFIG_SET_FD, _c(key), None, value, subject=key)


def fsconfig_flag(fd: int, key: str) -> None:
    """fsconfig(2) with FSCONFIG_SET_FLAG."""
    syscall("fsconfig", fd, FSCONFIG_SET_FLAG, _c(key), None, 0, subject=key)


def fsconfig_options(fd: int, words: Iterable[str]) -> None:
    """Options as mount(8) writes them: "key=value", or "key" for a flag."""
    for word in words:
        key, equals, value = word.partition("=")
        if equals:
            fsconfig_string(fd, key, value)
        else:
            fsconfig_flag(fd, key)


def fsconfig_create(fd: int) -> None:
    """fsconfig(2) with FSCONFIG_CMD_CREATE: make the superblock."""
    syscall("fsconfig", fd, FSCONFIG_CMD_CREATE, None, None, 0)


def fsmount(fd: int, attributes: int = 0) -> int:
    """fsmount(2): a fd of a detached mount of the created superblock; attributes are MOUNT_ATTR_*."""
    return syscall("fsmount", fd, FSMOUNT_CLOEXEC, attributes)


def mount_setattr(
    dirfd: int,
    path: str = "",
    *,
    attr_set: int = 0,
    attr_clr: int = 0,
    propagation: int = 0,
    userns_fd: int = 0,
    recursive: bool = False,
) -> None:
    """mount_setattr(2) on path below dirfd, or on dirfd itself when path is empty."""
    flags = (0 if path else AT_EMPTY_PATH) | (AT_RECURSIVE if recursive else 0)
    data = pack("=QQQQ", attr_set, attr_clr, propagation, userns_fd)
    syscall("mount_setattr", dirfd, _c(path), flags, data, len(data), subject=path)


def is_mount_point(path: str) -> bool:
    """Is something mounted at path, which is no link? (statx(2), STATX_ATTR_MOUNT_ROOT.)"""
    data = buffer(256)
    try:
        syscall("statx", AT_FDCWD, _c(path), AT_SYMLINK_NOFOLLOW | _AT_NO_AUTOMOUNT, 0, data, subject=path)
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return bool(int.from_bytes(bytes(data)[8:16], "little") & _STATX_ATTR_MOUNT_ROOT)


def filesystem_type(fd: int) -> int:
    """f_type of fstatfs(2): which file system an open file is on."""
    data = buffer(120)
    syscall("fstatfs", fd, data)
    return int.from_bytes(bytes(data)[:8], "little")
