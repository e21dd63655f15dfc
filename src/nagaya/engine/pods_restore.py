"""Pods made from what `pods_checkpoints.pod` wrote: the sandbox anew, each container with what it had written
above its image, and its processes, by criu(8), when it is started.

The archives are the caller's directory's: only files with plain names are taken out of them.
"""

from __future__ import annotations

import os
import re
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from typing import IO, Any

import msgspec

from nagaya.engine.model import Container
from nagaya.engine.pods_model import PodContainerConfig
from nagaya.engine.pods_spec import member_of
from nagaya.engine.world import World
from nagaya.errors import DataLoss, InvalidArgument, NotFound, Unimplemented

_IMAGES = re.compile(r"checkpoint/([A-Za-z0-9_.-]{1,200})")
_MOST_ABOUT = 16 << 20
_PIECE = 1 << 20


class Archived(msgspec.Struct, frozen=True):
    """A container in pod.json. image: its id. words: what its first process was made with."""

    id: str
    name: str
    archive: str
    image: str
    words: tuple[str, ...] = ()


class Archives(msgspec.Struct, frozen=True):
    """pod.json."""

    containers: tuple[Archived, ...]


def read(directory: str, configs: Sequence[PodContainerConfig], handler: str) -> dict[str, Archived]:
    """{name: container} of a checkpoint, which must be just those that are asked for. Blocking. Raises
    InvalidArgument, NotFound, Unimplemented."""
    if handler not in ("", "nagaya"):
        raise Unimplemented(f"handler {handler} restores no checkpoints", subject="runtime_handler")
    if not directory.startswith("/"):
        raise InvalidArgument(f"{directory!r} is not absolute", subject="checkpoint_path")
    try:
        with open(f"{directory}/pod.json", "rb") as file:
            found = msgspec.json.decode(file.read(_MOST_ABOUT), type=Archives)
    except OSError as error:
        raise NotFound(
            f"{directory}/pod.json: {os.strerror(error.errno or 0).lower()}", subject="checkpoint_path"
        ) from None
    except msgspec.DecodeError as error:
        raise InvalidArgument(f"{directory}/pod.json: {error}", subject="checkpoint_path") from None
    known = {one.name: one for one in found.containers}
    wanted = [config.metadata.name for config in configs]
    if not wanted or len(set(wanted)) < len(wanted) or set(wanted) != set(known):
        raise InvalidArgument(
            f"the checkpoint has the containers {sorted(known)}, not {wanted}", subject="container_configs"
        )
    return known


def images_of(world: World, container_id: str) -> str:
    """Where criu's images of a container lie until it is started."""
    return f"{world.settings.root}/checkpoints/{container_id}"


def forget(world: World, container_id: str) -> None:
    """They are not needed any more. Blocking; may be repeated."""
    shutil.rmtree(images_of(world, container_id), ignore_errors=True)


def fill(world: World, made: Container, directory: str, archived: Archived) -> None:
    """Take the archive of a container into one that was just made. Blocking. Raises InvalidArgument when it
    was another image's or program's, DataLoss for a broken archive."""
    field = f"container_configs.{archived.name}"
    if made.image_digest != archived.image:
        raise InvalidArgument(
            f"was image {archived.image}, not {made.image_digest}", subject=f"{field}.image"
        )
    if (made.path, *made.args) != archived.words:
        raise InvalidArgument(f"ran {archived.words}", subject=f"{field}.command")
    if "/" in archived.archive:
        raise InvalidArgument(f"{archived.archive!r} is no file's name", subject="checkpoint_path")
    images = images_of(world, made.id)
    os.makedirs(images, 0o700)
    try:
        _take(world, made.id, f"{directory}/{archived.archive}", images)
        member = msgspec.structs.replace(member_of(made), images=images)
        made.config = msgspec.structs.replace(made.config, pod=member)
        world.ledger.put_container(made)
    except BaseException:
        forget(world, made.id)
        raise


def _take(world: World, container_id: str, path: str, images: str) -> None:
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isreg() else None
                if file is None:
                    continue
                if member.name == "rootfs-diff.tar":
                    world.images.read_layer(container_id, _pieces(file))
                elif found := _IMAGES.fullmatch(member.name):
                    with open(f"{images}/{found[1]}", "xb") as target:
                        shutil.copyfileobj(file, target, _PIECE)
    except (tarfile.TarError, OSError) as error:
        raise DataLoss(f"{path}: {error}", subject="checkpoint_path") from None


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    while piece := file.read(_PIECE):
        yield piece


def described(one: Container) -> dict[str, Any]:
    """A container for pod.json."""
    made = Archived(
        one.id,
        member_of(one).config.metadata.name,
        f"{one.id}.tar",
        one.image_digest,
        (one.path, *one.args),
    )
    return dict(msgspec.to_builtins(made))
