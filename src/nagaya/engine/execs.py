"""Exec sessions: further processes in a running container.

Sessions are not persisted: a client that lost its daemon lost its session too. Their processes go
on (their parent is the keeper), and their exits are taken from it and dropped.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import time

from nagaya.engine import launch, names, runtimes
from nagaya.engine.failures import exec_failure
from nagaya.engine.keeper import Exit
from nagaya.engine.model import Exec, ExecConfig
from nagaya.engine.world import World
from nagaya.errors import FailedPrecondition, InvalidArgument, NotFound
from nagaya.linux.process import is_ending

_KEPT = 256  # finished sessions that can still be inspected
_SETTLE = 5.0  # seconds that a start or an end may take
_KEPT_NS = 300 * 1_000_000_000


class Execs:
    """The sessions of this daemon's life. Lives on the event loop."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._sessions: dict[str, Exec] = {}
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
        session = self.get(exec_id)
        deadline = time.monotonic() + _SETTLE
        while session.running and (not session.pid or is_ending(session.pid)):
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.002)
        return session

    async def create(self, ref: str, config: ExecConfig) -> str:
        """Note what is to be run. Raises FailedPrecondition when the container does not run."""
        container = self._world.roster.find(ref).container
        self._check_running(container.id, container.state)
        if not config.command or not config.command[0]:
            raise InvalidArgument("No exec command specified", subject="Cmd")
        self._prune()
        exec_id = names.new_id()
        self._sessions[exec_id] = Exec(exec_id, container.id, config)
        self._world.bus.container(container, f"exec_create: {shlex.join(config.command)}", execID=exec_id)
        return exec_id

    @staticmethod
    def _check_running(container_id: str, state: str) -> None:
        if state == "paused":
            raise FailedPrecondition(f"container {container_id} is paused, unpause the container before exec")
        if state == "restarting":
            raise FailedPrecondition(
                f"container {container_id} is restarting, wait until the container is running"
            )
        if state != "running":
            raise FailedPrecondition(f"container {container_id} is not running")

    async def start(
        self, exec_id: str, fd: int | None, *, preface: bytes, console: tuple[int, int] | None
    ) -> None:
        """Run it, attached to fd when there is one. See EngineService."""
        world = self._world
        try:
            session = self.get(exec_id)
            slot = world.roster.get(session.container_id)
            if slot is None:
                raise NotFound(f"No such container: {session.container_id}", subject=session.container_id)
            self._check_running(session.container_id, slot.container.state)
            if session.running or session.exit_code is not None:
                raise FailedPrecondition(f"Error: Exec command {exec_id} is already running")
        except BaseException:
            if fd is not None:
                os.close(fd)
            raise
        session.running = True
        config, container = session.config, slot.container
        try:
            if fd is not None:
                handed, fd = fd, None
                await world.supervisor.attach(
                    exec_id,
                    handed,
                    stdin=config.attach_stdin,
                    stdout=config.attach_stdout,
                    stderr=config.attach_stderr,
                    mux=not config.tty,
                    stdin_once=True,
                    detach_keys=config.detach_keys,
                    preface=preface,
                )
            process = await world.job(launch.prepare_exec, world, container, config)
            work = runtimes.of(world, container).exec(
                container, exec_id, process, stdin=config.attach_stdin, console=console
            )
            started = await runtimes.of_living(world, container, work)
        except BaseException as error:
            if fd is not None:
                os.close(fd)
            session.running = False
            self._ended[exec_id] = time.monotonic_ns()
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
        world.bus.container(container, f"exec_start: {shlex.join(config.command)}", execID=exec_id)

    async def exited(self, exit: Exit) -> None:
        """Note a session's end."""
        session = self._sessions[exit.token]
        session.running = False
        session.exit_code = exit.code if exit.known else 255
        session.pid = 0
        self._ended[session.id] = time.monotonic_ns()
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

    def forget_container(self, container_id: str) -> None:
        """The container is gone: so are its sessions that do not run."""
        for session in tuple(self._sessions.values()):
            if session.container_id == container_id and not session.running:
                del self._sessions[session.id]
                self._ended.pop(session.id, None)

    def _prune(self) -> None:
        now = time.monotonic_ns()
        for exec_id, ended in tuple(self._ended.items()):
            if now - ended > _KEPT_NS or len(self._ended) > _KEPT:
                self._sessions.pop(exec_id, None)
                del self._ended[exec_id]
