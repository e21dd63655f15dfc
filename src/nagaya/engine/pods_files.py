"""What a pod has on the host: RUN/pods/ID with the files that its containers share, the pins of its
namespaces below RUN/ns/ID, and the init of a pid namespace that is shared.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from contextlib import suppress
from typing import Any

from nagaya.engine import files, networks, pods_users
from nagaya.engine.keeper import BuilderDied
from nagaya.engine.pods_model import Pod, PodConfig
from nagaya.engine.runtimes import unmount
from nagaya.engine.settings import Settings
from nagaya.engine.world import World
from nagaya.errors import FailedPrecondition, InvalidArgument, KernelError, NotFound, Unavailable
from nagaya.linux import mounts
from nagaya.network import resolv
from nagaya.oci import defaults

_INIT = "/init"


def directory(settings: Settings, pod_id: str) -> str:
    """RUN/pods/ID."""
    return f"{settings.run}/pods/{pod_id}"


def pins(settings: Settings, pod: Pod) -> dict[str, str]:
    """Kind of namespace -> where it is pinned, of those that are the pod's own. With the host's network
    goes the host's name."""
    options = pod.config.namespaces
    kinds = ["net", "uts"] if options.network == "POD" else []
    if options.ipc == "POD":
        kinds.append("ipc")
    if pods_users.of(pod.config) is not None:
        kinds.append("user")
    base = os.path.dirname(settings.netns(pod.id))
    return {kind: f"{base}/{kind}" for kind in kinds}


def alive(world: World, pod: Pod) -> bool:
    """Are all pins mounted, and does the init run? Blocking."""
    try:
        for path in pins(world.settings, pod).values():
            if os.stat(path).st_dev == os.stat(os.path.dirname(path)).st_dev:
                return False
    except OSError:
        return False
    entry = world.supervisor.entries.get(pod.id)
    return pod.config.namespaces.pid != "POD" or (entry is not None and entry.exit is None)


def hostname(pod: Pod) -> str:
    """The pod's name for itself."""
    return pod.config.hostname or os.uname().nodename


def check(config: PodConfig) -> None:
    """Refuse a hostname or DNS configuration that cannot be written. Raises InvalidArgument."""
    if config.hostname:
        try:
            resolv.check_hostname(config.hostname)
        except InvalidArgument as error:
            raise InvalidArgument(error.message, subject="config.hostname") from None
        if len(config.hostname) > 64:  # sethostname(2)
            raise InvalidArgument("is longer than 64 bytes", subject="config.hostname")
    _resolv_conf(config)


def _resolv_conf(config: PodConfig) -> str | None:
    """What its containers have as resolv.conf, None for one made from the host's."""
    dns = config.dns_config
    if dns is None or not (dns.servers or dns.searches or dns.options):
        return None
    for field in ("servers", "searches", "options"):
        for word in getattr(dns, field):
            if not word or not word.isprintable() or " " in word:
                raise InvalidArgument(
                    f"{word!r} cannot be in resolv.conf", subject=f"config.dns_config.{field}"
                )
    lines = [f"nameserver {server}" for server in dns.servers]
    if dns.searches:
        lines.append(f"search {' '.join(dns.searches)}")
    if dns.options:
        lines.append(f"options {' '.join(dns.options)}")
    return "".join(f"{line}\n" for line in lines)


def make(settings: Settings, pod: Pod) -> None:
    """Make the directory with /dev/shm, hostname and resolv.conf. Blocking. Raises KernelError and kin."""
    path = directory(settings, pod.id)
    files.make_directory(path, 0o711)
    files.make_directory(os.path.dirname(settings.netns(pod.id)), 0o711)
    if pod.config.namespaces.ipc == "POD":
        files.make_directory(f"{path}/shm", 0o1777)
        quiet = mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC
        mounts.mount("shm", f"{path}/shm", "tmpfs", quiet, f"mode=1777,size={defaults.SHM_SIZE}")
    files.write(f"{path}/hostname", f"{hostname(pod)}\n")
    text = _resolv_conf(pod.config)
    if text is None:
        own = pod.config.namespaces.network == "POD"
        text = resolv.resolv_conf(_host_resolv_conf(), own_network=own)
    files.write(f"{path}/resolv.conf", text)
    if pod.config.log_directory:
        _make_log_directory(pod.config.log_directory)


def _make_log_directory(path: str) -> None:
    if not path.startswith("/") or "\0" in path:
        raise InvalidArgument(f"{path!r} is not an absolute path", subject="config.log_directory")
    files.make_directory(path, 0o755)


def _host_resolv_conf() -> str:
    with suppress(OSError), open(resolv.HOST_RESOLV_CONF, encoding="utf-8", errors="replace") as file:
        text = file.read(65536)
        source = resolv.host_source(text)
        if source == resolv.HOST_RESOLV_CONF:
            return text
        with open(source, encoding="utf-8", errors="replace") as real:
            return real.read(65536)
    return ""


def write_hosts(settings: Settings, pod: Pod) -> None:
    """The /etc/hosts of containers that bring none of their own; on the host's network the host's."""
    text = ""
    if pod.config.namespaces.network == "POD":
        text = resolv.hosts(addresses=pod.addresses, hostname=hostname(pod))
    else:
        with suppress(OSError), open("/etc/hosts", encoding="utf-8", errors="replace") as file:
            text = file.read(1 << 20)
    files.write(f"{directory(settings, pod.id)}/hosts", text)


def unpin(settings: Settings, pod_id: str) -> None:
    """Let namespaces and shm go. Blocking; may be repeated."""
    base = os.path.dirname(settings.netns(pod_id))
    for kind in ("net", "uts", "ipc", "user"):
        networks.unpin(f"{base}/{kind}")
    clear_roots(settings, pod_id, ())
    with suppress(KernelError):
        mounts.umount2(f"{directory(settings, pod_id)}/shm", mounts.MNT_DETACH | mounts.UMOUNT_NOFOLLOW)
    with suppress(FileNotFoundError):
        os.rmdir(base)


def clear_roots(settings: Settings, pod_id: str, running: Collection[str]) -> None:
    """Let go the mounted roots of containers that do not run. Blocking; may be repeated."""
    base = f"{directory(settings, pod_id)}/roots"
    with suppress(FileNotFoundError):
        for name in os.listdir(base):
            if name not in running:
                unmount(f"{base}/{name}")


def remove(settings: Settings, pod_id: str) -> None:
    """Delete the directory; `unpin` comes first. Blocking; may be repeated."""
    shutil.rmtree(directory(settings, pod_id), ignore_errors=True)


# the init of a shared pid namespace


def _init_spec(world: World, pod: Pod, root: str) -> dict[str, Any]:
    held = pins(world.settings, pod)
    names = {"net": "network", "uts": "uts", "ipc": "ipc", "user": "user"}
    joined = [{"type": names[kind], "path": path} for kind, path in held.items()]
    quiet = ["nosuid", "noexec", "nodev"]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 65534, "gid": 65534},
            "args": [_INIT, "-P"],
            "env": [],
            "cwd": "/",
            "capabilities": {},
            "noNewPrivileges": True,
        },
        "root": {"path": root, "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": quiet},
            {
                "destination": _INIT,
                "type": "bind",
                "source": world.settings.init_path,
                "options": ["bind", "ro", "nosuid", "nodev"],
            },
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "mount"}, *joined],
            **pods_users.mappings(pod.config),
            "cgroupsPath": cgroups_path(world.settings, pod, pod.id),
            "resources": {"devices": defaults.device_rules()},
            "maskedPaths": list(world.masked_paths),
            "readonlyPaths": list(defaults.READONLY_PATHS),
        },
    }


def cgroups_path(settings: Settings, pod: Pod, container_id: str) -> str:
    """The cgroup of a container in the pod: below the pod's parent, as the driver writes it."""
    parent = cgroup_parent(settings, pod)
    if settings.cgroup_driver == "systemd":
        return f"{parent if parent.endswith('.slice') else 'system.slice'}:nagaya:{container_id}"
    return f"/{parent.strip('/')}/{container_id}"


def cgroup_parent(settings: Settings, pod: Pod) -> str:
    """The pod's cgroup, of which systemd wants the last part only. Ours when the pod names none."""
    parent = pod.config.linux.cgroup_parent or settings.cgroup_parent
    return os.path.basename(parent) if settings.cgroup_driver == "systemd" else parent


async def start_init(world: World, pod: Pod) -> None:
    """Start the first process of the pid namespace that the pod's containers share. Raises what the
    supervisor raises."""
    settings = world.settings
    root, bundle = f"{directory(settings, pod.id)}/root", settings.bundle(pod.id)
    await world.job(files.make_directory, root, 0o755)
    await world.job(os.chown, root, *pods_users.root_of(pod.config))  # who makes the mount points there
    await world.job(files.make_directory, bundle, 0o700)
    request: dict[str, Any] = {
        "op": "run",
        "root": settings.runtime_root(),
        "id": pod.id,
        "cgroup_driver": settings.cgroup_driver,
        "bundle": bundle,
        "spec": _init_spec(world, pod, root),
        "rootfs": None,
        "console": None,
    }
    await world.supervisor.run(pod.id, request, stdio="pipes")
    world.journal.point("pod: init runs")


def init_pid(world: World, pod: Pod) -> int:
    """The pid of the pod's init. Raises FailedPrecondition when it does not run."""
    entry = world.supervisor.entries.get(pod.id)
    if entry is None or entry.exit is not None or not entry.pid:
        raise FailedPrecondition(f"the init of pod {pod.id} does not run", subject="pod_sandbox_id")
    return entry.pid


async def end_init(world: World, pod_id: str) -> None:
    """End it and take away what the runtime has of it. May be repeated."""
    settings = world.settings
    if pod_id in world.supervisor.entries:
        await world.supervisor.abandon(pod_id)
    request = {"op": "delete", "root": settings.runtime_root(), "id": pod_id, "force": True}
    request["cgroup_driver"] = settings.cgroup_driver
    if await world.job(os.path.isdir, f"{settings.runtime_root()}/{pod_id}"):
        for attempts_left in (2, 1, 0):
            try:
                await world.supervisor.call(request)
            except NotFound:
                pass
            except (BuilderDied, Unavailable):
                if attempts_left:
                    continue
                raise
            break
    await world.job(files.remove_flat, settings.bundle(pod_id))
