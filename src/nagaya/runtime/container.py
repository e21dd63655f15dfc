"""Containers: create, start, run, exec, kill, delete and the rest, for `nagaya-oci` and for the
supervisor's builder.

The caller is one thread. The first process is a fork (clone3) that carries out the plan (`init`);
this side does what needs the host: state directory, cgroups, id mappings, hooks, limits. Whatever
fails is undone before the error leaves.
"""

from __future__ import annotations

import errno
import os
import select
from time import monotonic_ns

from nagaya.errors import (
    FailedPrecondition,
    InternalError,
    InvalidArgument,
    KernelError,
    NagayaError,
    NotFound,
    from_wire,
)
from nagaya.linux import cgroup as cgroup_files
from nagaya.linux import namespaces as ns
from nagaya.linux import process as proc
from nagaya.oci import runtime as oci
from nagaya.runtime import cgroups, channel, init, plan
from nagaya.runtime import state as store
from nagaya.runtime.steps import hooks
from nagaya.runtime.steps.context import Context
from nagaya.runtime.steps.namespaces import enter
from nagaya.runtime.steps.rootfs import open_source
from nagaya.runtime.trace import Trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Launched", "Trace"]

SIGKILL = 9
# Below this limit the first process prepares itself outside the memory cgroup: a forked Python
# charges one to two megabytes to it
_TINY_MEMORY = 32 << 20
_KILL_SECONDS = 10.0


class Launched:
    """A process that was started: its pid, a pidfd, and its pty master or -1. The caller owns the fds."""

    __slots__ = ("console", "pid", "pidfd")

    def __init__(self, pid: int, pidfd: int, console: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.console = console


class _Launch:
    """One launch under way: what the host's side needs, and what must be undone."""

    __slots__ = (
        "channel",
        "child",
        "clone_parent",
        "console",
        "context",
        "job",
        "pid",
        "pidfd",
        "seccomp",
        "trace",
    )

    def __init__(self, context: Context, ours: channel.Channel, job: plan.Plan, trace: Trace) -> None:
        self.context = context
        self.channel = ours
        self.job = job
        self.trace = trace
        self.seccomp: init.Seccomp | None = None
        self.clone_parent = False
        self.child = -1  # the process we cloned, which is not the container's where it is a stage
        self.pid = -1
        self.pidfd = -1
        self.console = -1


def create(
    root: str,
    identifier: str,
    bundle: str,
    spec: dict[str, Any],
    *,
    trace: Trace | None = None,
    **options: Any,
) -> Launched:
    """Make a container; its first process waits in the start fifo for `start`. Options: see `run`."""
    return _make(root, identifier, bundle, spec, trace or Trace(), waits=True, **options)


def run(
    root: str,
    identifier: str,
    bundle: str,
    spec: dict[str, Any],
    *,
    trace: Trace | None = None,
    **options: Any,
) -> Launched:
    """Make a container and start it; returns when the program has been executed.

    rootfs: None, or an overlay {"type":"overlay","lower":[top..bottom],"upper","work","options"}
    that the first process mounts privately. stdio: the three fds of the program. console: (height,
    width) for a pty instead ((0, 0): process.consoleSize). clone_parent: the process becomes a
    child of our parent. cgroup_driver: "cgroupfs" or "systemd". preserve_fds: so many fds from 3 on
    stay open. pid_file, no_pivot, no_new_keyring: as runc's options.

    Raises InvalidArgument, AlreadyExists, CommandNotFound, CommandNotExecutable, KernelError, ...
    """
    return _make(root, identifier, bundle, spec, trace or Trace(), waits=False, **options)


def _make(
    root: str,
    identifier: str,
    bundle: str,
    spec: dict[str, Any],
    trace: Trace,
    *,
    waits: bool,
    rootfs: dict[str, Any] | None = None,
    stdio: tuple[int, int, int] = (0, 1, 2),
    console: tuple[int, int] | None = None,
    clone_parent: bool = False,
    cgroup_driver: str = "cgroupfs",
    preserve_fds: int = 0,
    pid_file: str = "",
    no_pivot: bool = False,
    no_new_keyring: bool = False,
) -> Launched:
    begin = monotonic_ns()
    store.check_id(identifier)
    oci.validate(spec)
    if console is not None and not any(console):
        console = plan.console_size(spec.get("process") or {})
    job = plan.plan_container(
        spec, bundle, rootfs=rootfs, console=console, no_pivot=no_pivot, no_new_keyring=no_new_keyring
    )
    linux: dict[str, Any] = spec.get("linux") or {}
    trace.add("plan", f"{len(job.steps)} steps", begin)

    begin = monotonic_ns()
    path = store.make(root, identifier)
    manager: cgroups.Manager | None = None
    launch: _Launch | None = None
    fds: list[int] = []
    try:
        record: dict[str, Any] = {
            "version": store.VERSION,
            "id": identifier,
            "bundle": bundle,
            "rootfs": _rootfs_path(spec, bundle),
            "created": store.now(),
            "pid": 0,
            "start_time": 0,
            "no_pivot": no_pivot,
            "config": spec,
        }
        store.save(path, record)
        trace.add("state directory", path, begin)

        begin = monotonic_ns()
        manager = cgroups.manager(linux.get("cgroupsPath") or "", cgroup_driver, container_id=identifier)
        manager.create()
        record["cgroup"] = manager.to_state()
        resources = linux.get("resources")
        if resources:
            manager.set(resources)
        trace.add("cgroups", " ".join(sorted(set(manager.paths.values()))), begin)

        ours, theirs = channel.pair()
        context = Context(identifier, theirs)
        context.stdio = stdio
        context.preserve_fds = preserve_fds
        context.attach = path
        context.userns = job.userns
        context.wait_placed = bool(job.clone & ns.CLONE_NEWUSER)
        context.cgroup_paths = manager.paths
        context.state = oci_state(record, "creating", 0)
        _cgroup_fds(context, manager, linux, job, fds)
        if waits:
            os.mkfifo(f"{path}/{store.FIFO}", 0o600)
            context.fifo = os.open(f"{path}/{store.FIFO}", os.O_RDWR | os.O_CLOEXEC)
            fds.append(context.fifo)
        if job.userns:
            begin = monotonic_ns()
            for step in job.steps:
                if isinstance(step, plan.Mount) and step.bind:
                    context.sources[step.index] = open_source(step)
                    fds.append(context.sources[step.index])
            trace.add("bind sources", "", begin)
        launch = _Launch(context, ours, job, trace)
        launch.clone_parent = clone_parent
        launch.seccomp = _compile(linux.get("seccomp"), trace)
        hook_table: dict[str, Any] = spec.get("hooks") or {}
        _spawn(launch, hook_table.get("startContainer") or [])
        _prepare(launch, record, hook_table)
        if not job.late:
            _settle(launch, record, path, pid_file)
        launch.channel.send(channel.GO)
        if job.late:
            _receive_pid(launch)
            _settle(launch, record, path, pid_file)
        if not waits:
            _await_exec(launch)
            _poststart(record)
    except BaseException:
        _undo(launch, manager, path)
        raise
    finally:
        for fd in fds:
            os.close(fd)
        if launch is not None:
            launch.channel.close()
    return Launched(launch.pid, launch.pidfd, launch.console)


def _settle(launch: _Launch, record: dict[str, Any], path: str, pid_file: str) -> None:
    """Record the process, before it can do anything of its own."""
    record["pid"] = launch.pid
    fields = proc.stat_fields(launch.pid)
    record["start_time"] = fields[1] if fields else 0
    store.save(path, record)
    if pid_file:
        write_pid_file(pid_file, launch.pid)


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


def _rootfs_path(spec: dict[str, Any], bundle: str) -> str:
    path: str = (spec.get("root") or {}).get("path") or "rootfs"
    return path if path.startswith("/") else f"{bundle}/{path}"


def _cgroup_fds(
    context: Context, manager: cgroups.Manager, linux: dict[str, Any], job: plan.Plan, fds: list[int]
) -> None:
    """Open the files by which the first process joins its cgroups, and when."""
    limit = ((linux.get("resources") or {}).get("memory") or {}).get("limit") or 0
    if not 0 < limit < _TINY_MEMORY:
        context.join_fds = manager.join_fds()
        fds.extend(context.join_fds)
        return
    if "cgroup" in job.namespaces:
        # the new cgroup namespace must have all of ours as its roots: join, then step out of memory's
        context.join_fds = manager.join_fds()
        context.leave_fd = _own_memory_fd()
        if context.leave_fd >= 0:
            fds.append(context.leave_fd)
    else:
        context.join_fds = manager.join_fds(memory=False)
    fds.extend(context.join_fds)
    context.memory_fds = manager.join_fds(memory=True)
    fds.extend(context.memory_fds)


def _own_memory_fd() -> int:
    """The file by which a process joins the memory cgroup we are in now (v1); -1 on v2."""
    hierarchy = cgroup_files.layout().hierarchy("memory")
    if hierarchy is None:
        return -1
    own = cgroup_files.own().get("memory", "/")
    relative = own[len(hierarchy.root) :] if hierarchy.root != "/" and own.startswith(hierarchy.root) else own
    return os.open(f"{hierarchy.mountpoint}/{relative.strip('/')}/tasks", os.O_WRONLY | os.O_CLOEXEC)


# what the last clone and what follows it needs of a filter
_AFTER_CLONE = (
    "clone",
    "sendmsg",
    "write",
    "read",
    "setsid",
    "ioctl",
    "execve",
    "exit_group",
    "close",
    "recvmsg",
)


def _compile(profile: dict[str, Any] | None, trace: Trace) -> init.Seccomp | None:
    if not profile:
        return None
    from nagaya.linux import seccomp  # its tables are needed only by those who have a profile

    begin = monotonic_ns()
    program = seccomp.compile_profile(profile)
    allowed = {
        name
        for rule in profile.get("syscalls") or []
        if rule.get("action") == "SCMP_ACT_ALLOW"
        for name in rule.get("names") or []
    }
    permissive = profile.get("defaultAction") in ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG")
    early = not permissive and not allowed.issuperset(_AFTER_CLONE)
    trace.add("seccomp", f"{len(program) // 8} instructions", begin)
    return init.Seccomp(program, seccomp.load_flags(profile), early)


def _spawn(launch: _Launch, start_hooks: list[dict[str, Any]]) -> None:
    """Clone the first process, or the stage before it. Only the parent returns."""
    job, context = launch.job, launch.context
    parent = ns.CLONE_PARENT if launch.clone_parent else 0
    begin = monotonic_ns()
    flags = job.clone
    own_time = -1
    if flags & ns.CLONE_NEWTIME:
        # offsets can be written only while the new namespace has no process (time_namespaces(7))
        flags &= ~ns.CLONE_NEWTIME
        own_time = _new_time(job.time_offsets)
    try:
        pid, pidfd = ns.clone3(ns.CLONE_PIDFD | parent | (0 if job.stage else flags))
        if pid == 0:
            launch.channel.close()
            if job.stage:
                _stage(launch, flags)
            init.main(context, job, launch.seccomp, start_hooks)
    finally:
        if own_time >= 0:
            ns.setns(own_time, ns.CLONE_NEWTIME)
            os.close(own_time)
    context.channel.close()
    launch.child, launch.pidfd = pid, pidfd
    if not (job.stage or job.late):
        launch.pid = pid
    launch.trace.add("clone", f"pid {pid}, flags {flags:#x}", begin)
    if job.stage:
        _receive_pid(launch)


def _stage(launch: _Launch, flags: int) -> None:
    """Join namespaces that the container's own are to be owned by, clone, report, exit; returns
    only in the cloned child."""
    try:
        for join in launch.job.stage_joins:
            enter(join.path, join.flag, join.name)
        pid, pidfd = ns.clone3(flags | ns.CLONE_PARENT | ns.CLONE_PIDFD)
        if pid:
            launch.context.channel.send(channel.PID, pid, fds=(pidfd,))
            os._exit(0)
    except NagayaError as error:
        launch.context.channel.send(channel.ERROR, error.to_wire())
        os._exit(1)


def _new_time(offsets: dict[str, Any]) -> int:
    own = os.open("/proc/self/ns/time", os.O_RDONLY | os.O_CLOEXEC)
    ns.unshare(ns.CLONE_NEWTIME)
    if offsets:
        lines = [f"{clock} {o.get('secs') or 0} {o.get('nanosecs') or 0}\n" for clock, o in offsets.items()]
        _write("/proc/self/timens_offsets", "".join(lines), "timens_offsets")
    return own


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


def _receive(launch: _Launch) -> tuple[list[Any], list[int]] | None:
    """The next message; an ERROR is raised."""
    received = launch.channel.receive()
    if received is not None and received[0][0] == channel.ERROR:
        raise from_wire(received[0][1])
    return received


def _receive_pid(launch: _Launch) -> None:
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


def _prepare(launch: _Launch, record: dict[str, Any], hook_table: dict[str, Any]) -> None:
    """Serve the first process until it is ready for GO."""
    while True:
        received = _receive(launch)
        if received is None:
            raise InternalError("the first process died while it prepared itself", step="init")
        (kind, *rest), fds = received
        if kind == channel.PLACED:
            _map_ids(launch.child, launch.job)
        elif kind == channel.HOOKS:
            document = oci_state(record, "creating", launch.child)
            begin = monotonic_ns()
            for name in ("prestart", "createRuntime"):
                hooks.run(name, hook_table.get(name) or [], document)
            launch.trace.add("host hooks", "", begin)
        elif kind == channel.READY:
            launch.trace.merge(rest[0])
            launch.trace.warnings.extend(rest[1])
            if fds:
                launch.console = fds[0]
            for limit in launch.job.process.get("rlimits") or []:
                number = proc.RLIMITS.get(limit["type"])
                if number is None:
                    raise InvalidArgument(f"unknown rlimit {limit['type']!r}", subject="process.rlimits")
                proc.set_rlimit(
                    number,
                    limit.get("soft") or 0,
                    limit.get("hard") or 0,
                    pid=launch.child,
                    subject=limit["type"],
                )
            return
        else:
            raise InternalError(f"unexpected message {kind!r}", step="init")
        launch.channel.send(channel.GO)


def _map_ids(pid: int, job: plan.Plan) -> None:
    """Write uid_map and gid_map (user_namespaces(7)); an unprivileged caller must give up setgroups."""
    uids, gids = job.mappings
    if os.geteuid() != 0:
        _write(f"/proc/{pid}/setgroups", "deny", "setgroups")
    for name, mappings in (("uid_map", uids), ("gid_map", gids)):
        lines = [
            f"{m.get('containerID') or 0} {m.get('hostID') or 0} {m.get('size') or 0}\n" for m in mappings
        ]
        _write(f"/proc/{pid}/{name}", "".join(lines), name)


def _await_exec(launch: _Launch) -> None:
    """The channel closes with the exec; or tells why there was none."""
    begin = monotonic_ns()
    received = _receive(launch)
    if received is not None:
        raise InternalError(f"unexpected message {received[0][0]!r}", step="exec")
    launch.trace.add("exec", " ".join(launch.job.process.get("args") or []), begin)


def _poststart(record: dict[str, Any]) -> None:
    poststart = ((record["config"].get("hooks") or {}).get("poststart")) or []
    if poststart:
        hooks.run("poststart", poststart, oci_state(record, "running", record["pid"]))


def _undo(launch: _Launch | None, manager: cgroups.Manager | None, path: str) -> None:
    """Leave nothing of a failed launch."""
    if launch is not None:
        launch.channel.close()
        for pid in {launch.child, launch.pid}:
            if pid > 0:
                _kill_own(pid, launch.clone_parent)
        for fd in (launch.pidfd, launch.console):
            if fd >= 0:
                os.close(fd)
    try:
        if manager is not None:
            manager.kill_all()
            manager.delete()
    except NagayaError:
        pass  # the error that brought us here says more
    store.remove(path)


def _kill_own(pid: int, clone_parent: bool) -> None:
    try:
        os.kill(pid, SIGKILL)
        if not clone_parent:
            os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


# Verbs on an existing container -------------------------------------------------------------------


def status_of(root: str, record: dict[str, Any]) -> str:
    """created, running, paused or stopped."""
    if not store.alive(record):
        return "stopped"
    if os.access(f"{root}/{record['id']}/{store.FIFO}", os.F_OK):
        return "created"
    manager = _manager(record)
    return "paused" if manager is not None and manager.frozen() else "running"


def _manager(record: dict[str, Any]) -> cgroups.Manager | None:
    return cgroups.from_state(record["cgroup"]) if record.get("cgroup") else None


def _require_manager(record: dict[str, Any]) -> cgroups.Manager:
    manager = _manager(record)
    if manager is None:
        raise FailedPrecondition("container has no cgroup", subject=record["id"])
    return manager


def oci_state(record: dict[str, Any], status: str, pid: int) -> dict[str, Any]:
    """The state document of the runtime-spec (runtime.md), which hooks get on stdin."""
    spec = record["config"]
    return {
        "ociVersion": spec.get("ociVersion") or oci.VERSION,
        "id": record["id"],
        "status": status,
        "pid": pid,
        "bundle": record["bundle"],
        "annotations": spec.get("annotations") or {},
    }


def state_of(root: str, record: dict[str, Any]) -> dict[str, Any]:
    """What `state` and `list` print, in runc's order."""
    status = status_of(root, record)
    return {
        "ociVersion": record["config"].get("ociVersion") or oci.VERSION,
        "id": record["id"],
        "pid": 0 if status == "stopped" else record["pid"],
        "status": status,
        "bundle": record["bundle"],
        "rootfs": record["rootfs"],
        "created": record["created"],
        "annotations": record["config"].get("annotations") or {},
        "owner": "",
    }


def state(root: str, identifier: str) -> dict[str, Any]:
    """The state of a container (`state` verb). Raises NotFound."""
    return state_of(root, store.load(root, identifier))


def list_states(root: str) -> list[dict[str, Any]]:
    """The states of all containers below root; one that goes away meanwhile is left out."""
    found = []
    for identifier in store.identifiers(root):
        try:
            found.append(state(root, identifier))
        except NagayaError:
            continue
    return found


def start(root: str, identifier: str) -> None:
    """Let the first process exec. Raises FailedPrecondition when it is not in `created`."""
    record = store.load(root, identifier)
    status = status_of(root, record)
    if status == "stopped":
        raise FailedPrecondition("cannot start a container that has stopped", subject=identifier)
    if status != "created":
        raise FailedPrecondition("cannot start an already running container", subject=identifier)
    fifo = f"{root}/{identifier}/{store.FIFO}"
    claimed = f"{fifo}.{os.getpid()}"
    try:
        os.rename(fifo, claimed)  # of two starts at once, one wins
    except FileNotFoundError:
        raise FailedPrecondition("cannot start an already running container", subject=identifier) from None
    try:
        fd = os.open(claimed, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.write(fd, b"0")
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        raise FailedPrecondition("container process is already dead", subject=identifier) from None
    finally:
        os.unlink(claimed)
    _poststart(record)


def kill(root: str, identifier: str, signal: int, all: bool = False) -> None:
    """Send a signal to the first process, or to all. Raises FailedPrecondition("container not running")."""
    record = store.load(root, identifier)
    if all:
        manager = _require_manager(record)
        manager.kill_all(signal)
        return
    if not store.alive(record):
        raise FailedPrecondition("container not running", subject=identifier)
    _signal_first(record, signal)


def _signal_first(record: dict[str, Any], signal: int) -> None:
    try:
        pidfd = ns.pidfd_open(record["pid"])
    except KernelError:
        raise FailedPrecondition("container not running", subject=record["id"]) from None
    try:
        if not store.alive(record):  # the pid was taken over before we opened it
            raise FailedPrecondition("container not running", subject=record["id"])
        ns.pidfd_send_signal(pidfd, signal)
        if signal == SIGKILL:
            manager = _manager(record)
            if manager is not None and manager.frozen():
                manager.thaw()  # a frozen process does not die (cgroup v1)
    finally:
        os.close(pidfd)


def delete(root: str, identifier: str, force: bool = False) -> None:
    """Remove what is left of a container; force kills it first. Raises NotFound,
    FailedPrecondition when it is not stopped."""
    path = store.directory(root, identifier)
    try:
        record = store.load(root, identifier)
    except NotFound:
        if force:
            store.remove(path)  # a create that was killed before its first write
            return
        raise
    status = status_of(root, record)
    if status == "created" or (force and status != "stopped"):
        _kill_first(record)
    elif status != "stopped":
        raise FailedPrecondition(
            f"cannot delete container {identifier} that is not stopped: {status}", subject=identifier
        )
    manager = _manager(record)
    if manager is not None:
        if manager.exists():
            manager.kill_all()
        manager.delete()
    poststop = (record["config"].get("hooks") or {}).get("poststop") or []
    store.remove(path)
    if poststop:
        hooks.run("poststop", poststop, oci_state(record, "stopped", 0))


def _kill_first(record: dict[str, Any]) -> None:
    try:
        pidfd = ns.pidfd_open(record["pid"])
    except KernelError:
        return
    try:
        try:
            _signal_first(record, SIGKILL)
        except NagayaError:
            return
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(_KILL_SECONDS * 1000):
            raise FailedPrecondition(
                f"container init still running after {_KILL_SECONDS:.0f} seconds", subject=record["id"]
            )
    finally:
        os.close(pidfd)


def pause(root: str, identifier: str) -> None:
    """Freeze all processes. Raises FailedPrecondition when it is not running."""
    record = store.load(root, identifier)
    status = status_of(root, record)
    if status not in ("running", "created"):
        raise FailedPrecondition(f"container not running or created: {status}", subject=identifier)
    _require_manager(record).freeze()


def resume(root: str, identifier: str) -> None:
    """Thaw. Raises FailedPrecondition when it is not paused."""
    record = store.load(root, identifier)
    if status_of(root, record) != "paused":
        raise FailedPrecondition("container not paused", subject=identifier)
    _require_manager(record).thaw()


def update(root: str, identifier: str, resources: dict[str, Any]) -> None:
    """Apply new linux.resources; what they leave out stays. Raises FailedPrecondition when stopped."""
    record = store.load(root, identifier)
    if not store.alive(record):
        raise FailedPrecondition("container not running", subject=identifier)
    _require_manager(record).set(resources)
    kept = record["config"].setdefault("linux", {}).setdefault("resources", {})
    for key, value in resources.items():
        if isinstance(value, dict) and isinstance(kept.get(key), dict):
            kept[key].update(value)
        else:
            kept[key] = value
    store.save(store.directory(root, identifier), record)


def ps(root: str, identifier: str) -> list[int]:
    """The pids (of the host) of all processes of the container."""
    return _require_manager(store.load(root, identifier)).pids()


def stats(root: str, identifier: str) -> dict[str, Any]:
    """Usage in the shape of `events --stats`."""
    record = store.load(root, identifier)
    if not store.alive(record):
        raise FailedPrecondition("container is not running", subject=identifier)
    return _require_manager(record).stats()


def exec_process(
    root: str,
    identifier: str,
    process: dict[str, Any],
    *,
    stdio: tuple[int, int, int] = (0, 1, 2),
    console: tuple[int, int] | None = None,
    clone_parent: bool = False,
    cgroup: dict[str, str] | None = None,
    preserve_fds: int = 0,
    pid_file: str = "",
    ignore_paused: bool = False,
    trace: Trace | None = None,
) -> Launched:
    """Run one more process in a container; returns when it has been executed.

    process: an OCI process object, whole (`process_defaults` helps). console: as for `run`.
    cgroup: {controller or "": a cgroup below the container's}. The process that joins drops all it holds before anything
    of it is visible inside. Raises FailedPrecondition, CommandNotFound, ...
    """
    trace = trace or Trace()
    record = store.load(root, identifier)
    status = status_of(root, record)
    if status == "stopped":
        raise FailedPrecondition("cannot exec in a stopped container", subject=identifier)
    if status == "paused" and not ignore_paused:
        raise FailedPrecondition(
            "cannot exec in a paused container (use --ignore-paused to override)", subject=identifier
        )
    oci.validate_process(process)
    if console is not None:
        process = {**process, "terminal": True}
        if any(console):
            process["consoleSize"] = {"height": console[0], "width": console[1]}
    pidfd = ns.pidfd_open(record["pid"])
    launch: _Launch | None = None
    fds = [pidfd]
    try:
        if not store.alive(record):
            raise FailedPrecondition("cannot exec in a stopped container", subject=identifier)
        spec = record["config"]
        job = plan.plan_exec(spec, process, record["pid"], pidfd)
        ours, theirs = channel.pair()
        context = Context(identifier, theirs)
        context.stdio = stdio
        context.preserve_fds = preserve_fds
        context.userns = job.userns
        context.state = oci_state(record, status, record["pid"])
        context.join_fds = _exec_fds(_manager(record), cgroup)
        fds.extend(context.join_fds)
        launch = _Launch(context, ours, job, trace)
        launch.clone_parent = clone_parent
        launch.seccomp = _compile((spec.get("linux") or {}).get("seccomp"), trace)
        _spawn(launch, [])
        _prepare(launch, record, {})
        launch.channel.send(channel.GO)
        if job.late:
            _receive_pid(launch)
        if pid_file:
            write_pid_file(pid_file, launch.pid)
        _await_exec(launch)
    except BaseException:
        if launch is not None:
            launch.channel.close()
            for pid in {launch.child, launch.pid}:
                if pid > 0:
                    _kill_own(pid, clone_parent)
            for fd in (launch.pidfd, launch.console):
                if fd >= 0:
                    os.close(fd)
        raise
    finally:
        for fd in fds:
            os.close(fd)
        if launch is not None:
            launch.channel.close()
    return Launched(launch.pid, launch.pidfd, launch.console)


def _exec_fds(manager: cgroups.Manager | None, below: dict[str, str] | None) -> list[int]:
    """Files of the container's cgroups, or of those below them, that a joining process writes to."""
    if manager is None:
        return []
    if not below:
        return manager.join_fds()
    paths = dict(manager.paths)
    for controller, path in below.items():
        parts = path.strip("/").split("/")
        if ".." in parts or (controller and controller not in paths):
            raise InvalidArgument(f"bad sub cgroup path: {controller}:{path}", subject="--cgroup")
        for key in [controller] if controller else list(paths):
            paths[key] = f"{manager.paths[key]}/{'/'.join(parts)}"
    return cgroups.from_state({**manager.to_state(), "paths": paths}).join_fds()


def kill_launched(launched: Launched) -> None:
    """Undo an exec that could not be handed over."""
    ns.pidfd_send_signal(launched.pidfd, SIGKILL)
    os.waitpid(launched.pid, 0)


def oom_kills(record: dict[str, Any]) -> int:
    """How many processes of the container the kernel's OOM killer has killed."""
    return _require_manager(record).oom_kills()


def process_defaults(record: dict[str, Any]) -> dict[str, Any]:
    """A copy of the container's own process object, without its arguments, as exec's base."""
    process: dict[str, Any] = dict(record["config"].get("process") or {})
    process.pop("args", None)
    process["terminal"] = False
    return process
