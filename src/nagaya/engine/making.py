"""Images made here: of a container (`docker commit`), of an archive of files (`docker import`)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from nagaya.engine import microvms
from nagaya.engine.changes import PLACES
from nagaya.engine.containers import Containers
from nagaya.engine.images import Images
from nagaya.engine.model import Container, ContainerConfig, PullProgress
from nagaya.engine.world import World
from nagaya.errors import FailedPrecondition, NagayaError
from nagaya.image.making import Recipe
from nagaya.oci import platform as platforms

Edit = Callable[[Mapping[str, Any]], dict[str, Any]]  # of an image's configuration


class Making:
    """Lives on the event loop."""

    def __init__(self, world: World, containers: Containers, images: Images) -> None:
        self._world = world
        self._containers = containers
        self._images = images

    async def commit(
        self,
        ref: str,
        name: str,
        edit: Edit,
        given: Mapping[str, Any] | None,
        *,
        author: str = "",
        comment: str = "",
        pause: bool = True,
    ) -> str:
        """The id of an image of the container, frozen meanwhile when it runs (pause).

        given: its configuration, None for the container's; edit: what is made of it. Raises NotFound,
        InvalidArgument, FailedPrecondition."""
        slot = self._world.roster.find(ref)
        container = slot.container
        microvms.check_files(self._world, container)
        own = configuration(container.config)
        config = filled(edit(own if given is None else given), own)
        frozen = pause and container.state == "running"
        if frozen:
            with suppress(FailedPrecondition):  # it has ended meanwhile, or another client was quicker
                await self._containers.pause(container.id)
        try:
            async with slot.lock:
                if self._world.roster.get(container.id) is None or container.state in ("removing", "dead"):
                    raise FailedPrecondition(
                        f"You cannot commit container {container.id} which is being removed"
                    )
                recipe = Recipe(config, _now(), " ".join(_command(container)), author, comment)
                image = await self._world.slow_job(
                    lambda: self._world.images.commit(
                        container.id, container.image_digest, PLACES, recipe, name
                    )
                )
        finally:
            if frozen:
                with suppress(NagayaError):  # it was removed, or another client was quicker
                    await self._containers.unpause(container.id)
        self._world.bus.container(container, "commit", comment=comment, imageID=image.id, imageRef=name)
        return image.id

    async def import_files(
        self, body: AsyncIterator[bytes], name: str, edit: Edit, message: str, platform: str
    ) -> str:
        """The id of an image of one layer, an archive (plain, gzip, zstd). Raises InvalidArgument and what
        unpacking does. Cancelled, it leaves nothing."""
        return await self._images.import_files(body, _imported(edit, message, platform, "-"), name)

    def import_url(
        self, url: str, name: str, edit: Edit, message: str, platform: str
    ) -> AsyncIterator[PullProgress]:
        """The same of what is at a URL; see `Images.import_url`."""
        return self._images.import_url(url, _imported(edit, message, platform, url), name)


def _imported(edit: Edit, message: str, platform: str, source: str) -> Recipe:
    wanted = platforms.parse(platform) if platform else None
    comment = message or f"Imported from {source}"
    return Recipe(edit({}), _now(), comment=comment, platform=wanted)


def filled(config: Mapping[str, Any], below: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with what it leaves out taken from `below` (moby, daemon/commit.go, merge)."""
    found: dict[str, Any] = dict(config)
    for key in ("User", "WorkingDir", "StopSignal", "Healthcheck"):
        if not found.get(key) and below.get(key):
            found[key] = below[key]
    for key in ("ExposedPorts", "Labels", "Volumes"):
        both = {**(below.get(key) or {}), **(found.get(key) or {})}
        if both:
            found[key] = both
    given = {variable.partition("=")[0] for variable in found.get("Env") or ()}
    rest = [variable for variable in below.get("Env") or () if variable.partition("=")[0] not in given]
    found["Env"] = [*(found.get("Env") or ()), *rest]
    if not found.get("Entrypoint"):
        if not found.get("Cmd"):
            found["Cmd"] = below.get("Cmd")
        if found.get("Entrypoint") is None:
            found["Entrypoint"] = below.get("Entrypoint")
    return {key: value for key, value in found.items() if value not in (None, "", [], {})}


def configuration(config: ContainerConfig) -> dict[str, Any]:
    """What of a container's configuration becomes an image's (image-spec, config.md, `config`)."""
    found: dict[str, Any] = {
        "User": config.user,
        "ExposedPorts": {port: {} for port in config.exposed_ports},
        "Env": list(config.env),
        "Entrypoint": None if config.entrypoint is None else list(config.entrypoint),
        "Cmd": None if config.command is None else list(config.command),
        "Volumes": {path: {} for path in config.image_volumes},
        "WorkingDir": config.working_dir,
        "Labels": dict(config.labels),
        "StopSignal": config.stop_signal,
    }
    if config.health is not None:
        health = config.health
        found["Healthcheck"] = {
            key: value
            for key, value in {
                "Test": list(health.test),
                "Interval": health.interval,
                "Timeout": health.timeout,
                "StartPeriod": health.start_period,
                "StartInterval": health.start_interval,
                "Retries": health.retries,
            }.items()
            if value
        }
    return found


def _command(container: Container) -> tuple[str, ...]:
    return container.config.command or ()


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
