"""Who makes a container: the built-in runtime, in a builder that the keeper forks, or the command line
of any OCI runtime (runc, crun, runsc), which a builder executes.

Both answer the same four questions (`Runtime`). A foreign runtime keeps its state in RUN/foreign/NAME,
finds the container's overlay mounted at the bundle's root.path, and says what went wrong in its log,
whose words are then taken for ours. Its command line is runc's: `man 8 runc`.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import msgspec

from nagaya.engine import files
from nagaya.engine.keeper import BuilderDied, Started
from nagaya.engine.launch import Launch
from nagaya.engine.model import Container
from nagaya.engine.world import World
from nagaya.errors import (
    CommandNotExecutable,
    CommandNotFound,
    FailedPrecondition,
    InternalError,
    KernelError,
    NagayaError,
    NotFound,
    Unavailable,
)
from nagaya.linux.mounts import MNT_DETACH, UMOUNT_NOFOLLOW, umount2
from nagaya.linux.pids import is_ending

T = TypeVar("T")

_MOST_LOG = 1 << 16
_PATIENCE = 60.0


class Runtime(Protocol):
    """What the engine asks of a runtime."""

    async def run(self, container: Container, prepared: Launch) -> Started:
        """Make and start it; afterwards the keeper holds the process under the container's id.
        On failure there is no process; what else there is, `delete` takes away."""
        ...

    async def exec(
        self,
        container: Container,
        token: str,
        process: dict[str, Any],
        *,
        stdin: bool,
        console: tuple[int, int] | None,
    ) -> Started:
        """One more process, held under token, which the caller releases also after an error."""
        ...

    async def ask(self, container: Container, op: str, **more: Any) -> Any:
        """pause, resume, update (resources=), checkpoint (path=, patience=), ps -> pids, stats ->
        `events --stats`' data."""
        ...

    async def delete(self, container_id: str) -> None:
        """Kill what is left of it and take away state and cgroup. May be repeated."""
        ...


def every(world: World) -> list[tuple[str, Runtime]]:
    """(directory with the state of its containers, runtime) of all that are configured."""
    settings = world.settings
    foreign = [(f"{settings.run}/foreign/{n}", Foreign(world, n, p)) for n, p in settings.runtimes.items()]
    return [(settings.runtime_root(), BuiltIn(world)), *foreign]


def of(world: World, container: Container) -> Runtime:
    """The runtime that the container names. Raises FailedPrecondition when there is none of that name now."""
    name = container.config.runtime or world.settings.default_runtime
    if name == "nagaya":
        return BuiltIn(world)
    path = world.settings.runtimes.get(name)
    if path is None:
        raise FailedPrecondition(f"the runtime {name} is not configured any more", subject=container.id)
    return Foreign(world, name, path)


async def of_living(world: World, container: Container, work: Awaitable[T]) -> T:
    """The result of a runtime's work on a running container. When it fails because the container has
    just ended, which every system call tells in another way, raises FailedPrecondition."""
    try:
        return await work
    except (CommandNotFound, CommandNotExecutable):
        raise
    except NagayaError as error:
        entry = world.supervisor.entries.get(container.id)
        if entry is None or entry.exit is not None or (entry.pid and is_ending(entry.pid)):
            raise FailedPrecondition(
                f"container {container.id} is not running", subject=container.id
            ) from error
        raise


class BuiltIn:
    """`nagaya.runtime`, in a builder."""

    def __init__(self, world: World) -> None:
        self._world = world

    def _request(self, op: str, container_id: str, **more: Any) -> dict[str, Any]:
        settings = self._world.settings
        return {
            "op": op,
            "root": settings.runtime_root(),
            "id": container_id,
            "cgroup_driver": settings.cgroup_driver,
            **more,
        }

    async def run(self, container: Container, prepared: Launch) -> Started:
        spec = prepared.spec
        if prepared.filter is not None:
            spec = {**spec, "linux": {**spec["linux"], "seccomp": prepared.filter}}
        request = self._request(
            "run",
            container.id,
            bundle=prepared.bundle,
            spec=spec,
            rootfs=prepared.rootfs or None,
            console=[0, 0] if prepared.stdio == "pty" else None,
        )
        if container.config.pod is not None and (images := container.config.pod.images):
            request |= {"op": "restore", "path": images, "spec": prepared.spec}
        return await self._world.supervisor.run(
            container.id,
            request,
            stdio=prepared.stdio,
            stdin=container.config.open_stdin,
            log=prepared.log,
        )

    async def exec(
        self,
        container: Container,
        token: str,
        process: dict[str, Any],
        *,
        stdin: bool,
        console: tuple[int, int] | None,
    ) -> Started:
        terminal = process.get("terminal", False)
        size = list(console or (0, 0)) if terminal else None
        request = self._request("exec", container.id, process=process, console=size)
        return await self._world.supervisor.run(
            token, request, stdio="pty" if terminal else "pipes", stdin=stdin
        )

    async def ask(self, container: Container, op: str, **more: Any) -> Any:
        timeout = _PATIENCE + more.get("patience", 0.0)
        reply = await self._world.supervisor.call(self._request(op, container.id, **more), timeout=timeout)
        return reply.result.get("pids", []) if op == "ps" else reply.result

    async def delete(self, container_id: str) -> None:
        for attempts_left in (2, 1, 0):
            try:
                await self._world.supervisor.call(self._request("delete", container_id, force=True))
            except NotFound:
                pass  # the attempt ended before there was anything, or it is gone already
            except (BuilderDied, Unavailable):
                if attempts_left:
                    continue  # it or its keeper was killed: what it left is still to be removed
                raise
            return


class Foreign:
    """A runtime's executable with runc's command line. command: its path, and arguments of its own."""

    def __init__(self, world: World, name: str, command: str) -> None:
        self._world = world
        self._state = f"{world.settings.run}/foreign/{name}"
        self._command = [*shlex.split(command), "--root", self._state]
        if world.settings.cgroup_driver == "systemd":
            self._command.append("--systemd-cgroup")

    async def run(self, container: Container, prepared: Launch) -> Started:
        world, bundle = self._world, prepared.bundle
        await world.job(files.make_directory, os.path.dirname(self._state), 0o700)
        await world.job(files.make_directory, prepared.spec["root"]["path"], 0o710)
        started = await self._make(
            container.id,
            bundle,
            ["create", "--bundle", bundle],
            [container.id],
            prepared.stdio,
            stdin=container.config.open_stdin,
            log=prepared.log,
            mount={"path": prepared.spec["root"]["path"], "overlay": prepared.rootfs},
        )
        await self._call(["start", container.id], log=f"{bundle}/log.json")
        return started

    async def exec(
        self,
        container: Container,
        token: str,
        process: dict[str, Any],
        *,
        stdin: bool,
        console: tuple[int, int] | None,
    ) -> Started:
        directory = f"{os.path.dirname(self._state)}/{token}"
        if console is not None:
            process = {**process, "consoleSize": {"height": console[0], "width": console[1]}}
        document = msgspec.json.encode(process)
        await self._world.job(files.make_directory, directory, 0o700)
        try:
            await self._world.job(files.write, f"{directory}/process.json", document.decode(), 0o600)
            return await self._make(
                token,
                directory,
                ["exec", "--detach", "--process", f"{directory}/process.json"],
                [container.id],
                "pty" if process.get("terminal") else "pipes",
                stdin=stdin,
                log=None,
                mount=None,
            )
        finally:
            await self._world.job(files.remove_flat, directory)

    async def ask(self, container: Container, op: str, **more: Any) -> Any:
        match op:
            case "ps":
                text = await self._call(["ps", "--format", "json", container.id])
                return msgspec.json.decode(text[text.find("[") :])
            case "guest-ps":  # nagaya-vm's: pids of a guest mean nothing here
                text = await self._call(["ps", "--format", "guest", container.id])
                return msgspec.json.decode(text[text.find("{") :])
            case "stats":
                text = await self._call(["events", "--stats", container.id])
                return msgspec.json.decode(text[text.find("{") :]).get("data", {})
            case "update":
                path = f"{self._world.settings.bundle(container.id)}/resources.json"
                text = msgspec.json.encode(more["resources"]).decode()
                await self._world.job(files.write, path, text, 0o600)
                await self._call(["update", "--resources", path, container.id])
            case "checkpoint":
                where = more["path"]
                flags = ["--leave-running", "--tcp-established", "--file-locks"]
                await self._call([op, *flags, "--image-path", where, "--work-path", where, container.id])
            case _:
                await self._call([op, container.id])
        return {}

    async def delete(self, container_id: str) -> None:
        try:
            if await self._world.job(_has_state, self._state, container_id):
                await self._call(["delete", "--force", container_id])
        finally:  # also when the runtime cannot: the container's directory could not go, either
            await self._world.job(unmount, f"{self._world.settings.container_dir(container_id)}/rootfs")

    async def _make(
        self,
        token: str,
        directory: str,
        verb: Sequence[str],
        last: Sequence[str],
        stdio: str,
        *,
        stdin: bool,
        log: Mapping[str, Any] | None,
        mount: Mapping[str, Any] | None,
    ) -> Started:
        """A verb that makes a process whose pid it writes to a file. directory: for files of ours."""
        supervisor = self._world.supervisor
        argv = [*self._command, "--log", f"{directory}/log.json", "--log-format", "json", *verb]
        argv += ["--pid-file", f"{directory}/pid"]
        request: dict[str, Any] = {"op": "spawn-foreign", "pid_file": f"{directory}/pid", "mount": mount}
        if stdio == "pty":
            # not in the directory: the path of a socket has 107 bytes
            request["console_socket"] = f"{os.path.dirname(self._state)}/{token[:16]}"
            argv += ["--console-socket", request["console_socket"]]
        request["argv"] = [*argv, *last]
        try:
            return await supervisor.run(token, request, stdio=stdio, stdin=stdin, log=log)
        except InternalError:
            text = await self._world.job(_last_error, f"{directory}/log.json")
            if not text:
                raise
            raise failure(text, self._command[0]) from None
        finally:
            if stdio == "pty":
                await self._world.job(files.remove, request["console_socket"])

    async def _call(self, words: Sequence[str], *, log: str = "") -> str:
        argv = [*self._command, *(["--log", log, "--log-format", "json"] if log else []), *words]
        reply = await self._world.supervisor.call({"op": "spawn-foreign", "argv": argv})
        output = str(reply.result["output"])
        if reply.result["code"] != 0:
            text = await self._world.job(_last_error, log) if log else ""
            raise failure(text or output or f"ended with code {reply.result['code']}", self._command[0])
        return output


def _has_state(directory: str, container_id: str) -> bool:
    """Does a runtime know the container? runc and crun have a directory of its name, runsc files that begin
    with it."""
    try:
        return any(name.startswith(container_id) for name in os.listdir(directory))
    except FileNotFoundError:
        return False


def failure(text: str, command: str) -> NagayaError:
    """The error that a runtime's last words mean: the exec errors by what runc and crun say (pure)."""
    said = text.strip().splitlines()[-1] if text.strip() else "failed"
    low = said.lower()
    if "in a paused container" in low or "in a stopped container" in low:  # it was not a moment ago
        return FailedPrecondition(said)
    what = said[said.find("exec:") :] if "exec:" in said else ""  # runc's; crun's words are its own
    if "exec" in low and ("not found" in low or "no such file or directory" in low):
        return CommandNotFound(what or "executable file not found in $PATH")
    if "exec" in low and ("permission denied" in low or "is a directory" in low):
        return CommandNotExecutable(what or "permission denied")
    return InternalError(said, step=os.path.basename(command))


def _last_error(path: str) -> str:
    """The message of the last error in a runtime's JSON log, "" when there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        size = os.fstat(fd).st_size
        data = os.pread(fd, _MOST_LOG, max(0, size - _MOST_LOG))
    finally:
        os.close(fd)
    for line in reversed(data.splitlines()):
        with suppress(msgspec.DecodeError, AttributeError):
            entry = msgspec.json.decode(line)
            if entry.get("level") in ("error", "fatal"):
                return str(entry.get("msg", ""))
    return ""


def unmount(path: str) -> None:
    """Let a mounted root go, and its directory. May be repeated."""
    with suppress(KernelError):
        umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW)
    with suppress(OSError):
        os.rmdir(path)
