"""The proc of a container that joins a pid namespace: it must show that namespace's processes.

proc shows the namespace of whoever makes it, and the process that prepares the container is in the
host's: only its last clone is in the one that was joined (docs/design.md, "A joining process can be
read"). Linux 6.18 takes the namespace as an option; before, a helper that is in it makes the mount.
"""

from __future__ import annotations

from nagaya.errors import InternalError, KernelError
from nagaya.linux import mounts as m
from nagaya.linux import os, process
from nagaya.runtime import channel
from nagaya.runtime.options import attributes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.runtime import plan


def joined_proc(step: plan.Mount) -> int:
    """A detached proc mount of the pid namespace that our children are in. Raises KernelError."""
    fd = m.fsopen("proc")
    try:
        namespace = os.open("/proc/self/ns/pid_for_children", os.O_RDONLY | os.O_CLOEXEC)
        try:
            m.fsconfig_fd(fd, "pidns", namespace)
        finally:
            os.close(namespace)
        return _finish(fd, step)
    except KernelError as error:
        if error.subject != "pidns":
            raise
        return by_helper(step)  # a kernel that does not know the option
    finally:
        os.close(fd)


def by_helper(step: plan.Mount) -> int:
    """The same, made by a child of ours, which is in that namespace. Raises KernelError."""
    ours, theirs = channel.pair()
    pid, _ = process.clone(0)
    if pid == 0:
        try:
            process.set_dumpable(False)  # what lives in there shall not read us
            fd = m.fsopen("proc")
            theirs.send(channel.GO, fds=(_finish(fd, step),))
        except KernelError as error:
            theirs.send(channel.ERROR, error.to_wire())
        finally:
            os._exit(0)
    theirs.close()
    received = ours.receive()
    ours.close()
    os.waitpid(pid, 0)
    if received is None or not received[1]:
        reason = received[0][1].get("message", "") if received else "the helper died"
        raise InternalError(f"proc of the joined pid namespace: {reason}", subject=step.destination)
    return received[1][0]


def _finish(fd: int, step: plan.Mount) -> int:
    m.fsconfig_string(fd, "source", step.source or "proc")
    m.fsconfig_options(fd, step.options.words())
    m.fsconfig_create(fd)
    return m.fsmount(fd, attributes(step.options.flags, 0)[0])
