"""The host's side of one launch after the clone: serve the first process, hand it over, or undo it."""

from __future__ import annotations

import errno
import stat
from time import monotonic_ns

from nagaya.errors import (
    FailedPrecondition,
    InternalError,
    InvalidArgument,
    KernelError,
    NagayaError,
    from_wire,
)
from nagaya.linux import namespaces as ns
from nagaya.linux import os
from nagaya.runtime import channel, plan
from nagaya.runtime.state import oci_state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from nagaya.runtime.launching import Launch

_SIGKILL = 9


def _write(path: str, text: str, step: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise KernelError(
            os.strerror(error.errno or 0).lower(), subject=path, step=step, errno=error.errno or 0
        ) from None


def _receive(launch: Launch) -> tuple[list[Any], list[int]] | None:
    """The next message; an ERROR is raised."""
    received = launch.channel.receive()
    if received is not None and received[0][0] == channel.ERROR:
        raise from_wire(received[0][1])
    return received


def tell(launch: Launch, kind: str, *message: Any, fds: Sequence[int] = ()) -> None:
    """Send a message. When the first process has ended, raises what it said last, if anything."""
    try:
        launch.channel.send(kind, *message, fds=fds)
    except InternalError:
        _receive(launch)
        raise


def receive_pid(launch: Launch) -> None:
    """The stage, or the process that dropped everything, reports whom it cloned, and exits."""
    received = _receive(launch)
    if received is None or received[0][0] != channel.PID or len(received[1]) != 1:
        raise InternalError("the first process died before it was cloned", step="clone")
    former = launch.pidfd
    launch.pid, launch.pidfd = int(received[0][1]), received[1][0]
    if former >= 0:
        os.close(former)
    if not launch.clone_parent:
        os.waitpid(launch.child, 0)
    launch.child = launch.pid


def receive_last_pid(launch: Launch) -> None:
    """As `receive_pid`, for the clone right before the exec, which loses some schedulers."""
    receive_pid(launch)
    wanted = launch.job.scheduling
    if wanted is not None:
        from nagaya.runtime.steps import scheduling

        if scheduling.outlives_no_clone(wanted):
            scheduling.schedule(wanted, launch.pid)


def prepare(launch: Launch, record: dict[str, Any], hook_table: dict[str, Any]) -> None:
    """Serve the first process until it is ready for GO."""
    while True:
        received = _receive(launch)
        if received is None:
            raise InternalError("the first process died while it prepared itself", step="init")
        (kind, *rest), fds = received
        if kind == channel.HOOKS:
            document = oci_state(record, "creating", launch.child)
            begin = monotonic_ns()
            from nagaya.runtime import hooks

            for name in ("prestart", "createRuntime"):
                hooks.run(name, hook_table.get(name) or [], document)
            launch.trace.add("host hooks", "", begin)
        elif kind == channel.READY:
            launch.trace.merge(rest[0])
            launch.trace.warnings.extend(rest[1])
            if fds:
                launch.console = fds[0]
                if launch.relayed:
                    from nagaya.linux import tty

                    tty.plain_newlines(launch.console)
            if launch.job.userns:
                # capabilities of a user namespace raise no hard limit: the host's side does it
                from nagaya.runtime.steps import identity

                identity.limits(launch.job.process.get("rlimits") or [], launch.child)
            return
        elif kind == channel.CLOCKS:
            offsets: dict[str, Any] = record["config"]["linux"]["timeOffsets"]
            lines = [f"{c} {o.get('secs') or 0} {o.get('nanosecs') or 0}\n" for c, o in offsets.items()]
            _write(f"/proc/{launch.child}/timens_offsets", "".join(lines), "timens_offsets")
        elif kind == channel.SOURCE:
            _open_inside(launch, int(rest[0]))
            continue
        elif kind == channel.DEVICES:
            begin = monotonic_ns()
            tell(launch, channel.GO, _move_devices(record["config"]["linux"]["netDevices"], launch.child))
            launch.trace.add("move network devices", "", begin)
            continue
        elif kind == channel.LISTENER and launch.seccomp is not None:
            _hand_over(launch, launch.seccomp.agent, int(rest[0]))
        else:
            raise InternalError(f"unexpected message {kind!r}", step="init")
        tell(launch, channel.GO)


def _move_devices(devices: dict[str, Any], pid: int) -> list[Any]:
    """Move interfaces of our network namespace to that of pid; what it has to know of them."""
    from nagaya.linux import netlink, netmove

    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with netlink.Netlink() as route:
            return [
                netmove.move(route, name, (device or {}).get("name") or name, namespace)
                for name, device in devices.items()
            ]
    finally:
        os.close(namespace)


def map_owners(tree: int, step: plan.Mount, job: plan.Plan) -> None:
    """By us: the root of a user namespace may not, for a file system that is the host's."""
    from nagaya.runtime import idmap

    mapping = idmap.open_mapping(step, job)
    try:
        idmap.apply(tree, mapping, step)
    finally:
        os.close(mapping)


def give_pipes(stdio: tuple[int, int, int], linux: dict[str, Any]) -> None:
    """Pipes of ours become the mapped root's: whose they are, in the end, only an owner inside can say
    (steps/identity.py)."""
    from nagaya.runtime import idmap

    uids, gids = linux.get("uidMappings"), linux.get("gidMappings")
    if not uids or not gids:
        return
    owner = idmap.root_in(uids), idmap.root_in(gids)
    for number in stdio:
        try:
            info = os.fstat(number)
            if stat.S_ISFIFO(info.st_mode) and info.st_uid == os.geteuid() == 0:
                os.fchown(number, *owner)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise


def mapped_root(overlay: dict[str, Any], job: plan.Plan) -> int:
    """A detached overlay whose files have, for the container's user namespace, the owners that the layers
    say. Raises KernelError."""
    from nagaya.linux.overlay import mount_mapped
    from nagaya.runtime import idmap

    namespace = idmap.namespace_of(job)
    try:
        uid, gid = (idmap.root_in(mapping) for mapping in job.mappings)
        return mount_mapped(overlay, namespace, uid, gid)
    finally:
        os.close(namespace)


def _open_inside(launch: Launch, index: int) -> None:
    """Open the source of a mount in the first process's mount namespace, where its root's mounts are: by
    a helper, for who enters one does not come back. The helper answers the first process."""
    # here: the helper cannot import any more
    from nagaya.runtime import idmap
    from nagaya.runtime.steps.rootfs import open_source

    step = next(s for s in launch.job.steps if isinstance(s, plan.Mount) and s.index == index)
    namespace = os.open(f"/proc/{launch.child}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    mapping = idmap.open_mapping(step, launch.job) if step.idmapped else -1
    ours, theirs = channel.pair()
    pid, pidfd = ns.clone3(ns.CLONE_PIDFD)
    if pid == 0:
        try:
            ns.setns(namespace, ns.CLONE_NEWNS)
            tree = open_source(step)
            if mapping >= 0:
                idmap.apply(tree, mapping, step)
            launch.channel.send(channel.GO, fds=(tree,))
        except NagayaError as error:
            theirs.send(channel.ERROR, error.to_wire())
        finally:
            os._exit(0)
    theirs.close()
    for fd in (namespace, pidfd, mapping):
        if fd >= 0:
            os.close(fd)
    failed = ours.receive()
    ours.close()
    os.waitpid(pid, 0)
    if failed is not None:
        raise from_wire(failed[0][1])


def _hand_over(launch: Launch, agent_at: tuple[str, str], number: int) -> None:
    """Give the first process's listener, its descriptor `number`, to the seccomp agent."""
    from nagaya.runtime import agent  # few profiles have one

    begin = monotonic_ns()
    state = launch.context.state
    listener = ns.pidfd_getfd(launch.pidfd, number)
    try:
        agent.register(*agent_at, listener, launch.child, {**state, "pid": state["pid"] or launch.child})
    finally:
        os.close(listener)
    launch.trace.add("seccomp agent", agent_at[0], begin)


def serve_last_filter(launch: Launch) -> None:
    """After the last GO: a filter with a listener that is loaded only now needs its agent."""
    loaded = launch.seccomp
    if loaded is None or not loaded.agent[0]:
        return
    if not loaded.comes_last(bool(launch.job.process.get("noNewPrivileges"))):
        return
    received = _receive(launch)
    if received is None or received[0][0] != channel.LISTENER:
        raise InternalError("the first process died before its filter was loaded", step="seccomp")
    _hand_over(launch, loaded.agent, int(received[0][1]))
    tell(launch, channel.GO)


def give_filter(launch: Launch, profile: dict[str, Any] | None) -> None:
    """Send the first process linux.seccomp as a filter, compiled while it prepares itself, or before by
    `linux.seccomp.precompile`. Raises InvalidArgument."""
    if not profile:
        return
    from nagaya.linux.seccomp_load import FLAG_NEW_LISTENER
    from nagaya.runtime.filter import Seccomp

    begin = monotonic_ns()
    made = profile
    if "compiled" not in profile:
        from nagaya.linux import seccomp

        made = seccomp.precompile(profile)
    launch.trace.add("seccomp", f"{len(made['compiled']) // 16} instructions", begin)
    launch.trace.note(f"seccomp filter flags: {made['flags']}")
    agent = ("", "")
    if made["flags"] & FLAG_NEW_LISTENER:
        agent = (made.get("listenerPath") or "", made.get("listenerMetadata") or "")
        if not agent[0].startswith("/"):
            raise InvalidArgument(
                "linux.seccomp.listenerPath: must be an absolute path where an action is SCMP_ACT_NOTIFY",
                subject="linux.seccomp.listenerPath",
            )
    launch.seccomp = Seccomp(bytes.fromhex(made["compiled"]), made["flags"], made["early"], agent)
    tell(launch, channel.FILTER, made["compiled"], made["flags"], made["early"], agent)


def place(launch: Launch, paths: dict[str, str], joins: list[int], leave: int, memory: list[int]) -> None:
    """Map ids, and hand over the files by which the first process joins its cgroups (at paths).

    joins: at once; leave: back out of the memory cgroup then, -1 not to; memory: right before the exec.
    """
    if launch.job.clone & ns.CLONE_NEWUSER:
        map_ids(launch.child, *launch.job.mappings)
    leaves = [leave] if leave >= 0 else []
    tell(launch, channel.PLACE, paths, len(joins), len(leaves), fds=[*joins, *leaves, *memory])


def map_ids(pid: int, uids: list[Any], gids: list[Any]) -> None:
    """Write uid_map and gid_map (user_namespaces(7)). An unprivileged caller must give up setgroups to map
    its own id, and needs newuidmap(1) and newgidmap(1) to map more.

    Raises KernelError, FailedPrecondition."""
    ordinary = os.geteuid() != 0
    if ordinary and len(gids) <= 1:
        _write(f"/proc/{pid}/setgroups", "deny", "setgroups")
    for name, mappings, helper in (("uid_map", uids, "newuidmap"), ("gid_map", gids, "newgidmap")):
        rows = [[m.get("containerID") or 0, m.get("hostID") or 0, m.get("size") or 0] for m in mappings]
        if ordinary and len(rows) > 1:
            _map_by(helper, [str(number) for number in (pid, *(n for row in rows for n in row))])
        else:
            _write(f"/proc/{pid}/{name}", "".join("{} {} {}\n".format(*row) for row in rows), name)


def _map_by(helper: str, arguments: list[str]) -> None:
    """Run a set-user-ID program of shadow-utils, which looks into /etc/subuid or /etc/subgid."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        child = os.posix_spawnp(
            helper,
            [helper, *arguments],
            dict(os.environ),
            file_actions=[(os.POSIX_SPAWN_DUP2, writer, 2)],
            setsigmask=[],
        )
    except FileNotFoundError:
        os.close(reader)
        raise FailedPrecondition(
            f"{helper} is not installed: more than one id is mapped with it", subject="linux.uidMappings"
        ) from None
    finally:
        os.close(writer)
    said = os.read(reader, 4096).decode("utf-8", "replace").strip()
    os.close(reader)
    if os.waitpid(child, 0)[1]:
        raise FailedPrecondition(said or f"{helper} failed", subject="linux.uidMappings")


def await_exec(launch: Launch) -> None:
    """The channel closes with the exec; or tells why there was none."""
    begin = monotonic_ns()
    received = _receive(launch)
    if received is not None:
        raise InternalError(f"unexpected message {received[0][0]!r}", step="exec")
    launch.trace.add("exec", " ".join(launch.job.process.get("args") or []), begin)


def abandon(launch: Launch) -> None:
    """End what was launched, and close its descriptors: the launch has failed."""
    launch.channel.close()
    for pid in {launch.child, launch.pid}:
        if pid <= 0:
            continue
        try:
            os.kill(pid, _SIGKILL)
            if not launch.clone_parent:
                os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
    for fd in (launch.pidfd, launch.console):
        if fd >= 0:
            os.close(fd)


def write_pid_file(path: str, pid: int) -> None:
    """The pid, in a file that appears at once and whole."""
    folder, _, name = path.rpartition("/")
    temporary = f"{folder}/.{name}" if folder else f".{name}"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, str(pid).encode())
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except OSError as error:
        raise KernelError(
            os.strerror(error.errno or 0).lower(),
            subject=path,
            step=f"pid file {path}",
            errno=error.errno or 0,
        ) from None
