"""One launch, up to the clone: from there on the host's side is `serving`, and the first process `init`.

Each side loads what it needs after the clone, on a CPU of its own. `container` decides what is launched.
"""

from __future__ import annotations

import errno
from time import monotonic_ns

from nagaya.errors import InternalError, KernelError, NagayaError
from nagaya.linux import namespaces as ns
from nagaya.linux import os
from nagaya.runtime import channel, plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from nagaya.runtime.filter import Seccomp
    from nagaya.runtime.steps.context import Context
    from nagaya.runtime.trace import Trace


class Launch:
    """One launch under way: what the host's side needs, and what must be undone."""

    __slots__ = (
        "channel",
        "child",
        "clone_parent",
        "console",
        "context",
        "filtered",
        "job",
        "pid",
        "pidfd",
        "relayed",
        "seccomp",
        "trace",
    )

    def __init__(self, context: Context, ours: channel.Channel, job: plan.Plan, trace: Trace) -> None:
        self.context = context
        self.channel = ours
        self.job = job
        self.trace = trace
        self.filtered = False  # will there be a seccomp filter?
        self.seccomp: Seccomp | None = None
        self.clone_parent = False
        self.child = -1  # the process we cloned, which is not the container's where it is a stage
        self.pid = -1
        self.pidfd = -1
        self.console = -1
        self.relayed = False


def spawn(launch: Launch, start_hooks: list[dict[str, Any]], cgroup: int = -1) -> bool:
    """Clone the first process, or the stage before it; cgroup: into that one of cgroup2 (an open
    directory), if the kernel lets us. Only the parent returns: whether it was born there."""
    job, context = launch.job, launch.context
    parent = ns.CLONE_PARENT if launch.clone_parent else 0
    if job.userns:
        _load(launch, start_hooks)  # the files may not be theirs to read
    begin = monotonic_ns()
    flags = job.clone
    whole = ns.CLONE_PIDFD | parent | (0 if job.stage else flags)
    born = cgroup >= 0
    try:
        if not born:
            pid, pidfd = ns.clone3(whole)
        else:
            pid, pidfd = ns.clone3(whole | ns.CLONE_INTO_CGROUP, cgroup=cgroup)
    except KernelError:
        # one of another user's, a threaded one, one that divides its controllers (cgroups(7))
        if not born:
            raise
        born = False
        pid, pidfd = ns.clone3(whole)
    if pid == 0:
        _first(launch, flags, start_hooks)
    context.channel.close()
    launch.child, launch.pidfd = pid, pidfd
    if not (job.stage or job.late):
        launch.pid = pid
    launch.trace.add("clone", f"pid {pid}, flags {flags:#x}", begin)
    return born


def _load(launch: Launch, start_hooks: list[dict[str, Any]]) -> dict[type[plan.Step], Callable[..., None]]:
    """Import all that the first process may need, for it cannot once the root is the image's
    (CVE-2019-14271); what carries out its steps."""
    from nagaya.runtime import init  # noqa: F401

    steps = launch.job.steps
    if start_hooks or any(isinstance(step, plan.Hooks) for step in steps):
        from nagaya.runtime import hooks  # noqa: F401
    if launch.filtered:
        from nagaya.runtime import filter  # noqa: F401
    if launch.job.scheduling is not None:
        from nagaya.runtime.steps import scheduling  # noqa: F401
    if any(isinstance(step, plan.NetDevices) for step in steps):
        from nagaya.linux import netmove  # noqa: F401
    if all(isinstance(step, plan.Enter | plan.Keyring | plan.Identity) for step in steps):
        from nagaya.runtime.steps import joining

        return joining.PERFORM
    from nagaya.runtime.steps import making

    return making.PERFORM


def _first(launch: Launch, flags: int, start_hooks: list[dict[str, Any]]) -> NoReturn:
    """In the child: it has the host's paths still. Load, be the stage if there is one, become the first."""
    context = launch.context
    launch.channel.close()
    try:
        perform = _load(launch, start_hooks)
        if launch.job.stage:
            _stage(launch, flags)
        from nagaya.runtime import init

        init.main(context, launch.job, launch.filtered, start_hooks, perform)
    except NagayaError as error:
        context.channel.send(channel.ERROR, error.to_wire())
    except BaseException as error:
        context.channel.send(channel.ERROR, InternalError(f"{type(error).__name__}: {error}").to_wire())
    finally:
        os._exit(1)


def _stage(launch: Launch, flags: int) -> None:
    """Join namespaces that the container's own are to be owned by, clone, report, exit; returns
    only in the cloned child. Raises KernelError."""
    from nagaya.runtime.steps.namespaces import enter

    later = []
    for join in launch.job.stage_joins:
        try:
            enter(join.path, join.flag, join.name)
        except KernelError as error:
            if error.errno != errno.EPERM or join.flag == ns.CLONE_NEWUSER:
                raise
            later.append(join)  # the user namespace gives the right to enter what it owns
    for join in later:
        enter(join.path, join.flag, join.name)
    pid, pidfd = ns.clone3(flags | ns.CLONE_PARENT | ns.CLONE_PIDFD)
    if pid:
        launch.context.channel.send(channel.PID, pid, fds=(pidfd,))
        os._exit(0)
