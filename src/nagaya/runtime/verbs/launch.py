"""What create, run and exec share: the bundle, the options, the console socket, the foreground."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import errno
import select
from _struct import pack

from nagaya.errors import InvalidArgument, KernelError, NagayaError, NotFound
from nagaya.linux import os, pids, process
from nagaya.linux.json import loads
from nagaya.runtime import container
from nagaya.runtime.arguments import FLAG, NUMBER, TEXT, Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.runtime.command import Settings
    from nagaya.runtime.trace import Trace

_SPEC_LIMIT = 16 << 20
_BUFFER = 1 << 16

COMMON = [
    Option("bundle b", TEXT, "path to the root of the bundle directory, defaults to the current directory"),
    Option("console-socket", TEXT, "path to an AF_UNIX socket which will receive the console's pty master"),
    Option("pidfd-socket", TEXT, "path to an AF_UNIX socket which will receive a pidfd of the process"),
    Option("pid-file", TEXT, "specify the file to write the process id to"),
    Option("no-pivot", FLAG, "do not use pivot root to jail process inside rootfs"),
    Option("no-new-keyring", FLAG, "do not create a new session keyring for the container"),
    Option("preserve-fds", NUMBER, "pass N additional file descriptors to the container", 0),
]


def read_json(path: str) -> Any:
    """The JSON document in a file. Raises NotFound, InvalidArgument naming the file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        kind = NotFound if error.errno == errno.ENOENT else InvalidArgument
        raise kind(f"open {path}: {os.strerror(error.errno or 0).lower()}", subject=path) from None
    try:
        data = b""
        while len(data) <= _SPEC_LIMIT and (chunk := os.read(fd, 1 << 20)):
            data += chunk
    finally:
        os.close(fd)
    if len(data) > _SPEC_LIMIT:
        raise InvalidArgument(f"{path} is larger than {_SPEC_LIMIT} bytes", subject=path)
    try:
        return loads(data)
    except InvalidArgument as error:
        raise InvalidArgument(f"{path}: {error}", subject=path) from None


def bundle_of(options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(absolute bundle, its specification)."""
    where = options["bundle"] or "."
    try:
        bundle = os.realpath(where)
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise InvalidArgument(f"chdir {os.abspath(where)}: {reason}", subject="--bundle") from None
    try:
        spec = read_json(f"{bundle}/config.json")
    except NotFound:
        raise InvalidArgument(
            "JSON specification file config.json not found", subject="config.json"
        ) from None
    if not isinstance(spec, dict):
        raise InvalidArgument(f"{bundle}/config.json is not an object", subject="config.json")
    if not isinstance(spec.get("process") or {}, dict):
        raise InvalidArgument("process: must be an object", subject="process")
    return bundle, spec


def preserved(options: dict[str, Any], spec_process: dict[str, Any]) -> int:
    """How many fds from 3 on the container gets: --preserve-fds and socket activation
    (sd_listen_fds(3)), for which the environment is completed."""
    count: int = options["preserve-fds"] or 0
    listen = os.fsdecode(os.environ.get(b"LISTEN_FDS", b""))
    if listen.isdigit() and int(listen) > 0:
        count += int(listen)
        words = [w for w in spec_process.get("env") or [] if not w.startswith(("LISTEN_FDS=", "LISTEN_PID="))]
        spec_process["env"] = [*words, f"LISTEN_FDS={listen}", "LISTEN_PID=1"]
    for fd in range(3, 3 + count):
        try:
            os.fstat(fd)
        except OSError as error:
            raise InvalidArgument(
                f"unable to stat preserved-fd {fd - 2} (of {count}): {os.strerror(error.errno or 0).lower()}",
                subject="--preserve-fds",
            ) from None
    return count


def check_console(terminal: bool, options: dict[str, Any], detached: bool) -> None:
    """Terminal, console socket and detachment must fit together (runc's messages)."""
    if options["console-socket"] and not (terminal and detached):
        raise InvalidArgument(
            "cannot use console socket if runc will not detach or allocate tty", subject="--console-socket"
        )
    if detached and terminal and not options["console-socket"]:
        raise InvalidArgument(
            "cannot allocate tty if runc will detach without setting console socket",
            subject="--console-socket",
        )


def hand_out(options: dict[str, Any], launched: container.Launched, *, detached: bool) -> None:
    """Give the pidfd, and the pty of who does not wait, to those who listen for them. Raises KernelError."""
    if options["pidfd-socket"]:
        _send(options["pidfd-socket"], "pidfd socket", "runc-pidfd", launched.pidfd)
    if detached and launched.console >= 0:
        from nagaya.linux import tty

        name = f"/dev/pts/{tty.slave_number(launched.console)}"
        _send(options["console-socket"], "console socket", name, launched.console)


def _send(path: str, what: str, name: str, fd: int) -> None:
    end = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        end.connect(path)
        end.sendmsg([name.encode()], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, pack("=i", fd))])
    except OSError as error:
        raise KernelError(
            os.strerror(error.errno or 0).lower(),
            subject=path,
            step=f"{what} {path}",
            errno=error.errno or 0,
        ) from None
    finally:
        end.close()


def arguments_for(settings: Settings, options: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of container.create and container.run."""
    spec_process: dict[str, Any] = spec.get("process") or {}
    return {
        "console": (0, 0) if spec_process.get("terminal") else None,
        "cgroup_driver": settings.driver,
        "rootless": settings.rootless,
        "preserve_fds": preserved(options, spec_process),
        "pid_file": options["pid-file"],
        "no_pivot": options["no-pivot"],
        "no_new_keyring": options["no-new-keyring"],
    }


# what runc's log says at these moments, for who looks for it there
_RUNC_WORDS = {
    "clone": "nsexec container setup",
    "identity": "child process in init()",
    "hand-over": "init: closing the pipe to signal completion",
    "exec": "setns_init: about to exec",
}


class Telling:
    """`with Telling(settings, trace)` around a launch: what it warned of is passed on when it succeeds, and
    with --debug its steps, also those before a failure."""

    def __init__(self, settings: Settings, trace: Trace) -> None:
        self._log = settings.log
        self._trace = trace

    def __enter__(self) -> None:
        """Nothing to do yet."""

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        for text in self._trace.warnings if failure is None else []:
            self._log.message("warning", text)
        if not self._log.debug:
            return
        for text in self._trace.notes:
            self._log.message("debug", text)
        for name, detail, _start, duration in self._trace.to_wire():
            text = f"{name} ({duration / 1e6:.2f} ms) {detail}"
            self._log.message("debug", f"{_RUNC_WORDS[name]}: {text}" if name in _RUNC_WORDS else text)


_FORWARDED = [n for n in (*range(1, 32), *range(34, 65)) if n not in (9, 17, 19, 23)]  # KILL CHLD STOP URG


class Foreground:
    """The caller waits: signals go to the process, a terminal is relayed, its exit code is ours.

    Made before the launch, so that no signal falls between.
    """

    def __init__(self) -> None:
        # what our caller ignores is not for the process either; Python itself ignores the other two
        numbers = [n for n in _FORWARDED if n in (13, 25) or _signal.getsignal(n) is not _signal.SIG_IGN]
        self._signals = process.signalfd(numbers)

    def wait(self, launched: container.Launched) -> int:
        """Exit code of the process: its own, or 128 + the signal that killed it."""
        master = launched.console
        settings = b""
        if master >= 0:
            from nagaya.linux import tty

            try:
                settings = tty.make_raw(0)
                tty.set_size(master, *tty.get_size(0))
            except NagayaError:
                pass  # our stdin is no terminal: relay without
        try:
            self._relay(launched.pidfd, master)
        finally:
            if settings:
                tty.restore(0, settings)
        _, status = os.waitpid(launched.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    def _relay(self, pidfd: int, master: int) -> None:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(self._signals, select.POLLIN)
        if master >= 0:
            poll.register(master, select.POLLIN)
            poll.register(0, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._signals in ready:
                from nagaya.linux import tty

                for number in process.arrived(os.read(self._signals, 16 * 128)):
                    if number == 28 and master >= 0:
                        try:
                            tty.set_size(master, *tty.get_size(0))
                        except NagayaError:
                            pass
                        continue
                    try:
                        pids.pidfd_send_signal(pidfd, number)
                    except KernelError:
                        pass
            if master in ready and not _copy(master, 1):
                poll.unregister(master)
                master = -1
            if 0 in ready and not (master >= 0 and _copy(0, master)):
                poll.unregister(0)
            if pidfd in ready:
                while master >= 0 and _readable(master) and _copy(master, 1):
                    pass
                return


def _readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return any(event & select.POLLIN for _, event in poll.poll(0))


def _copy(source: int, target: int) -> bool:
    """Copy what is there; False at the end of file (EIO of a pty without a slave)."""
    try:
        data = memoryview(os.read(source, _BUFFER))
        if not data:
            return False
        while data:
            data = data[os.write(target, data) :]
    except OSError:
        return False
    return True


def become_subreaper() -> None:
    """What the container's processes leave behind comes to us, as to runc."""
    process.set_child_subreaper(True)
