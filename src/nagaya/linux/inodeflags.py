"""What file systems keep beside an inode: ioctl_iflags(2)."""

from __future__ import annotations

import errno
from _struct import pack, unpack

from nagaya.errors import KernelError
from nagaya.linux.ffi import buffer, syscall

_GETFLAGS = 0x80086601  # _IOR('f', 1, long), although what is passed is an int
_SETFLAGS = 0x40086602
_TOPDIR = 0x00020000
_NO_SUCH = {errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL}


def set_topdir(fd: int) -> bool:
    """FS_TOPDIR_FL: what lies in the directories made below this one from now on is not related, so that
    ext4 gives each of them a block group of its own. False where the file system knows no such thing.
    Raises KernelError."""
    flags = buffer(4)
    try:
        syscall("ioctl", fd, _GETFLAGS, flags)
        syscall("ioctl", fd, _SETFLAGS, pack("=I", unpack("=I", bytes(flags))[0] | _TOPDIR))
    except KernelError as error:
        if error.errno in _NO_SUCH:
            return False
        raise
    return True
