"""Images: list, status, pull, remove, and the disk that they take."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from nagaya.api.cri import runtime_pb2 as cri
from nagaya.api.cri.context import Context, Lister, Unary
from nagaya.engine.model import ImageSummary, RegistryAuth
from nagaya.errors import InvalidArgument, NotFound
from nagaya.oci import reference

_DOCKER = ("index.docker.io", "registry-1.docker.io")  # what `docker login` calls docker.io


def _named(spec: cri.ImageSpec) -> str:
    if not spec.image:
        raise InvalidArgument("image.image is empty", subject="image.image")
    return spec.image


def _canonical(names: Sequence[str]) -> list[str]:
    return [reference.parse(name).canonical for name in names]


def _image(summary: ImageSummary) -> cri.Image:
    image = cri.Image(
        id=summary.id,
        repo_tags=_canonical(summary.tags),
        repo_digests=_canonical(summary.digests),
        size=max(1, summary.size),  # a kubelet takes 0 for "unknown"
        spec=cri.ImageSpec(image=summary.id),
    )
    config = summary.config.get("config")
    user = config.get("User") if isinstance(config, dict) else None
    name = str(user or "").partition(":")[0]
    if name.isascii() and name.isdigit():
        image.uid.value = int(name)
    elif name:
        image.username = name
    else:
        image.uid.value = 0
    return image


async def listed(
    context: Context, request: cri.ListImagesRequest | cri.StreamImagesRequest
) -> Sequence[cri.Image]:
    """The images here; with a filter the one that it names."""
    wanted = request.filter.image.image
    if wanted:
        try:
            return [_image(await context.engine.inspect_image(wanted))]
        except NotFound:
            return []
    return [_image(summary) for summary in await context.engine.list_images()]


async def list_images(context: Context, request: cri.ListImagesRequest) -> cri.ListImagesResponse:
    """The images here."""
    return cri.ListImagesResponse(images=await listed(context, request))


async def status(context: Context, request: cri.ImageStatusRequest) -> cri.ImageStatusResponse:
    """One image; none, without an error, when it is not here."""
    try:
        summary = await context.engine.inspect_image(_named(request.image))
    except NotFound:
        return cri.ImageStatusResponse()
    reply = cri.ImageStatusResponse(image=_image(summary))
    if request.verbose:
        reply.info["info"] = json.dumps({"imageSpec": summary.config})
    return reply


def credentials(auth: cri.AuthConfig, domain: str) -> RegistryAuth | None:
    """What a kubelet knows for the registry of that domain; what is for another server goes nowhere.
    Raises InvalidArgument."""
    server = auth.server_address
    host = urlsplit(server if "://" in server else f"//{server}").netloc
    if host and host != domain and not (domain == "docker.io" and host in _DOCKER):
        return None
    username, password = auth.username, auth.password
    if auth.auth and not username:
        try:
            text = base64.b64decode(auth.auth, validate=True).decode()
        except ValueError:  # binascii.Error, UnicodeDecodeError, and what is not ASCII
            raise InvalidArgument("auth.auth is not base64 of user:password", subject="auth.auth") from None
        username, colon, password = text.rstrip("\0").partition(":")
        if not colon:
            raise InvalidArgument("auth.auth is not base64 of user:password", subject="auth.auth")
    made = RegistryAuth(username, password, auth.identity_token, auth.registry_token)
    return made if made != RegistryAuth() else None


async def pull(context: Context, request: cri.PullImageRequest) -> cri.PullImageResponse:
    """Get an image from its registry; its id."""
    name = _named(request.image)
    auth = credentials(request.auth, reference.parse(name).domain)
    async for _ in context.engine.pull_image(name, "", auth):
        pass
    return cri.PullImageResponse(image_ref=(await context.engine.inspect_image(name)).id)


async def remove(context: Context, request: cri.RemoveImageRequest) -> cri.RemoveImageResponse:
    """Take an image away with all its names; one that is not here is gone already."""
    try:
        summary = await context.engine.inspect_image(_named(request.image))
        await context.engine.remove_image(summary.id, force=True)
    except NotFound:
        pass
    return cri.RemoveImageResponse()


async def fs_info(context: Context, request: cri.ImageFsInfoRequest) -> cri.ImageFsInfoResponse:
    """What images and containers take of their disk."""
    root = context.pods.world.settings.root
    used, inodes = await context.pods.disk_usage()
    usage = cri.FilesystemUsage(
        timestamp=time.time_ns(),
        fs_id=cri.FilesystemIdentifier(mountpoint=f"{root}/snapshots"),
        used_bytes=cri.UInt64Value(value=used),
        inodes_used=cri.UInt64Value(value=inodes),
    )
    return cri.ImageFsInfoResponse(image_filesystems=[usage], container_filesystems=[usage])


UNARY: dict[str, Unary] = {
    "ListImages": list_images,
    "ImageStatus": status,
    "PullImage": pull,
    "RemoveImage": remove,
    "ImageFsInfo": fs_info,
}
LISTERS: dict[str, Lister] = {"StreamImages": listed}
