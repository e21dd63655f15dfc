"""What the steps share: the open root, the channel, the console."""

from __future__ import annotations

from nagaya.errors import InternalError, KernelError
from nagaya.linux import os
from nagaya.linux.mounts import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    PROC_SUPER_MAGIC,
    filesystem_type,
    fsconfig_create,
    fsmount,
    fsopen,
)
from nagaya.runtime import channel
from nagaya.runtime.trace import Trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.runtime.filter import Seccomp


class Context:
    """State of the container's first process while it prepares itself."""

    __slots__ = (
        "asks_sources",
        "attach",
        "cgroup_paths",
        "channel",
        "console",
        "fifo",
        "filter",
        "id",
        "idmaps",
        "join_fds",
        "joined_pids",
        "leave_fd",
        "may_set_groups",
        "memory_fds",
        "orphans",
        "preserve_fds",
        "procfd",
        "rootfd",
        "slave",
        "sources",
        "state",
        "stdio",
        "trace",
        "tree",
        "userns",
    )

    def __init__(self, identifier: str, end: channel.Channel) -> None:
        self.id = identifier
        self.channel = end
        self.trace = Trace()
        self.rootfd = -1  # the container's root, opened once
        self.tree = -1  # the root, where the parent has mounted it (user namespaces)
        self.attach = ""  # a directory of ours on which an overlay root may be mounted
        self.procfd = -1
        self.console = -1  # pty master, to be handed to the parent
        self.slave = -1
        self.filter: list[Any] | None = None  # the parent's message, when it came before it was waited for
        self.fifo = -1  # `start` writes a byte into it
        self.sources: dict[int, int] = {}  # bind sources that the parent opened (user namespaces)
        self.orphans = False  # what we leave is taken in by who is to have the container
        self.asks_sources = False  # the parent can, and sees more than our ids do
        self.idmaps: dict[int, int] = {}  # user namespaces for mounts, that the parent made
        self.cgroup_paths: dict[str, str] = {}
        self.joined_pids = False  # our children are in another pid namespace than we
        self.join_fds: list[int] = []  # files that move their writer into the cgroups
        self.memory_fds: list[int] = []  # the same, to be written right before the exec
        self.leave_fd = -1  # back out of the memory cgroup meanwhile
        self.userns = False
        self.may_set_groups = True
        self.state: dict[str, Any] = {}  # the OCI state, as hooks get it
        self.stdio: tuple[int, int, int] = (0, 1, 2)
        self.preserve_fds = 0

    def ask(self, kind: str, *message: Any) -> list[Any]:
        """Send a message and wait for the parent's GO; what comes with it."""
        self.channel.send(kind, *message)
        answer = self.receive()
        if answer is None or answer[0][0] != channel.GO:
            os._exit(1)  # the parent gave up, and undoes what was made
        return answer[0][1:]

    def fetch(self, kind: str, *message: Any) -> int:
        """Ask the parent for a descriptor."""
        self.channel.send(kind, *message)
        answer = self.receive()
        if answer is None or len(answer[1]) != 1:
            os._exit(1)  # the parent gave up, and says why
        return answer[1][0]

    def receive(self) -> tuple[list[Any], list[int]] | None:
        """The parent's next message; but the filter, which it sends when it has made it, is put aside."""
        answer = self.channel.receive()
        if answer is not None and answer[0][0] == channel.FILTER:
            self.filter = answer[0]
            answer = self.channel.receive()
        return answer

    def receive_filter(self) -> Seccomp:
        """The filter: now, or when the parent has made it."""
        from nagaya.runtime.filter import Seccomp  # loaded where there is one

        if self.filter is None:
            answer = self.channel.receive()
            if answer is None or answer[0][0] != channel.FILTER:
                os._exit(1)  # the parent gave up, and undoes what was made
            self.filter = answer[0]
        _, program, flags, early_clone, agent = self.filter
        return Seccomp(bytes.fromhex(program), flags, early_clone, (agent[0], agent[1]))

    def proc(self) -> int:
        """A directory fd of a procfs that nobody else can mount over (CVE-2025-52881).

        A private instance for our pid namespace; where that is refused (a user namespace below a
        masked /proc), the host's, if it is one.
        """
        if self.procfd < 0:
            self.procfd = _private_proc()
        return self.procfd

    def write_attribute(self, name: str, value: str) -> None:
        """/proc/self/attr/NAME, what a security module wants to know. Raises KernelError."""
        try:
            fd = os.open(f"self/attr/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=self.proc())
            try:
                os.write(fd, os.fsencode(value))
            finally:
                os.close(fd)
        except OSError as error:
            raise KernelError(
                os.strerror(error.errno or 0).lower(),
                subject=value,
                step=f"write {value!r} to attr/{name}",
                errno=error.errno or 0,
            ) from None


def _private_proc() -> int:
    try:
        fd = fsopen("proc")
        try:
            fsconfig_create(fd)
            return fsmount(fd, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)
        finally:
            os.close(fd)
    except KernelError:
        pass
    fd = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if filesystem_type(fd) != PROC_SUPER_MAGIC:
        raise InternalError("/proc is not a procfs", subject="/proc")
    return fd
