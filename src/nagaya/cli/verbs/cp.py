"""`nagaya cp`: copy files between a container and this machine."""

from __future__ import annotations

import binascii
import os
import posixpath
import stat
from typing import NamedTuple

from nagaya.cli import life
from nagaya.cli.flags import Flag, UsageError
from nagaya.cli.http import ApiError
from nagaya.cli.output import human_size, note, write
from nagaya.errors import NagayaError
from nagaya.linux import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-\n        nagaya cp [OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH"
SUMMARY = "Copy files between a container and this machine"
FLAGS = (
    Flag("archive", "Keep owners", short="a"),
    Flag("follow-link", "Follow a link at the source", short="L"),
    Flag("quiet", "Say nothing of what was copied", short="q"),
)
ARGS = (2, 2)

_GO_DIRECTORY, _GO_LINK = 1 << 31, 1 << 27  # bits of Go's os.FileMode


class Place(NamedTuple):
    """An end of the copy: what was asked for, and what is there."""

    path: str
    exists: bool
    is_directory: bool


def split(word: str) -> tuple[str, str]:
    """(container, path); "" for a path of this machine."""
    container, colon, path = word.partition(":")
    if word.startswith("/") or not colon or container.startswith("."):
        return "", word
    return container, path


def base_of(path: str) -> tuple[str, str]:
    """(directory, last component) of a path; "." stays the last one where it says "what is in it"."""
    clean = posixpath.normpath(path)
    if path.endswith("/.") or path == ".":
        return clean, "."
    head, name = posixpath.split(clean)
    return head or ".", name


def plan(source: Place, target: Place) -> tuple[str, str, str]:
    """(directory to unpack into, first component of the members, what it becomes), by docker's rules. Raises
    NagayaError."""
    directory, name = base_of(target.path)
    _, base = base_of(source.path)
    if target.exists and target.is_directory:
        return target.path, base, base
    if target.exists and source.is_directory:
        raise NagayaError("cannot copy directory")
    if not target.exists and not source.is_directory and target.path.endswith(("/", "/.")):
        raise NagayaError("no such directory")
    return directory, base, name


def run(given: Given, client: Client) -> int:
    """Copy one way or the other."""
    (from_name, source), (to_name, target) = map(split, given.args)
    if from_name and to_name:
        raise UsageError("copying between containers is not supported")
    if not from_name and not to_name:
        raise UsageError("must specify at least one container source")
    quiet = given["quiet"] if "quiet" in given.changed else not os.isatty(1)
    if from_name:
        size, shown = _out(client, given, from_name, source, target)
    else:
        size, shown = _into(client, given, source, to_name, target)
    if not quiet and size >= 0:
        note(f"Successfully copied {human_size(size)} to {shown}")
    return 0


def _look(client: Client, container: str, path: str) -> dict[str, Any]:
    answer = client.send("HEAD", life.path(container) + "/archive", {"path": path})
    found = json.loads(binascii.a2b_base64(answer.headers["x-docker-container-path-stat"]))
    if not isinstance(found, dict):
        raise NagayaError("the daemon's answer about a path is not understood")
    return found


def _out(client: Client, given: Given, container: str, source: str, target: str) -> tuple[int, str]:
    """Out of a container."""
    name = ""
    if given["follow-link"]:
        found = _look(client, container, source)
        if found["mode"] & _GO_LINK:
            name, source = base_of(source)[1], found["linkTarget"]
    answer = client.send("GET", life.path(container) + "/archive", {"path": source})
    if target == "-":
        for data in answer.chunks():
            write(data)
        return -1, ""
    about = json.loads(binascii.a2b_base64(answer.headers["x-docker-container-path-stat"]))
    where = os.path.abspath(target) + ("/" if target.endswith("/") else "/." if target.endswith("/.") else "")
    place = _local(where, follow=True)
    if not os.path.isdir(os.path.dirname(where.rstrip("/")) or "/"):
        raise NagayaError(
            f'invalid output path: directory "{os.path.dirname(where.rstrip("/"))}" does not exist'
        )
    directory, old, new = plan(Place(source, True, bool(about["mode"] & _GO_DIRECTORY)), place)
    from nagaya.cli import tarball  # tarfile: 12 ms of a start that other verbs do not need

    stream = tarball.Counted(answer.chunks())
    tarball.unpack(stream, directory, old, name if name and new == old else new, owners=given["archive"])  # type: ignore[arg-type]
    return stream.size, where


def _local(path: str, *, follow: bool) -> Place:
    try:
        info = os.stat(path, follow_symlinks=follow or path.endswith(("/", "/.")))
    except OSError:
        return Place(path, False, False)
    return Place(path, True, stat.S_ISDIR(info.st_mode))


def _into(client: Client, given: Given, source: str, container: str, target: str) -> tuple[int, str]:
    """Into a container."""
    place = Place(target, False, False)
    try:
        found = _look(client, container, target)
        if found["mode"] & _GO_LINK:
            link = found["linkTarget"]
            target = link if link.startswith("/") else posixpath.join(base_of(target)[0], link)
            place = Place(target, False, False)
            found = _look(client, container, target)
        place = Place(target, True, bool(found["mode"] & _GO_DIRECTORY))
    except ApiError as error:
        if error.status != 404 or "no such container" in error.message.lower():
            raise
    sent = 0

    def counted(pieces: Iterator[bytes]) -> Iterator[bytes]:
        nonlocal sent
        for piece in pieces:
            sent += len(piece)
            yield piece

    if source == "-":
        if not place.is_directory:
            raise NagayaError(f'destination "{container}:{target}" must be a directory')
        from nagaya.cli.files import read_from

        directory, pieces = place.path, read_from("")
    else:
        from nagaya.cli import tarball

        mine = _local(source, follow=given["follow-link"])
        if not mine.exists:
            raise NagayaError(f"lstat {os.path.abspath(source)}: no such file or directory")
        directory, old, new = plan(mine, place)
        pieces = tarball.pack(source, new if new != old else old, follow=given["follow-link"])
    query = {"path": directory, "noOverwriteDirNonDir": True, "copyUIDGID": given["archive"]}
    client.send("PUT", life.path(container) + "/archive", query, upload=counted(iter(pieces))).read()
    return sent, f"{container}:{target}"
