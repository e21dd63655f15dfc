"""The mounts of a container's config.json, in the order in which they are made (pure).

Docker's: the kernel's file systems, what the user mounted over them left out; then the files that
the engine writes (resolv.conf, hostname, hosts), volumes, binds and tmpfs, shallow ones first, so
that no mount hides one made before it. Source: `docker run` and runtime-spec config.md "Mounts".
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from nagaya.engine.model import MountSpec
from nagaya.errors import InvalidArgument
from nagaya.oci import defaults

Mount = dict[str, Any]

_PROPAGATIONS = frozenset(("private", "rprivate", "shared", "rshared", "slave", "rslave"))
_OPPOSITES = (
    ("rw", "ro"),
    ("suid", "nosuid"),
    ("dev", "nodev"),
    ("exec", "noexec"),
    ("atime", "noatime"),
    ("diratime", "nodiratime"),
    ("async", "sync"),
    ("relatime", "norelatime"),
    ("strictatime", "nostrictatime"),
)
_FLAG_GROUP = {option: pair[0] for pair in _OPPOSITES for option in pair}
_TMPFS_DATA = frozenset(("size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol", "huge"))


def clean_target(target: str) -> str:
    """The absolute, normalised path of a mount target. Raises InvalidArgument with dockerd's words."""
    if not target.startswith("/") or "\0" in target:
        raise InvalidArgument(
            f"invalid mount config: mount path must be absolute: {target!r}", subject="Target"
        )
    path = "/" + posixpath.normpath(target).lstrip("/")
    if path == "/":
        raise InvalidArgument("invalid mount config: destination can't be '/'", subject="Target")
    return path


def tmpfs_options(options: Sequence[str]) -> list[str]:
    """tmpfs(5) options: the safe defaults, with the user's after them; a later flag replaces its
    opposite. Raises InvalidArgument for options that are not tmpfs's."""
    found: dict[str, str] = {}
    for option in ("noexec", "nosuid", "nodev", *options):
        if not option:
            continue
        key, mark, _ = option.partition("=")
        if mark and key in _TMPFS_DATA:
            found[key] = option
        elif option in _FLAG_GROUP:
            found[_FLAG_GROUP[option]] = option
        elif option in _PROPAGATIONS:
            found["propagation"] = option
        else:
            raise InvalidArgument(f'Invalid tmpfs option ["{option}"]', subject="Tmpfs")
    return list(found.values())


def base(
    *, shm_size: int, shm_source: str, privileged: bool, ipc_none: bool, writable_cgroups: bool = False
) -> list[Mount]:
    """/proc, /dev and what lies below, /sys, the cgroup tree: as Docker has them for these modes."""
    found = defaults.mounts(shm_size=shm_size)
    shm = found.pop()
    for mount in found:
        if privileged or (writable_cgroups and mount["destination"] == "/sys/fs/cgroup"):
            mount["options"] = ["rw" if option == "ro" else option for option in mount["options"]]
    if shm_source:
        options = ["rbind", "rprivate", "nosuid", "noexec", "nodev"]
        found.append({**shm, "type": "bind", "source": shm_source, "options": options})
    elif not ipc_none:
        found.append(shm)
    return found


def _bind(
    source: str, target: str, *, read_only: str = "", propagation: str = "", recursive: bool = True
) -> Mount:
    if propagation and propagation not in _PROPAGATIONS:
        raise InvalidArgument(f"invalid propagation: {propagation}", subject="Propagation")
    return {
        "destination": target,
        "type": "bind",
        "source": source,
        "options": [
            "rbind" if recursive else "bind",
            propagation or "rprivate",
            *([read_only] if read_only else []),
        ],
    }


def is_read_only(point: MountSpec) -> bool:
    """An image's files are shared by all that have it."""
    return point.read_only or point.type == "image"


def _read_only(point: MountSpec, recursive_ro: bool) -> str:
    """A read-only mount is read-only all the way down, as since Docker 25, where the runtime can do it."""
    if not is_read_only(point):
        return ""
    if point.recursive_ro == "force" and not recursive_ro:
        raise InvalidArgument(
            "the runtime is not known to make mounts recursively read-only (bind-recursive=readonly)",
            subject="ReadOnlyForceRecursive",
        )
    # an option of its own beside: of a part that is mounted without what is below there is no "below"
    return "ro" if point.recursive_ro == "no" or not (recursive_ro and point.recursive) else "rro"


def of_user(
    points: Sequence[MountSpec],
    tmpfs: Mapping[str, str],
    files: Mapping[str, str],
    *,
    read_only_files: bool = False,
    recursive_ro: bool = True,
) -> list[Mount]:
    """What is mounted besides the defaults, shallow targets first.

    points: with `source` resolved to a host path. tmpfs: target -> options. files: target -> host
    path of the engine's own files; the user's mount of the same target wins. recursive_ro: does the
    runtime know "rro"? Raises InvalidArgument where that was asked for.
    """
    found: dict[str, Mount] = {}
    for target, source in files.items():
        found[target] = _bind(source, target, read_only="ro" if read_only_files else "")
    for target, options in tmpfs.items():
        found[target] = {
            "destination": target,
            "type": "tmpfs",
            "source": "tmpfs",
            "options": tmpfs_options(options.split(",")),
        }
    for point in points:
        if point.type == "tmpfs":
            options_list = tmpfs_options(point.options)
            if point.read_only:
                options_list.append("ro")
            found[point.target] = {
                "destination": point.target,
                "type": "tmpfs",
                "source": "tmpfs",
                "options": options_list,
            }
        else:
            found[point.target] = _bind(
                point.source,
                point.target,
                read_only=_read_only(point, recursive_ro),
                propagation=point.propagation,
                recursive=point.recursive,
            )
    return sorted(found.values(), key=lambda m: (m["destination"].count("/"), m["destination"]))


def assemble(given: Sequence[Mount], user: Sequence[Mount], *, read_only_root: bool) -> list[Mount]:
    """Defaults without those the user's mounts replace or lie above, then the user's."""
    targets = {m["destination"] for m in user}
    kept = []
    for mount in given:
        where = mount["destination"]
        if where in targets or any(where.startswith(t + "/") for t in targets):
            continue
        if read_only_root and where == "/sys/fs/cgroup" and "ro" not in mount["options"]:
            mount = {**mount, "options": ["ro", *(o for o in mount["options"] if o != "rw")]}
        kept.append(mount)
    return [*kept, *user]
