"""The keeper: resident parent of every container.

It forks a builder per request and one io, holds the descriptors that containers cannot live without
(pidfds, our ends of pipes, terminals, reserving sockets, the journal and the stage), sees exits, and
tells the daemons. It parses no data of containers and no request. One thread, one epoll; nothing in
it waits for anybody. Messages: wire/messages.py; the why: docs/nagaya-supervisor.md.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import errno
import os
import sys
import time
from _socket import socket
from select import EPOLLIN, EPOLLOUT, epoll

from nagaya.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NagayaError,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from nagaya.linux import json, namespaces, seqpacket, tty
from nagaya.supervisor import children
from nagaya.supervisor.builders import Builders
from nagaya.supervisor.children import IoProcess
from nagaya.supervisor.entries import Entry, Slots, check_entry, is_pidfd, make_stdio, outputs
from nagaya.supervisor.format import RECORDS
from nagaya.supervisor.helper import Helper
from nagaya.supervisor.link import Link
from nagaya.wire.messages import FROM_IO, STDIO, TO_DAEMON, TO_KEEPER, VERSION, check, message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from nagaya.supervisor.builder import Operation
    from nagaya.wire.messages import Message

_DRAIN = 10.0  # seconds that an exit waits for io at most
_STATUS = 2.0  # seconds until somebody else must have reaped a process that is not our child
_ACCEPT_PAUSE = 0.2  # seconds without accepting when there is no descriptor left


class Keeper:
    """State and loop of one keeper. `serve` returns when it should end."""

    def __init__(
        self,
        listener: socket,
        operations: Mapping[str, Operation],
        nofile: tuple[int, int],
        log_root: str = "",
        renew: Callable[[], None] | None = None,
        run: str = "",
    ) -> None:
        self._listener = listener
        self._log_root = log_root
        self._renew = renew
        self._renewing = False
        self._born = time.time_ns()
        self._epoll = epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._entries: dict[str, Entry] = {}
        self._by_pid: dict[int, Entry] = {}
        self._held: dict[str, list[int]] = {}
        self._links: list[Link] = []
        self._builders = Builders(self, operations, nofile)
        # Exits of children that no builder, or no daemon of the program that we were before a renewal,
        # has told us about yet. Kept while one may.
        self._early: dict[int, tuple[int, int]] = {}
        self._newborn = True
        self._slots = Slots()
        self._adopting = 0  # entries of a former keeper still to come: io must not start before
        self._leaving = False
        self._quit = False
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self._io = IoProcess(self)
        self._helper = Helper(self, run, self._held)

    # the loop

    def serve(self) -> None:
        """Work until told to end: `quit`, or SIGTERM once there are no entries. SIGHUP: be renewed."""
        wake, signalled = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        _signal.set_wakeup_fd(signalled, warn_on_full_buffer=False)
        _signal.signal(_signal.SIGCHLD, lambda *_: None)
        _signal.signal(_signal.SIGTERM, lambda *_: self._terminate())
        _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
        _signal.signal(_signal.SIGHUP, lambda *_: self._be_renewed())
        self.listen_to(wake, lambda _: self._signalled(wake))
        self.listen_to(self._listener.fileno(), lambda _: self._accept())
        while not self._quit and not (self._leaving and not self._entries and not self._builders.busy):
            for fd, events in self._epoll.poll(self._timeout()):
                handler = self._handlers.get(fd)
                if handler is not None:
                    self._guarded(handler, events)
            now = time.monotonic()
            due = [t for t in self._timers if t[0] <= now]
            if due:
                self._timers = [t for t in self._timers if t[0] > now]
                for _, action in due:
                    self._guarded(action)
            if self._renewing and self._renew and self._renewable():
                self._renewing = False
                _signal.signal(_signal.SIGHUP, _signal.SIG_IGN)  # until the next program has its handler
                self._guarded(self._renew)

    def _guarded(self, action: Callable[..., None], *arguments: int) -> None:
        """A defect in one message must not take all containers' stdio with it."""
        try:
            action(*arguments)
        except Exception as error:
            sys.excepthook(type(error), error, error.__traceback__)

    def _timeout(self) -> float:
        return max(0.0, min(t[0] for t in self._timers) - time.monotonic()) if self._timers else -1

    def later(self, seconds: float, action: Callable[[], None]) -> tuple[float, Callable[[], None]]:
        """Run the action once, when the time has come. Returns the timer."""
        timer = (time.monotonic() + seconds, action)
        self._timers.append(timer)
        return timer

    def listen_to(self, fd: int, handler: Callable[[int], None], events: int = EPOLLIN) -> None:
        """Call the handler with the events of fd."""
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def ignore(self, fd: int) -> None:
        """No longer; before fd is closed."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def arm(self, fd: int, writing: bool) -> None:
        """Wait for room to write, too."""
        self._epoll.modify(fd, EPOLLIN | (EPOLLOUT if writing else 0))

    def _terminate(self) -> None:
        self._leaving = True

    def _be_renewed(self) -> None:
        self._renewing = True

    def _renewable(self) -> bool:
        """A daemon has duplicates of everything, and nothing is under way."""
        kept = any(link.greeted and link.idle for link in self._links)
        return kept and not self._builders.busy and not self._adopting

    def _signalled(self, wake: int) -> None:
        try:
            os.read(wake, 4096)
        except BlockingIOError:
            pass
        self._reap()

    # daemons

    def _accept(self) -> None:
        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                # It would be ready again at once: leave it for a moment instead of spinning.
                self.ignore(self._listener.fileno())
                self.later(
                    _ACCEPT_PAUSE, lambda: self.listen_to(self._listener.fileno(), lambda _: self._accept())
                )
            return
        sock = socket(-1, -1, -1, fileno=fd)
        os.set_inheritable(fd, False)
        if seqpacket.peer_uid(sock) != os.geteuid():
            sock.close()
            return
        link = Link(sock, self.arm)
        self._links.append(link)
        self.listen_to(fd, lambda events: self._from_daemon(link, events))

    def _drop_link(self, link: Link) -> None:
        if link not in self._links:
            return
        self._links.remove(link)
        self.ignore(link.fd)
        link.close()
        if self._adopting:  # it will not send the rest: go on with what came
            self._adopting = 0
            self._io.start()

    def tell(self, kind: str, passing: Sequence[int] = (), /, **fields: Any) -> None:
        """Tell every daemon that has said hello."""
        data = json.dumps(message(TO_DAEMON, kind, **fields)).encode()
        for link in self._links[:]:
            if link.greeted and not link.send(data, passing):
                self._drop_link(link)

    def _answer(self, link: Link, kind: str, passing: Sequence[int] = (), /, **fields: Any) -> None:
        if not link.send(json.dumps(message(TO_DAEMON, kind, **fields)).encode(), passing):
            self._drop_link(link)

    def _from_daemon(self, link: Link, events: int) -> None:
        if link not in self._links:
            return
        packet = None
        try:
            if events & EPOLLOUT:
                link.flush()
            if events & ~EPOLLOUT:
                packet = seqpacket.receive(link.sock)
                if packet is not None and not packet.data:
                    self._drop_link(link)
                    return
        except OSError:
            self._drop_link(link)
            return
        if packet is None:
            return
        fds = packet.fds  # an operation takes out what it keeps; the rest is closed
        serial = 0
        try:
            request = check(TO_KEEPER, json.loads(packet.data))
            serial = request.get("serial", 0)
            if packet.truncated:
                raise ResourceExhausted(
                    "the supervisor has no file descriptor left", step="receive", errno=errno.EMFILE
                )
            if request["kind"] != "hello" and not link.greeted:
                raise FailedPrecondition("the first message must be hello")
            getattr(self, "_do_" + request["kind"])(link, request, fds)
        except NagayaError as error:
            self._refuse(link, serial, error)
        except OSError as error:
            wrapped = ResourceExhausted(
                os.strerror(error.errno or 0).lower(), step="supervisor", errno=error.errno or 0
            )
            self._refuse(link, serial, wrapped)
        finally:
            seqpacket.close_all(fds)

    def _refuse(self, link: Link, serial: int, error: NagayaError) -> None:
        if link in self._links:
            self._answer(link, "refused", serial=serial, error=error.to_wire())

    def _do_hello(self, link: Link, request: Message, fds: list[int]) -> None:
        if request["version"] != VERSION:
            raise FailedPrecondition(
                f"the supervisor speaks version {VERSION}, not {request['version']}", subject="version"
            )
        entries = [e for e in self._entries.values() if e.ready]
        held = [
            (token, fds[first : first + seqpacket.MAX_FDS])
            for token, fds in self._held.items()
            for first in range(0, len(fds), seqpacket.MAX_FDS)
        ]
        self._answer(
            link,
            "hello",
            self._io.state_fds(),
            version=VERSION,
            pid=os.getpid(),
            born=self._born,
            entries=len(entries),
            held=len(held),
        )
        link.greeted = True
        for entry in entries:
            self._answer(link, "entry", list(entry.fds.values()), **entry.fields())
        for token, part in held:
            self._answer(link, "held", part, token=token)

    def _do_restore(self, link: Link, request: Message, fds: list[int]) -> None:
        if self._entries or self._builders.busy:
            raise FailedPrecondition("this keeper has containers of its own already")
        if len(fds) != 3:
            raise InvalidArgument("restore needs three descriptors")
        self._io.restore(fds[0], fds[1], fds[2])
        fds.clear()
        self._adopting = max(0, request["entries"])
        self._newborn = False

    def _do_adopt(self, link: Link, request: Message, fds: list[int]) -> None:
        if not self._adopting:
            raise FailedPrecondition("nothing is being restored", subject=request["token"])
        self._adopting -= 1
        try:
            check_entry(request, fds)
            self._check_log(request["log"])
            if request["token"] in self._entries:
                raise AlreadyExists("the token is taken", subject=request["token"])
            entry = Entry(request["token"], request["stdio"], request["log"])
            entry.ready = True
            entry.pid = request["pid"]
            entry.slots = request["slots"]
            entry.fds = dict(zip(request["fds"], fds, strict=True))
            fds.clear()
            self._slots.reserve(entry.slots)
            self._entries[entry.token] = entry
            if request["exited"]:
                entry.exited = entry.announced = True
                entry.status, entry.time_ns = request["status"], request["time_ns"]
            elif entry.pid in self._early:
                self._exited(entry, *self._early.pop(entry.pid))
            elif entry.pid:
                self._watch_pid(entry)
        finally:
            if not self._adopting:
                self._io.start()

    def _do_release(self, link: Link, request: Message, fds: list[int]) -> None:
        entry = self._entries.get(request["token"])
        if entry is None:
            self._io.send("drop", token=request["token"])  # clients may wait for it
            return
        if not entry.ready or (entry.pid and not entry.exited):
            raise FailedPrecondition("the process is alive", subject=entry.token)
        self._forget(entry)

    def _do_attach(self, link: Link, request: Message, fds: list[int]) -> None:
        if self._adopting:
            raise Unavailable("containers are being taken over", step="attach")
        entry = self._entries.get(request["token"])
        if entry is not None and entry.announced:
            raise FailedPrecondition("the process has ended", subject=entry.token)
        self._io.attach(request, fds)

    def _do_resize(self, link: Link, request: Message, fds: list[int]) -> None:
        master = self._find(request["token"]).fds.get("tty", -1)
        if master >= 0:
            tty.set_size(master, request["h"] & 0xFFFF, request["w"] & 0xFFFF)

    def _do_close_stdin(self, link: Link, request: Message, fds: list[int]) -> None:
        # io first writes what clients have typed; then it tells us (`io_says`)
        entry = self._find(request["token"])
        entry.closing = True
        self._io.send("close_stdin", token=entry.token)

    def _do_hold(self, link: Link, request: Message, fds: list[int]) -> None:
        self._held.setdefault(request["token"], []).extend(fds)
        self._helper.hold(request["token"], fds)
        fds.clear()

    def _do_unhold(self, link: Link, request: Message, fds: list[int]) -> None:
        seqpacket.close_all(self._held.pop(request["token"], []))
        self._helper.unhold(request["token"])

    def _do_watch(self, link: Link, request: Message, fds: list[int]) -> None:
        if len(fds) != 1 or not is_pidfd(fds[0]) or request["pid"] <= 0:
            raise InvalidArgument("watch needs a pidfd", subject=request["token"])
        entry = self._entries.get(request["token"])
        if entry is None:
            entry = self._entries[request["token"]] = Entry(request["token"], "none", None)
        if entry.pid:
            raise FailedPrecondition("has a process already", subject=entry.token)
        self.started(entry, request["pid"], fds.pop())

    def _do_quit(self, link: Link, request: Message, fds: list[int]) -> None:
        self._quit = True

    def _find(self, token: str) -> Entry:
        entry = self._entries.get(token)
        if entry is None:
            raise NotFound("no such process", subject=token)
        return entry

    # builders

    def _do_spawn(self, link: Link, request: Message, fds: list[int]) -> None:
        if len(fds) != 2:
            raise InvalidArgument("spawn needs a request and a reply socket")
        if self._adopting:
            raise Unavailable("containers are being taken over", step="spawn")
        token, kind, log = request["token"], request["stdio"], request["log"]
        if kind not in STDIO or (kind != "none" and not token):
            raise InvalidArgument(f"unknown stdio {kind!r}", subject="stdio")
        self._check_log(log)
        if token in self._entries:
            raise AlreadyExists("the token is taken", subject=token)
        entry = Entry(token, kind, log) if token else None
        stdio = (-1, -1, -1)
        try:
            if entry is not None:
                entry.slots = self._slots.take(outputs(kind, log))
                stdio = make_stdio(entry, request["stdin"])
            self._builders.employ(fds, entry, stdio, shared=request["shared"])
        except (OSError, NagayaError):
            if entry is not None:
                entry.close()
                self._slots.give(entry.slots)
            raise
        finally:
            seqpacket.close_all(fd for fd in stdio if fd >= 0)
        if entry is not None:
            self._entries[token] = entry

    def _check_log(self, log: dict[str, Any] | None) -> None:
        if not log or log.get("driver") == "none":
            return
        if log.get("driver") not in RECORDS:
            raise InvalidArgument(f"unknown log driver {log.get('driver')!r}", subject="log.driver")
        path = log.get("path")
        if not isinstance(path, str) or not path.startswith("/") or "/../" in path:
            raise InvalidArgument("the log needs an absolute path", subject="log.path")
        # where a pod's logs lie is the kubelet's say
        if (
            self._log_root
            and log["driver"] != "cri"
            and not path.startswith(self._log_root.rstrip("/") + "/")
        ):
            raise InvalidArgument(f"the log must lie below {self._log_root}", subject="log.path")

    def started(self, entry: Entry, pid: int, pidfd: int) -> None:
        """An entry's process is there."""
        entry.pid = pid
        entry.fds["pidfd"] = pidfd
        self._open(entry)
        early = self._early.pop(pid, None)
        if early is not None:
            self._exited(entry, *early)
        else:
            self._watch_pid(entry)

    def _open(self, entry: Entry) -> None:
        """Its output may be read, and the daemons may know it."""
        if not entry.ready and entry.streams():
            for slot in entry.slots:
                self._io.journal().clear(slot)
            entry.ready = True
            self._io.open(entry)
        entry.ready = True
        self.tell("started", list(entry.fds.values()), **entry.fields())

    def job_ended(self, entry: Entry | None, status: int) -> None:
        """A builder has done, or died over, a job that may have been to make an entry's process."""
        if entry is not None and not entry.pid and self._entries.get(entry.token) is entry:
            if status == 0:
                self._open(entry)  # of a foreign runtime: its init comes with `watch`
            else:
                # clients that wait for it stay: they are told why before the daemon releases the token
                self._forget(entry, drop=False)
                self.tell("failed", token=entry.token)
        if not self._builders.busy and not self._adopting:
            self._newborn = False
            self._early.clear()

    # exits

    def _watch_pid(self, entry: Entry) -> None:
        self._by_pid[entry.pid] = entry
        pidfd = entry.fds.get("pidfd", -1)
        if pidfd >= 0:
            self.listen_to(pidfd, lambda _: self._pid_ended(entry))

    def _pid_ended(self, entry: Entry) -> None:
        """The pidfd says so. Our child: SIGCHLD's business. Another's: ask the kernel."""
        self._reap()
        if entry.exited:
            return
        status = namespaces.pidfd_exit_status(entry.fds["pidfd"])
        if status is None:
            status = children.zombie_status(entry.pid)
        now = time.monotonic()
        if status is None and not entry.deadline:
            entry.deadline = now + _STATUS
        if status is None and now < entry.deadline:
            # Dead, and not reaped by its new parent: the status comes with that.
            self.ignore(entry.fds["pidfd"])
            self.later(0.005, lambda: None if entry.exited else self._pid_ended(entry))
            return
        self._exited(entry, status, time.time_ns())

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            now = time.time_ns()
            if self._builders.reaped(pid, status):
                continue
            entry = self._by_pid.get(pid)
            if entry is not None:
                self._exited(entry, status, now)
            elif pid == self._io.pid:
                self._io.died()
            elif pid == self._helper.pid:
                self._helper.died()
            elif self._builders.busy or self._adopting or self._newborn:
                self._early[pid] = (status, now)

    def _exited(self, entry: Entry, status: int | None, time_ns: int) -> None:
        if entry.exited:
            return
        entry.exited = True
        entry.status, entry.time_ns = status, time_ns
        self._by_pid.pop(entry.pid, None)
        pidfd = entry.fds.get("pidfd", -1)
        if pidfd >= 0:
            self.ignore(pidfd)
        if not entry.streams():
            self._announce(entry)
            return
        self._io.send("drain", token=entry.token)
        entry.timer = self.later(_DRAIN, lambda: self._announce(entry))

    def _announce(self, entry: Entry) -> None:
        if entry.timer in self._timers:
            self._timers.remove(entry.timer)
        if not entry.announced and self._entries.get(entry.token) is entry:
            entry.announced = True
            self.tell("exit", token=entry.token, status=entry.status, time_ns=entry.time_ns)

    def _forget(self, entry: Entry, *, drop: bool = True) -> None:
        del self._entries[entry.token]
        self._by_pid.pop(entry.pid, None)
        self.ignore(entry.fds.get("pidfd", -1))
        if drop:
            self._io.send("drop", token=entry.token)
        self._slots.give(entry.slots)
        entry.close()

    # io

    def unfinished(self) -> list[tuple[str, str]]:
        """(kind, token) of what a killed io may have left undone."""
        entries = self._entries.values()
        return [("drain", e.token) for e in entries if e.exited and not e.announced] + [
            ("close_stdin", e.token) for e in entries if e.closing
        ]

    def entries_with_streams(self) -> list[Entry]:
        """What a new io must go on with."""
        return [e for e in self._entries.values() if e.ready and e.streams()]

    def io_says(self, data: bytes) -> None:
        """One message of io."""
        said = check(FROM_IO, json.loads(data))
        kind = said.pop("kind")
        if kind == "drained":
            entry = self._entries.get(said["token"])
            if entry is not None and entry.exited:
                self._announce(entry)
            return
        if kind == "stdin_closed":
            entry = self._entries.get(said["token"])
            if entry is not None:
                entry.close("stdin")
                entry.closing = False
        elif kind == "detached" or said.get("error") is not None:
            self._io.forget_serial(said["serial"])
        self.tell(kind, **said)
