"""A program of the host, run to its end."""

from __future__ import annotations

import errno

from nagaya.errors import FailedPrecondition, KernelError
from nagaya.linux import namespaces as ns
from nagaya.linux import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MOST_SAID = 1 << 16


def run(words: Sequence[str], *, missing: str, first: Callable[[], None] = lambda: None) -> tuple[int, str]:
    """(exit code, the last of what it said) of a program found in PATH. first: what its process does before.
    Raises FailedPrecondition with `missing` when it is not installed, KernelError when `first` failed."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    failed, fail = os.pipe2(os.O_CLOEXEC)
    pid, pidfd = ns.clone3(ns.CLONE_PIDFD)
    if pid == 0:
        number = errno.EIO
        try:
            os.dup2(writer, 1)
            os.dup2(writer, 2)
            first()
            os.execvp(words[0], list(words))
        except (OSError, KernelError) as error:
            number = error.errno or number
        finally:
            os.write(fail, bytes([number]))
            os._exit(127)
    os.close(pidfd)
    os.close(writer)
    os.close(fail)
    said = b""
    try:
        while chunk := os.read(reader, 1 << 16):
            said = (said + chunk)[-_MOST_SAID:]
        problem = os.read(failed, 1)
    finally:
        os.close(reader)
        os.close(failed)
        _, status = os.waitpid(pid, 0)
    if problem == bytes([errno.ENOENT]):
        raise FailedPrecondition(missing, subject=words[0])
    if problem:
        raise KernelError(os.strerror(problem[0]).lower(), step=f"run {words[0]}", errno=problem[0])
    return os.waitstatus_to_exitcode(status), said.decode("utf-8", "replace")
