"""The config.json of a container in a pod: what `spec.compose` makes for Docker's containers, with the
kubelet's words about namespaces, mounts, users, seccomp and resources in the place of Docker's.

A kubelet says everything: paths that it does not name as masked or read-only are neither, and without a
seccomp profile there is no filter (containerd's reading of the interface).
"""

from __future__ import annotations

import functools
import os
import posixpath
from collections.abc import Sequence
from typing import Any

import msgspec

from nagaya.engine import (
    apparmor,
    cdi,
    devices,
    files,
    launch,
    pods_files,
    pods_mounts,
    pods_plugins,
    pods_users,
    privileges,
    runtimes,
    spec,
    staging,
    user,
    volumes,
)
from nagaya.engine.launch import Launch, Profile
from nagaya.engine.layered import LayeredRoot
from nagaya.engine.model import Container, DeviceMapping, ExecConfig
from nagaya.engine.pods_model import LinuxResources, Pod, PodContainerConfig, PodMember, SecurityProfile
from nagaya.engine.user import Identity
from nagaya.engine.world import World
from nagaya.errors import FailedPrecondition, InvalidArgument, NagayaError
from nagaya.linux import cgroup, seccomp
from nagaya.oci import seccomp_default

_MOST_PROFILE = 1 << 20
_SECURITY = "config.linux.security_context"
# what a low-level runtime takes for orders from the host: a unit's ExecStartPre among them (CVE-2024-3154)
_STEERING = ("org.systemd.property.", "org.criu.", "run.oci.")
_encode = msgspec.json.Encoder().encode


def member_of(container: Container) -> PodMember:
    """Its place in a pod. Raises FailedPrecondition for a container of Docker's."""
    if container.config.pod is None:
        raise FailedPrecondition(f"container {container.id} is in no pod", subject="container_id")
    return container.config.pod


# who


def identity(config: PodContainerConfig, image_user: str, root: LayeredRoot) -> Identity:
    """The user of its processes: the one that is named, else the image's; Merge adds the groups that the
    image's /etc/group has for the user, Strict adds none. Raises InvalidArgument."""
    security = config.security
    name, _, image_group = image_user.partition(":")
    if security.run_as_user is not None:
        name, image_group = str(_id(security.run_as_user.value, "run_as_user")), ""
    elif security.run_as_username:
        name, image_group = security.run_as_username, ""
        if ":" in name:
            raise InvalidArgument(f"{name!r} is no user's name", subject=f"{_SECURITY}.run_as_username")
    if security.run_as_group is not None and security.run_as_user is None and not security.run_as_username:
        raise InvalidArgument(
            "run_as_group without run_as_user or run_as_username", subject=f"{_SECURITY}.run_as_group"
        )
    who = user.resolve(name, (), root)
    gid = who.gid
    if security.run_as_group is not None:
        gid = _id(security.run_as_group.value, "run_as_group")
    elif image_group:
        gid = user.resolve(f"{name}:{image_group}", (), root).gid
    named = [_id(group, "supplemental_groups") for group in security.supplemental_groups]
    theirs = [g for g in who.groups if g != who.gid] if security.supplemental_groups_policy == "Merge" else []
    return Identity(who.uid, gid, tuple(dict.fromkeys([gid, *theirs, *named])), who.home)


def _id(value: int, field: str) -> int:
    if not 0 <= value <= user.MAX_ID:
        raise InvalidArgument(f"ids are between 0 and {user.MAX_ID}", subject=f"{_SECURITY}.{field}")
    return value


# seccomp


def _profile(config: PodContainerConfig, caps: Sequence[str]) -> Profile:
    security = config.security
    wanted = security.seccomp or _old_profile(security.seccomp_profile_path)
    if security.privileged or wanted is None or wanted.profile_type == "Unconfined":
        return Profile(None, None)
    if wanted.profile_type == "RuntimeDefault":
        return launch.default_profile(tuple(caps))
    document = seccomp_default.resolve_profile(read_profile(wanted.localhost_ref), list(caps))
    return Profile(document, seccomp.precompile(document) if document else None)


def apparmor_profile(world: World, config: PodContainerConfig) -> str:
    """The name of its AppArmor profile, "" for none: the default one, also when nothing is said, but not
    for privileged containers."""
    security = config.security
    named: str | None = None
    if (wanted := security.apparmor or _old_profile(security.apparmor_profile)) is not None:
        if wanted.profile_type == "Unconfined":
            named = apparmor.UNCONFINED
        elif wanted.profile_type == "Localhost":
            named = wanted.localhost_ref.removeprefix("localhost/")
    return apparmor.chosen(named, privileged=security.privileged, default=world.apparmor)


def _old_profile(path: str) -> SecurityProfile | None:
    """The words of the deprecated fields for seccomp and AppArmor."""
    if path == "":
        return None
    if path == "unconfined":
        return SecurityProfile("Unconfined")
    if path in ("runtime/default", "docker/default"):
        return SecurityProfile("RuntimeDefault")
    return SecurityProfile("Localhost", path.removeprefix("localhost/"))


def read_profile(path: str) -> dict[str, Any]:
    """A profile file of the node. Raises InvalidArgument."""
    field = f"{_SECURITY}.seccomp.localhost_ref"
    if not path.startswith("/"):
        raise InvalidArgument(f"{path!r} is not an absolute path", subject=field)
    try:
        with open(path, "rb") as file:
            text = file.read(_MOST_PROFILE + 1)
    except OSError as error:
        raise InvalidArgument(f"{path}: {os.strerror(error.errno or 0).lower()}", subject=field) from None
    if len(text) > _MOST_PROFILE:
        raise InvalidArgument(f"{path} is larger than {_MOST_PROFILE} bytes", subject=field)
    return privileges.seccomp_document(text.decode("utf-8", "replace"))


# resources


@functools.cache
def has_hugetlb() -> bool:
    """Is there a controller for huge pages? Kubelets limit every size to 0, whether or not there is."""
    found = cgroup.layout()
    if found.version == 1:
        return found.hierarchy("hugetlb") is not None
    return "hugetlb" in (cgroup.try_read(f"{found.unified}/cgroup.controllers") or "").split()


def to_oci(limits: LinuxResources, *, hugetlb: bool) -> dict[str, Any]:
    """`linux.resources` of the runtime-spec; what is not said is absent. hugetlb: huge pages can be
    limited; where not, only limits to none of them are left out. Pure."""
    memory: dict[str, Any] = {}
    if limits.memory_limit_in_bytes:
        memory["limit"] = limits.memory_limit_in_bytes
        # without a word about swap there is none, as a kubelet without the feature wants it
        memory["swap"] = limits.memory_swap_limit_in_bytes or limits.memory_limit_in_bytes
    elif limits.memory_swap_limit_in_bytes:
        memory["swap"] = limits.memory_swap_limit_in_bytes
    cpu: dict[str, Any] = {}
    for name, value in (
        ("shares", limits.cpu_shares),
        ("quota", limits.cpu_quota),
        ("period", limits.cpu_period),
        ("cpus", limits.cpuset_cpus),
        ("mems", limits.cpuset_mems),
    ):
        if value:
            cpu[name] = value
    out: dict[str, Any] = {}
    if memory:
        out["memory"] = memory
    if cpu:
        out["cpu"] = cpu
    if huge := [h for h in limits.hugepage_limits if h.limit or hugetlb]:
        out["hugepageLimits"] = [{"pageSize": h.page_size, "limit": h.limit} for h in huge]
    if limits.unified:
        out["unified"] = dict(limits.unified)
    return out


def oom_score(wanted: int, held: frozenset[str]) -> int:
    """As low as we may go: without CAP_SYS_RESOURCE a process cannot be less likely to be killed than the
    one that makes it (proc(5)); a kubelet asks for -998 as a matter of course."""
    if "CAP_SYS_RESOURCE" in held:
        return wanted
    with open("/proc/self/oom_score_adj", encoding="ascii") as file:
        return max(wanted, int(file.read()))


# namespaces


def namespaces(world: World, pod: Pod, config: PodContainerConfig) -> tuple[dict[str, str], frozenset[str]]:
    """(namespaces joined by path, kinds shared with the host). Network and IPC are the pod's; the pid
    namespace is the pod's, its own, the node's, or another container's. Raises FailedPrecondition."""
    held = pods_files.pins(world.settings, pod)
    join: dict[str, str] = {}
    share: set[str] = set()
    for kind, name in (("network", "net"), ("uts", "uts"), ("ipc", "ipc")):
        if name in held:
            join[kind] = held[name]
        else:
            share.add(kind)
    if "user" in held:
        join["user"] = held["user"]
    own, of_pod = config.security.namespace_options, pod.config.namespaces.pid
    if own.pid == "NODE" or (own.pid == "POD" and of_pod == "NODE"):
        share.add("pid")
    elif own.pid == "POD" and of_pod == "POD":
        join["pid"] = f"/proc/{pods_files.init_pid(world, pod)}/ns/pid"
    elif own.pid == "TARGET":
        join["pid"] = f"/proc/{_target_pid(world, pod, own.target_id)}/ns/pid"
    if config.security.privileged:
        share.add("cgroup")
    return join, frozenset(share)


def _target_pid(world: World, pod: Pod, target: str) -> int:
    field = f"{_SECURITY}.namespace_options.target_id"
    slot = world.roster.get(target)
    if slot is None or slot.container.config.pod is None or slot.container.config.pod.pod_id != pod.id:
        raise InvalidArgument(f"{target!r} is no container of this pod", subject=field)
    if slot.container.state != "running" or not slot.container.pid:
        raise FailedPrecondition(f"container {target} does not run", subject=field)
    return slot.container.pid


# the whole


def prepare(world: World, container: Container) -> Launch:
    """Look everything up, compose and write config.json. Blocking. Raises InvalidArgument,
    FailedPrecondition, NotFound (the pod has gone)."""
    settings, config, member = world.settings, container.config, member_of(container)
    cri, pod = member.config, world.pods.find(member.pod_id)
    if not pod.ready:
        raise FailedPrecondition(f"pod sandbox {pod.id} is not ready", subject="pod_sandbox_id")
    rootfs = world.images.snapshot(container.id)
    root = LayeredRoot([rootfs["upper"], *rootfs["lower"]])
    points = []
    for index, point in enumerate(container.mount_points):  # the image's volumes, and other images
        source = volumes.path_of(settings.root, point.source)
        if staging.is_staged(point):
            source = staging.source(world, container.id, index, point)
        points.append(msgspec.structs.replace(point, source=source))
    mapped = devices.mapped(
        [DeviceMapping(d.host_path, d.container_path, d.permissions) for d in cri.devices]
    )
    rules = devices.rules(mapped)
    if config.privileged:
        mapped, rules = devices.of_host() + mapped, list(devices.PRIVILEGED_RULES)
    caps = launch.capabilities(world, container)
    profile = _profile(cri, caps)
    join, share = namespaces(world, pod, cri)
    users = "user" in join
    own = pods_files.directory(settings, pod.id)
    targets = {posixpath.normpath(m.container_path) for m in cri.mounts}
    etc = {
        f"/etc/{name}": f"{own}/{name}"
        for name in ("hosts", "hostname", "resolv.conf")
        if f"/etc/{name}" not in targets
    }
    around = spec.Surroundings(
        identity=identity(cri, config.user, root),
        root=root_of(world, container) if users else f"{settings.container_dir(container.id)}/rootfs",
        hostname=pods_files.hostname(pod),
        capabilities=caps,
        seccomp=profile.document,
        apparmor=apparmor_profile(world, cri),
        masked=() if config.privileged else cri.security.masked_paths,
        readonly=() if config.privileged else cri.security.readonly_paths,
        mounts=points,
        files=etc,
        devices=mapped,
        device_rules=rules,
        join=join,
        share=share,
        shm_source=f"{own}/shm" if "ipc" in join else "/dev/shm",
        cgroups_path=pods_files.cgroups_path(settings, pod, container.id),
    )
    document = spec.compose(container, around)
    if users:
        _map_users(world, document, pod)
        clear_root(world, container)  # of a start that failed
        pods_users.mount_root(pod.config, rootfs, join["user"], around.root)
    _add_resources(document, cri)
    _add_ambient(document, cri, world.held)
    pods_mounts.add(document, cri.mounts)
    if config.runtime and "uts" in join:  # a guest's kernel does not see the namespace that is joined
        document["hostname"] = pods_files.hostname(pod)
    more = [device["name"] for device in member.adjustment.get("CDI_devices", ())]
    cdi.apply(document, cdi_edits(world, cri, more))
    document["annotations"] = {
        **{k: v for k, v in cri.annotations.items() if not k.startswith(_STEERING)},
        "io.kubernetes.cri.container-name": cri.metadata.name,
        "io.kubernetes.cri.sandbox-id": pod.id,
        "io.kubernetes.cri.sandbox-name": pod.config.metadata.name,
        "io.kubernetes.cri.sandbox-namespace": pod.config.metadata.namespace,
    }
    pods_plugins.apply(document, member.adjustment)
    if "seccomp_policy" in member.adjustment.get("linux", {}):
        filtered = document["linux"]["seccomp"]
        profile = Profile(filtered, seccomp.precompile(filtered))
    if member.log_path:
        files.touch(member.log_path)  # a kubelet may look before there is a line
    bundle = settings.bundle(container.id)
    files.make_directory(bundle, 0o700)
    files.write(f"{bundle}/config.json", _encode(document).decode(), 0o600)
    if users:
        rootfs = {}  # it is mounted already
    return Launch(bundle, document, profile.filter, rootfs, "pty" if config.tty else "pipes", log_of(member))


def cdi_edits(world: World, config: PodContainerConfig, more: Sequence[str] = ()) -> Sequence[cdi.Edits]:
    """What the CDI devices of a container change. Blocking. Raises InvalidArgument for
    a device that no specification has."""
    names = (*(device.name for device in config.CDI_devices), *more)
    if not names:
        return ()
    try:
        return cdi.Catalog(world.settings.cdi_spec_dirs).edits(names)
    except NagayaError as error:
        raise InvalidArgument(error.message, subject="config.CDI_devices") from None


def root_of(world: World, container: Container) -> str:
    """Where the root of a container in a user namespace is mounted while it runs: its way is open to
    the mapped root, which is nobody here."""
    pod_id = member_of(container).pod_id
    return f"{pods_files.directory(world.settings, pod_id)}/roots/{container.id}"


def clear_root(world: World, container: Container) -> None:
    """Let that root go. Blocking; may be repeated."""
    runtimes.unmount(root_of(world, container))


def _map_users(world: World, document: dict[str, Any], pod: Pod) -> None:
    """The pod's user namespace, and volumes of ours as their owners see them there."""
    found = pods_users.mappings(pod.config)
    document["linux"]["namespaces"].append(
        {"type": "user", "path": pods_files.pins(world.settings, pod)["user"]}
    )
    document["linux"] |= found
    for mount in document["mounts"]:
        if mount["type"] == "bind" and mount["source"].startswith(f"{world.settings.root}/volumes/"):
            mount |= found
            mount["options"] = [*mount["options"], "ridmap"]


def log_of(member: PodMember) -> dict[str, Any] | None:
    """What io is told about the log: the kubelet rotates it, not we."""
    return {"driver": "cri", "path": member.log_path} if member.log_path else None


def _add_resources(document: dict[str, Any], config: PodContainerConfig) -> None:
    found = document["linux"]["resources"]
    document["linux"]["resources"] = {
        **to_oci(config.linux.resources, hugetlb=has_hugetlb()),
        "devices": found["devices"],
    }


def _add_ambient(document: dict[str, Any], config: PodContainerConfig, held: frozenset[str]) -> None:
    wanted = config.security.capabilities.add_ambient_capabilities
    if not wanted:
        return
    names, _ = privileges.capabilities(wanted, (), privileged=False, default=(), held=held)
    sets = document["process"]["capabilities"]
    for kind in ("bounding", "permitted", "effective", "inheritable", "ambient"):
        have = sets.get(kind, [])
        sets[kind] = [*have, *(n for n in names if n not in have)]


def prepare_exec(world: World, container: Container, config: ExecConfig) -> dict[str, Any]:
    """The `process` of a further command: of the user that the container's first process is, whatever its
    /etc/passwd says by now; the runtime looks up his home there. Waits for nothing."""
    member = member_of(container)
    who = Identity(*member.user, home="")
    caps = launch.capabilities(world, container)
    profile = apparmor_profile(world, member.config)
    process = spec.exec_process(container, config, who, capabilities=caps, apparmor=profile)
    _add_ambient({"process": process}, member.config, world.held)
    return process


def image_volumes(config: PodContainerConfig, declared: Sequence[str]) -> list[str]:
    """Targets of the image's volumes that no mount of the kubelet's replaces."""
    taken = {posixpath.normpath(mount.container_path) for mount in config.mounts}
    return [path for path in declared if posixpath.normpath(path) not in taken]
