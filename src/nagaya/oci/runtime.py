"""The runtime specification's config.json as plain data: validation, defaults, the `spec` verb.

opencontainers/runtime-spec 1.3 (config.md, config-linux.md). Unknown fields pass: a runtime must
ignore what it does not know. A wrong type or value raises InvalidArgument with the field's path.
"""

from __future__ import annotations

from nagaya.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = "1.3.0"
_NAMESPACES = ("pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time")
_HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
_ID_LIMIT = (1 << 31) - 1  # CVE-2024-40635, 2026-46680: larger ones wrapped to 0 or became names
_RLIMIT_LIMIT = 1 << 64
_IPC_SYSCTLS = frozenset(
    "kernel.msgmax kernel.msgmnb kernel.msgmni kernel.sem kernel.shmall kernel.shmmax kernel.shmmni"
    " kernel.shm_rmid_forced".split()
)


def _bad(field: str, message: str) -> InvalidArgument:
    # one line, though keys and values may have more
    text = "".join(c if c >= " " else f"\\x{ord(c):02x}" for c in f"{field}: {message}")
    return InvalidArgument(text, subject=field)


def _check_text(value: str, field: str) -> None:
    """What the kernel can be given: no NUL, no half of a surrogate pair, as JSON may spell ("\\ud800")."""
    if "\0" in value:
        raise _bad(field, "must not contain a NUL character")
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise _bad(field, "must be text that UTF-8 can have") from None


def _get(parent: Any, key: str, kind: type[Any], field: str) -> Any:
    """The member as `kind`, or None when absent or null."""
    value: Any = parent.get(key)
    if value is None:
        return None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        names = {dict: "an object", list: "a list", str: "a string", int: "an integer", bool: "true or false"}
        raise _bad(field, f"must be {names[kind]}, not {value!r:.60}")
    if kind is str:
        _check_text(value, field)
    return value


def _strings(parent: Any, key: str, field: str) -> list[str]:
    values = _get(parent, key, list, field) or []
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise _bad(f"{field}[{index}]", f"must be a string, not {value!r:.60}")
        _check_text(value, f"{field}[{index}]")
    return values


def _objects(parent: Any, key: str, field: str) -> list[dict[str, Any]]:
    values = _get(parent, key, list, field) or []
    for index, value in enumerate(values):
        if not isinstance(value, dict):
            raise _bad(f"{field}[{index}]", f"must be an object, not {value!r:.60}")
    return values


def _number(parent: Any, key: str, field: str, low: int, high: int) -> int | None:
    value: int | None = _get(parent, key, int, field)
    if value is not None and not low <= value <= high:
        raise _bad(field, f"{value} is out of range ({low} to {high})")
    return value


def validate(spec: Any) -> None:
    """Check the whole specification for a new container. Raises InvalidArgument naming the field."""
    if not isinstance(spec, dict):
        raise _bad("config.json", "must be an object")
    version = _get(spec, "ociVersion", str, "ociVersion")
    if not version:
        raise _bad("ociVersion", "is missing")
    major = version.split(".", 1)[0]
    if major != "1":
        raise _bad("ociVersion", f"version {version:.60} is not supported, only 1.x")
    process = _get(spec, "process", dict, "process")
    if process is None:
        raise _bad("process", "is missing")
    validate_process(process)
    root = _get(spec, "root", dict, "root")
    if root is None:
        raise _bad("root", "is missing")
    _get(root, "path", str, "root.path")
    _get(root, "readonly", bool, "root.readonly")
    _get(spec, "hostname", str, "hostname")
    _get(spec, "domainname", str, "domainname")
    _annotations(spec)
    for index, entry in enumerate(_objects(spec, "mounts", "mounts")):
        field = f"mounts[{index}]"
        destination = _get(entry, "destination", str, f"{field}.destination")
        if not destination:
            raise _bad(f"{field}.destination", "is missing")
        _get(entry, "type", str, f"{field}.type")
        _get(entry, "source", str, f"{field}.source")
        _strings(entry, "options", f"{field}.options")
        for key in ("uidMappings", "gidMappings"):
            _mappings(entry, key, f"{field}.{key}")
    hooks = _get(spec, "hooks", dict, "hooks") or {}
    for kind in _HOOKS:
        for index, hook in enumerate(_objects(hooks, kind, f"hooks.{kind}")):
            _hook(hook, f"hooks.{kind}[{index}]")
    _linux(_get(spec, "linux", dict, "linux") or {}, spec)


def _mappings(parent: dict[str, Any], key: str, field: str) -> list[dict[str, Any]]:
    mappings = _objects(parent, key, field)
    for index, entry in enumerate(mappings):
        for member in ("containerID", "hostID", "size"):
            _number(entry, member, f"{field}[{index}].{member}", 0, 0xFFFFFFFF)
    return mappings


def _annotations(spec: dict[str, Any]) -> None:
    for key, value in (_get(spec, "annotations", dict, "annotations") or {}).items():
        if not isinstance(value, str):
            raise _bad(f"annotations.{key}", "must be a string")
        _check_text(key + value, f"annotations.{key}")


def _hook(hook: dict[str, Any], field: str) -> None:
    path = _get(hook, "path", str, f"{field}.path")
    if not path or not path.startswith("/"):
        raise _bad(f"{field}.path", "must be an absolute path")
    _strings(hook, "args", f"{field}.args")
    _strings(hook, "env", f"{field}.env")
    timeout = _get(hook, "timeout", int, f"{field}.timeout")
    if timeout is not None and timeout <= 0:
        raise _bad(f"{field}.timeout", "must be greater than zero")


def validate_process(process: Any, field: str = "process") -> None:
    """Check a process object (of config.json, or of `exec`). Raises InvalidArgument."""
    if not isinstance(process, dict):
        raise _bad(field, "must be an object")
    args = _strings(process, "args", f"{field}.args")
    if not args or not args[0]:
        raise _bad(f"{field}.args", "must not be empty")
    cwd = _get(process, "cwd", str, f"{field}.cwd")
    if not cwd:
        raise _bad(f"{field}.cwd", "must not be empty")
    if not cwd.startswith("/"):
        raise _bad(f"{field}.cwd", "must be an absolute path")
    _strings(process, "env", f"{field}.env")
    for key in ("terminal", "noNewPrivileges"):
        _get(process, key, bool, f"{field}.{key}")
    size = _get(process, "consoleSize", dict, f"{field}.consoleSize") or {}
    for key in ("height", "width"):
        _number(size, key, f"{field}.consoleSize.{key}", 0, 0xFFFF)
    user = _get(process, "user", dict, f"{field}.user") or {}
    for key in ("uid", "gid"):
        _number(user, key, f"{field}.user.{key}", 0, _ID_LIMIT)
    _number(user, "umask", f"{field}.user.umask", 0, 0o777)
    for index, gid in enumerate(_get(user, "additionalGids", list, f"{field}.user.additionalGids") or []):
        _number({"gid": gid}, "gid", f"{field}.user.additionalGids[{index}]", 0, _ID_LIMIT)
    capabilities = _get(process, "capabilities", dict, f"{field}.capabilities") or {}
    for kind in ("bounding", "effective", "permitted", "inheritable", "ambient"):
        _strings(capabilities, kind, f"{field}.capabilities.{kind}")
    _rlimits(process, field)
    _number(process, "oomScoreAdj", f"{field}.oomScoreAdj", -1000, 1000)
    _get(process, "apparmorProfile", str, f"{field}.apparmorProfile")
    _get(process, "selinuxLabel", str, f"{field}.selinuxLabel")


def _rlimits(process: dict[str, Any], field: str) -> None:
    seen = set()
    for index, limit in enumerate(_objects(process, "rlimits", f"{field}.rlimits")):
        where = f"{field}.rlimits[{index}]"
        kind = _get(limit, "type", str, f"{where}.type")
        if not kind or not kind.startswith("RLIMIT_"):
            raise _bad(f"{where}.type", f"invalid rlimit type {kind!r:.60}")
        if kind in seen:
            raise _bad(f"{where}.type", f"{kind} is given twice")
        seen.add(kind)
        soft = _number(limit, "soft", f"{where}.soft", 0, _RLIMIT_LIMIT - 1) or 0
        hard = _number(limit, "hard", f"{where}.hard", 0, _RLIMIT_LIMIT - 1) or 0
        if soft > hard:
            raise _bad(where, f"{kind}: the soft limit {soft} is above the hard limit {hard}")


def _linux(linux: dict[str, Any], spec: dict[str, Any]) -> None:
    kinds: dict[str, str] = {}
    for index, entry in enumerate(_objects(linux, "namespaces", "linux.namespaces")):
        kind = _get(entry, "type", str, f"linux.namespaces[{index}].type")
        if kind not in _NAMESPACES:
            raise _bad(f"linux.namespaces[{index}].type", f"unknown namespace {kind!r:.60}")
        if kind in kinds:
            raise _bad(f"linux.namespaces[{index}].type", f"namespace {kind} is given twice")
        path = _get(entry, "path", str, f"linux.namespaces[{index}].path") or ""
        if path and not path.startswith("/"):
            raise _bad(f"linux.namespaces[{index}].path", "must be an absolute path")
        kinds[kind] = path
    for key in ("uidMappings", "gidMappings"):
        mappings = _mappings(linux, key, f"linux.{key}")
        if mappings and "user" not in kinds:
            raise _bad(f"linux.{key}", "needs a user namespace")
        if kinds.get("user") == "" and not mappings:
            raise _bad(f"linux.{key}", "a new user namespace needs mappings")
    if spec.get("hostname") and "uts" not in kinds:
        raise _bad("hostname", "unable to set hostname without a private UTS namespace")
    if spec.get("domainname") and "uts" not in kinds:
        raise _bad("domainname", "unable to set domainname without a private UTS namespace")
    for key in ("maskedPaths", "readonlyPaths"):
        for index, path in enumerate(_strings(linux, key, f"linux.{key}")):
            if not path.startswith("/"):
                raise _bad(f"linux.{key}[{index}]", "must be an absolute path")
    _sysctls(linux, kinds, spec)
    _get(linux, "cgroupsPath", str, "linux.cgroupsPath")
    _resources(_get(linux, "resources", dict, "linux.resources") or {})
    _seccomp(_get(linux, "seccomp", dict, "linux.seccomp") or {})
    _get(linux, "rootfsPropagation", str, "linux.rootfsPropagation")
    for index, node in enumerate(_objects(linux, "devices", "linux.devices")):
        field = f"linux.devices[{index}]"
        path = _get(node, "path", str, f"{field}.path")
        if not path or not path.startswith("/"):
            raise _bad(f"{field}.path", "must be an absolute path")
        if _get(node, "type", str, f"{field}.type") not in ("c", "b", "u", "p"):
            raise _bad(f"{field}.type", f"unknown device type {node.get('type')!r:.60}")
        for member in ("uid", "gid"):
            _number(node, member, f"{field}.{member}", 0, _ID_LIMIT)
        for member in ("major", "minor", "fileMode"):
            _number(node, member, f"{field}.{member}", 0, 0xFFFFFFFF)
    for name, offset in (_get(linux, "timeOffsets", dict, "linux.timeOffsets") or {}).items():
        if name not in ("monotonic", "boottime") or not isinstance(offset, dict):
            raise _bad(f"linux.timeOffsets.{name}", "must be the offset of monotonic or boottime")
        for member in ("secs", "nanosecs"):
            _get(offset, member, int, f"linux.timeOffsets.{name}.{member}")
        if kinds.get("time") != "":
            raise _bad("linux.timeOffsets", "needs a time namespace of the container's own")
    _network_devices(linux, kinds)
    if _get(linux, "intelRdt", dict, "linux.intelRdt") is not None:
        raise _bad("linux.intelRdt", "Intel RDT is not enabled")
    _get(linux, "mountLabel", str, "linux.mountLabel")


def _resources(resources: dict[str, Any]) -> None:
    """What the cgroups' plans do not look at: they check what they use, and name it."""
    memory = _get(resources, "memory", dict, "linux.resources.memory") or {}
    for key in ("disableOOMKiller", "useHierarchy", "checkBeforeUpdate"):
        _get(memory, key, bool, f"linux.resources.memory.{key}")
    for key in ("kernel", "kernelTCP"):
        _get(memory, key, int, f"linux.resources.memory.{key}")
    _get(resources, "unified", dict, "linux.resources.unified")


def _seccomp(profile: dict[str, Any]) -> None:
    """Types alone; what the words mean is linux.seccomp's to check."""
    field = "linux.seccomp"
    for key in ("defaultAction", "listenerPath", "listenerMetadata"):
        _get(profile, key, str, f"{field}.{key}")
    _get(profile, "defaultErrnoRet", int, f"{field}.defaultErrnoRet")
    _strings(profile, "architectures", f"{field}.architectures")
    if "compiled" not in profile:  # there the flags are the kernel's number
        _strings(profile, "flags", f"{field}.flags")
    for index, call in enumerate(_objects(profile, "syscalls", f"{field}.syscalls")):
        where = f"{field}.syscalls[{index}]"
        _strings(call, "names", f"{where}.names")
        _objects(call, "args", f"{where}.args")


def _network_devices(linux: dict[str, Any], kinds: dict[str, str]) -> None:
    devices = _get(linux, "netDevices", dict, "linux.netDevices") or {}
    for name, device in devices.items():
        field = f"linux.netDevices.{name}"
        if not isinstance(device or {}, dict):
            raise _bad(field, "must be an object")
        new_name = _get(device or {}, "name", str, f"{field}.name") or name
        for text in (name, new_name):
            # dev_valid_name of the kernel, as runc has it
            if (
                not 0 < len(text.encode("utf-8", "surrogatepass")) < 16
                or text in (".", "..")
                or set(text) & set("/: \t\n\0")
            ):
                raise _bad(field, f"invalid network device name {text!r:.60}")
    if devices and "network" not in kinds:
        raise _bad("linux.netDevices", "unable to move network devices without a private NET namespace")


def _sysctls(linux: dict[str, Any], kinds: dict[str, str], spec: dict[str, Any]) -> None:
    """Only what belongs to a namespace of the container's own may be set (CVE-2022-0532)."""
    for key, value in (_get(linux, "sysctl", dict, "linux.sysctl") or {}).items():
        field = f"linux.sysctl.{key}"
        if not isinstance(value, str) or "\n" in value or "\0" in value:
            raise _bad(field, "must be a string of one line")
        _check_text(key + value, field)
        name = key.replace("/", ".") if "/" in key and "." not in key.split("/", 1)[0] else key
        if (
            not name
            or name.startswith(".")
            or ".." in key
            or "\0" in key
            or "\n" in key
            or "=" in key
            or "+" in key
        ):
            raise _bad(field, "is not the name of a sysctl")
        if name in _IPC_SYSCTLS or name.startswith("fs.mqueue."):
            needed, label = "ipc", "IPC"
        elif name.startswith("net."):
            needed, label = "network", "network"
        elif name == "kernel.domainname":
            needed, label = "uts", "UTS"
        elif name == "kernel.hostname":
            raise _bad(field, "is set by `hostname`")
        elif name.startswith("user."):
            needed, label = "user", "user"
        else:
            raise _bad(field, f'sysctl "{key}" is not in a separate kernel namespace')
        if needed not in kinds:
            raise _bad(field, f'sysctl "{key}" is not allowed in the hosts {label} namespace')


def makes_pid_namespace(spec: Any) -> bool:
    """Is the first process alone in a new pid namespace, so that no other container can look at it?"""
    try:
        kinds = [n for n in spec["linux"]["namespaces"] if n["type"] == "pid"]
        return len(kinds) == 1 and not kinds[0].get("path")
    except (TypeError, KeyError, AttributeError):
        return False


def example(*, rootless_ids: tuple[int, int] | None = None, own_cgroups: bool = True) -> dict[str, Any]:
    """The starter config.json of `nagaya-oci spec`, as runc's; rootless_ids: (uid, gid) to map;
    own_cgroups: a cgroup namespace."""
    kinds = ["pid", "network", "ipc", "uts", "mount"] + ["cgroup"] * own_cgroups
    granted = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
    plain = ["nosuid", "noexec", "nodev"]
    spec: dict[str, Any] = {
        "ociVersion": VERSION,
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {kind: list(granted) for kind in ("bounding", "effective", "permitted")},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "nagaya",
        "mounts": [
            _entry("/proc", "proc", "proc", []),
            _entry("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
            _entry(
                "/dev/pts",
                "devpts",
                "devpts",
                ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            ),
            _entry("/dev/shm", "tmpfs", "shm", [*plain, "mode=1777", "size=65536k"]),
            _entry("/dev/mqueue", "mqueue", "mqueue", plain),
            _entry("/sys", "sysfs", "sysfs", [*plain, "ro"]),
            _entry("/sys/fs/cgroup", "cgroup", "cgroup", [*plain, "relatime", "ro"]),
        ],
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in kinds],
            "maskedPaths": [
                "/proc/acpi",
                "/proc/asound",
                "/proc/interrupts",
                "/proc/kcore",
                "/proc/keys",
                "/proc/latency_stats",
                "/proc/timer_list",
                "/proc/timer_stats",
                "/proc/sched_debug",
                "/sys/firmware",
                "/sys/devices/virtual/powercap",
                "/proc/scsi",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }
    if rootless_ids is not None:
        _make_rootless(spec, *rootless_ids)
    return spec


def _entry(destination: str, kind: str, source: str, options: list[str]) -> dict[str, Any]:
    entry: dict[str, Any] = {"destination": destination, "type": kind, "source": source}
    if options:
        entry["options"] = list(options)
    return entry


def _make_rootless(spec: dict[str, Any], uid: int, gid: int) -> None:
    linux = spec["linux"]
    linux["namespaces"] = [n for n in linux["namespaces"] if n["type"] != "network"] + [{"type": "user"}]
    linux["uidMappings"] = [{"containerID": 0, "hostID": uid, "size": 1}]
    linux["gidMappings"] = [{"containerID": 0, "hostID": gid, "size": 1}]
    del linux["resources"]
    mounts = []
    for entry in spec["mounts"]:
        if entry["destination"] == "/sys":
            # sysfs cannot be mounted without a network namespace of one's own
            entry = _entry("/sys", "none", "/sys", ["rbind", "nosuid", "noexec", "nodev", "ro"])
        elif entry["destination"] == "/sys/fs/cgroup":
            continue
        if entry.get("options"):
            entry["options"] = [o for o in entry["options"] if not o.startswith(("gid=", "uid="))]
        mounts.append(entry)
    spec["mounts"] = mounts
