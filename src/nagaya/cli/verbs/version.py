"""`nagaya version`: ours and the daemon's."""

from __future__ import annotations

import os
import sys

import nagaya
from nagaya.cli.flags import Flag
from nagaya.cli.output import note
from nagaya.errors import Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS]"
SUMMARY = "Show version information of the command and the daemon"
FLAGS = (Flag("format", "json, or a Go template", short="f", kind="text"),)
ARGS = (0, 0)


def run(given: Given, client: Client) -> int:
    """Print both; 1 when no daemon answers."""
    ours = {
        "Version": nagaya.__version__,
        "ApiVersion": "1.44",
        "Os": "linux",
        "Arch": os.uname().machine,
        "PythonVersion": sys.version.split()[0],
    }
    error = None
    theirs: dict[str, Any] | None = None
    try:
        theirs = client.call("GET", "/version")
    except Unavailable as unavailable:
        error = unavailable
    both = {"Client": ours, "Server": theirs}
    if given["format"] == "json":
        from nagaya.linux import json

        print(json.dumps(both))
    elif given["format"]:
        from nagaya.cli.template import Template

        if theirs is None and error is not None and ".Server" in given["format"]:
            raise error
        print(Template(given["format"]).render(both))
    else:
        _block("Client", ours)
        if theirs is not None:
            print()
            _block("Server", theirs)
    if error is not None:
        sys.stdout.flush()
        note(str(error))
        return 1
    return 0


def _block(title: str, facts: dict[str, Any]) -> None:
    print(f"{title}:")
    names = {
        "Version": "Version",
        "ApiVersion": "API version",
        "MinAPIVersion": "Oldest API version",
        "GitCommit": "Git commit",
        "GoVersion": "Go version",
        "PythonVersion": "Python version",
        "KernelVersion": "Kernel version",
    }
    for key, name in names.items():
        if facts.get(key):
            print(f" {name + ':':<20}{facts[key]}")
    print(f" {'OS/Arch:':<20}{facts.get('Os', '')}/{facts.get('Arch', '')}")
