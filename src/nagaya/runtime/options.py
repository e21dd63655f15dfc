"""Mount options: the words of config.json's `mounts[].options` to flags, attributes and data.

The words are runc's (mount(8), runtime-spec config.md "Linux mount options"); what is no known
word goes to the file system as data.
"""

from __future__ import annotations

from nagaya.linux import mounts as m

# word -> (set the flag?, flag of mount(2))
FLAGS: dict[str, tuple[bool, int]] = {
    "ro": (True, m.MS_RDONLY),
    "rw": (False, m.MS_RDONLY),
    "nosuid": (True, m.MS_NOSUID),
    "suid": (False, m.MS_NOSUID),
    "nodev": (True, m.MS_NODEV),
    "dev": (False, m.MS_NODEV),
    "noexec": (True, m.MS_NOEXEC),
    "exec": (False, m.MS_NOEXEC),
    "nosymfollow": (True, m.MS_NOSYMFOLLOW),
    "symfollow": (False, m.MS_NOSYMFOLLOW),
    "sync": (True, m.MS_SYNCHRONOUS),
    "async": (False, m.MS_SYNCHRONOUS),
    "dirsync": (True, m.MS_DIRSYNC),
    "mand": (True, m.MS_MANDLOCK),
    "nomand": (False, m.MS_MANDLOCK),
    "noatime": (True, m.MS_NOATIME),
    "atime": (False, m.MS_NOATIME),
    "nodiratime": (True, m.MS_NODIRATIME),
    "diratime": (False, m.MS_NODIRATIME),
    "relatime": (True, m.MS_RELATIME),
    "norelatime": (False, m.MS_RELATIME),
    "strictatime": (True, m.MS_STRICTATIME),
    "nostrictatime": (False, m.MS_STRICTATIME),
    "lazytime": (True, m.MS_LAZYTIME),
    "nolazytime": (False, m.MS_LAZYTIME),
    "iversion": (True, m.MS_I_VERSION),
    "noiversion": (False, m.MS_I_VERSION),
    "silent": (True, m.MS_SILENT),
    "loud": (False, m.MS_SILENT),
    "remount": (True, m.MS_REMOUNT),
    "bind": (True, m.MS_BIND),
    "rbind": (True, m.MS_BIND | m.MS_REC),
    "defaults": (False, 0),
}

PROPAGATION: dict[str, int] = {
    "private": m.MS_PRIVATE,
    "rprivate": m.MS_PRIVATE | m.MS_REC,
    "shared": m.MS_SHARED,
    "rshared": m.MS_SHARED | m.MS_REC,
    "slave": m.MS_SLAVE,
    "rslave": m.MS_SLAVE | m.MS_REC,
    "unbindable": m.MS_UNBINDABLE,
    "runbindable": m.MS_UNBINDABLE | m.MS_REC,
}

# word -> (attributes to set, attributes to clear) on the whole tree: mount_setattr(2), AT_RECURSIVE
RECURSIVE: dict[str, tuple[int, int]] = {
    "rro": (m.MOUNT_ATTR_RDONLY, 0),
    "rrw": (0, m.MOUNT_ATTR_RDONLY),
    "rnosuid": (m.MOUNT_ATTR_NOSUID, 0),
    "rsuid": (0, m.MOUNT_ATTR_NOSUID),
    "rnodev": (m.MOUNT_ATTR_NODEV, 0),
    "rdev": (0, m.MOUNT_ATTR_NODEV),
    "rnoexec": (m.MOUNT_ATTR_NOEXEC, 0),
    "rexec": (0, m.MOUNT_ATTR_NOEXEC),
    "rnodiratime": (m.MOUNT_ATTR_NODIRATIME, 0),
    "rdiratime": (0, m.MOUNT_ATTR_NODIRATIME),
    "rrelatime": (0, m.MOUNT_ATTR__ATIME),
    "rnorelatime": (m.MOUNT_ATTR_STRICTATIME, m.MOUNT_ATTR__ATIME),
    "rnoatime": (m.MOUNT_ATTR_NOATIME, m.MOUNT_ATTR__ATIME),
    "ratime": (0, m.MOUNT_ATTR__ATIME),
    "rstrictatime": (m.MOUNT_ATTR_STRICTATIME, m.MOUNT_ATTR__ATIME),
    "rnostrictatime": (0, m.MOUNT_ATTR__ATIME),
    "rnosymfollow": (m.MOUNT_ATTR_NOSYMFOLLOW, 0),
    "rsymfollow": (0, m.MOUNT_ATTR_NOSYMFOLLOW),
}

# handled by us, not by the kernel
EXTENSIONS = ("tmpcopyup", "idmap", "ridmap")

_ATTRIBUTES = (
    (m.MS_RDONLY, m.MOUNT_ATTR_RDONLY),
    (m.MS_NOSUID, m.MOUNT_ATTR_NOSUID),
    (m.MS_NODEV, m.MOUNT_ATTR_NODEV),
    (m.MS_NOEXEC, m.MOUNT_ATTR_NOEXEC),
    (m.MS_NODIRATIME, m.MOUNT_ATTR_NODIRATIME),
    (m.MS_NOSYMFOLLOW, m.MOUNT_ATTR_NOSYMFOLLOW),
)


class Parsed:
    """What a list of options means."""

    __slots__ = ("clear", "data", "extensions", "flags", "propagation", "rec_clear", "rec_set")

    def __init__(self, options: list[str]) -> None:
        self.flags = 0
        self.clear = 0
        self.propagation: list[int] = []
        self.rec_set = 0
        self.rec_clear = 0
        self.extensions: list[str] = []
        data: list[str] = []
        for word in options:
            if word in FLAGS:
                on, flag = FLAGS[word]
                if on:
                    self.flags |= flag
                    self.clear &= ~flag
                else:
                    self.flags &= ~flag
                    self.clear |= flag
            elif word in PROPAGATION:
                self.propagation.append(PROPAGATION[word])
            elif word in RECURSIVE:
                on_bits, off_bits = RECURSIVE[word]
                self.rec_set = self.rec_set & ~off_bits | on_bits
                self.rec_clear = self.rec_clear & ~on_bits | off_bits
            elif word in EXTENSIONS:
                self.extensions.append(word)
            else:
                data.append(word)
        self.data = ",".join(data)

    def words(self) -> list[str]:
        """The file system's own options, one by one."""
        return self.data.split(",") if self.data else []


_ATIMES = m.MS_NOATIME | m.MS_NODIRATIME | m.MS_RELATIME | m.MS_STRICTATIME
# what a mount that came from a more privileged namespace keeps (mount_namespaces(7))
_LOCKED = m.MS_RDONLY | m.MS_NOSUID | m.MS_NODEV | m.MS_NOEXEC | _ATIMES
_ST_RELATIME = 0x1000  # the one flag of statvfs(3) that has another number as a mount flag


def present_flags(f_flag: int) -> int:
    """The flags of mount(2) that statvfs(3) tells of a mount."""
    flags = f_flag & (m.MS_RDONLY | m.MS_NOSUID | m.MS_NODEV | m.MS_NOEXEC | m.MS_NOATIME | m.MS_NODIRATIME)
    if f_flag & _ST_RELATIME:
        flags |= m.MS_RELATIME
    elif not f_flag & m.MS_NOATIME:
        flags |= m.MS_STRICTATIME
    return flags


def bind_attributes(flags: int, clear: int, locked: int | None) -> tuple[int, int]:
    """(set, clear) for mount_setattr(2) on a bind mount, as runc understands the options: without a
    single one the source's flags stay, else those that are not asked for are cleared, but for the times
    of access. locked: the source's flags where they may not be lost (a user namespace).

    Raises PermissionError when the options ask for the loss of a locked one.
    """
    if not flags & ~(m.MS_BIND | m.MS_REC | m.MS_REMOUNT) and not clear:
        return 0, 0
    plain = m.MS_RDONLY | m.MS_NOSUID | m.MS_NODEV | m.MS_NOEXEC
    asked = flags & _ATIMES
    if locked is not None and (locked & ~flags & plain or asked):
        if asked not in (0, locked & _ATIMES) or locked & clear & _LOCKED:
            raise PermissionError
        flags |= locked & _LOCKED
    on = off = 0
    for flag, attribute in _ATTRIBUTES:
        if flag == m.MS_NODIRATIME and not flags & _ATIMES:
            continue
        if flags & flag:
            on |= attribute
        else:
            off |= attribute
    if flags & _ATIMES:
        off |= m.MOUNT_ATTR__ATIME
        if flags & m.MS_STRICTATIME:
            on |= m.MOUNT_ATTR_STRICTATIME
        elif flags & m.MS_NOATIME:
            on |= m.MOUNT_ATTR_NOATIME
    return on, off


def attributes(flags: int, clear: int) -> tuple[int, int]:
    """(set, clear) for mount_setattr(2) of flags of mount(2)."""
    on = off = 0
    for flag, attribute in _ATTRIBUTES:
        if flags & flag:
            on |= attribute
        if clear & flag:
            off |= attribute
    if flags & (m.MS_NOATIME | m.MS_STRICTATIME | m.MS_RELATIME):
        # the three exclude one another: clear the field, then set one (mount_setattr(2))
        off |= m.MOUNT_ATTR__ATIME
        if flags & m.MS_NOATIME:
            on |= m.MOUNT_ATTR_NOATIME
        elif flags & m.MS_STRICTATIME:
            on |= m.MOUNT_ATTR_STRICTATIME
    return on, off
