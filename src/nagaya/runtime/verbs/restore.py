"""`restore`: its command line is read as runc's; the act itself is not offered, and says so."""

from __future__ import annotations

from nagaya.runtime import state
from nagaya.runtime.arguments import FLAG, TEXT, Option
from nagaya.runtime.verbs import checkpoint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.runtime.command import Settings

USAGE = "[command options] <container-id>"
ARITY = (1, 1)
OPTIONS = [
    *checkpoint.COMMON,
    Option("console-socket", TEXT, "path to an AF_UNIX socket which will receive the console's pty master"),
    Option("bundle b", TEXT, "path to the root of the bundle directory"),
    Option("detach d", FLAG, "detach from the container's process"),
    Option("pid-file", TEXT, "specify the file to write the process id to"),
    Option("no-subreaper", FLAG, "disable the use of the subreaper used to reap reparented processes"),
    Option("no-pivot", FLAG, "do not use pivot root to jail process inside rootfs"),
    Option("lsm-profile", TEXT, "an LSM profile to be used during restore, TYPE:NAME"),
    Option("lsm-mount-context", TEXT, "an LSM mount context to be used during restore"),
]


def main(_settings: Settings, _options: dict[str, Any], positional: list[str]) -> int:
    """Never succeeds. Raises InvalidArgument for a bad id, Unimplemented."""
    state.check_id(positional[0])
    raise checkpoint.unavailable("restore")
