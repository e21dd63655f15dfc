"""A container goes: its files, its anonymous volumes, its row, and who waited for that is told."""

from __future__ import annotations

import errno
import logging
import os
import shutil

from nagaya.engine import attachments, forwarding, launch, names, volumes
from nagaya.engine.roster import Slot
from nagaya.engine.world import World
from nagaya.errors import FailedPrecondition

log = logging.getLogger(__name__)


async def remove_slot(world: World, slot: Slot, *, volumes_too: bool) -> None:
    """Delete it; the lock is held and it does not run."""
    container = slot.container
    previous, container.state = container.state, "removing"
    attachments.drop(world, slot)
    anonymous = [
        point.source
        for point in container.mount_points
        if volumes_too and point.type == "volume" and names.is_id(point.source)
    ]
    used: set[str] = set()
    if anonymous:  # of thousands of containers this is a look at each
        used = {p.source for s in world.roster if s is not slot for p in s.container.mount_points}
    gone = [v for v in anonymous if v not in used]
    try:
        await world.job(remove_files, world, container.id, gone)
    except Exception:
        container.state = previous if previous != "restarting" else "exited"
        if await world.job(world.journal.is_pending, "remove", container.id):
            # half of it may be gone, and a daemon that finds the journal's row takes the rest: it
            # must not start again
            container.state = "dead"
        raise
    world.roster.discard(container.id)
    if slot.unwritten:
        await world.supervisor.release(container.id)
    slot.notify("not-running", "next-exit", "removed")
    for name in gone:
        world.volumes.tell("destroy", name)
    world.bus.container(container, "destroy")


def remove_files(world: World, container_id: str, anonymous: list[str]) -> None:
    """Snapshot, directory, anonymous volumes, row. Blocking; may be repeated after a crash."""
    journal = world.journal
    journal.begin("remove", container_id, {"volumes": anonymous})
    launch.remove_bundle(world, container_id)
    world.images.remove_snapshot(container_id)
    journal.point("remove: snapshot")
    directory = world.settings.container_dir(container_id)
    for last in (False, False, True):
        try:
            if os.path.isdir(directory):
                shutil.rmtree(directory)
            break
        except OSError as error:
            # a new io, started meanwhile, opens the log of who is still known to it
            if last or error.errno != errno.ENOTEMPTY:
                raise
    journal.point("remove: directory")
    for name in anonymous:
        try:
            volumes.remove(world.ledger, journal, world.settings.root, name)
        except FailedPrecondition as error:  # the container goes all the same
            log.error("volume %s stays: %s", name, error)
    with world.ledger.write() as db:
        forwarding.forget(db, container_id)
        world.ledger.delete_container(container_id)
        journal.settle("remove", container_id)
    journal.point("remove: done")
