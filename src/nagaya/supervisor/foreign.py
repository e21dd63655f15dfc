"""Foreign OCI runtimes (runc, crun, runsc): executed by a builder, so that the keeper, as subreaper,
becomes the parent of the container's first process when the runtime has ended.

Request: argv; env, cwd, pid_file, console_socket, timeout.
* With a token and stdio "pipes" the runtime gets the container's stdio as its own, which is how runc
  create passes it on. Without a token its output is captured and returned.
* pid_file: where argv tells the runtime to write the init's pid; when the runtime has succeeded, that
  process is what the token stands for. Without it the daemon says so later (`watch`).
* mount: {"path", "overlay"}: the container's root, mounted there before the runtime is executed. Whoever
  asked for it takes it away, also after a failure.
* console_socket: where argv tells the runtime to send the terminal; the keeper gets it.
"""

from __future__ import annotations

import os
import select
import time
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, socket

from nagaya.errors import DeadlineExceeded, InternalError, InvalidArgument
from nagaya.linux import mounts, namespaces, pids, process, seqpacket
from nagaya.linux.overlay import mount_overlay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.supervisor.builder import Job

_OUTPUT = 1 << 20  # bytes of output that are kept
_TIMEOUT = 60.0


def spawn(request: dict[str, Any], job: Job) -> dict[str, Any]:
    """Run a foreign runtime. Returns {"code", "output", "pid"}; without a pid_file a code other than 0
    is no error of ours. Raises InvalidArgument, DeadlineExceeded (the runtime is killed), and
    InternalError when it should have made a process and failed: then the token is free again."""
    argv = request.get("argv")
    if not isinstance(argv, list) or not argv or not all(isinstance(a, str) for a in argv):
        raise InvalidArgument("argv must be a list of words", subject="argv")
    job.alone()  # what becomes of the runtime's children is this process's business until it ends
    pid_file = str(request.get("pid_file") or "")
    if pid_file:
        job.keeper()
    begin = time.monotonic_ns()
    if request.get("mount"):
        _mount(request["mount"])
    console = _listen(str(request.get("console_socket") or ""))
    stdio, output = job.stdio, -1
    opened: list[int] = []
    if stdio[0] < 0 and console is None:
        output, write_end = os.pipe2(os.O_CLOEXEC)
        stdio = (0, write_end, write_end)
        opened = [write_end]
    elif stdio[0] < 0:
        stdio = (0, 1, 1)
    # A process that ends at once stays, as our zombie, until its pidfd is open; with our own end it becomes
    # the keeper's.
    process.set_child_subreaper(True)
    pid, pidfd = namespaces.clone3(namespaces.CLONE_PIDFD)
    if not pid:
        _execute(argv, request, stdio)
    seqpacket.close_all(opened)
    text, master = _wait(pidfd, output, console, float(request.get("timeout") or _TIMEOUT))
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    code = 128 - code if code < 0 else code
    job.trace.append(["foreign runtime", argv[0], begin, time.monotonic_ns() - begin])
    if code and pid_file:
        seqpacket.close_all([master] if master >= 0 else [])
        raise InternalError(f"ended with code {code}", step=argv[0])
    first = _pid_of(pid_file) if code == 0 else 0
    if first:
        job.launched(first, pids.pidfd_open(first), master)
    return {"code": code, "output": text.decode("utf-8", "replace"), "pid": first}


def _mount(wanted: dict[str, Any]) -> None:
    tree = mount_overlay(wanted["overlay"])
    try:
        mounts.move_mount(tree, mounts.AT_FDCWD, wanted["path"])
    finally:
        os.close(tree)


def _own(fd: int) -> int:
    """A duplicate; of the host's null device the end of an empty pipe: runsc gives its stdin to nobody, by
    fchown(2), and that would be the device itself."""
    info = os.fstat(fd)
    if info.st_mode & 0o170000 != 0o020000 or info.st_rdev != os.makedev(1, 3):
        return os.dup(fd)
    reader, writer = os.pipe()
    os.close(writer)
    return reader


def _execute(argv: list[str], request: dict[str, Any], stdio: tuple[int, int, int]) -> None:
    """In the child; never returns."""
    try:
        # Duplicates first: one of stdio may lie where another belongs.
        high = [_own(fd) for fd in stdio]
        for number, fd in enumerate(high):
            os.dup2(fd, number)
        namespaces.close_range(3)
        if request.get("cwd"):
            os.chdir(str(request["cwd"]))
        environment = request.get("env")
        if not isinstance(environment, dict):
            environment = {"PATH": os.environ.get("PATH", os.defpath)}
        os.execvpe(argv[0], argv, environment)
    except OSError as error:
        os.write(2, f"{argv[0]}: {os.strerror(error.errno or 0)}\n".encode())
        os._exit(126 if error.errno == 13 else 127)
    finally:
        os._exit(127)


def _listen(path: str) -> socket | None:
    if not path:
        return None
    sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)
    sock.bind(path)
    sock.listen(1)
    return sock


def _wait(pidfd: int, output: int, console: socket | None, timeout: float) -> tuple[bytes, int]:
    """Until the runtime has ended: (its output, the terminal or -1)."""
    poll = select.poll()
    for fd in [pidfd] + ([output] if output >= 0 else []) + ([console.fileno()] if console else []):
        poll.register(fd, select.POLLIN)
    text, master, ended = b"", -1, False
    deadline = time.monotonic() + timeout
    while not ended:
        left = deadline - time.monotonic()
        if left <= 0:
            pids.pidfd_send_signal(pidfd, 9)
            raise DeadlineExceeded(f"the runtime took longer than {timeout:g} s", step="foreign runtime")
        ready = [fd for fd, _ in poll.poll(left * 1000)]
        if console is not None and console.fileno() in ready:
            master = _accept(console)
        # The end only counts when everything before it was read: the container's first process may
        # hold the output open, so end of file is not waited for.
        ended = pidfd in ready
        if output in ready:
            data = os.read(output, 65536)
            text = (text + data)[-_OUTPUT:]
            if data:
                ended = False
            else:
                poll.unregister(output)
    return text, master


def _accept(console: socket) -> int:
    fd, _ = console._accept()  # type: ignore[attr-defined]
    peer = socket(-1, -1, -1, fileno=fd)
    packet = seqpacket.receive(peer, wait=True)
    peer.close()
    if packet is None or not packet.fds:
        raise InternalError("the runtime sent no terminal", step="console socket")
    return packet.fds[0]


def _pid_of(path: str) -> int:
    if not path:
        return 0
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        text = os.read(fd, 32).strip()
    finally:
        os.close(fd)
    if not text.isdigit():
        raise InternalError(f"no pid in {path}", subject=path, step="read pid file")
    return int(text)
