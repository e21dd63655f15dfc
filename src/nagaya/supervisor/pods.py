"""What builders do for pods: pinned namespaces without a process in them, and sockets opened inside.

A namespace lives as long as a bind mount of its /proc/PID/ns file (namespaces(7)); the builder makes
it by unshare(2), sets it up from inside, and goes back to its own for the next job.
"""

from __future__ import annotations

import os
from _socket import AF_INET, AF_INET6, AF_NETLINK, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_RAW, SOCK_STREAM, socket
from _struct import pack
from fcntl import ioctl

from nagaya.errors import AlreadyExists, InvalidArgument, KernelError
from nagaya.linux import mounts, namespaces
from nagaya.runtime import serving

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.supervisor.builder import Job

    Request = dict[str, Any]

_KINDS = {
    "net": namespaces.CLONE_NEWNET,
    "ipc": namespaces.CLONE_NEWIPC,
    "uts": namespaces.CLONE_NEWUTS,
    "user": namespaces.CLONE_NEWUSER,
}
_NETLINK_ROUTE = 0
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1  # netdevice(7)
_FAMILIES = {"inet": AF_INET, "inet6": AF_INET6}


def pin(request: Request, job: Job) -> dict[str, Any]:
    """pins: {"net" | "ipc" | "uts" | "user": path}, hostname, sysctls, wishes: make the namespaces, pin them
    there; of a network namespace lo is up, and an rtnetlink socket opened inside comes with the reply.
    wishes are sysctls that a kernel may lack. A user namespace, with uids and gids as config.json has
    mappings, owns the others.

    All of it or nothing. Raises AlreadyExists for a path that is taken, InvalidArgument for a sysctl
    that the kernel does not take.
    """
    pins, sysctls = request.get("pins"), request.get("sysctls") or {}
    if not isinstance(pins, dict) or not pins or any(kind not in _KINDS for kind in pins):
        raise InvalidArgument("pod-pin needs pins", subject="pins")
    made: list[str] = []
    inner = [kind for kind in pins if kind != "user"]
    own = {kind: os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in inner}
    try:
        for path in pins.values():
            os.makedirs(os.path.dirname(path), 0o711, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                os.close(os.open(path, flags, 0o444))
            except FileExistsError:
                raise AlreadyExists("a namespace is pinned there", subject=path) from None
            made.append(path)
        if "user" in pins:
            in_user_namespace(request.get("uids") or [], request.get("gids") or [], pins["user"], inner)
        else:
            for kind in inner:
                namespaces.unshare(_KINDS[kind])
        if "net" in pins:
            raise_loopback()
        if "uts" in pins and request.get("hostname"):
            namespaces.sethostname(request["hostname"])
        for name, value in (request.get("wishes") or {}).items():
            try:
                _set_sysctl(name, value)
            except InvalidArgument:
                pass
        for name, value in sysctls.items():
            _set_sysctl(name, value)
        for kind in inner:
            mounts.mount(f"/proc/self/ns/{kind}", pins[kind], None, mounts.MS_BIND)
        if "net" in pins:
            job.reply_fds.append(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, _NETLINK_ROUTE).detach())
    except BaseException:
        unpin(*made)
        raise
    finally:
        for kind, fd in own.items():
            namespaces.setns(fd, _KINDS[kind])  # the next job's processes begin in ours
            os.close(fd)
    return {}


def in_user_namespace(uids: list[Any], gids: list[Any], path: str, inner: list[str]) -> None:
    """Pin a new user namespace at path, and enter new namespaces that it owns. They are made by a process
    in it, which lives for just that long."""
    mapped, tell_mapped = os.pipe2(os.O_CLOEXEC)
    ready, tell_ready = os.pipe2(os.O_CLOEXEC)
    pid, pidfd = namespaces.clone3(namespaces.CLONE_NEWUSER | namespaces.CLONE_PIDFD)
    if pid == 0:
        status = 1
        try:
            os.close(tell_mapped)
            if os.read(mapped, 1):  # else the parent has failed
                for kind in inner:
                    namespaces.unshare(_KINDS[kind])
                os.write(tell_ready, b"1")
                os.read(mapped, 1)  # its end of file: all is open elsewhere
                status = 0
        finally:
            os._exit(status)
    os.close(pidfd)
    os.close(mapped)
    os.close(tell_ready)
    try:
        serving.map_ids(pid, uids, gids)
        os.write(tell_mapped, b"1")
        if not os.read(ready, 1):
            raise KernelError("the namespaces cannot be made", subject="user", step="unshare")
        mounts.mount(f"/proc/{pid}/ns/user", path, None, mounts.MS_BIND)
        for kind in inner:
            fd = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                namespaces.setns(fd, _KINDS[kind])
            finally:
                os.close(fd)
    finally:
        os.close(tell_mapped)
        os.close(ready)
        os.waitpid(pid, 0)


def raise_loopback() -> None:
    """lo goes up in the network namespace that we are in."""
    control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)
    lo = ioctl(control.fileno(), _SIOCGIFFLAGS, pack("16sH22x", b"lo", 0))
    flags = int.from_bytes(lo[16:18], "little") | _IFF_UP
    ioctl(control.fileno(), _SIOCSIFFLAGS, pack("16sH22x", b"lo", flags))


def _set_sysctl(name: str, value: str) -> None:
    path = "/proc/sys/" + name.replace(".", "/")
    if "/../" in path:
        raise InvalidArgument(f"invalid sysctl {name!r}", subject="sysctls")
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(value)
    except (OSError, ValueError) as error:
        why = os.strerror(error.errno or 0).lower() if isinstance(error, OSError) else str(error)
        raise InvalidArgument(f"sysctl {name}={value}: {why}", subject="sysctls") from None


def unpin(*paths: str) -> None:
    """Let namespaces go whose pinning has failed half-way."""
    for path in paths:
        try:
            mounts.umount2(path, mounts.MNT_DETACH | mounts.UMOUNT_NOFOLLOW)
        except KernelError:
            pass  # it was not mounted yet
        os.unlink(path)


def sockets(request: Request, job: Job) -> dict[str, Any]:
    """net: the pin of a network namespace; families: of "inet", "inet6": a TCP socket of each, opened
    inside, comes with the reply. A socket stays in the namespace that it was made in (network_namespaces(7)).
    """
    path, families = request.get("net"), request.get("families")
    if (
        not isinstance(path, str)
        or not isinstance(families, list)
        or any(f not in _FAMILIES for f in families)
    ):
        raise InvalidArgument("pod-sockets needs net and families", subject="net")
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        inside = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            namespaces.setns(inside, namespaces.CLONE_NEWNET)
        finally:
            os.close(inside)
        for family in families:
            job.reply_fds.append(socket(_FAMILIES[family], SOCK_STREAM | SOCK_CLOEXEC, 0).detach())
    finally:
        namespaces.setns(own, namespaces.CLONE_NEWNET)
        os.close(own)
    return {}
