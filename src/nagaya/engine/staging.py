"""Sources of mounts that are no plain directory of the host: a part of a volume, an image's files.

They are found by descriptor, inside the volume or image whatever links lie there (openat2(2),
RESOLVE_IN_ROOT), and attached below RUN/staged/ID for the moment in which the runtime, whichever it is,
binds them into the container. `clear` takes them away again: after the start, and after a crash.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress

from nagaya.engine import volumes
from nagaya.engine.model import MountSpec
from nagaya.engine.world import World
from nagaya.errors import InvalidArgument, KernelError
from nagaya.linux import mounts as m
from nagaya.linux import paths
from nagaya.linux.overlay import mount_overlay


def is_staged(point: MountSpec) -> bool:
    """Is its source one of ours?"""
    return point.type in ("image", "tree") or (point.type == "volume" and bool(point.subpath))


def check(world: World, point: MountSpec) -> None:
    """Is the part that the point names there? Blocking. Raises NotFound, InvalidArgument."""
    root = opened(world, point)
    try:
        if point.subpath:
            os.close(_inside(root, point))
    finally:
        os.close(root)


def source(world: World, container_id: str, index: int, point: MountSpec) -> str:
    """The host path at which the point's source is now. Blocking. Raises NotFound, InvalidArgument."""
    root = opened(world, point)
    try:
        fd = _inside(root, point) if point.subpath else os.dup(root)
        try:
            tree = m.open_tree(fd, "", m.OPEN_TREE_CLONE | m.AT_EMPTY_PATH | m.AT_RECURSIVE)
        finally:
            os.close(fd)
    finally:
        os.close(root)
    try:
        path = f"{_directory(world, container_id)}/{index}"
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        if paths.is_dir(tree):
            os.mkdir(path, 0o700)
        else:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        m.move_mount(tree, m.AT_FDCWD, path)
    finally:
        os.close(tree)
    return path


def opened(world: World, point: MountSpec) -> int:
    """The root of the volume or image, a descriptor of the caller's."""
    if point.type == "image":
        return mounted(world.images.files_of(point.source))
    if point.type == "tree":
        return os.open(point.source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    path = volumes.path_of(world.settings.root, point.source)
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def mounted(layers: Sequence[str]) -> int:
    """The files of these layers, the top one first: a read-only mount, attached nowhere."""
    # an overlay without a writable layer has at least two (overlayfs.rst)
    if len(layers) > 1:
        tree = mount_overlay({"lower": list(layers)})
    else:
        tree = m.open_tree(m.AT_FDCWD, layers[0], m.OPEN_TREE_CLONE)
    m.mount_setattr(tree, attr_set=m.MOUNT_ATTR_RDONLY | m.MOUNT_ATTR_NODEV | m.MOUNT_ATTR_NOSUID)
    return tree


def _inside(root: int, point: MountSpec) -> int:
    try:
        return paths.open_in_root(root, point.subpath, os.O_PATH)
    except KernelError as error:
        raise InvalidArgument(
            f"cannot access path {point.subpath} of {point.type} {point.source}: {error.message}",
            subject=point.subpath,
        ) from None


def clear(world: World, container_id: str) -> None:
    """Take away what is staged for a container. May be repeated."""
    directory = _directory(world, container_id)
    with suppress(FileNotFoundError):
        for name in os.listdir(directory):
            path = f"{directory}/{name}"
            with suppress(KernelError):
                m.umount2(path, m.MNT_DETACH | m.UMOUNT_NOFOLLOW)
            (os.rmdir if os.path.isdir(path) else os.unlink)(path)
        os.rmdir(directory)


def _directory(world: World, container_id: str) -> str:
    return f"{world.settings.run}/staged/{container_id}"
