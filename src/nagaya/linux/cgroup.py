"""Control groups by name: where they are mounted, where a process is, and their files.

No policy: what to write where is `nagaya.runtime.cgroups`. Sources: cgroups(7),
proc_pid_mountinfo(5), Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst of the kernel.
Nothing here ever mounts, and only directories that the caller names are made or removed.
"""

from __future__ import annotations

import errno
import time

from nagaya.errors import FailedPrecondition, KernelError
from nagaya.linux import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_READ_LIMIT = 4 << 20  # cgroup.procs of a huge container; no file of ours is larger


class Hierarchy:
    """One mounted v1 hierarchy: its mount point, the cgroup that is its root in this mount
    namespace, and its controllers ("cpu", "cpuacct", or "name=systemd")."""

    __slots__ = ("controllers", "mountpoint", "root")

    def __init__(self, mountpoint: str, root: str, controllers: tuple[str, ...]) -> None:
        self.mountpoint = mountpoint
        self.root = root
        self.controllers = controllers


class Layout:
    """What is mounted: version 2 when /sys/fs/cgroup itself is cgroup2 (or only cgroup2 exists),
    else 1. In the hybrid layout `unified` is set although the version is 1."""

    __slots__ = ("hierarchies", "unified", "unified_root", "version")

    def __init__(self, version: int, hierarchies: list[Hierarchy], unified: str, unified_root: str) -> None:
        self.version = version
        self.hierarchies = hierarchies
        self.unified = unified
        self.unified_root = unified_root

    def hierarchy(self, controller: str) -> Hierarchy | None:
        """The v1 hierarchy that has the controller, or None."""
        for candidate in self.hierarchies:
            if controller in candidate.controllers:
                return candidate
        return None


# Options of a v1 mount that are not controllers (kernel/cgroup/cgroup-v1.c, cgroup1_show_options).
_NOT_CONTROLLERS = frozenset(
    ("rw", "ro", "none", "noprefix", "xattr", "clone_children", "cpuset_v2_mode", "favordynmods")
)


def _unescape(field: str) -> str:
    if "\\" not in field:
        return field
    for escape, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(escape, char)
    return field


def parse_mountinfo(text: str) -> Layout:
    """Find the cgroup mounts in the text of /proc/self/mountinfo (pure)."""
    hierarchies: list[Hierarchy] = []
    taken: set[str] = set()
    unified = unified_root = ""
    for line in text.split("\n"):
        before, found, after = line.partition(" - cgroup")
        if not found:
            continue
        fields, rest = before.split(" "), after.split(" ")
        if len(fields) < 6 or len(rest) < 3:
            continue
        root, mountpoint = _unescape(fields[3]), _unescape(fields[4])
        if rest[0] == "2":
            # a mount over /sys/fs/cgroup itself wins over the hybrid layout's /sys/fs/cgroup/unified
            if not unified or mountpoint == "/sys/fs/cgroup":
                unified, unified_root = mountpoint, root
        elif rest[0] == "":
            names = tuple(
                option
                for option in rest[2].split(",")
                if option not in _NOT_CONTROLLERS and not option.startswith("release_agent=")
            )
            # the same hierarchy may be bound at more places (containers): the first one counts
            if names and not taken.intersection(names):
                taken.update(names)
                hierarchies.append(Hierarchy(mountpoint, root, names))
    version = 2 if unified and (unified == "/sys/fs/cgroup" or not hierarchies) else 1
    return Layout(version, hierarchies, unified, unified_root)


def parse_proc_cgroup(text: str) -> dict[str, str]:
    """{controller: path} of the text of /proc/PID/cgroup; "" is the unified hierarchy (pure)."""
    paths: dict[str, str] = {}
    for line in text.split("\n"):
        parts = line.split(":", 2)
        if len(parts) == 3:
            for controller in parts[1].split(","):
                paths[controller] = parts[2]
    return paths


_layout: Layout | None = None


def layout() -> Layout:
    """The layout of this machine, read once per process (forks inherit it).

    Raises FailedPrecondition when no cgroup file system is mounted.
    """
    global _layout
    if _layout is None:
        found = parse_mountinfo(read("/proc/self/mountinfo"))
        if not found.hierarchies and not found.unified:
            raise FailedPrecondition("no cgroup file system is mounted", step="find cgroups")
        _layout = found
    return _layout


def own() -> dict[str, str]:
    """{controller: path} of the calling process."""
    return parse_proc_cgroup(read("/proc/self/cgroup"))


def _failed(step: str, path: str, error: OSError) -> KernelError:
    number = error.errno or 0
    return KernelError(os.strerror(number).lower(), subject=path, step=step, errno=number)


def read(path: str) -> str:
    """The whole text of a proc or cgroup file. Raises KernelError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            chunks = []
            size = 0
            while chunk := os.read(fd, 65536):
                chunks.append(chunk)
                size += len(chunk)
                if size > _READ_LIMIT:
                    break
        finally:
            os.close(fd)
    except OSError as error:
        raise _failed(f"read {path}", path, error) from None
    return b"".join(chunks).decode("utf-8", "replace")


def try_read(path: str) -> str | None:
    """As `read`, None when the file cannot be read (an absent controller, an older kernel)."""
    try:
        return read(path)
    except KernelError:
        return None


def try_write(path: str, value: str) -> int:
    """Write value with one write(2); return the errno, 0 for success.

    Cgroup files take one value per write, so nothing is retried or split but EINTR.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def write(path: str, value: str) -> None:
    """Write value with one write(2). Raises KernelError."""
    number = try_write(path, value)
    if number:
        raise KernelError(
            os.strerror(number).lower(), subject=path, step=f"write {value!r} to {path}", errno=number
        )


def parse_pairs(text: str) -> dict[str, int]:
    """{key: number} of a flat keyed file such as memory.stat (pure); other lines are left out."""
    pairs: dict[str, int] = {}
    for line in text.split("\n"):
        key, _, value = line.partition(" ")
        if value.isdigit():
            pairs[key] = int(value)
    return pairs


def make(path: str) -> list[str]:
    """mkdir -p; return the directories made, top down. Raises KernelError."""
    try:
        os.mkdir(path, 0o755)
        return [path]
    except FileExistsError:
        return []
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _failed(f"mkdir {path}", path, error) from None
    made = make(os.dirname(path))
    made.extend(make(path))
    return made


def open_directory(path: str) -> int:
    """A cgroup, for clone3's CLONE_INTO_CGROUP; the caller closes it. Raises KernelError."""
    try:
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _failed(f"open {path}", path, error) from None


def children(path: str) -> list[str]:
    """Absolute paths of the cgroups directly below path; empty when path is gone."""
    try:
        with os.scandir(path) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def procs(path: str) -> list[int]:
    """Pids in the cgroup and in all below it, sorted and without duplicates; empty when it is gone.

    Threaded cgroups (v2) answer EOPNOTSUPP and have no processes of their own to list.
    """
    found: set[int] = set()
    queue = [path]
    while queue:
        current = queue.pop()
        text = try_read(f"{current}/cgroup.procs")
        if text:
            found.update(map(int, text.split()))
        queue.extend(children(current))
    found.discard(0)  # a process outside our pid namespace
    return sorted(found)


def _remove_once(path: str) -> int:
    try:
        os.rmdir(path)
        return 0
    except OSError as error:
        number = error.errno or errno.EIO
    if number == errno.ENOENT or (number == errno.EROFS and not os.isdir(path)):
        return 0  # a read-only file system is complained of first (the hybrid layout's cgroup2)
    if number in (errno.EBUSY, errno.ENOTEMPTY):
        below = children(path)
        if below:
            for child in below:
                _remove_once(child)
            try:
                os.rmdir(path)
                return 0
            except OSError as error:
                return error.errno or errno.EIO
    return number


def remove(paths: Sequence[str], *, timeout: float = 2.0) -> None:
    """Remove cgroups with all below them. EBUSY is waited out for at most `timeout` seconds: a
    killed process leaves its cgroup a moment after it can be waited for.

    Raises KernelError naming the first that stays.
    """
    deadline = time.monotonic() + timeout
    pause = 0.0002
    left = list(paths)
    while True:
        failed = [(path, number) for path in left if (number := _remove_once(path))]
        if not failed:
            return
        path, number = failed[0]
        if number not in (errno.EBUSY, errno.ENOTEMPTY) or time.monotonic() > deadline:
            raise KernelError(
                os.strerror(number).lower(), subject=path, step=f"remove cgroup {path}", errno=number
            )
        left = [path for path, _ in failed]
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


def relative_to_mount(path: str, root: str) -> str:
    """A path of /proc/PID/cgroup as seen below a mount whose root is the cgroup `root` (pure).

    A path outside of the mount's root, as in a container without a cgroup namespace of its own,
    counts as the root itself: nothing else of it can be reached.
    """
    if root in ("", "/"):
        return path if path.startswith("/") else "/" + path
    if path == root:
        return "/"
    if path.startswith(root + "/"):
        return path[len(root) :]
    return "/"


def container_view(found: Layout, paths: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """What to mount inside a container so that it sees its cgroups (pure).

    found: the host's layout. paths: a manager's {controller: absolute path}.
    Returns, per hierarchy, (name, options, relative): `name` is the directory below
    /sys/fs/cgroup ("cpu,cpuacct": also link "cpu" and "cpuacct" to it; "systemd"; "" on v2, the
    mount at /sys/fs/cgroup itself); `options` are the data of mount(2) of type cgroup in a cgroup
    namespace ("cpu,cpuacct", "none,name=systemd"; "" on v2, type cgroup2); `relative` is the
    cgroup below the hierarchy's mount point on the host, for a bind mount without the namespace.
    """
    if found.version == 2:
        path = paths.get("", found.unified)
        return [("", "", path[len(found.unified) :] or "/")]
    view = []
    for hierarchy in found.hierarchies:
        first = hierarchy.controllers[0]
        if first not in paths:
            continue
        named = first.startswith("name=")
        name = first[5:] if named else ",".join(hierarchy.controllers)
        options = f"none,{first}" if named else name
        view.append((name, options, paths[first][len(hierarchy.mountpoint) :] or "/"))
    return view
