"""A user namespace for each container of Docker's: root there is nobody here (dockerd's `userns-remap`).

The ids are those that /etc/subuid and /etc/subgid give a user (subuid(5)). Images, writable layers and
volumes keep the owners that they have inside: they are seen through mounts that map owners
(mount_setattr(2)), so a container can be run with and without, and `docker cp` and commit know no difference.
What a user binds is not mapped, as with dockerd.
"""

from __future__ import annotations

import grp
import pwd
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from nagaya.engine.model import Container, ContainerConfig
from nagaya.engine.settings import Range, Remap, Settings
from nagaya.errors import FailedPrecondition, InvalidArgument

DEFAULT_USER = "dockremap"  # dockerd's user for "default"
_NOBODY = 65534  # /proc/sys/kernel/overflowuid
_FILES = ("/etc/subuid", "/etc/subgid")


def ranges(text: str, name: str, number: int) -> tuple[Range, ...]:
    """The ids that a file of subuid(5)'s format gives a user, by name or number, joined to one line from 0
    on. Pure."""
    found: list[Range] = []
    first = 0
    for line in text.splitlines():
        owner, _, rest = line.strip().partition(":")
        start, _, count = rest.partition(":")
        if owner in (name, str(number)) and start.isdecimal() and count.isdecimal() and int(count):
            found.append(Range(first, int(start), int(count)))
            first += int(count)
    return tuple(found)


def read(value: str) -> Remap | None:
    """What `userns-remap = "USER[:GROUP]"` (names or numbers; "default") means on this host; None for "".
    Raises InvalidArgument."""
    if not value:
        return None
    user, _, group = (DEFAULT_USER if value == "default" else value).partition(":")
    try:
        who = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except KeyError:
        raise InvalidArgument(f"there is no user {user!r}", subject="userns-remap") from None
    group = group or who.pw_name
    try:
        whose = grp.getgrgid(int(group)) if group.isdecimal() else grp.getgrnam(group)
    except KeyError:
        raise InvalidArgument(f"there is no group {group!r}", subject="userns-remap") from None
    owners = ((who.pw_name, who.pw_uid), (whose.gr_name, whose.gr_gid))
    uids, gids = (ranges(_text(path), *owner) for path, owner in zip(_FILES, owners, strict=True))
    for path, (name, _), given in zip(_FILES, owners, (uids, gids), strict=True):
        if not given:
            raise InvalidArgument(f"{path} has no ids for {name!r}", subject="userns-remap")
    return Remap(uids, gids)


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20)
    except OSError:
        return ""


def of(settings: Settings, config: ContainerConfig) -> Remap | None:
    """The mapping of a container; None in the host's user namespace. Pure."""
    return settings.remap if config.userns_mode != "host" and config.pod is None else None


def check(settings: Settings, config: ContainerConfig) -> None:
    """Refuse what root of the host alone can have. Raises InvalidArgument, in dockerd's words where it has
    some."""
    if of(settings, config) is None:
        return
    if config.privileged:
        raise InvalidArgument(
            "privileged mode is incompatible with user namespaces.  "
            "You must run the container in the host namespace when running privileged mode"
        )
    if config.network_mode == "host":
        raise InvalidArgument("cannot share the host's network namespace when user namespaces are enabled")
    if config.pid_mode == "host":
        raise InvalidArgument("cannot share the host PID namespace when user namespaces are enabled")
    runtime = config.runtime or settings.default_runtime
    if runtime != "nagaya":
        raise InvalidArgument(
            f"the runtime {runtime!r} cannot map owners: run the container in the host's user namespace "
            "(--userns=host)",
            subject="Runtime",
        )


def joined(settings: Settings, config: ContainerConfig, peers: Mapping[str, Container], netns: str) -> str:
    """The path of the user namespace that owns the namespaces it joins, "" for a new one. Pure. Raises
    FailedPrecondition."""
    for peer in peers.values():
        if of(settings, peer.config) is None:
            raise FailedPrecondition(
                f"container {peer.id} is in the host's user namespace: join it there (--userns=host)"
            )
        return f"/proc/{peer.pid}/ns/user"
    return pin(netns) if netns else ""


def pin(netns: str) -> str:
    """Where the user namespace is pinned that owns a pinned network namespace. Pure."""
    return f"{netns.rpartition('/')[0]}/user"


def mappings(given: Remap) -> dict[str, Any]:
    """`linux.uidMappings` and gidMappings. Pure."""
    return {"uidMappings": _oci(given.uids), "gidMappings": _oci(given.gids)}


def _oci(given: Sequence[Range]) -> list[dict[str, int]]:
    return [{"containerID": r.inside, "hostID": r.outside, "size": r.count} for r in given]


def inside(given: Sequence[Range], number: int) -> int:
    """Who an id of the host is inside; of those that are not mapped, nobody. Pure."""
    for r in given:
        if r.outside <= number < r.outside + r.count:
            return number - r.outside + r.inside
    return _NOBODY


def outside(given: Sequence[Range], number: int) -> int:
    """Who an id is on the host. Pure. Raises InvalidArgument for one that is not mapped."""
    for r in given:
        if r.inside <= number < r.inside + r.count:
            return number - r.inside + r.outside
    raise InvalidArgument(f"the container's user namespace has no id {number}")


def apply(document: dict[str, Any], given: Remap, path: str, ours: Collection[str]) -> None:
    """Put a container's config.json into a user namespace, that at `path` or a new one. ours: sources of
    mounts whose files have the owners that they have inside."""
    found = mappings(given)
    user = {"type": "user", "path": path} if path else {"type": "user"}
    document["linux"]["namespaces"].append(user)
    document["linux"] |= found
    for mount in document["mounts"]:
        if mount["type"] == "bind" and mount["source"] in ours:
            mount |= found
