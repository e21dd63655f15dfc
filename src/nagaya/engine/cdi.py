"""Devices by name: the Container Device Interface (CDI specification 0.3 to 1.0).

A vendor's tool writes specs, JSON or YAML, into /etc/cdi (which lasts) and /var/run/cdi (of this boot, and
wins); each names devices "VENDOR/CLASS=NAME" and what a container with one needs: nodes, mounts, variables,
hooks, groups. `docker run --device vendor.com/class=name` asks for them, and `--gpus` is nvidia.com/gpu here.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from nagaya.engine.model import DeviceRequest
from nagaya.errors import InvalidArgument

_LARGEST = 16 << 20
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*/[A-Za-z][A-Za-z0-9_-]*=[A-Za-z0-9][A-Za-z0-9_.:-]*")
_GPU = "nvidia.com/gpu"
_HOOKS = frozenset(
    ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
)


class _Node(msgspec.Struct, frozen=True, rename="camel"):
    path: str
    host_path: str = ""
    type: str = ""
    major: int | None = None
    minor: int | None = None
    file_mode: int | None = None
    permissions: str = ""
    uid: int | None = None
    gid: int | None = None


class _Mount(msgspec.Struct, frozen=True, rename="camel"):
    host_path: str
    container_path: str
    options: tuple[str, ...] = ()
    type: str = ""


class _Hook(msgspec.Struct, frozen=True, rename="camel"):
    hook_name: str
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None


class Edits(msgspec.Struct, frozen=True, rename="camel"):
    """What is changed in a config.json."""

    env: tuple[str, ...] = ()
    device_nodes: tuple[_Node, ...] = ()
    mounts: tuple[_Mount, ...] = ()
    hooks: tuple[_Hook, ...] = ()
    additional_gids: tuple[int, ...] = msgspec.field(default=(), name="additionalGids")
    intel_rdt: dict[str, Any] | None = None


class _Device(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    container_edits: Edits = Edits()


class _Spec(msgspec.Struct, frozen=True, rename="camel"):
    cdi_version: str
    kind: str
    devices: tuple[_Device, ...] = ()
    container_edits: Edits = Edits()


class Catalog:
    """The devices that the specs in some directories name, as they are now; later directories win."""

    def __init__(self, directories: Sequence[str]) -> None:
        self._found: dict[str, tuple[Edits, Edits]] = {}  # name -> of all the spec's devices, its own
        self._mistakes: list[str] = []
        for directory in directories:
            self._read(directory)

    def _read(self, directory: str) -> None:
        here: dict[str, tuple[Edits, Edits]] = {}
        twice: set[str] = set()
        for path in _files(directory):
            try:
                spec = _decode(path)
            except (OSError, ImportError, msgspec.MsgspecError, ValueError, RecursionError) as error:
                self._mistakes.append(f"{path}: {' '.join(str(error).split())}")
                continue
            for device in spec.devices:
                name = f"{spec.kind}={device.name}"
                if name in here:
                    twice.add(name)
                here[name] = (spec.container_edits, device.container_edits)
        for name in twice:
            self._mistakes.append(f"{name} is in two specs of {directory}")
            del here[name]
        self._found.update(here)

    def devices(self) -> list[str]:
        """The names of all."""
        return sorted(self._found)

    def edits(self, names: Iterable[str]) -> list[Edits]:
        """What containers with these devices need. Raises InvalidArgument for names that nobody has."""
        wanted = list(dict.fromkeys(names))
        missing = [name for name in wanted if name not in self._found]
        if missing:
            why = f" ({'; '.join(self._mistakes)})" if self._mistakes else ""
            raise InvalidArgument(
                f"CDI device injection failed: unresolvable CDI devices {', '.join(missing)}{why}",
                subject="DeviceRequests",
            )
        common: list[Edits] = []
        for name in wanted:
            if not any(self._found[name][0] is known for known in common):
                common.append(self._found[name][0])
        return [*common, *(self._found[name][1] for name in wanted)]


def _files(directory: str) -> list[str]:
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return []
    return [f"{directory}/{name}" for name in names if name.endswith((".json", ".yaml", ".yml"))]


def _decode(path: str) -> _Spec:
    with open(path, "rb") as file:
        data = file.read(_LARGEST)
    decode = msgspec.json.decode if path.endswith(".json") else msgspec.yaml.decode
    return decode(data, type=_Spec)


def names(requests: Sequence[DeviceRequest]) -> list[str]:
    """The devices that DeviceRequests mean. Raises InvalidArgument, in dockerd's words, for other drivers."""
    found: list[str] = []
    for request in requests:
        if request.driver == "cdi":
            for name in request.ids:
                if _NAME.fullmatch(name) is None:
                    raise InvalidArgument(f"invalid CDI device name {name!r}", subject="DeviceRequests")
            found += request.ids
        elif request.driver in ("", "nvidia") and any("gpu" in group for group in request.capabilities):
            chosen = request.ids or (("all",) if request.count < 0 else map(str, range(request.count)))
            found += [f"{_GPU}={chosen_id}" for chosen_id in chosen]
        else:
            listed = " ".join(f"[{' '.join(group)}]" for group in request.capabilities)
            raise InvalidArgument(
                f'could not select device driver "{request.driver}" with capabilities: [{listed}]',
                subject="DeviceRequests",
            )
    return found


def apply(spec: dict[str, Any], edits: Sequence[Edits]) -> None:
    """Change a config.json. Raises InvalidArgument for what cannot be done."""
    process, linux = spec["process"], spec["linux"]
    for edit in edits:
        if edit.intel_rdt:
            raise InvalidArgument("CDI: intelRdt is not supported", subject="DeviceRequests")
        given = {variable.partition("=")[0] for variable in edit.env}
        process["env"] = [*(v for v in process["env"] if v.partition("=")[0] not in given), *edit.env]
        groups = process["user"].setdefault("additionalGids", [])
        groups += [gid for gid in edit.additional_gids if gid and gid not in groups]
        for node in edit.device_nodes:
            made = _node(node)
            linux["devices"] = [d for d in linux.get("devices", ()) if d["path"] != node.path] + [made]
            rule = {"allow": True, "type": made["type"], "access": node.permissions or "rwm"}
            if made["type"] != "p":
                linux["resources"]["devices"].append(rule | {"major": made["major"], "minor": made["minor"]})
        for mount in edit.mounts:
            spec["mounts"] = [m for m in spec["mounts"] if m["destination"] != mount.container_path]
            spec["mounts"].append(
                {
                    "destination": mount.container_path,
                    "type": mount.type or "bind",
                    "source": mount.host_path,
                    "options": list(mount.options) or ["rbind", "rprivate", "ro"],
                }
            )
        for hook in edit.hooks:
            if hook.hook_name not in _HOOKS:
                raise InvalidArgument(f"CDI: no hook is called {hook.hook_name!r}", subject="DeviceRequests")
            entry: dict[str, Any] = {"path": hook.path}
            entry |= {"args": list(hook.args)} if hook.args else {}
            entry |= {"env": list(hook.env)} if hook.env else {}
            entry |= {"timeout": hook.timeout} if hook.timeout is not None else {}
            spec.setdefault("hooks", {}).setdefault(hook.hook_name, []).append(entry)


def _node(node: _Node) -> dict[str, Any]:
    """What the spec leaves out is as it is on the host."""
    made: dict[str, Any] = {"path": node.path, "type": node.type, "major": node.major, "minor": node.minor}
    if not node.type or (node.type != "p" and (node.major is None or node.minor is None)):
        host = node.host_path or node.path
        try:
            info = os.stat(host)
        except (OSError, ValueError) as error:
            raise InvalidArgument(f"CDI device node {host}: {error}", subject="DeviceRequests") from None
        kinds = {stat.S_IFCHR: "c", stat.S_IFBLK: "b", stat.S_IFIFO: "p"}
        kind = kinds.get(stat.S_IFMT(info.st_mode), "")
        if not kind or (node.type and node.type != kind):
            raise InvalidArgument(f"CDI device node {host} is not such a device", subject="DeviceRequests")
        made |= {"type": kind, "major": os.major(info.st_rdev), "minor": os.minor(info.st_rdev)}
    for key, value in (("fileMode", node.file_mode), ("uid", node.uid), ("gid", node.gid)):
        if value is not None:
            made[key] = value
    return made
