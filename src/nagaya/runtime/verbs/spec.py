"""`spec`: write a starter config.json."""

from __future__ import annotations

from nagaya.errors import AlreadyExists
from nagaya.linux import os
from nagaya.linux.cgroup import layout
from nagaya.linux.json import dumps_indented
from nagaya.oci.runtime import example
from nagaya.runtime.arguments import FLAG, TEXT, Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.runtime.command import Settings

USAGE = "[command options]"
ARITY = (0, 0)
OPTIONS = [
    Option("bundle b", TEXT, "path to the root of the bundle directory"),
    Option("rootless", FLAG, "generate a configuration for a rootless container"),
]


def main(_settings: Settings, options: dict[str, Any], _positional: list[str]) -> int:
    """0 when it is written; an existing file is never replaced."""
    path = f"{options['bundle'] or '.'}/config.json"
    # on v1 a container sees its cgroups without a namespace of theirs, and runc asks for none there
    document = example(
        rootless_ids=(os.geteuid(), os.getegid()) if options["rootless"] else None,
        own_cgroups=layout().version == 2,
    )
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        raise AlreadyExists("File config.json exists. Remove it first", subject=path) from None
    try:
        os.write(fd, dumps_indented(document, "\t").encode())
    finally:
        os.close(fd)
    return 0
