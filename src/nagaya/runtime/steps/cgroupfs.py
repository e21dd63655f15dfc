"""The cgroup mount of a container: the v2 file system, or v1's hierarchies below a tmpfs.

In a cgroup namespace each is mounted anew, and shows only what is below the container's own group;
without one, the container's own group of every hierarchy of v1 is bound in, and v2 shows the host's
(runc does the same).
"""

from __future__ import annotations

import errno

from nagaya.errors import KernelError
from nagaya.linux import cgroup, os, paths
from nagaya.linux import mounts as m
from nagaya.runtime.options import attributes
from nagaya.runtime.steps import rootfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.runtime import plan
    from nagaya.runtime.steps.context import Context

_CGROUP_ROOT = "/sys/fs/cgroup"


def _v1_mounts() -> list[tuple[str, str, list[str]]]:
    """(mount point, root, controllers) of every v1 hierarchy mounted on this host."""
    found: list[tuple[str, str, list[str]]] = []
    for line in cgroup.read("/proc/self/mountinfo").split("\n"):
        left, separator, right = line.partition(" - cgroup ")
        if not separator:
            continue
        fields = left.split()
        where = fields[4]
        if not where.startswith(_CGROUP_ROOT + "/") or where in (f[0] for f in found):
            continue
        words = [
            w
            for w in right.split()[1].split(",")
            if w not in ("rw", "ro", "xattr", "clone_children", "none") and not w.startswith("release_agent=")
        ]
        found.append((where, fields[3], words))
    return found


def mount(context: Context, step: plan.CgroupMount) -> None:
    """Mount what this host has."""
    flags = step.options.flags & ~(m.MS_BIND | m.MS_REC)
    where = rootfs.target(context.rootfd, step.destination, True)
    hierarchies = _v1_mounts()
    if not hierarchies:
        _mount_v2(context, step, where, flags)
        os.close(where)
        rootfs.after(context, step)
        return
    fd = m.fsopen("tmpfs")
    m.fsconfig_string(fd, "source", "tmpfs")
    m.fsconfig_string(fd, "mode", "755")
    m.fsconfig_create(fd)
    top = m.fsmount(fd)
    os.close(fd)
    m.move_mount(top, where)
    for point, _root, words in hierarchies:
        name = point.rsplit("/", 1)[1]
        os.mkdir(name, 0o755, dir_fd=top)  # a tmpfs that nobody else has seen yet
        spot = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
        if step.own_namespace:
            m.mount("cgroup", paths.fd_path(spot), "cgroup", flags, ",".join(words))
        else:
            key = next((w for w in words if w in context.cgroup_paths), "")
            tree = m.open_tree(m.AT_FDCWD, context.cgroup_paths.get(key) or point, m.OPEN_TREE_CLONE)
            m.mount_setattr(tree, attr_set=attributes(flags, 0)[0])
            m.move_mount(tree, spot)
            os.close(tree)
        os.close(spot)
        for word in words:
            if word != name and "=" not in word:
                try:
                    os.symlink(name, word, dir_fd=top)  # cpu -> cpu,cpuacct
                except FileExistsError:
                    pass
    on, off = attributes(flags, 0)
    m.mount_setattr(top, attr_set=on, attr_clr=off)
    os.close(top)
    os.close(where)
    rootfs.after(context, step)


def _mount_v2(context: Context, step: plan.CgroupMount, where: int, flags: int) -> None:
    """Mount it anew: in a cgroup namespace of the container's own its cgroup is the root; without, the
    host's, so that the paths of /proc/PID/cgroup are found below the mount (as runc and crun). A user
    namespace may not mount another's: then the same by a bind mount."""
    try:
        m.mount("cgroup", paths.fd_path(where), "cgroup2", flags, None)
        return
    except KernelError as error:
        if error.errno not in (errno.EPERM, errno.EBUSY):
            raise
    own = context.cgroup_paths.get("") if step.own_namespace else None
    tree = m.open_tree(m.AT_FDCWD, own or _CGROUP_ROOT, m.OPEN_TREE_CLONE)
    m.mount_setattr(tree, attr_set=attributes(flags, 0)[0])
    m.move_mount(tree, where)
    os.close(tree)
