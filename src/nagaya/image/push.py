"""One push: images that are here become a repository's tags, byte for byte as they are stored.

Of an image that came by an index the whole index is pushed when all its images are here, else the
image alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import msgspec

from nagaya.errors import DataLoss, InvalidArgument, NagayaError, NotFound
from nagaya.image.auth import RegistryAuth
from nagaya.image.catalog import ImageRow, NameRow
from nagaya.image.complaints import refused_push
from nagaya.image.jobs import Check, together, watched
from nagaya.image.pull import Progress, Report
from nagaya.image.session import Session
from nagaya.image.shelf import Shelf
from nagaya.image.transport import Transport
from nagaya.image.unpacking import slot
from nagaya.image.upload import Seen, Uploads
from nagaya.oci import digest as digests
from nagaya.oci import imageconfig, reference
from nagaya.oci import manifest as manifests
from nagaya.oci.manifest import Descriptor, Index, Manifest
from nagaya.oci.reference import Reference

_REPORT = 0.1  # seconds between two progress reports of one layer at least
_SOURCES = 3  # repositories that are asked for a mount of a blob


class _Part(msgspec.Struct, frozen=True):
    """A manifest that is here with all its blobs. shown: how its layers are called in reports."""

    data: bytes
    digest: str
    manifest: Manifest
    shown: tuple[str, ...]

    @property
    def blobs(self) -> tuple[str, ...]:
        """The digests of all that it is."""
        return self.digest, self.manifest.config.digest, *(x.digest for x in self.manifest.layers)


class _Tagged(msgspec.Struct, frozen=True):
    """What becomes a tag: manifests, and what the tag names, the last of them or their index."""

    tag: str
    image: str
    parts: tuple[_Part, ...]
    top: bytes
    media_type: str


class Pusher:
    """Pushes what a shelf has. Thread-safe."""

    def __init__(self, shelf: Shelf, schemes: dict[str, str]) -> None:
        self._shelf = shelf
        self._schemes = schemes
        self._uploads = threading.Semaphore(shelf.config.uploads)

    def push(self, repository: Reference, auth: RegistryAuth | None, report: Report, check: Check) -> None:
        """Push the reference's tag; without one all tags of its repository that are here.

        Raises InvalidArgument (a digest), NotFound (no such tag here), DataLoss (it is damaged), and
        what `Uploads` raises. What is up stays there.
        """
        if repository.digest:
            raise InvalidArgument("cannot push a digest reference", subject=repository.familiar)
        shelf = self._shelf
        report(Progress(f"The push refers to repository [{repository.name}]"))
        with shelf.leases.hold() as lease:
            with shelf.mutex:
                wanted = [self._tagged(tag, row) for tag, row in self._rows(repository)]
                lease(blob for tagged in wanted for part in tagged.parts for blob in part.blobs)
                sources = self._sources(repository)
            scopes = [f"repository:{repository.path}:pull,push"]
            scopes += [f"repository:{path}:pull" for path in sorted({p for s in sources.values() for p in s})]
            transport = Transport(shelf.config, self._schemes)
            session = Session(repository, shelf.config, transport, auth, check, scopes, refused_push)
            with watched(check, transport.cut):
                for tagged in wanted:
                    self._push(Uploads(session, shelf.config), tagged, sources, report, check)
                    name = repository.with_digest(digests.of(tagged.top)).canonical
                    try:
                        shelf.catalog.put_name(NameRow(name, tagged.image))
                    except NotFound:
                        pass  # it was removed meanwhile

    def _rows(self, repository: Reference) -> Iterator[tuple[str, ImageRow]]:
        prefix = f"{repository.name}:"
        names = [n for n in self._shelf.catalog.names() if n.name.startswith(prefix)]
        found = {n.name.removeprefix(prefix): n.image for n in names}
        if not found:
            raise NotFound(
                f"An image does not exist locally with the tag: {repository.familiar_name}",
                subject=repository.familiar,
            )
        for tag in (repository.tag,) if repository.tag else sorted(found):
            row = self._shelf.catalog.image(found.get(tag, ""))
            if row is None:
                raise NotFound(f"tag does not exist: {repository.familiar_name}:{tag}", subject=tag)
            yield tag, row

    def _sources(self, repository: Reference) -> dict[str, tuple[str, ...]]:
        """The registry's other repositories that images here came from or went to, by blob."""
        paths: dict[str, list[str]] = {}
        for row in self._shelf.catalog.names():
            named = reference.parse(row.name)
            if named.digest and named.domain == repository.domain and named.path != repository.path:
                paths.setdefault(row.image, []).append(named.path)
        found: dict[str, dict[str, None]] = {}
        for image, others in paths.items():
            image_row = self._shelf.catalog.image(image)
            for blob in image_row.blobs if image_row else ():
                found.setdefault(blob, {}).update(dict.fromkeys(others))
        return {blob: tuple(others)[:_SOURCES] for blob, others in found.items()}

    # what is pushed

    def _tagged(self, tag: str, row: ImageRow) -> _Tagged:
        top = row.blobs[0]
        if top != row.manifest:
            try:
                data = self._shelf.content.read(top, manifests.MAX_MANIFEST)
                index = manifests.decode(data)
                if isinstance(index, Index):
                    parts = tuple(self._part(entry.digest) for entry in index.manifests)
                    return _Tagged(tag, row.id, parts, data, index.media_type)
            except NagayaError:
                pass  # not all of it is here, or is an image
        part = self._part(row.manifest)
        return _Tagged(tag, row.id, (part,), part.data, part.manifest.media_type)

    def _part(self, digest: str) -> _Part:
        content = self._shelf.content
        data = content.read(digest, manifests.MAX_MANIFEST)
        document = manifests.decode_image(data)
        config = imageconfig.decode(content.read(document.config.digest, manifests.MAX_MANIFEST))
        for layer in document.layers:
            if not content.has(layer.digest):
                raise DataLoss(f"layer {layer.digest} is missing: pull the image again", subject=layer.digest)
        whole = len(config.diff_ids) == len(document.layers)
        shown = config.diff_ids if whole else tuple(layer.digest for layer in document.layers)
        return _Part(data, digest, document, tuple(map(digests.short, shown)))

    # pushing

    def _push(
        self,
        uploads: Uploads,
        tagged: _Tagged,
        sources: Mapping[str, Sequence[str]],
        report: Report,
        check: Check,
    ) -> None:
        layers: dict[str, tuple[Descriptor, str]] = {}
        configs: dict[str, Descriptor] = {}
        for part in tagged.parts:
            configs[part.manifest.config.digest] = part.manifest.config
            for layer, shown in zip(part.manifest.layers, part.shown, strict=True):
                layers[layer.digest] = (layer, shown)
        for _, shown in reversed(layers.values()):
            report(Progress("Preparing", shown))
        together(
            [
                partial(self._layer, uploads, layer, shown, sources.get(layer.digest, ()), report)
                for layer, shown in reversed(layers.values())
            ]
            + [partial(self._config, uploads, config) for config in configs.values()],
            self._shelf.config.uploads,
            "nagaya-push",
            check,
        )
        digest = digests.of(tagged.top)
        for part in tagged.parts:
            if part.digest != digest:
                uploads.manifest(part.data, part.manifest.media_type, part.digest, part.digest)
        uploads.manifest(tagged.top, tagged.media_type, tagged.tag, digest)
        report(Progress(f"{tagged.tag}: digest: {digest} size: {len(tagged.top)}"))
        report(Progress("", aux={"Tag": tagged.tag, "Digest": digest, "Size": len(tagged.top)}))

    def _layer(
        self,
        uploads: Uploads,
        layer: Descriptor,
        shown: str,
        sources: Sequence[str],
        report: Report,
        check: Check,
    ) -> None:
        if manifests.is_foreign(layer):
            report(Progress("Skipped foreign layer", shown))
            return
        told = 0.0

        def seen(count: int) -> None:
            nonlocal told
            check()
            if time.monotonic() >= told:
                told = time.monotonic() + _REPORT
                report(Progress("Pushing", shown, count, layer.size))

        with slot(self._uploads, check):
            report(Progress(self._blob(uploads, layer, sources, seen), shown))

    def _config(self, uploads: Uploads, config: Descriptor, check: Check) -> None:
        with slot(self._uploads, check):
            self._blob(uploads, config, (), lambda _: None)

    def _blob(self, uploads: Uploads, descriptor: Descriptor, sources: Sequence[str], seen: Seen) -> str:
        content = self._shelf.content
        try:
            return uploads.blob(descriptor, partial(content.pieces, descriptor.digest), sources, seen)
        except DataLoss:
            if not content.intact(descriptor.digest):
                raise DataLoss(
                    "the stored content does not match its digest: pull it again", subject=descriptor.digest
                ) from None
            raise
