"""Steps about /dev: nodes, links, the console. All below the directory fd of /dev in the root, which
an image's symbolic link cannot turn to the host (CVE-2026-41579)."""

from __future__ import annotations

import _stat as stat
import errno

from nagaya.errors import FailedPrecondition, InvalidArgument, KernelError
from nagaya.linux import mounts as m
from nagaya.linux import os, paths, tty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.runtime import plan
    from nagaya.runtime.steps.context import Context

_KINDS = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}
_LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
)


def devices(context: Context, step: plan.Devices) -> None:
    """Make the nodes, then the links that programs expect."""
    dev = paths.mkdirs_in_root(context.rootfd, "dev")
    former = os.umask(0)
    try:
        for node in step.nodes:
            _node(context, node, step.bind)
    finally:
        os.umask(former)
    try:
        os.unlink("ptmx", dir_fd=dev)
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        pass
    links = [*_LINKS, ("ptmx", "pts/ptmx")]
    if os.access("/proc/kcore", os.F_OK):
        links.append(("core", "/proc/kcore"))
    for name, points_to in links:
        try:
            os.symlink(points_to, name, dir_fd=dev)
        except FileExistsError:
            pass
    os.close(dev)


def _node(context: Context, node: dict[str, Any], bind: bool) -> None:
    path: str = node["path"]
    kind = _KINDS.get(node.get("type") or "")
    if kind is None:
        raise InvalidArgument(f"device {path}: unknown type {node.get('type')!r}", subject="linux.devices")
    parent, name = paths.split(path)
    if not name or name == "..":
        raise InvalidArgument(f"device path {path!r} names no file", subject="linux.devices")
    where = paths.mkdirs_in_root(context.rootfd, parent)
    try:
        if not bind:
            number = os.makedev(node.get("major") or 0, node.get("minor") or 0)
            mode = node.get("fileMode")
            try:
                os.mknod(name, kind | (0o666 if mode is None else mode & 0o7777), number, dir_fd=where)
            except FileExistsError:
                return
            except PermissionError:
                pass  # a user namespace above us: bind the host's node
            else:
                uid, gid = node.get("uid") or 0, node.get("gid") or 0
                if uid or gid:
                    os.chown(name, uid, gid, dir_fd=where, follow_symlinks=False)
                return
        _bind_node(where, name, path)
    except OSError as error:
        raise KernelError(
            os.strerror(error.errno or 0).lower(), subject=path, step=f"device {path}", errno=error.errno or 0
        ) from None
    finally:
        os.close(where)


def _bind_node(where: int, name: str, path: str) -> None:
    tree = m.open_tree(m.AT_FDCWD, path, m.OPEN_TREE_CLONE)
    try:
        try:
            os.close(
                os.open(
                    name,
                    os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC,
                    0o666,
                    dir_fd=where,
                )
            )
        except FileExistsError:
            pass
        spot = paths.openat2(where, name, os.O_PATH | os.O_NOFOLLOW, 0, paths.RESOLVE_BENEATH)
        m.move_mount(tree, spot)
        os.close(spot)
    finally:
        os.close(tree)


def console(context: Context, step: plan.Console) -> None:
    """A pty of the container's devpts; its slave becomes /dev/console and stdio (CVE-2025-52565)."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) if step.host else context.rootfd
    try:
        master = tty.open_master(root)
    except KernelError as error:
        if error.errno != errno.ENOENT:
            raise
        raise FailedPrecondition(
            "a terminal needs a devpts mount at /dev/pts", subject="mounts", step=step.name
        ) from None
    finally:
        if step.host:
            os.close(root)
    slave = tty.open_peer(master)
    if step.size and any(step.size):
        tty.set_size(master, *step.size)
    context.console, context.slave = master, slave
    if not step.mount:
        return
    spot = paths.create_in_root(context.rootfd, "dev/console", 0o620)
    try:
        tree = m.open_tree(context.slave, "", m.AT_EMPTY_PATH | m.OPEN_TREE_CLONE)
        m.move_mount(tree, spot)
        os.close(tree)
    finally:
        os.close(spot)
