"""RUN: a command in a container, whose changes become a layer.

The container has the engine's default sandbox, no log and no health check. What --mount asks for is mounted
by descriptor (engine.staging): no path of a stage or of the context is resolved against the host.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from nagaya.build import agents, sources, transfer
from nagaya.build.language import commands
from nagaya.build.language.ast import DockerfileError, Mount, Run
from nagaya.build.state import State, key
from nagaya.engine.changes import PLACES
from nagaya.engine.model import ContainerConfig, HealthCheck, LogConfig, MountSpec
from nagaya.errors import FailedPrecondition, InvalidArgument
from nagaya.image.building import Layer
from nagaya.linux import paths as kernel

if TYPE_CHECKING:
    from nagaya.build.stage import StageRun

DEFAULT_SHM = ContainerConfig("").shm_size
_RED, _PLAIN = "\x1b[91m", "\x1b[0m"


class CommandFailed(FailedPrecondition):
    """RUN's command ended with another code than 0."""

    def __init__(self, argv: Sequence[str], code: int) -> None:
        super().__init__(f"The command '{' '.join(argv)}' returned a non-zero code: {code}")
        self.exit_code = code


async def run(stage: StageRun, instruction: Run) -> tuple[bool, State]:
    """Run it, or find that it was; (was it cached, the state after it)."""
    build, state = stage.build, stage.state
    request = build.request
    config = dict(state.config)
    found = commands.program(instruction.command, config.get("Shell"))
    extra = stage.arguments.for_run(config.get("Env") or ())
    recorded = stage.arguments.recorded(config.get("Env") or ())
    if instruction.security == "insecure" and not request.insecure:
        raise DockerfileError(
            "security.insecure is not allowed (the daemon's privileged builds are not enabled)",
            instruction.line,
        )
    network = {"default": request.network, "none": "none", "host": "host"}[instruction.network]
    files = [await _content(stage, mount) for mount in instruction.mounts]
    kept = {name: config.get(name) for name in ("Env", "User", "WorkingDir", "Volumes")}
    name = key(
        "run",
        *(state.diff_ids, kept, found.words, found.script, recorded, network),
        *(instruction.security, instruction.mounts, files, build.epoch),
    )

    async def make() -> Layer | None:
        async with AsyncExitStack() as held:
            mounts = [await _mount(stage, mount, held) for mount in instruction.mounts]
            if found.script:
                mounts.append(await _script(stage, found.path, found.script.encode()))
            hidden = [line for _, lines in mounts for line in lines]
            specs = [spec for spec, _ in mounts if spec is not None]
            container = ContainerConfig(
                image=await build.passing(state),
                entrypoint=(),
                command=found.words,
                env=tuple(extra),
                health=HealthCheck(("NONE",)),
                log=LogConfig("none"),
                build=True,
                mounts=tuple(specs),
                network_mode=network or "default",
                privileged=instruction.security == "insecure",
                resources=request.resources,
                cgroup_parent=request.cgroup_parent,
                security_opt=request.security_opt,
                extra_hosts=request.extra_hosts,
                ulimits=request.ulimits,
                shm_size=request.shm_size or DEFAULT_SHM,
            )
            ours = PLACES | {place for spec in specs for place in _places(spec.target)}
            code, layer = await build.workshop.run(
                build.bench, container, stage.output, stage.running, ours, build.epoch, hidden
            )
        if code:
            raise CommandFailed(found.words, code)
        return layer

    text = " ".join(found.words)
    said = " ".join([f"|{len(recorded)}", *recorded, text]) if recorded else text
    step = await build.cache.step(name, stage.parent, instruction.text, state, said, make)
    stage.parent = name
    return step.cached, state.after(config, step.created, said, step.layer)


def _places(target: str) -> list[str]:
    """A mount's target and what may have been made for it, relative to the root."""
    parts = target.strip("/").split("/")
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


def absolute(config: Mapping[str, Any], path: str) -> str:
    """An absolute path, of one that may be relative to the working directory; "/" at its end goes."""
    return "/" + posixpath.normpath(posixpath.join("/", config.get("WorkingDir") or "", path)).lstrip("/")


# mounts

Mounted = tuple[MountSpec | None, list[str]]


def _target(stage: StageRun, mount: Mount, default: str = "") -> str:
    target = mount.target or default
    if not target:
        raise DockerfileError(f"mount target is required (--mount=type={mount.kind})")
    path = absolute(stage.state.config, target)
    if path == "/":
        raise DockerfileError("invalid mount target '/'")
    return path


async def _content(stage: StageRun, mount: Mount) -> str:
    """What of a mount's files the result depends on, for the key."""
    if mount.kind != "bind":
        return ""
    root, _ = await stage.build.origin(mount.origin, stage.node.index)
    path = mount.source.strip("/")

    def work() -> str:
        found = kernel.resolve_in_root(root, path)
        return sources.digest(root, found)

    return await stage.build.workshop.work(work)


async def _mount(stage: StageRun, mount: Mount, held: AsyncExitStack) -> Mounted:
    if mount.kind == "bind":
        return await _bind(stage, mount, held)
    if mount.kind == "tmpfs":
        options = ("exec", *([f"size={mount.size}"] if mount.size else []))
        return MountSpec("tmpfs", _target(stage, mount), options=options), []
    if mount.kind == "cache":
        return await _cache(stage, mount, held)
    if mount.kind == "secret":
        return await _secret(stage, mount, held)
    return await _agent(stage, mount, held)


async def _bind(stage: StageRun, mount: Mount, held: AsyncExitStack) -> Mounted:
    """Of the context, a stage or an image; what is written into a writable one is thrown away."""
    target = _target(stage, mount)
    root, layers = await stage.build.origin(mount.origin, stage.node.index)
    if not mount.read_only:
        root = await stage.build.writable(layers, held)
    return MountSpec(
        "tree", target, f"/proc/self/fd/{root}", mount.read_only, subpath=mount.source.strip("/")
    ), []


async def _cache(stage: StageRun, mount: Mount, held: AsyncExitStack) -> Mounted:
    target = _target(stage, mount)
    fill = None
    if mount.origin:
        root, _ = await stage.build.origin(mount.origin, stage.node.index)
        fill = partial(_seed, root, mount.source)
    path = await held.enter_async_context(
        stage.build.workshop.caches.hold(
            mount.id or posixpath.normpath(target),
            mount.sharing or "shared",
            (mount.uid or 0, mount.gid or 0),
            0o755 if mount.mode is None else mount.mode,
            fill,
        )
    )
    return MountSpec(
        "tree", target, path, mount.read_only, subpath=mount.source.strip("/") if not mount.origin else ""
    ), []


def _seed(root: int, source: str, target: int) -> None:
    """What a new cache begins with: the content of a directory of a stage or an image."""
    path = kernel.resolve_in_root(root, source)
    placing = transfer.Placing("/", True, keep=True)
    transfer.copy(target, [transfer.Item(root, path, posixpath.basename(path))], placing, lambda: None)


async def _secret(stage: StageRun, mount: Mount, held: AsyncExitStack) -> Mounted:
    """A file of a tmpfs that only this container sees, or a variable."""
    name = mount.id or mount.source or posixpath.basename(mount.target)
    data = stage.build.request.secrets.get(name)
    if data is None:
        if mount.required:
            raise InvalidArgument(f"secret {name}: not found", subject=name)
        return None, []
    lines_ = []
    if mount.env is not None:
        lines_ = [f"{mount.env or name}={data.decode('utf-8', 'surrogateescape')}"]
        if not mount.target:
            return None, lines_
    target = _target(stage, mount, f"/run/secrets/{posixpath.basename(name)}")
    owner = (mount.uid or 0, mount.gid or 0)
    root = await stage.build.secret(data, owner, 0o400 if mount.mode is None else mount.mode, held)
    return MountSpec("tree", target, f"/proc/self/fd/{root}", True, subpath="secret"), lines_


async def _agent(stage: StageRun, mount: Mount, held: AsyncExitStack) -> Mounted:
    """A socket behind which the client's ssh agent is."""
    name = mount.id or "default"
    agent = stage.build.request.agents.get(name)
    if agent is None:
        if mount.required:
            raise InvalidArgument(
                f'invalid empty ssh agent socket "{name}": make sure --ssh is given', subject=name
            )
        return None, []
    target = _target(stage, mount, f"/run/buildkit/ssh_agent.{name}")
    directory = await stage.build.workshop.work(partial(_new_directory, stage.build.directory))
    owner, mode = (mount.uid or 0, mount.gid or 0), 0o600 if mount.mode is None else mount.mode
    await held.enter_async_context(agents.served(agent, directory, owner, mode))
    return MountSpec("tree", target, directory, False, subpath=agents.NAME), [f"SSH_AUTH_SOCK={target}"]


def _new_directory(parent: str) -> str:
    path = f"{parent}/{os.urandom(4).hex()}"
    os.mkdir(path, 0o755)
    return path


async def _script(stage: StageRun, target: str, data: bytes) -> Mounted:
    directory, name = posixpath.split(target)

    def work() -> str:
        path = _new_directory(stage.build.directory)
        with open(f"{path}/{name}", "wb") as file:
            file.write(data)
        os.chmod(f"{path}/{name}", 0o755)
        return path

    return MountSpec("tree", directory, await stage.build.workshop.work(work), True), []


def coloured(stream: int, text: str) -> str:
    """Output as the classic builder shows it: what came by stderr in red."""
    return f"{_RED}{text}{_PLAIN}" if stream == 2 else text
