"""`ps`: the processes of a container as its guest has them, as a table, or, with --format guest, as files of
its /proc in JSON; with --format json those of the host that are its machine: a pid of the guest names another
process here."""

from __future__ import annotations

from nagaya.errors import InvalidArgument
from nagaya.linux import os
from nagaya.linux.json import dumps
from nagaya.runtime import lifecycle
from nagaya.runtime.verbs import ps as runtime_ps
from nagaya.vm import usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.runtime.command import Settings

USAGE, ARITY, OPTIONS = runtime_ps.USAGE, runtime_ps.ARITY, runtime_ps.OPTIONS


def main(settings: Settings, options: dict[str, Any], positional: list[str]) -> int:
    """Print them."""
    if options["format"] == "json":
        os.write(1, (dumps(lifecycle.ps(settings.root, positional[0])) + "\n").encode())
        return 0
    if options["format"] == "guest":
        found = usage.processes(settings.root, positional[0])
        os.write(1, (dumps(found) + "\n").encode("utf-8", "surrogateescape"))
        return 0
    if options["format"] != "table":
        raise InvalidArgument("invalid format option", subject="--format")
    os.write(1, usage.table(usage.processes(settings.root, positional[0])["processes"]).encode())
    return 0
