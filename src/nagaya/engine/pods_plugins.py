"""What plugins are asked about pods and their containers, and what they may change (pure, but for the
protocol's calls). `api.nri` speaks with the plugins; without any, nothing is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Literal, Protocol

import msgspec

from nagaya.engine.model import Container
from nagaya.engine.pods_model import LinuxResources, Pod
from nagaya.errors import Unimplemented

PodEvent = Literal["RunPodSandbox", "StopPodSandbox", "RemovePodSandbox", "PostUpdatePodSandbox"]
ContainerEvent = Literal[
    "PostCreateContainer",
    "StartContainer",
    "PostStartContainer",
    "PostUpdateContainer",
    "StopContainer",
    "RemoveContainer",
]
Adjustment = dict[str, Any]

_APPLIED = frozenset("annotations mounts env hooks linux rlimits CDI_devices args".split())
_APPLIED_LINUX = frozenset(
    "devices resources oom_score_adj sysctl io_priority scheduler net_devices namespaces memory_policy"
    " seccomp_policy".split()
)
_WHOLE = ("io_priority", "scheduler", "memory_policy", "seccomp_policy")  # one plugin's, as they are
_MEMORY = {
    "kernel_tcp": "kernelTCP",
    "disable_oom_killer": "disableOOMKiller",
    "use_hierarchy": "useHierarchy",
}
_CPU = {"realtime_runtime": "realtimeRuntime", "realtime_period": "realtimePeriod"}
_HOOKS = {
    "prestart": "prestart",
    "create_runtime": "createRuntime",
    "create_container": "createContainer",
    "start_container": "startContainer",
    "poststart": "poststart",
    "poststop": "poststop",
}


class Plugins(Protocol):
    """The plugins that are there now."""

    def steady(self) -> AbstractAsyncContextManager[None]:
        """While something is made about which they must be asked, no other one comes."""
        ...

    async def pod(self, event: PodEvent, pod: Pod) -> None:
        """Tell them; what one of them raises on RunPodSandbox undoes the pod."""
        ...

    async def container(self, event: ContainerEvent, pod: Pod, container: Container) -> None:
        """Tell them; what one of them raises on StartContainer is the start's."""
        ...

    async def create(self, pod: Pod, container: Container) -> Adjustment:
        """What they want changed in a container that is being made, as the interface names it, without
        its wrappers of numbers. Raises what a plugin raises; FailedPrecondition when two want the same."""
        ...

    async def update(self, pod: Pod, container: Container, limits: LinuxResources) -> LinuxResources:
        """Limits are about to change: what they shall be."""
        ...

    async def update_pod(
        self, pod: Pod, overhead: LinuxResources | None, resources: LinuxResources | None
    ) -> None:
        """A pod's are. Raises what a plugin raises."""
        ...


class NoPlugins:
    """Nobody asks."""

    def steady(self) -> AbstractAsyncContextManager[None]:
        """Nobody comes."""
        return nullcontext()

    async def pod(self, event: PodEvent, pod: Pod) -> None:
        """Nothing to do."""

    async def container(self, event: ContainerEvent, pod: Pod, container: Container) -> None:
        """Nothing to do."""

    async def create(self, pod: Pod, container: Container) -> Adjustment:
        """Nothing is changed."""
        return {}

    async def update(self, pod: Pod, container: Container, limits: LinuxResources) -> LinuxResources:
        """As they are."""
        return limits

    async def update_pod(
        self, pod: Pod, overhead: LinuxResources | None, resources: LinuxResources | None
    ) -> None:
        """Nothing to do."""


def check(adjustment: Adjustment) -> None:
    """Refuse what is not carried out. Raises Unimplemented that names it."""
    for name in adjustment:
        if name not in _APPLIED:
            raise Unimplemented(f"the adjustment {name} is not offered", subject=name)
    for name in adjustment.get("linux", {}):
        if name not in _APPLIED_LINUX:
            raise Unimplemented(f"the adjustment linux.{name} is not offered", subject=f"linux.{name}")


def apply(document: dict[str, Any], adjustment: Adjustment) -> None:
    """Change a config.json as plugins want it. What begins with "-" is taken away (NRI, pkg/api)."""
    annotations = document.setdefault("annotations", {})
    for key, value in adjustment.get("annotations", {}).items():
        if key.startswith("-"):
            annotations.pop(key[1:], None)
        else:
            annotations[key] = value
    process = document["process"]
    for pair in adjustment.get("env", ()):
        key = str(pair.get("key", ""))
        name = key.removeprefix("-")
        process["env"] = [v for v in process["env"] if v.partition("=")[0] != name]
        if not key.startswith("-"):
            process["env"].append(f"{name}={pair.get('value', '')}")
    if arguments := adjustment.get("args"):
        process["args"] = [word for index, word in enumerate(arguments) if index or word]
    for mount in adjustment.get("mounts", ()):
        target = str(mount["destination"])
        kept = [m for m in document["mounts"] if m["destination"] != target.removeprefix("-")]
        document["mounts"] = kept if target.startswith("-") else [*kept, mount]
    for limit in adjustment.get("rlimits", ()):
        others = [r for r in process.get("rlimits", ()) if r["type"] != limit["type"]]
        made = {"type": limit["type"], "hard": limit.get("hard", 0), "soft": limit.get("soft", 0)}
        process["rlimits"] = [*others, made]
    for kind, hooks in adjustment.get("hooks", {}).items():
        document.setdefault("hooks", {}).setdefault(_HOOKS[kind], []).extend(hooks)
    linux = adjustment.get("linux", {})
    if "oom_score_adj" in linux:
        process["oomScoreAdj"] = linux["oom_score_adj"]
    document["linux"].setdefault("sysctl", {}).update(linux.get("sysctl", {}))
    for device in linux.get("devices", ()):
        _add_device(document, device)
    if "io_priority" in linux:
        process["ioPriority"] = {"priority": 0, **linux["io_priority"]}
    if "scheduler" in linux:
        process["scheduler"] = dict(linux["scheduler"])
    if "memory_policy" in linux:
        document["linux"]["memoryPolicy"] = {"mode": "MPOL_DEFAULT", "nodes": "", **linux["memory_policy"]}
    if "seccomp_policy" in linux:
        document["linux"]["seccomp"] = seccomp_to_oci(linux["seccomp_policy"])
    for name, device in linux.get("net_devices", {}).items():
        found = document["linux"].setdefault("netDevices", {})
        found.pop(name.removeprefix("-"), None)
        if not name.startswith("-"):
            found[name] = dict(device)
    for namespace in linux.get("namespaces", ()):
        kind = str(namespace["type"])
        known = document["linux"]["namespaces"]
        known[:] = [n for n in known if n["type"] != kind.removeprefix("-")]
        if not kind.startswith("-"):
            known.append(dict(namespace))
    _merge(document["linux"]["resources"], resources_to_oci(linux.get("resources", {})))


_SECCOMP = {
    "default_action": "defaultAction",
    "default_errno": "defaultErrnoRet",
    "listener_path": "listenerPath",
    "listener_metadata": "listenerMetadata",
    "errno_ret": "errnoRet",
    "value_two": "valueTwo",
}


def seccomp_to_oci(found: Any) -> Any:
    """`linux.seccomp` of the runtime-spec of a plugin's. Arguments have all their numbers."""
    if isinstance(found, list):
        return [seccomp_to_oci(one) for one in found]
    if not isinstance(found, dict):
        return found
    numbers = {"index": 0, "value": 0} if "op" in found else {}
    return numbers | {_SECCOMP.get(name, name): seccomp_to_oci(value) for name, value in found.items()}


def _add_device(document: dict[str, Any], device: Mapping[str, Any]) -> None:
    path = str(device["path"])
    devices = document["linux"].setdefault("devices", [])
    devices[:] = [d for d in devices if d["path"] != path.removeprefix("-")]
    if path.startswith("-"):
        return
    node = {"path": path, "type": device.get("type", "c")}
    node |= {"major": device.get("major", 0), "minor": device.get("minor", 0)}
    node |= {
        oci: device[name]
        for name, oci in (("file_mode", "fileMode"), ("uid", "uid"), ("gid", "gid"))
        if name in device
    }
    devices.append(node)
    rule = {"allow": True, "access": "rwm", **{key: node[key] for key in ("type", "major", "minor")}}
    document["linux"]["resources"].setdefault("devices", []).append(rule)


def resources_to_oci(found: Mapping[str, Any]) -> dict[str, Any]:
    """`linux.resources` of the runtime-spec of a plugin's; what is not said is absent."""
    out: dict[str, Any] = {}
    for section, names in (("memory", _MEMORY), ("cpu", _CPU)):
        if section in found:
            out[section] = {names.get(name, name): value for name, value in found[section].items()}
    if "pids" in found:
        out["pids"] = {"limit": found["pids"].get("limit", 0)}
    if "hugepage_limits" in found:
        out["hugepageLimits"] = [
            {"pageSize": h["page_size"], "limit": h.get("limit", 0)} for h in found["hugepage_limits"]
        ]
    if "unified" in found:
        out["unified"] = dict(found["unified"])
    return out


def _merge(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict):
            into[key] = {**into.get(key, {}), **value}
        else:
            into[key] = value


def limits_of(found: Mapping[str, Any]) -> LinuxResources:
    """A plugin's update of a container, in the kubelet's words."""
    memory, cpu = found.get("memory", {}), found.get("cpu", {})
    return LinuxResources(
        cpu_period=cpu.get("period", 0),
        cpu_quota=cpu.get("quota", 0),
        cpu_shares=cpu.get("shares", 0),
        memory_limit_in_bytes=memory.get("limit", 0),
        cpuset_cpus=cpu.get("cpus", ""),
        cpuset_mems=cpu.get("mems", ""),
        unified=dict(found.get("unified", {})),
        memory_swap_limit_in_bytes=memory.get("swap", 0),
    )


def amended(limits: LinuxResources, more: LinuxResources) -> LinuxResources:
    """Limits with what others say in their place."""
    said = {
        field: value
        for field in LinuxResources.__struct_fields__
        if (value := getattr(more, field)) != getattr(LinuxResources(), field)
    }
    return msgspec.structs.replace(limits, **said)


def merge(into: Adjustment, more: Adjustment, owners: dict[str, str], plugin: str) -> str:
    """Add a plugin's adjustment to those of the plugins before it. owners: field -> plugin, kept up to
    date. Returns the first field that two want, with whose it is, "" for none."""
    for field in _fields(more):
        if field in owners:
            return f"{field}, which plugin {owners[field]} has set"
        owners[field] = plugin
    for key, value in more.items():
        if isinstance(value, list):
            into[key] = [*into.get(key, []), *value]
        elif key == "linux":
            linux = into.setdefault("linux", {})
            for name, inner in value.items():
                if name == "resources":
                    _merge(linux.setdefault("resources", {}), inner)
                elif isinstance(inner, list):
                    linux[name] = [*linux.get(name, []), *inner]
                elif isinstance(inner, dict):
                    linux[name] = {**linux.get(name, {}), **inner}
                else:
                    linux[name] = inner
        elif key == "hooks":
            hooks = into.setdefault("hooks", {})
            for kind, found in value.items():
                hooks[kind] = [*hooks.get(kind, []), *found]
        else:
            into[key] = {**into.get(key, {}), **value}
    return ""


def _fields(adjustment: Adjustment) -> Sequence[str]:
    """What it claims: hooks and CDI devices are claimed by nobody."""
    linux = adjustment.get("linux", {})
    found = [f"annotation {key.removeprefix('-')}" for key in adjustment.get("annotations", {})]
    found += [f"env {pair.get('key', '').removeprefix('-')}" for pair in adjustment.get("env", ())]
    found += [f"mount {m['destination'].removeprefix('-')}" for m in adjustment.get("mounts", ())]
    found += [f"rlimit {limit['type']}" for limit in adjustment.get("rlimits", ())]
    found += [f"device {d['path'].removeprefix('-')}" for d in linux.get("devices", ())]
    found += [f"sysctl {name}" for name in linux.get("sysctl", {})]
    found += [f"net device {name.removeprefix('-')}" for name in linux.get("net_devices", {})]
    found += [f"namespace {n['type'].removeprefix('-')}" for n in linux.get("namespaces", ())]
    found += [name for name in _WHOLE if name in linux]
    found += ["args"] if adjustment.get("args") else []
    found += ["oom_score_adj"] if "oom_score_adj" in linux else []
    for section, value in linux.get("resources", {}).items():
        inner = value if isinstance(value, dict) else {"": value}
        found += [f"resources {section} {name}".rstrip() for name in inner]
    return found
