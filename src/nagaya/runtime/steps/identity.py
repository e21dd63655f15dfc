"""Who the program runs as: umask, stdio, no_new_privs, capabilities, ids, working directory, PATH.

The order is that of runc's finalizeNamespace, and matters: the bounding set needs CAP_SETPCAP, the
filter without no_new_privs needs CAP_SYS_ADMIN, the ids need CAP_SETUID, and the working directory
is entered as the user. The inheritable set is empty (CVE-2022-29162), but for capabilities that the
specification lists as inheritable and ambient: the kernel has no ambient one without.
"""

from __future__ import annotations

import _stat as stat
import errno
from fcntl import F_DUPFD_CLOEXEC, fcntl  # here, not where it is used: there the root is the image's

from nagaya.errors import (
    CommandNotExecutable,
    CommandNotFound,
    FailedPrecondition,
    InvalidArgument,
    KernelError,
)
from nagaya.linux import caps, os, paths, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.runtime.steps.context import Context

_DEFAULT_UMASK = 0o022
_PASSWD_LIMIT = 10 << 20  # CVE-2026-47262: a passwd file may be anything
_CHUNK = 1 << 16


def score(context: Context, value: int | None) -> None:
    """oom_score_adj, through the host's procfs. Where lowering is not allowed, the present value
    stays, as rootless runtimes have it."""
    if value is None:
        return
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, str(value).encode())
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM):
            raise KernelError(
                os.strerror(error.errno or 0).lower(), step=f"oom_score_adj {value}", errno=error.errno or 0
            ) from None
        context.trace.warn(f"oom_score_adj {value} is not allowed here: left as it is")


def confine(context: Context, profile: str, label: str) -> None:
    """The AppArmor profile and the SELinux label that the program is to run with, from its exec on. Raises
    FailedPrecondition where the kernel has no AppArmor: a profile that is left out would be worse than no
    container."""
    if label:
        context.write_attribute("exec", label)
    if not profile:
        return
    for name in ("apparmor/exec", "exec"):
        try:
            context.write_attribute(name, f"exec {profile}")
            return
        except KernelError as error:
            # the file is another security module's, or none's; or this kernel has it elsewhere
            if error.errno == errno.EINVAL or (error.errno == errno.ENOENT and not _has(context, name)):
                continue
            raise KernelError(
                error.message,
                subject="process.apparmorProfile",
                step=f"unable to apply apparmor profile {profile}",
                errno=error.errno,
            ) from None
    raise FailedPrecondition(
        "unable to apply apparmor profile: apparmor: config provided but apparmor not supported",
        subject="process.apparmorProfile",
    )


def _has(context: Context, name: str) -> bool:
    try:
        os.close(os.open(f"self/attr/{name}", os.O_PATH | os.O_CLOEXEC, dir_fd=context.proc()))
    except OSError:
        return False
    return True


def environment(context: Context, words: list[str], uid: int) -> dict[bytes, bytes]:
    """The environment as exec wants it; HOME from the image's passwd when it is not given."""
    result: dict[bytes, bytes] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key:
            result[os.fsencode(key)] = os.fsencode(value)
    if not result.get(b"HOME"):
        result[b"HOME"] = _home(context.rootfd, uid)
    return result


def _home(rootfd: int, uid: int) -> bytes:
    try:
        fd = paths.open_in_root(rootfd, "etc/passwd", os.O_RDONLY | os.O_NONBLOCK)
    except KernelError:
        return b"/"
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_size > _PASSWD_LIMIT:
            return b"/"
        wanted, rest = str(uid).encode(), b""
        while chunk := os.read(fd, _CHUNK):
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            for line in lines:
                fields = line.split(b":")
                if len(fields) > 5 and fields[2] == wanted:
                    return fields[5] or b"/"
        fields = rest.split(b":")
        return fields[5] or b"/" if len(fields) > 5 and fields[2] == wanted else b"/"
    except OSError:
        return b"/"
    finally:
        os.close(fd)


def stdio(context: Context, uid: int) -> None:
    """Put stdio in place, and let the user open it again through /proc/self/fd."""
    ends = (context.slave,) * 3 if context.slave >= 0 else context.stdio
    if ends != (0, 1, 2):
        high = [_above(fd) for fd in ends]  # first out of the way: one may sit where another belongs
        for number, fd in enumerate(high):
            os.dup2(fd, number)
            os.close(fd)
    for number in range(3):
        try:
            info = os.fstat(number)
            if _is_null(info):
                _reopen_null(number)
                continue
            if info.st_uid == uid:
                continue
            os.fchown(number, uid, -1)
        except OSError as error:
            # not mapped in the user namespace, read-only, or not ours: the user may still use the fd
            if error.errno not in (errno.EINVAL, errno.EPERM, errno.EROFS, errno.EBADF):
                raise
    if context.slave > 2:
        os.close(context.slave)
        context.slave = 0


def _is_null(info: os.stat_result) -> bool:
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == os.makedev(1, 3)


def _reopen_null(number: int) -> None:
    """The container's own /dev/null in place of the host's, as runc has it: a file of a mount that is not in
    here can be opened by nobody again, and not checkpointed. Where there is none, it stays."""
    try:
        fd = os.open("/dev/null", os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    if _is_null(os.fstat(fd)):
        os.dup2(fd, number)
    os.close(fd)


def _above(fd: int) -> int:
    return int(fcntl(fd, F_DUPFD_CLOEXEC, 10))


class Capabilities:
    """The sets to apply, cut down to what we hold; computed before anything is dropped."""

    __slots__ = ("ambient", "bounding", "effective", "inheritable", "permitted")

    def __init__(self, context: Context, wanted: dict[str, Any] | None) -> None:
        wanted = wanted or {}
        _, held, _ = caps.capget()
        known = {}
        missing: list[str] = []
        for kind in ("bounding", "effective", "permitted", "inheritable", "ambient"):
            mask, unknown = caps.to_mask(wanted.get(kind) or [])
            missing.extend(unknown)
            if kind != "inheritable":
                missing.extend(caps.to_names(mask & ~held))
            known[kind] = mask & held
        if missing:
            names = " ".join(dict.fromkeys(missing))
            context.trace.warn(f"ignoring unknown or unavailable capabilities: [{names}]")
        self.bounding = known["bounding"]
        self.permitted = known["permitted"]
        self.effective = known["effective"] & self.permitted
        self.ambient = known["ambient"] & known["inheritable"] & self.permitted
        self.inheritable = self.ambient
        for name in caps.to_names(known["ambient"] & ~self.ambient):
            context.trace.warn(f"can't raise ambient capability {name}: it is not inheritable and permitted")

    def drop_bounding(self) -> None:
        """First: while CAP_SETPCAP is still held."""
        caps.drop_bounding(self.bounding)

    def apply(self) -> None:
        """Last: after the ids."""
        caps.capset(self.effective, self.permitted, self.inheritable)
        if self.ambient:
            caps.set_ambient(self.ambient)


def limits(wanted: list[dict[str, Any]], pid: int = 0) -> None:
    """setrlimit of each entry of process.rlimits, for us or for pid; while we still have the rights of
    root. Raises InvalidArgument, KernelError."""
    for limit in wanted:
        kind: str = limit["type"]
        if kind not in process.RLIMITS:
            raise InvalidArgument(f"unknown rlimit {kind!r}", subject="process.rlimits")
        soft, hard = limit.get("soft") or 0, limit.get("hard") or 0
        process.set_rlimit(process.RLIMITS[kind], soft, hard, pid=pid, subject=kind)


def become(user: dict[str, Any], *, may_set_groups: bool) -> None:
    """Groups, gid, uid of process.user. Raises KernelError."""
    uid, gid = user.get("uid") or 0, user.get("gid") or 0
    groups = user.get("additionalGids") or []
    step = "setgroups"
    try:
        if may_set_groups:
            os.setgroups(groups)
        elif groups:
            raise FailedPrecondition(
                "additional groups cannot be set: /proc/self/setgroups says deny", subject="process.user"
            )
        step = f"setgid {gid}"
        os.setresgid(gid, gid, gid)
        step = f"setuid {uid}"
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise KernelError(
            os.strerror(error.errno or 0).lower(), subject="process.user", step=step, errno=error.errno or 0
        ) from None


def enter_directory(path: str, *, try_only: bool = False) -> bool:
    """chdir, and make sure that we are below our root (CVE-2024-21626): a directory of the host,
    reached by a leaked fd, has no name here. False when try_only and permission is denied."""
    try:
        os.chdir(path)
    except OSError as error:
        if try_only and error.errno in (errno.EACCES, errno.EPERM):
            return False
        raise KernelError(
            f'chdir to cwd ("{path}") set in config.json failed: {os.strerror(error.errno or 0).lower()}',
            subject="process.cwd",
            errno=error.errno or 0,
        ) from None
    verify_directory()
    return True


def verify_directory() -> None:
    """getcwd(2) starts with "(unreachable)" outside the root; glibc makes that ENOENT."""
    try:
        outside = not os.getcwdb().startswith(b"/")
    except OSError:
        outside = True
    if outside:
        raise FailedPrecondition(
            "current working directory is outside of container mount namespace root"
            " -- possible container breakout detected",
            subject="process.cwd",
        )


def find(name: str, search: bytes | None) -> bytes:
    """The path to execute for argv[0], as execvp(3) finds it: with the container's PATH, as the
    container's user. Raises CommandNotFound, CommandNotExecutable with runc's wording."""
    if "/" in name:
        path = os.fsencode(name)
        problem = _executable(path)
        if not problem:
            return path
        raise _failure(f'exec: "{name}": ', name, problem)
    denied = False
    for directory in (search or b"").split(b":"):
        path = (directory or b".") + b"/" + os.fsencode(name)
        problem = _executable(path)
        if not problem:
            return path
        denied = denied or problem == errno.EACCES
    if denied:
        raise CommandNotExecutable(f'exec: "{name}": permission denied', subject=name, errno=errno.EACCES)
    raise CommandNotFound(
        f'exec: "{name}": executable file not found in $PATH', subject=name, errno=errno.ENOENT
    )


def _executable(path: bytes) -> int:
    """0 when it looks executable, else an errno."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return error.errno or errno.ENOENT
    if stat.S_ISDIR(mode):
        return errno.EISDIR
    # access(2) drops the capabilities of who is not root; faccessat2(2) does not, but a filter made before
    # it refuses it: either will do, the exec has the last word
    allowed = os.access(path, os.X_OK) or os.access(path, os.X_OK, effective_ids=True)
    return 0 if allowed else errno.EACCES


def _failure(prefix: str, name: str, problem: int) -> CommandNotFound | CommandNotExecutable:
    text = os.strerror(problem).lower()
    if problem in (errno.ENOENT, errno.ENOTDIR):
        return CommandNotFound(f"{prefix}stat {name}: {text}", subject=name, errno=problem)
    return CommandNotExecutable(prefix + text, subject=name, errno=problem)


def exec_failure(name: str, error: int) -> CommandNotFound | CommandNotExecutable:
    """What an execve(2) that failed means: ENOENT is a missing interpreter of a script."""
    text = f"exec {name}: {os.strerror(error).lower()}"
    kind = CommandNotFound if error in (errno.ENOENT, errno.ENOTDIR) else CommandNotExecutable
    return kind(text, subject=name, errno=error)
