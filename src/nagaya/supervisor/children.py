"""The keeper's child io, which is started when it is needed and again when it dies; and what /proc
says of a dead process."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import sys
import time
from _socket import socket
from select import EPOLLOUT

from nagaya.errors import InvalidArgument, Unavailable
from nagaya.linux import json, pids, process, seqpacket
from nagaya.supervisor.builder import close_others
from nagaya.supervisor.io import Io
from nagaya.supervisor.journal import Journal
from nagaya.supervisor.link import Link
from nagaya.wire.messages import TO_IO, message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, NoReturn

    from nagaya.supervisor.entries import Entry
    from nagaya.supervisor.keeper import Keeper
    from nagaya.wire.messages import Message

_SETTLED = 1.0  # seconds of life after which a death is not counted as a crash loop
MOST_DELAY = 1.0  # seconds between two starts


class Pace:
    """How soon a child that died is started again: at once, unless it dies again and again."""

    def __init__(self) -> None:
        self._started = 0.0
        self._quick_deaths = 0

    def begun(self) -> None:
        """It has been started."""
        self._started = time.monotonic()

    def delay(self) -> float:
        """It has died: seconds until the next start, 0: now."""
        lived = time.monotonic() - self._started
        self._quick_deaths = self._quick_deaths + 1 if lived < _SETTLED else 0
        return min(MOST_DELAY, 0.01 * 2**self._quick_deaths) if self._quick_deaths >= 3 else 0.0


class IoProcess:
    """io as the keeper sees it: the journal and stage that outlive it, its pid, its link."""

    def __init__(self, keeper: Keeper) -> None:
        self.pid = 0
        self._keeper = keeper
        self._journal = -1
        self._stage_out = -1
        self._stage_in = -1
        self._link: Link | None = None
        self._pace = Pace()
        self._deaths = 0
        self._restarting = False
        self._serials: list[int] = []  # attachments that io has

    def state_fds(self) -> list[int]:
        """[journal memfd, stage read end, stage write end], made when there are none yet."""
        if self._journal < 0:
            self._journal = os.memfd_create("nagaya-io", os.MFD_CLOEXEC)
            self._stage_out, self._stage_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        return [self._journal, self._stage_out, self._stage_in]

    def journal(self) -> Journal:
        """The journal, to make a slot new."""
        return Journal(self.state_fds()[0])

    def restore(self, journal: int, stage_out: int, stage_in: int) -> None:
        """Go on with the state of a former keeper's io. Only while no io runs."""
        if self.pid:
            raise Unavailable("io runs already", step="restore")
        seqpacket.close_all(fd for fd in (self._journal, self._stage_out, self._stage_in) if fd >= 0)
        self._journal, self._stage_out, self._stage_in = journal, stage_out, stage_in

    def start(self) -> None:
        """Fork io with all entries that have streams."""
        if self.pid:
            return
        state = self.state_fds()
        entries = self._keeper.entries_with_streams()
        ours, theirs = seqpacket.pair()
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        if not pid:
            fd = theirs.detach()
            become(lambda: work(fd, entries, state))
        theirs.close()
        self.pid = pid
        self._pace.begun()
        self._link = Link(ours, self._keeper.arm)
        self._keeper.listen_to(self._link.fd, self._ready)
        for kind, token in self._keeper.unfinished():
            self.send(kind, token=token)

    def _ready(self, events: int) -> None:
        link = self._link
        if link is None:
            return
        try:
            if events & EPOLLOUT:
                link.flush()
            packet = seqpacket.receive(link.sock) if events & ~EPOLLOUT else None
        except OSError:
            self._keeper.ignore(link.fd)
            return
        if packet is None:
            return
        if packet.data:
            self._keeper.io_says(packet.data)
        else:
            self._keeper.ignore(link.fd)  # it is dying; SIGCHLD follows

    def died(self) -> None:
        """It was reaped: hear its last words, tell the daemons, start another."""
        link, self._link, self.pid = self._link, None, 0
        if link is not None:
            self._keeper.ignore(link.fd)
            try:
                while (packet := seqpacket.receive(link.sock)) is not None and packet.data:
                    self._keeper.io_says(packet.data)
            except OSError:
                pass
            link.close()
        self._deaths += 1
        serials, self._serials = self._serials, []
        self._keeper.tell("io_restarted", count=self._deaths, serials=serials)
        delay = self._pace.delay()
        if not delay:
            self._restart()
        else:
            self._restarting = True
            self._keeper.later(delay, self._restart)

    def _restart(self) -> None:
        self._restarting = False
        try:
            self.start()
        except OSError:
            self._restarting = True
            self._keeper.later(MOST_DELAY, self._restart)

    def send(self, kind: str, passing: Sequence[int] = (), /, **fields: Any) -> None:
        """A message to io. While none runs there is nothing to tell: the next one is born knowing."""
        if self._link is not None:
            self._link.send(json.dumps(message(TO_IO, kind, **fields)).encode(), passing)

    def open(self, entry: Entry) -> None:
        """io has a new entry to read from."""
        if self.pid:
            streams = entry.streams()
            fields = {**entry.fields(), "fds": list(streams)}
            self.send("open", list(streams.values()), **fields)
        elif not self._restarting:
            self.start()

    def attach(self, request: Message, fds: list[int]) -> None:
        """Pass a client on. Raises Unavailable, or OSError, when there is no io to serve it."""
        if not self.pid:
            if self._restarting:
                raise Unavailable("io is being restarted", step="attach")
            self.start()
        if not fds:
            raise InvalidArgument("attach needs a socket", step="attach")
        self._serials.append(request["serial"])
        self.send("attach", fds, **{k: v for k, v in request.items() if k != "kind"})

    def forget_serial(self, serial: int) -> None:
        """The attachment has ended, or did not begin."""
        if serial in self._serials:
            self._serials.remove(serial)


def become(serve: Callable[[], object]) -> NoReturn:
    """All of a fork's life: frees no object of the keeper (see Builders._become_builder)."""
    status = 70
    try:
        serve()
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())  # the keeper's stderr is a file for this
    finally:
        os._exit(status)


def work(fd: int, entries: list[Entry], state: list[int]) -> None:
    """Be io: a fresh fork of the keeper that has the entries' descriptors by their numbers."""
    sock = socket(-1, -1, -1, fileno=fd)
    keep = {fd, *state}
    for entry in entries:
        keep.update(entry.streams().values())
    close_others(keep)
    process.set_name("nagaya-io")
    process.prctl(process.PR_SET_PDEATHSIG, 9)
    process.prctl(process.PR_SET_CHILD_SUBREAPER, 0)
    _signal.set_wakeup_fd(-1)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    _signal.signal(_signal.SIGTERM, _signal.SIG_IGN)  # it ends with its keeper, not before
    io = Io(sock, *state)
    known = []
    for entry in entries:
        streams = entry.streams()
        known.append(({**entry.fields(), "fds": list(streams)}, list(streams.values())))
    io.resume(known)
    io.serve()


def zombie_status(pid: int) -> int | None:
    """The wait status of a zombie that is another's child: field 52 of /proc/PID/stat (proc(5));
    None when it is not there any more."""
    fields = pids.stat(pid)
    return int(fields[49]) if fields and len(fields) > 49 and fields[0] in (b"Z", b"X") else None
