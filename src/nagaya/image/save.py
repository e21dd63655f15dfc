"""Images become one archive (`docker save`): what every tool since docker 1.10 can load.

An OCI image layout (image-spec, image-layout.md: oci-layout, index.json, blobs/) that is a docker
archive as well (manifest.json, repositories), as dockerd writes it since 25. Manifests and layers go
out as they came in, so that whoever loads the layout has the same digests. The documents come first:
a reader of the stream then knows what the blobs are.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from nagaya.errors import DataLoss
from nagaya.image.content import ContentStore
from nagaya.oci import digest as digests
from nagaya.oci import manifest as manifests
from nagaya.oci import reference
from nagaya.oci.manifest import Descriptor, Manifest

LAYOUT_VERSION = "1.0.0"
NAME_ANNOTATION = "io.containerd.image.name"
TAG_ANNOTATION = "org.opencontainers.image.ref.name"
_PIECE = 1 << 20


class Wanted(msgspec.Struct, frozen=True):
    """An image to be saved. manifest: its digest; tags: canonical names, without digests."""

    manifest: str
    tags: tuple[str, ...]


def path_of(digest: str) -> str:
    """Where a layout has the blob."""
    return "blobs/" + "/".join(digests.parse(digest))


def documents(wanted: Sequence[Wanted], found: Mapping[str, tuple[Descriptor, Manifest]]) -> dict[str, bytes]:
    """The archive's documents by name. found: the manifests by digest, and what describes them."""
    entries: list[Descriptor] = []
    archived: list[dict[str, Any]] = []
    repositories: dict[str, dict[str, str]] = {}
    for image in wanted:
        descriptor, document = found[image.manifest]
        names = [reference.parse(tag) for tag in sorted(image.tags)]
        for name in names:
            annotations = {NAME_ANNOTATION: name.canonical, TAG_ANNOTATION: name.tag}
            entries.append(msgspec.structs.replace(descriptor, annotations=annotations))
            top = document.layers[-1].digest if document.layers else document.config.digest
            repositories.setdefault(name.familiar_name, {})[name.tag] = digests.parse(top)[1]
        if not names:
            entries.append(descriptor)
        archived.append(
            {
                "Config": path_of(document.config.digest),
                "RepoTags": [name.familiar for name in names] or None,
                "Layers": [path_of(layer.digest) for layer in document.layers],
            }
        )
    index = {"schemaVersion": 2, "mediaType": manifests.OCI_INDEX, "manifests": entries}
    made = {
        "oci-layout": {"imageLayoutVersion": LAYOUT_VERSION},
        "index.json": index,
        "manifest.json": archived,
        **({"repositories": repositories} if repositories else {}),
    }
    return {name: msgspec.json.encode(document) for name, document in made.items()}


def archive(content: ContentStore, wanted: Sequence[Wanted]) -> Iterator[bytes]:
    """The tar stream. The blobs must be leased. Raises DataLoss, NotFound before the first piece for
    what is missing, later for what turns out damaged: the stream then ends without an end."""
    found: dict[str, tuple[Descriptor, Manifest]] = {}
    blobs: dict[str, int] = {}
    for digest in dict.fromkeys(image.manifest for image in wanted):
        data = content.read(digest, manifests.MAX_MANIFEST)
        document = manifests.decode_image(data)
        found[digest] = Descriptor(digest, len(data), document.media_type), document
        for part in (found[digest][0], document.config, *document.layers):
            blobs[part.digest] = content.size(part.digest)
    for name, data in documents(wanted, found).items():
        yield _member(name, len(data)) + data + bytes(-len(data) % tarfile.BLOCKSIZE)
    folders = {"blobs"} | {path_of(digest).rpartition("/")[0] for digest in blobs}
    for folder in sorted(folders):
        yield _member(folder, 0, folder=True)
    for digest in sorted(blobs):
        yield from _blob(content, digest, blobs[digest])
    yield bytes(2 * tarfile.BLOCKSIZE)


def _blob(content: ContentStore, digest: str, size: int) -> Iterator[bytes]:
    yield _member(path_of(digest), size)
    seen = digests.hasher(digest)
    told = 0
    for piece in content.pieces(digest):
        told += len(piece)
        if told > size:
            break
        seen.update(piece)
        yield piece
    if told != size or seen.hexdigest() != digests.parse(digest)[1]:
        raise DataLoss("the stored content does not match its digest: pull it again", subject=digest)
    yield bytes(-size % tarfile.BLOCKSIZE)


def _member(name: str, size: int, *, folder: bool = False) -> bytes:
    """A header; of everything that could differ between two archives of one image nothing is told."""
    info = tarfile.TarInfo(name)
    info.type, info.mode = (tarfile.DIRTYPE, 0o755) if folder else (tarfile.REGTYPE, 0o644)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)  # base-256 sizes: a layer may have more than 8 GiB
