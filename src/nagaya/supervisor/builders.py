"""The keeper's side of its builders: forks them, gives them jobs, keeps a few for the next.

A fork of the keeper costs 1 ms, and as much again in pages that are copied when they are first
written. So a builder whose job was one that may be shared waits for another such job. What joins a
container's pid namespace, where its processes could read a joiner's memory, is done by a fresh fork
that has seen no other container's secrets, and that ends with its job. Such jobs seldom come alone
(health checks, scripts of `exec`): after one of them a fork is made in advance for the next.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import time
from _socket import socket

from nagaya.errors import NagayaError, Unavailable
from nagaya.linux import json, seqpacket
from nagaya.supervisor import builder
from nagaya.wire.messages import FROM_BUILDER, check

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nagaya.supervisor.builder import Operation
    from nagaya.supervisor.entries import Entry
    from nagaya.supervisor.keeper import Keeper
    from nagaya.wire.messages import Message

_IDLE = 5.0  # seconds that a builder waits for its next job
_WAITING = 2  # builders that wait for a job at most: as many as start containers one after the other
_JOBS = 100  # a builder's jobs, after which it is replaced: what it forgot to give back goes with it


class Builder:
    """One builder. entry, notice: of the job it works on, when that makes a process."""

    __slots__ = ("busy", "control", "entry", "idle_since", "jobs", "notice", "pid")

    def __init__(self, pid: int, control: socket) -> None:
        self.pid = pid
        self.control: socket | None = control  # None: no more jobs
        self.busy = False
        self.idle_since = 0.0
        self.jobs = 0
        self.entry: Entry | None = None
        self.notice: socket | None = None

    def send(self, kind: bytes, fds: Sequence[int]) -> bool:
        """Give it a job; False when it has just died."""
        try:
            return self.control is not None and seqpacket.send(self.control, kind, fds)
        except OSError:
            return False


class Builders:
    """All builders of a keeper."""

    def __init__(self, keeper: Keeper, operations: Mapping[str, Operation], nofile: tuple[int, int]) -> None:
        self._keeper = keeper
        self._operations = operations
        self._nofile = nofile
        self._known: dict[int, Builder] = {}
        self._sweeping = False

    @property
    def busy(self) -> bool:
        """Somebody works: processes may exist that we have not been told of."""
        return any(worker.busy for worker in self._known.values())

    def employ(
        self, request: list[int], entry: Entry | None, stdio: tuple[int, int, int], *, shared: bool
    ) -> None:
        """Have a job done. request: its memfd and reply socket; entry: what the process will be.

        The caller closes the descriptors. Raises OSError, Unavailable, with nothing begun.
        """
        notice: socket | None = None
        fds = list(request)
        child_end: socket | None = None
        try:
            if entry is not None:
                notice, child_end = seqpacket.pair()
                fds += [child_end.fileno(), *(fd for fd in stdio if fd >= 0)]
            worker = self._waiting(fds, shared)
            if worker is None:
                worker = self._fork()
                if not worker.send(builder.SHARED if shared else builder.ALONE, fds):
                    self._dismiss(worker)
                    raise Unavailable("the builder did not take its job", step="spawn")
        except (OSError, NagayaError):
            if notice is not None:
                notice.close()
            raise
        finally:
            if child_end is not None:
                child_end.close()
        worker.busy, worker.entry, worker.notice = True, entry, notice
        worker.jobs += 1
        if not shared:
            self._dismiss(worker)
        if notice is not None:
            self._keeper.listen_to(notice.fileno(), lambda _: self._hear(worker))

    def _waiting(self, fds: list[int], shared: bool) -> Builder | None:
        """One that has taken the job: who had others before does not join a pid namespace, and who had none
        is kept for that."""
        for worker in self._idle():
            if bool(worker.jobs) == shared and worker.send(builder.SHARED if shared else builder.ALONE, fds):
                return worker
        return None

    def _keep_spare(self) -> None:
        """Make a fork in advance, unless there is one."""
        if all(worker.jobs for worker in self._idle()):
            try:
                worker = self._fork()
            except OSError:
                return  # the next job that needs one will say so
            worker.idle_since = time.monotonic()
            self._sweep_later()

    def _fork(self) -> Builder:
        ours, theirs = seqpacket.pair()
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        if not pid:
            self._become_builder(theirs)
        theirs.close()
        worker = self._known[pid] = Builder(pid, ours)
        self._keeper.listen_to(ours.fileno(), lambda _: self._done(worker))
        return worker

    def _become_builder(self, control: socket) -> None:
        """In the child. Never returns, and frees no object of the keeper: a socket object that dies
        here would close a number that is something else by now."""
        status = 70
        try:
            _signal.set_wakeup_fd(-1)
            status = builder.serve(self._operations, control, self._nofile)
        finally:
            os._exit(status)

    def _done(self, worker: Builder) -> None:
        """A shared builder has done its job: its exit status, had it ended now, is the packet."""
        control = worker.control
        if control is None:
            return
        try:
            packet = seqpacket.receive(control)
        except OSError:
            packet = seqpacket.Packet(b"", [], False)
        if packet is None:
            return
        if not packet.data:
            self._dismiss(worker)  # it is dying; SIGCHLD follows
            return
        self._ended(worker, packet.data[0])
        worker.idle_since = time.monotonic()
        if sum(bool(w.jobs) for w in self._idle()) > _WAITING or worker.jobs >= _JOBS:
            self._dismiss(worker)
        else:
            self._sweep_later()

    def _idle(self) -> list[Builder]:
        return [w for w in self._known.values() if not w.busy and w.control is not None]

    def _sweep_later(self) -> None:
        if not self._sweeping:
            self._sweeping = True
            self._keeper.later(_IDLE, self._sweep)

    def _sweep(self) -> None:
        """Dismiss who has waited long; look again while there are others."""
        latest = time.monotonic() - _IDLE
        for worker in self._idle():
            if worker.idle_since <= latest:
                self._dismiss(worker)
        self._sweeping = bool(self._idle())
        if self._sweeping:
            self._keeper.later(_IDLE, self._sweep)

    def _dismiss(self, worker: Builder) -> None:
        """No more jobs: it ends when it has done the one it has."""
        control, worker.control = worker.control, None
        if control is not None:
            self._keeper.ignore(control.fileno())
            control.close()

    def _hear(self, worker: Builder) -> None:
        while self._from_builder(worker):
            pass

    def _from_builder(self, worker: Builder) -> bool:
        """Hear of a new process; True when there was something to hear."""
        notice, entry = worker.notice, worker.entry
        if notice is None or entry is None:
            return False
        try:
            packet = seqpacket.receive(notice)
        except OSError:
            packet = seqpacket.Packet(b"", [], False)
        if packet is None:
            return False
        if not packet.data:
            self._close_notice(worker)
            return False
        launched: Message = check(FROM_BUILDER, json.loads(packet.data))
        if packet.truncated or not packet.fds:
            # Without descriptors the process cannot be kept: end it rather than lose its output.
            self._keeper.tell("note", text=f"{entry.token}: no descriptor left for a new process")
            os.kill(launched["pid"], 9)
            seqpacket.close_all(packet.fds)
            return True
        if len(packet.fds) > 1:
            os.set_blocking(packet.fds[1], False)
            entry.fds["tty"] = packet.fds[1]
        self._keeper.started(entry, launched["pid"], packet.fds[0])
        return True

    def _close_notice(self, worker: Builder) -> None:
        notice, worker.notice = worker.notice, None
        if notice is not None:
            self._keeper.ignore(notice.fileno())
            notice.close()

    def _ended(self, worker: Builder, status: int) -> None:
        """Its job has: by a packet, or with the builder."""
        self._hear(worker)
        self._close_notice(worker)
        entry, worker.entry, worker.busy = worker.entry, None, False
        self._keeper.job_ended(entry, status)

    def reaped(self, pid: int, status: int) -> bool:
        """Was it one of ours?"""
        worker = self._known.pop(pid, None)
        if worker is None:
            return False
        if worker.control is not None:
            self._done(worker)  # its last words, when it ended between two jobs
        self._dismiss(worker)
        if worker.busy:
            self._ended(worker, status)
            if worker.jobs == 1:
                self._keep_spare()
        return True
