"""`ps`: the processes of a container, by the host's ps(1) or as JSON."""

from __future__ import annotations

from nagaya.errors import FailedPrecondition, InvalidArgument
from nagaya.linux import os
from nagaya.linux.json import dumps
from nagaya.runtime import lifecycle
from nagaya.runtime.arguments import TEXT, Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.runtime.command import Settings

USAGE = "[command options] <container-id> [ps options]"
ARITY = (1, 1 << 20)
OPTIONS = [Option("format f", TEXT, "select one of: table or json", "table")]


def main(settings: Settings, options: dict[str, Any], positional: list[str]) -> int:
    """Print them."""
    pids = lifecycle.ps(settings.root, positional[0])
    if options["format"] == "json":
        os.write(1, (dumps(pids) + "\n").encode())
        return 0
    if options["format"] != "table":
        raise InvalidArgument("invalid format option", subject="--format")
    lines = _host_ps(positional[1:] or ["-ef"])
    header = lines[0].split()
    if "PID" not in header:
        raise FailedPrecondition("couldn't find PID field in ps output", subject="ps options")
    column = header.index("PID")
    wanted = {str(pid) for pid in pids}
    chosen = [lines[0]]
    for line in lines[1:]:
        fields = line.split()
        if len(fields) > column and fields[column] in wanted:
            chosen.append(line)
    os.write(1, ("\n".join(chosen) + "\n").encode())
    return 0


def _host_ps(arguments: list[str]) -> list[str]:
    """The lines that ps(1) of the host prints: never a program of the container (CVE-2022-1227)."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.posix_spawnp(
        "ps",
        ["ps", *arguments],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1), (os.POSIX_SPAWN_DUP2, writer, 2)],
    )
    os.close(writer)
    data = b""
    while chunk := os.read(reader, 1 << 16):
        data += chunk
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    text = data.decode("utf-8", "replace")
    if status or not data:
        code = os.waitstatus_to_exitcode(status)
        raise FailedPrecondition(f"exit status {code}: {text}", subject="ps options")
    return text.rstrip("\n").split("\n")
