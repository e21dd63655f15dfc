"""The keeper's child that serves sockets of containers' networks: the resolver, and relayed ports. It is
started when the first container needs it, again when it dies, and goes on while the daemon is away.

What the keeper holds under a token "dns-CONTAINER" or "relay-CONTAINER" is its own; what to do with it, it
reads from RUN/dns. It is nobody (uid and gid 65534, no capabilities, no new privileges): it parses what
hostile containers send.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import sys
from _socket import socket
from select import EPOLLIN, EPOLLOUT, epoll

from nagaya.linux import json, process, seqpacket
from nagaya.network.dnszone import Zones
from nagaya.supervisor.builder import close_others
from nagaya.supervisor.children import MOST_DELAY, Pace, become
from nagaya.supervisor.link import Link
from nagaya.supervisor.relay import Relay
from nagaya.supervisor.resolver import Resolver

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nagaya.supervisor.keeper import Keeper

PREFIXES = ("dns-", "relay-")
_NOBODY = 65534


class Helper:
    """The child as the keeper sees it."""

    def __init__(self, keeper: Keeper, run: str, held: Mapping[str, list[int]]) -> None:
        self.pid = 0
        self._keeper = keeper
        self._directory = f"{run}/dns"
        self._held = held
        self._link: Link | None = None
        self._pace = Pace()
        self._restarting = False

    def hold(self, token: str, fds: Sequence[int]) -> None:
        """The keeper holds these now."""
        if not token.startswith(PREFIXES):
            return
        if self._link is not None:
            self._link.send(json.dumps({"kind": "add", "token": token}).encode(), fds)
        elif not self._restarting:
            self._start()

    def unhold(self, token: str) -> None:
        """The keeper lets them go."""
        if token.startswith(PREFIXES) and self._link is not None:
            self._link.send(json.dumps({"kind": "remove", "token": token}).encode())

    def _start(self) -> None:
        self._restarting = False
        mine = {token: fds for token, fds in self._held.items() if token.startswith(PREFIXES)}
        if self.pid or not mine:
            return
        ours, theirs = seqpacket.pair()
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            self._restarting = True
            self._keeper.later(MOST_DELAY, self._start)
            return
        if not pid:
            fd = theirs.detach()
            become(lambda: work(fd, mine, self._directory))
        theirs.close()
        self.pid = pid
        self._pace.begun()
        self._link = Link(ours, self._keeper.arm)
        self._keeper.listen_to(self._link.fd, self._ready)

    def _ready(self, events: int) -> None:
        link = self._link
        if link is None:
            return
        if events & EPOLLOUT:
            link.flush()
        if events & ~EPOLLOUT:  # it says nothing: it has died, SIGCHLD follows
            self._keeper.ignore(link.fd)

    def died(self) -> None:
        """It was reaped: start another."""
        link, self._link, self.pid = self._link, None, 0
        if link is not None:
            self._keeper.ignore(link.fd)
            link.close()
        delay = self._pace.delay()
        if not delay:
            self._start()
        else:
            self._restarting = True
            self._keeper.later(delay, self._start)


def work(fd: int, mine: dict[str, list[int]], directory: str) -> None:
    """Be the child: a fresh fork of the keeper that has the descriptors by their numbers."""
    close_others({fd, *(one for fds in mine.values() for one in fds)})
    process.set_name("nagaya-net")
    process.prctl(process.PR_SET_CHILD_SUBREAPER, 0)
    _signal.set_wakeup_fd(-1)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    _signal.signal(_signal.SIGTERM, _signal.SIG_IGN)  # it ends with its keeper, not before
    os.makedirs(directory, 0o710, exist_ok=True)
    os.chown(directory, 0, _NOBODY)
    zones = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    process.prctl(process.PR_SET_NO_NEW_PRIVS, 1)
    process.prctl(process.PR_SET_PDEATHSIG, 9)  # a change of user forgets it
    keeper = socket(-1, -1, -1, fileno=fd)
    poll = epoll()
    poll.register(fd, EPOLLIN)
    resolver, relay = Resolver(poll, Zones(zones)), Relay(poll, zones)

    def of(token: str) -> Resolver | Relay:
        return relay if token.startswith("relay-") else resolver

    for token, fds in mine.items():
        _guarded(of(token).add, token, fds)
    while True:
        waits = [seconds for seconds in (resolver.timeout(), relay.timeout()) if seconds >= 0]
        for ready, events in poll.poll(min(waits, default=-1)):
            if ready == fd:
                packet = seqpacket.receive(keeper)
                if packet is None:
                    continue
                if not packet.data:
                    return  # the keeper has gone, or is another program now
                said = json.loads(packet.data)
                if said["kind"] == "add":
                    _guarded(of(said["token"]).add, said["token"], packet.fds)
                else:
                    _guarded(of(said["token"]).remove, said["token"])
            elif ready in relay:
                _guarded(relay.handles, ready, events)
            else:
                _guarded(resolver.handles, ready, events)
        _guarded(resolver.expire)
        _guarded(relay.expire)


def _guarded(action: Callable[..., object], *arguments: object) -> None:
    """A defect in one question must not take all others' answers with it."""
    try:
        action(*arguments)
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
