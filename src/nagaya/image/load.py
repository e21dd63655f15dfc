"""Images out of an archive (`docker load`): an OCI layout, a docker archive old or new, several images.

First the whole archive is taken in and understood, and every image of it checked; then blobs, layers
and rows are made. So a bad archive leaves nothing, whichever of its images is the bad one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import msgspec

from nagaya.errors import DataLoss, InvalidArgument, NotFound
from nagaya.image.incoming import Incoming, Part
from nagaya.image.jobs import Check, together
from nagaya.image.pull import Progress, Report
from nagaya.image.save import NAME_ANNOTATION, TAG_ANNOTATION
from nagaya.image.shelf import Shelf
from nagaya.oci import digest as digests
from nagaya.oci import imageconfig, platform, reference
from nagaya.oci import manifest as manifests
from nagaya.oci.manifest import Descriptor, Index, Manifest

_REPORT = 0.1  # seconds between two progress reports of one layer at least
_MAX_DEPTH = 4  # indices within indices
_MAX_IMAGES = 1000


class Loaded(msgspec.Struct, frozen=True):
    """An image of the archive, as it will be kept. names: canonical."""

    id: str
    manifest: bytes
    layers: tuple[str, ...]  # digests of the blobs
    diff_ids: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Of the manifest."""
        return digests.of(self.manifest)

    @property
    def blobs(self) -> tuple[str, ...]:
        """Everything that the image keeps alive."""
        return tuple(dict.fromkeys((self.digest, self.id, *self.layers)))


class _Item(msgspec.Struct, rename="pascal"):
    """One element of manifest.json (moby, image/spec/spec.md)."""

    config: str = ""
    repo_tags: list[str] | None = None
    layers: list[str] | None = None


def load(shelf: Shelf, pieces: Iterable[bytes], report: Report, check: Check) -> Sequence[str]:
    """Take in an archive; the ids of its images. What happens is told in dockerd's words.

    Raises InvalidArgument, DataLoss, NotFound (a blob that is in neither archive nor store),
    Unimplemented, ResourceExhausted, KernelError, and what check raises; nothing stays then.
    """
    with shelf.content.spool() as directory, shelf.work("a load") as lease:
        incoming = Incoming(directory, shelf.config.limits)
        incoming.read(pieces, check)
        images = plan(incoming, shelf)
        for image in images:
            lease((*image.blobs, *image.diff_ids))
        # the sooner a layer is unpacked, the more of the time that the disk takes for others is used
        wanted: dict[str, set[str]] = {}
        for image in images:
            for digest, diff_id in zip(image.layers, image.diff_ids, strict=True):
                wanted.setdefault(digest, set()).add(diff_id)
        together(
            [partial(_layer, shelf, incoming, *one, report) for one in wanted.items()],
            shelf.config.downloads + shelf.config.unpacks,  # some wait for the disk
            "nagaya-load",
            check,
        )
        for image in images:
            shelf.content.put(image.manifest, image.digest)
            for digest in image.blobs:
                _adopt(shelf, incoming, digest, check)
        for image in images:
            _keep(shelf, image, report)
    return [image.id for image in images]


def _adopt(shelf: Shelf, incoming: Incoming, digest: str, check: Check) -> None:
    check()
    part = incoming.blob(digest)
    if part is not None and os.path.exists(part.path):
        shelf.content.adopt(part.path, digest)
    if not shelf.content.has(digest):  # it was not in the archive, and went before it was leased
        raise _lacking(digest)


def _layer(
    shelf: Shelf, incoming: Incoming, digest: str, diff_ids: set[str], report: Report, check: Check
) -> None:
    """One blob; an archive may say of it that it is several layers, which is wrong of all but one."""
    _adopt(shelf, incoming, digest, check)
    for diff_id in sorted(diff_ids):
        if not shelf.snapshots.has_layer(diff_id):
            _unpack(shelf, incoming.blob(digest), digest, diff_id, report, check)


def _unpack(shelf: Shelf, part: Part | None, digest: str, diff_id: str, report: Report, check: Check) -> None:
    short, total = digests.short(diff_id), shelf.content.size(digest)
    done, told = 0, 0.0

    def seen(piece: bytes) -> None:
        nonlocal done, told
        done += len(piece)
        if done >= total or time.monotonic() >= told:
            told = time.monotonic() + _REPORT
            report(Progress("Loading layer", short, done, total))

    plain = part is not None and not part.compression
    shelf.unpacking.stored(digest, diff_id, check, seen, plain=plain)


def _keep(shelf: Shelf, image: Loaded, report: Report) -> None:
    """Its row and its names. An image that is here whole keeps the manifest it came with: its digests
    are what others may know it by."""
    with shelf.mutex:
        before = {name: shelf.image_of(name) for name in image.names}
        row = shelf.catalog.image(image.id)
        if row is not None and all(map(shelf.content.has, row.blobs)):
            shelf.put_image(row.id, row.manifest, row.layers, row.blobs, image.names)
        else:
            shelf.put_image(image.id, image.digest, image.diff_ids, image.blobs, image.names)
    for name, former in before.items():
        familiar = reference.parse(name).familiar
        if former not in (None, image.id):
            moved = f"renaming the old one with ID {former} to empty string"
            report(Progress("", stream=f"The image {familiar} already exists, {moved}\n"))
        report(Progress("", stream=f"Loaded image: {familiar}\n"))
    if not image.names:
        report(Progress("", stream=f"Loaded image ID: {image.id}\n"))


# what the archive says


def plan(incoming: Incoming, shelf: Shelf) -> list[Loaded]:
    """The images of the archive, each checked against what is in it. Raises as `load`."""
    source = _Source(incoming, shelf)
    if "index.json" in incoming.documents:
        images = list(_from_layout(source, incoming.documents["index.json"]))
    elif "manifest.json" in incoming.documents:
        images = [_from_item(source, item) for item in _items(incoming)]
    elif "repositories" in incoming.documents:
        raise InvalidArgument("the archive is of a docker before 1.10, which named no manifest.json")
    else:
        raise InvalidArgument("not an archive of images: it holds neither index.json nor manifest.json")
    if not images:
        raise InvalidArgument("the archive names no image", subject="archive")
    return images


class _Source:
    """Documents and layers of the archive, or of the store when it has them already."""

    def __init__(self, incoming: Incoming, shelf: Shelf) -> None:
        self.incoming = incoming
        self._content = shelf.content

    def has(self, digest: str) -> bool:
        return self.incoming.blob(digest) is not None or self._content.has(digest)

    def document(self, digest: str) -> bytes:
        part = self.incoming.blob(digest)
        if part is not None:
            return read(part)
        if not self._content.has(digest):
            raise _lacking(digest)
        return self._content.read(digest, manifests.MAX_MANIFEST)

    def size(self, digest: str) -> int:
        part = self.incoming.blob(digest)
        if part is None and not self._content.has(digest):
            raise _lacking(digest)
        return part.size if part is not None else self._content.size(digest)


def read(part: Part) -> bytes:
    """A document of the archive. Raises InvalidArgument when it is too big for one."""
    if part.size > manifests.MAX_MANIFEST:
        raise InvalidArgument(
            f"a document of {part.size} bytes is over the limit of {manifests.MAX_MANIFEST}",
            subject=part.digest,
        )
    with open(part.path, "rb") as file:
        return file.read()


def _from_layout(source: _Source, data: bytes) -> Iterator[Loaded]:
    index = manifests.decode(data)
    if not isinstance(index, Index):
        raise InvalidArgument("index.json is no index", subject="index.json")
    tags = {i.id: i.names for i in map(partial(_from_item, source), _items(source.incoming))}
    found: dict[str, Loaded] = {}
    for entry in index.manifests:
        if manifests.is_artifact(entry):
            continue
        image = _from_manifest(source, _resolved(source, entry), _annotated(entry))
        names = (*found[image.id].names, *image.names) if image.id in found else image.names
        # a docker archive's tags: a layout of old tools tells no whole names
        names = tuple(dict.fromkeys((*names, *tags.get(image.id, ()))))
        found[image.id] = msgspec.structs.replace(image, names=names)
    yield from found.values()


def _resolved(source: _Source, entry: Descriptor, depth: int = 0) -> tuple[bytes, Manifest]:
    """The manifest that an entry is, or leads to: of an index what fits this host best, of what is
    here."""
    data = source.document(entry.digest)
    document = manifests.decode(data, entry.media_type)
    if isinstance(document, Manifest):
        return data, document
    if depth >= _MAX_DEPTH:
        raise InvalidArgument("indices nested too deeply", subject="index.json")
    present = [e for e in document.manifests if not manifests.is_artifact(e) and source.has(e.digest)]
    if not present:
        raise NotFound("the archive holds no image of its index", subject=entry.digest)
    best = platform.choose([e.platform for e in present], platform.host())
    return _resolved(source, present[max(best, 0)], depth + 1)


def _from_manifest(source: _Source, found: tuple[bytes, Manifest], names: tuple[str, ...]) -> Loaded:
    data, document = found
    for part in (document.config, *document.layers):
        size = source.size(part.digest)
        if size != part.size:
            raise DataLoss(
                f"the archive's blob has {size} bytes, its descriptor says {part.size}", subject=part.digest
            )
    layers = tuple(layer.digest for layer in document.layers)
    return _checked(source.document(document.config.digest), document.config.digest, data, layers, names)


def _items(incoming: Incoming) -> list[_Item]:
    data = incoming.documents.get("manifest.json", b"[]")
    try:
        items = msgspec.json.decode(data, type=list[_Item] | None) or []
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidArgument(f"manifest.json is not valid: {error}", subject="manifest.json") from None
    if len(items) > _MAX_IMAGES:
        raise InvalidArgument(f"manifest.json names more than {_MAX_IMAGES} images", subject="manifest.json")
    return items


def _from_item(source: _Source, item: _Item) -> Loaded:
    parts = [_part(source, name) for name in (item.config, *(item.layers or ()))]
    config, *layers = parts
    document = Manifest(
        manifests.OCI_MANIFEST,
        Descriptor(config.digest, config.size, manifests.OCI_CONFIG),
        tuple(Descriptor(p.digest, p.size, manifests.layer_type(p.compression)) for p in layers),
    )
    names = tuple(map(_tagged, item.repo_tags or ()))
    blobs = tuple(p.digest for p in layers)
    return _checked(read(config), config.digest, manifests.encode(document), blobs, names)


def _checked(
    config: bytes, image_id: str, manifest: bytes, layers: Sequence[str], names: Iterable[str]
) -> Loaded:
    decoded = imageconfig.decode(config)
    if len(decoded.diff_ids) != len(layers):
        raise InvalidArgument(
            f"invalid manifest, layers length mismatch: expected {len(layers)}, got {len(decoded.diff_ids)}",
            subject="config.rootfs.diff_ids",
        )
    system = decoded.os or "linux"
    if system != "linux":
        raise InvalidArgument(f"cannot load {system[:40]} image on linux", subject="config.os")
    return Loaded(image_id, manifest, tuple(layers), decoded.diff_ids, tuple(names))


def _part(source: _Source, name: str) -> Part:
    part = source.incoming.find(name)
    if part is None:
        raise NotFound(f"the archive lacks {name[:200]!r}, which its manifest.json names", subject=name[:200])
    return part


def _annotated(entry: Descriptor) -> tuple[str, ...]:
    """The names that an entry of index.json has: whole ones; a bare tag is not one."""
    annotations = entry.annotations or {}
    name = annotations.get(NAME_ANNOTATION, "")
    if not name:
        name = annotations.get(TAG_ANNOTATION, "")
        if "/" not in name and ":" not in name:
            return ()
    return (_tagged(name),)


def _tagged(text: str) -> str:
    name = reference.parse(text)
    if name.digest or not name.tag:
        raise InvalidArgument(f'invalid tag "{text[:200]}"', subject=text[:200])
    return name.canonical


def _lacking(digest: str) -> NotFound:
    return NotFound(f"the archive lacks blob {digest}", subject=digest)
