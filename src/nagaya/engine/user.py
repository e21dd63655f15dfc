"""Who a container's process is: `--user` against the image's /etc/passwd and /etc/group.

Both files are read bounded and only when regular (layered.py; CVE-2026-47262); a number is never
looked up as a name and must fit 31 bits (CVE-2024-40635, CVE-2026-46680). The semantics are those
of passwd(5), group(5) and `docker run --user`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from nagaya.engine.layered import LayeredRoot
from nagaya.errors import InvalidArgument, NotFound

MAX_ID = 2**31 - 1


class Identity(NamedTuple):
    """A resolved user: groups are the supplementary ones, the primary first."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


class _Passwd(NamedTuple):
    name: str
    uid: int
    gid: int
    home: str


class _Group(NamedTuple):
    name: str
    gid: int
    members: tuple[str, ...]


def _number(text: str) -> int | None:
    """The id that text is, None when it is a name. Raises InvalidArgument for what only looks like a
    number: a sign, other scripts' digits, or more than 31 bits must never become a name lookup."""
    if not text:
        return None
    if text.isascii() and text.isdigit():
        if len(text) > 10 or int(text) > MAX_ID:
            raise InvalidArgument(f"uids and gids must be in range 0-{MAX_ID}", subject=text)
        return int(text)
    try:
        int(text)
    except ValueError:
        return None
    raise InvalidArgument(f"uids and gids must be in range 0-{MAX_ID}", subject=text)


def _field_id(text: str) -> int | None:
    """An id field of passwd or group; None for what no kernel id can be."""
    fits = text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= MAX_ID
    return int(text) if fits else None


def _parse_passwd(data: bytes) -> list[_Passwd]:
    entries = []
    for line in data.decode("utf-8", "replace").splitlines():
        fields = line.strip().split(":")
        if len(fields) < 4 or line.lstrip().startswith("#"):
            continue
        uid, gid = _field_id(fields[2]), _field_id(fields[3])
        if uid is not None and gid is not None:
            entries.append(_Passwd(fields[0], uid, gid, fields[5] if len(fields) > 5 else ""))
    return entries


def _parse_group(data: bytes) -> list[_Group]:
    entries = []
    for line in data.decode("utf-8", "replace").splitlines():
        fields = line.strip().split(":")
        if len(fields) < 3 or line.lstrip().startswith("#"):
            continue
        gid = _field_id(fields[2])
        if gid is not None:
            members = tuple(m for m in fields[3].split(",") if m) if len(fields) > 3 else ()
            entries.append(_Group(fields[0], gid, members))
    return entries


def _file(root: LayeredRoot, path: str) -> bytes:
    try:
        return root.read(path)
    except NotFound:
        return b""  # an image from scratch has neither file


def resolve(user: str, group_add: Sequence[str], root: LayeredRoot) -> Identity:
    """The identity that `--user USER` and `--group-add` name in this root.

    Raises InvalidArgument with dockerd's words ("unable to find user x: no matching entries in
    passwd file").
    """
    name, colon, group = user.partition(":")
    wanted_uid, wanted_gid = _number(name), _number(group)
    passwd = _parse_passwd(_file(root, "/etc/passwd"))
    groups = _parse_group(_file(root, "/etc/group"))

    entry: _Passwd | None = None
    if not name or wanted_uid is not None:
        uid = wanted_uid or 0
        entry = next((p for p in passwd if p.uid == uid), None)
    else:
        entry = next((p for p in passwd if p.name == name), None)
        if entry is None:
            raise InvalidArgument(
                f"unable to find user {name}: no matching entries in passwd file", subject="user"
            )
        uid = entry.uid
    gid = entry.gid if entry else 0
    home = (entry.home if entry else "") or "/"

    extra: list[int] = []
    if colon and group:
        if wanted_gid is not None:
            gid = wanted_gid
        else:
            found = next((g for g in groups if g.name == group), None)
            if found is None:
                raise InvalidArgument(
                    f"unable to find group {group}: no matching entries in group file", subject="user"
                )
            gid = found.gid
    elif entry is not None:
        extra = [g.gid for g in groups if entry.name in g.members]
    for added in group_add:
        number = _number(added)
        if number is None:
            match = next((g for g in groups if g.name == added), None)
            if match is None:
                raise InvalidArgument(
                    f"unable to find group {added}: no matching entries in group file", subject="group-add"
                )
            number = match.gid
        extra.append(number)
    # the primary group is in the list too: else a process could drop it to pass a "not this group" check
    # (CVE-2022-36109)
    return Identity(uid, gid, tuple(dict.fromkeys([gid, *extra])), home)
