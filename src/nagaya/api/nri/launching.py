"""Plugins that are started from a directory: INDEX-NAME, executable, with a connection that it inherits.

Their whole environment are NRI_PLUGIN_NAME, NRI_PLUGIN_IDX and, in NRI_PLUGIN_SOCKET, the number of the
descriptor; a plugin's configuration is INDEX-NAME.conf, else NAME.conf (NRI, pkg/adaptation).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
from contextlib import suppress
from typing import NamedTuple

log = logging.getLogger(__name__)

_MOST_CONFIGURATION = 1 << 20


class Launchable(NamedTuple):
    """A plugin that is there. place: its index. config: the text of its file, "" without one."""

    path: str
    place: str
    name: str
    config: str


def parse(file: str) -> tuple[str, str] | None:
    """(index, name) of a file's name; None when it is not two digits, "-", and a name (pure)."""
    index, dash, name = file.partition("-")
    good = all(letter.isascii() and (letter.isalnum() or letter in "-_.+") for letter in name)
    return (index, name) if dash and name and good and len(index) == 2 and index.isdecimal() else None


def find(directory: str, configurations: str) -> list[Launchable]:
    """The executables of the directory, in the order of their names; what has another name, or a
    configuration that cannot be read, is told and left out. Blocking."""
    found = []
    with suppress(FileNotFoundError):
        for file in sorted(os.listdir(directory)):
            path = f"{directory}/{file}"
            try:
                mode = os.stat(path).st_mode
                if not stat.S_ISREG(mode) or not mode & 0o111:
                    continue
                words = parse(file)
                if words is None:
                    log.warning(
                        "NRI plugin %s is not started: its name is not INDEX-NAME, as 10-logger", path
                    )
                    continue
                found.append(Launchable(path, *words, _configuration(configurations, file, words[1])))
            except (OSError, UnicodeDecodeError) as error:
                log.warning("NRI plugin %s is not started: %s", path, error)
    return found


def _configuration(directory: str, file: str, name: str) -> str:
    for path in (f"{directory}/{file}.conf", f"{directory}/{name}.conf"):
        with suppress(FileNotFoundError), open(path, encoding="utf-8") as opened:
            return opened.read(_MOST_CONFIGURATION)
    return ""


class Launched(NamedTuple):
    """One that was started."""

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


async def launch(plugin: Launchable) -> Launched:
    """Start it. Raises OSError."""
    ours, theirs = socket.socketpair()
    try:
        process = await asyncio.create_subprocess_exec(
            plugin.path,
            stdin=asyncio.subprocess.DEVNULL,
            env={
                "NRI_PLUGIN_NAME": plugin.name,
                "NRI_PLUGIN_IDX": plugin.place,
                "NRI_PLUGIN_SOCKET": str(theirs.fileno()),
            },
            pass_fds=(theirs.fileno(),),
            cwd="/",
            start_new_session=True,
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    reader, writer = await asyncio.open_connection(sock=ours)
    return Launched(process, reader, writer)


async def end(process: asyncio.subprocess.Process) -> None:
    """SIGKILL for what still runs, as containerd does it, and wait for its end."""
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()
