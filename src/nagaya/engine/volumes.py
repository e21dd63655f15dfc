"""Volumes: directories below ROOT/volumes, named or anonymous; rows, names, options, files.

What happens to them while containers come and go (mounting, events, who uses which) is volume_life's.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping

from nagaya.engine import files
from nagaya.engine.journal import Journal
from nagaya.engine.ledger import Ledger, Volume
from nagaya.engine.model import VolumeSummary
from nagaya.errors import InvalidArgument, NagayaError
from nagaya.image import trees

ANONYMOUS_LABEL = "com.docker.volume.anonymous"

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_SIZE = re.compile(r"[0-9]+(\.[0-9]+)? ?[kmgtp]?i?b?", re.IGNORECASE)
# option -> what it needs beside it, in the order dockerd looks
_OPTIONS = {"type": ("device",), "device": ("type",), "o": ("device", "type"), "size": ()}


def check_name(name: str) -> str:
    """A volume name by Docker's grammar. Raises InvalidArgument."""
    if len(name) == 1:
        raise InvalidArgument(
            f"create {name}: volume name is too short, names should be at least two alphanumeric characters",
            subject="volume",
        )
    if not is_name(name):
        raise InvalidArgument(
            f'create {name}: "{name}" includes invalid characters for a local volume name, only '
            '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute '
            "path",
            subject="volume",
        )
    return name


def is_name(name: str) -> bool:
    """Has the text the form of a volume's name?"""
    return _NAME.fullmatch(name) is not None and len(name) <= 255


def check_options(name: str, options: Mapping[str, str]) -> None:
    """The local driver's options: what to mount where the volume is. Raises InvalidArgument."""
    for option, value in options.items():
        if option not in _OPTIONS:
            raise InvalidArgument(f'create {name}: invalid option: "{option}"', subject=option)
        if option == "size":
            if not _SIZE.fullmatch(value):
                raise InvalidArgument(f"create {name}: invalid size: '{value}'", subject=option)
            raise InvalidArgument(f"create {name}: quota size requested but no quota support", subject=option)
        if "\0" in value:
            raise InvalidArgument(f"create {name}: option {option} has a NUL in it", subject=option)
        for needed in _OPTIONS[option]:
            if needed not in options:
                raise InvalidArgument(f'create {name}: missing required option: "{needed}"', subject=needed)


def path_of(root: str, name: str) -> str:
    """ROOT/volumes/NAME/_data."""
    return f"{root}/volumes/{name}/_data"


def summary(row: Volume, root: str) -> VolumeSummary:
    """A row as the APIs see it."""
    return VolumeSummary(
        row.name, row.created, path_of(root, row.name), row.anonymous, row.labels, row.options
    )


def summaries(ledger: Ledger, root: str) -> list[VolumeSummary]:
    """All volumes, by name."""
    return [summary(row, root) for row in ledger.volumes()]


def size(root: str, name: str) -> int:
    """Bytes of its files; 0 of a volume that is gone. Blocking. Raises KernelError."""
    try:
        fd = os.open(path_of(root, name), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        return trees.usage(fd)[0]
    finally:
        os.close(fd)


def ensure(
    ledger: Ledger,
    journal: Journal,
    root: str,
    name: str,
    *,
    anonymous: bool = False,
    labels: Mapping[str, str] | None = None,
    options: Mapping[str, str] | None = None,
) -> tuple[Volume, bool]:
    """(the volume of that name, was it made just now?); labels and options are those of a new one.

    Blocking. Raises InvalidArgument, ResourceExhausted, KernelError.
    """
    check_name(name)
    path = path_of(root, name)
    found = ledger.volume(name)
    if found is not None:
        return found, False
    check_options(name, options or {})
    operation = journal.begin("volume-create", name)
    try:
        files.make_directory(os.path.dirname(path), 0o711)
        files.make_directory(path, 0o755)
        journal.point("volume-create: directory")
        row = Volume(
            name,
            time.time_ns(),
            anonymous,
            {**({ANONYMOUS_LABEL: ""} if anonymous else {}), **(labels or {})},
            dict(options or {}),
        )
        with ledger.write():
            ledger.put_volume(row)
            journal.done(operation)
    except NagayaError:
        found = ledger.volume(name)
        if found is None:
            drop_empty(root, name)
        journal.done(operation)
        if found is None:
            raise
        return found, False  # somebody else made it meanwhile
    journal.point("volume-create: done")
    return row, True


def drop_empty(root: str, name: str) -> None:
    """Take away the directories of a volume that came to no row; what has files in it stays."""
    for path in (path_of(root, name), f"{root}/volumes/{name}"):
        try:
            os.rmdir(path)
        except OSError:
            return


def remove(ledger: Ledger, journal: Journal, root: str, name: str) -> None:
    """Delete a volume and its files, the row last. Unknown ones do nothing. Blocking.

    Raises FailedPrecondition when something is mounted in it; what is left of it stays a volume then.
    """
    journal.begin("volume-remove", name)
    try:
        parent = os.open(f"{root}/volumes", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            trees.remove(parent, name)
        finally:
            os.close(parent)
    except NagayaError:
        journal.settle("volume-remove", name)  # it is used again from now on: no daemon may finish this
        raise
    journal.point("volume-remove: files")
    with ledger.write():
        ledger.delete_volume(name)
        journal.settle("volume-remove", name)
    journal.point("volume-remove: done")


def bind_source(path: str, *, create: bool) -> str:
    """Check, or for `-v` make, the host path of a bind mount. Raises InvalidArgument in dockerd's words."""
    if not path.startswith("/"):
        raise InvalidArgument(f"invalid mount path: '{path}' mount path must be absolute", subject="Source")
    if not os.path.lexists(path):
        if not create:
            raise InvalidArgument(
                f'invalid mount config for type "bind": bind source path does not exist: {path}',
                subject="Source",
            )
        try:
            os.makedirs(path, mode=0o755, exist_ok=True)
        except OSError as error:
            raise NagayaError(
                f"error while creating mount source path '{path}': {os.strerror(error.errno or 0).lower()}",
                subject="Source",
                errno=error.errno or 0,
            ) from None
    return path
