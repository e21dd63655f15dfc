"""A container that exists: its state, start, signals, freezing, limits, numbers, deletion.

What every verb but create, run and exec needs; nothing here makes a process. The only memory is the
state directory (`state`) and the cgroups.
"""

from __future__ import annotations

import errno

from nagaya.errors import FailedPrecondition, KernelError, NagayaError, NotFound
from nagaya.linux import os, pids
from nagaya.runtime import state as store
from nagaya.runtime.cgroups.freezer import is_frozen
from nagaya.runtime.state import oci_state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.runtime import cgroups

SIGKILL = 9
_KILL_SECONDS = 10.0


def status_of(root: str, record: dict[str, Any]) -> str:
    """created, running, paused or stopped."""
    if not store.alive(record):
        return "stopped"
    if _is_frozen(record):
        return "paused"
    return "created" if os.access(f"{root}/{record['id']}/{store.FIFO}", os.F_OK) else "running"


def _is_frozen(record: dict[str, Any]) -> bool:
    known: dict[str, Any] = record.get("cgroup") or {}
    path: str = (known.get("paths") or {}).get("freezer" if known.get("version") == 1 else "") or ""
    return bool(path) and is_frozen(known["version"], path)


def manager_of(record: dict[str, Any]) -> cgroups.Manager | None:
    """The cgroups that the state records; None when it died before it had any."""
    if not record.get("cgroup"):
        return None
    from nagaya.runtime import cgroups

    return cgroups.from_state(record["cgroup"])


def _require_manager(record: dict[str, Any]) -> cgroups.Manager:
    manager = manager_of(record)
    if manager is None:
        raise FailedPrecondition("container has no cgroup", subject=record["id"])
    return manager


def state_of(root: str, record: dict[str, Any]) -> dict[str, Any]:
    """What `state` and `list` print, in runc's order."""
    status = status_of(root, record)
    return {
        "ociVersion": record["config"]["ociVersion"],
        "id": record["id"],
        "pid": 0 if status == "stopped" else record["pid"],
        "status": status,
        "bundle": record["bundle"],
        "rootfs": record["rootfs"],
        "created": record["created"],
        "annotations": record["config"].get("annotations") or {},
        "owner": "",
    }


def state(root: str, identifier: str) -> dict[str, Any]:
    """The state of a container (`state` verb). Raises NotFound."""
    return state_of(root, store.load(root, identifier))


def list_states(root: str) -> list[dict[str, Any]]:
    """The states of all containers below root; one that goes away meanwhile is left out."""
    found = []
    for identifier in store.identifiers(root):
        try:
            found.append(state(root, identifier))
        except NagayaError:
            continue
    return found


def start(root: str, identifier: str) -> None:
    """Let the first process exec. Raises FailedPrecondition when it is not in `created`."""
    record = store.load(root, identifier)
    status = status_of(root, record)
    if status == "stopped":
        raise FailedPrecondition("cannot start a container that has stopped", subject=identifier)
    if status != "created":
        raise FailedPrecondition("cannot start an already running container", subject=identifier)
    fifo = f"{root}/{identifier}/{store.FIFO}"
    claimed = f"{fifo}.{os.getpid()}"
    try:
        os.rename(fifo, claimed)  # of two starts at once, one wins
    except FileNotFoundError:
        raise FailedPrecondition("cannot start an already running container", subject=identifier) from None
    try:
        fd = os.open(claimed, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.write(fd, b"0")
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        raise FailedPrecondition("container process is already dead", subject=identifier) from None
    finally:
        os.unlink(claimed)
    try:
        poststart(record)
    except NagayaError:
        _kill_first(record)  # the container is to be stopped then (runtime-spec, runtime.md "Lifecycle")
        raise


def poststart(record: dict[str, Any]) -> None:
    """Run the poststart hooks: the program has been executed. Raises FailedPrecondition."""
    poststart = ((record["config"].get("hooks") or {}).get("poststart")) or []
    if poststart:
        from nagaya.runtime import hooks  # few have any

        hooks.run("poststart", poststart, oci_state(record, "running", record["pid"]))


def kill(root: str, identifier: str, signal: int, all: bool = False) -> None:
    """Send a signal to the first process, or to all. Raises FailedPrecondition("container not running")."""
    record = store.load(root, identifier)
    if all:
        _require_manager(record).kill_all(signal)
        return
    if signal == SIGKILL and not _own_pids(record):
        # the end of the first process ends no other here; runc ends them all, also when it is gone
        manager = manager_of(record)
        if manager is not None and manager.pids():
            manager.kill_all()
            return
    if not store.alive(record):
        raise FailedPrecondition("container not running", subject=identifier)
    _signal_first(record, signal)


def _own_pids(record: dict[str, Any]) -> bool:
    kinds = (record["config"].get("linux") or {}).get("namespaces") or []
    return any(kind["type"] == "pid" and not kind.get("path") for kind in kinds)


def _signal_first(record: dict[str, Any], signal: int) -> None:
    try:
        pidfd = pids.pidfd_open(record["pid"])
    except KernelError:
        raise FailedPrecondition("container not running", subject=record["id"]) from None
    try:
        if not store.alive(record):  # the pid was taken over before we opened it
            raise FailedPrecondition("container not running", subject=record["id"])
        try:
            pids.pidfd_send_signal(pidfd, signal)
        except KernelError as error:
            raise FailedPrecondition(
                f"unable to signal init: {error.message}", subject=record["id"], errno=error.errno
            ) from None
        if signal == SIGKILL and _is_frozen(record):
            _require_manager(record).thaw()  # a frozen process does not die (cgroup v1)
    finally:
        os.close(pidfd)


def delete(root: str, identifier: str, force: bool = False) -> list[str]:
    """Remove what is left of a container; force kills it first. What its poststop hooks complain of, for a
    warning (runtime-spec, runtime.md "Lifecycle"). Raises NotFound, FailedPrecondition when it is not
    stopped."""
    path = store.directory(root, identifier)
    try:
        record = store.load(root, identifier)
    except NotFound:
        if force:
            store.remove(path)  # a create that was killed before its first write
            return []
        raise
    status = status_of(root, record)
    if status == "created" or (force and status != "stopped"):
        _kill_first(record)
    elif status != "stopped":
        raise FailedPrecondition(
            f"cannot delete container {identifier} that is not stopped: {status}", subject=identifier
        )
    manager = manager_of(record)
    if manager is not None:
        if manager.exists():
            manager.kill_all()
        manager.delete()
    poststop = (record["config"].get("hooks") or {}).get("poststop") or []
    store.remove(path)
    if not poststop:
        return []
    from nagaya.runtime import hooks

    return hooks.run_all("poststop", poststop, oci_state(record, "stopped", 0))


def _kill_first(record: dict[str, Any]) -> None:
    try:
        pidfd = pids.pidfd_open(record["pid"])
    except KernelError:
        return
    try:
        try:
            _signal_first(record, SIGKILL)
        except NagayaError:
            return
        import select  # the others wait for nothing

        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(_KILL_SECONDS * 1000):
            raise FailedPrecondition(
                f"container init still running after {_KILL_SECONDS:.0f} seconds", subject=record["id"]
            )
    finally:
        os.close(pidfd)


def pause(root: str, identifier: str) -> None:
    """Freeze all processes. Raises FailedPrecondition when it is not running."""
    record = store.load(root, identifier)
    status = status_of(root, record)
    if status not in ("running", "created"):
        raise FailedPrecondition("container not running", subject=identifier)
    _require_manager(record).freeze()


def resume(root: str, identifier: str) -> None:
    """Thaw. Raises FailedPrecondition when it is not paused."""
    record = store.load(root, identifier)
    if status_of(root, record) != "paused":
        raise FailedPrecondition("container not paused", subject=identifier)
    _require_manager(record).thaw()


def update(root: str, identifier: str, resources: dict[str, Any]) -> None:
    """Apply new linux.resources; what they leave out stays. Raises FailedPrecondition when stopped."""
    record = store.load(root, identifier)
    if not store.alive(record):
        raise FailedPrecondition("container not running", subject=identifier)
    _require_manager(record).set(resources)
    kept = record["config"].setdefault("linux", {}).setdefault("resources", {})
    for key, value in resources.items():
        if isinstance(value, dict) and isinstance(kept.get(key), dict):
            kept[key].update(value)
        else:
            kept[key] = value
    store.save(store.directory(root, identifier), record)


def ps(root: str, identifier: str) -> list[int]:
    """The pids (of the host) of all processes of the container."""
    return _require_manager(store.load(root, identifier)).pids()


def stats(root: str, identifier: str) -> dict[str, Any]:
    """Usage in the shape of `events --stats`."""
    record = store.load(root, identifier)
    if not store.alive(record):
        raise FailedPrecondition(f"container with id {identifier} is not running", subject=identifier)
    return _require_manager(record).stats()


def oom_kills(record: dict[str, Any]) -> int:
    """How many processes of the container the kernel's OOM killer has killed."""
    return _require_manager(record).oom_kills()
