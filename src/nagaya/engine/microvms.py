"""What is different for a container in a microVM: its process on the host is its machine's monitor, so the
host's view of that process is not the container's."""

from __future__ import annotations

import os
import shlex

from nagaya.engine.model import Container
from nagaya.engine.world import World
from nagaya.errors import FailedPrecondition

NAME = "nagaya-vm"


def is_one(world: World, container: Container) -> bool:
    """Does its runtime run it in a microVM?"""
    return is_handler(world, container.config.runtime or world.settings.default_runtime)


def is_handler(world: World, name: str) -> bool:
    """Is the runtime of that name one for microVMs?"""
    command = shlex.split(world.settings.runtimes.get(name, ""))
    return bool(command) and os.path.basename(command[0]) == NAME


def oom_killed(world: World, container: Container) -> bool:
    """Has its guest's kernel killed for lack of memory? Before its state goes."""
    name = container.config.runtime or world.settings.default_runtime
    return is_one(world, container) and os.path.exists(
        f"{world.settings.run}/foreign/{name}/{container.id}/oom"
    )


def check_files(world: World, container: Container) -> None:
    """Once it has been started, its files are its guest's: what lies below /proc/PID/root is the host's own
    root, and the disk that holds what was written is for a guest alone to mount. Raises
    FailedPrecondition."""
    if container.started and is_one(world, container):
        raise FailedPrecondition(
            f"the files of container {container.id} are those of its microVM: use a volume, or exec with tar"
        )


def check_joins(world: World, container: Container, peer: Container, kind: str) -> None:
    """Namespaces of the host reach into no guest, and out of none. Raises FailedPrecondition."""
    for one in (container, peer):
        if is_one(world, one):
            raise FailedPrecondition(
                f"container {one.id} runs in a microVM: it shares no {kind} namespace", subject=kind
            )


def check_networks(world: World, container: Container) -> None:
    """The cards of a machine are those that it was started with. Raises FailedPrecondition."""
    if container.state in ("running", "paused") and is_one(world, container):
        raise FailedPrecondition(
            f"container {container.id} runs in a microVM: stop it to change its networks"
        )
