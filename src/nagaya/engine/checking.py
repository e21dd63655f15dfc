"""Do the ledger and the host tell the same story? `nagaya system check`, and with --repair it is made so.

What is looked at: mounts, pinned namespaces, cgroups, firewall and links, addresses, snapshots,
directories, volumes, runtimes' state. A difference counts when it is there at two looks and nothing is
under way that explains it: no operation in the journal, no transition that holds the container's lock.
Repair never touches what lives: a running container's things are only put back, and a cgroup with
processes in it, or files that might be somebody's, stay.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

from nagaya.engine import creation, files, launch, names, networks, runtimes, staging, volumes
from nagaya.engine.ledger import Volume
from nagaya.engine.model import Finding
from nagaya.engine.world import World
from nagaya.errors import NagayaError
from nagaya.linux import cgroup
from nagaya.linux import mounts as m

_PAUSE = 0.5  # between the looks: what comes and goes in it is no difference
_UP = ("running", "paused")

Repair = Callable[[], Awaitable[object]]


class _Difference(NamedTuple):
    """repair: None where nothing may, or can, be done."""

    kind: str
    subject: str
    problem: str
    repair: Repair | None


class _Scene(NamedTuple):
    """What the event loop knows at the moment of a look."""

    pids: dict[str, int]  # of running containers
    known: set[str]  # containers, all of them
    living: set[str]  # containers and pods whose namespaces are in use
    busy: set[str]  # containers that are being changed
    mounted: set[str]  # volumes that somebody running has


async def check(world: World, *, repair: bool = False) -> list[Finding]:
    """All differences; with repair they are mended where that is possible."""
    first = {found[:3] for found in await _look(world)}
    if not first:
        return []
    await asyncio.sleep(_PAUSE)
    told = []
    for found in await _look(world):
        if found[:3] not in first:
            continue
        note, done = "", False
        if repair and found.repair is not None:
            try:
                await found.repair()
                done = True
            except NagayaError as error:
                note = str(error)
        told.append(Finding(found.kind, found.subject, found.problem, found.repair is not None, done, note))
    return told


async def _look(world: World) -> list[_Difference]:
    slots = list(world.roster)
    up = {slot.container.id: slot.container.pid for slot in slots if slot.container.state in _UP}
    scene = _Scene(
        pids=up,
        known={slot.container.id for slot in slots},
        living={*up, *world.pods.living()},
        busy={slot.container.id for slot in slots if slot.lock.locked()},
        mounted=world.volumes.in_use(),
    )
    return await world.job(lambda: list(_differences(world, scene)))


def _differences(world: World, scene: _Scene) -> Iterator[_Difference]:
    pending = {operation.subject for operation in world.journal.pending()}
    scene.busy.update(pending)
    yield from _mounts(world, scene)
    yield from _namespaces(world, scene)
    yield from _cgroups(world, scene)
    yield from _network(world, scene)
    yield from _addresses(world, scene)
    yield from _snapshots(world, scene)
    yield from _directories(world, scene)
    yield from _volumes(world, scene)


def _strangers(directory: str, mine: set[str], scene: _Scene) -> list[str]:
    """The ids below a directory that are none of those, and of which nothing is under way."""
    try:
        found = {name for name in os.listdir(directory) if names.is_id(name)}
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found - mine - scene.busy)


def _mounts(world: World, scene: _Scene) -> Iterator[_Difference]:
    settings = world.settings
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        places = [line.split(" ")[4] for line in file]

    def stray(path: str, problem: str) -> _Difference:
        async def repair() -> None:
            await world.job(m.umount2, path, m.MNT_DETACH | m.UMOUNT_NOFOLLOW)

        return _Difference("mount", path, problem, repair)

    for place in places:
        for base, owners in (
            (f"{settings.run}/staged/", set[str]()),
            (f"{settings.root}/containers/", scene.living),
            (f"{settings.run}/shm/", scene.living),
        ):
            owner = place.removeprefix(base).partition("/")[0]
            if place.startswith(base) and names.is_id(owner) and owner not in owners | scene.busy:
                yield stray(place, f"mounted for the container {owner[:12]}, which does not run")
        base = f"{settings.root}/volumes/"
        name, _, rest = place.removeprefix(base).partition("/")
        if place.startswith(base) and rest == "_data" and name not in scene.mounted | scene.busy:
            yield stray(place, f"the volume {name} is mounted, and nobody who runs has it")
    for row in world.ledger.volumes():
        path = volumes.path_of(settings.root, row.name)
        if row.options and row.name in scene.mounted - scene.busy and path not in places:
            yield _Difference("mount", path, f"the volume {row.name} is in use, and not mounted", None)


def _namespaces(world: World, scene: _Scene) -> Iterator[_Difference]:
    settings = world.settings
    for owner in _strangers(f"{settings.run}/ns", scene.living, scene):

        async def unpin(owner: str = owner) -> None:
            await world.job(_unpin_all, f"{settings.run}/ns/{owner}")

        yield _Difference("namespace", f"{settings.run}/ns/{owner}", "pinned, and nobody lives in it", unpin)
    wired = {str(owner) for (owner,) in world.ledger.read("SELECT DISTINCT container FROM endpoints")}
    for owner in sorted(wired & scene.pids.keys() - scene.busy):
        pin = settings.netns(owner)
        if m.is_mount_point(pin):
            continue

        async def pin_again(pin: str = pin, pid: int = scene.pids[owner]) -> None:
            await world.job(_pin, pin, pid)

        yield _Difference("namespace", pin, "the container runs, and its namespace is not pinned", pin_again)


def _unpin_all(directory: str) -> None:
    for name in os.listdir(directory):
        networks.unpin(f"{directory}/{name}")


def _pin(pin: str, pid: int) -> None:
    files.make_directory(os.path.dirname(pin), 0o700)
    files.write(pin, "", 0o444)
    m.mount(f"/proc/{pid}/ns/net", pin, None, m.MS_BIND)


def _cgroups(world: World, scene: _Scene) -> Iterator[_Difference]:
    if world.settings.cgroup_driver == "systemd":
        return  # its scopes are systemd's to look after
    layout = cgroup.layout()
    trees = [layout.unified] if layout.version == 2 else [h.mountpoint for h in layout.hierarchies]
    for tree in trees:
        parent = f"{tree}/{world.settings.cgroup_parent.strip('/')}"
        for owner in _strangers(parent, scene.living, scene):
            path = f"{parent}/{owner}"
            if _has_processes(path):
                problem = "processes of no container of ours live in it"
                yield _Difference("cgroup", path, problem, None)
                continue

            async def remove(path: str = path) -> None:
                await world.job(_remove_cgroup, path)

            yield _Difference("cgroup", path, "empty, and of no container that runs", remove)


def _has_processes(path: str) -> bool:
    for directory, _, _ in os.walk(path):
        if (cgroup.try_read(f"{directory}/cgroup.procs") or "").strip():
            return True
    return False


def _remove_cgroup(path: str) -> None:
    for directory, _, _ in os.walk(path, topdown=False):
        with suppress(OSError):  # somebody moved in meanwhile, or it is gone
            os.rmdir(directory)


def _network(world: World, scene: _Scene) -> Iterator[_Difference]:
    async def restore() -> None:
        await world.job(world.network.restore)

    for subject, problem in world.network.differences():
        yield _Difference("network", subject, problem, restore)
    present = {name for _, name in socket.if_nameindex()}
    for plan in networks.plans(world.ledger):
        if plan.host_interface and plan.host_interface not in present and not scene.busy:
            problem = f"the interface of the endpoint {plan.endpoint_id[:12]} is gone: restart its container"
            yield _Difference("network", plan.host_interface, problem, None)


def _addresses(world: World, scene: _Scene) -> Iterator[_Difference]:
    for table, column in (("addresses", "owner"), ("endpoints", "container")):
        rows = world.ledger.read(f"SELECT DISTINCT {column} FROM {table}")
        for owner in sorted({str(owner) for (owner,) in rows} - scene.living - scene.busy):

            async def take_down(owner: str = owner) -> None:
                await world.job(networks.take_down, world, owner)

            yield _Difference("address", owner, f"has {table}, and does not run", take_down)


def _snapshots(world: World, scene: _Scene) -> Iterator[_Difference]:
    rows = {str(row) for (row,) in world.ledger.read("SELECT id FROM snapshots")}
    base = f"{world.settings.root}/snapshots"
    there = {name for name in os.listdir(base) if names.is_id(name)}
    for name in sorted((rows | there) - scene.known - scene.busy):

        async def remove(name: str = name) -> None:
            await world.job(world.images.remove_snapshot, name)

        yield _Difference("snapshot", f"{base}/{name}", "of no container", remove)
    for name in sorted(scene.known - there - scene.busy):
        problem = "the container's files are gone: remove the container"
        yield _Difference("snapshot", f"{base}/{name}", problem, None)


def _directories(world: World, scene: _Scene) -> Iterator[_Difference]:
    settings = world.settings
    base = f"{settings.root}/containers"
    for name in _strangers(base, scene.known, scene):

        async def undo(name: str = name) -> None:
            await world.job(creation.undo, world, name, [])

        yield _Difference("container", f"{base}/{name}", "a directory of no container", undo)
    for name in sorted(scene.known - scene.busy):
        if not os.path.isdir(f"{base}/{name}"):

            async def make(path: str = f"{base}/{name}") -> None:
                await world.job(files.make_directory, path, 0o710)

            yield _Difference("container", f"{base}/{name}", "the container's directory is gone", make)
    for name in _strangers(f"{settings.run}/bundles", scene.living, scene):

        async def unbundle(name: str = name) -> None:
            await world.job(launch.remove_bundle, world, name)

        yield _Difference("bundle", settings.bundle(name), "of no container that runs", unbundle)
    for name in _strangers(f"{settings.run}/staged", set(), scene):

        async def unstage(name: str = name) -> None:
            await world.job(staging.clear, world, name)

        yield _Difference("bundle", f"{settings.run}/staged/{name}", "of no container that starts", unstage)
    for directory, runtime in runtimes.every(world):
        for name in _strangers(directory, scene.living, scene):

            async def delete(name: str = name, runtime: runtimes.Runtime = runtime) -> None:
                await runtime.delete(name)

            yield _Difference("runtime", f"{directory}/{name}", "state of no container that runs", delete)


def _volumes(world: World, scene: _Scene) -> Iterator[_Difference]:
    root = world.settings.root
    rows = {row.name for row in world.ledger.volumes()}
    with os.scandir(f"{root}/volumes") as entries:
        there = {e.name for e in entries if volumes.is_name(e.name) and e.is_dir(follow_symlinks=False)}
    for name in sorted(there - rows - scene.busy):

        async def adopt(name: str = name) -> None:
            await world.job(_adopt, world, name)

        problem = "a directory of no volume: it is made one, for its files may be somebody's"
        yield _Difference("volume", f"{root}/volumes/{name}", problem, adopt)
    for name in sorted(rows - scene.busy):
        path = volumes.path_of(root, name)
        if not os.path.isdir(path):

            async def make(path: str = path) -> None:
                await world.job(files.make_directory, os.path.dirname(path), 0o711)
                await world.job(files.make_directory, path, 0o755)

            yield _Difference("volume", path, "the volume's files are gone: it is empty from now on", make)


def _adopt(world: World, name: str) -> None:
    root = world.settings.root
    if not os.path.isdir(volumes.path_of(root, name)):
        volumes.drop_empty(root, name)
        return
    world.ledger.put_volume(Volume(name, time.time_ns(), anonymous=False))
