"""The fields of linux.resources, as plans of what to write read them: each checked, and named when wrong."""

from __future__ import annotations

import errno

from nagaya.errors import InvalidArgument, KernelError
from nagaya.linux import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def number(value: Any, field: str) -> int | None:
    """An integer of linux.resources, None when absent. Raises InvalidArgument naming the field."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidArgument(f"{field} must be an integer, not {value!r:.60}", subject=field)
    return value


def pids_max(limit: int) -> str:
    """pids.max of pids.limit: negative is without limit; 0 counts as 1, for systemd has no 0 (runc)."""
    return "max" if limit < 0 else str(max(limit, 1))


def section(resources: dict[str, Any], name: str) -> dict[str, Any]:
    """The object `name` of linux.resources, empty when absent. Raises InvalidArgument."""
    value = resources.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidArgument(f"linux.resources.{name} must be an object", subject=f"linux.resources.{name}")
    return value


def items(value: Any, field: str) -> list[dict[str, Any]]:
    """A list of objects of linux.resources, empty when absent. Raises InvalidArgument."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidArgument(f"{field} must be a list of objects", subject=field)
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            raise InvalidArgument(f"{field}[{index}] must be an object", subject=f"{field}[{index}]")
    return value


def text(value: Any, field: str) -> str:
    """A string for one cgroup file, "" when absent. Raises InvalidArgument."""
    if value is None:
        return ""
    if not isinstance(value, str) or "\n" in value or "\0" in value:
        raise InvalidArgument(f"{field} must be a string of one line", subject=field)
    return value


def device(entry: dict[str, Any], field: str) -> str:
    """ "MAJOR:MINOR" of a blkio entry. Raises InvalidArgument."""
    major = number(entry.get("major"), f"{field}.major")
    minor = number(entry.get("minor"), f"{field}.minor")
    if major is None or minor is None or major < 0 or minor < 0:
        raise InvalidArgument(f"{field} needs a major and a minor number", subject=field)
    return f"{major}:{minor}"


def write_failed(controller: str, file: str, value: str, field: str, error: int) -> KernelError:
    """The error of a refused limit: it names controller, file, value and the OCI field."""
    reason = os.strerror(error).lower()
    if error == errno.ENOENT:
        reason = "this kernel does not offer that limit here"
    return KernelError(
        f"{field}: {reason}",
        subject=field,
        step=f"cgroup {controller}: write {value!r} to {file}",
        errno=error,
    )
