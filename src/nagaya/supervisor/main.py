"""The command `nagaya-supervisor`: one keeper per run directory, in the foreground."""

from __future__ import annotations

import fcntl
import gc
import os
import sys
import time
from _socket import socket

from nagaya import __version__
from nagaya.errors import FailedPrecondition, InvalidArgument, NagayaError
from nagaya.linux import process, seqpacket
from nagaya.runtime import selfbind
from nagaya.supervisor.keeper import Keeper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from nagaya.supervisor.builder import Operation

SOCKET = "supervisor.sock"
PIDFILE = "supervisor.pid"
_KEPT = "NAGAYA_SUPERVISOR_KEPT"  # what one program leaves to the next: see `renew`
_LOCK_WAIT = 0.5  # seconds: a fresh fork of a killed keeper still has its lock until it closes it
_USAGE = """\
usage: nagaya-supervisor --run DIRECTORY [--root DIRECTORY]

The resident parent of containers: keeps their stdio, logs and exit codes while nagayad comes and goes.

  --run DIRECTORY   where supervisor.sock and supervisor.pid go
  --root DIRECTORY  log files must lie below it (default: anywhere)
  --version         print the version

SIGTERM ends it once no container is left; containers are never killed by it. SIGHUP, with a nagayad
connected, makes it go on as the program that is installed now.
"""


def main(argv: list[str]) -> int:
    """Run a keeper. Returns 0; 2 for a wrong command line; 1 for an error, 3 when one runs already."""
    from nagaya.supervisor.operations import OPERATIONS

    try:
        options = _parse(argv)
        if isinstance(options, str):
            os.write(1, options.encode())
            return 0
        run, root = options
    except InvalidArgument as error:
        os.write(2, f"nagaya-supervisor: {error}\n".encode())
        return 2
    selfbind.ensure()
    try:
        return serve(run, OPERATIONS, root)
    except NagayaError as error:
        os.write(2, f"nagaya-supervisor: {error}\n".encode())
        return 3 if isinstance(error, FailedPrecondition) else 1
    except OSError as error:
        os.write(2, f"nagaya-supervisor: {error.filename or run}: {os.strerror(error.errno or 0)}\n".encode())
        return 1


def _parse(argv: list[str]) -> tuple[str, str] | str:
    """(run, root), or the text to print instead. Raises InvalidArgument."""
    values = {"--run": "", "--root": ""}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word in ("-h", "--help"):
            return _USAGE
        if word in ("-v", "--version"):
            return f"nagaya-supervisor {__version__}\n"
        name, equals, value = word.partition("=")
        if name not in values:
            raise InvalidArgument(f"unknown argument {word!r}; see --help")
        if not equals:
            if not rest:
                raise InvalidArgument(f"{name} needs a value")
            value = rest.pop(0)
        values[name] = value
    if not values["--run"]:
        raise InvalidArgument("--run is missing; see --help")
    return os.path.abspath(values["--run"]), os.path.abspath(values["--root"]) if values["--root"] else ""


def serve(run: str, operations: Mapping[str, Operation], log_root: str = "") -> int:
    """Be the keeper of the run directory until told to end. operations: what builders can do.

    Raises FailedPrecondition when another one keeps it, OSError.
    """
    os.makedirs(run, 0o711, exist_ok=True)
    directory = os.getcwd()
    os.chdir("/")
    os.umask(0o022)
    path = f"{run}/{SOCKET}"
    kept = os.environ.pop(_KEPT, "")
    if kept:
        lock, listening, soft, hard = (int(number) for number in kept.split())
        listener, nofile = socket(-1, -1, -1, fileno=listening), (soft, hard)
        for fd in (lock, listening):
            os.set_inheritable(fd, False)
    else:
        lock = _lock(f"{run}/{PIDFILE}")
        nofile = _raise_nofile()
        listener = seqpacket.listen(path)
    process.set_child_subreaper(True)

    def renew() -> None:
        """Execute the program that is installed now in this process: the children stay ours, daemons
        that connect wait, and the one that holds duplicates of all descriptors gives them back."""
        for fd in (lock, listener.fileno()):
            os.set_inheritable(fd, True)
        os.environ[_KEPT] = f"{lock} {listener.fileno()} {nofile[0]} {nofile[1]}"
        os.chdir(directory)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

    # What is there now stays: a collection in a child would only copy every page of it (3 ms).
    gc.collect()
    gc.freeze()
    try:
        Keeper(listener, operations, nofile, log_root, renew, run).serve()
    finally:
        for name in (path, f"{run}/{PIDFILE}"):
            try:
                os.unlink(name)
            except FileNotFoundError:
                pass
        os.close(lock)
    return 0


def _lock(path: str) -> int:
    """The pid file, locked for as long as this process lives."""
    deadline = time.monotonic() + _LOCK_WAIT
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            os.close(fd)
            if time.monotonic() < deadline:
                time.sleep(0.01)
                continue
            raise FailedPrecondition(
                f"a supervisor (pid {other}) keeps this directory", subject=path
            ) from None
        try:
            same = os.path.samestat(os.fstat(fd), os.stat(path))
        except FileNotFoundError:
            same = False
        if same:
            line = b"%d\n" % os.getpid()
            os.pwrite(fd, line, 0)  # who looks meanwhile finds a number, the old or the new
            os.ftruncate(fd, len(line))
            return fd
        os.close(fd)  # its last keeper removed it between our open and lock


def _raise_nofile() -> tuple[int, int]:
    """Let this process have as many descriptors as it may; the limits it had, for its builders."""
    kind = process.RLIMITS["RLIMIT_NOFILE"]
    soft, hard = process.get_rlimit(kind)
    if soft < hard:
        process.set_rlimit(kind, hard, hard, subject="nofile")
    return soft, hard
