"""Exec sessions: further processes in a running container.

Sessions are not persisted: a client that lost its daemon lost its session too. Their processes go
on (their parent is the keeper), and their exits are taken from it and dropped.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from contextlib import suppress
from typing import Any

from nagaya.engine import launch, names, pods_spec, runtimes
from nagaya.engine.failures import exec_failure
from nagaya.engine.keeper import Exit
from nagaya.engine.model import Container, Exec, ExecConfig
from nagaya.engine.world import World
from nagaya.errors import FailedPrecondition, InvalidArgument, KernelError, NotFound
from nagaya.linux.pids import is_ending, pidfd_send_signal

_KEPT = 256  # finished sessions that can still be inspected
_SETTLE = 5.0  # seconds that a start or an end may take
_KEPT_NS = 300 * 1_000_000_000


class Execs:
    """The sessions of this daemon's life. Lives on the event loop."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._sessions: dict[str, Exec] = {}
        self._ends: dict[str, asyncio.Event] = {}
        self._ended: dict[str, int] = {}

    def owns(self, token: str) -> bool:
        """Is the token an exec session's?"""
        return token in self._sessions

    def get(self, exec_id: str) -> Exec:
        """The session. Raises NotFound."""
        found = self._sessions.get(exec_id)
        if found is None:
            raise NotFound(f"No such exec instance: {exec_id}", subject=exec_id)
        return found

    async def settled(self, exec_id: str) -> Exec:
        """A session, once it has started; one that is just ending, which its clients have seen already by
        the end of its output, with its exit code. Raises NotFound."""
        session, end = self.get(exec_id), self._ends[exec_id]
        deadline = time.monotonic() + _SETTLE
        while session.running and (not session.pid or is_ending(session.pid)):
            if time.monotonic() > deadline:
                break
            with suppress(TimeoutError):  # the end is told; the start is looked for
                await asyncio.wait_for(end.wait(), 0.002)
        return session

    async def create(self, ref: str, config: ExecConfig) -> str:
        """Note what is to be run. Raises FailedPrecondition when the container does not run."""
        container = self._world.roster.find(ref).container
        self._check_running(ref, container.id, container.state)
        if not config.command or not config.command[0]:
            raise InvalidArgument("No exec command specified", subject="Cmd")
        self._prune()
        exec_id = names.new_id()
        self._sessions[exec_id] = Exec(exec_id, container.id, config)
        self._ends[exec_id] = asyncio.Event()
        self._world.bus.container(container, f"exec_create: {_line(config)}", execID=exec_id)
        return exec_id

    @staticmethod
    def _check_running(ref: str, container_id: str, state: str) -> None:
        if state == "paused":
            raise FailedPrecondition(f"Container {ref} is paused, unpause the container before exec")
        if state == "restarting":
            raise FailedPrecondition(
                f"container {container_id} is restarting, wait until the container is running"
            )
        if state != "running":
            raise FailedPrecondition(f"container {container_id} is not running")

    async def start(
        self,
        exec_id: str,
        fd: int | None,
        *,
        preface: bytes = b"",
        console: tuple[int, int] | None = None,
        frames: bool = True,
    ) -> None:
        """Run it, attached to fd when there is one; without `frames` both streams come there as they are.
        See EngineService."""
        world = self._world
        try:
            session = self.get(exec_id)
            slot = world.roster.get(session.container_id)
            if slot is None:
                raise NotFound(f"No such container: {session.container_id}", subject=session.container_id)
            self._check_running(session.container_id, session.container_id, slot.container.state)
            if session.running or session.exit_code is not None:
                raise FailedPrecondition(f"Error: Exec command {exec_id} is already running")
        except BaseException:
            if fd is not None:
                os.close(fd)
            raise
        session.running = True
        config, container = session.config, slot.container
        try:
            handed, fd = fd, None
            attaching = self._attach(exec_id, config, handed, mux=frames, preface=preface)
            # side by side: the attachment takes two other processes' turns, and the process waits for both
            process, _ = await asyncio.gather(self._prepare(container, config), attaching)
            work = runtimes.of(world, container).exec(
                container, exec_id, process, stdin=config.attach_stdin, console=console
            )
            started = await runtimes.of_living(world, container, work)
        except BaseException as error:
            session.running = False
            self._ended[exec_id] = time.monotonic_ns()
            self._ends[exec_id].set()
            if not isinstance(error, Exception):
                session.exit_code = 126
                raise
            failure = exec_failure(error, config.command[0])
            session.exit_code = failure.exit_code
            # in a task: it ends the client's connection, into which the caller writes the error first
            world.task(world.supervisor.release(exec_id), f"release {exec_id[:12]}")
            raise failure.error from error
        if session.running:  # else its exit came first
            session.pid = started.pid
        world.bus.container(container, f"exec_start: {_line(config)}", execID=exec_id)

    async def _prepare(self, container: Container, config: ExecConfig) -> dict[str, Any]:
        if container.config.pod is not None:
            return pods_spec.prepare_exec(self._world, container, config)
        return await self._world.job(launch.prepare_exec, self._world, container, config)

    async def _attach(
        self, exec_id: str, config: ExecConfig, fd: int | None, *, mux: bool, preface: bytes
    ) -> None:
        if fd is not None:
            await self._world.supervisor.attach(
                exec_id,
                fd,
                stdin=config.attach_stdin,
                stdout=config.attach_stdout,
                stderr=config.attach_stderr,
                mux=mux,
                stdin_once=True,
                detach_keys=config.detach_keys,
                preface=preface,
            )

    async def exited(self, exit: Exit) -> None:
        """Note a session's end."""
        session = self._sessions[exit.token]
        session.running = False
        session.exit_code = exit.code if exit.known else 255
        session.pid = 0
        self._ended[session.id] = time.monotonic_ns()
        self._ends[session.id].set()
        slot = self._world.roster.get(session.container_id)
        if slot is not None:
            self._world.bus.container(
                slot.container, "exec_die", execID=session.id, exitCode=str(session.exit_code)
            )
        await self._world.supervisor.release(session.id)

    async def resize(self, exec_id: str, height: int, width: int) -> None:
        """Set the size of its terminal, which one that is just starting does not have yet. Raises
        FailedPrecondition when it does not run."""
        session = await self.settled(exec_id)
        if not session.running:
            raise FailedPrecondition(f"exec process is not started: {exec_id}")
        await self._world.supervisor.resize(exec_id, height, width)

    async def end_of(self, exec_id: str) -> int:
        """The exit code of a session that was started, once there is one."""
        await self._ends[exec_id].wait()
        return self._sessions[exec_id].exit_code or 0

    def forget_container(self, container_id: str) -> None:
        """The container is gone: so are its sessions that do not run."""
        for session in tuple(self._sessions.values()):
            if session.container_id == container_id and not session.running:
                self.forget(session.id)

    def forget(self, exec_id: str) -> None:
        """Nobody will ask for the session any more."""
        self._sessions.pop(exec_id, None)
        self._ended.pop(exec_id, None)
        self._ends.pop(exec_id, None)

    def _prune(self) -> None:
        now = time.monotonic_ns()
        for exec_id, ended in tuple(self._ended.items()):
            if now - ended > _KEPT_NS or len(self._ended) > _KEPT:
                self.forget(exec_id)


def _line(config: ExecConfig) -> str:
    """As dockerd tells of it: nothing is quoted, and a space follows the first word in any case."""
    return f"{config.command[0]} {' '.join(config.command[1:])}"


class Run:
    """A command that the engine itself runs in a container: its first `most` bytes of output are kept, its
    end is waited for. `close` it in any case."""

    def __init__(self, world: World, execs: Execs, container: Container, words: tuple[str, ...], most: int):
        self._world = world
        self._execs = execs
        self._container = container
        self._config = ExecConfig(words, attach_stdout=True, attach_stderr=True)
        self._most = most
        self._kept = bytearray()
        self._id = ""

    @property
    def output(self) -> str:
        """What it has written so far, "..." in place of what was too much."""
        text = self._kept[: self._most].decode("utf-8", "replace")
        return text + "..." if len(self._kept) > self._most else text

    @property
    def ended(self) -> bool:
        """There is no process of it, and none will come."""
        return self._world.supervisor.is_free(self._id)

    async def finish(self) -> int:
        """Run it; its exit code. Raises what `create` and `start` raise."""
        self._id = await self._execs.create(self._container.id, self._config)
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            reading = asyncio.get_running_loop().create_task(self._read(ours))
            try:
                await self._execs.start(self._id, theirs.detach(), frames=False)
                code = await self._execs.end_of(self._id)
                await reading  # the end of the output came before that of the process
                return code
            finally:
                reading.cancel()

    async def _read(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with suppress(OSError):
            while data := await loop.sock_recv(sock, 65536):
                self._kept += data[: self._most + 1 - len(self._kept)]

    async def kill(self, patience: float) -> None:
        """SIGKILL, and wait for its end for so many seconds."""
        self._kill()
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while not self.ended:
                    await asyncio.sleep(0.01)

    def _kill(self) -> None:
        entry = self._world.supervisor.entries.get(self._id)
        if entry is not None and entry.pidfd >= 0:
            with suppress(KernelError):  # it has ended
                pidfd_send_signal(entry.pidfd, 9)

    def close(self) -> None:
        """Forget it; a process that still runs is killed."""
        self._kill()
        if self.ended:
            self._execs.forget(self._id)
