"""A container's config.json, turned into the list of steps that make it.

Pure: nothing is opened, made or asked here. `steps` carries a plan out inside the container's first
process (`init`), `container` does the host's part, `nagaya-oci plan` prints it. The order is that
of runc (runtime-spec, runtime.md "Lifecycle"), and is the order of the list.
"""

from __future__ import annotations

from nagaya.errors import InvalidArgument
from nagaya.linux import mounts as m
from nagaya.linux import namespaces as ns
from nagaya.runtime.options import PROPAGATION, Parsed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.oci.scheduling import Scheduling

NAMESPACES = {
    "user": ns.CLONE_NEWUSER,
    "cgroup": ns.CLONE_NEWCGROUP,
    "ipc": ns.CLONE_NEWIPC,
    "uts": ns.CLONE_NEWUTS,
    "network": ns.CLONE_NEWNET,
    "pid": ns.CLONE_NEWPID,
    "time": ns.CLONE_NEWTIME,
    "mount": ns.CLONE_NEWNS,
}

# What Docker and every other runtime put into /dev (runtime-spec, config-linux.md "Default Devices")
DEFAULT_DEVICES = (
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
)

# Files below /proc that may be mounted over: they inform, and steer nothing (as runc has it)
PROC_EXCEPTIONS = (
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
)


# the members of `process` and `linux` that oci.scheduling understands
_SCHEDULING = ("scheduler", "ioPriority", "execCPUAffinity", "memoryPolicy", "personality")


class Step:
    """One thing to do. `name` is what a person reads and an error is prefixed with."""

    __slots__ = ("detail", "name")

    def __init__(self, name: str, detail: str = "") -> None:
        self.name = name
        self.detail = detail


class Join(Step):
    """Enter an existing namespace."""

    __slots__ = ("flag", "path")

    def __init__(self, kind: str, path: str) -> None:
        super().__init__("join " + kind, path)
        self.path = path
        self.flag = NAMESPACES[kind]


class Enter(Step):
    """Enter the cgroups and all namespaces of a running container."""

    __slots__ = ("affinity", "flags", "pid", "pidfd")

    def __init__(self, pid: int, pidfd: int, flags: int, affinity: tuple[list[int], list[int]]) -> None:
        super().__init__("enter container", f"pid {pid}")
        self.affinity = affinity  # CPUs before, and after the cgroups are joined
        self.pid = pid
        self.pidfd = pidfd
        self.flags = flags


class Placed(Step):
    """Wait until the parent has mapped ids and made the cgroups, and join these."""


class MappedRoot(Step):
    """Become uid and gid 0 of the new user namespace."""


class Unshare(Step):
    """Leave namespaces that can be left only now (cgroup: its root is where we are)."""

    __slots__ = ("flags",)

    def __init__(self, name: str, flags: int) -> None:
        super().__init__(name)
        self.flags = flags


class OwnTime(Step):
    """A new time namespace: its clocks can be set only while no process is in it (time_namespaces(7))."""

    __slots__ = ("offsets",)

    def __init__(self, offsets: dict[str, Any]) -> None:
        super().__init__("new time namespace", " ".join(offsets))
        self.offsets = offsets


class NetDevices(Step):
    """Interfaces of the host that the parent moves to our network namespace."""


class Keyring(Step):
    """The container's own session keyring, with the SELinux label of its processes."""

    __slots__ = ("label",)

    def __init__(self, process: dict[str, Any]) -> None:
        super().__init__("session keyring")
        self.label: str = process.get("selinuxLabel") or ""


class Loopback(Step):
    """Set the interface lo up in a new network namespace."""


class Propagation(Step):
    """Set how mounts of the host reach the new mount namespace."""

    __slots__ = ("flags",)

    def __init__(self, name: str, detail: str, flags: int) -> None:
        super().__init__(name, detail)
        self.flags = flags


class Root(Step):
    """Mount and open the root file system."""

    __slots__ = ("overlay", "path", "private", "shared", "slave")

    def __init__(self, path: str, overlay: dict[str, Any] | None, propagation: str, private: bool) -> None:
        super().__init__("root", ("overlay of " + " ".join(overlay["lower"])) if overlay else path)
        self.path = path
        self.overlay = overlay
        # may it, or what it lies on, be shared with the host? Is it to hear of the host's mounts?
        self.shared = propagation not in ("", "rslave", "rprivate", "runbindable")
        self.slave = propagation == "slave"
        self.private = private  # in a mount namespace of its own


class Mount(Step):
    """One entry of `mounts`."""

    __slots__ = (
        "bind",
        "destination",
        "idmapped",
        "index",
        "inside",
        "label",
        "mappings",
        "options",
        "recursive",
        "source",
        "type",
    )

    def __init__(self, index: int, entry: dict[str, Any], label: str = "") -> None:
        self.index = index
        self.destination: str = entry["destination"]
        self.source: str = entry.get("source") or ""
        self.options = Parsed(entry.get("options") or [])
        self.type: str = entry.get("type") or ""
        self.bind = bool(self.options.flags & m.MS_BIND) or self.type == "bind"
        self.recursive = bool(self.options.flags & m.MS_REC)
        # of what the container has alone; what the kernel fills has labels by the policy
        self.label = "" if self.bind or self.type in ("proc", "sysfs") else label
        self.mappings: tuple[Any, Any] = (entry.get("uidMappings"), entry.get("gidMappings"))
        self.inside = False  # the source lies in the container's root: what was mounted there before counts
        # whose files' owners are mapped: with the entry's mappings, or the container's
        self.idmapped = any(self.mappings) or bool({"idmap", "ridmap"} & set(self.options.extensions))
        super().__init__(
            "mount " + self.destination, f"{'bind' if self.bind else self.type} {self.source}".strip()
        )


class CgroupMount(Mount):
    """The cgroup file system(s), as this host has them."""

    __slots__ = ("own_namespace",)

    def __init__(self, index: int, entry: dict[str, Any], own_namespace: bool) -> None:
        super().__init__(index, entry)
        self.own_namespace = own_namespace


class Devices(Step):
    """The nodes and links of /dev."""

    __slots__ = ("bind", "nodes")

    def __init__(self, nodes: list[dict[str, Any]], bind: bool) -> None:
        super().__init__("devices", " ".join(str(n["path"]) for n in nodes))
        self.nodes = nodes
        self.bind = bind


class Console(Step):
    """A pseudoterminal of the container, mounted at /dev/console."""

    __slots__ = ("host", "mount", "size")

    def __init__(self, size: tuple[int, int], *, mount: bool, host: bool = False) -> None:
        super().__init__("console", f"{size[0]}x{size[1]}" if any(size) else "")
        self.size = size
        self.mount = mount  # the first process's terminal is also /dev/console
        self.host = host  # of the host's devpts: there is none below the root without a mount namespace


class HostHooks(Step):
    """Let the parent run the prestart and createRuntime hooks, before the root changes."""


class Hooks(Step):
    """Run hooks inside the container's namespaces."""

    __slots__ = ("hooks", "kind", "status")

    def __init__(self, kind: str, hooks: list[dict[str, Any]], status: str) -> None:
        super().__init__(f"hooks {kind}", " ".join(str(h["path"]) for h in hooks))
        self.kind = kind
        self.hooks = hooks
        self.status = status


class ChangeRoot(Step):
    """pivot_root(2); or move and chroot (`--no-pivot`), or only chroot without a mount namespace."""

    __slots__ = ("how",)

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how


class MakeDirectory(Step):
    """The working directory, when the image lacks it."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        super().__init__("mkdir " + path)
        self.path = path


class ReadonlyRoot(Step):
    """The root file system, read-only from here on."""

    __slots__ = ("dev",)

    def __init__(self, name: str, dev: bool) -> None:
        super().__init__(name)
        self.dev = dev


class Hostname(Step):
    """sethostname(2) or setdomainname(2)."""

    __slots__ = ("domain",)

    def __init__(self, text: str, domain: bool) -> None:
        super().__init__("domainname" if domain else "hostname", text)
        self.domain = domain


class Sysctl(Step):
    """Write sysctls of the container's own namespaces."""

    __slots__ = ("values",)

    def __init__(self, values: dict[str, str]) -> None:
        super().__init__("sysctl", " ".join(f"{k}={v}" for k, v in values.items()))
        self.values = values


class ReadonlyPaths(Step):
    """Paths made read-only in place."""

    __slots__ = ("paths",)

    def __init__(self, paths: list[str]) -> None:
        super().__init__("read-only paths", " ".join(paths))
        self.paths = paths


class MaskedPaths(Step):
    """Paths hidden below /dev/null or an empty directory."""

    __slots__ = ("label", "paths")

    def __init__(self, paths: list[str], label: str) -> None:
        self.label = label
        self.paths = list(dict.fromkeys(paths))  # one cover is enough for a path that is given twice
        super().__init__("masked paths", " ".join(self.paths))


class Identity(Step):
    """Everything that `process` says about who runs: see steps.identity."""

    __slots__ = ("process", "seccomp")

    def __init__(self, process: dict[str, Any], seccomp: dict[str, Any] | None) -> None:
        user = process.get("user") or {}
        super().__init__("identity", f"uid {user.get('uid', 0)} gid {user.get('gid', 0)}")
        self.process = process
        self.seccomp = seccomp


class Plan:
    """All there is to do, by whom.

    clone: flags of the namespaces that are made with the first process. stage: a process in
    between joins namespaces before that clone (a joined user namespace, or a new one beside joined
    others). late: the process that joined a pid namespace becomes visible in it only when
    everything is dropped, by a last clone before the exec. userns: its ids are mapped or joined.
    """

    __slots__ = (
        "clone",
        "late",
        "mappings",
        "namespaces",
        "process",
        "scheduling",
        "stage",
        "stage_joins",
        "steps",
        "userns",
    )

    def __init__(self) -> None:
        self.clone = 0
        self.stage = False
        self.late = False
        self.userns = False
        self.namespaces: dict[str, str] = {}
        self.stage_joins: list[Join] = []
        self.mappings: tuple[list[Any], list[Any]] = ([], [])
        self.process: dict[str, Any] = {}
        self.scheduling: Scheduling | None = None
        self.steps: list[Step] = []


def plan_container(
    spec: dict[str, Any],
    bundle: str,
    *,
    rootfs: dict[str, Any] | None = None,
    console: tuple[int, int] | None = None,
    no_pivot: bool = False,
    no_new_keyring: bool = False,
) -> Plan:
    """The plan of a new container from a validated spec (oci.runtime.validate).

    rootfs: an overlay for the runtime to mount instead of root.path. console: size of the terminal
    (0, 0 for the kernel's default) when one is wanted. Raises InvalidArgument.
    """
    linux = spec.get("linux") or {}
    process = spec.get("process") or {}
    plan = Plan()
    plan.process = process
    plan.scheduling = _scheduling(process, linux)
    plan.namespaces = {n["type"]: n.get("path") or "" for n in linux.get("namespaces") or []}
    joins = [Join(kind, path) for kind, path in plan.namespaces.items() if path]
    joins.sort(key=_join_order)
    new = {kind for kind, path in plan.namespaces.items() if not path}
    plan.userns = "user" in plan.namespaces
    plan.mappings = (linux.get("uidMappings") or [], linux.get("gidMappings") or [])
    made = 0
    for kind in new:
        made |= NAMESPACES[kind]
    # what a user namespace is to own is made by its root, or the mqueue file system belongs to nobody;
    # a cgroup namespace's root is where the process is, so it comes when that is settled
    later = ns.CLONE_NEWCGROUP | ns.CLONE_NEWTIME
    if plan.userns:
        later |= ns.CLONE_NEWNS | ns.CLONE_NEWNET | ns.CLONE_NEWIPC | ns.CLONE_NEWUTS
    plan.clone = made & ~later
    plan.stage = plan.userns and bool(joins)
    plan.late = bool(plan.namespaces.get("pid"))
    if plan.stage:
        plan.stage_joins = [j for j in joins if j.flag != ns.CLONE_NEWPID]
        joins = [j for j in joins if j.flag == ns.CLONE_NEWPID]
    plan.steps.extend(joins)

    steps = plan.steps
    placed: list[Step] = [Placed("join cgroups")]
    if plan.userns:
        placed.append(MappedRoot("user namespace root"))
    apart = made & later & ~ns.CLONE_NEWTIME
    if apart:
        names = [kind for kind, flag in NAMESPACES.items() if apart & flag]
        placed.append(Unshare(f"new {' '.join(names)} namespace", apart))
    if made & ns.CLONE_NEWTIME:
        placed.append(OwnTime(linux.get("timeOffsets") or {}))
    if linux.get("netDevices"):
        placed.append(NetDevices("network devices", " ".join(linux["netDevices"])))
    if plan.userns:
        steps.extend(placed)
    if not no_new_keyring:
        steps.append(Keyring(process))
    if "network" in new:
        steps.append(Loopback("loopback up"))
    _plan_root(plan, spec, linux, bundle, rootfs, console, no_pivot)
    if not plan.userns:
        # late, for meanwhile the parent makes the cgroups: a millisecond on another CPU
        at = next(i for i, step in enumerate(steps) if _wants_cgroups(step))
        steps[at:at] = placed
    if spec.get("hostname"):
        steps.append(Hostname(spec["hostname"], False))
    if spec.get("domainname"):
        steps.append(Hostname(spec["domainname"], True))
    if linux.get("sysctl"):
        steps.append(Sysctl(linux["sysctl"]))
    if linux.get("readonlyPaths"):
        steps.append(ReadonlyPaths(linux["readonlyPaths"]))
    if linux.get("maskedPaths"):
        steps.append(MaskedPaths(linux["maskedPaths"], linux.get("mountLabel") or ""))
    if (spec.get("root") or {}).get("readonly") and "mount" in plan.namespaces:  # else it is the host's mount
        steps.append(ReadonlyRoot("read-only root", False))
    steps.append(Identity(process, linux.get("seccomp")))
    return plan


def plan_exec(
    spec: dict[str, Any], process: dict[str, Any], pid: int, pidfd: int, *, no_new_keyring: bool = False
) -> Plan:
    """The plan of one more process in a container, whose first process is pid: its namespaces are
    joined as one by the pidfd. no_new_keyring: as the container was made."""
    linux = spec.get("linux") or {}
    plan = Plan()
    plan.process = process
    plan.scheduling = _scheduling(process, linux)
    plan.namespaces = {n["type"]: n.get("path") or "" for n in linux.get("namespaces") or []}
    plan.userns = "user" in plan.namespaces
    plan.late = "pid" in plan.namespaces
    flags = 0
    for kind in plan.namespaces:
        flags |= NAMESPACES[kind]
    affinity = plan.scheduling.affinity if plan.scheduling is not None else ([], [])
    plan.steps.append(Enter(pid, pidfd, flags, affinity))
    if not no_new_keyring:
        plan.steps.append(Keyring(process))
    if process.get("terminal"):
        plan.steps.append(Console(console_size(process), mount=False))
    plan.steps.append(Identity(process, linux.get("seccomp")))
    return plan


def _scheduling(process: dict[str, Any], linux: dict[str, Any]) -> Scheduling | None:
    if not any(key in process for key in _SCHEDULING) and not any(key in linux for key in _SCHEDULING):
        return None
    from nagaya.oci.scheduling import Scheduling  # few ask for it

    return Scheduling(process, linux)


def console_size(process: dict[str, Any]) -> tuple[int, int]:
    """(height, width) that process.consoleSize asks for; zeros when it does not."""
    size = process.get("consoleSize") or {}
    return int(size.get("height") or 0), int(size.get("width") or 0)


def _wants_cgroups(step: Step) -> bool:
    """Shows the cgroups, may look at them, or fills memory that they are to account for."""
    if isinstance(step, CgroupMount | HostHooks | Hooks | ChangeRoot):
        return True
    return isinstance(step, Mount) and "tmpcopyup" in step.options.extensions


def _join_order(join: Join) -> int:
    # the user namespace after what our own rights may enter; the mount namespace last: the paths of the
    # others are the host's
    return {ns.CLONE_NEWUSER: 1, ns.CLONE_NEWNS: 2}.get(join.flag, 0)


def _plan_root(
    plan: Plan,
    spec: dict[str, Any],
    linux: dict[str, Any],
    bundle: str,
    rootfs: dict[str, Any] | None,
    console: tuple[int, int] | None,
    no_pivot: bool,
) -> None:
    steps = plan.steps
    path = (spec.get("root") or {}).get("path") or "rootfs"
    if not path.startswith("/"):
        path = f"{bundle}/{path}"
    mounts = spec.get("mounts") or []
    hooks = spec.get("hooks") or {}
    private = "mount" in plan.namespaces
    if not private:
        if rootfs or linux.get("maskedPaths") or linux.get("readonlyPaths"):
            raise InvalidArgument(
                "linux.namespaces: unable to restrict sys entries without a private mount namespace",
                subject="linux.namespaces",
            )
        mounts = []  # they would be the host's (runc leaves them out, too)
    wanted = linux.get("rootfsPropagation") or ""
    if wanted and wanted not in PROPAGATION:
        raise InvalidArgument(
            f"linux.rootfsPropagation: unknown word {wanted!r:.60}", subject="linux.rootfsPropagation"
        )
    if private:
        flags = PROPAGATION[wanted or "rslave"]
        steps.append(Propagation("propagation", wanted or "rslave", flags))
    steps.append(Root(path, rootfs, wanted, private))
    own_dev = True
    dev_readonly = False
    for index, entry in enumerate(mounts):
        step = _plan_mount(index, entry, plan, path.rstrip("/"), linux.get("mountLabel") or "")
        steps.append(step)
        if step.destination.rstrip("/") == "/dev":
            own_dev = not step.bind
            if step.type == "tmpfs" and step.options.flags & m.MS_RDONLY:
                # nodes are still to be made in it: read-only comes after them
                step.options.flags &= ~m.MS_RDONLY
                dev_readonly = True
    if private and own_dev:
        nodes: list[dict[str, Any]] = [
            {"path": p, "type": "c", "major": major, "minor": minor, "fileMode": 0o666}
            for p, major, minor in DEFAULT_DEVICES
        ]
        own = {d["path"] for d in linux.get("devices") or []}
        nodes = [n for n in nodes if n["path"] not in own] + list(linux.get("devices") or [])
        steps.append(Devices(nodes, plan.userns))
    if console is not None:
        steps.append(Console(console, mount=private, host=not private))
    if dev_readonly:
        steps.append(ReadonlyRoot("read-only /dev", True))
    if hooks.get("prestart") or hooks.get("createRuntime"):
        steps.append(HostHooks("host hooks"))
    if hooks.get("createContainer"):
        steps.append(Hooks("createContainer", hooks["createContainer"], "creating"))
    steps.append(ChangeRoot("chroot" if not private else "move root" if no_pivot else "pivot_root"))
    if wanted and private:
        steps.append(Propagation("root propagation", wanted, PROPAGATION[wanted]))
    cwd = plan.process.get("cwd")
    if cwd and cwd != "/":
        steps.append(MakeDirectory(cwd))


def _plan_mount(index: int, entry: dict[str, Any], plan: Plan, root: str, label: str) -> Mount:
    if entry.get("type") == "cgroup":
        step: Mount = CgroupMount(index, entry, "cgroup" in plan.namespaces)
    else:
        step = Mount(index, entry, label)
    destination = "/" + "/".join(p for p in step.destination.split("/") if p not in ("", "."))
    if root != "/" and (destination == root or destination.startswith(root + "/")):
        destination = destination[len(root) :] or "/"  # some give the host's name of the place; so does runc
    if step.idmapped and not step.bind:
        raise InvalidArgument(
            f"mounts[{index}]: id-mapped mounts are only supported for bind-mounts",
            subject=f"mounts[{index}]",
        )
    if destination == "/proc" and step.type != "proc" and not step.bind:
        raise InvalidArgument(
            f'"{destination}" cannot be mounted because it is not of type proc', subject=f"mounts[{index}]"
        )
    if destination.startswith("/proc/") and destination not in PROC_EXCEPTIONS:
        raise InvalidArgument(
            f'"{destination}" cannot be mounted because it is inside /proc', subject=f"mounts[{index}]"
        )
    step.destination = destination
    step.inside = step.bind and step.source.startswith(root + "/")
    if plan.userns and step.bind and destination == "/sys" and step.options.flags & m.MS_RDONLY:
        # so are a user's own cgroups below it, as nothing is mounted over them (CVE-2023-25809)
        step.options.rec_set |= m.MOUNT_ATTR_RDONLY
    return step
