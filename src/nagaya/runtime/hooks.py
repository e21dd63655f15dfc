"""Hooks (runtime-spec, config.md "POSIX-platform Hooks"): programs of the host's administrator.

They get the state on stdin, and an environment of their own alone: nothing of ours, nothing of the
image (NVIDIA's CVE-2025-23266 was an LD_PRELOAD of the image in a hook).
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import errno
import select
from time import monotonic

from nagaya.errors import DeadlineExceeded, FailedPrecondition
from nagaya.linux import namespaces as ns
from nagaya.linux import os, pids, process
from nagaya.linux.json import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_OUTPUT_LIMIT = 4096


def run(
    name: str,
    hooks: list[dict[str, Any]],
    state: dict[str, Any],
    *,
    directory: int = -1,
    environment: dict[bytes, bytes] | None = None,
) -> None:
    """Run hooks one after another. directory: an open one to run them in. environment: for a hook
    that has none of its own. Raises FailedPrecondition, DeadlineExceeded."""
    data = dumps(state).encode()
    for number, hook in enumerate(hooks):
        _run_one(f"{name} hook #{number}", hook, data, directory, environment or {})


def run_all(name: str, hooks: list[dict[str, Any]], state: dict[str, Any]) -> list[str]:
    """Run every hook, also after one that failed; what went wrong."""
    failures = []
    data = dumps(state).encode()
    for number, hook in enumerate(hooks):
        try:
            _run_one(f"{name} hook #{number}", hook, data, -1, {})
        except (FailedPrecondition, DeadlineExceeded) as error:
            failures.append(str(error))
    return failures


def _run_one(
    name: str, hook: dict[str, Any], data: bytes, directory: int, inherited: dict[bytes, bytes]
) -> None:
    path: str = hook["path"]
    timeout = hook.get("timeout")
    in_read, in_write = os.pipe2(os.O_CLOEXEC)
    out_read, out_write = os.pipe2(os.O_CLOEXEC)
    pid, pidfd = ns.clone3(ns.CLONE_PIDFD)
    if pid == 0:
        try:
            process.reset_signals()
            os.dup2(in_read, 0)
            os.dup2(out_write, 1)
            os.dup2(out_write, 2)
            if directory >= 0:
                os.fchdir(directory)
            ns.close_range(3, cloexec=True)
            environment = inherited if hook.get("env") is None else _environment(hook["env"])
            os.execve(path, hook.get("args") or [path], environment)
        except OSError as error:
            os.write(2, f"{path}: {os.strerror(error.errno or 0).lower()}".encode())
        finally:
            os._exit(127)
    os.close(in_read)
    os.close(out_write)
    try:
        output = _feed(in_write, out_read, pidfd, data, timeout)
        _, status = os.waitpid(pid, 0)
    except DeadlineExceeded:
        os.waitpid(pid, 0)
        raise DeadlineExceeded(
            f"error running {name}: {path}: timed out after {timeout} s", subject=path
        ) from None
    finally:
        os.close(out_read)
        os.close(pidfd)
    if status:
        code = os.waitstatus_to_exitcode(status)
        how = f"exit status {code}" if code >= 0 else f"signal: {str(_signal.strsignal(-code)).lower()}"
        said = output.decode("utf-8", "replace").strip()
        raise FailedPrecondition(
            f"error running {name}: error running hook: {how}, stdout+stderr: {said}", subject=path
        )


def _feed(in_write: int, out_read: int, pidfd: int, data: bytes, timeout: int | None) -> bytes:
    """Write the state, read what the hook says, until it exits. Kills it at the deadline."""
    end = None if timeout is None else monotonic() + timeout
    output = b""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(out_read, select.POLLIN)
    poll.register(in_write, select.POLLOUT)
    os.set_blocking(in_write, False)
    try:
        while True:
            wait = None if end is None else max(0.0, end - monotonic()) * 1000
            ready = {fd for fd, _ in poll.poll(wait)}
            if not ready:
                pids.pidfd_send_signal(pidfd, 9)
                raise DeadlineExceeded("timed out")
            if in_write in ready:
                try:
                    data = data[os.write(in_write, data) :]
                except OSError as error:
                    data = b"" if error.errno != errno.EAGAIN else data
                if not data:
                    poll.unregister(in_write)
                    os.close(in_write)
                    in_write = -1
            if out_read in ready:
                chunk = os.read(out_read, _OUTPUT_LIMIT)
                output = (output + chunk)[-_OUTPUT_LIMIT:]
                if not chunk:
                    poll.unregister(out_read)
            if pidfd in ready and out_read not in ready:
                return output  # what a background child of the hook still writes is not waited for
    finally:
        if in_write >= 0:
            os.close(in_write)


def _environment(words: list[str]) -> dict[bytes, bytes]:
    pairs = (word.partition("=") for word in words)
    return {os.fsencode(key): os.fsencode(value) for key, equals, value in pairs if equals and key}
