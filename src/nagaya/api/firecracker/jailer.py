"""nagaya-vmm in a jail: root directory, user, cgroups and limits of its own, as by Firecracker's jailer.

Firecracker's is a program of its own that executes another; a Python program needs its library to begin,
which is not in the jail: so this one is loaded first, and goes in itself. QEMU, started in there, needs the
host's /usr, which is mounted read-only in the jail's mount namespace. Of root's capabilities two are kept,
for the limits and the metadata of network cards; QEMU gets none.
"""

from __future__ import annotations

import argparse
import os
import stat
import time
from typing import NoReturn

from nagaya.api.firecracker import arguments
from nagaya.api.firecracker.cards import Hall
from nagaya.api.firecracker.guest import Host
from nagaya.errors import NagayaError
from nagaya.linux import caps, cgroup, mounts, namespaces, process

NAME = "nagaya-vmm"
_KEPT = ("CAP_NET_ADMIN", "CAP_NET_RAW")
_SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/etc/ld.so.cache")
_DEVICES = {"/dev/net/tun": 0o666, "/dev/null": 0o666, "/dev/urandom": 0o666, "/dev/kvm": 0o660}
_LIMITS = {"fsize": 1, "no-file": 7}  # RLIMIT_FSIZE, RLIMIT_NOFILE
_PR_SET_SECUREBITS, _SECBIT_NOROOT = 28, 1
_NO_FILE = 2048  # Firecracker's default


class JailError(Exception):
    """The jail cannot be built; str() says why."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise JailError(f"Arguments parsing error: {message}")


def _parser() -> argparse.ArgumentParser:
    made = _Parser(
        prog="nagaya-vmm jailer",
        allow_abbrev=False,
        description="Start nagaya-vmm in a jail; what follows -- is for it.",
    )
    made.add_argument("--id", required=True, help="the microVM's name")
    made.add_argument("--exec-file", default=NAME, help="its last part names the jail's directory")
    made.add_argument("--uid", required=True, type=int)
    made.add_argument("--gid", required=True, type=int)
    made.add_argument("--chroot-base-dir", default="/srv/jailer", help="where jails are (/srv/jailer)")
    made.add_argument("--netns", help="path of the network namespace to enter")
    made.add_argument("--cgroup", action="append", default=[], metavar="FILE=VALUE")
    made.add_argument("--cgroup-version", choices=("1", "2"), default="1")
    made.add_argument("--parent-cgroup", help="below which the machine's own cgroup is made")
    made.add_argument("--resource-limit", action="append", default=[], metavar="NAME=VALUE")
    made.add_argument("--daemonize", action="store_true", help="a session of its own, without terminal")
    made.add_argument("--new-pid-ns", action="store_true", help="a pid namespace of its own")
    return made


class Jail:
    """What was made outside, and is needed inside."""

    def __init__(self, host: Host) -> None:
        self.host = host


def split(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and what follows "--". Raises JailError; SystemExit after --help."""
    own, rest = argv, []
    if "--" in argv:
        at = argv.index("--")
        own, rest = argv[:at], argv[at + 1 :]
    options = _parser().parse_args(own)
    if wrong := arguments.check_id(options.id):
        raise JailError(f"Invalid instance ID: {wrong}")
    name = os.path.basename(options.exec_file)
    if not name or name in (".", ".."):
        raise JailError(f"{options.exec_file}: no name of a program")
    options.exec_name = name
    if not 0 <= options.uid < 1 << 32 or not 0 <= options.gid < 1 << 32:
        raise JailError("uid and gid are numbers of 32 bits")
    options.limits = {"no-file": _NO_FILE}
    for text in options.resource_limit:
        key, _, value = text.partition("=")
        if key not in _LIMITS or not value.isdigit():
            raise JailError(f"Invalid resource limit: {text}: fsize=BYTES or no-file=COUNT")
        options.limits[key] = int(value)
    options.parent_cgroup = name if options.parent_cgroup is None else options.parent_cgroup
    if ".." in options.parent_cgroup.split("/") or options.parent_cgroup.startswith("/"):
        raise JailError(f"Invalid parent cgroup: {options.parent_cgroup}")
    for text in options.cgroup:
        file, _, value = text.partition("=")
        if not value or "." not in file or "/" in file:
            raise JailError(f"Invalid format for cgroups: {text}: FILE=VALUE")
    return options, rest


def enter(argv: list[str]) -> tuple[list[str], Jail]:
    """Build the jail and go in: nagaya-vmm's own arguments, and what it has from outside.

    Raises JailError, NagayaError, OSError; SystemExit for --help, and in the process that stays outside with
    --new-pid-ns.
    """
    options, rest = split(argv)
    if os.geteuid():
        raise JailError("only root builds jails")
    began = time.time_ns() // 1000
    root = os.path.join(options.chroot_base_dir, options.exec_name, options.id, "root")
    os.makedirs(root, mode=0o700, exist_ok=True)
    namespaces.close_range(3)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for name, value in options.limits.items():
        process.set_rlimit(_LIMITS[name], value, value, subject=name)
    _join_cgroups(options)
    if options.netns:
        fd = os.open(options.netns, os.O_RDONLY | os.O_CLOEXEC)
        namespaces.setns(fd, namespaces.CLONE_NEWNET)
        os.close(fd)
    host = Host(Hall())
    devices = {path: os.stat(path).st_rdev for path in _DEVICES if os.path.exists(path)}
    _change_root(root)
    _make_devices(devices, options.uid, options.gid)
    if options.daemonize:
        os.setsid()
        for number in range(3):
            os.dup2(null, number)
    os.close(null)
    if options.new_pid_ns:
        _new_pid_namespace(options.exec_name)
    _drop(options.uid, options.gid)
    own = [f"--id={options.id}", f"--start-time-us={began}", "--start-time-cpu-us=0"]
    return [*own, *rest], Jail(host)


def _join_cgroups(options: argparse.Namespace) -> None:
    layout = cgroup.layout()
    files: dict[str, list[tuple[str, str]]] = {}
    for text in options.cgroup:
        file, _, value = text.partition("=")
        files.setdefault(file.partition(".")[0], []).append((file, value))
    if options.cgroup_version == "2":
        if not layout.unified:
            raise JailError("there is no cgroup of version 2 here")
        parent = os.path.join(layout.unified, options.parent_cgroup)
        if not files:
            if os.path.isdir(parent):
                cgroup.write(f"{parent}/cgroup.procs", str(os.getpid()))
            return
        directory = os.path.join(parent, options.id)
        os.makedirs(directory, exist_ok=True)
        _fill(directory, [pair for pairs in files.values() for pair in pairs])
        return
    for controller, pairs in files.items():
        found = layout.hierarchy(controller)
        if found is None:
            raise JailError(f"there is no cgroup of version 1 with the controller {controller}")
        directory = os.path.join(found.mountpoint, options.parent_cgroup, options.id)
        os.makedirs(directory, exist_ok=True)
        _fill(directory, pairs)


def _fill(directory: str, pairs: list[tuple[str, str]]) -> None:
    for file, value in pairs:
        cgroup.write(f"{directory}/{file}", value)
    cgroup.write(f"{directory}/cgroup.procs", str(os.getpid()))


def _change_root(root: str) -> None:
    namespaces.unshare(namespaces.CLONE_NEWNS)
    mounts.mount(None, "/", None, mounts.MS_REC | mounts.MS_PRIVATE)
    mounts.mount(root, root, None, mounts.MS_BIND | mounts.MS_REC)
    read_only = mounts.MS_RDONLY | mounts.MS_NOSUID | mounts.MS_NODEV
    for path in _SYSTEM:
        if not os.path.lexists(path):
            continue
        target = root + path
        if os.path.islink(path):
            if not os.path.lexists(target):
                os.symlink(os.readlink(path), target)
            continue
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.isdir(path):
            os.makedirs(target, exist_ok=True)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644))
        mounts.mount(path, target, None, mounts.MS_BIND | mounts.MS_REC)
        mounts.mount(None, target, None, mounts.MS_REMOUNT | mounts.MS_BIND | read_only)
    os.chdir(root)
    mounts.pivot_root(".", ".")
    mounts.umount2(".", mounts.MNT_DETACH)
    os.chdir("/")


def _make_devices(devices: dict[str, int], uid: int, gid: int) -> None:
    os.makedirs("/dev/net", exist_ok=True)
    for path, number in devices.items():
        if not os.path.lexists(path):
            os.mknod(path, stat.S_IFCHR | _DEVICES[path], number)
        os.chown(path, uid, gid, follow_symlinks=False)
    for path in ("/", "/run"):
        os.makedirs(path, exist_ok=True)
        os.chown(path, uid, gid)


def _new_pid_namespace(name: str) -> None:
    namespaces.unshare(namespaces.CLONE_NEWPID)
    child = os.fork()
    if child:
        with open(f"/{name}.pid", "w") as file:
            file.write(str(child))
        raise SystemExit(0)


def _drop(uid: int, gid: int) -> None:
    keep, _ = caps.to_mask(_KEPT)
    # also for user 0: or execve(2) would give QEMU what we keep
    process.prctl(_PR_SET_SECUREBITS, _SECBIT_NOROOT, subject="securebits")
    caps.drop_bounding(keep)
    process.set_no_new_privs()
    process.set_keep_caps(True)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    process.set_keep_caps(False)
    caps.capset(keep, keep, 0)


def complain(error: Exception) -> str:
    """What a user is told of a failure."""
    if isinstance(error, OSError) and not isinstance(error, NagayaError):
        return f"{error.filename or 'jailer'}: {os.strerror(error.errno or 0)}"
    return str(error)
