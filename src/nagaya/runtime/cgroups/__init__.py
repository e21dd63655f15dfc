"""The cgroups of a container: made, limited, joined, frozen, measured and removed.

    from nagaya.runtime import cgroups
    cg = cgroups.manager(spec["linux"].get("cgroupsPath", ""), "cgroupfs", container_id=id)
    cg.create()
    cg.set(resources)                 # OCI linux.resources
    cg.join(pid)                      # everything; or memory=False now and memory=True before exec
    state = cg.to_state()             # later, in another process: cgroups.from_state(state)
    cg.delete()

Which of v1 (also hybrid, whose cgroup2 has the processes and no limits) and v2 is used follows
the mounts; the driver says whether we make the directories ("cgroupfs") or systemd does ("systemd").
Decisions are pure (`v1_limits.plan_v1`, `v2.plan_v2`, `paths`, `systemd.properties`), effects thin.
The interpreter may have left the host's file system when `join` is called by a child: take
`join_fds` before. See docs/adr/0003-seccomp-and-cgroups.md.
"""

from __future__ import annotations

from nagaya.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.runtime.cgroups.base import Manager as Manager

DRIVERS = ("cgroupfs", "systemd")


def manager(
    cgroups_path: str,
    driver: str = "cgroupfs",
    *,
    container_id: str,
    annotations: dict[str, str] | None = None,
) -> Manager:
    """The manager of a container's cgroups; nothing is made yet.

    cgroups_path is OCI linux.cgroupsPath: absolute below the mount points; relative below our own
    cgroup; empty for CONTAINER_ID below our own cgroup. With the systemd driver it is
    "slice:prefix:name", and annotations may name properties of the unit. Raises InvalidArgument,
    FailedPrecondition (no cgroups mounted).
    """
    if driver not in DRIVERS:
        raise InvalidArgument(f"cgroup driver must be cgroupfs or systemd, not {driver!r}", subject="driver")
    from nagaya.linux import cgroup

    found = cgroup.layout()
    if driver == "systemd":
        from nagaya.runtime.cgroups import systemd  # rare, and it needs D-Bus

        return systemd.manager(found, cgroups_path, container_id, annotations or {})
    if found.version == 2:
        from nagaya.runtime.cgroups import v2  # one of the two is never needed

        return v2.ManagerV2({"": v2.path_for(found, cgroup.own(), cgroups_path, container_id)})
    from nagaya.runtime.cgroups import v1

    return v1.ManagerV1(v1.paths_for(found, cgroup.own(), cgroups_path, container_id))


def from_state(state: dict[str, Any]) -> Manager:
    """The manager that `Manager.to_state` described. Raises InvalidArgument."""
    version, paths = state.get("version"), state.get("paths")
    if (
        version not in (1, 2)
        or not isinstance(paths, dict)
        or not all(isinstance(k, str) and isinstance(v, str) and v.startswith("/") for k, v in paths.items())
    ):
        raise InvalidArgument("the recorded cgroups are not readable", subject="state.cgroup")
    if state.get("driver") == "systemd":
        from nagaya.runtime.cgroups import systemd

        return systemd.from_state(state)
    if version == 2:
        from nagaya.runtime.cgroups import v2

        return v2.ManagerV2(paths)
    from nagaya.runtime.cgroups import v1

    return v1.ManagerV1(paths)
