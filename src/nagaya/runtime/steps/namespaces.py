"""Steps about namespaces: join, unshare, ids, keyring, loopback, host name, sysctl."""

from __future__ import annotations

from nagaya.errors import InvalidArgument, KernelError
from nagaya.linux import namespaces as ns
from nagaya.linux import netdevice, os, process, sched
from nagaya.runtime import channel, plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.runtime.steps.context import Context


def enter(path: str, flag: int, name: str) -> None:
    """Open a namespace file and join it. Raises KernelError naming the path."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError(
            os.strerror(error.errno or 0).lower(),
            subject=path,
            step=f"{name}: open {path}",
            errno=error.errno or 0,
        ) from None
    try:
        ns.setns(fd, flag)
    except KernelError as error:
        raise KernelError(
            error.message, subject=path, step=f"{name}: setns {path}", errno=error.errno
        ) from None
    finally:
        os.close(fd)


def join(context: Context, step: plan.Join) -> None:
    """Enter the namespace of the step."""
    enter(step.path, step.flag, step.name)
    context.joined_pids |= step.flag == ns.CLONE_NEWPID


def placed(context: Context, _step: plan.Placed) -> None:
    """Wait for the id mappings and cgroups, and join these.

    We move ourselves, by files that the parent opened: on cgroup v1 that is some 10 ms cheaper than
    being moved by it (see cgroups.Manager.join).
    """
    received = context.receive()
    if received is None or received[0][0] != channel.PLACE:
        os._exit(1)  # the parent gave up, and undoes what was made
    (_, context.cgroup_paths, joins, leaves), fds = received
    for fd in fds[:joins]:
        write_join(fd)
        os.close(fd)
    sched.reset_affinity()  # the caller's CPUs are not the container's
    if leaves:
        context.leave_fd = fds[joins]
    context.memory_fds = fds[joins + leaves :]


def write_join(fd: int) -> None:
    """Move this process into the cgroup of an open `tasks` or `cgroup.procs` file."""
    try:
        os.write(fd, b"0")
    except OSError as error:
        raise KernelError(
            os.strerror(error.errno or 0).lower(), step="join cgroup", errno=error.errno or 0
        ) from None


def enter_container(context: Context, step: plan.Enter) -> None:
    """Join the cgroups, then all namespaces of a running container at once (setns(2) of a pidfd)."""
    if context.userns:
        context.may_set_groups = setgroups_allowed(f"/proc/{step.pid}/setgroups")
    if step.affinity[0]:
        sched.set_affinity(step.affinity[0])
    for fd in context.join_fds:
        write_join(fd)
    if step.affinity[1]:
        sched.set_affinity(step.affinity[1])
    else:
        sched.reset_affinity()
    ns.setns(step.pidfd, step.flags)
    if context.userns:
        mapped_root(context, step)
    context.rootfd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def setgroups_allowed(path: str) -> bool:
    """What /proc/PID/setgroups of the host's procfs says (user_namespaces(7))."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        return not os.read(fd, 16).startswith(b"deny")
    finally:
        os.close(fd)


def mapped_root(context: Context, _step: plan.Step) -> None:
    """Become root of the user namespace: files made from here on are its root's."""
    if not isinstance(_step, plan.Enter):
        context.may_set_groups = setgroups_allowed("/proc/self/setgroups")
    try:
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    except OSError as error:
        raise KernelError(
            "uid 0 and gid 0 must be mapped",
            subject="linux.uidMappings",
            step="setresuid 0",
            errno=error.errno or 0,
        ) from None
    try:
        os.setgroups([])
    except OSError:
        pass  # denied in /proc/PID/setgroups: the groups stay, as the mapping's owner wanted


def unshare(context: Context, step: plan.Unshare) -> None:
    """unshare(2). A tiny memory limit must not be charged with Python's preparations: once the
    namespace's root is set, go back out, to return right before the exec."""
    ns.unshare(step.flags)
    if step.flags & ns.CLONE_NEWCGROUP and context.leave_fd >= 0:
        write_join(context.leave_fd)


def own_time(context: Context, step: plan.OwnTime) -> None:
    """Make it, let the parent set its clocks, enter it: in a user namespace our own files in /proc are not
    ours to write, as the change of ids made us undumpable (proc_pid(5))."""
    ns.unshare(ns.CLONE_NEWTIME)
    if step.offsets:
        context.ask(channel.CLOCKS)
    fd = os.open("/proc/self/ns/time_for_children", os.O_RDONLY | os.O_CLOEXEC)
    ns.setns(fd, ns.CLONE_NEWTIME)
    os.close(fd)


def network_devices(context: Context, _step: plan.NetDevices) -> None:
    """Let the parent move them here, and set them up."""
    from nagaya.linux import netmove  # the parent has it loaded

    netmove.arrive(context.ask(channel.DEVICES)[0])


def keyring(context: Context, step: plan.Keyring) -> None:
    """Own session keyring, so that the caller's keys stay out of reach."""
    if step.label:
        context.write_attribute("keycreate", step.label)
    if not process.join_session_keyring("_ses." + context.id):
        context.trace.warn("KeyctlJoinSessionKeyring: not available here")
    if step.label:
        context.write_attribute("keycreate", "")


def loopback(_context: Context, _step: plan.Loopback) -> None:
    """ifconfig lo up (netdevice(7))."""
    netdevice.set_up("lo")


def hostname(_context: Context, step: plan.Hostname) -> None:
    """Set the host or domain name of the uts namespace."""
    (ns.setdomainname if step.domain else ns.sethostname)(step.detail)


def sysctl(context: Context, step: plan.Sysctl) -> None:
    """Write each value below /proc/sys of our own procfs."""
    proc = context.proc()
    for key, value in step.values.items():
        path = "sys/" + key.replace(".", "/") if "/" not in key else "sys/" + key
        if ".." in path.split("/"):
            raise InvalidArgument(f"sysctl {key!r} is not a name", subject="linux.sysctl")
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=proc)
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise KernelError(
                os.strerror(error.errno or 0).lower(),
                subject=f"linux.sysctl.{key}",
                step=f"sysctl {key}={value}",
                errno=error.errno or 0,
            ) from None
