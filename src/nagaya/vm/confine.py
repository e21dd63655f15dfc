"""The process that becomes QEMU, from clone to execve, and what it may still see and do.

Confined, it is root of a user namespace whose ids are nobody's on the host, in namespaces of its own for
mounts, network, processes, IPC and names. Its root is a read-only tmpfs with the host's /usr, three devices,
and the files of the machine bound to /vm. With a shared directory it keeps, in that namespace, what file
servers need (CAP_CHOWN and kin): that counts for files of mounts which are mapped to its ids
(mount_setattr(2), MOUNT_ATTR_IDMAP), and for none of the host's.

The memory of a clone is a file that all clones of a template share, each with pages of its own for what it
writes. QEMU (before 8.2) insists on opening it for writing, with which one guest that has taken over its QEMU
could change all others. So a filter asks us at that very open, and the answer is a descriptor that only
reads.
"""

from __future__ import annotations

import _socket
import errno
from _struct import pack
from select import POLLIN, poll

from nagaya.errors import KernelError, NagayaError, Unavailable
from nagaya.linux import caps, mounts, os, process, seccomp_load, seccomp_notify, seqpacket
from nagaya.linux import namespaces as ns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from nagaya.vm.machine import Machine

IDS = 65536
_FIRST, _SLOTS = 0x60000000, 32768
_SPACES = ns.CLONE_NEWNS | ns.CLONE_NEWNET | ns.CLONE_NEWPID | ns.CLONE_NEWIPC | ns.CLONE_NEWUTS
# where the new root is put together: every host has it, and QEMU needs nothing of it
_PLACE = "/sys"
_SERVER = ("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID")
_DEVICES = ("/dev/null", "/dev/urandom")
_SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/etc/ld.so.cache")
_LINK, _DIRECTORY, _KIND = 0o120000, 0o040000, 0o170000
_ALLOW, _ASK = 0x7FFF0000, 0x7FC00000
_AT_FDCWD, _OPENAT, _X86_64 = 0xFFFFFF9C, 257, 0xC000003E


def _filter() -> bytes:
    """Ask at openat(AT_FDCWD, path, O_RDWR), which is QEMU's open of a memory file, and no other."""
    load, equal, give = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    tests = ((4, _X86_64), (0, _OPENAT), (16, _AT_FDCWD), (32, os.O_RDWR))  # offsets in struct seccomp_data
    program = b""
    for index, (offset, value) in enumerate(tests):
        to_the_end = 2 * (len(tests) - 1 - index) + 1
        program += pack("=HBBI", load, 0, 0, offset) + pack("=HBBI", equal, 0, to_the_end, value)
    return program + pack("=HBBI", give, 0, 0, _ASK) + pack("=HBBI", give, 0, 0, _ALLOW)


class Confinement:
    """base: the first of 65536 ids of the host that are this machine's; 0: by the caller's pid, as only one
    process has it at a time. cgroups: directories that the process joins."""

    __slots__ = ("base", "cgroups")

    def __init__(self, base: int = 0, cgroups: Sequence[str] = ()) -> None:
        self.base = base or _FIRST + os.getpid() % _SLOTS * IDS
        self.cgroups = list(cgroups)


def _bound(machine: Machine) -> dict[str, str]:
    """{path on the host: path inside} of what QEMU opens itself."""
    inside = {machine.kernel: "/vm/kernel"}
    if machine.initrd:
        inside[machine.initrd] = "/vm/initrd"
    if machine.memory.path:
        inside[machine.memory.path] = "/vm/memory"
    if machine.vsock:
        inside[machine.vsock.path] = "/vm/vsock"
    for share in machine.shares:
        inside[share.path] = f"/vm/share-{share.tag}"
    return inside


def inside(machine: Machine) -> Machine:
    """The same machine with the paths that its files have in there."""
    names, inner = _bound(machine), machine.copy()
    inner.kernel = names[machine.kernel]
    inner.initrd = names.get(machine.initrd, "")
    inner.memory = machine.memory.at(names.get(machine.memory.path, ""))
    inner.vsock = machine.vsock.at(names[machine.vsock.path]) if machine.vsock else None
    inner.shares = [share.at(names[share.path]) for share in machine.shares]
    return inner


def _bind(source: str, target: str, flags: int = 0, *, grows: bool = False) -> None:
    """A file or directory of the host at a place of the new root, which is made. grows: what is mounted below
    it later is to be there, too."""
    kind = os.stat(source).st_mode & _KIND
    if kind == _DIRECTORY:
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    mounts.mount(source, target, None, mounts.MS_BIND | mounts.MS_REC)
    if not grows:
        mounts.mount(None, target, None, mounts.MS_PRIVATE | mounts.MS_REC)
    if flags:
        mounts.mount(None, target, None, mounts.MS_REMOUNT | mounts.MS_BIND | flags)


def _build_root(machine: Machine, base: int) -> None:
    read_only = mounts.MS_RDONLY | mounts.MS_NOSUID
    mounts.mount(None, "/", None, mounts.MS_REC | mounts.MS_SLAVE)
    mounts.mount("tmpfs", _PLACE, "tmpfs", mounts.MS_NOSUID, "mode=755,size=1m")
    for path in _SYSTEM:
        try:
            kind = os.lstat(path).st_mode & _KIND
        except OSError:
            continue
        if kind == _LINK:
            os.symlink(os.readlink(path), _PLACE + path)
        else:
            _bind(path, _PLACE + path, read_only | mounts.MS_NODEV)
    for path in _DEVICES:
        _bind(path, _PLACE + path)
    if machine.accel == "kvm":  # a node of its own: the host's is for root and a group
        os.mknod(f"{_PLACE}/dev/kvm", 0o020600, os.stat("/dev/kvm").st_rdev)
        os.chown(f"{_PLACE}/dev/kvm", base, base)
    shared = {share.path for share in machine.shares}
    if shared:  # QEMU's file server changes modes by /proc/self/fd, where it sees itself alone
        os.mkdir(f"{_PLACE}/proc", 0o755)
        hidden = mounts.MS_NODEV | mounts.MS_NOEXEC
        mounts.mount("proc", f"{_PLACE}/proc", "proc", read_only | hidden)
    for path, name in _bound(machine).items():
        flags = mounts.MS_NOSUID | mounts.MS_NODEV if path in shared else 0
        _bind(path, _PLACE + name, flags, grows=path in shared)
    os.chdir(_PLACE)
    mounts.pivot_root(".", ".")
    mounts.umount2(".", mounts.MNT_DETACH)
    os.chdir("/")
    mounts.mount(None, "/", None, mounts.MS_REMOUNT | mounts.MS_BIND | mounts.MS_RDONLY)


def _become_nobody(machine: Machine, end: _socket.socket) -> None:
    ns.unshare(ns.CLONE_NEWUSER)
    end.send(b"u")
    if end.recv(1) != b"m":
        os._exit(1)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    keep = caps.to_mask(_SERVER if machine.shares else ())[0]
    caps.drop_bounding(keep)
    process.set_no_new_privs()


def _run(
    machine: Machine,
    words: list[str],
    kept: Sequence[int],
    stderr: int,
    confined: Confinement | None,
    end: _socket.socket,
) -> NoReturn:
    """In the new process. Nothing is imported here: the root changes."""
    try:
        program = _filter()
        for fd in kept:
            os.set_inheritable(fd, True)
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        for target, fd in enumerate((null, null, stderr)):
            os.dup2(fd, target)
        process.reset_signals()
        os.setsid()
        if confined:
            _build_root(machine, confined.base)
            _become_nobody(machine, end)
            if asks_for_memory(machine):
                listener = seccomp_load.load(program, seccomp_load.FLAG_NEW_LISTENER)
                seqpacket.send(end, b"l", [listener], wait=True)
        process.prctl(process.PR_SET_PDEATHSIG, 9)
        end.send(b"r")
        if end.recv(1) != b"g":  # who should end us has ended already
            os._exit(1)
        os.execve(words[0], words, {b"PATH": b"/usr/bin:/bin"})
    except NagayaError as error:
        end.send(f"e{error.errno} {error}".encode())
    except OSError as error:
        end.send(f"e{error.errno} {os.fsdecode(error.filename or words[0])}: {error.strerror}".encode())
    finally:
        os._exit(1)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def asks_for_memory(machine: Machine) -> bool:
    """Is its memory a template's, which it must not write to?"""
    return bool(machine.memory.path) and not machine.memory.shared


def _serve(pid: int, end: _socket.socket, confined: Confinement | None) -> int:
    """What the new process needs of its parent, until execve closes its end. The listener of its filter, or
    -1."""
    listener = -1
    while (packet := seqpacket.receive(end, wait=True)) and (said := packet.data):
        if packet.fds:
            listener = packet.fds[0]
        elif said == b"u" and confined:
            for name in ("uid_map", "gid_map"):
                _write(f"/proc/{pid}/{name}", f"0 {confined.base} {IDS}")
            end.send(b"m")
        elif said == b"r":
            end.send(b"g")
        else:
            number, _, words = said[1:].decode("utf-8", "replace").partition(" ")
            if listener >= 0:
                os.close(listener)
            raise KernelError(words, step="start microVM", errno=int(number) if number.isdigit() else 0)
    return listener


def _answer(listener: int, call: seccomp_notify.Call, fd: int) -> bool:
    """False when a signal has interrupted the call meanwhile: it comes again (seccomp_unotify(2))."""
    try:
        seccomp_notify.answer_with_fd(listener, call, fd)
    except KernelError as error:
        if error.errno != errno.ENOENT:
            raise
        return False
    return True


def _give_memory(listener: int, machine: Machine, pidfd: int) -> None:
    """Answer the one open of the memory. Where QEMU ends before it, its monitor tells that."""
    fd = os.open(machine.memory.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        poller = poll()
        poller.register(listener, POLLIN)
        poller.register(pidfd, POLLIN)
        answered = False
        while not answered:
            ready = {number for number, events in poller.poll(60_000) if events & POLLIN}
            if listener not in ready:
                return
            if call := seccomp_notify.receive(listener):
                answered = _answer(listener, call, fd)
    finally:
        os.close(fd)


def start(
    machine: Machine,
    words: list[str],
    kept: Sequence[int],
    stderr: int,
    confined: Confinement | None,
) -> tuple[int, int]:
    """Start it: (pid, pidfd). kept: the descriptors it inherits beside 0, 1, 2.

    Raises KernelError, with the step that failed; nothing of it is left then.
    """
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC, 0)
    try:
        pid, pidfd = ns.clone3((_SPACES if confined else 0) | ns.CLONE_PIDFD)
        if not pid:
            ours.close()
            _run(machine, words, kept, stderr, confined, theirs)
        theirs.close()
        try:
            for directory in confined.cgroups if confined else ():
                _write(f"{directory}/cgroup.procs", str(pid))
            listener = _serve(pid, ours, confined)
            if listener >= 0:
                try:
                    _give_memory(listener, machine, pidfd)
                finally:
                    os.close(listener)
        except BaseException as error:
            ours.close()
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            os.close(pidfd)
            if isinstance(error, OSError):
                raise Unavailable(f"QEMU cannot be started: {error.strerror}", step="start microVM") from None
            raise
    finally:
        ours.close()
        theirs.close()
    return pid, pidfd
