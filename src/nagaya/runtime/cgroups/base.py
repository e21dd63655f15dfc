"""What the cgroup managers of v1 and v2 have in common."""

from __future__ import annotations

import errno
import time
from abc import ABC, abstractmethod

from nagaya.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, KernelError
from nagaya.linux import cgroup, os
from nagaya.runtime.cgroups.freezer import is_frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

SIGKILL = 9
_FREEZE_SECONDS = 5.0
_KILL_ROUNDS = 100
_JOIN_RETRIES = 5


def check_path(path: str) -> str:
    """A clean cgroupsPath: no "..", no empty component, no NUL. Raises InvalidArgument."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in path or "\n" in path:
        raise InvalidArgument(
            f"cgroupsPath {path!r:.60} must not contain '..', NUL or newline", subject="linux.cgroupsPath"
        )
    return ("/" if path.startswith("/") else "") + "/".join(parts)


class Manager(ABC):
    """The cgroups of one container. `paths`: {controller: absolute path}; "" is the unified one, the
    only one on v2, and beside the others in the hybrid layout of v1."""

    __slots__ = ("fresh", "lenient", "paths", "rootless")

    version = 0
    driver = "cgroupfs"
    _self_file = "cgroup.procs"  # where a single-threaded process writes 0 to join

    def __init__(self, paths: dict[str, str]) -> None:
        self.paths = paths
        self.fresh = False  # did this object make the cgroups: then `set` also sets the device rules
        self.rootless = False  # no device rules: they need privileges
        self.lenient = False  # `create` leaves out what it has no permission for

    # What differs between the versions -------------------------------------------------------

    @abstractmethod
    def create(self) -> None:
        """Make the cgroups (parents too). Existing ones are taken over when they are empty: two
        containers in one cgroup would be killed together. Raises KernelError, FailedPrecondition."""

    @abstractmethod
    def set(self, resources: dict[str, Any], *, devices: bool | None = None) -> None:
        """Apply OCI linux.resources. devices None: the device rules are set only by the object
        that made the cgroups, as an update leaves them alone (runc).

        Raises InvalidArgument, FailedPrecondition (controller missing), KernelError.
        """

    @abstractmethod
    def stats(self) -> dict[str, Any]:
        """Usage in the shape of `data` of `runc events --stats`."""

    @abstractmethod
    def oom_kills(self) -> int:
        """How many processes the kernel's OOM killer killed here."""

    @abstractmethod
    def _freezer(self) -> tuple[str, str, str]:
        """(directory, value to freeze, value to thaw); directory "" without a freezer."""

    @abstractmethod
    def _write_freezer(self, path: str, value: str) -> None: ...

    @abstractmethod
    def join_paths(self, memory: bool | None = None) -> list[str]:
        """The cgroup directories a process is moved to by `join`."""

    # What is common --------------------------------------------------------------------------

    def join_fds(self, memory: bool | None = None) -> list[int]:
        """Files by which a single-threaded child joins later, when paths of the host are out of
        its reach: it writes b"0" to each. Close-on-exec; the caller closes them.

        This is the fast way in on v1 (see `join`): 0.5 ms instead of 8 to 14. Raises KernelError.
        """
        fds: list[int] = []
        for path in self.join_paths(memory):
            file = f"{path}/{self._self_file}"
            try:
                fds.append(os.open(file, os.O_WRONLY | os.O_CLOEXEC))
            except OSError as error:
                for fd in fds:
                    os.close(fd)
                reason = error.errno or 0
                raise KernelError(
                    os.strerror(reason).lower(), subject=path, step=f"open {file}", errno=reason
                ) from None
        return fds

    def join_fds_beside(self, pid: int) -> list[int]:
        """As `join_fds`, for one who joins a running container whose first process is pid."""
        return self.join_fds()

    @abstractmethod
    def birthplace(self) -> int:
        """A directory fd for clone3's CLONE_INTO_CGROUP, which only cgroup2 knows: on v2 the cgroup that
        `create` made; on v1 that of the hybrid layout, made now, or -1. The caller closes it.

        Raises KernelError; FailedPrecondition as `create`."""

    def join(self, pid: int = 0, *, memory: bool | None = None) -> None:
        """Move the process. memory None: into all; False: all but memory; True: memory alone, so
        that a Python init is charged to its limit only right before exec. On v2 there is one
        cgroup: False does nothing, True and None move.

        pid 0 is the caller. A single-threaded caller that moves itself is much cheaper on v1:
        the kernel then needs no lock on the world's forks, and so no RCU grace period (writing 0
        to `tasks`, kernel/cgroup/cgroup.c cgroup_procs_write_start). Raises KernelError.
        """
        if pid == os.getpid():
            pid = 0
        file = self._self_file if pid == 0 and _single_threaded() else "cgroup.procs"
        data = str(pid)
        for path in self.join_paths(memory):
            error = cgroup.try_write(f"{path}/{file}", data)
            for _ in range(_JOIN_RETRIES):
                if error != errno.EINVAL:
                    break
                time.sleep(0.03)  # a process still being forked (TASK_NEW); runc waits the same time
                error = cgroup.try_write(f"{path}/{file}", data)
            if error:
                raise KernelError(
                    os.strerror(error).lower(), subject=path, step=f"join cgroup {path}", errno=error
                )

    def settle(self) -> None:  # noqa: B027  # a default, not a gap
        """To be called when the first process has joined: lets go of what kept the cgroups alive until
        then (the systemd driver's placeholder; nothing else needs it)."""

    def _make_one(self, controller: str) -> list[str]:
        """The directories made for a controller's cgroup; out of `paths` with it where that is to be."""
        path = self.paths[controller]
        try:
            made = cgroup.make(path)
        except KernelError as error:
            if not (self.lenient and error.errno in (errno.EPERM, errno.EACCES, errno.EROFS)):
                raise
        else:
            if not self.lenient or os.access(f"{path}/{self._self_file}", os.W_OK):
                return made
        del self.paths[controller]
        return []

    def exists(self) -> bool:
        """Is there at least one of the cgroups?"""
        return any(os.isdir(path) for path in self.paths.values())

    def _refuse_used(self) -> None:
        pids = self.pids()
        if pids:
            raise FailedPrecondition(
                f"container's cgroup is not empty: {len(pids)} process(es) found",
                subject=self._tracking_path(),
                step="create cgroups",
            )
        if self.frozen():
            raise FailedPrecondition(
                "container's cgroup unexpectedly frozen",
                subject=self._tracking_path(),
                step="create cgroups",
            )

    def pids(self) -> list[int]:
        """All processes in the container's cgroup and below it."""
        return cgroup.procs(self._tracking_path())

    def _tracking_path(self) -> str:
        for controller in ("devices", "pids", "freezer", "memory"):
            path = self.paths.get(controller)
            if path is not None:
                return path
        return next(iter(self.paths.values()))

    def freeze(self) -> None:
        """Stop all processes. Raises FailedPrecondition without a freezer, DeadlineExceeded (then
        everything is thawed again)."""
        path, frozen, thawed = self._freezer()
        if not path:
            raise FailedPrecondition("this host has no freezer cgroup", step="pause")
        deadline = time.monotonic() + _FREEZE_SECONDS
        pause = 0.0005
        self._write_freezer(path, frozen)
        while not is_frozen(self.version, path):
            if time.monotonic() > deadline:
                self._write_freezer(path, thawed)
                raise DeadlineExceeded(
                    f"the processes did not freeze within {_FREEZE_SECONDS:.0f} seconds", step="pause"
                )
            time.sleep(pause)
            pause = min(pause * 2, 0.02)
            if self.version == 1:
                # v1 looks at the tasks when asked; one that forked meanwhile needs another look
                self._write_freezer(path, frozen)

    def thaw(self) -> None:
        """Let the processes go on. Raises FailedPrecondition without a freezer, KernelError."""
        path, _, thawed = self._freezer()
        if not path:
            raise FailedPrecondition("this host has no freezer cgroup", step="resume")
        self._write_freezer(path, thawed)

    def frozen(self) -> bool:
        """Are the processes frozen? False without a freezer or when the cgroup is gone."""
        path, _, _ = self._freezer()
        return bool(path) and is_frozen(self.version, path)

    def kill_all(self, signal: int = SIGKILL) -> None:
        """Send the signal to every process of the cgroups; SIGKILL repeats until none is left that
        is not already a zombie, and thaws, for a frozen process does not die on v1."""
        if signal != SIGKILL:
            _signal(self.pids(), signal)
            return
        path, frozen, thawed = self._freezer()
        for _ in range(_KILL_ROUNDS):
            pids = self.pids()
            if not pids:
                return
            if path:
                # a fork bomb outruns a list of pids unless it holds still
                cgroup.try_write(f"{path}/{self._freezer_file()}", frozen)
                pids = self.pids()
            _signal(pids, SIGKILL)
            if path:
                cgroup.try_write(f"{path}/{self._freezer_file()}", thawed)
            time.sleep(0.002)

    def _freezer_file(self) -> str:
        return "cgroup.freeze" if self.version == 2 else "freezer.state"

    def delete(self) -> None:
        """Remove the cgroups and all below; those already gone do not matter. Raises KernelError
        when a process is left in one after some seconds."""
        cgroup.remove(list(self.paths.values()))

    def to_state(self) -> dict[str, Any]:
        """Plain data for state.json, from which `from_state` makes the manager again."""
        return {"version": self.version, "driver": self.driver, "paths": dict(self.paths)}


def _single_threaded() -> bool:
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return False


def _signal(pids: Iterable[int], signal: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal)
        except ProcessLookupError:
            continue
        except OSError as error:
            raise KernelError(
                os.strerror(error.errno or 0).lower(),
                subject=str(pid),
                step=f"kill {pid}",
                errno=error.errno or 0,
            ) from None
