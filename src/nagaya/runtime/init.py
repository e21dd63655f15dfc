"""The container's first process, and every process that joins: from the clone to the exec.

It is a fork of the runtime. It carries out the plan's steps, drops what it must not keep, tells the
parent READY, waits, and execs. Whatever fails is sent to the parent as an error that names its
step; nothing is printed. After the root has changed nothing may be imported, encoded lazily, or
looked up by the C library (CVE-2019-14271): all is imported by now.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import errno
import sys
from time import monotonic_ns

from nagaya.errors import InternalError, KernelError, NagayaError
from nagaya.linux import namespaces as ns
from nagaya.linux import os, pids, process
from nagaya.runtime import channel, plan
from nagaya.runtime.steps import identity
from nagaya.runtime.steps.context import Context
from nagaya.runtime.steps.namespaces import write_join

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from nagaya.runtime.filter import Seccomp


def main(
    context: Context,
    job: plan.Plan,
    filtered: bool,
    hook_list: list[dict[str, Any]],
    table: dict[type[plan.Step], Callable[..., None]],
) -> NoReturn:
    """Run the plan and exec; never returns. filtered: the parent sends a seccomp filter. hook_list: the
    startContainer hooks. table: what carries out a step (steps.making or steps.joining)."""
    # what is not imported by now must never be: the files would be the image's (CVE-2019-14271)
    sys.meta_path.clear()
    try:
        perform(context, job, table)
        _become(context, job, context.receive_filter() if filtered else None, hook_list)
    except NagayaError as error:
        _report(context, error)
    except OSError as error:
        _report(
            context,
            KernelError(str(error.strerror).lower(), errno=error.errno or 0, step=str(error.filename or "")),
        )
    except BaseException as error:
        _report(context, InternalError(f"{type(error).__name__}: {error}"))
    os._exit(1)


def _report(context: Context, error: NagayaError) -> None:
    try:
        context.channel.send(channel.ERROR, error.to_wire())
    except BaseException:
        pass  # the parent is gone: nobody is left to tell


def perform(context: Context, job: plan.Plan, table: dict[type[plan.Step], Callable[..., None]]) -> None:
    """Carry out the steps; record each; name it in what it raises."""
    process.reset_signals()
    identity.score(context, job.process.get("oomScoreAdj"))
    for step in job.steps:
        if isinstance(step, plan.Identity):
            continue
        begin = monotonic_ns()
        try:
            table[type(step)](context, step)
        except NagayaError as error:
            if isinstance(step, plan.Mount):
                error.step = f"{_mounting(step)}: {error.step}" if error.step else _mounting(step)
            elif not error.step.startswith(step.name):
                error.step = f"{step.name}: {error.step}" if error.step else step.name
            raise
        except OSError as error:
            raise KernelError(
                str(error.strerror).lower(),
                subject=str(error.filename or ""),
                step=f"{step.name}: {error.filename}" if error.filename else step.name,
                errno=error.errno or 0,
            ) from None
        context.trace.add(step.name, step.detail, begin)


def _mounting(step: plan.Mount) -> str:
    # runc's words, which its users search for
    return (
        f"error during container init: error mounting {_quoted(step.source)} to rootfs at "
        f"{_quoted(step.destination)}"
    )


def _quoted(text: str) -> str:
    return f'"{text}"'


def _become(
    context: Context, job: plan.Plan, seccomp: Seccomp | None, hook_list: list[dict[str, Any]]
) -> NoReturn:
    settings: dict[str, Any] = job.process
    user: dict[str, Any] = settings.get("user") or {}
    uid = user.get("uid") or 0
    # an agent is told of the process that stays; who loads a filter before the last clone does not
    late = seccomp is not None and not seccomp.early_clone and not seccomp.agent[0]
    last = seccomp is not None and seccomp.comes_last(bool(settings.get("noNewPrivileges")))

    begin = monotonic_ns()
    mask = user.get("umask")
    os.umask(0o022 if mask is None else mask)
    environment = identity.environment(context, settings.get("env") or [], uid)
    if not job.late:
        os.setsid()
    identity.stdio(context, uid)
    if context.slave >= 0 and not job.late:
        _terminal()
    identity.confine(context, settings.get("apparmorProfile") or "", settings.get("selinuxLabel") or "")
    keep = [0, 1, 2, *range(3, 3 + context.preserve_fds), context.channel.fileno(), *context.memory_fds]
    if context.fifo >= 0:
        keep.append(context.fifo)
    master = context.console
    if master >= 0:
        keep.append(master)
    context.procfd = context.rootfd = -1
    _close_all_but(keep)
    if job.scheduling is not None:
        from nagaya.runtime.steps import scheduling

        scheduling.apply(job.scheduling, last_clone=job.late)

    cwd: str = settings.get("cwd") or "/"
    # as root first, for a directory that only root may enter; else as the user, for one on a network
    # file system that root may not (runc does both). Before a filter that may refuse to look where we are
    entered = identity.enter_directory(cwd, try_only=True)
    if settings.get("noNewPrivileges"):
        process.set_no_new_privs()
    elif seccomp is not None and not seccomp.early_clone:
        seccomp.load(context)
    sets = identity.Capabilities(context, settings.get("capabilities"))
    if settings.get("capabilities") is not None:
        sets.drop_bounding()
        process.set_keep_caps(True)
    if not context.userns:
        identity.limits(settings.get("rlimits") or [])
    identity.become(user, may_set_groups=context.may_set_groups)
    if not entered:
        identity.enter_directory(cwd)
    if settings.get("capabilities") is not None:
        process.set_keep_caps(False)
        sets.apply()
    process.set_dumpable(False)
    arguments: list[str] = settings.get("args") or []
    program = identity.find(arguments[0], environment.get(b"PATH"))
    context.trace.add("identity", f"uid {uid} gid {user.get('gid') or 0}", begin)

    fds = (master,) if master >= 0 else ()
    context.channel.send(channel.READY, context.trace.to_wire(), context.trace.warnings, fds=fds)
    answer = context.channel.receive()
    if answer is None or answer[0][0] != channel.GO:
        os._exit(1)
    if master >= 0:
        os.close(master)
    for fd in context.memory_fds:
        write_join(fd)
        os.close(fd)

    if job.late:
        # only now does anything of us become visible in the pid namespace we joined
        if late and last and seccomp is not None:
            seccomp.load(context)
            seccomp = None
        plain = seccomp is None and job.scheduling is None and not hook_list and context.slave < 0
        if plain and context.orphans and not context.userns and "time" not in job.namespaces:
            _spawn(context, program, arguments, environment)
        pid, pidfd = process.clone(ns.CLONE_PARENT | ns.CLONE_PIDFD)
        if pid:
            context.channel.send(channel.PID, pid, fds=(pidfd,))
            os._exit(0)
        os.setsid()
        if context.slave >= 0:
            _terminal()
    if last and seccomp is not None and seccomp.agent[0]:
        seccomp.load(context)  # the parent is there to hand the listener over only before `start`
        seccomp = None
    if context.fifo >= 0:
        _await_start(context)
    if last and seccomp is not None:
        seccomp.load(context)
    if hook_list:
        from nagaya.runtime import hooks

        # runc gives them the program's environment where they have none of their own
        state = {**context.state, "status": "created"}
        hooks.run("startContainer", hook_list, state, environment=environment)
    try:
        os.execve(program, [os.fsencode(a) for a in arguments], environment)
    except OSError as error:
        failure = identity.exec_failure(arguments[0], error.errno or 0)
        if context.fifo < 0:
            raise failure from None
        # who made the container is gone: the program's own stderr is where engines look for it
        os.write(2, f"{failure.message}\n".encode("utf-8", "surrogateescape"))
        os._exit(1)


def _spawn(context: Context, program: bytes, arguments: list[str], environment: dict[bytes, bytes]) -> None:
    """The last clone and the exec by posix_spawn(3), which copies no page tables: 1 ms of 8. When we end,
    whoever is subreaper gets the program. Returns where the C library cannot; else never.

    Not for who has more to do between the two, nor into another clock, for which memory must not be shared
    (time_namespaces(7)).
    """
    try:
        pid = os.posix_spawn(program, [os.fsencode(a) for a in arguments], environment, setsid=True)
    except NotImplementedError:
        return
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.ENOMEM):  # there was no process
            raise KernelError(str(error.strerror).lower(), step="clone", errno=error.errno or 0) from None
        raise identity.exec_failure(arguments[0], error.errno or 0) from None
    context.channel.send(channel.PID, pid, fds=(pids.pidfd_open(pid),))
    os._exit(0)


def _terminal() -> None:
    from nagaya.linux import tty  # loaded by steps.devices, which made it

    tty.set_controlling(0)


def _await_start(context: Context) -> None:
    """Block until `start` writes into the fifo; its end of file would be a state directory removed.

    The first process of a pid namespace is not ended by a signal that it has no handler for
    (pid_namespaces(7)): who waits for `start` is to be ended by the usual ones.
    """
    for number in _ENDING:
        _signal.signal(number, _end)
    os.read(context.fifo, 1)
    for number in _ENDING:
        _signal.signal(number, _signal.SIG_DFL)
    os.close(context.fifo)


_ENDING = (1, 2, 3, 15)  # HUP INT QUIT TERM


def _end(number: int, _frame: Any) -> NoReturn:
    os._exit(128 + number)


def _close_all_but(keep: list[int]) -> None:
    """Close every other fd: not even for the moment before the exec may a process of a joined
    namespace reach one through /proc (CVE-2016-9962, 2024-21626). What is kept for us is
    close-on-exec; what is kept for the program is not."""
    following = 0
    for fd in sorted(set(keep)):
        if fd > following:
            ns.close_range(following, fd - 1)
        following = fd + 1
    ns.close_range(following)
