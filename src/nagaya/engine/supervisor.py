"""The engine's client of nagaya-supervisor: starts a keeper when none answers, speaks to it without
ever blocking the loop, and holds a duplicate of every descriptor it has.

With those, a keeper that died is replaced: the new one adopts all entries, and io goes on with the
byte where the old one stopped (docs/adr/0002-lossless-stdio.md). All methods belong to one event loop.
Callbacks are called from it: `on_exit` may come before `run` of the same token has returned.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from nagaya.engine.holdings import Holdings, holding
from nagaya.engine.keeper import (
    CONNECT,
    BuilderDied,
    Entry,
    Exit,
    Link,
    Reply,
    Started,
    default_command,
    exit_of,
    memfd_of,
    reach_keeper,
    read_reply,
    shares_builder,
)
from nagaya.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    NagayaError,
    NotFound,
    Unavailable,
    from_wire,
)
from nagaya.linux import seqpacket
from nagaya.linux.pids import is_ending, pidfd_send_signal
from nagaya.wire.messages import VERSION

if TYPE_CHECKING:
    from nagaya.wire.messages import Message

log = logging.getLogger(__name__)


class Supervisor:
    """One connection to the keeper of a run directory.

    on_exit(Exit); on_unasked(token): a process came, or failed to, that a former daemon asked for;
    on_detached(token, serial, reason): an attached client has gone ("keys": by detach
    keys, "gone": it hung up, "slow": it read nothing for too long, "end": output ended, "restart": io
    died); on_dropped(token, lines, errno): log lines that could not be written.
    """

    def __init__(
        self,
        run_dir: str,
        *,
        root: str = "",
        command: Sequence[str] = (),
        on_exit: Callable[[Exit], None] | None = None,
        on_detached: Callable[[str, int, str], None] | None = None,
        on_dropped: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self._has = Holdings()
        self.keeper_pid = 0
        self._keeper_born = 0
        self.adoptions = 0
        self.on_exit = on_exit
        self.on_detached = on_detached
        self.on_dropped = on_dropped
        self.on_unasked: Callable[[str], None] | None = None
        self._run_dir = run_dir
        self._command = [*(command or default_command()), "--run", run_dir]
        if root:
            self._command += ["--root", root]
        self._link: Link | None = None
        self._ready = asyncio.Event()
        self._closing = False
        self._reconnecting: asyncio.Task[None] | None = None
        self._awaited = 0  # entry and held messages of the handshake still to come
        self._greeted: asyncio.Future[None] | None = None
        self._serial = 0
        self._refusals: dict[int, asyncio.Future[NagayaError]] = {}
        self._starting: dict[str, asyncio.Future[Entry]] = {}
        self._attaching: dict[int, asyncio.Future[None]] = {}
        self._attached: dict[int, str] = {}
        self._abandoned: set[str] = set()

    @property
    def entries(self) -> dict[str, Entry]:
        """The tokens the keeper has."""
        return self._has.entries

    @property
    def held(self) -> dict[str, list[int]]:
        """What it holds over daemon restarts, by token."""
        return self._has.held

    def is_free(self, token: str) -> bool:
        """There is no process of that token, and none will come."""
        return not (token in self._has.entries or token in self._starting or token in self._abandoned)

    # connection

    async def start(self) -> None:
        """Connect, starting a keeper when none answers; afterwards `entries` and `held` are what it has.

        Raises Unavailable, FailedPrecondition (another version).
        """
        await self._connect()
        if self._link is not None:  # else it was lost at once, and is being replaced
            self._ready.set()

    async def close(self) -> None:
        """Leave the keeper alone with its containers. Of one that has just died they are first given to
        another: without one their output would have no reader."""
        if self._ready.is_set() and is_ending(self.keeper_pid):
            self._lost()  # which the link has not told yet
        self._closing = True
        if self._reconnecting is not None:
            if self._has:
                await asyncio.wait([self._reconnecting], timeout=CONNECT)
            self._reconnecting.cancel()
            await asyncio.gather(self._reconnecting, return_exceptions=True)
        self._disconnect(Unavailable("the client was closed"))
        self._has.close()

    async def _connect(self) -> None:
        sock = await reach_keeper(self._command, self._run_dir)
        former, self._has = self._has, Holdings()
        self._greeted = asyncio.get_running_loop().create_future()
        self._link = Link(sock, self._dispatch, self._lost)
        try:
            self._send("hello", version=VERSION)
            known = self._keeper_born
            async with asyncio.timeout(CONNECT):
                await self._greeted
        except BaseException as error:
            self._has.close()
            self._has = former  # what we hold is needed by the next attempt
            self._disconnect(Unavailable("the supervisor did not finish its greeting"))
            if isinstance(error, TimeoutError):
                raise Unavailable("the supervisor does not answer", step="hello") from None
            raise
        finally:
            self._greeted = None
        if known and self._keeper_born != known:
            self._adopt(former)
        else:
            ended = self._has.ended_since(former)
            former.close()
            for exit in ended:
                if self.on_exit:
                    self.on_exit(exit)

    def _adopt(self, former: Holdings) -> None:
        """Give everything to a new keeper."""
        self.adoptions += 1
        restoring = bool(former.state) and not self._has.entries
        self._has.take_over(former)
        for kind, fds, fields in self._has.restoring() if restoring else ():
            self._send(kind, fds, **fields)
        for kind, fds, fields in self._has.holding():
            self._send(kind, fds, **fields)

    def _disconnect(self, reason: NagayaError) -> None:
        self._ready.clear()
        if self._link is not None:
            self._link.close()
            self._link = None
        waiting: list[asyncio.Future[Any]] = [*self._starting.values(), *self._attaching.values()]
        if self._greeted is not None:
            waiting.append(self._greeted)
        for future in waiting:
            if not future.done():
                future.set_exception(reason)
        self._abandoned.clear()
        gone, self._attached = self._attached, {}
        for serial, token in gone.items():
            if self.on_detached:
                self.on_detached(token, serial, "restart")

    def _lost(self) -> None:
        greeting = self._greeted is not None and not self._greeted.done()
        self._disconnect(Unavailable("the supervisor has died", step="supervisor"))
        if greeting:
            return  # whoever waits for it decides
        if self._has:
            log.warning("lost the supervisor (pid %d), starting another", self.keeper_pid)
            self._begin_reconnecting()
        else:  # perhaps we are told to end just now, as it was: then another would be nobody's
            log.warning("lost the supervisor (pid %d); the next container starts another", self.keeper_pid)

    def _begin_reconnecting(self) -> None:
        if not self._closing and (self._reconnecting is None or self._reconnecting.done()):
            self._reconnecting = asyncio.get_running_loop().create_task(self._reconnect())

    async def _reconnect(self) -> None:
        delay = 0.05
        while True:
            try:
                await self._connect()
                if self._link is not None:
                    break
            except NagayaError as error:
                log.error("cannot start a supervisor: %s", error)
                await asyncio.sleep(delay)
                delay = min(5.0, delay * 2)
        self._ready.set()

    # sending

    def _send(self, kind: str, passing: Sequence[int] = (), /, **fields: Any) -> None:
        if self._link is None:
            raise Unavailable("no supervisor", step=kind)
        self._link.send(kind, passing, **fields)

    async def _connected(self, timeout: float = CONNECT) -> None:
        if not self._ready.is_set():
            if self._closing:
                raise Unavailable("the client was closed", step="supervisor")
            self._begin_reconnecting()
            try:
                async with asyncio.timeout(timeout):
                    await self._ready.wait()
            except TimeoutError:
                raise Unavailable("no supervisor answers", step="supervisor") from None

    def _next_serial(self) -> int:
        self._serial += 1
        return self._serial

    # receiving

    def _dispatch(self, said: Message, fds: list[int]) -> None:
        match said["kind"]:
            case "hello":
                self.keeper_pid, self._keeper_born = said["pid"], said["born"]
                self._has.state = fds
                self._awaited = said["entries"] + said["held"]
                self._one_less(0)
            case "entry":
                self._has.note(said, fds)
                self._one_less(1)
            case "held":
                self._has.hold(said["token"], fds)
                self._one_less(1)
            case "started":
                entry = self._has.note(said, fds)
                waiting = self._starting.get(entry.token)
                if entry.token in self._abandoned:
                    self._abandon(entry)
                elif waiting is None:
                    self._unasked(entry.token)
                elif not waiting.done():
                    waiting.set_result(entry)
            case "failed":
                waiting = self._starting.get(said["token"])
                if said["token"] in self._abandoned:
                    self._abandoned.discard(said["token"])
                elif waiting is None:
                    self._unasked(said["token"])
                elif not waiting.done():
                    waiting.set_exception(BuilderDied("the builder died without an answer", step="spawn"))
            case "exit":
                self._exited(said)
            case "refused":
                self._refused(said["serial"], from_wire(said["error"]))
            case "attached":
                future = self._attaching.get(said["serial"])
                if future is not None and not future.done():
                    if said["error"]:
                        future.set_exception(from_wire(said["error"]))
                    else:
                        future.set_result(None)
            case "detached":
                if self._attached.pop(said["serial"], None) is not None and self.on_detached:
                    self.on_detached(said["token"], said["serial"], said["reason"])
            case "stdin_closed":
                self._has.close_stdin(said["token"])
            case "dropped":
                log.warning(
                    "container %s: %d log lines lost: %s",
                    said["token"],
                    said["lines"],
                    os.strerror(said["errno"]),
                )
                if self.on_dropped:
                    self.on_dropped(said["token"], said["lines"], said["errno"])
            case "io_restarted":
                self._io_restarted(said)
            case "note":
                log.warning("supervisor: %s", said["text"])

    def _unasked(self, token: str) -> None:
        if self.on_unasked:
            self.on_unasked(token)

    def _one_less(self, count: int) -> None:
        self._awaited -= count
        if self._awaited <= 0 and self._greeted is not None and not self._greeted.done():
            self._greeted.set_result(None)

    def _exited(self, said: Message) -> None:
        entry = self.entries.get(said["token"])
        if entry is None or entry.exit is not None:
            return
        entry.exit = exit_of(said)
        if entry.token in self._abandoned:
            self._abandoned.discard(entry.token)
            self._forget(entry.token)
        elif self.on_exit:
            self.on_exit(entry.exit)

    def _refused(self, serial: int, error: NagayaError) -> None:
        attaching = self._attaching.get(serial)
        if attaching is not None and not attaching.done():
            attaching.set_exception(error)
            return
        refusal = self._refusals.get(serial)
        if refusal is not None and not refusal.done():
            refusal.set_result(error)
        elif self._greeted is not None and not self._greeted.done():
            self._greeted.set_exception(error)
        else:
            log.warning("the supervisor refused: %s (%s)", error, error.subject)

    def _io_restarted(self, said: Message) -> None:
        log.warning("the supervisor's io was restarted")
        for serial in said["serials"]:
            future = self._attaching.get(serial)
            if future is not None and not future.done():
                future.set_exception(Unavailable("io was restarted", step="attach"))
            token = self._attached.pop(serial, None)
            if token is not None and self.on_detached:
                self.on_detached(token, serial, "restart")

    # requests

    async def run(
        self,
        token: str,
        request: Mapping[str, Any],
        *,
        stdio: str = "pipes",
        stdin: bool = False,
        log: Mapping[str, Any] | None = None,
        timeout: float = 120.0,
    ) -> Started:
        """Make a process (op run, create, exec, spawn-foreign) that the keeper holds under token.

        stdio: "pipes" (stdin: with one for it, else /dev/null), "pty", "none". log: {"driver":
        "json-file", "path", "max_size", "max_file"}, or None. Raises what the builder reports;
        AlreadyExists for a taken token; Unavailable; DeadlineExceeded. After an error there is no process.
        """
        await self._connected()
        started: asyncio.Future[Entry] = asyncio.get_running_loop().create_future()
        started.add_done_callback(lambda f: f.cancelled() or f.exception())  # it may stay unasked
        if token in self._starting or token in self._abandoned:
            raise AlreadyExists("is being started, or ended, already", subject=token)
        self._starting[token] = started
        settings = dict(log) if log else None
        pidfds: list[int] = []
        try:
            reply = await self._request(request, timeout, token=token, stdio=stdio, stdin=stdin, log=settings)
            pidfds = reply.fds
            if reply.error is not None:
                await asyncio.wait([started], timeout=CONNECT)  # "failed": the token is free again
                raise reply.error
            async with asyncio.timeout(CONNECT):
                entry = await started
        except BaseException as error:
            # Whatever was or will be made must not go on behind the caller's back.
            for pidfd in pidfds:
                self._kill(pidfd)
            entry_made = self.entries.get(token)
            if started.done() and entry_made is not None:
                self._abandon(entry_made)
            elif not started.done() and entry_made is None and _undecided(error):
                self._abandoned.add(token)
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded("the supervisor did not report the process", subject=token) from None
            raise
        finally:
            del self._starting[token]
            seqpacket.close_all(pidfds)
        return Started(token, entry.pid, entry.pidfd, reply.trace, reply.result)

    async def call(self, request: Mapping[str, Any], *, timeout: float = 60.0) -> Reply:
        """An operation without a process of its own (start, kill, delete, ps, netns ...). Raises what
        the builder reports; Unavailable; DeadlineExceeded."""
        await self._connected()
        reply = await self._request(request, timeout, token="", stdio="none", stdin=False, log=None)
        if reply.error is not None:
            raise reply.error
        return reply

    async def _request(self, request: Mapping[str, Any], timeout: float, **spawn: Any) -> Reply:
        loop = asyncio.get_running_loop()
        serial = self._next_serial()
        refusal: asyncio.Future[NagayaError] = loop.create_future()
        self._refusals[serial] = refusal
        memfd = memfd_of("nagaya-request", msgspec.json.encode(request))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        try:
            try:
                self._send(
                    "spawn", [memfd, theirs.fileno()], serial=serial, shared=shares_builder(request), **spawn
                )
            finally:
                os.close(memfd)
                theirs.close()
            try:
                async with asyncio.timeout(timeout):
                    raw, fds = await read_reply(ours)
            except TimeoutError:
                raise DeadlineExceeded(
                    f"{request.get('op')} took longer than {timeout:g} s", subject=spawn["token"]
                ) from None
            if not raw:
                seqpacket.close_all(fds)
                done, _ = await asyncio.wait([refusal], timeout=0.5 if self._ready.is_set() else 0)
                if done:
                    raise refusal.result()
                if self._link is None or not self._ready.is_set():
                    raise Unavailable("the supervisor has died", step=str(request.get("op")))
                raise BuilderDied("the builder died without an answer", step=str(request.get("op")))
        finally:
            ours.close()
            del self._refusals[serial]
        answer = msgspec.json.decode(raw)
        error = None if answer.get("ok") else from_wire(answer.get("error", {}))
        return Reply(answer.get("result", {}), answer.get("trace", []), fds, error)

    async def attach(
        self,
        token: str,
        fd: int,
        *,
        stdin: bool = False,
        stdout: bool = True,
        stderr: bool = True,
        mux: bool = True,
        stdin_once: bool = False,
        detach_keys: str = "",
        preface: bytes = b"",
    ) -> int:
        """Give a client's socket to io; fd is the supervisor's from here, even after an error.

        Returns, with the attachment's serial, once everything the process writes from then on will
        reach the client. The token may be one that `run` will use later. mux: Docker's frames (a
        terminal never has them). stdin_once: the end of the client's input closes the container's.
        detach_keys: Docker's syntax; "" is ctrl-p,ctrl-q on a terminal and none without.
        """
        serial = self._next_serial()
        fds = [fd]
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._attaching[serial] = done
        self._attached[serial] = token
        try:
            await self._connected()
            self._attached[serial] = token
            if preface:
                fds.append(memfd_of("nagaya-preface", preface))
            self._send(
                "attach",
                fds,
                serial=serial,
                token=token,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                mux=mux,
                stdin_once=stdin_once,
                detach_keys=detach_keys,
                preface=len(preface),
            )
            async with asyncio.timeout(CONNECT):
                await done
        except BaseException as error:
            self._attached.pop(serial, None)
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded("the supervisor did not attach the client", subject=token) from None
            raise
        finally:
            del self._attaching[serial]
            seqpacket.close_all(fds)
        return serial

    async def watch(self, token: str, pid: int) -> None:
        """Tell the keeper the init of a container that a foreign runtime made. Raises NotFound when
        there is no such process."""
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            raise NotFound(f"no process {pid}", subject=token, errno=error.errno or 0) from None
        try:
            await self._connected()
            self._send("watch", [pidfd], token=token, pid=pid)
        finally:
            os.close(pidfd)

    async def resize(self, token: str, h: int, w: int) -> None:
        """Set the size of a terminal. Raises NotFound for an unknown token."""
        await self._connected()
        if token not in self.entries:
            raise NotFound("no such process", subject=token)
        self._send("resize", token=token, h=h, w=w)

    async def close_stdin(self, token: str) -> None:
        """End of file for the process, after what was typed."""
        await self._connected()
        self._send("close_stdin", token=token)

    async def release(self, token: str) -> None:
        """The exit was noted: forget the process. Frees the token, also one that only has waiting
        clients. Raises FailedPrecondition for a living process."""
        await self._connected()
        entry = self.entries.get(token)
        if entry is not None and entry.pid and entry.exit is None:
            raise FailedPrecondition("the process is alive", subject=token)
        self._forget(token)

    def _forget(self, token: str) -> None:
        self._has.forget(token)
        self._send("release", token=token)

    async def hold(self, token: str, fds: Sequence[int]) -> None:
        """Let the keeper hold duplicates (sockets of published ports, of DNS) over daemon restarts.
        They come back in `held`. The caller keeps its own."""
        await self._connected()
        for kind, part, fields in holding(token, fds):
            self._send(kind, part, **fields)
        self._has.hold(token, [os.dup(fd) for fd in fds])

    async def unhold(self, token: str) -> None:
        """Close what was held under the token."""
        await self._connected()
        self._has.unhold(token)
        self._send("unhold", token=token)

    async def quit(self) -> None:
        """End the keeper. Containers go on, but without stdio: for tests and for uninstalling."""
        self._closing = True
        await self._connected()
        self._send("quit")

    async def abandon(self, token: str) -> None:
        """End a process that nobody waits for, and free its token. Raises DeadlineExceeded when it does
        not end."""
        entry = self.entries.get(token)
        if entry is not None:
            self._abandon(entry)
        deadline = time.monotonic() + CONNECT
        while token in self._abandoned:
            if time.monotonic() > deadline:
                raise DeadlineExceeded("does not end although it was killed", subject=token)
            await asyncio.sleep(0.01)

    def _abandon(self, entry: Entry) -> None:
        """End a process that nobody will hear of, and forget it."""
        if entry.exit is None and entry.pid:
            self._abandoned.add(entry.token)
            self._kill(entry.pidfd)
        else:
            self._abandoned.discard(entry.token)
            self._forget(entry.token)

    @staticmethod
    def _kill(pidfd: int) -> None:
        try:
            if pidfd >= 0:
                pidfd_send_signal(pidfd, signal.SIGKILL)
        except NagayaError:
            pass  # it has ended


def _undecided(error: BaseException) -> bool:
    """After this error of `run` a process may still come to be."""
    return isinstance(error, DeadlineExceeded) or not isinstance(error, NagayaError)
