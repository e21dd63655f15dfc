"""One pull: a reference becomes blobs and unpacked layers, each verified and on the disk.

Every layer is unpacked while it still downloads, all layers at once within the configured bounds.
Pulls that want the same blob join: one of them fetches, all see its progress. What arrived of a
blob stays after a failure and is taken up again by the next try.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import msgspec

from nagaya.errors import (
    Cancelled,
    DataLoss,
    InternalError,
    InvalidArgument,
    NagayaError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from nagaya.image.auth import RegistryAuth
from nagaya.image.catalog import Catalog
from nagaya.image.content import ContentStore, Ingest
from nagaya.image.jobs import together, watched
from nagaya.image.registry import Fetched, Registry
from nagaya.image.session import Session
from nagaya.image.snapshots import Snapshots
from nagaya.image.transport import RegistryConfig, Transport
from nagaya.image.unpacking import POLL, Unpacking, slot
from nagaya.oci import digest as digests
from nagaya.oci import imageconfig, manifest, platform
from nagaya.oci.manifest import Descriptor, Index, Manifest
from nagaya.oci.platform import Platform
from nagaya.oci.reference import Reference

_REPORT = 0.1  # seconds between two progress reports of one layer at least
_PERSONAL = (Cancelled, Unauthenticated, PermissionDenied)  # who joined may fare better


class Progress(msgspec.Struct, frozen=True):
    """One report in dockerd's words. layer: short digest, or what "Pulling from" is about, "" for the
    image; sizes in bytes."""

    status: str
    layer: str = ""
    current: int = 0
    total: int = 0
    stream: str = ""  # instead of a status: text for people, with its line end
    aux: dict[str, Any] | None = None  # or a document for programs


Report = Callable[[Progress], None]


class Pulled(msgspec.Struct, frozen=True):
    """What a pull brought. digest: of what the reference named (an index or a manifest)."""

    digest: str
    id: str
    manifest: str
    diff_ids: tuple[str, ...]
    blobs: tuple[str, ...]


class _Flight:
    """A layer being fetched by one pull; others listen. source: what its failure is the fault of."""

    def __init__(self, source: tuple[str, str]) -> None:
        self.source = source
        self.ended = threading.Event()
        self.error: NagayaError | None = None
        self.listeners: list[Report] = []


class Puller:
    """Fetches into a content store and a snapshot directory. Thread-safe.

    lease is told every digest and diff id before it is looked for, so that collecting garbage
    leaves them alone while the pull lasts.
    """

    def __init__(
        self,
        content: ContentStore,
        snapshots: Snapshots,
        catalog: Catalog,
        unpacking: Unpacking,
        config: RegistryConfig,
    ) -> None:
        self._content = content
        self._snapshots = snapshots
        self._catalog = catalog
        self._unpacking = unpacking
        self._config = config
        self.schemes: dict[str, str] = {}
        self._mutex = threading.Lock()
        self._flights: dict[str, _Flight] = {}
        self._downloads = threading.Semaphore(config.downloads)

    def pull(
        self,
        reference: Reference,
        wanted: str,
        auth: RegistryAuth | None,
        report: Report,
        check: Callable[[], None],
        lease: Callable[[Iterable[str]], None],
    ) -> Pulled:
        """Fetch everything that `reference` names for the platform `wanted` ("": this host's).

        check may raise to stop. Raises what `Registry` raises, InvalidArgument and Unimplemented for
        documents that are no images, NotFound when no image fits, DataLoss for wrong content.
        """
        transport = Transport(self._config, self.schemes)
        registry = Registry(Session(reference, self._config, transport, auth, check))
        with watched(check, transport.cut):
            return self._pull(registry, reference, wanted, report, check, lease)

    def _pull(
        self,
        registry: Registry,
        reference: Reference,
        wanted: str,
        report: Report,
        check: Callable[[], None],
        lease: Callable[[Iterable[str]], None],
    ) -> Pulled:
        top = registry.manifest(reference.target)
        about = reference.with_digest(reference.digest).canonical if reference.digest else reference.tag
        report(Progress(f"Pulling from {reference.path}", about))
        fetched, image = self._choose(registry, top, reference, wanted)
        documents = {top.digest: top.data, fetched.digest: fetched.data}
        lease([*documents, image.config.digest, *(layer.digest for layer in image.layers)])
        config = imageconfig.decode(self._config_document(registry, image.config, check))
        diff_ids = config.diff_ids
        if len(diff_ids) != len(image.layers):
            raise InvalidArgument(
                f"the manifest has {len(image.layers)} layers, its configuration {len(diff_ids)}",
                subject="config.rootfs.diff_ids",
            )
        if wanted and not platform.fits(config.platform, platform.parse(wanted)):
            report(Progress(_other_platform(reference, wanted, config.platform)))
        lease(diff_ids)
        wanted_layers = list(zip(image.layers, diff_ids, strict=True))
        # of an image that is here dockerd tells no layers
        known = self._catalog.image(image.config.digest) is not None and all(
            self._here(d.digest, diff_id) for d, diff_id in wanted_layers
        )
        if not known:
            self._layers(registry, wanted_layers, report, check)
        for digest, data in documents.items():
            self._content.put(data, digest)
        blobs = dict.fromkeys((*documents, image.config.digest, *(x.digest for x in image.layers)))
        return Pulled(top.digest, image.config.digest, fetched.digest, diff_ids, tuple(blobs))

    def tags(
        self, repository: Reference, auth: RegistryAuth | None, check: Callable[[], None]
    ) -> Sequence[str]:
        """All tags of the repository. Raises what `Registry.tags` raises."""
        transport = Transport(self._config, self.schemes)
        with watched(check, transport.cut):
            return Registry(Session(repository, self._config, transport, auth, check)).tags()

    def describe(
        self, reference: Reference, auth: RegistryAuth | None, check: Callable[[], None]
    ) -> tuple[Descriptor, Sequence[Platform]]:
        """What the registry has under that name, and for which platforms. Raises what `Registry` raises,
        InvalidArgument and Unimplemented for documents that are no images."""
        transport = Transport(self._config, self.schemes)
        registry = Registry(Session(reference, self._config, transport, auth, check))
        with watched(check, transport.cut):
            top = registry.manifest(reference.target)
            document = manifest.decode(top.data, top.media_type)
            if isinstance(document, Index):
                platforms = [entry.platform for entry in document.manifests if entry.platform]
            else:
                platforms = [imageconfig.decode(_whole(registry, document.config, check)).platform]
        return Descriptor(top.digest, len(top.data), document.media_type), platforms

    # documents

    def _choose(
        self, registry: Registry, top: Fetched, reference: Reference, wanted: str
    ) -> tuple[Fetched, Manifest]:
        document = manifest.decode(top.data, top.media_type)
        if isinstance(document, Manifest):
            return top, document
        target = platform.parse(wanted) if wanted else platform.host()
        entry = _pick(document, target)
        if entry is None:
            raise NotFound(
                f"no matching manifest for {target} in the manifest list entries", subject=reference.familiar
            )
        chosen = registry.manifest(entry.digest)
        document = manifest.decode(chosen.data, entry.media_type or chosen.media_type)
        if isinstance(document, Index):
            raise InvalidArgument("an index within an index is not supported", subject="manifest")
        return chosen, document

    def _config_document(
        self, registry: Registry, descriptor: Descriptor, check: Callable[[], None]
    ) -> bytes:
        if self._content.has(descriptor.digest):
            try:
                return self._content.read(descriptor.digest, manifest.MAX_MANIFEST)
            except DataLoss:
                self._content.delete(descriptor.digest)  # damaged here: this pull repairs it
        data = _whole(registry, descriptor, check)
        self._content.put(data, descriptor.digest)
        return data

    # layers

    def _layers(
        self,
        registry: Registry,
        wanted: list[tuple[Descriptor, str]],
        report: Report,
        check: Callable[[], None],
    ) -> None:
        missing = []
        # the same layer twice is one piece of work
        for descriptor, diff_id in {(d.digest, diff_id): (d, diff_id) for d, diff_id in wanted}.values():
            short = digests.short(descriptor.digest)
            if self._here(descriptor.digest, diff_id):
                report(Progress("Already exists", short))
            else:
                report(Progress("Pulling fs layer", short))
                missing.append((descriptor, diff_id))
        together(
            [partial(self._layer, registry, d, i, report) for d, i in missing],
            self._config.downloads + self._config.unpacks,
            "nagaya-pull",
            check,
        )

    def _here(self, digest: str, diff_id: str) -> bool:
        return self._content.has(digest) and self._snapshots.has_layer(diff_id)

    def _layer(
        self,
        registry: Registry,
        descriptor: Descriptor,
        diff_id: str,
        report: Report,
        check: Callable[[], None],
    ) -> None:
        """Have the layer, by our own work or that of a pull which is at it."""
        digest = descriptor.digest
        source = (registry.name, diff_id)
        while True:
            with self._mutex:
                if self._here(digest, diff_id):
                    break
                flight = self._flights.get(digest)
                mine = flight is None
                if flight is None:
                    flight = self._flights[digest] = _Flight(source)
                flight.listeners.append(report)
            if not mine:
                while not flight.ended.wait(POLL):
                    check()
                error = flight.error
                if error is not None and flight.source == source and not isinstance(error, _PERSONAL):
                    raise error
                continue  # it is here now, or another registry's lie is not ours: look again
            try:
                self._fetch(registry, descriptor, diff_id, flight, check)
            except NagayaError as error:
                flight.error = error
                raise
            except BaseException:
                flight.error = Cancelled("the pull was interrupted")
                raise
            finally:
                with self._mutex:
                    del self._flights[digest]
                flight.ended.set()
        report(Progress("Pull complete", digests.short(digest)))

    def _fetch(
        self,
        registry: Registry,
        descriptor: Descriptor,
        diff_id: str,
        flight: _Flight,
        check: Callable[[], None],
    ) -> None:
        short = digests.short(descriptor.digest)

        def report(status: str, current: int = 0) -> None:
            for listener in tuple(flight.listeners):
                listener(Progress(status, short, current, descriptor.size if current else 0))

        if self._content.has(descriptor.digest):
            try:
                self._unpacking.layer(self._content.pieces(descriptor.digest), diff_id, check)
                return
            except (Cancelled, ResourceExhausted):
                raise
            except (NagayaError, OSError):
                if self._content.intact(descriptor.digest):
                    raise
                self._content.delete(descriptor.digest)  # damaged here: this pull repairs it
        while True:
            mirrored = registry.mirrored
            try:
                self._fetch_once(registry, descriptor, diff_id, report, check)
                return
            except _StaleError:
                pass  # what an earlier try had left was not the blob's: it is gone now
            except (DataLoss, Unavailable):
                if not mirrored or self._content.has(descriptor.digest):
                    raise
                registry.distrust_mirrors()

    def _fetch_once(
        self,
        registry: Registry,
        descriptor: Descriptor,
        diff_id: str,
        report: Callable[..., None],
        check: Callable[[], None],
    ) -> None:
        ingest = self._content.ingest(descriptor.digest, descriptor.size)
        failed, complete = threading.Event(), threading.Event()

        def checked() -> None:
            check()
            if failed.is_set():
                raise Cancelled("unpacking failed")

        def download() -> None:
            # whoever follows the blob raises what is told here
            try:
                with slot(self._downloads, checked):
                    self._download(registry, descriptor, ingest, report, checked)
                complete.set()
            except NagayaError as error:
                ingest.fail(error)
            except Exception as error:
                ingest.fail(InternalError(f"{type(error).__name__}: {error}", step="download layer"))

        thread = threading.Thread(target=download, name="nagaya-download")
        thread.start()
        try:
            if not self._snapshots.has_layer(diff_id):
                self._unpacking.layer(_told(ingest.follow(check), complete, report), diff_id, check)
            else:  # only the blob is missing
                for _ in ingest.follow(check):
                    pass
        except BaseException:
            failed.set()
            raise
        finally:
            thread.join()
            ingest.close()

    def _download(
        self,
        registry: Registry,
        descriptor: Descriptor,
        ingest: Ingest,
        report: Callable[..., None],
        check: Callable[[], None],
    ) -> None:
        told = 0.0
        left = self._config.retries
        while ingest.offset < descriptor.size:
            before = ingest.offset
            try:
                for piece in registry.blob(descriptor, ingest.offset):
                    check()
                    ingest.write(piece)
                    if time.monotonic() >= told:
                        told = time.monotonic() + _REPORT
                        report("Downloading", ingest.offset)
                if ingest.offset < descriptor.size:
                    raise Unavailable(
                        f"the registry ended the blob after {ingest.offset} of {descriptor.size} bytes",
                        subject=descriptor.digest,
                        step="download layer",
                    )
            except Unavailable:
                left = self._config.retries if ingest.offset > before else left - 1
                if left < 0:
                    raise
                self._pause(check)
        report("Verifying Checksum")
        try:
            ingest.commit()
        except DataLoss as error:
            if ingest.resumed:
                raise _StaleError(str(error)) from None
            raise
        report("Download complete")

    def _pause(self, check: Callable[[], None]) -> None:
        end = time.monotonic() + self._config.backoff
        while time.monotonic() < end:
            check()
            time.sleep(min(POLL, self._config.backoff))


class _StaleError(DataLoss):
    """A resumed blob turned out wrong; another try starts from nothing."""


def _whole(registry: Registry, descriptor: Descriptor, check: Callable[[], None]) -> bytes:
    """A configuration document, of the size that its descriptor says."""
    data = b""
    for piece in registry.blob(descriptor):
        check()
        data += piece
        if len(data) > descriptor.size:
            break
    if len(data) != descriptor.size:
        raise DataLoss(
            f"the image configuration has {'more than' if len(data) > descriptor.size else 'only'} "
            f"{min(len(data), descriptor.size)} bytes, its descriptor says {descriptor.size}",
            subject=descriptor.digest,
        )
    if not digests.matches(data, descriptor.digest):
        raise DataLoss("content does not match its digest", subject=descriptor.digest)
    return data


def _told(pieces: Iterator[bytes], complete: threading.Event, report: Callable[..., None]) -> Iterator[bytes]:
    """The same pieces; "Extracting" is told once the blob is complete: one line, one state, as dockerd."""
    done, told = 0, 0.0
    for piece in pieces:
        yield piece
        done += len(piece)
        if complete.is_set() and time.monotonic() >= told:
            told = time.monotonic() + _REPORT
            report("Extracting", done)


def _pick(index: Index, target: Platform) -> Descriptor | None:
    """The entry that fits best; attestations and the like (artifacts) never do."""
    entries = [e for e in index.manifests if not manifest.is_artifact(e)]
    chosen = platform.choose([e.platform for e in entries], target)
    return entries[chosen] if chosen >= 0 else None


def _other_platform(reference: Reference, wanted: str, actual: Platform) -> str:
    """The image is kept, as by dockerd, and whoever pulled it is warned in its words."""
    return (
        f"WARNING: Pulled image with specified platform ({platform.parse(wanted)}), but the resulting "
        f"image's configured platform ({actual}) does not match.\nThis is most likely caused by a bug in the "
        f"build system that created the fetched image ({reference.familiar}).\nPlease notify the image "
        "author to correct the configuration."
    )
