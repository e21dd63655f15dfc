"""`checkpoint`: write a running container to files, by criu(8)."""

from __future__ import annotations

from nagaya.errors import InvalidArgument
from nagaya.linux import os
from nagaya.runtime import criu, lifecycle
from nagaya.runtime.arguments import FLAG, LIST, NUMBER, TEXT, Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.runtime.command import Settings

USAGE = "[command options] <container-id>"
ARITY = (1, 1)
COMMON = [
    Option("image-path", TEXT, "path of criu's image files"),
    Option("work-path", TEXT, "path of criu's work files and logs"),
    Option("tcp-established", FLAG, "allow open tcp connections"),
    Option("ext-unix-sk", FLAG, "allow external unix sockets"),
    Option("shell-job", FLAG, "allow shell jobs"),
    Option("file-locks", FLAG, "handle file locks, for safety"),
    Option("manage-cgroups-mode", TEXT, "cgroups mode: soft|full|strict|ignore"),
    Option("empty-ns", LIST, "create a namespace, but don't restore its properties"),
    Option("auto-dedup", FLAG, "enable auto deduplication of memory images"),
    Option("lazy-pages", FLAG, "restore memory pages lazily"),
]
OPTIONS = [
    *COMMON,
    Option("parent-path", TEXT, "path of the images of a former pre-dump, relative to the image path"),
    Option("leave-running", FLAG, "leave the process running after checkpointing"),
    Option("tcp-skip-in-flight", FLAG, "skip in-flight tcp connections"),
    Option("link-remap", FLAG, "allow one to link unlinked files back when possible"),
    Option("status-fd", NUMBER, "criu writes to this fd once lazy-pages is ready"),
    Option("page-server", TEXT, "ADDRESS:PORT of the page server"),
    Option("pre-dump", FLAG, "dump container's memory information only, leave the container running"),
]


def main(settings: Settings, options: dict[str, Any], positional: list[str]) -> int:
    """0 when the images are there; the container is deleted then, unless it is to go on. Raises
    FailedPrecondition, InvalidArgument."""
    identifier = positional[0]
    lifecycle.state(settings.root, identifier)  # first of all, is there one?
    absolute(options)
    parent = options["parent-path"]
    if parent:
        if parent.startswith("/"):
            raise InvalidArgument("--parent-path must be relative", subject="--parent-path")
        if not os.isdir(f"{options['image-path']}/{parent}"):
            raise InvalidArgument("invalid --parent-path: no such directory", subject="--parent-path")
    criu.checkpoint(settings.root, identifier, options)
    if not (options["leave-running"] or options["pre-dump"]):
        for text in lifecycle.delete(settings.root, identifier, force=True):
            settings.log.message("warning", text)
    return 0


def absolute(options: dict[str, Any]) -> None:
    """The directories of images and of logs, with runc's default."""
    options["image-path"] = os.abspath(options["image-path"] or "checkpoint")
    options["work-path"] = os.abspath(options["work-path"]) if options["work-path"] else ""
