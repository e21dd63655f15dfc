"""Steps about the root file system: overlay, mounts, pivot_root.

Everything below the root is reached by `linux.paths` from the one root fd; a mount is attached to
an open fd (move_mount, or mount(2) on /proc/self/fd/N), never to a path that the image could
exchange (CVE-2019-19921, 2019-16884, 2021-30465, 2023-27561, 2024-45310, 2026-41579).
"""

from __future__ import annotations

import errno

from nagaya.errors import InvalidArgument, KernelError
from nagaya.linux import cgroup, os, paths
from nagaya.linux import mounts as m
from nagaya.linux.overlay import mount_overlay
from nagaya.runtime import channel
from nagaya.runtime.options import attributes, bind_attributes, present_flags
from nagaya.runtime.steps.procfs import joined_proc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.runtime import plan
    from nagaya.runtime.steps.context import Context

_PROPAGATIONS = m.MS_SHARED | m.MS_PRIVATE | m.MS_SLAVE | m.MS_UNBINDABLE


def propagation(_context: Context, step: plan.Propagation) -> None:
    """Change the propagation of /."""
    m.mount(None, "/", None, step.flags)


def root(context: Context, step: plan.Root) -> None:
    """Open the root: a private overlay, or a recursive bind of a directory; without a mount namespace
    the directory itself, as a mount would be the host's."""
    overlay = step.overlay
    if not step.private:
        context.rootfd = _open_root(step.path)
        return
    where = step.path if overlay is None else context.attach
    if context.tree >= 0:
        where = "/"  # the way to any other may be closed to who is nobody here
    # opened once: what the path leads to, links and all, is the root, and is what is mounted upon
    spot = _open_root(where)
    if context.tree >= 0:
        tree = context.tree
    elif overlay is not None:
        tree = mount_overlay(overlay, alone=True)
    else:
        tree = m.open_tree(spot, "", m.OPEN_TREE_CLONE | m.AT_RECURSIVE | m.AT_EMPTY_PATH)
    if step.shared:
        _make_private(os.realpath(where))
    m.move_mount(tree, spot)
    os.close(spot)
    if step.shared:
        m.mount_setattr(tree, propagation=m.MS_SLAVE if step.slave else m.MS_PRIVATE)
    context.rootfd = tree


def _open_root(path: str) -> int:
    try:
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        reason = error.errno or 0
    if reason not in (errno.ENOENT, errno.ENOTDIR):
        raise KernelError(os.strerror(reason).lower(), subject=path, step=f"root: open {path}", errno=reason)
    what = "does not exist" if reason == errno.ENOENT else "is not a directory"
    raise InvalidArgument(f"rootfs {path!r} {what}", subject="root.path", errno=reason)


def _make_private(path: str) -> None:
    """The mount that path lies on: below a shared one our root would be mounted on the host, too, and
    pivot_root(2) refuses both there."""
    best = ""
    for line in cgroup.read("/proc/self/mountinfo").split("\n"):
        fields = line.split(" ")
        if len(fields) > 6 and (path == fields[4] or path.startswith(fields[4].rstrip("/") + "/")):
            best = max(best, fields[4], key=len)
    m.mount(None, best or "/", None, m.MS_PRIVATE)


def open_source(step: plan.Mount) -> int:
    """A detached copy of the source of a bind mount. Raises KernelError naming it."""
    try:
        return m.open_tree(
            m.AT_FDCWD, step.source, m.OPEN_TREE_CLONE | (m.AT_RECURSIVE if step.recursive else 0)
        )
    except KernelError as error:
        raise KernelError(
            error.message, subject=step.source, step=f"{step.name}: bind {step.source}", errno=error.errno
        ) from None


def target(rootfd: int, destination: str, directory: bool) -> int:
    """The place to mount on, made when missing, as an open fd; where a symbolic link leads to nothing,
    that is made, inside the root (runc does so: an image may have /etc/hosts -> /run/hosts)."""
    make = paths.mkdirs_in_root if directory else paths.create_in_root
    try:
        return make(rootfd, destination)
    except KernelError as error:
        if error.errno not in (errno.ENOENT, errno.EEXIST, errno.ENOTDIR):
            raise
        return make(rootfd, paths.resolve_in_root(rootfd, destination))


def mount(context: Context, step: plan.Mount) -> None:
    """Carry out one entry of `mounts`."""
    if step.bind:
        _bind(context, step)
        return
    flags = step.options.flags & ~(m.MS_BIND | m.MS_REC)
    if step.type in ("proc", "sysfs"):
        where = _ordinary(context.rootfd, step)
    else:
        mode = _mode(context.rootfd, step) if step.type == "tmpfs" else ""
        where = target(context.rootfd, step.destination, True)
        if mode:
            step.options.data = f"{step.options.data},{mode}".lstrip(",")
    if step.type == "proc" and context.joined_pids:
        tree = joined_proc(step)
        m.move_mount(tree, where)
        os.close(tree)
    elif "tmpcopyup" in step.options.extensions and step.type == "tmpfs":
        _copy_up(where, step, flags)
    else:
        m.mount(step.source or step.type, paths.fd_path(where), step.type, flags, _data(step) or None)
    os.close(where)
    if step.label and step.type == "mqueue":
        _label(context.rootfd, step)
    after(context, step)


def _data(step: plan.Mount) -> str:
    """The options, with SELinux' label in quotes: it has commas."""
    if not step.label or step.type == "mqueue":
        return step.options.data
    return f'{step.options.data},context="{step.label}"'.lstrip(",")


def _label(rootfd: int, step: plan.Mount) -> None:
    """An mqueue takes no label as it is mounted, but its root does then."""
    top = paths.open_in_root(rootfd, step.destination, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.setxattr(top, "security.selinux", os.fsencode(step.label))
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
    finally:
        os.close(top)


def _mode(rootfd: int, step: plan.Mount) -> str:
    """A tmpfs without a mode has that of the directory it covers (as runc has it)."""
    if any(word.startswith("mode=") for word in step.options.data.split(",")):
        return ""
    try:
        fd = paths.open_in_root(rootfd, step.destination, os.O_PATH | os.O_DIRECTORY)
    except KernelError:
        return ""
    try:
        return f"mode={os.fstat(fd).st_mode & 0o7777:o}"
    finally:
        os.close(fd)


def _ordinary(rootfd: int, step: plan.Mount) -> int:
    # proc and sys at a symbolic link were CVE-2019-19921 and, again, 2023-27561
    try:
        os.close(paths.mkdirs_in_root(rootfd, step.destination))
        return paths.openat2(
            rootfd,
            step.destination.lstrip("/") or ".",
            os.O_PATH | os.O_DIRECTORY,
            0,
            paths.RESOLVE_IN_ROOT | paths.RESOLVE_NO_SYMLINKS,
        )
    except KernelError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.EEXIST):
            raise
        raise InvalidArgument(
            f'filesystem "{step.type}" must be mounted on ordinary directory', subject=step.destination
        ) from None


def _bind(context: Context, step: plan.Mount) -> None:
    tree = context.sources.pop(step.index, -1)
    if tree < 0:
        # what the host's root made unreachable for us, it has to open for us
        tree = context.fetch(channel.SOURCE, step.index) if context.asks_sources else open_source(step)
    mapping = context.idmaps.pop(step.index, -1)
    if mapping >= 0:
        from nagaya.runtime import idmap  # the parent has it loaded, which made the mapping

        idmap.apply(tree, mapping, step)
    if step.destination == "/proc" and m.filesystem_type(tree) != m.PROC_SUPER_MAGIC:
        raise InvalidArgument(
            '"/proc" cannot be mounted because it is not of type proc', subject=f"mounts[{step.index}]"
        )
    _set_flags(tree, step, locked=context.userns)
    if step.options.rec_set or step.options.rec_clear:
        m.mount_setattr(tree, attr_set=step.options.rec_set, attr_clr=step.options.rec_clear, recursive=True)
    where = target(context.rootfd, step.destination, paths.is_dir(tree))
    if paths.is_dir(where) != paths.is_dir(tree):
        raise KernelError(
            "not a directory: are you trying to mount a directory onto a file (or vice-versa)?",
            errno=errno.ENOTDIR,
        )
    m.move_mount(tree, where)
    os.close(where)
    for flags in step.options.propagation:
        m.mount_setattr(tree, propagation=flags & _PROPAGATIONS, recursive=bool(flags & m.MS_REC))
    os.close(tree)


def _set_flags(tree: int, step: plan.Mount, *, locked: bool) -> None:
    flags, clear = step.options.flags, step.options.clear
    present = present_flags(os.fstatvfs(tree).f_flag)
    try:
        on, off = bind_attributes(flags, clear, present if locked else None)
        if on or off:
            m.mount_setattr(tree, attr_set=on, attr_clr=off)
    except PermissionError:
        raise KernelError("operation not permitted", step="set flags", errno=errno.EPERM) from None
    except KernelError as error:
        if locked or error.errno != errno.EPERM:
            raise
        _set_flags(tree, step, locked=True)  # we are in a user namespace ourselves


def after(context: Context, step: plan.Mount) -> None:
    """What is set on a finished mount: propagation, recursive attributes."""
    options = step.options
    if not (options.propagation or options.rec_set or options.rec_clear):
        return
    top = paths.open_in_root(context.rootfd, step.destination, os.O_PATH)
    if options.rec_set or options.rec_clear:
        m.mount_setattr(top, attr_set=options.rec_set, attr_clr=options.rec_clear, recursive=True)
    for flags in options.propagation:
        m.mount_setattr(top, propagation=flags & _PROPAGATIONS, recursive=bool(flags & m.MS_REC))
    os.close(top)


def _copy_up(where: int, step: plan.Mount, flags: int) -> None:
    """A tmpfs that begins with what the image has at its place."""
    fd = m.fsopen("tmpfs")
    m.fsconfig_string(fd, "source", step.source or "tmpfs")
    m.fsconfig_options(fd, step.options.words())
    if step.label:
        m.fsconfig_string(fd, "context", step.label)
    m.fsconfig_create(fd)
    tree = m.fsmount(fd)
    os.close(fd)
    source = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=where)
    copy = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree)
    info = os.fstat(source)
    # its mode is an option by now; of a directory that the image lacks it is the tmpfs' own, 1777
    os.fchown(copy, info.st_uid, info.st_gid)
    copy_tree(source, copy)
    os.close(source)
    os.close(copy)
    on, off = attributes(flags, 0)
    m.mount_setattr(tree, attr_set=on, attr_clr=off)
    m.move_mount(tree, where)
    os.close(tree)


def copy_tree(source: int, copy: int) -> None:
    """Copy what is in one directory fd into another: files, directories, links, owners, modes.
    Nothing is followed; devices and sockets are left out."""
    for name in os.listdir(source):
        info = os.stat(name, dir_fd=source, follow_symlinks=False)
        kind = info.st_mode & 0o170000
        if kind == 0o120000:
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=copy)
            os.chown(name, info.st_uid, info.st_gid, dir_fd=copy, follow_symlinks=False)
            continue
        if kind == 0o040000:
            os.mkdir(name, 0o700, dir_fd=copy)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            below, new = os.open(name, flags, dir_fd=source), os.open(name, flags, dir_fd=copy)
            copy_tree(below, new)
        elif kind == 0o100000:
            below = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
            new = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=copy)
            while os.sendfile(new, below, None, 1 << 24):
                pass
        else:
            continue
        os.fchown(new, info.st_uid, info.st_gid)
        os.fchmod(new, info.st_mode & 0o7777)
        os.close(below)
        os.close(new)


def change_root(context: Context, step: plan.ChangeRoot) -> None:
    """Make the root ours, and the host's unreachable."""
    os.fchdir(context.rootfd)
    if step.how == "pivot_root":
        old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        m.pivot_root(".", ".")
        # the old root lies on top of the new one: nothing unmounted here may reach the host
        os.fchdir(old)
        m.mount(None, ".", None, m.MS_SLAVE | m.MS_REC)
        m.umount2(".", m.MNT_DETACH)
        os.close(old)
        os.chdir("/")
        return
    if step.how == "move root":
        _hide_kernel_files()
        m.mount(".", "/", None, m.MS_MOVE)
    os.chroot(".")
    os.chdir("/")


def _hide_kernel_files() -> None:
    """Without pivot_root the host's mounts stay below our root: who mounts proc or sysfs anew in a user
    namespace is stopped only by the kernel's rule that what others hide must stay hidden. So leave no
    whole proc or sysfs but the container's."""
    seen = []
    for line in cgroup.read("/proc/self/mountinfo").split("\n"):
        left, found, right = line.partition(" - ")
        if found and right.split(" ", 1)[0] in ("proc", "sysfs"):
            seen.append(left.split(" ")[4])
    own = os.getcwd()
    for point in reversed(seen):
        if point == own or point.startswith(own + "/"):
            continue
        m.mount(None, point, None, m.MS_SLAVE | m.MS_REC)
        try:
            m.umount2(point, m.MNT_DETACH)
        except KernelError as error:
            if error.errno not in (errno.EINVAL, errno.EPERM):
                raise
            m.mount("tmpfs", point, "tmpfs", 0, None)  # locked by an outer user namespace


def make_directory(context: Context, step: plan.MakeDirectory) -> None:
    """The working directory; what cannot be made shows when it is entered, as the user."""
    try:
        os.close(paths.mkdirs_in_root(context.rootfd, step.path))
    except (KernelError, OSError):
        pass


def readonly_root(context: Context, step: plan.ReadonlyRoot) -> None:
    """Only the top mount: mounts below keep their own flags."""
    fd = paths.open_in_root(context.rootfd, "dev", os.O_PATH) if step.dev else context.rootfd
    m.mount_setattr(fd, attr_set=m.MOUNT_ATTR_RDONLY)
    if step.dev:
        os.close(fd)
