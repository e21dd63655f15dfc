"""A container's files as its own processes see them, from outside: the root and what is mounted there.

A running container's root is entered through /proc/PID/root, and what is mounted there by its target in it:
where a mount's source leads by now is the container's doing when it lies in another writable bind. A stopped
one's root is mounted for the while, attached nowhere; its binds are their sources, reached through no link.
No path is resolved against the host: every step is openat2(2) below one of these roots and crosses no mount
(CVE-2018-15664, 2021-41089, 2026-42306: `docker cp` raced by the container's processes). Nothing runs in the
container's place.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from nagaya.engine import remap, staging, volumes
from nagaya.engine.model import Container
from nagaya.engine.settings import Remap
from nagaya.engine.spec_mounts import is_read_only
from nagaya.engine.world import World
from nagaya.errors import FailedPrecondition, InvalidArgument, KernelError, NotFound
from nagaya.linux import paths
from nagaya.linux.mounts import AT_FDCWD
from nagaya.linux.overlay import mount_overlay

_RESOLVE = paths.RESOLVE_IN_ROOT | paths.RESOLVE_NO_MAGICLINKS | paths.RESOLVE_NO_XDEV
_ACROSS = paths.RESOLVE_IN_ROOT | paths.RESOLVE_NO_MAGICLINKS  # mounts: once for each, when a view is opened
_ON_HOST = paths.RESOLVE_NO_SYMLINKS
_DIRECTORY = os.O_PATH | os.O_DIRECTORY
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV)


class Place(NamedTuple):
    """One of the roots: where it is in the container, an O_PATH fd, the name of a single file in it or "",
    and may be written to?"""

    target: str
    fd: int
    name: str
    read_only: bool


class View:
    """The roots of one container. Use as a context manager. Blocking."""

    def __init__(
        self,
        places: Sequence[Place],
        missing: Mapping[str, NotFound] = MappingProxyType({}),
        users: Remap | None = None,
    ) -> None:
        """missing: targets of mounts whose source is not there, and why. users: whose ids the files have,
        when not those that they have inside."""
        self._users = users
        # the deepest target first
        self._places = sorted(places, key=lambda place: -len(place.target))
        self._missing = missing

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the roots go."""
        for place in self._places:
            os.close(place.fd)
        self._places = []

    def inside(self, uid: int, gid: int) -> tuple[int, int]:
        """The owners of a file as the container sees them."""
        if self._users is None:
            return uid, gid
        return remap.inside(self._users.uids, uid), remap.inside(self._users.gids, gid)

    def outside(self, uid: int, gid: int) -> tuple[int, int]:
        """The owners of a file that the container sees so. Raises InvalidArgument for ids it has not."""
        if self._users is None:
            return uid, gid
        return remap.outside(self._users.uids, uid), remap.outside(self._users.gids, gid)

    def place(self, path: str) -> tuple[Place, str]:
        """The root that a clean absolute path lies in, and the path below it. Raises NotFound where a mount
        has no source."""
        for target, why in self._missing.items():
            if path == target or path.startswith(f"{target}/"):
                raise NotFound(why.message, subject=why.subject, errno=why.errno)
        for place in self._places:
            if path == place.target:
                return place, place.name or "."
            if path.startswith(place.target.rstrip("/") + "/") and not place.name:
                return place, path[len(place.target) :].lstrip("/")
        raise AssertionError("the root contains every path")

    def mounted_at(self, path: str) -> Place | None:
        """What is mounted at just that clean path."""
        return next((place for place in self._places if place.target == path), None)

    def directory(self, path: str) -> int:
        """Open the directory at a path (O_PATH), links followed. Raises NotFound, also when it is none."""
        place, inner = self.place(clean(path))
        try:
            return paths.openat2(place.fd, inner, _DIRECTORY, 0, _RESOLVE)
        except KernelError as error:
            if error.errno not in _ABSENT:
                raise
            raise NotFound("no such directory", subject=path, errno=error.errno) from None

    def make_directory(self, path: str) -> int:
        """The same, made with its parents where it is missing."""
        try:
            return self.directory(path)
        except NotFound as error:
            if error.errno != errno.ENOENT:
                raise FailedPrecondition(
                    f"{path} is not a directory, or not one of the container's own file systems"
                ) from None
        place, inner = self.place(clean(path))
        os.close(paths.mkdirs_in_root(place.fd, inner))
        return self.directory(path)

    def parent(self, path: str) -> tuple[int, str]:
        """(the directory that holds the last component (O_PATH), its name); the name of a root is ".".
        The last component is not looked at. Raises NotFound."""
        place, inner = self.place(clean(path))
        if inner == ".":
            return os.dup(place.fd), "."
        if place.name:
            return os.dup(place.fd), place.name
        head, _, name = clean(path).rpartition("/")
        return self.directory(head or "/"), name


def clean(path: str) -> str:
    """Absolute and without "." and "..", which docker too takes away before it follows links."""
    if "\0" in path:
        raise InvalidArgument("a path with a NUL in it", subject="path")
    return "/" + posixpath.normpath("/" + path).lstrip("/")


def open_view(world: World, container: Container) -> View:
    """The view of a container. A stopped one must not be started while it is open. Raises NagayaError."""
    running = container.state in ("running", "paused")
    root = _root_of_process(container) if running else mount_overlay(world.images.snapshot(container.id))
    places = [Place("/", root, "", container.config.read_only_rootfs)]
    missing: dict[str, NotFound] = {}
    try:
        for mount in container.mount_points:
            if mount.type == "tmpfs":
                continue
            target = clean(mount.target)
            if running:
                places.append(_place(target, root, target, _ACROSS, is_read_only(mount)))
                continue
            if staging.is_staged(mount):
                with_root = staging.opened(world, mount)
                try:
                    resolve = paths.RESOLVE_IN_ROOT | paths.RESOLVE_NO_MAGICLINKS
                    places.append(
                        _place(target, with_root, mount.subpath or ".", resolve, is_read_only(mount))
                    )
                finally:
                    os.close(with_root)
                continue
            volume = mount.type == "volume"
            source = volumes.path_of(world.settings.root, mount.source) if volume else mount.source
            try:
                places.append(_place(target, AT_FDCWD, source, 0 if volume else _ON_HOST, mount.read_only))
            except NotFound as error:  # of no matter to who wants something else
                missing[target] = error
        if not running:
            places += _engine_s_files(world, container)
    except BaseException:
        View(places).close()
        raise
    return View(places, missing, remap.of(world.settings, container.config) if running else None)


def _engine_s_files(world: World, container: Container) -> list[Place]:
    """/etc/hosts and its like, as the last start wrote them, where nothing else is mounted."""
    directory = world.settings.container_dir(container.id)
    found = []
    for name in ("resolv.conf", "hostname", "hosts"):
        taken = {clean(mount.target) for mount in container.mount_points}
        if f"/etc/{name}" not in taken and "/etc" not in taken and os.path.exists(f"{directory}/{name}"):
            read_only = container.config.read_only_rootfs
            found.append(_place(f"/etc/{name}", AT_FDCWD, f"{directory}/{name}", 0, read_only))
    return found


def _place(target: str, base: int, path: str, resolve: int, read_only: bool) -> Place:
    """What is mounted at target: the path below base."""
    try:
        fd = paths.openat2(base, path, os.O_PATH, 0, resolve)
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            return Place(target, fd, "", read_only)
        os.close(fd)
        folder, _, name = path.rpartition("/")
        return Place(target, paths.openat2(base, folder or "/", _DIRECTORY, 0, resolve), name, read_only)
    except KernelError as error:
        why = "leads through a symbolic link" if error.errno == errno.ELOOP else error.message
        raise NotFound(f"source of the mount at {target}: {why}", subject=path) from None


def _root_of_process(container: Container) -> int:
    """The root of the container's first process. Its id may be another's by now: the directory in /proc
    stays with the process it was opened for, and the cgroup says whose that is."""
    try:
        process = os.open(f"/proc/{container.pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        raise FailedPrecondition(f"container {container.id} has just ended") from None
    try:
        fd = os.open("cgroup", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)
        with open(fd, encoding="ascii", errors="replace") as file:
            ours = container.id in file.read()
        if ours:
            return os.open("root", _DIRECTORY | os.O_CLOEXEC, dir_fd=process)
    except OSError:
        pass
    finally:
        os.close(process)
    raise FailedPrecondition(f"container {container.id} has just ended")
