"""A bundle's config.json as what the guest's agent is asked for: fields of `create` and `exec` (vm.protocol).

Pure. The words of a specification are understood by the low-level runtime's plan (runtime.plan), so that
both runtimes agree; what is a microVM's business is which of them a guest of its own can keep. What it
cannot keep - the host's devices, its network, its other containers' namespaces - is refused here, and not
left out.
"""

from __future__ import annotations

from nagaya.errors import InvalidArgument
from nagaya.linux import bpf, caps, seccomp
from nagaya.linux import mounts as m
from nagaya.linux import namespaces as ns
from nagaya.linux.process import RLIMITS
from nagaya.runtime import plan
from nagaya.runtime.cgroups import devices as device_rules
from nagaya.runtime.cgroups import v2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from nagaya.vm.protocol import Value

    Fields = list[tuple[str, Value]]

# Devices of the guest's own kernel that a container may ask for by number: fuse, tun, kmsg, loop-control
_GUEST_DEVICES = frozenset(((10, 229), (10, 200), (1, 11), (10, 237)))
_LINKS = (
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
)
_HELD = ns.CLONE_NEWNS | ns.CLONE_NEWPID | ns.CLONE_NEWIPC | ns.CLONE_NEWUTS | ns.CLONE_NEWCGROUP
# runtime-spec, config-linux.md: limits of devices that the guest has others of
_HOST_DEVICE_LIMITS = (
    "weightDevice throttleReadBpsDevice throttleWriteBpsDevice throttleReadIOPSDevice throttleWriteIOPSDevice"
).split()


def check(spec: dict[str, Any], *, pod: bool) -> None:
    """Refuse what a microVM cannot keep. pod: it lies in a VM with others, whose namespaces it may share.
    Raises InvalidArgument with the field as subject."""
    linux = spec.get("linux") or {}
    kinds = {n["type"]: n.get("path") or "" for n in linux.get("namespaces") or []}
    if "network" not in kinds:
        raise _refused("linux.namespaces", "a microVM cannot use the host's network")
    if "user" in kinds or linux.get("uidMappings"):
        raise _refused("linux.namespaces", "a microVM has no user namespaces, for it has a kernel of its own")
    for kind in ("pid", "ipc"):
        if kinds.get(kind) and not pod:
            raise _refused("linux.namespaces", f"a microVM cannot join the {kind} namespace {kinds[kind]}")
    for kind in ("mount", "cgroup", "time"):
        if kinds.get(kind):
            raise _refused("linux.namespaces", f"a microVM cannot join the {kind} namespace {kinds[kind]}")
    for kind in ("createContainer", "startContainer"):
        if (spec.get("hooks") or {}).get(kind):
            raise _refused(f"hooks.{kind}", "a hook of the host cannot run in a microVM")
    block = (linux.get("resources") or {}).get("blockIO") or {}
    for key in _HOST_DEVICE_LIMITS:
        if block.get(key):
            raise _refused(f"linux.resources.blockIO.{key}", "a microVM has none of the host's devices")
    if linux.get("netDevices"):
        raise _refused("linux.netDevices", "interfaces are moved into a microVM by its network namespace")
    everything = _all_devices(linux)
    for index, device in enumerate(linux.get("devices") or []):
        if not (everything or _is_guest_device(device)):
            raise _refused(f"linux.devices[{index}]", f"a microVM has not the host's device {device['path']}")


def _refused(field: str, words: str) -> InvalidArgument:
    return InvalidArgument(f"{field}: {words}", subject=field)


def _all_devices(linux: dict[str, Any]) -> bool:
    """May it use every device of the machine it is on, as a privileged one? In a guest: of the guest."""
    rules = (linux.get("resources") or {}).get("devices") or []
    return any(r.get("allow") and r.get("type") in (None, "", "a") and r.get("major") is None for r in rules)


def _is_guest_device(device: dict[str, Any]) -> bool:
    numbers = (device.get("major"), device.get("minor"))
    return device.get("type") in ("c", "u") and (
        numbers in _GUEST_DEVICES or numbers in [(major, minor) for _, major, minor in plan.DEFAULT_DEVICES]
    )


def container(
    identifier: str,
    spec: dict[str, Any],
    bundle: str,
    *,
    root: str,
    sources: Mapping[int, str],
    hostname: str = "",
    joins: Mapping[str, int] | None = None,
    shared: frozenset[str] = frozenset(),
) -> Fields:
    """Fields of `create`, but those of its process.

    root: the guest's directory that is its root. sources: where in the guest the source of a bind mount lies,
    by its index in `mounts`. hostname: where the specification says none. joins: processes of the guest
    whose namespace of that kind is joined; shared: kinds that are the guest's own, for all in it.
    """
    linux = spec.get("linux") or {}
    job = plan.plan_container(spec, bundle)
    flags = 0
    for kind in job.namespaces:
        if kind not in shared and kind not in (joins or {}):
            flags |= plan.NAMESPACES[kind] & _HELD
    fields: Fields = [("container", identifier), ("root", root), ("namespaces", flags | ns.CLONE_NEWNS)]
    fields += [("join", f"{number} {plan.NAMESPACES[kind]}") for kind, number in (joins or {}).items()]
    if spec.get("hostname") or hostname:
        fields.append(("hostname", spec.get("hostname") or hostname))
    if spec.get("domainname"):
        fields.append(("domainname", spec["domainname"]))
    readonly_dev = False
    for step in job.steps:
        if isinstance(step, plan.Mount):
            fields.append(("mount", _mount(step, root, sources)))
        elif isinstance(step, plan.Devices):
            fields += [("device", _device(node)) for node in step.nodes if _is_guest_device(node)]
            fields += [("symlink", f"{path}\0{target}") for path, target in _LINKS]
        elif isinstance(step, plan.ReadonlyRoot):
            readonly_dev |= step.dev
            if not step.dev:
                fields.append(("readonly", 1))
        elif isinstance(step, plan.Propagation) and step.name == "root propagation":
            fields.append(("propagation", step.flags))
        elif isinstance(step, plan.MaskedPaths):
            fields += [("mask", path) for path in step.paths]
        elif isinstance(step, plan.ReadonlyPaths):
            fields += [("protect", path) for path in step.paths]
        elif isinstance(step, plan.Sysctl):
            fields += [("sysctl", f"{k.replace('.', '/')}={v}") for k, v in step.values.items()]
    if readonly_dev:
        fields.append(("protect", "/dev"))
    resources = linux.get("resources") or {}
    # the guest's own devices are its disks, and the line to its agent
    rules = device_rules.parse(resources.get("devices"))
    if not all(rule[0] for rule in rules):
        fields.append(("devices", bpf.compile_devices(rules)))
    return fields + [("limit", limit) for limit in limits(resources)]


def _mount(step: plan.Mount, root: str, sources: Mapping[int, str]) -> str:
    kind, source, flags, data = step.type, step.source, step.options.flags, step.options.data
    if step.options.rec_set & m.MOUNT_ATTR_RDONLY:
        flags |= m.MS_RDONLY  # of a tree that is one mount in the guest
    if isinstance(step, plan.CgroupMount):
        kind, source, data = "cgroup2", "cgroup", ""
    elif step.bind:
        kind, data = "", ""
        flags |= m.MS_BIND | m.MS_REC
        if step.inside and step.index not in sources:
            source = f"{root}/{step.source.partition('/rootfs/')[2]}"
        else:
            source = sources[step.index]
    propagation = 0
    for word in step.options.propagation:
        propagation |= word
    return "\0".join((kind, source, step.destination, str(flags), str(propagation), data))


def _device(node: dict[str, Any]) -> str:
    mode = node.get("fileMode")
    numbers = (node.get("major") or 0, node.get("minor") or 0, 0o666 if mode is None else mode)
    owner = (node.get("uid") or 0, node.get("gid") or 0)
    return "\0".join((node["path"], node.get("type") or "c", *map(str, numbers + owner)))


def limits(resources: dict[str, Any]) -> list[str]:
    """`limit` fields: lines FILE=VALUE of the container's cgroup in the guest. Raises InvalidArgument."""
    kept = {
        key: value for key, value in resources.items() if key not in ("hugepageLimits", "network", "rdma")
    }
    # which of the host's processors and memory nodes: QEMU's cgroup holds it to them
    return [f"{file}={value}" for file, value, _ in v2.plan_v2(kept) if not file.startswith("cpuset.")]


def process(
    number: int,
    wanted: dict[str, Any],
    profile: dict[str, Any] | None,
    *,
    stdin: bool,
    size: tuple[int, int] | None,
) -> Fields:
    """Fields of a process of `create` or `exec`. size: (rows, columns) of its terminal; profile: the seccomp
    profile of its container. Raises InvalidArgument."""
    user = wanted.get("user") or {}
    fields: Fields = [("process", number), ("cwd", wanted.get("cwd") or "/")]
    fields += [("arg", word) for word in wanted.get("args") or []]
    fields += [("env", word) for word in wanted.get("env") or [] if word.partition("=")[1]]
    fields += [("uid", user.get("uid") or 0), ("gid", user.get("gid") or 0)]
    fields += [("group", group) for group in user.get("additionalGids") or []]
    umask = user.get("umask")
    fields.append(("umask", 0o022 if umask is None else umask))
    sets = wanted.get("capabilities") or {}
    masks = {kind: caps.to_mask(sets.get(kind) or [])[0] for kind in _SETS}
    masks["effective"] &= masks["permitted"]
    masks["ambient"] &= masks["inheritable"] & masks["permitted"]
    masks["inheritable"] = masks["ambient"]  # CVE-2022-29162
    fields.append(("caps", " ".join(f"{masks[kind]:x}" for kind in _SETS)))
    for limit in wanted.get("rlimits") or []:
        if limit["type"] not in RLIMITS:
            raise InvalidArgument(f"unknown rlimit {limit['type']!r}", subject="process.rlimits")
        soft, hard = limit.get("soft") or 0, limit.get("hard") or 0
        fields.append(("rlimit", f"{RLIMITS[limit['type']]} {soft} {hard}"))
    if wanted.get("noNewPrivileges"):
        fields.append(("nnp", 1))
    if wanted.get("oomScoreAdj") is not None:
        fields.append(("oom", wanted["oomScoreAdj"]))
    if size is not None:
        fields.append(("terminal", f"{size[0]} {size[1]}"))
    if stdin:
        fields.append(("stdin", 1))
    if profile:
        fields.append(("seccomp", seccomp.compile_profile(profile)))
    return fields


_SETS = ("bounding", "effective", "permitted", "inheritable", "ambient")
