"""The image configuration (OCI image-spec, config.md; Docker's image JSON is a superset).

Go writes empty lists as null, and old Dockerfiles left Entrypoint as one string: both are read.
Fields we do not know are kept: the document is shown whole by `inspect`, from its bytes.
"""

from __future__ import annotations

from typing import Any

import msgspec

from nagaya.errors import InvalidArgument
from nagaya.oci import digest as digests
from nagaya.oci.manifest import MAX_LAYERS, MAX_MANIFEST
from nagaya.oci.platform import Platform


class Healthcheck(msgspec.Struct, frozen=True, rename="pascal"):
    """Docker's HEALTHCHECK; durations in nanoseconds."""

    test: list[str] | None = None
    interval: int | None = None
    timeout: int | None = None
    start_period: int | None = None
    start_interval: int | None = None
    retries: int | None = None


class ContainerDefaults(msgspec.Struct, frozen=True, rename="pascal"):
    """What a container made from the image gets unless its user says otherwise."""

    user: str | None = None
    env: list[str] | None = None
    entrypoint: list[str] | str | None = None
    cmd: list[str] | str | None = None
    working_dir: str | None = None
    labels: dict[str, str] | None = None
    exposed_ports: dict[str, Any] | None = None
    volumes: dict[str, Any] | None = None
    stop_signal: str | None = None
    healthcheck: Healthcheck | None = None


class RootFS(msgspec.Struct, frozen=True):
    """The layers as uncompressed tar digests, bottom first."""

    type: str = "layers"
    diff_ids: list[str] | None = None


class History(msgspec.Struct, frozen=True):
    """How one layer, or one change without a layer, came to be."""

    created: str | None = None
    created_by: str | None = None
    author: str | None = None
    comment: str | None = None
    empty_layer: bool | None = None


class ImageConfig(msgspec.Struct, frozen=True):
    """The parts of the document that we act on."""

    architecture: str = ""
    os: str = ""
    variant: str | None = None
    created: str | None = None
    author: str | None = None
    config: ContainerDefaults | None = None
    rootfs: RootFS | None = None
    history: list[History] | None = None

    @property
    def platform(self) -> Platform:
        """The platform it was made for."""
        return Platform(self.os, self.architecture, self.variant or "")

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """Digests of the uncompressed layers, bottom first."""
        return tuple((self.rootfs.diff_ids if self.rootfs else None) or ())


_decoder = msgspec.json.Decoder(ImageConfig)


def decode(data: bytes) -> ImageConfig:
    """Decode and check an image configuration.

    Raises InvalidArgument, naming the field, for what is malformed, over a bound, or would lead
    outside the container (a volume "/../../etc", CVE-2022-23648).
    """
    if len(data) > MAX_MANIFEST:
        raise _bad(f"of {len(data)} bytes is over the limit of {MAX_MANIFEST}")
    try:
        config = _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise _bad(f"is not valid: {error}") from None
    except RecursionError:
        raise _bad("is nested too deeply") from None
    if config.rootfs is not None and config.rootfs.type != "layers":
        raise _bad(f"has rootfs.type {config.rootfs.type[:80]!r}, want 'layers'", "rootfs.type")
    diff_ids = config.diff_ids
    if len(diff_ids) > MAX_LAYERS:
        raise _bad(f"has {len(diff_ids)} layers, over the limit of {MAX_LAYERS}", "rootfs.diff_ids")
    for number, digest in enumerate(diff_ids):
        if not digests.is_digest(digest):
            raise _bad(f"has an invalid diff id {digest[:160]!r}", f"rootfs.diff_ids[{number}]")
    for volume in (config.config.volumes if config.config else None) or ():
        if ".." in volume.split("/") or "\0" in volume:
            raise _bad(f"has a volume that leads outside the container: {volume[:200]!r}", "config.Volumes")
    return config


def words(value: list[str] | str | None) -> tuple[str, ...]:
    """Entrypoint or Cmd as a tuple; a lone string is one word, as Docker's StrSlice reads it."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def _bad(what: str, field: str = "") -> InvalidArgument:
    return InvalidArgument(f"image configuration {what}", subject=f"config.{field}" if field else "config")
