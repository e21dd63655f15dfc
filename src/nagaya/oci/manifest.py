"""Image manifests and indices: OCI image-spec 1.1 and Docker's schema 2, typed and bounded.

What came from a registry is ambiguous until proven otherwise: a document with both `manifests` and
`layers` is refused whatever its type says (CVE-2021-41190), and so is one whose `mediaType`
disagrees with what it is.
"""

from __future__ import annotations

from typing import Any

import msgspec

from nagaya.errors import InvalidArgument, Unimplemented
from nagaya.oci import digest as digests
from nagaya.oci.platform import Platform

MAX_MANIFEST = 4 << 20  # bytes, as containerd and registries have it
MAX_LAYERS = 500  # the kernel's limit for one overlay mount (OVL_MAX_STACK)
MAX_ENTRIES = 4096
MAX_BLOB = 1 << 44

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+json"
DOCKER_SCHEMA1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"

ACCEPT = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST))

_LAYER_TYPES = frozenset(
    prefix + suffix
    for prefix in (OCI_LAYER, "application/vnd.oci.image.layer.nondistributable.v1.tar")
    for suffix in ("", "+gzip", "+zstd")
) | {
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
}


class Descriptor(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A pointer to content: its type, digest and size. `urls` are never followed with credentials."""

    digest: str
    size: int
    media_type: str = ""
    urls: tuple[str, ...] | None = None
    platform: Platform | None = None
    annotations: dict[str, str] | None = None
    artifact_type: str = ""


class Manifest(msgspec.Struct, frozen=True):
    """An image: its configuration and its layers, bottom first."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]


class Index(msgspec.Struct, frozen=True):
    """A list of images, one per platform."""

    media_type: str
    manifests: tuple[Descriptor, ...]


class _Document(msgspec.Struct, rename="camel"):
    schema_version: int = 0
    media_type: str | None = None
    config: Descriptor | None = None
    layers: list[Descriptor] | None = None
    manifests: list[Descriptor] | None = None
    artifact_type: str | None = None
    fs_layers: Any = None


_decoder = msgspec.json.Decoder(_Document)


def decode(data: bytes, content_type: str = "") -> Manifest | Index:
    """Decode a manifest or an index. content_type: what the registry called it, "" when unknown.

    Raises InvalidArgument for what is malformed, ambiguous or over a bound, Unimplemented for
    schema 1 and for things that are no images.
    """
    if len(data) > MAX_MANIFEST:
        raise _bad(f"of {len(data)} bytes is over the limit of {MAX_MANIFEST}")
    try:
        document = _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise _bad(f"is not valid: {error}") from None
    except RecursionError:
        raise _bad("is nested too deeply") from None
    content_type = content_type.partition(";")[0].strip()
    kind = document.media_type or ""
    if (
        document.schema_version == 1
        or document.fs_layers is not None
        or {kind, content_type} & {DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED}
    ):
        raise Unimplemented(
            "Docker image manifest version 2, schema 1 is no longer supported: push the image again "
            "with a current tool",
            subject="manifest",
        )
    if document.schema_version != 2:
        raise _bad(f"has schemaVersion {document.schema_version}, want 2")
    if document.manifests is not None and (document.layers is not None or document.config is not None):
        raise _bad("has both 'manifests' and 'layers': it is ambiguous and refused")
    is_index = document.manifests is not None
    expected = (OCI_INDEX, DOCKER_LIST) if is_index else (OCI_MANIFEST, DOCKER_MANIFEST)
    for said, what in ((kind, "mediaType"), (content_type, "Content-Type")):
        known = said in (OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST)
        if known and said not in expected:
            raise _bad(f"is called {said} by its {what} and is something else")
    if kind and kind not in expected:
        raise Unimplemented(f"manifest of type {kind[:200]!r} is not an image", subject="manifest.mediaType")
    media_type = kind or (content_type if content_type in expected else expected[0])
    if document.manifests is not None:
        if len(document.manifests) > MAX_ENTRIES:
            raise _bad(f"has {len(document.manifests)} entries, over the limit of {MAX_ENTRIES}")
        for number, entry in enumerate(document.manifests):
            _check(entry, f"manifests[{number}]", MAX_MANIFEST)
        return Index(media_type, tuple(document.manifests))
    if document.config is None:
        raise _bad("has neither 'manifests' nor 'config'")
    layers = document.layers or []
    if len(layers) > MAX_LAYERS:
        raise _bad(f"has {len(layers)} layers, over the limit of {MAX_LAYERS}")
    if document.config.media_type not in (OCI_CONFIG, DOCKER_CONFIG, ""):
        raise Unimplemented(
            f"not a container image: its config is of type {document.config.media_type[:200]!r}",
            subject="manifest.config.mediaType",
        )
    _check(document.config, "config", MAX_MANIFEST)
    for number, layer in enumerate(layers):
        _check(layer, f"layers[{number}]", MAX_BLOB)
        if layer.media_type and layer.media_type not in _LAYER_TYPES:
            raise Unimplemented(
                f"layer of type {layer.media_type[:200]!r} is not supported",
                subject=f"manifest.layers[{number}].mediaType",
            )
    return Manifest(media_type, document.config, tuple(layers))


def is_artifact(entry: Descriptor) -> bool:
    """Is an entry of an index something about an image (an attestation and the like), not one?"""
    return bool(entry.artifact_type or (entry.annotations or {}).get("vnd.docker.reference.type"))


def encode(manifest: Manifest) -> bytes:
    """The manifest as JSON, the same bytes for the same manifest."""
    return msgspec.json.encode(
        {
            "schemaVersion": 2,
            "mediaType": manifest.media_type,
            "config": manifest.config,
            "layers": manifest.layers,
        }
    )


def decode_image(data: bytes) -> Manifest:
    """Decode what must be the manifest of one image. Raises as `decode`, and for an index."""
    document = decode(data)
    if isinstance(document, Index):
        raise _bad("is an index, want that of an image")
    return document


def layer_type(compression: str) -> str:
    """The media type of a layer that is compressed by "gzip" or "zstd", or not at all ("")."""
    return f"{OCI_LAYER}+{compression}" if compression else OCI_LAYER


def is_foreign(layer: Descriptor) -> bool:
    """Is it a layer that registries do not serve, to be fetched from its `urls`?"""
    return bool(layer.urls) and ("foreign" in layer.media_type or "nondistributable" in layer.media_type)


def _check(descriptor: Descriptor, field: str, limit: int) -> None:
    if not digests.is_digest(descriptor.digest):
        raise _bad(f"has an invalid digest {descriptor.digest[:160]!r}", field + ".digest")
    if not 0 <= descriptor.size <= limit:
        raise _bad(f"has size {descriptor.size} in {field}, want 0 to {limit}", field + ".size")


def _bad(what: str, field: str = "") -> InvalidArgument:
    subject = f"manifest.{field}" if field else "manifest"
    return InvalidArgument(f"manifest {what}", subject=subject)
