"""What a machine has on the host beside its processes, written down so that somebody else can take it away:
cards of a network namespace that outlives it, directories mounted for its guest, a directory of its own.

The record lies in the state directory. The monitor takes all of it away when it ends; `delete` does, when the
monitor was killed.
"""

from __future__ import annotations

from nagaya.errors import KernelError, NagayaError
from nagaya.linux import mounts, os
from nagaya.linux import namespaces as ns
from nagaya.linux.json import dumps, loads
from nagaya.vm import network

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FILE = "leavings.json"


def note(directory: str, found: dict[str, Any]) -> None:
    """Write them down: {"network": path of the namespace, "cards": [..], "mounts": directory}."""
    fd = os.open(f"{directory}/{FILE}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, dumps(found).encode("utf-8", "surrogateescape"))
    finally:
        os.close(fd)


def of(directory: str) -> dict[str, Any]:
    """What is written there, nothing when nothing is."""
    try:
        fd = os.open(f"{directory}/{FILE}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return {}
    try:
        found: dict[str, Any] = loads(os.read(fd, 1 << 20))
    except NagayaError:
        return {}  # its writer was killed in the middle, before there was anything
    finally:
        os.close(fd)
    return found


def take_away(found: dict[str, Any]) -> None:
    """Take it away. May be repeated; what is gone is gone."""
    path = found.get("network")
    if path:
        _give_back(path, [network.from_wire(card) for card in found.get("cards") or []])
    if found.get("mounts"):
        clear(found["mounts"])


def _give_back(path: str, cards: list[network.Card]) -> None:
    """In the network namespace of that path, which may have gone; we come back to our own."""
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            ns.setns(fd, ns.CLONE_NEWNET)
            network.give_back(cards)
        except KernelError:
            pass  # it is no namespace any more, or is being taken down
        finally:
            os.close(fd)
            ns.setns(own, ns.CLONE_NEWNET)
    finally:
        os.close(own)


def clear(directory: str) -> None:
    """Unmount what is mounted in the places of a directory and on it, and remove it: never what lies below a
    mount."""
    try:
        names = os.listdir(directory)
    except OSError:
        return
    for name in names:
        clear_one(f"{directory}/{name}")
    clear_one(directory)


def clear_one(path: str) -> None:
    """Unmount what is mounted at a path, and remove the empty file or directory that it was mounted on."""
    try:
        mounts.umount2(path, mounts.MNT_DETACH | mounts.UMOUNT_NOFOLLOW)
    except KernelError:
        pass  # nothing is mounted there
    for remove in (os.unlink, os.rmdir):
        try:
            remove(path)
            return
        except OSError:
            continue  # it is of the other kind, or gone; or something is mounted there still
