"""`checkpoint`: its command line is read as runc's; the act itself is not offered, and says so."""

from __future__ import annotations

import os

from nagaya.errors import FailedPrecondition, InvalidArgument, Unimplemented
from nagaya.runtime import lifecycle
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
    """Never succeeds. Raises FailedPrecondition for a container that is not running, InvalidArgument,
    Unimplemented."""
    status = lifecycle.state(settings.root, positional[0])["status"]
    if status not in ("running", "paused"):
        raise FailedPrecondition(f"Container cannot be checkpointed in {status} state", subject=positional[0])
    parent = options["parent-path"]
    if parent:
        if os.path.isabs(parent):
            raise InvalidArgument("--parent-path must be relative", subject="--parent-path")
        if not os.path.isdir(f"{options['image-path'] or 'checkpoint'}/{parent}"):
            raise InvalidArgument("invalid --parent-path: no such directory", subject="--parent-path")
    raise unavailable("checkpoint")


def unavailable(what: str) -> Unimplemented:
    """The one line that both verbs end with."""
    return Unimplemented(f"{what} is not offered: nagaya-oci does not drive criu", subject=what)
