"""`exec`: one more process in a running container."""

from __future__ import annotations

from nagaya.errors import InvalidArgument, NagayaError
from nagaya.runtime import container
from nagaya.runtime import state as store
from nagaya.runtime.arguments import FLAG, LIST, NUMBER, TEXT, Option
from nagaya.runtime.trace import Trace
from nagaya.runtime.verbs import launch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.runtime.command import Settings

USAGE = "[command options] <container-id> <command> [command options]  || -p process.json <container-id>"
ARITY = (1, 1 << 20)
OPTIONS = [
    Option("console-socket", TEXT, "path to an AF_UNIX socket which will receive the console's pty master"),
    Option("cwd", TEXT, "current working directory in the container"),
    Option("env e", LIST, "set environment variables"),
    Option("tty t", FLAG, "allocate a pseudo-TTY"),
    Option("user u", TEXT, "UID (format: <uid>[:<gid>])"),
    Option("additional-gids g", LIST, "additional gids"),
    Option("process p", TEXT, "path to the process.json"),
    Option("detach d", FLAG, "detach from the container's process"),
    Option("pidfd-socket", TEXT, "path to an AF_UNIX socket which will receive a pidfd of the process"),
    Option("pid-file", TEXT, "specify the file to write the process id to"),
    Option("process-label", TEXT, "set the asm process label for the process commonly used with selinux"),
    Option("apparmor", TEXT, "set the apparmor profile for the process"),
    Option("no-new-privs", FLAG, "set the no new privileges value for the process"),
    Option("cap c", LIST, "add a capability to the bounding set for the process"),
    Option("preserve-fds", NUMBER, "pass N additional file descriptors to the container", 0),
    Option("cgroup", LIST, "run the process in an (existing) sub-cgroup(s): [<controller>:]<cgroup>"),
    Option("ignore-paused", FLAG, "allow exec in a paused container"),
    Option("no-subreaper", FLAG, "disable the use of the subreaper used to reap reparented processes"),
]

_ID_LIMIT = (1 << 31) - 1


def main(settings: Settings, options: dict[str, Any], positional: list[str]) -> int:
    """Exit code of the process; 0 when detached."""
    identifier, arguments = positional[0], positional[1:]
    record = store.load(settings.root, identifier)
    process = process_of(record, options, arguments)
    detached: bool = options["detach"]
    terminal = bool(process.get("terminal"))
    launch.check_console(terminal, options, detached)
    trace = Trace()
    front = None
    if not detached:
        launch.become_subreaper()
        front = launch.Foreground()
    with launch.Telling(settings, trace):
        launched = container.exec_process(
            settings.root,
            identifier,
            process,
            console=(0, 0) if terminal else None,
            relayed=not detached,
            cgroup=_cgroup(options["cgroup"]),
            preserve_fds=launch.preserved(options, process),
            pid_file=options["pid-file"],
            ignore_paused=options["ignore-paused"],
            trace=trace,
        )
    try:
        launch.hand_out(options, launched, detached=detached)
    except NagayaError:
        container.kill_launched(launched)
        raise
    return 0 if front is None else front.wait(launched)


def process_of(record: dict[str, Any], options: dict[str, Any], arguments: list[str]) -> dict[str, Any]:
    """The process object of --process, or of the container's own and the options. Raises InvalidArgument."""
    if options["process"]:
        document = launch.read_json(options["process"])
        if not isinstance(document, dict):
            raise InvalidArgument(f"{options['process']} is not an object", subject="--process")
        return document
    if not arguments:
        raise InvalidArgument("process args cannot be empty", subject="args")
    process: dict[str, Any] = dict(record["config"].get("process") or {})
    process["args"] = arguments
    process["terminal"] = options["tty"]
    process["env"] = [*(process.get("env") or []), *options["env"]]
    if options["cwd"]:
        process["cwd"] = options["cwd"]
    user = dict(process.get("user") or {})
    if options["user"]:
        uid, colon, gid = options["user"].partition(":")
        user["uid"] = number(uid, "uid")
        if colon:
            user["gid"] = number(gid, "gid")
    if options["additional-gids"]:
        extra = [number(g, "gid") for entry in options["additional-gids"] for g in entry.split(",")]
        user["additionalGids"] = [*(user.get("additionalGids") or []), *extra]
    process["user"] = user
    if options["no-new-privs"]:
        process["noNewPrivileges"] = True
    if options["apparmor"]:
        process["apparmorProfile"] = options["apparmor"]
    if options["process-label"]:
        process["selinuxLabel"] = options["process-label"]
    if options["cap"]:
        sets = {kind: list(names) for kind, names in (process.get("capabilities") or {}).items()}
        for kind in ("bounding", "effective", "permitted"):  # never inheritable: CVE-2022-29162
            sets[kind] = [*(sets.get(kind) or []), *options["cap"]]
        process["capabilities"] = sets
    return process


def number(text: str, what: str) -> int:
    """A uid or gid; nothing but decimal digits within range (CVE-2026-30892, 2024-40635)."""
    if not (text.isascii() and text.isdigit()) or len(text) > 10 or int(text) > _ID_LIMIT:
        raise InvalidArgument(f"parsing {text} as int for {what} failed", subject="--user")
    return int(text)


def _cgroup(entries: list[str]) -> dict[str, str]:
    """{controller: path}; "" is for all."""
    result: dict[str, str] = {}
    for entry in entries:
        controllers, colon, path = entry.rpartition(":")
        if not path:
            raise InvalidArgument(f"invalid --cgroup argument: {entry}", subject="--cgroup")
        for controller in controllers.split(",") if colon else [""]:
            result[controller] = path
    return result
