"""What builders can do: the operations of a request, over `nagaya.runtime`.

Importing this module imports, once and before any fork, everything that builders need. A request is
{"op": name, "root": directory of the runtime's state, "id": container, ...}; the fields of each
operation are in its function's docstring.
"""

from __future__ import annotations

import os
from _socket import (
    AF_INET,
    AF_NETLINK,
    SO_REUSEADDR,
    SOCK_CLOEXEC,
    SOCK_DGRAM,
    SOCK_RAW,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)

from nagaya.errors import AlreadyExists, InvalidArgument, KernelError
from nagaya.linux import mounts, namespaces
from nagaya.oci.runtime import makes_pid_namespace
from nagaya.runtime import container, lifecycle
from nagaya.runtime.options import Parsed
from nagaya.runtime.trace import Trace
from nagaya.supervisor import foreign, pods

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.runtime.container import Launched
    from nagaya.supervisor.builder import Job, Operation

    Request = dict[str, Any]

container.prime()

_NETLINK_ROUTE = 0

_KINDS: dict[str, tuple[type, ...]] = {
    "root": (str,),
    "id": (str,),
    "bundle": (str,),
    "spec": (dict,),
    "process": (dict,),
    "resources": (dict,),
    "signal": (int,),
    "pin": (str,),
    "path": (str,),
    "argv": (list,),
    "target": (str,),
    "source": (str,),
    "type": (str,),
    "options": (list,),
}


def _need(request: Request, *names: str) -> list[Any]:
    """The fields, all of them there and of the right kind."""
    values = []
    for name in names:
        value = request.get(name)
        if type(value) not in _KINDS[name]:
            raise InvalidArgument(f"{request.get('op')} needs {name}", subject=name)
        values.append(value)
    return values


def _stdio(job: Job) -> tuple[int, int, int]:
    """The process's descriptors; without any, /dev/null, which the builder has as its own."""
    return (0, 1, 1) if job.stdio[0] < 0 else job.stdio


def _console(request: Request) -> tuple[int, int] | None:
    size = request.get("console")
    if size is None:
        return None
    if not isinstance(size, list) or [type(n) for n in size] != [int, int]:
        raise InvalidArgument("console must be [height, width]", subject="console")
    return size[0], size[1]


def _launch(job: Job, trace: Trace, launched: Launched) -> dict[str, Any]:
    job.trace = trace.to_wire()
    job.launched(launched.pid, launched.pidfd, launched.console)
    return {"pid": launched.pid, "warnings": trace.warnings}


def _make(request: Request, job: Job) -> dict[str, Any]:
    """run, create: root, id, bundle, spec; rootfs, console, cgroup_driver, preserve_fds, pid_file,
    no_pivot, no_new_keyring."""
    job.keeper()
    root, identifier, bundle, spec = _need(request, "root", "id", "bundle", "spec")
    if not makes_pid_namespace(spec):
        job.alone()
    trace = Trace()
    make = container.create if request["op"] == "create" else container.run
    try:
        launched = make(
            root,
            identifier,
            bundle,
            spec,
            rootfs=request.get("rootfs"),
            stdio=_stdio(job),
            console=_console(request),
            clone_parent=True,
            cgroup_driver=request.get("cgroup_driver") or "cgroupfs",
            pid_file=request.get("pid_file") or "",
            no_pivot=bool(request.get("no_pivot")),
            no_new_keyring=bool(request.get("no_new_keyring")),
            trace=trace,
        )
    finally:
        job.trace = trace.to_wire()
    return _launch(job, trace, launched)


def _exec(request: Request, job: Job) -> dict[str, Any]:
    """root, id, process; console, cgroup."""
    job.keeper()
    job.alone()
    root, identifier, process = _need(request, "root", "id", "process")
    trace = Trace()
    try:
        launched = container.exec_process(
            root,
            identifier,
            process,
            stdio=_stdio(job),
            console=_console(request),
            clone_parent=True,
            cgroup=request.get("cgroup") or None,
            trace=trace,
        )
    finally:
        job.trace = trace.to_wire()
    return _launch(job, trace, launched)


def _start(request: Request, job: Job) -> dict[str, Any]:
    lifecycle.start(*_need(request, "root", "id"))
    return {}


def _kill(request: Request, job: Job) -> dict[str, Any]:
    """root, id, signal; all."""
    root, identifier, signal = _need(request, "root", "id", "signal")
    lifecycle.kill(root, identifier, signal, all=bool(request.get("all")))
    return {}


def _delete(request: Request, job: Job) -> dict[str, Any]:
    """root, id; force."""
    root, identifier = _need(request, "root", "id")
    lifecycle.delete(root, identifier, force=bool(request.get("force")))
    return {}


def _pause(request: Request, job: Job) -> dict[str, Any]:
    lifecycle.pause(*_need(request, "root", "id"))
    return {}


def _resume(request: Request, job: Job) -> dict[str, Any]:
    lifecycle.resume(*_need(request, "root", "id"))
    return {}


def _checkpoint(request: Request, job: Job) -> dict[str, Any]:
    """root, id, path (a directory for criu's images), patience (seconds)."""
    from nagaya.runtime import criu  # in the few builders that are asked for it

    root, identifier, images = _need(request, "root", "id", "path")
    criu.snapshot(root, identifier, images, float(request.get("patience") or 0), job.reply_to)
    return {}


def _restore(request: Request, job: Job) -> dict[str, Any]:
    """root, id, bundle, spec, rootfs, path (criu's images); cgroup_driver."""
    from nagaya.runtime import criu

    job.keeper()
    job.alone()
    root, identifier, bundle, spec, images = _need(request, "root", "id", "bundle", "spec", "path")
    driver = request.get("cgroup_driver") or "cgroupfs"
    launched = criu.revive(
        root, identifier, bundle, spec, images, driver, request.get("rootfs") or {}, _stdio(job)
    )
    return _launch(job, Trace(), launched)


def _update(request: Request, job: Job) -> dict[str, Any]:
    lifecycle.update(*_need(request, "root", "id", "resources"))
    return {}


def _ps(request: Request, job: Job) -> dict[str, Any]:
    return {"pids": lifecycle.ps(*_need(request, "root", "id"))}


def _stats(request: Request, job: Job) -> dict[str, Any]:
    return dict(lifecycle.stats(*_need(request, "root", "id")))


def _state(request: Request, job: Job) -> dict[str, Any]:
    return dict(lifecycle.state(*_need(request, "root", "id")))


def _netns(request: Request, job: Job) -> dict[str, Any]:
    """pin: make a network namespace with lo up, pin it there by a bind mount, and send an rtnetlink
    socket opened inside with the reply (network_namespaces(7)). ipv6: interfaces will have IPv6. dns: the
    sockets of its resolver come along (UDP, TCP). user: {"pin", "uidMappings", "gidMappings"} of a new user
    namespace that owns it."""
    (pin,) = _need(request, "pin")
    os.makedirs(os.path.dirname(pin), 0o711, exist_ok=True)
    user = request.get("user")
    made: list[str] = []
    for path in [pin, *([user["pin"]] if user else [])]:
        try:
            os.close(
                os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o444)
            )
        except FileExistsError:
            pods.unpin(*made)
            raise AlreadyExists("a namespace is pinned there", subject=path) from None
        made.append(path)
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if user:
            pods.in_user_namespace(user["uidMappings"], user["gidMappings"], user["pin"], ["net"])
        else:
            namespaces.unshare(namespaces.CLONE_NEWNET)
        _ipv6_of_interfaces_to_come(bool(request.get("ipv6")))
        pods.raise_loopback()
        mounts.mount("/proc/self/ns/net", pin, None, mounts.MS_BIND)
        job.reply_fds.append(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, _NETLINK_ROUTE).detach())
        if request.get("dns"):
            job.reply_fds += _resolver_sockets()
    except BaseException:
        pods.unpin(*made)
        raise
    finally:
        namespaces.setns(own, namespaces.CLONE_NEWNET)  # the next job's processes begin in ours
        os.close(own)
    return {"pin": pin}


def _ipv6_of_interfaces_to_come(on: bool) -> None:
    """Where a network has no IPv6 its interfaces have none, or an eth0 would take any neighbour's router
    advertisements (CVE-2024-32473); where it has, they listen to none, and use their addresses at once.
    What is there, lo, keeps ::1. /proc/sys/net shows the caller's namespace."""
    values = {"accept_ra": "0", "accept_dad": "0", "disable_ipv6": "0"} if on else {"disable_ipv6": "1"}
    for name, value in values.items():
        try:
            with open(f"/proc/sys/net/ipv6/conf/default/{name}", "w", encoding="ascii") as file:
                file.write(value)
        except FileNotFoundError:
            pass  # a kernel without IPv6


def _resolver_sockets() -> list[int]:
    """127.0.0.11:53 by UDP and TCP, in this network namespace."""
    made = []
    for kind in (SOCK_DGRAM, SOCK_STREAM):
        sock = socket(AF_INET, kind | SOCK_CLOEXEC, 0)
        sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        sock.bind(("127.0.0.11", 53))
        if kind == SOCK_STREAM:
            sock.listen(16)
        made.append(sock.detach())
    return made


def _netns_enter(request: Request, job: Job) -> dict[str, Any]:
    """path: send an rtnetlink socket opened in that network namespace with the reply. ipv6, dns: as for
    netns."""
    (path,) = _need(request, "path")
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        namespaces.setns(there, namespaces.CLONE_NEWNET)
        if request.get("ipv6"):
            _ipv6_of_interfaces_to_come(True)
        job.reply_fds.append(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, _NETLINK_ROUTE).detach())
        if request.get("dns"):
            job.reply_fds += _resolver_sockets()
    finally:
        namespaces.setns(own, namespaces.CLONE_NEWNET)
        os.close(there)
        os.close(own)
    return {}


def _netns_delete(request: Request, job: Job) -> dict[str, Any]:
    """pin: unpin a network namespace; one that is not there is no error."""
    (pin,) = _need(request, "pin")
    try:
        mounts.umount2(pin, mounts.MNT_DETACH | mounts.UMOUNT_NOFOLLOW)
    except KernelError as error:
        if error.errno not in (2, 22):  # ENOENT; EINVAL: a file that is no mount
            raise
    try:
        os.unlink(pin)
    except FileNotFoundError:
        pass
    return {}


def _mount(request: Request, job: Job) -> dict[str, Any]:
    """target, source, type, options: mount a file system on the host, as mount(8) would by these words;
    "none" with bind or rbind among them is a bind mount. What was mounted there goes first."""
    target, source, kind, words = _need(request, "target", "source", "type", "options")
    options = Parsed([str(word) for word in words])
    _unmount_all(target)
    binding = options.flags & mounts.MS_BIND
    mounts.mount(source, target, None if binding else kind, options.flags, options.data or None)
    try:
        if binding and options.flags & ~(mounts.MS_BIND | mounts.MS_REC):
            # mount(2): the first call ignores all flags but these
            mounts.mount(None, target, None, options.flags & ~mounts.MS_REC | mounts.MS_REMOUNT)
        for flags in options.propagation:
            mounts.mount(None, target, None, flags)
    except BaseException:
        _unmount_all(target)
        raise
    return {}


def _unmount(request: Request, job: Job) -> dict[str, Any]:
    """target: take away what is mounted there; nothing is no error."""
    _unmount_all(*_need(request, "target"))
    return {}


def _unmount_all(target: str) -> None:
    while mounts.is_mount_point(target):
        mounts.umount2(target, mounts.MNT_DETACH | mounts.UMOUNT_NOFOLLOW)


OPERATIONS: dict[str, Operation] = {
    "run": _make,
    "create": _make,
    "exec": _exec,
    "start": _start,
    "kill": _kill,
    "delete": _delete,
    "pause": _pause,
    "resume": _resume,
    "update": _update,
    "checkpoint": _checkpoint,
    "restore": _restore,
    "ps": _ps,
    "stats": _stats,
    "state": _state,
    "netns": _netns,
    "netns-enter": _netns_enter,
    "netns-delete": _netns_delete,
    "mount": _mount,
    "unmount": _unmount,
    "pod-pin": pods.pin,
    "pod-sockets": pods.sockets,
    "spawn-foreign": foreign.spawn,
}
