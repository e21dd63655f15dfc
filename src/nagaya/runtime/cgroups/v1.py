"""Cgroups v1, also of the hybrid layout: one directory per mounted hierarchy. Limits are `v1_limits`."""

from __future__ import annotations

from nagaya.errors import InvalidArgument, KernelError
from nagaya.linux import cgroup, os
from nagaya.runtime.cgroups.base import Manager, check_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def paths_for(
    found: cgroup.Layout, own: dict[str, str], cgroups_path: str, container_id: str
) -> dict[str, str]:
    """{controller: absolute path} for OCI cgroupsPath (pure), as runc chooses it: absolute below
    each mount point, relative (or the id, when empty) below our own cgroup of that hierarchy. "" is
    cgroup2's, which the hybrid layout has beside these.

    Raises InvalidArgument.
    """
    inner = check_path(cgroups_path) or check_path(container_id)
    if inner in ("", "/"):
        raise InvalidArgument("cgroupsPath must name a cgroup of its own", subject="linux.cgroupsPath")
    paths: dict[str, str] = {}
    hierarchies = list(found.hierarchies)
    if found.unified:
        hierarchies.append(cgroup.Hierarchy(found.unified, found.unified_root, ("",)))
    for hierarchy in hierarchies:
        base = hierarchy.mountpoint
        if not inner.startswith("/"):
            mine = own.get(hierarchy.controllers[0], "/")
            base += cgroup.relative_to_mount(mine, hierarchy.root).rstrip("/")
        path = f"{base}/{inner.lstrip('/')}"
        for controller in hierarchy.controllers:
            paths[controller] = path
    return paths


class ManagerV1(Manager):
    """Cgroups in all mounted v1 hierarchies."""

    __slots__ = ()

    version = 1
    _self_file = "tasks"

    def create(self) -> None:
        """Make a directory per hierarchy; cpuset inherits its cpus and mems, without which no
        process may join (cgroup-v1/cpusets.rst)."""
        self._claim()
        self._make()

    def _claim(self) -> None:
        if not self.fresh and self.exists():
            self._refuse_used()
        self.fresh = True

    def birthplace(self) -> int:
        """The hybrid layout's cgroup2, which limits nothing: to be born there costs 0.3 ms, to join it 10.
        Where it cannot be had it is left alone, as by runc."""
        self._claim()
        path = self.paths.get("")
        if path is None:
            return -1
        try:
            cgroup.make(path)
            return cgroup.open_directory(path)
        except KernelError:
            del self.paths[""]
            return -1

    def _make(self) -> None:
        done: set[str] = set()
        for controller, path in list(self.paths.items()):
            if controller and path not in done:
                made = self._make_one(controller)
                if controller not in self.paths:
                    continue
                done.add(path)
                if controller == "cpuset":
                    _inherit_cpuset([*_unfilled(os.dirname(made[0] if made else path)), *made])

    def set(self, resources: dict[str, Any], *, devices: bool | None = None) -> None:
        from nagaya.runtime.cgroups import v1_limits  # whoever only joins, looks or deletes sets none

        fresh = self.fresh and not self.rootless
        devices = fresh if devices is None else devices
        v1_limits.apply(self.paths, resources, devices=devices, lenient=self.lenient)

    def join_paths(self, memory: bool | None = None) -> list[str]:
        memory_path = self.paths.get("memory")
        if memory is True:
            return [memory_path] if memory_path else []
        paths = dict.fromkeys(path for controller, path in self.paths.items() if controller)
        return [path for path in paths if memory is None or path != memory_path]

    def _freezer(self) -> tuple[str, str, str]:
        return self.paths.get("freezer", ""), "FROZEN", "THAWED"

    def _write_freezer(self, path: str, value: str) -> None:
        cgroup.write(f"{path}/freezer.state", value)

    def oom_kills(self) -> int:
        events = cgroup.try_read(f"{self.paths.get('memory', '')}/memory.oom_control") or ""
        return cgroup.parse_pairs(events).get("oom_kill", 0)

    def stats(self) -> dict[str, Any]:
        from nagaya.runtime.cgroups import stats  # only the verb `events` and the API's stats need it

        return stats.v1(self.paths)


def _unfilled(path: str) -> list[str]:
    """The cgroups from path upwards, top down, that somebody made and never gave a cpu or a node to."""
    found: list[str] = []
    while "" in ((cgroup.try_read(f"{path}/cpuset.{key}") or "?").strip() for key in ("cpus", "mems")):
        found.insert(0, path)
        path = os.dirname(path)
    return found


def _inherit_cpuset(made: list[str]) -> None:
    for path in made:  # top down: each copies from a parent that has its values
        parent = os.dirname(path)
        for file in ("cpuset.cpus", "cpuset.mems"):
            value = cgroup.read(f"{parent}/{file}").strip()
            # the parent may be a stranger's that was never filled: what it may use, then
            if not value:
                value = (cgroup.try_read(f"{parent}/{file.replace('.', '.effective_')}") or "").strip()
            if value:
                cgroup.write(f"{path}/{file}", value)
