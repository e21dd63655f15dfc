"""Checkpoint and restore by criu(8): its command lines (pure), and running it.

What is told to criu is what runc tells it: bind mounts, masked files and joined namespaces are the
host's, everything else is in the images. Sources: criu(8); criu.org, "External bind mounts" and
"Inheriting FDs on restore".
"""

from __future__ import annotations

from nagaya.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    KernelError,
    NagayaError,
    from_wire,
)
from nagaya.linux import cgroup, os, paths, pids, process
from nagaya.linux import mounts as m
from nagaya.linux import namespaces as ns
from nagaya.linux.json import dumps, loads
from nagaya.linux.overlay import mount_overlay
from nagaya.oci import runtime as oci
from nagaya.runtime import container, lifecycle, plan
from nagaya.runtime import state as store
from nagaya.runtime.steps import rootfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.runtime import cgroups

DESCRIPTORS = "descriptors.json"  # beside the images: what the program's fds 0 to 2 were
_CONFIG = "/etc/criu/runc.conf"
_IGNORED = (13, 25)  # Python ignores SIGPIPE and SIGXFSZ, and a child would, too
_MODES = ("", "soft", "full", "strict", "ignore")
_FLAGS = {  # option of ours -> criu's
    "leave-running": "--leave-running",
    "tcp-established": "--tcp-established",
    "tcp-skip-in-flight": "--skip-in-flight",
    "link-remap": "--link-remap",
    "ext-unix-sk": "--ext-unix-sk",
    "shell-job": "--shell-job",
    "file-locks": "--file-locks",
    "auto-dedup": "--auto-dedup",
    "lazy-pages": "--lazy-pages",
    "tcp-close": "--tcp-close",
}
_VALUES = {
    "lsm-profile": "--lsm-profile",
    "lsm-mount-context": "--lsm-mount-context",
    "network-lock": "--network-lock",
}


def common_argv(verb: str, spec: dict[str, Any], options: dict[str, Any]) -> list[str]:
    """How every command line begins (pure). options: those of the verb, with absolute paths. Raises
    InvalidArgument."""
    mode = options["manage-cgroups-mode"]
    if mode not in _MODES:
        raise InvalidArgument("invalid manage-cgroups-mode value", subject="--manage-cgroups-mode")
    for kind in options["empty-ns"]:
        if kind != "network":
            raise InvalidArgument(f'namespace "{kind}" is not supported', subject="--empty-ns")
    argv = ["criu", verb, "--images-dir", options["image-path"], "-v4", "--no-default-config"]
    if options["work-path"]:
        argv += ["--work-dir", options["work-path"]]
    config = (spec.get("annotations") or {}).get("org.criu.config", _CONFIG)
    if config and os.exists(config):
        argv += ["--config", config]
    argv += [f"--manage-cgroups={mode}" if mode else "--manage-cgroups", "--empty-ns", "net"]
    argv += [flag for name, flag in _FLAGS.items() if options.get(name)]
    for name, flag in _VALUES.items():
        if options.get(name):
            argv += [flag, options[name]]
    return argv


def dump_argv(record: dict[str, Any], options: dict[str, Any], freezer: str, masked: list[str]) -> list[str]:
    """The command line of a checkpoint (pure but for the look at the root's links). freezer: the cgroup that
    holds the processes still. masked: files that /dev/null covers. Raises InvalidArgument."""
    spec = record["config"]
    verb = "pre-dump" if options["pre-dump"] else "dump"
    argv = common_argv(verb, spec, options)
    argv += ["--tree", str(record["pid"]), "--root", record["rootfs"], "--log-file", "dump.log"]
    if freezer:
        argv += ["--freeze-cgroup", freezer]
    if options["parent-path"]:
        argv += ["--prev-images-dir", options["parent-path"], "--track-mem"]
    if options["page-server"]:
        address, _, port = options["page-server"].rpartition(":")
        if not address or not port.isdigit():
            raise InvalidArgument(
                "Use --page-server ADDRESS:PORT to specify page server", subject="--page-server"
            )
        argv += ["--page-server", "--address", address.strip("[]"), "--port", port]
    if options["lazy-pages"] and options["status-fd"] is not None:
        argv += ["--status-fd", str(options["status-fd"])]
    for kind, path in joined(spec):
        if kind in ("network", "pid"):
            name = _KERNEL_NAMES[kind]
            argv += ["--external", f"{name}[{os.stat(path).st_ino}]:extRoot{name.title()}NS"]
    if not options["pre-dump"]:
        for destination, _source in externals(record):
            argv += ["--external", f"mnt[{destination}]:{destination}"]
        for path in masked:
            argv += ["--external", f"mnt[{path}]:/dev/null"]
    return argv


def restore_argv(
    record: dict[str, Any],
    options: dict[str, Any],
    root: str,
    pid_file: str,
    groups: dict[str, str],
    descriptors: list[str],
    inherited: dict[str, int],
) -> list[str]:
    """The command line of a restore. root: where the root is mounted. groups: {controller: its cgroup there}.
    descriptors: of the checkpoint; pipes among them are our fds 0 to 2. inherited: {kind of namespace: fd}.
    Raises InvalidArgument."""
    spec = record["config"]
    argv = common_argv("restore", spec, options)
    argv += ["--root", root, "--log-file", "restore.log", "--pidfile", pid_file]
    argv += ["--restore-detached", "--restore-sibling", "--evasive-devices"]
    for controller, path in groups.items():
        argv += ["--cgroup-root", f"{controller}:{path}" if controller else path]
    for kind, path in joined(spec):
        name = _KERNEL_NAMES[kind]
        if kind in inherited:
            argv += ["--inherit-fd", f"fd[{inherited[kind]}]:extRoot{name.title()}NS"]
        else:
            argv += ["--join-ns", f"{name}:{path}"]
    for destination, source in externals(record):
        argv += ["--external", f"mnt[{destination}]:{source}"]
    if (spec.get("linux") or {}).get("maskedPaths"):
        argv += ["--external", "mnt[/dev/null]:/dev/null"]
    for fd, what in enumerate(descriptors[:3]):
        if "pipe:" in what:
            argv += ["--inherit-fd", f"fd[{fd}]:{what}"]
    return argv


_KERNEL_NAMES = {"network": "net", "pid": "pid", "ipc": "ipc", "uts": "uts", "user": "user", "mount": "mnt"}


def joined(spec: dict[str, Any]) -> list[tuple[str, str]]:
    """(kind, path) of the namespaces that the container joined (pure). Raises InvalidArgument for one that
    criu does not know."""
    found = []
    for entry in (spec.get("linux") or {}).get("namespaces") or []:
        if entry.get("path"):
            if entry["type"] not in _KERNEL_NAMES:
                raise InvalidArgument(
                    f"criu cannot restore into a joined {entry['type']} namespace",
                    subject="linux.namespaces",
                )
            found.append((entry["type"], entry["path"]))
    return found


def externals(record: dict[str, Any]) -> list[tuple[str, str]]:
    """(destination, source) of what is mounted from the host: binds, and the cgroups of v1 where they are."""
    spec = record["config"]
    kinds = {entry["type"] for entry in (spec.get("linux") or {}).get("namespaces") or []}
    found = []
    rootfd = os.open(record["rootfs"], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for index, entry in enumerate(spec.get("mounts") or []):
            step = plan.Mount(index, entry)
            if step.type == "cgroup" and "cgroup" not in kinds and record["cgroup"]["version"] == 1:
                groups = record["cgroup"]["paths"]
                for name, _, _ in cgroup.container_view(cgroup.layout(), groups):
                    source = groups.get(name.split(",")[0]) or groups[f"name={name}"]
                    found.append((f"{step.destination}/{name}", source))
            elif step.bind:
                found.append(("/" + paths.resolve_in_root(rootfd, step.destination), step.source))
    finally:
        os.close(rootfd)
    return found


def snapshot(root: str, identifier: str, images: str, patience: float, caller: int) -> None:
    """Write the images of a container that goes on as it was, within so many seconds, with its connections
    and locks. caller: a socket whose other end closes when nobody waits for it any more. Raises
    FailedPrecondition, InvalidArgument, DeadlineExceeded."""
    options = {**_usual(images), "leave-running": True, "tcp-established": True}
    checkpoint(root, identifier, {**options, "patience": patience, "caller": caller})


def revive(
    root: str,
    identifier: str,
    bundle: str,
    spec: dict[str, Any],
    images: str,
    driver: str,
    overlay: dict[str, Any],
    stdio: tuple[int, int, int],
) -> container.Launched:
    """A container of what `snapshot` wrote, on an overlay that is mounted for it alone; its connections are
    closed, for they were another address's. Raises as `restore`."""
    options = {**_usual(images), "tcp-close": True, "no-pivot": False}
    return restore(root, identifier, bundle, spec, options, driver, overlay, stdio)


def _usual(images: str) -> dict[str, Any]:
    """The options of a dump or a restore that nobody chose any for."""
    options: dict[str, Any] = dict.fromkeys((*_FLAGS, *_VALUES, "pre-dump"), False)
    options |= {
        "image-path": images,
        "work-path": "",
        "parent-path": "",
        "page-server": "",
        "status-fd": None,
    }
    options |= {"manage-cgroups-mode": "", "empty-ns": [], "file-locks": True}
    programs = os.fsdecode(os.environ.get(b"PATH", b"")).split(":")
    if not any(os.exists(f"{path}/iptables-restore") for path in programs):
        options["network-lock"] = "nftables"  # what keeps packets away meanwhile; criu's default is the other
    return options


def checkpoint(root: str, identifier: str, options: dict[str, Any]) -> None:
    """Write the images. The container goes on when criu fails, and after a pre-dump or with --leave-running;
    else it is stopped. Raises FailedPrecondition, InvalidArgument; DeadlineExceeded when criu takes longer
    than the seconds of an option "patience"."""
    record = store.load(root, identifier)
    status = lifecycle.status_of(root, record)
    if status not in ("running", "paused"):
        raise FailedPrecondition(f"Container cannot be checkpointed in {status} state", subject=identifier)
    spec = record["config"]
    _refuse_terminal(spec)
    manager = lifecycle.manager_of(record)
    freezer = "" if manager is None else manager.paths.get("freezer" if manager.version == 1 else "", "")
    inside = f"/proc/{record['pid']}/root"
    if not os.isdir(record["rootfs"]):
        record["rootfs"] = inside  # a daemon's, which is mounted in there alone
    masked = [p for p in (spec.get("linux") or {}).get("maskedPaths") or [] if _is_file(inside + p)]
    argv = dump_argv(record, options, freezer, masked)
    descriptors = [os.readlink(f"/proc/{record['pid']}/fd/{fd}") for fd in range(3)]
    for path in (options["image-path"], options["work-path"]):
        if path:
            os.makedirs(path, 0o700, exist_ok=True)
    if not options["pre-dump"]:
        fd = os.open(
            f"{options['image-path']}/{DESCRIPTORS}",
            os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC,
            0o600,
        )
        with open(fd, "w") as file:
            file.write(dumps(descriptors))
    if "--status-fd" in argv:
        os.set_inheritable(options["status-fd"], True)
    log = f"{options['work-path'] or options['image-path']}/dump.log"
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        actions = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in range(3)]
        pid = os.posix_spawnp("criu", argv, dict(os.environ), file_actions=actions, setsigdef=_IGNORED)
    except FileNotFoundError:
        raise _not_installed() from None
    finally:
        os.close(null)
    try:
        _await_criu(pid, log, options.get("patience") or 0.0, options.get("caller", -1))
    except (FailedPrecondition, DeadlineExceeded):
        if status == "running" and manager is not None and manager.frozen():
            manager.thaw()  # it was killed while it held them still
        raise


def _is_file(path: str) -> bool:
    return os.exists(path) and not os.isdir(path)


def _refuse_terminal(spec: dict[str, Any]) -> None:
    if (spec.get("process") or {}).get("terminal"):
        raise InvalidArgument(
            "a container with a terminal can be neither checkpointed nor restored", subject="process.terminal"
        )


def _not_installed() -> FailedPrecondition:
    return FailedPrecondition('criu is not installed: exec: "criu": executable file not found in $PATH')


def _await_criu(pid: int, log: str, patience: float = 0.0, caller: int = -1) -> None:
    """Wait for it: for ever, or so many seconds and as long as the caller, a socket, is there. Raises
    FailedPrecondition with the last error of its log, DeadlineExceeded when it was killed."""
    if patience:
        from select import POLLIN, poll

        pidfd = pids.pidfd_open(pid)
        ended = poll()
        ended.register(pidfd, POLLIN)
        ended.register(caller, 0)  # its end is told unasked (poll(2))
        in_time = any(fd == pidfd for fd, _ in ended.poll(patience * 1000))
        if not in_time:
            pids.pidfd_send_signal(pidfd, 9)
        os.close(pidfd)
        if not in_time:
            os.waitpid(pid, 0)
            raise DeadlineExceeded(f"criu took longer than {patience:.1f} s", step="checkpoint")
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code:
        lines = (cgroup.try_read(log) or "").split("\n")
        # the first says why, unless it is of a child; the others what followed from it
        errors = [line for line in lines if "Error" in line and "exited, status" not in line]
        said = errors[0].strip() if errors else f"exit status {code}"
        raise FailedPrecondition(f"criu failed: {said}\nlog file: {log}")


def restore(
    root: str,
    identifier: str,
    bundle: str,
    spec: dict[str, Any],
    options: dict[str, Any],
    driver: str,
    overlay: dict[str, Any] | None = None,
    stdio: tuple[int, int, int] = (0, 1, 2),
) -> container.Launched:
    """A container of images; our child, which runs. Its mounts are prepared in a mount namespace of criu's
    own, so that nothing of them stays; overlay: its root, where it is mounted nowhere yet. Raises
    AlreadyExists, FailedPrecondition, InvalidArgument, ..."""
    store.check_id(identifier)
    oci.validate(spec)
    _refuse_terminal(spec)
    for kind in ("prestart", "createRuntime"):
        if (spec.get("hooks") or {}).get(kind):
            raise InvalidArgument(f"{kind} hooks cannot be run in a restore", subject=f"hooks.{kind}")
    images = options["image-path"]
    descriptors = loads(cgroup.read(f"{images}/{DESCRIPTORS}"))
    path = store.make(root, identifier)
    manager: cgroups.Manager | None = None
    where, pid_file, fds = f"{path}/criu-root", f"{path}/criu.pid", []
    try:
        record = container.new_record(identifier, bundle, spec, no_pivot=options["no-pivot"])
        linux: dict[str, Any] = spec.get("linux") or {}
        manager = container.new_manager(record, linux, driver)
        store.save(path, record)
        os.mkdir(where, 0o700)
        os.mkdir(where + "/root", 0o755)
        manager.create()
        manager.set(linux.get("resources") or {})
        inherited = {}
        for kind, name in joined(spec):
            if kind in ("network", "pid"):
                inherited[kind] = os.open(name, os.O_RDONLY)
                os.set_inheritable(inherited[kind], True)
                fds.append(inherited[kind])
        reader, writer = os.pipe2(os.O_CLOEXEC)
        pid, _ = ns.clone3(ns.CLONE_NEWNS)
        if pid == 0:
            for fd, number in zip(stdio, range(3), strict=True):
                if fd != number:
                    os.dup2(fd, number)
            _become_criu(
                record, options, manager, where + "/root", pid_file, descriptors, inherited, writer, overlay
            )
        os.close(writer)
        fds.append(reader)
        told = os.read(reader, 1 << 16)
        log = f"{options['work-path'] or images}/restore.log"
        if told:
            os.waitpid(pid, 0)
            raise from_wire(loads(told))
        _await_criu(pid, log)
        container.note_process(record, int(cgroup.read(pid_file)))
        pidfd = pids.pidfd_open(record["pid"])
        store.save(path, record)
        os.rmdir(where + "/root")
        os.rmdir(where)
        return container.Launched(record["pid"], pidfd, -1)
    except BaseException:
        if manager is not None and manager.fresh:
            manager.kill_all()
            manager.delete()
        for name in (where + "/root", where):
            if os.isdir(name):
                os.rmdir(name)
        store.remove(path)
        raise
    finally:
        for fd in fds:
            os.close(fd)


def _become_criu(
    record: dict[str, Any],
    options: dict[str, Any],
    manager: cgroups.Manager,
    where: str,
    pid_file: str,
    descriptors: list[str],
    inherited: dict[str, int],
    writer: int,
    overlay: dict[str, Any] | None,
) -> None:
    """In the child: join the cgroups, mount the root and what criu needs below it, and execute criu. What
    fails goes to the writer; it closes when criu runs."""
    try:
        manager.join()
        m.mount(None, "/", None, m.MS_REC | m.MS_SLAVE)
        if overlay is None:
            tree = m.open_tree(m.AT_FDCWD, record["rootfs"], m.OPEN_TREE_CLONE | m.AT_RECURSIVE)
        else:
            tree = mount_overlay(overlay, alone=True)
            record = {**record, "rootfs": where}
        m.move_mount(tree, m.AT_FDCWD, where)
        _make_mount_points(tree, record["config"].get("mounts") or [])
        groups = {name: path for name, path in cgroup.own().items() if name in manager.paths}
        argv = restore_argv(record, options, where, pid_file, groups, descriptors, inherited)
        process.reset_signals()
        os.execvp("criu", argv)
    except FileNotFoundError:
        error: NagayaError = _not_installed()
    except NagayaError as caught:
        error = caught
    except OSError as caught:
        error = KernelError(os.strerror(caught.errno or 0).lower(), step="restore", errno=caught.errno or 0)
    os.write(writer, dumps(error.to_wire()).encode())
    os._exit(1)


def _make_mount_points(rootfd: int, mounts: list[dict[str, Any]]) -> None:
    """What a new container's first process would make; a tmpfs comes whole from the images, and binds are
    mounted, for others may lie below them."""
    volatile: list[str] = []
    for index, entry in enumerate(mounts):
        step = plan.Mount(index, entry)
        if step.type == "tmpfs":
            volatile.append(step.destination.rstrip("/") + "/")
        if step.type == "cgroup" or step.destination.startswith(
            tuple(v for v in volatile if v != step.destination + "/")
        ):
            continue
        directory = not step.bind or os.isdir(step.source)
        fd = rootfs.target(rootfd, step.destination, directory)
        if step.bind:
            m.move_mount(rootfs.open_source(step), fd)
        os.close(fd)
