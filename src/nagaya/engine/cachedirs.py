"""Directories that `RUN --mount=type=cache` keeps from one build to the next: ROOT/build/cache/DIGEST/files.

An id is a stranger's: it is kept in a file and never becomes a path (CVE-2024-9675). shared: all may have it
at once; locked: one after the other; private: who finds it taken gets one of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import msgspec

from nagaya.engine import files
from nagaya.engine.world import World
from nagaya.errors import InvalidArgument
from nagaya.image import trees

FILES = "files"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class CacheDirectory(msgspec.Struct, frozen=True):
    """One of the directories as lists show it. key: its name below the cache's directory."""

    key: str
    id: str
    size: int
    made: int
    used: int
    in_use: bool


class CacheDirectories:
    """All of a daemon's. Lives on the event loop."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._directory = f"{world.settings.root}/build/cache"
        self._locks: dict[str, asyncio.Lock] = {}
        self._users: Counter[str] = Counter()

    @asynccontextmanager
    async def hold(
        self,
        name: str,
        sharing: str,
        owner: tuple[int, int] = (0, 0),
        mode: int = 0o755,
        fill: Callable[[int], None] | None = None,
    ) -> AsyncIterator[str]:
        """The path of the directory, until the end. owner, mode: of a new one; fill puts its first files into
        it."""
        if "\0" in name or len(name) > 4096:
            raise InvalidArgument("invalid id of a cache mount", subject="id")
        key = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        if sharing == "private":
            number = 0
            while self._users[found := f"{key}-{number}" if number else key]:
                number += 1
            key = found
        lock = self._locks.setdefault(key, asyncio.Lock())
        if sharing == "locked":
            await lock.acquire()
        self._users[key] += 1
        try:
            yield await self._world.pull_job(lambda: self._made(key, name, owner, mode, fill))
        finally:
            self._users[key] -= 1
            self._users = +self._users
            if sharing == "locked":
                lock.release()

    def _made(
        self,
        key: str,
        name: str,
        owner: tuple[int, int],
        mode: int,
        fill: Callable[[int], None] | None,
    ) -> str:
        path = f"{self._directory}/{key}"
        if not os.path.isdir(f"{path}/{FILES}"):
            os.makedirs(path, 0o700, exist_ok=True)
            with open(f"{path}/id", "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(name)
            new = f"{path}/new-{os.urandom(4).hex()}"
            os.mkdir(new, 0o755)
            fd = os.open(new, _DIRECTORY)
            try:
                if fill is not None:
                    fill(fd)
                os.fchown(fd, *owner)
                os.fchmod(fd, mode & 0o7777)
            finally:
                os.close(fd)
            try:
                os.rename(new, f"{path}/{FILES}")
            except OSError:  # another build was quicker
                files.remove_tree(new)
        os.utime(path)
        return f"{path}/{FILES}"

    def list(self) -> list[CacheDirectory]:
        """All that are there. Blocking."""
        found = []
        with suppress(FileNotFoundError):
            for key in sorted(os.listdir(self._directory)):
                with suppress(FileNotFoundError):
                    found.append(self._look(key))
        return found

    def _look(self, key: str) -> CacheDirectory:
        path = f"{self._directory}/{key}"
        with open(f"{path}/id", encoding="utf-8", errors="replace") as file:
            name = file.read(4096)
        fd = os.open(f"{path}/{FILES}", _DIRECTORY)
        try:
            size, _ = trees.usage(fd)
        finally:
            os.close(fd)
        made = os.stat(f"{path}/id").st_mtime_ns
        return CacheDirectory(key, name, size, made, os.stat(path).st_mtime_ns, self._users[key] > 0)

    def remove(self, key: str) -> None:
        """Remove one that nobody uses. Blocking."""
        if not self._users[key]:
            files.remove_tree(f"{self._directory}/{key}")
