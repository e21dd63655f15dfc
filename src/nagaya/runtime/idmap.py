"""Mounts with owners mapped (mount_setattr(2), MOUNT_ATTR_IDMAP). Imported only where there is one.

The kernel takes the mapping from a user namespace: one is made with a process that lives for just
that long, or the container's own is opened where `idmap` comes without mappings.
"""

from __future__ import annotations

import errno

from nagaya.errors import InvalidArgument, KernelError
from nagaya.linux import mounts as m
from nagaya.linux import namespaces as ns
from nagaya.linux import os
from nagaya.runtime import serving

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.runtime import plan


def open_mapping(step: plan.Mount, job: plan.Plan) -> int:
    """A user namespace with the mappings of a mount, as an open fd. Raises InvalidArgument, KernelError."""
    uids, gids = step.mappings
    if not uids and not gids:
        return namespace_of(job)
    if not uids or not gids:
        raise InvalidArgument(
            f"mounts[{step.index}]: id-mapped mounts must have both uid and gid mappings specified",
            subject=f"mounts[{step.index}]",
        )
    return namespace_with(uids, gids)


def namespace_of(job: plan.Plan) -> int:
    """The container's own user namespace where it joins one, else one with the same mappings, as an open
    fd. Raises KernelError."""
    path = job.namespaces.get("user") or ""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC) if path else namespace_with(*job.mappings)


def root_in(mapping: list[Any]) -> int:
    """The host's id of a mapping's 0. Raises InvalidArgument."""
    for entry in mapping:
        if not entry.get("containerID"):
            return int(entry["hostID"])
    raise InvalidArgument("id 0 of the container is not mapped", subject="linux.uidMappings")


def namespace_with(uids: list[Any], gids: list[Any]) -> int:
    """A new user namespace with these mappings, as an open fd. Raises KernelError."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid, pidfd = ns.clone3(ns.CLONE_NEWUSER | ns.CLONE_PIDFD)
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)  # its end of file: the namespace is open elsewhere
        os._exit(0)
    os.close(reader)
    os.close(pidfd)
    try:
        serving.map_ids(pid, uids, gids)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writer)
        os.waitpid(pid, 0)


def apply(tree: int, userns: int, step: plan.Mount) -> None:
    """Map the owners in a detached mount, or in all of its tree (`ridmap`). Raises KernelError."""
    try:
        m.mount_setattr(
            tree, attr_set=m.MOUNT_ATTR_IDMAP, userns_fd=userns, recursive="ridmap" in step.options.extensions
        )
    except KernelError as error:
        text = error.message
        if error.errno == errno.EINVAL:
            text = "its file system cannot have owners mapped (MOUNT_ATTR_IDMAP)"
        raise KernelError(text, subject=step.source, step=f"idmap {step.source}", errno=error.errno) from None
