"""Checkpoints of containers of pods, by criu(8): what they are, in files, while they go on.

An archive is laid out as others read it (checkpointctl, lib/metadata.go): criu's images in checkpoint/, what
was written above the image as a layer in rootfs-diff.tar, and JSON about the container. The processes are
frozen meanwhile, so that all of it is of one moment; whatever happens, they are let go.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import msgspec

from nagaya.engine import pods_restore
from nagaya.engine.changes import PLACES
from nagaya.engine.containers import Containers
from nagaya.engine.model import Container
from nagaya.engine.pods_model import Pod
from nagaya.engine.pods_spec import member_of
from nagaya.engine.world import World
from nagaya.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    KernelError,
    NagayaError,
    Unimplemented,
)

_PATIENCE = 120.0  # seconds, where the caller says nothing


def _base(world: World) -> str:
    return f"{world.settings.root}/checkpoints"


async def settle(world: World, containers: Containers) -> None:
    """After a start of the daemon: let go what a checkpoint held still, and remove its files."""
    for slot in list(world.roster):
        if slot.container.config.pod is not None and slot.container.state == "paused":
            with suppress(NagayaError):  # it has ended
                await containers.unpause(slot.container.id)
    await world.job(_sweep, world, {slot.container.id for slot in world.roster})


def _sweep(world: World, known: set[str]) -> None:
    with suppress(FileNotFoundError):
        for name in os.listdir(_base(world)):
            if name not in known:  # else it waits for its start
                shutil.rmtree(f"{_base(world)}/{name}", True)


def check_criu() -> None:
    """Raises Unimplemented without criu."""
    if shutil.which("criu") is None:
        raise Unimplemented("checkpoints need criu, which is not installed on this host")


async def container(
    world: World, containers: Containers, container: Container, location: str, timeout: int
) -> None:
    """Write the archive of a container that runs to the file `location`, or nothing. Raises InvalidArgument,
    FailedPrecondition, Unimplemented, DeadlineExceeded."""
    check_criu()
    if not location.startswith("/") or location.endswith("/"):
        raise InvalidArgument(f"{location!r} is not the absolute path of a file", subject="location")
    if timeout < 0:
        raise InvalidArgument("is negative", subject="timeout")
    if not os.path.isdir(os.path.dirname(location)) or os.path.isdir(location):
        raise InvalidArgument(f"{location}: there is no such directory to write to", subject="location")
    _check_running(container, "container_id")
    await _archives(world, containers, {container.id: location}, timeout or _PATIENCE)


async def pod(
    world: World,
    containers: Containers,
    pod: Pod,
    chosen: Sequence[Container],
    directory: str,
    patience: float | None,
) -> None:
    """Write the archives of containers of a pod, all of one moment, and pod.json, to the empty directory, or
    nothing. patience: seconds until the caller's deadline. Raises as `container`."""
    check_criu()
    if patience is None:
        raise InvalidArgument("a checkpoint of a pod needs a deadline", subject="deadline")
    if not chosen or len({c.id for c in chosen}) < len(chosen):
        raise InvalidArgument("names no container, or one twice", subject="container_ids")
    for one in chosen:
        if member_of(one).pod_id != pod.id:
            raise InvalidArgument(f"container {one.id} is not in pod {pod.id}", subject="container_ids")
        _check_running(one, "container_ids")
    if not pod.ready:
        raise FailedPrecondition(f"pod sandbox {pod.id} is not ready", subject="pod_sandbox_id")
    if not directory.startswith("/") or not os.path.isdir(directory) or os.listdir(directory):
        raise InvalidArgument(
            f"{directory!r} is not an empty directory's absolute path", subject="output_path"
        )
    places = {one.id: f"{directory}/{one.id}.tar" for one in chosen}
    try:
        await _archives(world, containers, places, patience)
        about = {
            "id": pod.id,
            "runtimeHandler": pod.runtime_handler,
            "config": msgspec.to_builtins(pod.config),
            "containers": [pods_restore.described(one) for one in chosen],
        }
        await world.job(_write, f"{directory}/pod.json", about)
    except BaseException:
        for path in (*places.values(), f"{directory}/pod.json"):
            with suppress(FileNotFoundError):
                os.unlink(path)
        raise


def _check_running(container: Container, field: str) -> None:
    if container.state != "running":
        raise FailedPrecondition(f"container {container.id} is not running", subject=field)


async def _archives(world: World, containers: Containers, places: dict[str, str], patience: float) -> None:
    """{container: file}: capture all while all are frozen, and write the archives when they have been let
    go."""
    deadline = time.monotonic() + patience
    where = f"{_base(world)}/{os.urandom(8).hex()}"
    try:
        async with _still(containers, list(places)):
            for container_id in places:
                found = world.roster.find(container_id).container
                await _capture(world, containers, found, f"{where}/{container_id}", deadline)
        for name, path in places.items():
            await world.slow_job(functools.partial(_pack, f"{where}/{name}", path))
    except OSError as error:
        raise KernelError(
            f"{error.filename}: {os.strerror(error.errno or 0).lower()}",
            step="checkpoint",
            errno=error.errno or 0,
        ) from None
    finally:
        await world.slow_job(lambda: shutil.rmtree(where, True))


@asynccontextmanager
async def _still(containers: Containers, ids: Sequence[str]) -> AsyncIterator[None]:
    """Containers, frozen meanwhile."""
    frozen: list[str] = []
    try:
        for name in ids:
            await containers.pause(name)
            frozen.append(name)
        yield
    finally:
        await asyncio.shield(_release(containers, frozen))


async def _release(containers: Containers, ids: Sequence[str]) -> None:
    for name in ids:
        with suppress(NagayaError):  # it was killed, or removed
            await containers.unpause(name)


async def _capture(
    world: World, containers: Containers, found: Container, where: str, deadline: float
) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise DeadlineExceeded("the checkpoint took too long", subject=found.id)
    await world.job(os.makedirs, f"{where}/checkpoint", 0o700)
    await containers.ask(found, "checkpoint", path=f"{where}/checkpoint", patience=left)
    layer = f"{where}/rootfs-diff.tar"
    await world.slow_job(lambda: world.images.write_layer(found.id, PLACES, layer))
    spec = f"{world.settings.bundle(found.id)}/config.json"
    await world.job(_describe, found, spec, where)


def _describe(found: Container, spec: str, where: str) -> None:
    member = member_of(found)
    _write(
        f"{where}/config.dump",
        {
            "id": found.id,
            "name": member.config.metadata.name,
            "rootfsImage": member.image[0] or member.config.image.image,
            "rootfsImageRef": member.image[1] or found.image_digest,
            "rootfsImageName": member.config.image.user_specified_image or member.config.image.image,
            "runtime": found.config.runtime or "nagaya",
            "createdTime": _time(found.created),
            "checkpointedTime": _time(time.time_ns()),
            "restored": False,
        },
    )
    shutil.copyfile(spec, f"{where}/spec.dump")
    for name in ("dump.log", "stats-dump"):
        with suppress(FileNotFoundError):
            os.rename(f"{where}/checkpoint/{name}", f"{where}/{name}")


def _time(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC).isoformat().replace("+00:00", "Z")


def _write(path: str, document: dict[str, Any]) -> None:
    with open(path, "x", encoding="utf-8") as file:
        json.dump(document, file, indent=1)


def _pack(where: str, location: str) -> None:
    """An archive of the directory, there whole or not at all."""
    import tarfile  # a megabyte that few daemons need

    temporary = f"{os.path.dirname(location)}/.{os.path.basename(location)}.{os.urandom(4).hex()}"
    try:
        with open(
            os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb"
        ) as file:
            with tarfile.open(fileobj=file, mode="w") as archive:
                for name in sorted(os.listdir(where)):
                    archive.add(f"{where}/{name}", arcname=name)
            os.fsync(file.fileno())
        os.rename(temporary, location)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
