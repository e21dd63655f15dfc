"""What builds need of the image room: steps that become layers, and images made of them.

A build is quick because it waits for the disk once. Each step's writable layer becomes the unpacked layer
by a rename, and its archive is written once, compressed and hashed as it passes. Until `Bench.finish` no row
names any of it: a crash of the daemon loses what a build under way has made, and `recover` removes it. Then
everything is synced together and gets its rows in one transaction, the steps' among them, by which a later
build finds what it need not do again.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import msgspec

from nagaya.errors import NotFound
from nagaya.image import diff, making, members, trees
from nagaya.image.catalog import ImageRow, LayerRow, NameRow, StepRow
from nagaya.image.jobs import Check
from nagaya.image.shelf import Shelf
from nagaya.image.streams import limited
from nagaya.oci import digest as digests
from nagaya.oci import imageconfig
from nagaya.oci import manifest as manifests
from nagaya.oci.manifest import Descriptor, Manifest

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SCRATCH = "build-"
_OURS = manifests.layer_type("gzip")  # until the image that a layer goes into is known


class Layer(msgspec.Struct, frozen=True):
    """A layer of an image: its files, and its blob as the manifest has it."""

    diff_id: str
    blob: Descriptor


class Base(msgspec.Struct, frozen=True):
    """What FROM brings: the configuration document, the layers (bottom first), and the manifest's kind."""

    id: str
    document: Mapping[str, Any]
    layers: tuple[Layer, ...]
    media_type: str = manifests.OCI_MANIFEST


class Record(msgspec.Struct, frozen=True):
    """A step as `docker system df` shows it. size: bytes of its layer's files, shared: an image has them."""

    row: StepRow
    size: int
    shared: bool
    in_use: bool


class Builds:
    """All builds of one store, and what they remember. Thread-safe."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self.passing: dict[str, tuple[ImageRow, bytes]] = {}
        """Images between two steps: containers are made of them, and no list shows them."""
        self._owners: Counter[str] = Counter()  # of layers and images that are not finished

    def open(self) -> Bench:
        """A place for one build, to be closed."""
        return Bench(self._shelf, self, self._owners)

    def lower(self, diff_ids: Sequence[str]) -> list[str]:
        """The directories of these layers (bottom first), the top one first. Raises DataLoss."""
        return self._shelf.snapshots.lower(diff_ids)

    def records(self) -> list[Record]:
        """All steps, by key."""
        shelf = self._shelf
        with shelf.mutex:
            of_images = {d for row in shelf.catalog.images() for d in row.layers}
            sizes = {row.diff_id: row.size for row in shelf.catalog.layers()}
            leased = shelf.leases.held()
            return [
                Record(
                    row,
                    sizes.get(row.diff_id, 0),
                    row.diff_id in of_images,
                    row.diff_id in leased or row.key in leased,
                )
                for row in shelf.catalog.steps()
            ]

    def prune(self, chosen: Callable[[Sequence[Record]], Iterable[Record]]) -> tuple[list[str], int]:
        """Forget the chosen ones of the records, no matter which builds use them: (keys, bytes of files that
        went). chosen is asked once."""
        with self._shelf.mutex:
            gone = [record.row.key for record in chosen(self.records())]
            self._shelf.catalog.delete_steps(gone)
        return gone, sum(self._shelf.collect().values())


class Bench:
    """One build's place in the store. Methods block and may be called from several threads."""

    def __init__(self, shelf: Shelf, builds: Builds, owners: Counter[str]) -> None:
        self._shelf = shelf
        self._builds = builds
        self._owners = owners
        self._held = ExitStack()
        self._lease = self._held.enter_context(shelf.leases.hold())
        self._spool = self._held.enter_context(shelf.content.spool())
        self._mutex = threading.Lock()
        self._fresh: set[str] = set()  # diff ids and image ids of which we are an owner
        self._spooled: dict[str, str] = {}  # blob -> file
        self._finished = False

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take away what is not finished."""
        unwanted: list[LayerRow] = []
        with self._shelf.mutex:
            for name in self._fresh:
                self._owners[name] -= 1
                if self._owners[name] > 0:
                    continue
                del self._owners[name]
                self._builds.passing.pop(name, None)
                if (row := self._shelf.snapshots.take_fresh(name)) is not None:
                    unwanted.append(row)
            self._fresh.clear()
        for row in unwanted:
            self._shelf.snapshots.drop_layer(row.directory)
        self._held.close()

    # what is there

    def base(self, image_id: str) -> Base:
        """An image to stand on; it stays until the end. Raises NotFound, DataLoss."""
        shelf = self._shelf
        with shelf.mutex:
            row = shelf.catalog.image(image_id)
            if row is None:
                raise NotFound(f"No such image: {image_id}", subject=image_id)
            self._lease((*row.blobs, *row.layers))
        document = msgspec.json.decode(
            shelf.content.read(image_id, manifests.MAX_MANIFEST), type=dict[str, Any]
        )
        manifest = manifests.decode_image(shelf.content.read(row.manifest, manifests.MAX_MANIFEST))
        layers = tuple(Layer(d, blob) for d, blob in zip(row.layers, manifest.layers, strict=True))
        return Base(image_id, document, layers, manifest.media_type)

    def step(self, key: str) -> StepRow | None:
        """What an earlier build did under this key, if all of it is still there; it stays until the end."""
        row = self._shelf.catalog.step(key)
        if row is None:
            return None
        self._lease([key, *(name for name in (row.diff_id, row.blob) if name)])
        if self._shelf.catalog.step(key) is None:  # forgotten meanwhile
            return None
        if row.diff_id and not (
            self._shelf.snapshots.has_layer(row.diff_id) and self._shelf.content.has(row.blob)
        ):
            return None
        return row

    def is_image(self, image_id: str) -> bool:
        """Is there a finished image of that id?"""
        return self._shelf.catalog.image(image_id) is not None

    # steps

    def snapshot(self, diff_ids: Sequence[str]) -> tuple[str, dict[str, Any]]:
        """(name, what `Snapshots.prepare` answers): a writable layer above these."""
        name = f"{_SCRATCH}{os.urandom(8).hex()}"
        return name, self._shelf.snapshots.prepare_passing(name, diff_ids)

    def drop(self, name: str) -> None:
        """Remove a snapshot, and what was written into it."""
        self._shelf.snapshots.drop(name)

    def layer(self, name: str, ours: frozenset[str], latest: int | None, check: Check) -> Layer | None:
        """What was written into a snapshot (of `snapshot`, or a container's) becomes a layer; None when
        nothing was. ours, latest: as `diff.archive` has them. The snapshot is of no more use then. Raises
        what that raises, ResourceExhausted."""
        snapshots = self._shelf.snapshots
        upper = os.open(snapshots.upper(name), _OPEN)
        try:
            path = f"{self._spool}/{os.urandom(8).hex()}"
            pieces = members.joined(diff.archive(upper, ours, check, tidy=True, latest=latest))
            made = making.compress(limited(pieces, self._shelf.config.limits.size), path, check)
            if made is None:
                return None
            size, entries = trees.usage(upper)
        finally:
            os.close(upper)
        diff_id, blob, packed = made
        self._lease((diff_id, blob))
        with self._mutex:
            self._spooled[blob] = path
        self._adopt(name, LayerRow(diff_id, "", size, entries))
        return Layer(diff_id, Descriptor(blob, packed, _OURS))

    def _adopt(self, name: str, row: LayerRow) -> None:
        snapshots = self._shelf.snapshots
        directory, home = snapshots.new_layer()
        kept = False
        try:
            snapshots.adopt_layer(name, home)
            with self._shelf.mutex:
                if not snapshots.has_layer(row.diff_id):
                    snapshots.add_fresh(msgspec.structs.replace(row, directory=directory))
                    kept = True
                if self._shelf.catalog.layer(row.diff_id) is None:
                    self._own(row.diff_id)
        finally:
            os.close(home)
            if not kept:
                snapshots.drop_layer(directory)

    def _own(self, name: str) -> None:
        if name not in self._fresh:
            self._fresh.add(name)
            self._owners[name] += 1

    def pass_image(self, document: bytes) -> str:
        """Let containers be made of this configuration until the end; its id."""
        image_id = digests.of(document)
        with self._shelf.mutex:
            if self._shelf.catalog.image(image_id) is None:
                layers = imageconfig.decode(document).diff_ids
                row = ImageRow(image_id, "", layers, (), time.time_ns())
                self._builds.passing[image_id] = (row, document)
                self._own(image_id)
        return image_id

    # the end

    def finish(
        self,
        steps: Sequence[StepRow],
        image: Base | None = None,
        names: Sequence[str] = (),
    ) -> str:
        """Keep what these steps have made and, if one is given, an image under these canonical names; its
        id. Either all of it is there then, also after a power cut, or nothing is."""
        shelf = self._shelf
        row = None if image is None else self._row(image)
        if row is not None and not steps and shelf.catalog.image(row.id) is not None:
            shelf.put_image(row.id, row.manifest, row.layers, row.blobs, names)
            return row.id
        wanted = {step.blob for step in steps} | set(row.blobs if row else ())
        diff_ids = {step.diff_id for step in steps} | set(row.layers if row else ())
        self._held.callback(self._collect_unless_finished)
        with self._mutex:
            files = {blob: path for blob, path in self._spooled.items() if blob in wanted}
        shelf.snapshots.sync()
        shelf.content.adopt_synced(files)
        with shelf.mutex:
            layers = [
                found
                for diff_id in sorted(diff_ids)
                if shelf.catalog.layer(diff_id) is None
                and (found := shelf.snapshots.layer(diff_id)) is not None
            ]
            shelf.catalog.put_build(layers, steps, row, [NameRow(n, row.id) for n in names] if row else ())
            for layer in layers:
                shelf.snapshots.take_fresh(layer.diff_id)
        with self._mutex:
            for blob in files:
                del self._spooled[blob]
        self._finished = True
        return row.id if row else ""

    def _collect_unless_finished(self) -> None:
        """Blobs without a row are rubbish."""
        if not self._finished:
            self._shelf.collect()

    def use(self, rows: Sequence[StepRow]) -> None:
        """These steps were used again just now."""
        if rows:
            now = time.time_ns()
            self._shelf.catalog.use_steps(
                [msgspec.structs.replace(row, used=now, uses=row.uses + 1) for row in rows]
            )

    def _row(self, image: Base) -> ImageRow:
        """Its row; configuration and manifest are spooled where they are not here yet."""
        docker = image.media_type == manifests.DOCKER_MANIFEST
        ours = making.DOCKER_LAYER if docker else manifests.layer_type("gzip")
        layers = tuple(
            msgspec.structs.replace(layer.blob, media_type=ours)
            if layer.blob.media_type == _OURS
            else layer.blob
            for layer in image.layers
        )
        config = msgspec.json.encode(image.document)
        image_id = digests.of(config)
        kind = manifests.DOCKER_CONFIG if docker else manifests.OCI_CONFIG
        descriptor = Descriptor(image_id, len(config), kind)
        manifest = manifests.encode(Manifest(image.media_type, descriptor, layers))
        top = digests.of(manifest)
        self._lease((image_id, top))
        for digest, data in ((image_id, config), (top, manifest)):
            if not self._shelf.content.intact(digest):
                path = f"{self._spool}/{os.urandom(8).hex()}"
                making.write_new(path, [data])
                with self._mutex:
                    self._spooled[digest] = path
        blobs = tuple(dict.fromkeys((top, image_id, *(layer.digest for layer in layers))))
        return ImageRow(image_id, top, tuple(layer.diff_id for layer in image.layers), blobs, time.time_ns())
