"""Directories that overlayfs stacks: unpacked layers, and the writable top of each container.

    ROOT/snapshots/l/DIRECTORY/fs     an unpacked layer; DIRECTORY is 8 random hex characters
    ROOT/snapshots/l/DIRECTORY/opaque exists when the layer hides everything below it
    ROOT/snapshots/ID/{fs,work}       upper and work directory of container ID

Every directory above an `fs` is 0700: a setuid file of an image is reachable through its container
only. A layer is kept once per diff id, whatever lies below it in an image (docs/adr/0004-images.md).

What whoever mounts `prepare`'s answer must know: an image may have hundreds of layers, and the data
of mount(2), and each string of fsconfig(2), are bounded (4096 and 256 bytes). So either give each lower
directory by its own `fsconfig(fd, SET_STRING, "lowerdir+", path)`, top first (Linux >= 6.8), or
change to ROOT/snapshots/l and give paths relative to it ("0a1b2c3d/fs:...": 12 bytes each, 300 layers).
The overlay must not be mounted with `userxattr`: whiteouts use trusted.overlay.*.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any

from nagaya.errors import AlreadyExists, DataLoss, InvalidArgument, KernelError, NotFound
from nagaya.image import trees
from nagaya.image.catalog import Catalog, LayerRow, SnapshotRow
from nagaya.image.content import disk_error
from nagaya.linux import inodeflags, sync

log = logging.getLogger(__name__)

_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{1,127}", re.ASCII)
_DIRECTORY = re.compile(r"[0-9a-f]{8}")
_MARKER = "opaque"
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Snapshots:
    """The directories below `directory`; their rows are in `catalog`. Thread-safe."""

    def __init__(self, directory: str, catalog: Catalog) -> None:
        self._directory = os.path.abspath(directory)
        self._layers = f"{self._directory}/l"
        self._catalog = catalog
        self._barrier = _Barrier()
        self._fresh: dict[str, LayerRow] = {}  # of builds under way: whole, and not yet in the catalog
        for path in (self._directory, self._layers, f"{self._layers}/empty"):
            os.makedirs(path, mode=0o700, exist_ok=True)
        os.makedirs(f"{self._layers}/empty/fs", mode=0o755, exist_ok=True)
        for path in (self._directory, self._layers):
            _spread(path)

    # layers

    def new_layer(self) -> tuple[str, int]:
        """Make a private directory for a layer: (its name, an fd of it). Nothing refers to it yet."""
        while True:
            name = os.urandom(4).hex()
            try:
                os.mkdir(f"{self._layers}/{name}", 0o700)
            except FileExistsError:
                continue
            except OSError as error:
                raise disk_error(error, "make layer directory", name) from None
            return name, os.open(f"{self._layers}/{name}", _OPEN)

    def sync_layer(self, diff_id: str, fd: int, *, opaque_root: bool) -> None:
        """Everything below fd is on the disk: the catalog may know it. Raises KernelError,
        ResourceExhausted."""
        try:
            if opaque_root:
                os.close(os.open(_MARKER, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=fd))
            self._barrier.sync(fd)
        except OSError as error:
            raise disk_error(error, "sync layer", diff_id) from None
        except KernelError as error:  # delayed allocation: a full disk may be found out only now
            raise disk_error(OSError(error.errno, error.message), "sync layer", diff_id) from None

    def drop_layer(self, name: str) -> None:
        """Remove a layer's directory; its row is gone already, or never was."""
        _check_directory(name)
        self._remove(self._layers, name)

    def lower(self, diff_ids: Sequence[str]) -> list[str]:
        """The directories of these layers (given bottom first), top first, as overlayfs wants them.

        A layer that occurs twice is named once, at its highest place: that gives the same files,
        and overlayfs refuses the same directory twice. Raises DataLoss when one is missing.
        """
        found: list[str] = []
        for diff_id in reversed(diff_ids):
            row = self.layer(diff_id)
            path = f"{self._layers}/{_check_directory(row.directory)}/fs" if row else ""
            if path in found:
                continue
            if not path or not os.path.isdir(path):
                raise DataLoss(f"layer {diff_id} is missing: pull the image again", subject=diff_id)
            found.append(path)
            if os.path.exists(f"{path[:-3]}/{_MARKER}"):
                break
        return found or [f"{self._layers}/empty/fs"]

    def has_layer(self, diff_id: str) -> bool:
        """Is the layer here, row and directory? One may have gone without the other when somebody
        tidied up by hand."""
        row = self.layer(diff_id)
        return row is not None and os.path.isdir(f"{self._layers}/{_check_directory(row.directory)}/fs")

    def layer(self, diff_id: str) -> LayerRow | None:
        """The catalog's row of a layer, or a build's that is under way."""
        return self._catalog.layer(diff_id) or self._fresh.get(diff_id)

    def add_fresh(self, row: LayerRow) -> None:
        """A build has made the layer: containers may stand on it, though a crash of the daemon loses it."""
        self._fresh[row.diff_id] = row

    def take_fresh(self, diff_id: str) -> LayerRow | None:
        """The layer is no longer one of a build under way."""
        return self._fresh.pop(diff_id, None)

    def sync(self) -> None:
        """All that was written so far is on the disk. Raises KernelError, ResourceExhausted."""
        fd = os.open(self._layers, _OPEN)
        try:
            self._barrier.sync(fd)
        except KernelError as error:
            raise disk_error(OSError(error.errno, error.message), "sync layers", "") from None
        finally:
            os.close(fd)

    def adopt_layer(self, passing: str, home: int) -> None:
        """Make what was written into a passing snapshot the files of the new layer `home`."""
        try:
            os.rename(self.upper(passing), "fs", dst_dir_fd=home)
        except OSError as error:
            raise disk_error(error, "make layer", passing) from None

    def sweep_layers(self, known: Collection[str]) -> set[str]:
        """Remove all layer directories but those of these names, also what is left of one that was being
        removed. Those that are there."""
        there = {name for name in os.listdir(self._layers) if name != "empty"}
        for name in there - set(known):
            self._remove(self._layers, name)
        return there & set(known)

    # containers

    def prepare(self, snapshot_id: str, diff_ids: Sequence[str]) -> dict[str, Any]:
        """Make the writable layer of a container above these layers (bottom first).

        Returns {"type": "overlay", "lower": [top..bottom], "upper": path, "work": path}; see the
        module's docstring for how to mount it. Raises InvalidArgument, AlreadyExists, DataLoss,
        ResourceExhausted, KernelError; nothing is left behind then.
        """
        return self._prepare(snapshot_id, diff_ids, lambda row: self._catalog.put_snapshot(row))

    def prepare_passing(self, snapshot_id: str, diff_ids: Sequence[str]) -> dict[str, Any]:
        """The same for a step of a build: a crash of the daemon loses it, and it keeps no layer alive."""
        return self._prepare(snapshot_id, diff_ids, lambda _: None)

    def _prepare(
        self, snapshot_id: str, diff_ids: Sequence[str], put: Callable[[SnapshotRow], None]
    ) -> dict[str, Any]:
        lower = self.lower(diff_ids)
        path = self._path(snapshot_id)
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            raise AlreadyExists(f"snapshot {snapshot_id} exists already", subject=snapshot_id) from None
        except OSError as error:
            raise disk_error(error, "make snapshot", snapshot_id) from None
        try:
            os.mkdir(f"{path}/fs", 0o755)
            os.mkdir(f"{path}/work", 0o700)
            os.chmod(f"{path}/fs", 0o755)  # whatever the umask: the container's root directory
            put(SnapshotRow(snapshot_id, tuple(diff_ids)))
        except BaseException as error:
            self._remove(self._directory, snapshot_id)
            if isinstance(error, OSError):
                raise disk_error(error, "make snapshot", snapshot_id) from None
            raise
        return self._rootfs(path, lower)

    def rootfs(self, snapshot_id: str) -> dict[str, Any]:
        """What `prepare` answered, again. Raises NotFound, DataLoss."""
        path = self._path(snapshot_id)
        row = self._catalog.snapshot(snapshot_id)
        if row is None or not os.path.isdir(path):
            raise NotFound(f"no such snapshot: {snapshot_id}", subject=snapshot_id)
        return self._rootfs(path, self.lower(row.layers))

    def upper(self, snapshot_id: str) -> str:
        """Where what was written into it is."""
        return f"{self._path(snapshot_id)}/fs"

    def remove(self, snapshot_id: str) -> None:
        """Remove a container's writable layer. An unknown id does nothing.

        Raises FailedPrecondition when something is mounted in it: the row then stays, so that it
        can be tried again.
        """
        self._remove(self._directory, os.path.basename(self._path(snapshot_id)))
        self._catalog.delete_snapshot(snapshot_id)

    def usage(self, snapshot_id: str) -> int:
        """Bytes that the container has written (docker ps --size). Raises NotFound."""
        return self.written(snapshot_id)[0]

    def written(self, snapshot_id: str) -> tuple[int, int]:
        """(bytes, files and directories) that the container has written. Raises NotFound."""
        try:
            fd = os.open(f"{self._path(snapshot_id)}/fs", _OPEN)
        except FileNotFoundError:
            raise NotFound(f"no such snapshot: {snapshot_id}", subject=snapshot_id) from None
        try:
            return trees.usage(fd)
        finally:
            os.close(fd)

    def names(self) -> list[str]:
        """Everything below the directory that is, or was, a container's, also left-overs of removal."""
        return [n for n in os.listdir(self._directory) if n != "l"]

    def drop(self, name: str) -> None:
        """Remove a left-over that has no row."""
        self._remove(self._directory, name)

    def _rootfs(self, path: str, lower: list[str]) -> dict[str, Any]:
        return {"type": "overlay", "lower": lower, "upper": f"{path}/fs", "work": f"{path}/work"}

    def _path(self, snapshot_id: str) -> str:
        if not _ID.fullmatch(snapshot_id):
            raise InvalidArgument(f"invalid snapshot id {snapshot_id[:200]!r}", subject="id")
        return f"{self._directory}/{snapshot_id}"

    @staticmethod
    def _remove(parent: str, name: str) -> None:
        fd = os.open(parent, _OPEN)
        try:
            trees.remove(fd, name)
        except OSError as error:
            raise disk_error(error, f"remove {name}", name) from None
        finally:
            os.close(fd)


class _Barrier:
    """syncfs(2) for many threads: one that begins after a caller came serves that caller too.

    One call for a layer of 20,500 files took 0.2 s here, an fsync(2) for each of them 40 times that.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._serial = threading.Lock()
        self._begun = 0
        self._finished = 0

    def sync(self, fd: int) -> None:
        with self._mutex:
            ticket = self._begun + 1  # the next one to begin has everything of ours
        with self._serial:
            with self._mutex:
                if self._finished >= ticket:
                    return
                self._begun += 1
                number = self._begun
            sync.syncfs(fd)
            with self._mutex:
                self._finished = number


def _spread(directory: str) -> None:
    """Layers that are unpacked at the same time shall not wait for one another in the file system, nor
    search the inodes that a removed one left (docs/adr/0004-images.md, "Measurements")."""
    fd = os.open(directory, _OPEN)
    try:
        inodeflags.set_topdir(fd)
    except KernelError as error:
        log.warning("%s stays without FS_TOPDIR_FL: %s", directory, error)
    finally:
        os.close(fd)


def _check_directory(name: str) -> str:
    if not _DIRECTORY.fullmatch(name):
        raise DataLoss(f"invalid layer directory {name[:80]!r} in the catalog", subject="layer")
    return name
