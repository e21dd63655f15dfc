"""nagaya-oci: the low-level runtime's command line, with runc's verbs, flags, output and exit codes."""

from __future__ import annotations

import sys

from nagaya import __version__
from nagaya.errors import InvalidArgument, NagayaError
from nagaya.linux import os
from nagaya.runtime import selfbind
from nagaya.runtime.arguments import FLAG, TEXT, Option, describe, parse
from nagaya.runtime.log import Log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAME = "nagaya-oci"

VERBS = {
    "checkpoint": "checkpoint a running container",
    "create": "create a container",
    "delete": "delete any resources held by the container often used with detached container",
    "events": "display container events such as OOM notifications, cpu, memory, and IO usage statistics",
    "exec": "execute new process inside the container",
    "features": "show the enabled features",
    "kill": "kill sends the specified signal (default: SIGTERM) to the container's init process",
    "list": "lists containers started by nagaya-oci with the given root",
    "pause": "pause suspends all processes inside the container",
    "plan": "print the steps that would make a container of a bundle, without doing any",
    "ps": "ps displays the processes running inside a container",
    "restore": "restore a container from a previous checkpoint",
    "resume": "resumes all processes that have been previously paused",
    "run": "create and run a container",
    "spec": "create a new specification file",
    "start": "executes the user defined process in a created container",
    "state": "output the state of a container",
    "update": "update container resource constraints",
}

OPTIONS = [
    Option("debug", FLAG, "enable debug logging"),
    Option("log", TEXT, "set the log file to write logs to (default is '/dev/stderr')"),
    Option("log-format", TEXT, "set the log format ('text' (default), or 'json')", "text"),
    Option(
        "root", TEXT, "directory of container state (default: /run/NAME; of users, $XDG_RUNTIME_DIR/NAME)"
    ),
    Option("criu", TEXT, "accepted and ignored: criu is looked for in PATH"),
    Option("systemd-cgroup", FLAG, 'enable systemd cgroup support, cgroupsPath is "slice:prefix:name"'),
    Option("rootless", TEXT, "ignore cgroup permission errors: true, false or auto", "auto"),
    Option("help h", FLAG, "show help"),
    Option("version v", FLAG, "print the version"),
]


class Kind:
    """A runtime with this command line: its name, its verbs with a line about each, and those of them that
    are modules of its own package; global options of its own; does its interpreter enter containers
    (CVE-2019-5736)?"""

    __slots__ = ("enters", "name", "options", "own", "package", "verbs")

    def __init__(
        self,
        name: str,
        verbs: dict[str, str],
        package: str,
        own: frozenset[str],
        *,
        enters: bool,
        options: tuple[Option, ...] = (),
    ) -> None:
        self.name = name
        self.verbs = verbs
        self.package = package
        self.own = own
        self.enters = enters
        self.options = [*OPTIONS, *options]


_PACKAGE = "nagaya.runtime.verbs"
OCI = Kind(NAME, VERBS, _PACKAGE, frozenset(VERBS), enters=True)


class Settings:
    """The global options."""

    __slots__ = ("log", "root", "root_given", "rootless", "systemd_cgroup", "values")

    def __init__(self, values: dict[str, Any], name: str = NAME) -> None:
        self.values = values
        form = values["log-format"] or "text"
        if form not in ("text", "json"):
            raise InvalidArgument(f"invalid log-format: {form}", subject="--log-format")
        path = "" if values["log"] in ("", "/dev/stderr") else values["log"]
        self.log = Log(path, form, values["debug"])
        self.root_given = bool(values["root"])  # an empty one is none, for runc, too
        self.rootless = _rootless(values["rootless"])
        self.root = os.abspath(values["root"] or _default_root(name))
        self.systemd_cgroup: bool = values["systemd-cgroup"]

    @property
    def driver(self) -> str:
        """The cgroup driver's name."""
        return "systemd" if self.systemd_cgroup else "cgroupfs"


def _in_user_namespace() -> bool:
    fd = os.open("/proc/self/uid_map", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096).split() != [b"0", b"0", b"4294967295"]
    finally:
        os.close(fd)


def _rootless(word: str) -> bool:
    """May cgroups be out of reach? "auto": for who is not the host's root (as runc has it)."""
    if word in ("true", "false"):
        return word == "true"
    if word not in ("", "auto"):
        raise InvalidArgument(f'invalid value "{word}" for flag -rootless', subject="--rootless")
    return os.geteuid() != 0 or _in_user_namespace()


def _default_root(name: str) -> str:
    """Below XDG_RUNTIME_DIR for who is not the host's root, nor takes himself for it (as runc has it). The
    sticky bit keeps it from being tidied away (XDG Base Directory Specification)."""
    runtime = os.fsdecode(os.environ.get(b"XDG_RUNTIME_DIR", b""))
    if not runtime:
        return f"/run/{name}"
    if os.geteuid() == 0 and (os.environ.get(b"USER") == b"root" or not _in_user_namespace()):
        return f"/run/{name}"
    root = f"{runtime}/{name}"
    if not os.isdir(root):
        os.makedirs(root, 0o700, exist_ok=True)
        os.chmod(root, 0o1700)
    return root


def main(argv: list[str], program: str = "", kind: Kind = OCI) -> int:
    """Run one command; returns the exit code. argv is without the program's name, which may be another than
    the kind's."""
    program = program or kind.name
    try:
        values, rest = parse(argv, kind.options)
        settings = Settings(values, kind.name)
    except NagayaError as error:
        _say(2, f"Incorrect Usage. {error}\n")
        return 1
    if values["version"]:
        _say(1, version(program))
        return 0
    if values["help"] or not rest or rest[0] in ("help", "h"):
        _say(1, usage(program, kind))
        return 0
    name, arguments = rest[0], rest[1:]
    if name not in kind.verbs:
        settings.log.message("error", f"No help topic for '{name}'")
        return 3
    verb = _load(kind, name)
    if "--help" in arguments[:1] or "-h" in arguments[:1]:
        _say(
            1,
            f"NAME:\n   {program} {name} - {kind.verbs[name]}\n\n"
            f"USAGE:\n   {program} {name} {verb.USAGE}\n\nOPTIONS:\n",
        )
        _say(1, describe(verb.OPTIONS) + "\n")
        return 0
    try:
        try:
            options, positional = parse(arguments, verb.OPTIONS, mixed=name not in ("exec", "ps"))
        except InvalidArgument as error:
            _say(2, f"Incorrect Usage: {error}\n\n{program} {name} {verb.USAGE}\n\n")
            settings.log.message("error", str(error))
            return 1
        low, high = verb.ARITY
        if not low <= len(positional) <= high:
            wanted = f"exactly {low}" if low == high else f"a minimum of {low}"
            _say(2, f"Incorrect Usage.\n\n{program} {name} {verb.USAGE}\n\n")
            settings.log.message("error", f'{program}: "{name}" requires {wanted} argument(s)')
            return 1
        if kind.enters and name in ("create", "run", "exec"):
            selfbind.ensure()
        code: int = verb.main(settings, options, positional)
        return code
    except NagayaError as error:
        # the program was found, and the kernel refused it: with runc that is on the program's stderr
        plain = error.message if name == "run" and error.message.startswith("exec ") else ""
        settings.log.message("error", _failure(program, name, error), plain)
        return 255 if name == "exec" else 1
    except OSError as error:
        text = f"{error.filename}: {os.strerror(error.errno or 0).lower()}" if error.filename else str(error)
        settings.log.message("error", text)
        return 1


# errors found before there is a process to start
_BEFORE_THE_START = (
    "invalid_argument",
    "already_exists",
    "failed_precondition",
    "not_found",
    "unimplemented",
)


def _failure(program: str, name: str, error: NagayaError) -> str:
    text = str(error)
    if name not in ("create", "run", "exec"):
        return text
    if error.code not in _BEFORE_THE_START:
        text = f"unable to start container process: {text}"
    return f"exec failed: {text}" if name == "exec" else f"{program} {name} failed: {text}"


def _load(kind: Kind, name: str) -> Any:
    # each verb is imported only when it is asked for: what `state` needs is a tenth of what `run` does
    module = f"{kind.package if name in kind.own else _PACKAGE}.{name}"
    __import__(module)
    return sys.modules[module]


def _say(fd: int, text: str) -> None:
    os.write(fd, text.encode())


def version(program: str = NAME) -> str:
    """What --version prints, in the form that dockerd and podman parse."""
    from nagaya.oci.runtime import VERSION

    python = sys.version.split()[0]
    return f"{program} version {__version__}\ncommit: v{__version__}\nspec: {VERSION}\npython: {python}\n"


def usage(program: str = NAME, kind: Kind = OCI) -> str:
    """The help text."""
    width = max(len(name) for name in kind.verbs)
    verbs = "\n".join(f"   {name:<{width}}  {text}" for name, text in kind.verbs.items())
    return (
        f"NAME:\n   {program} - Open Container Initiative runtime\n\nUSAGE:\n"
        f"   {program} [global options] command [command options] [arguments...]\n\n"
        f"VERSION:\n   {__version__}\n\nCOMMANDS:\n{verbs}\n\nGLOBAL OPTIONS:\n{describe(kind.options)}\n"
    )
