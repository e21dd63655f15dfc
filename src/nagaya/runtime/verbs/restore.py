"""`restore`: a container of the files that `checkpoint` wrote, by criu(8)."""

from __future__ import annotations

from nagaya.errors import NagayaError
from nagaya.runtime import criu, lifecycle
from nagaya.runtime.arguments import FLAG, TEXT, Option
from nagaya.runtime.serving import write_pid_file
from nagaya.runtime.verbs import checkpoint, launch

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
    Option("no-pivot", FLAG, "accepted: criu mounts the root"),
    Option("lsm-profile", TEXT, "an LSM profile to be used during restore, TYPE:NAME"),
    Option("lsm-mount-context", TEXT, "an LSM mount context to be used during restore"),
]


def main(settings: Settings, options: dict[str, Any], positional: list[str]) -> int:
    """Exit code of the container's process; 0 when detached. Raises what criu.restore does."""
    identifier = positional[0]
    bundle, spec = launch.bundle_of(options)
    checkpoint.absolute(options)
    detached: bool = options["detach"]
    launch.check_console(False, options, detached)
    front = None
    if not detached:
        if not options["no-subreaper"]:
            launch.become_subreaper()
        front = launch.Foreground()
    launched = criu.restore(settings.root, identifier, bundle, spec, options, settings.driver)
    try:
        if options["pid-file"]:
            write_pid_file(options["pid-file"], launched.pid)
    except NagayaError:
        lifecycle.delete(settings.root, identifier, force=True)
        raise
    if front is None:
        return 0
    code = front.wait(launched)
    for text in lifecycle.delete(settings.root, identifier, force=True):
        settings.log.message("warning", text)
    return code
