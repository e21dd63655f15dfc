"""The state directory: ROOT/ID/state.json, exec.fifo, lock.

The only memory of the runtime: every verb, and the daemon's supervisor, reads what another process
wrote. ROOT is 0711, ROOT/ID 0700; state.json is replaced by rename, so that a reader sees one
version whole.
"""

from __future__ import annotations

import errno
from time import gmtime, time_ns

from nagaya.errors import AlreadyExists, InternalError, InvalidArgument, NotFound
from nagaya.linux import os, pids
from nagaya.linux.json import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FILE = "state.json"
FIFO = "exec.fifo"
VERSION = 1

_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.")


def check_id(identifier: str) -> str:
    """The id, if it follows runc's grammar. Raises InvalidArgument."""
    if (
        not identifier
        or identifier in (".", "..")
        or len(identifier) > 1024
        or not _ID_CHARACTERS.issuperset(identifier)
    ):
        raise InvalidArgument("invalid container ID format", subject=identifier)
    return identifier


def directory(root: str, identifier: str) -> str:
    """ROOT/ID of a checked id."""
    return f"{root}/{check_id(identifier)}"


def make(root: str, identifier: str) -> str:
    """Make the state directory. Raises AlreadyExists."""
    path = directory(root, identifier)
    try:
        os.mkdir(path, 0o700)
    except FileNotFoundError:
        os.makedirs(root, 0o711, exist_ok=True)
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            raise AlreadyExists("container with given ID already exists", subject=identifier) from None
    except FileExistsError:
        raise AlreadyExists("container with given ID already exists", subject=identifier) from None
    return path


def save(path: str, record: dict[str, Any]) -> None:
    """Replace state.json. No fsync: ROOT is a tmpfs, and its containers end with the machine."""
    temporary = f"{path}/.{FILE}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        data = memoryview(_encoded(record))
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)
    os.rename(temporary, f"{path}/{FILE}")


def _encoded(record: dict[str, Any]) -> bytes:
    try:
        return dumps(record).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # in a member that means nothing to us: an annotation, a later specification's
        raise InvalidArgument(
            "config.json: has text that UTF-8 cannot have (half a surrogate pair)", subject="config.json"
        ) from None


def load(root: str, identifier: str) -> dict[str, Any]:
    """The record of a container. Raises NotFound, InternalError when it is unreadable."""
    path = directory(root, identifier)
    try:
        fd = os.open(f"{path}/{FILE}", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound("container does not exist", subject=identifier) from None
    try:
        data = b""
        while chunk := os.read(fd, 1 << 20):
            data += chunk
    finally:
        os.close(fd)
    try:
        record: dict[str, Any] = loads(data)
    except InvalidArgument as error:
        raise InternalError(f"{path}/{FILE}: {error}", subject=identifier) from None
    return record


def remove(path: str) -> None:
    """Remove the state directory and the files in it."""
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        return
    for name in names:
        try:
            os.unlink(f"{path}/{name}")
        except FileNotFoundError:
            continue
    try:
        os.rmdir(path)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


def identifiers(root: str) -> list[str]:
    """The ids with a state directory, sorted."""
    try:
        return sorted(
            e.name
            for e in os.scandir(root)
            if e.is_dir(follow_symlinks=False) and set(e.name) <= _ID_CHARACTERS
        )
    except FileNotFoundError:
        return []


def alive(record: dict[str, Any]) -> bool:
    """Does the first process live? The start time tells it from a later owner of its pid."""
    pid = record.get("pid") or 0
    if pid <= 0:
        return False
    fields = pids.stat_fields(pid)
    return fields is not None and fields[0] not in "ZX" and fields[1] == record.get("start_time")


def oci_state(record: dict[str, Any], status: str, pid: int) -> dict[str, Any]:
    """The state document of the runtime-spec (runtime.md), which hooks get on stdin."""
    spec = record["config"]
    return {
        "ociVersion": spec["ociVersion"],
        "id": record["id"],
        "status": status,
        "pid": pid,
        "bundle": record["bundle"],
        "annotations": spec.get("annotations") or {},
    }


def now() -> str:
    """The time as Go's RFC3339Nano prints it in UTC, for `created`."""
    nanoseconds = time_ns()
    t = gmtime(nanoseconds // 10**9)
    text = f"{t[0]:04}-{t[1]:02}-{t[2]:02}T{t[3]:02}:{t[4]:02}:{t[5]:02}"
    fraction = f"{nanoseconds % 10**9:09}".rstrip("0")
    return f"{text}.{fraction}Z" if fraction else f"{text}Z"
