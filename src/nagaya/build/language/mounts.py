"""RUN --mount=type=...,key=value (moby/buildkit's instructions/commands_runmount.go)."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from typing import Any

from nagaya.build.language.ast import DockerfileError, Mount

KINDS = ("bind", "cache", "tmpfs", "secret", "ssh")
_SHARINGS = ("shared", "private", "locked")
_TRUE = ("1", "t", "T", "TRUE", "true", "True")  # Go's strconv.ParseBool
_FALSE = ("0", "f", "F", "FALSE", "false", "False")
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?) ?([kmgtp]?)(?:i?b)?", re.IGNORECASE | re.ASCII)
_WITH_OWNER = ("secret", "ssh", "cache")


def _fields(text: str) -> list[tuple[str, str, bool]]:
    """key, value, was there an equals sign?"""
    try:
        fields = next(csv.reader([text], strict=True))
    except (csv.Error, StopIteration):
        raise DockerfileError(f"failed to parse csv mounts: {text[:80]}") from None
    cut = [field.partition("=") for field in fields]
    return [(key.lower(), value, bool(equals)) for key, equals, value in cut]


def origin(text: str) -> str:
    """The from= of a mount, "" when it has none: the graph has to know it before anything is expanded.

    Raises DockerfileError when it has variables, as those are not known yet.
    """
    found = ""
    for key, value, equals in _fields(text):
        if key == "from" and equals:
            dollar = value.find("$")
            if dollar >= 0 and dollar != len(value) - 1:
                raise DockerfileError("'from' doesn't support variable expansion, define alias stage instead")
            found = value
    return found


def parse(text: str, expand: Callable[[str], str]) -> Mount:
    """The mount, with its variables put in. Raises DockerfileError."""
    found: dict[str, Any] = {}
    kind = "bind"
    for key, written, equals in _fields(text):
        value = expand(written) if equals else written
        if not equals and key not in ("readonly", "ro", "readwrite", "rw", "required"):
            raise DockerfileError(f"invalid field '{key}' must be a key=value pair")
        if key == "type":
            kind = value.lower()
            if kind not in KINDS:
                raise DockerfileError(f'unsupported mount type "{value[:80]}"')
        elif key == "from":
            found["origin"] = value
        elif key in ("source", "src"):
            found["source"] = value
        elif key in ("target", "dst", "destination"):
            found["target"] = value
        elif key in ("readonly", "ro"):
            found["read_only"] = _truth(key, value) if equals else True
        elif key in ("readwrite", "rw"):
            found["read_only"] = not _truth(key, value) if equals else False
        elif key == "required" and kind in ("secret", "ssh"):
            found["required"] = _truth(key, value) if equals else True
        elif key == "size" and kind == "tmpfs":
            found["size"] = _size(key, value)
        elif key == "id":
            found["id"] = value
        elif key == "sharing":
            if value.lower() not in _SHARINGS:
                raise DockerfileError(f'unsupported sharing value "{value[:80]}"')
            found["sharing"] = value.lower()
        elif key in ("mode", "uid", "gid"):
            found[key] = _number(key, value)
        elif key == "env":
            found["env"] = value
        elif key in ("required", "size"):
            raise DockerfileError(f"unexpected key '{key}' for mount type '{kind}'")
        else:
            raise DockerfileError(f"unexpected key '{key[:80]}' in '{key[:80]}={written[:80]}'")
    found.setdefault("read_only", kind not in ("cache", "tmpfs"))
    return _checked(Mount(kind=kind, **found))


def _checked(mount: Mount) -> Mount:
    if mount.kind not in _WITH_OWNER:
        for name, value in (("mode", mount.mode), ("uid", mount.uid), ("gid", mount.gid)):
            if value is not None:
                raise DockerfileError(f'{name} not allowed for "{mount.kind}" type mounts')
    if mount.kind == "secret":
        if mount.origin:
            raise DockerfileError("secret mount should not have a from")
        if mount.sharing:
            raise DockerfileError("secret mount should not define sharing")
        if not (mount.source or mount.target or mount.id):
            raise DockerfileError("invalid secret mount. one of source, target required")
        if mount.source and mount.id:
            raise DockerfileError("both source and id can't be set")
    if mount.sharing and mount.kind != "cache":
        raise DockerfileError(f"invalid cache sharing set for {mount.kind} mount")
    return mount


def _truth(key: str, value: str) -> bool:
    if value not in _TRUE + _FALSE:
        raise DockerfileError(f"invalid value for {key}: {value[:80]}")
    return value in _TRUE


def _number(key: str, value: str) -> int:
    digits = r"[0-7]{1,11}" if key == "mode" else r"\d{1,10}"
    number = int(value, 8 if key == "mode" else 10) if re.fullmatch(digits, value, re.ASCII) else -1
    if not 0 <= number < 1 << 32:
        raise DockerfileError(f"invalid value {value[:80]} for {key}")
    return number


def _size(key: str, value: str) -> int:
    match = _SIZE.fullmatch(value)
    if match is None:
        raise DockerfileError(f"invalid value for {key}: {value[:80]}")
    return int(float(match[1]) * 1024 ** " kmgtp".index(match[2].lower() or " "))
