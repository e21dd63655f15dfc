"""Pulling an image, and how such things go: bars on a terminal (rich), lines elsewhere, nothing with -q."""

from __future__ import annotations

import os

from nagaya.cli.output import write
from nagaya.errors import InvalidArgument, NagayaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from nagaya.cli.http import Client

_DONE = (
    *("Pull complete", "Already exists", "Download complete"),
    *("Pushed", "Layer already exists", "Mounted from"),
)


def split(reference: str) -> tuple[str, str]:
    """(name, tag or digest) of a reference; the tag is "latest" when it names none.
    Raises InvalidArgument."""
    name, at, digest = reference.partition("@")
    if at:
        return name, digest
    head, colon, tag = reference.rpartition(":")
    if colon and "/" not in tag:
        if not tag:
            raise InvalidArgument("invalid reference format")
        return head, tag
    return reference, "latest"


def pull(
    client: Client, reference: str, platform: str, *, quiet: bool, fd: int = 1, all_tags: bool = False
) -> None:
    """Pull; what happens is shown on fd. Raises NagayaError when the daemon reports a failure."""
    from nagaya.cli.auth import registry_auth

    name, tag = (reference, "") if all_tags else split(reference)
    query = {"fromImage": name, "tag": tag, "platform": platform}
    headers = {"X-Registry-Auth": registry_auth(name)}
    show(client.send("POST", "/images/create", query, headers=headers).objects(), quiet=quiet, fd=fd)


def show(messages: Iterator[Any], *, quiet: bool = False, fd: int = 1) -> None:
    """Show a stream of moby's jsonmessages as it comes. Raises NagayaError when it tells of a failure."""
    messages = _checked(messages)
    if quiet:
        for _ in messages:
            pass
    elif os.isatty(fd):
        _draw(messages, fd)
    else:
        for message in messages:
            if not message.get("progressDetail") and "aux" not in message:
                write(line(message).encode() + b"\n", fd)


def _checked(messages: Iterator[Any]) -> Iterator[dict[str, Any]]:
    for message in messages:
        if "error" in message:
            raise NagayaError(str(message["error"]))
        yield message


def line(message: dict[str, Any]) -> str:
    """A message as a line of text."""
    if "stream" in message:
        return str(message["stream"]).rstrip("\n")
    layer = message.get("id", "")
    return f"{layer}: {message['status']}" if layer else str(message.get("status", ""))


def _draw(messages: Iterator[dict[str, Any]], fd: int) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    with open(fd, "w", closefd=False, encoding="utf-8") as terminal:
        columns = (
            TextColumn("{task.description}: {task.fields[status]:<20}"),
            BarColumn(bar_width=30),
            DownloadColumn(),
        )
        with Progress(*columns, console=Console(file=terminal)) as bars:
            tasks: dict[str, Any] = {}
            for message in messages:
                if "aux" in message:
                    continue
                layer, status = message.get("id", ""), str(message.get("status", ""))
                detail = message.get("progressDetail") or {}
                if not layer or status.startswith("Pulling from"):
                    bars.console.print(line(message), highlight=False, markup=False, soft_wrap=True)
                    continue
                if layer not in tasks:
                    tasks[layer] = bars.add_task(layer, total=None, status=status)
                total, current = detail.get("total"), detail.get("current", 0)
                if status.startswith(_DONE):
                    # a bar without a total would pulse for ever
                    (known,) = [task.total for task in bars.tasks if task.id == tasks[layer]]
                    total = current = known or 1
                bars.update(tasks[layer], status=status, completed=current or 0, total=total)
