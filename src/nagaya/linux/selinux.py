"""SELinux: is it there? Labels are written to procfs and given as options of mounts, by who does that.

Source: selinux(8), is_selinux_enabled(3).
"""

from __future__ import annotations

from nagaya.linux import os


def enabled() -> bool:
    """Does the kernel enforce, or watch, a policy? Without one that is loaded, all that runs is "kernel"."""
    if not os.exists("/sys/fs/selinux/enforce"):
        return False
    fd = os.open("/proc/self/attr/current", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096).rstrip(b"\0\n") != b"kernel"
    finally:
        os.close(fd)
