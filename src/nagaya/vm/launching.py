"""Containers in microVMs are made here: the host's side of create, run and exec.

The first process that a container has on the host - a monitor with a machine, or a stand-in for one in a
pod's machine - is a fork that reports over a channel; state directory, cgroups and hooks are this side's,
as the low-level runtime's are (runtime.container). What fails is undone before the error leaves.
"""

from __future__ import annotations

import select

from nagaya.errors import InternalError, InvalidArgument, NagayaError, NotFound, from_wire
from nagaya.linux import namespaces as ns
from nagaya.linux import os, pids
from nagaya.oci import runtime as oci
from nagaya.runtime import channel, container, serving
from nagaya.runtime import state as store
from nagaya.runtime.container import Launched
from nagaya.vm.streams import open_terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.runtime import cgroups

VM = "vm"  # the record's member that is ours: {"directory": of the monitor, "mib"}
# which pod a container belongs to: containerd's annotation (and the daemon's), and CRI-O's
_POD = ("io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID")


def pod_of(spec: dict[str, Any]) -> str:
    """The id of the pod whose machine the container is to be in, "" for one of its own. Raises
    InvalidArgument."""
    annotations = spec.get("annotations") or {}
    found = next((annotations[name] for name in _POD if annotations.get(name)), "")
    return store.check_id(found) if found else ""


def host_resources(resources: dict[str, Any], mib: int) -> dict[str, Any]:
    """What of the limits holds the machine itself (pure): its processors; of memory what the guest has, and
    what QEMU needs. All the rest, the guest's kernel keeps."""
    kept = {"cpu": resources["cpu"]} if resources.get("cpu") else {}
    if (resources.get("memory") or {}).get("limit"):
        kept["memory"] = {"limit": (mib + OVERHEAD) << 20}
    return kept


OVERHEAD = 320  # MiB: QEMU with its translated code, and the monitor


def memory_of(spec: dict[str, Any], pod: bool) -> int:
    """MiB of the machine for a container (pure): a power of two, so that few kinds of machine are saved,
    with room for the guest's kernel above the container's limit."""
    limit = ((spec.get("linux") or {}).get("resources") or {}).get("memory") or {}
    wanted = int(limit.get("limit") or 0) >> 20
    mib = DEFAULT_MIB
    while wanted > 0 and mib < wanted + 64 and mib < _MOST_MIB:
        mib *= 2
    return max(mib, POD_MIB) if pod else mib


DEFAULT_MIB, POD_MIB, _MOST_MIB = 256, 1024, 64 << 10


def vcpus_of(spec: dict[str, Any]) -> int:
    """Processors of the machine (pure): as many as the container may use, one when nothing is said."""
    cpu = ((spec.get("linux") or {}).get("resources") or {}).get("cpu") or {}
    quota, period = int(cpu.get("quota") or 0), int(cpu.get("period") or 100000)
    return max(1, min(8, -(-quota // period))) if quota > 0 else 1


def make(
    root: str,
    identifier: str,
    bundle: str,
    spec: dict[str, Any],
    *,
    waits: bool,
    console: tuple[int, int] | None = None,
    cgroup_driver: str = "cgroupfs",
    rootless: bool = False,
    pid_file: str = "",
    values: dict[str, Any],
    **_ignored: Any,
) -> Launched:
    """Make a container; with waits it waits for `start`. Options as of runtime.container.run, those that
    have no meaning here are ignored; values: the command's global options. Raises InvalidArgument,
    AlreadyExists, CommandNotFound, ..."""
    from nagaya.vm import boot, first, guest  # an exec does without

    store.check_id(identifier)
    oci.validate(spec)
    pod = pod_of(spec)
    guest.check(spec, pod=bool(pod))
    path = store.make(root, identifier)
    manager: cgroups.Manager | None = None
    pid, pidfd, ends = -1, -1, (-1, -1)
    ours, theirs = channel.pair()
    try:
        record = container.new_record(identifier, bundle, spec, no_pivot=False)
        mib = memory_of(spec, bool(pod))
        linux: dict[str, Any] = spec.get("linux") or {}
        record[VM] = {"directory": f"{root}.pods/{pod}" if pod else path, "mib": mib}
        manager = container.new_manager(record, linux, cgroup_driver, rootless)
        store.save(path, record)
        if waits:
            os.mkfifo(f"{path}/{store.FIFO}", 0o600)
        if console is not None:
            size = (spec.get("process") or {}).get("consoleSize") or {}
            ends = open_terminal((int(size.get("height") or 0), int(size.get("width") or 0)))
        manager.create()
        if manager.paths:
            manager.set(host_resources(linux.get("resources") or {}, mib))
        wish = boot.Wish(
            spec,
            bundle,
            mib,
            vcpus=vcpus_of(spec),
            pod=bool(pod),
            cold=values["no-snapshot"],
            state=values["state"],
            kernels=values["guest"],
        )
        place = first.Place(root, identifier, wish, theirs, ends[1], waits=waits, pod=pod)
        pid, pidfd = ns.clone3(ns.CLONE_PIDFD)
        if not pid:
            first.main(place)
        theirs.close()
        container.note_process(record, pid)
        store.save(path, record)
        if manager.paths:
            manager.join(pid)
        ours.send(channel.GO)
        _expect(ours, channel.HOOKS)
        _run_hooks(record, spec)
        ours.send(channel.GO)
        _expect(ours, channel.READY)
        store.save(path, record)
        if pid_file:
            serving.write_pid_file(pid_file, pid)
        ours.send(channel.GO)
        if not waits:
            _expect(ours, STARTED)
            from nagaya.runtime import lifecycle

            lifecycle.poststart(record)
    except BaseException:
        _undo(pid, pidfd, manager, path)
        if ends[0] >= 0:
            os.close(ends[0])
        raise
    finally:
        ours.close()
        if ends[1] >= 0:
            os.close(ends[1])
    return Launched(pid, pidfd, ends[0])


STARTED = "started"  # [STARTED]: the program has been executed


def _expect(ours: channel.Channel, kind: str) -> None:
    received = ours.receive()
    if received is None:
        raise InternalError("the monitor died while it made the container", step="monitor")
    if received[0][0] == channel.ERROR:
        raise from_wire(received[0][1])
    if received[0][0] != kind:
        raise InternalError(f"unexpected message {received[0][0]!r}", step="monitor")


def _run_hooks(record: dict[str, Any], spec: dict[str, Any]) -> None:
    table = spec.get("hooks") or {}
    if table.get("prestart") or table.get("createRuntime"):
        from nagaya.runtime import hooks  # few have any

        for name in ("prestart", "createRuntime"):
            hooks.run(name, table.get(name) or [], store.oci_state(record, "creating", record["pid"]))


def _undo(pid: int, pidfd: int, manager: cgroups.Manager | None, path: str) -> None:
    if pid > 0:
        try:
            pids.pidfd_send_signal(pidfd, 9)
        except NagayaError:
            pass  # it has ended by itself
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(10_000)
        os.waitpid(pid, 0)
        os.close(pidfd)
    container.clear(manager, path)


def execute(
    root: str,
    identifier: str,
    process: dict[str, Any],
    *,
    console: tuple[int, int] | None,
    pid_file: str = "",
    ignore_paused: bool = False,
) -> Launched:
    """Run one more process in a container, with a stand-in that outlives us. Raises FailedPrecondition,
    CommandNotFound, ..."""
    from nagaya.vm import first

    directory = running(root, identifier, process, ignore_paused=ignore_paused)
    ends = (-1, -1)
    ours, theirs = channel.pair()
    pid, pidfd = -1, -1
    try:
        if console is not None:
            size = process.get("consoleSize") or {}
            ends = open_terminal((int(size.get("height") or 0), int(size.get("width") or 0)))
        pid, pidfd = ns.clone3(ns.CLONE_PIDFD)
        if not pid:
            first.exec_main(directory, identifier, process, theirs, ends[1])
        theirs.close()
        _expect(ours, STARTED)
        if pid_file:
            serving.write_pid_file(pid_file, pid)
    except BaseException:
        if pid > 0:
            pids.pidfd_send_signal(pidfd, 9)
            os.waitpid(pid, 0)
        if ends[0] >= 0:
            os.close(ends[0])
        raise
    finally:
        ours.close()
        if ends[1] >= 0:
            os.close(ends[1])
    return Launched(pid, pidfd, ends[0])


def running(root: str, identifier: str, process: dict[str, Any], *, ignore_paused: bool) -> str:
    """The directory of the monitor of a container in which a process can be run now. Raises
    FailedPrecondition, InvalidArgument."""
    from nagaya.errors import FailedPrecondition
    from nagaya.runtime import lifecycle

    record = store.load(root, identifier)
    status = lifecycle.status_of(root, record)
    if status == "stopped":
        raise FailedPrecondition("cannot exec in a stopped container", subject=identifier)
    if status == "paused" and not ignore_paused:
        raise FailedPrecondition(
            "cannot exec in a paused container (use --ignore-paused to override)", subject=identifier
        )
    oci.validate_process(process)
    return directory_of(record)


def directory_of(record: dict[str, Any]) -> str:
    """Where the container's monitor listens. Raises InvalidArgument for a container of another runtime."""
    known = record.get(VM)
    if not isinstance(known, dict) or not isinstance(known.get("directory"), str):
        raise InvalidArgument("it is a container of another runtime", subject=str(record.get("id")))
    return str(known["directory"])


def remove(root: str, identifier: str, *, force: bool) -> list[str]:
    """Remove what is left of a container, as runtime.lifecycle.delete does, and what its machine left on the
    host when it was killed. What poststop hooks complain of. Raises NotFound, FailedPrecondition."""
    from nagaya.runtime import lifecycle
    from nagaya.vm import leavings

    try:
        record = store.load(root, identifier)
    except NotFound:
        if not force:
            raise
        record = {}
    found = leavings.of(store.directory(root, identifier))
    complaints = lifecycle.delete(root, identifier, force=force)
    leavings.take_away(found)
    directory = (record.get(VM) or {}).get("directory") or ""
    if directory and directory != store.directory(root, identifier):
        from nagaya.vm import pod

        pod.release(directory, identifier)
    return complaints
