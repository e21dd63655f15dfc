"""Containers are made here: create, run, exec, for `nagaya-oci` and for the supervisor's builder.

The caller is one thread. The first process is a fork (clone3) that carries out the plan (`init`);
this side does what needs the host: state directory, cgroups, id mappings, hooks, limits. Whatever
fails is undone before the error leaves.
"""

from __future__ import annotations

from time import monotonic_ns

from nagaya.errors import FailedPrecondition, InvalidArgument, KernelError, NagayaError
from nagaya.linux import os, pids
from nagaya.oci import runtime as oci
from nagaya.runtime import channel, plan
from nagaya.runtime import state as store
from nagaya.runtime.launching import Launch, spawn
from nagaya.runtime.state import oci_state
from nagaya.runtime.steps.context import Context
from nagaya.runtime.trace import Trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.runtime import cgroups

# Below this limit the first process prepares itself outside the memory cgroup: a forked Python
# charges one to two megabytes to it
_TINY_MEMORY = 32 << 20


_SIGKILL = 9
# where there is a cgroup2 to be born in: the only one, or systemd's beside v1
_CGROUP2 = ("/sys/fs/cgroup/cgroup.controllers", "/sys/fs/cgroup/unified/cgroup.controllers")


class Launched:
    """A process that was started: its pid, a pidfd, and its pty master or -1. The caller owns the fds."""

    __slots__ = ("console", "pid", "pidfd")

    def __init__(self, pid: int, pidfd: int, console: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.console = console


def prime() -> None:
    """Import now what is imported when it is first needed: for a process that forks many builders."""
    from nagaya.linux import seccomp, tty  # noqa: F401
    from nagaya.runtime import cgroups, filter, hooks, init, lifecycle, serving  # noqa: F401
    from nagaya.runtime.steps import joining, making  # noqa: F401

    try:
        if cgroups.manager("/prime", container_id="prime").version == 1:
            from nagaya.runtime.cgroups import v1_limits  # noqa: F401
    except NagayaError:
        pass  # no cgroups here: a start will say so


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
    that the first process mounts privately; for a user namespace it is mounted before, with the owners of all
    its layers mapped. stdio: the three fds of the program. console: (height,
    width) for a pty instead ((0, 0): process.consoleSize). relayed: the caller copies it to a terminal of
    its own, which adds the carriage returns. clone_parent: the process becomes a
    child of our parent. cgroup_driver: "cgroupfs" or "systemd". rootless: without a cgroupsPath cgroups
    that may not be made are left out. preserve_fds: so many fds from 3 on
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
    relayed: bool = False,
    clone_parent: bool = False,
    cgroup_driver: str = "cgroupfs",
    rootless: bool = False,
    preserve_fds: int = 0,
    pid_file: str = "",
    no_pivot: bool = False,
    no_new_keyring: bool = False,
) -> Launched:
    begin = monotonic_ns()
    store.check_id(identifier)
    oci.validate(spec)
    _require_selinux(spec.get("process") or {}, spec.get("linux") or {})
    if console is not None and not any(console):
        console = plan.console_size(spec.get("process") or {})
    job = plan.plan_container(
        spec, bundle, rootfs=rootfs, console=console, no_pivot=no_pivot, no_new_keyring=no_new_keyring
    )
    linux: dict[str, Any] = spec.get("linux") or {}
    trace.add("plan", f"{len(job.steps)} steps", begin)
    if spec.get("mounts") and "mount" not in job.namespaces:
        trace.warn("mounts, and a read-only root, are left out without a mount namespace")

    begin = monotonic_ns()
    path = store.make(root, identifier)
    manager: cgroups.Manager | None = None
    launch: Launch | None = None
    fds: list[int] = []
    try:
        record = new_record(identifier, bundle, spec, no_pivot=no_pivot, no_new_keyring=no_new_keyring)
        trace.add("state directory", path, begin)
        ours, theirs = channel.pair()
        context = Context(identifier, theirs)
        context.stdio = stdio
        context.preserve_fds = preserve_fds
        context.attach = path
        context.userns = job.userns
        context.state = oci_state(record, "creating", 0)
        if waits:
            os.mkfifo(f"{path}/{store.FIFO}", 0o600)
            context.fifo = os.open(f"{path}/{store.FIFO}", os.O_RDWR | os.O_CLOEXEC)
            fds.append(context.fifo)
        context.asks_sources = job.userns and os.geteuid() == 0
        if context.asks_sources:
            from nagaya.runtime.serving import give_pipes, map_owners, mapped_root
            from nagaya.runtime.steps.rootfs import open_source

            begin = monotonic_ns()
            for step in job.steps:
                if isinstance(step, plan.Mount) and step.bind and not step.inside:
                    context.sources[step.index] = open_source(step)
                    fds.append(context.sources[step.index])
                    if step.idmapped:
                        map_owners(context.sources[step.index], step, job)
            give_pipes(stdio, linux)
            if rootfs:
                context.tree = mapped_root(rootfs, job)
                fds.append(context.tree)
            trace.add("bind sources", "", begin)
        else:
            for step in job.steps:
                if isinstance(step, plan.Mount) and step.idmapped:
                    from nagaya.runtime import idmap

                    context.idmaps[step.index] = idmap.open_mapping(step, job)
                    fds.append(context.idmaps[step.index])
        launch = Launch(context, ours, job, trace)
        launch.clone_parent = clone_parent
        launch.relayed = relayed
        launch.filtered = bool(linux.get("seccomp"))
        hook_table: dict[str, Any] = spec.get("hooks") or {}
        into = -1
        if cgroup_driver == "cgroupfs" and any(map(os.exists, _CGROUP2)):
            manager = new_manager(record, linux, cgroup_driver, rootless)
            store.save(path, record)
            into = _birthplace(manager, job, linux, trace)
            fds.extend([into] if into >= 0 else [])
        born = spawn(launch, hook_table.get("startContainer") or [], into)
        # from here on there are two of us, and two CPUs: what only the host's side needs comes now
        from nagaya.runtime import lifecycle, serving

        if job.stage:
            serving.receive_pid(launch)
        if manager is None:
            manager = new_manager(record, linux, cgroup_driver, rootless)
        if not job.late:
            note_process(record, launch.pid)
        store.save(path, record)
        born &= manager.version == 2
        if not born:
            _make_cgroups(manager, linux, trace)
        if manager.to_state() != record["cgroup"]:  # some were left out
            record["cgroup"] = manager.to_state() if manager.paths else None
            store.save(path, record)
        _place(launch, manager, linux, fds, born)
        serving.give_filter(launch, linux.get("seccomp"))
        serving.prepare(launch, record, hook_table)
        if pid_file and not job.late:
            serving.write_pid_file(pid_file, launch.pid)
        manager.settle()
        begin = monotonic_ns()
        serving.tell(launch, channel.GO)
        trace.add("hand-over", "", begin)
        if job.late:
            serving.receive_last_pid(launch)
            note_process(record, launch.pid)
            store.save(path, record)
            if pid_file:
                serving.write_pid_file(pid_file, launch.pid)
        serving.serve_last_filter(launch)
        if not waits:
            serving.await_exec(launch)
            lifecycle.poststart(record)
    except BaseException:
        _undo(launch, manager, path)
        raise
    finally:
        for fd in fds:
            os.close(fd)
        if launch is not None:
            launch.channel.close()
    return Launched(launch.pid, launch.pidfd, launch.console)


def new_record(
    identifier: str, bundle: str, spec: dict[str, Any], *, no_pivot: bool, no_new_keyring: bool = False
) -> dict[str, Any]:
    """The state of a container that has no process and no cgroups yet."""
    return {
        "version": store.VERSION,
        "id": identifier,
        "bundle": bundle,
        "rootfs": _rootfs_path(spec, bundle),
        "created": store.now(),
        "pid": 0,
        "start_time": 0,
        "no_pivot": no_pivot,
        "no_new_keyring": no_new_keyring,
        "config": spec,
    }


def note_process(record: dict[str, Any], pid: int) -> None:
    """Who it is; the start time tells it from a later owner of its pid."""
    record["pid"] = pid
    fields = pids.stat_fields(pid)
    record["start_time"] = fields[1] if fields else 0


def _require_selinux(process: dict[str, Any], linux: dict[str, Any]) -> None:
    """Labels need SELinux, as with runc. Raises InvalidArgument with the field."""
    labels = {
        "process.selinuxLabel": process.get("selinuxLabel"),
        "linux.mountLabel": linux.get("mountLabel"),
    }
    for field, label in labels.items():
        if not label:
            continue
        from nagaya.linux import selinux  # few hosts have it

        if not selinux.enabled():
            message = "selinux label is specified in config, but selinux is disabled or not supported"
            raise InvalidArgument(f"{field}: {message}", subject=field)


def _rootfs_path(spec: dict[str, Any], bundle: str) -> str:
    path: str = (spec.get("root") or {}).get("path") or "rootfs"
    return path if path.startswith("/") else f"{bundle}/{path}"


def _has_tiny_memory(linux: dict[str, Any]) -> bool:
    limit = ((linux.get("resources") or {}).get("memory") or {}).get("limit") or 0
    return 0 < limit < _TINY_MEMORY


def _birthplace(manager: cgroups.Manager, job: plan.Plan, linux: dict[str, Any], trace: Trace) -> int:
    """The cgroup that the first process is born in, or -1. On v2 that is its whole cgroup, as joining waits
    for the world's forks (an RCU grace period, some 20 ms); not when its limits must not count for what
    prepares it: memory for an interpreter, and the pids of a stage or a late clone."""
    if manager.version == 2:
        if job.stage or job.late or _has_tiny_memory(linux):
            return -1
        _make_cgroups(manager, linux, trace)
    return manager.birthplace()


def new_manager(
    record: dict[str, Any], linux: dict[str, Any], driver: str, rootless: bool = False
) -> cgroups.Manager:
    """Its cgroups, not yet made, and noted in its state."""
    from nagaya.runtime import cgroups

    manager = cgroups.manager(
        linux.get("cgroupsPath") or "",
        driver,
        container_id=record["id"],
        annotations=record["config"].get("annotations"),
    )
    manager.rootless = rootless
    manager.lenient = rootless and not linux.get("cgroupsPath")
    record["cgroup"] = manager.to_state()
    return manager


def _make_cgroups(manager: cgroups.Manager, linux: dict[str, Any], trace: Trace) -> None:
    begin = monotonic_ns()
    manager.create()
    resources: dict[str, Any] = linux.get("resources") or {}
    if manager.paths and resources:
        manager.set(resources)
    for name in resources:
        if not manager.paths and resources[name] and name != "devices":
            raise FailedPrecondition(
                f"cannot set {name} limit: container could not join or create cgroup",
                subject=f"linux.resources.{name}",
            )
    trace.add("cgroups", " ".join(sorted(set(manager.paths.values()))), begin)


def _place(
    launch: Launch, manager: cgroups.Manager, linux: dict[str, Any], fds: list[int], born: bool
) -> None:
    """Open the files by which the first process joins its cgroups, each in its time; none when it was
    born there."""
    from nagaya.runtime.serving import place

    if born or not manager.paths:
        place(launch, manager.paths, [], -1, [])
        return
    # a scope of systemd ends when nobody is in it: there is no stepping out
    tiny = _has_tiny_memory(linux) and manager.driver != "systemd"
    # a new cgroup namespace must have all of its cgroups as its roots: join, then step out of memory's
    inside = "cgroup" in launch.job.namespaces
    joins = manager.join_fds(memory=False if tiny and not inside else None)
    fds.extend(joins)
    leave, memory = -1, []
    if tiny:
        memory = manager.join_fds(memory=True)
        fds.extend(memory)
        if inside:
            leave = _own_memory_fd()
            fds.extend([leave] if leave >= 0 else [])
    place(launch, manager.paths, joins, leave, memory)


def _own_memory_fd() -> int:
    """The file by which a process joins the cgroup we are in now: the memory controller's on v1, the
    only one on v2; -1 on a v1 host without that controller."""
    from nagaya.linux import cgroup as cgroup_files

    found, own = cgroup_files.layout(), cgroup_files.own()
    if found.version == 2:
        path = found.unified + cgroup_files.relative_to_mount(own.get("", "/"), found.unified_root)
        return os.open(f"{path}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    hierarchy = found.hierarchy("memory")
    if hierarchy is None:
        return -1
    path = hierarchy.mountpoint + cgroup_files.relative_to_mount(own.get("memory", "/"), hierarchy.root)
    return os.open(f"{path}/tasks", os.O_WRONLY | os.O_CLOEXEC)


def _undo(launch: Launch | None, manager: cgroups.Manager | None, path: str) -> None:
    """Leave nothing of a failed launch."""
    if launch is not None:
        from nagaya.runtime.serving import abandon

        abandon(launch)
    clear(manager, path)


def clear(manager: cgroups.Manager | None, path: str) -> None:
    """Take away cgroups and state directory of a container that could not be made."""
    try:
        # one that is not fresh was refused for it is another container's; one without paths may have none
        if manager is not None and manager.fresh and manager.paths:
            manager.kill_all()
            manager.delete()
    except NagayaError:
        pass  # the error that brought us here says more
    store.remove(path)


def exec_process(
    root: str,
    identifier: str,
    process: dict[str, Any],
    *,
    stdio: tuple[int, int, int] = (0, 1, 2),
    console: tuple[int, int] | None = None,
    relayed: bool = False,
    clone_parent: bool = False,
    cgroup: dict[str, str] | None = None,
    preserve_fds: int = 0,
    pid_file: str = "",
    ignore_paused: bool = False,
    trace: Trace | None = None,
) -> Launched:
    """Run one more process in a container; returns when it has been executed.

    process: an OCI process object, whole (`process_defaults` helps). console: as for `run`.
    cgroup: {controller or "": a cgroup below the container's}. The process that joins drops all it
    holds before anything of it is visible inside. Raises FailedPrecondition, CommandNotFound, ...
    """
    from nagaya.runtime import lifecycle

    trace = trace or Trace()
    record = store.load(root, identifier)
    status = lifecycle.status_of(root, record)
    if status == "stopped":
        raise FailedPrecondition("cannot exec in a stopped container", subject=identifier)
    if status == "paused" and not ignore_paused:
        raise FailedPrecondition(
            "cannot exec in a paused container (use --ignore-paused to override)", subject=identifier
        )
    oci.validate_process(process)
    _require_selinux(process, {})
    if console is not None:
        process = {**process, "terminal": True}
        if any(console):
            process["consoleSize"] = {"height": console[0], "width": console[1]}
    pidfd = pids.pidfd_open(record["pid"])
    launch: Launch | None = None
    fds = [pidfd]
    try:
        if not store.alive(record):
            raise FailedPrecondition("cannot exec in a stopped container", subject=identifier)
        spec = record["config"]
        job = plan.plan_exec(
            spec, process, record["pid"], pidfd, no_new_keyring=bool(record.get("no_new_keyring"))
        )
        if job.userns:
            from nagaya.runtime.serving import give_pipes

            give_pipes(stdio, spec.get("linux") or {})
        ours, theirs = channel.pair()
        context = Context(identifier, theirs)
        context.stdio = stdio
        context.preserve_fds = preserve_fds
        context.userns = job.userns
        context.orphans = clone_parent  # its parent is a subreaper, then
        context.state = oci_state(record, status, record["pid"])
        manager = lifecycle.manager_of(record)
        paths = _exec_paths(manager.paths if manager is not None else {}, cgroup or {})
        tiny = _has_tiny_memory(spec.get("linux") or {})
        context.join_fds, context.memory_fds = _exec_fds(manager, record["pid"], paths, tiny)
        fds.extend([*context.join_fds, *context.memory_fds])
        into = _exec_birthplace(manager, paths)
        fds.extend([into] if into >= 0 else [])
        launch = Launch(context, ours, job, trace)
        launch.clone_parent = clone_parent
        launch.relayed = relayed
        profile = (spec.get("linux") or {}).get("seccomp")
        launch.filtered = bool(profile)
        if job.scheduling is not None and job.scheduling.affinity[0]:
            trace.note(f"nsexec: affinity: {sum(1 << cpu for cpu in job.scheduling.affinity[0]):#x}")
        spawn(launch, [], into)
        from nagaya.runtime import serving  # beside the other side, which loads its own

        serving.give_filter(launch, profile)
        serving.prepare(launch, record, {})
        serving.tell(launch, channel.GO)
        if job.late:
            serving.receive_last_pid(launch)
        if pid_file:
            serving.write_pid_file(pid_file, launch.pid)
        serving.serve_last_filter(launch)
        serving.await_exec(launch)
    except BaseException:
        if launch is not None:
            from nagaya.runtime.serving import abandon

            abandon(launch)
        raise
    finally:
        for fd in fds:
            os.close(fd)
        if launch is not None:
            launch.channel.close()
    return Launched(launch.pid, launch.pidfd, launch.console)


def _exec_paths(own: dict[str, str], below: dict[str, str]) -> dict[str, str]:
    """The cgroups that a joining process goes to: the container's own, or those that `--cgroup` names below
    them. Raises InvalidArgument."""
    paths = dict(own)
    for controller, path in below.items():
        parts = path.strip("/").split("/")
        if controller and controller not in own:
            raise InvalidArgument(f"unknown controller {controller}", subject="--cgroup")
        if ".." in parts:
            raise InvalidArgument(f"bad sub cgroup path: {path} is not a sub cgroup path", subject="--cgroup")
        for key in [controller] if controller else own:
            paths[key] = f"{own[key]}/{'/'.join(parts)}"
    return paths


def _exec_fds(
    manager: cgroups.Manager | None, pid: int, paths: dict[str, str], tiny: bool
) -> tuple[list[int], list[int]]:
    """Files of these cgroups, that a joining process writes to: at once; right before the exec, for a tiny
    limit of memory that would be charged with the interpreter. pid: the container's first process."""
    if manager is None:
        return [], []
    if paths == manager.paths and not (tiny and manager.version == 1):
        return manager.join_fds_beside(pid), []
    from nagaya.runtime import cgroups

    try:
        target = cgroups.from_state({**manager.to_state(), "paths": paths})
        if tiny and manager.version == 1:
            return target.join_fds(memory=False), target.join_fds(memory=True)
        return target.join_fds(), []
    except KernelError as error:
        error.step = f"error adding pid to cgroups: open {error.subject}/cgroup.procs"
        raise


def _exec_birthplace(manager: cgroups.Manager | None, paths: dict[str, str]) -> int:
    """As `_birthplace`, in the hybrid layout's cgroup2: the container's, where it has not the one below."""
    if manager is None or manager.version == 2:
        return -1
    from nagaya.linux import cgroup as cgroup_files

    for path in (paths.get(""), manager.paths.get("")):
        if path and os.isdir(path):
            return cgroup_files.open_directory(path)
    return -1


def kill_launched(launched: Launched) -> None:
    """Undo an exec that could not be handed over."""
    pids.pidfd_send_signal(launched.pidfd, _SIGKILL)
    os.waitpid(launched.pid, 0)
