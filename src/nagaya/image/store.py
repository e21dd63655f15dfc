"""The image room's face: names to images, images to directories that a container can stand on.

Pulling is in pull.py, what `rmi` may take away in removal.py. All methods block and may be called
from any thread. A row of the catalog always names files that are there; files without a row are
rubbish, and `recover` removes them at start (docs/adr/0004-images.md).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from nagaya.errors import DataLoss, InvalidArgument, NagayaError, NotFound
from nagaya.image import builtin, fetching, load, login, making, removal, save, search, streams
from nagaya.image.auth import RegistryAuth
from nagaya.image.building import Builds
from nagaya.image.catalog import Catalog, ImageRow, NameRow
from nagaya.image.pull import Progress, Puller, Report
from nagaya.image.push import Pusher
from nagaya.image.removal import Removed, Use
from nagaya.image.shelf import Shelf
from nagaya.image.streams import check_cancel
from nagaya.image.transport import RegistryConfig
from nagaya.oci import digest as digests
from nagaya.oci import imageconfig, manifest, platform, reference
from nagaya.oci.imageconfig import ContainerDefaults, ImageConfig
from nagaya.oci.manifest import Descriptor
from nagaya.oci.platform import Platform
from nagaya.oci.reference import Reference

log = logging.getLogger(__name__)

_PARTIAL_LIFE = 24 * 3600.0  # seconds that an interrupted download waits to be taken up again
_CACHED = 256  # decoded configurations


class Image(msgspec.Struct, frozen=True):
    """An image that is here. id: digest of its configuration. names: canonical."""

    id: str
    manifest: str
    names: tuple[str, ...]
    document: ImageConfig
    size: int  # bytes of the files of all its layers
    stored: int  # nanoseconds since the epoch
    parent: str  # the image that it was committed from, "" when there is none any more

    @property
    def config(self) -> ContainerDefaults | None:
        """What a container gets from it."""
        return self.document.config


class Change(msgspec.Struct, frozen=True):
    """One step in an image's history, newest first. diff_id "" when it made no layer."""

    id: str
    created: str
    created_by: str
    comment: str
    size: int
    tags: tuple[str, ...]


class ImageStore:
    """Images below ROOT/content and ROOT/snapshots; rows in `catalog`."""

    def __init__(self, root: str, catalog: Catalog, config: RegistryConfig | None = None) -> None:
        self._shelf = shelf = Shelf(root, catalog, config or RegistryConfig())
        self._catalog = catalog
        self._content = shelf.content
        self._snapshots = shelf.snapshots
        self._puller = Puller(shelf.content, shelf.snapshots, catalog, shelf.unpacking, shelf.config)
        self._pusher = Pusher(shelf, self._puller.schemes)
        self.builds = Builds(shelf)
        self._mutex = shelf.mutex
        self._documents: dict[str, ImageConfig] = {}
        self._builtin_lock = threading.Lock()
        self._builtin: tuple[tuple[str, int, int], str] | None = None

    # pull

    def pull(
        self,
        name: str,
        wanted: str = "",
        auth: RegistryAuth | None = None,
        report: Report = lambda _: None,
        cancel: threading.Event | None = None,
    ) -> Image:
        """Fetch what `name` refers to ("busybox", "host:5000/a/b@sha256:...") and keep it under it.

        wanted: a platform, "" for this host's. auth None: what docker's own configuration says.
        report is called from several threads. Raises what `Puller.pull` raises, InvalidArgument for
        a bad name or platform, Cancelled. After Unavailable and Cancelled what arrived is kept for
        the next try; after any other error nothing stays.
        """
        asked = reference.parse_tagged(name)
        if wanted:
            platform.parse(wanted)
        if _is_builtin(asked):
            report(Progress(f"Pulling from {asked.path}", asked.tag))
            image = self.resolve(name)
            report(Progress(f"Digest: {image.manifest}"))
            report(_status(asked.familiar, newer=False))
            return image
        image_id, newer = self._pull(asked, wanted, auth, report, cancel)
        report(_status(asked.familiar, newer=newer))
        return self._image(image_id)

    def pull_all(
        self,
        name: str,
        wanted: str = "",
        auth: RegistryAuth | None = None,
        report: Report = lambda _: None,
        cancel: threading.Event | None = None,
    ) -> Sequence[Image]:
        """Fetch every tag of the repository `name`; else as `pull`. What came before an error stays."""
        repository = reference.parse(name)
        if wanted:
            platform.parse(wanted)
        if _is_builtin(repository.tagged()):
            return [self.pull(name, wanted, auth, report, cancel)]
        tags = self._puller.tags(repository, auth, lambda: check_cancel(cancel))
        pulled = [self._pull(repository.with_tag(tag), wanted, auth, report, cancel) for tag in tags]
        report(_status(repository.familiar_name, newer=any(newer for _, newer in pulled)))
        return [self._image(image_id) for image_id in dict.fromkeys(i for i, _ in pulled)]

    def _pull(
        self,
        asked: Reference,
        wanted: str,
        auth: RegistryAuth | None,
        report: Report,
        cancel: threading.Event | None,
    ) -> tuple[str, bool]:
        """(id of the image, does a name mean something new?)"""
        with self._shelf.work(f"a pull of {asked.familiar}") as lease:
            pulled = self._puller.pull(asked, wanted, auth, report, lambda: check_cancel(cancel), lease)
            names = [asked.with_digest(pulled.digest).canonical]
            if asked.tag and not asked.digest:
                names.append(asked.canonical)
            newer = self._shelf.put_image(pulled.id, pulled.manifest, pulled.diff_ids, pulled.blobs, names)
        report(Progress(f"Digest: {pulled.digest}"))
        return pulled.id, newer

    # lookup

    def resolve(self, text: str, wanted: str = "") -> Image:
        """The image that a user means by a name, a whole id, or the beginning of one.

        Raises InvalidArgument (not a reference), NotFound("No such image: x:tag").
        """
        image = self._image(self._identify(text))
        if wanted and not platform.fits(image.document.platform, platform.parse(wanted)):
            raise NotFound(
                f"image with reference {text} was found but does not match the specified platform: "
                f"wanted {platform.parse(wanted)}, actual: {image.document.platform}",
                subject=text,
            )
        return image

    def list(self) -> Sequence[Image]:
        """All images, the last to come first. One whose configuration is damaged is left out, with a
        line in the log: a pull repairs it, `remove` removes it."""
        found = []
        with self._mutex:  # no configuration may go while it is about to be read
            names = self._names()
            for row in self._catalog.images():
                try:
                    found.append(self._load(row, names.get(row.id, ())))
                except NagayaError as error:  # the others are none the worse
                    log.warning("image %s is not listed: %s", digests.short(row.id), error)
        return sorted(found, key=lambda image: image.stored, reverse=True)

    def identify(self, text: str) -> tuple[str, Mapping[str, str]]:
        """The id of the image that a user means, and its labels: none when its configuration is
        damaged. Raises InvalidArgument, NotFound as `resolve`."""
        image_id = self._identify(text)
        try:
            config = self._image(image_id).config
        except (DataLoss, NotFound):  # the document's, not the image's
            return image_id, {}
        return image_id, (config.labels if config else None) or {}

    def raw_config(self, image: Image) -> bytes:
        """The configuration document as it came. Raises DataLoss, NotFound."""
        if (passing := self.builds.passing.get(image.id)) is not None:
            return passing[1]
        return self._content.read(image.id, manifest.MAX_MANIFEST)

    def history(self, image: Image) -> Sequence[Change]:
        """How the image came to be, newest first."""
        sizes = [self._layer_size(d) for d in image.document.diff_ids]
        changes: list[Change] = []
        for entry in image.document.history or ():
            size = 0 if entry.empty_layer or not sizes else sizes.pop(0)
            changes.append(
                Change(
                    "<missing>", entry.created or "", entry.created_by or "", entry.comment or "", size, ()
                )
            )
        changes += [Change("<missing>", "", "", "", size, ()) for size in sizes]
        changes.reverse()
        if changes:
            tags = tuple(n for n in image.names if "@" not in n)
            changes[0] = msgspec.structs.replace(changes[0], id=image.id, tags=tags)
        return changes

    def login(self, address: str, auth: RegistryAuth) -> None:
        """Ask a registry whether it takes these credentials: see `login.try_credentials`."""
        login.try_credentials(address, auth, self._shelf.config, self._puller.schemes, lambda: None)

    def describe(self, name: str, auth: RegistryAuth | None = None) -> tuple[Descriptor, Sequence[Platform]]:
        """What a registry has under a name, and for which platforms: see `Puller.describe`."""
        return self._puller.describe(reference.parse_tagged(name), auth, lambda: None)

    def search(self, term: str, limit: int, auth: RegistryAuth | None = None) -> Sequence[search.Found]:
        """Repositories of a registry: see `search.search`."""
        return search.search(term, limit, auth, self._shelf.config, self._puller.schemes, lambda: None)

    # push

    def push(
        self,
        name: str,
        auth: RegistryAuth | None = None,
        report: Report = lambda _: None,
        cancel: threading.Event | None = None,
    ) -> None:
        """Push the tag that `name` names, without one all tags of its repository: see `Pusher.push`.
        report is called from several threads. Raises what that raises, InvalidArgument, Cancelled."""
        named = reference.parse(name)
        if _is_builtin(named.tagged()):
            self._assemble()
        self._pusher.push(named, auth, report, lambda: check_cancel(cancel))

    # archives

    def save(self, names: Sequence[str]) -> Iterator[bytes]:
        """A tar stream of the images of these names or ids; of a repository without a tag all its tags.

        Nothing happens before the first piece. Raises NotFound, InvalidArgument, and what
        `save.archive` does.
        """
        rows: list[ImageRow] = []
        try:
            with self._shelf.leases.hold() as lease:
                with self._mutex:
                    wanted: dict[str, dict[str, None]] = {}
                    for name in names:
                        for image_id, tags in self._meant(name):
                            wanted.setdefault(image_id, {}).update(dict.fromkeys(tags))
                    rows += [self._row(image_id) for image_id in wanted]
                    lease(blob for row in rows for blob in row.blobs)
                images = [save.Wanted(row.manifest, tuple(wanted[row.id])) for row in rows]
                yield from save.archive(self._content, images)
        finally:
            if any(self._catalog.image(row.id) is None for row in rows):  # removed, and we kept it
                self._shelf.collect()

    def _meant(self, name: str) -> Sequence[tuple[str, Sequence[str]]]:
        """What `docker save NAME` means: (id, canonical tags) of each image."""
        try:
            named = reference.parse(name)
        except InvalidArgument:
            return [(self._identify(name), ())]
        if not named.tag and not named.digest:
            if _is_builtin(named.tagged()):
                self._assemble()
            repository = f"{named.name}:"
            rows = [row for row in self._catalog.names() if row.name.startswith(repository)]
            return [(row.image, (row.name,)) for row in rows] or [(self._identify(name), ())]
        image_id = self._identify(name)
        tag = named.canonical if named.tag and not named.digest else ""
        return [(image_id, (tag,) if tag and self._shelf.image_of(tag) == image_id else ())]

    def load(
        self,
        pieces: Iterable[bytes],
        report: Report = lambda _: None,
        cancel: threading.Event | None = None,
    ) -> Sequence[Image]:
        """Take in an archive of images: see `load.load`. report is called from several threads."""
        loaded = load.load(self._shelf, pieces, report, lambda: check_cancel(cancel))
        return [self._image(image_id) for image_id in dict.fromkeys(loaded)]

    # new images

    def commit(
        self, snapshot_id: str, base: str, ours: frozenset[str], recipe: making.Recipe, name: str = ""
    ) -> Image:
        """An image of what a container has written above its image: see `making.commit`. name: without a
        digest, "" for none."""
        return self._image(
            making.commit(self._shelf, snapshot_id, base, ours, recipe, _new_name(name), lambda: None)
        )

    def write_layer(self, snapshot_id: str, ours: frozenset[str], path: str) -> None:
        """What a container has written, as an archive: see `making.written`."""
        making.written(self._shelf, snapshot_id, ours, path, lambda: None)

    def read_layer(self, snapshot_id: str, pieces: Iterable[bytes]) -> None:
        """Such an archive into a new container's writable layer: see `making.rewritten`."""
        making.rewritten(self._shelf, snapshot_id, pieces, lambda: None)

    def import_url(
        self,
        url: str,
        recipe: making.Recipe,
        name: str = "",
        report: Report = lambda _: None,
        cancel: threading.Event | None = None,
    ) -> Image:
        """`import_files` of what is at a URL: see `fetching.fetched`."""
        check = partial(check_cancel, cancel)
        with fetching.fetched(url, self._shelf.config, report, check) as pieces:
            return self.import_files(pieces, recipe, name, cancel)

    def import_files(
        self,
        pieces: Iterable[bytes],
        recipe: making.Recipe,
        name: str = "",
        cancel: threading.Event | None = None,
    ) -> Image:
        """An image of one layer, of an archive (plain, gzip, zstd): see `making.import_files`."""
        archive = streams.pieces(pieces)
        check = partial(check_cancel, cancel)
        return self._image(making.import_files(self._shelf, archive, recipe, _new_name(name), check))

    # change

    def tag(self, text: str, target: str) -> Image:
        """Give the image another name. Raises NotFound, InvalidArgument."""
        name = _new_name(target)
        image = self.resolve(text)
        self._catalog.put_name(NameRow(name, image.id))
        return self._image(image.id)

    def remove(self, text: str, uses: Sequence[Use], *, force: bool = False) -> Sequence[Removed]:
        """Take away a name, and with the last one the image with all that nothing else needs.

        uses: which containers use which image. Raises NotFound, FailedPrecondition as dockerd does.
        """
        image_id = self._identify(text)
        with self._mutex:
            row = self._row(image_id)  # its configuration is not asked: it may be damaged
            names = self._names().get(image_id, ())
            plan = removal.plan(image_id, names, _by_name(text, names), uses, force=force, asked=text)
            removed = [Removed(untagged=reference.parse(n).familiar) for n in plan.names]
            if not plan.image:
                self._catalog.delete_names(plan.names)
                return removed
            self._catalog.delete_image(image_id)
            self._documents.pop(image_id, None)
            removed.append(Removed(deleted=image_id))
        gone = self._shelf.collect()
        return removed + removal.layers_gone(row.layers, gone)

    def prune(
        self, uses: Sequence[Use], wanted: Callable[[Image], bool], *, dangling: bool
    ) -> tuple[Sequence[Removed], int]:
        """Remove the wanted ones of the images that no container uses (dangling: and that have no tag):
        what went, and how many bytes of files. One that is damaged counts as not wanted."""
        used = {use.image for use in uses}
        removed: list[Removed] = []
        rows: list[ImageRow] = []
        with self._mutex:
            for image in reversed(self.list()):
                tags = [n for n in image.names if not reference.parse(n).digest]
                if image.id in used or (dangling and tags) or not wanted(image):
                    continue
                removed += [Removed(untagged=reference.parse(n).familiar) for n in sorted(image.names)]
                removed.append(Removed(deleted=image.id))
                rows.append(self._row(image.id))
                self._catalog.delete_image(image.id)
                self._documents.pop(image.id, None)
        gone = self._shelf.collect()
        for row in rows:
            removed += removal.layers_gone(row.layers, gone)
        return list(dict.fromkeys(removed)), sum(gone.values())

    def layers(self) -> Sequence[tuple[Image, Sequence[tuple[str, int]]]]:
        """All images, each with its layers, bottom first: diff id, bytes of its files."""
        return [(image, [(d, self._layer_size(d)) for d in image.document.diff_ids]) for image in self.list()]

    def usage_of_layers(self) -> tuple[int, Mapping[str, int]]:
        """(bytes of the files of all layers, each once; of each image: those of layers that others have,
        too)."""
        with self._mutex:
            rows = self._catalog.images()
            sizes = {row.diff_id: row.size for row in self._catalog.layers()}
        users = Counter(diff_id for row in rows for diff_id in set(row.layers))
        shared = {row.id: sum(sizes.get(d, 0) for d in set(row.layers) if users[d] > 1) for row in rows}
        return sum(sizes.values()), shared

    # containers

    def prepare(self, snapshot_id: str, image_id: str) -> dict[str, Any]:
        """A writable layer above the image: see `Snapshots.prepare`. Raises NotFound when the image
        has gone meanwhile."""
        with self._mutex:
            return self._snapshots.prepare(snapshot_id, self._row(image_id).layers)

    def files_of(self, image_id: str) -> Sequence[str]:
        """The directories of the image's layers, the top one first. Raises NotFound, DataLoss."""
        with self._mutex:
            return self._snapshots.lower(self._row(image_id).layers)

    def snapshot(self, snapshot_id: str) -> dict[str, Any]:
        """What `prepare` answered. Raises NotFound, DataLoss."""
        return self._snapshots.rootfs(snapshot_id)

    def remove_snapshot(self, snapshot_id: str) -> None:
        """Remove a container's writable layer, and layers that only it still needed. An unknown id
        does nothing."""
        self._snapshots.remove(snapshot_id)
        if self._shelf.orphans:
            self._shelf.collect()

    def usage(self, snapshot_id: str) -> int:
        """Bytes that the container has written. Raises NotFound."""
        return self._snapshots.usage(snapshot_id)

    def written(self, snapshot_id: str) -> tuple[int, int]:
        """(bytes, files and directories) that the container has written. Raises NotFound."""
        return self._snapshots.written(snapshot_id)

    # rubbish

    def recover(self) -> None:
        """Remove what a crash left: call it once, before anything else is asked."""
        self._shelf.collect()
        rows = self._catalog.layers()
        there = self._snapshots.sweep_layers({row.directory for row in rows})
        for row in rows:
            if row.directory not in there:  # somebody tidied up: the next pull brings it again
                self._catalog.delete_layer(row.diff_id)
        known = {row.id for row in self._catalog.snapshots()}
        for name in self._snapshots.names():
            if name not in known:
                self._snapshots.drop(name)
        self._content.sweep_ingest(time.time() - _PARTIAL_LIFE)

    # the inside

    def _find(self, text: str) -> str | None:
        if digests.is_digest(text):
            return text if text in self.builds.passing or self._catalog.image(text) else None
        try:
            named = reference.parse_tagged(text)
        except InvalidArgument:
            if not _is_hex(text):
                raise
        else:
            if _is_builtin(named):
                self._assemble()
            if named.digest:
                named = named.with_digest(named.digest)
            if (found := self._shelf.image_of(named.canonical)) is not None:
                return found
        short = text.removeprefix("sha256:")
        if not _is_hex(short):
            return None
        ids = {*(r.id for r in self._catalog.images()), *self.builds.passing}
        matches = [image_id for image_id in ids if digests.parse(image_id)[1].startswith(short)]
        if len(matches) > 1:  # as in dockerd no image, so that `run` may yet pull one of that name
            raise NotFound(
                f"No such image: {_shown(text)} (as an id it is ambiguous: {len(matches)} begin so)",
                subject=text,
            )
        return matches[0] if matches else None

    def _identify(self, text: str) -> str:
        image_id = self._find(text)
        if image_id is None:
            raise NotFound(f"No such image: {_shown(text)}", subject=text)
        return image_id

    def _row(self, image_id: str) -> ImageRow:
        row = self._catalog.image(image_id)
        if row is None and (passing := self.builds.passing.get(image_id)) is not None:
            return passing[0]
        if row is None:
            raise NotFound(f"No such image: {image_id}", subject=image_id)
        return row

    def _image(self, image_id: str) -> Image:
        with self._mutex:
            return self._load(self._row(image_id), self._names().get(image_id, ()))

    def _names(self) -> Mapping[str, Sequence[str]]:
        found: dict[str, list[str]] = {}
        for row in self._catalog.names():
            found.setdefault(row.image, []).append(row.name)
        return found

    def _load(self, row: ImageRow, names: Sequence[str]) -> Image:
        document = self._documents.get(row.id)
        if document is None:
            passing = self.builds.passing.get(row.id)
            data = passing[1] if passing else self._content.read(row.id, manifest.MAX_MANIFEST)
            document = imageconfig.decode(data)
            if len(self._documents) >= _CACHED:
                self._documents.clear()
            self._documents[row.id] = document
        size = sum(self._layer_size(d) for d in row.layers)
        parent = row.parent if row.parent and self._catalog.image(row.parent) is not None else ""
        return Image(row.id, row.manifest, tuple(names), document, size, row.stored, parent)

    def _layer_size(self, diff_id: str) -> int:
        row = self._snapshots.layer(diff_id)
        return row.size if row else 0

    def _assemble(self) -> None:
        """Make the built-in image when it is not here, or busybox was upgraded since."""
        with self._builtin_lock:
            there = self._shelf.image_of(f"{builtin.NAME}:latest")
            try:
                stamp = builtin.stamp()
            except NagayaError:
                if there is None:
                    raise
                return
            if self._builtin == (stamp, there):
                return
            built = builtin.build()
            config, top = digests.of(built.config), digests.of(built.manifest)
            layer = digests.of(built.layer)
            if there != config:
                self._keep(built, config, top, layer)
            self._builtin = (stamp, config)

    def _keep(self, built: builtin.Built, config: str, top: str, layer: str) -> None:
        with self._shelf.work("making the built-in image") as lease:
            lease([config, top, layer])
            for data, digest in ((built.layer, layer), (built.config, config), (built.manifest, top)):
                self._content.put(data, digest)
            self._shelf.unpacking.stored(layer, layer, lambda: None)
            names = [f"{builtin.NAME}:latest", f"{builtin.NAME}@{top}"]
            self._shelf.put_image(config, top, [layer], [config, top, layer], names)


def _new_name(text: str) -> str:
    """The canonical form of a name that an image is to get. Raises InvalidArgument."""
    if not text:
        return ""
    name = reference.parse_tagged(text)
    if name.digest:
        raise InvalidArgument("refusing to create a tag with a digest reference", subject=text)
    return name.canonical


def _is_builtin(named: Reference) -> bool:
    return named.canonical == f"{builtin.NAME}:latest"


def _status(name: str, *, newer: bool) -> Progress:
    what = "Downloaded newer image" if newer else "Image is up to date"
    return Progress(f"Status: {what} for {name}")


def _is_hex(text: str) -> bool:
    return 0 < len(text) <= 64 and not set(text) - set("0123456789abcdef")


def _by_name(text: str, names: Sequence[str]) -> str:
    """The canonical name by which a user means the image, "" when it was an id."""
    try:
        named = reference.parse_tagged(text)
    except InvalidArgument:
        return ""
    if named.digest:
        named = named.with_digest(named.digest)
    return named.canonical if named.canonical in names else ""


def _shown(text: str) -> str:
    if len(text) == 64 and _is_hex(text):
        return f"sha256:{text}"
    try:
        return reference.parse_tagged(text).familiar
    except InvalidArgument:
        return text
