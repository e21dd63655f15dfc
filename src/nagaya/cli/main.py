"""The `nagaya` command: finds the verb, imports only its module, and turns errors into exit codes.

A verb's module (`cli.verbs.NAME`) offers USAGE (what follows the verb's name), SUMMARY, FLAGS, ARGS
(fewest and most positional arguments, None for any number), optionally INTERSPERSED = False and CREATES
(True or "and runs": what makes containers ends with docker's 125 where its flags make no sense, what runs
them wherever it was not the program that failed), and
`run(given, client) -> exit code`.
"""

from __future__ import annotations

import os
import sys

import nagaya
from nagaya.cli.flags import CountError, Flag, FlagError, Given, UsageError, help_text, parse
from nagaya.cli.output import note
from nagaya.errors import NagayaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

VERBS = (
    "attach",
    "build",
    "commit",
    "completion",
    "cp",
    "create",
    "diff",
    "events",
    "exec",
    "explain",
    "export",
    "history",
    "images",
    "import",
    "info",
    "inspect",
    "kill",
    "load",
    "login",
    "logout",
    "logs",
    "pause",
    "port",
    "ps",
    "pull",
    "push",
    "rename",
    "restart",
    "rm",
    "rmi",
    "run",
    "save",
    "search",
    "start",
    "stats",
    "stop",
    "tag",
    "top",
    "unpause",
    "update",
    "version",
    "wait",
)

# verbs that are no names of modules, or words of Python's
_MODULES = {"exec": "execute", "import": "import_"}
_OF_NOTHING = ("completion", "events", "info", "login", "logout", "search", "version")
_OF_IMAGES = ("build", "history", "import", "load", "pull", "push", "save", "tag")

# docker's nouns: `nagaya container ls` is `nagaya ps`
NOUNS = {
    "builder": {"build": "build", "prune": "builder_prune"},
    "container": {
        **{v: v for v in VERBS if v not in (*_OF_IMAGES, *_OF_NOTHING, "images", "rmi")},
        "ls": "ps",
        "list": "ps",
        "prune": "container_prune",
    },
    "image": {
        **{v: v for v in (*_OF_IMAGES, "inspect")},
        "ls": "images",
        "list": "images",
        "prune": "image_prune",
        "rm": "rmi",
        "remove": "rmi",
    },
    "network": {
        **{v: f"network_{v}" for v in ("connect", "create", "disconnect", "ls", "prune", "rm")},
        "inspect": "inspect",
        "list": "network_ls",
        "remove": "network_rm",
    },
    "system": {
        "check": "system_check",
        "df": "df",
        "events": "events",
        "info": "info",
        "prune": "system_prune",
    },
    "volume": {
        "create": "volume_create",
        "inspect": "inspect",
        "list": "volume_ls",
        "ls": "volume_ls",
        "prune": "volume_prune",
        "remove": "volume_rm",
        "rm": "volume_rm",
    },
}

GLOBAL = (
    Flag("host", "Daemon to talk to: unix:///path or tcp://address:port", short="H", kind="text"),
    Flag("debug", "Show where an error comes from", short="D"),
    Flag("help", "Print usage", short="h"),
    Flag("version", "Print version information and quit", short="v"),
)
_HELP = Flag("help", "Print usage")

USAGE_STATUS = 125


def main(argv: list[str]) -> int:
    """Run one command line (without the program's name); the exit code."""
    try:
        return _main(argv)
    except BrokenPipeError:
        # the reader of our output has gone: nothing to say, and nowhere to say it
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except KeyboardInterrupt:
        return 130


def _main(argv: list[str]) -> int:
    try:
        given = parse(GLOBAL, argv, interspersed=False)
    except UsageError as error:
        usage = "Usage:  nagaya [OPTIONS] COMMAND [ARG...]"
        note(f"{error}\n\n{usage}\n\nRun 'nagaya --help' for more information")
        return USAGE_STATUS
    if given["version"]:
        print(f"nagaya version {nagaya.__version__}")
        return 0
    words = given.args
    while words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if given["help"] and words:
        words = [words[0], *(words[1:2] if words[0] in NOUNS else ()), "--help"]
    if not words or words[0] == "--help":
        print(_overview())
        return 0
    if words[0] == "__complete":
        return _complete(words[1:])
    if words[0] in NOUNS:
        return _noun(words[0], words[1:], given)
    if words[0] not in VERBS:
        note(f"nagaya: unknown command: nagaya {words[0]}\n\nRun 'nagaya --help' for more information")
        return 1
    return _run(words[0], words[0], words[1:], given)


def _noun(noun: str, words: list[str], given: Given) -> int:
    known = NOUNS[noun]
    if words and words[0] in known:
        name = known[words[0]]
        # `image inspect` must not look among containers
        extra = [f"--type={noun}"] if name == "inspect" else []
        return _run(name, f"{noun} {words[0]}", extra + words[1:], given)
    if words and words[0] != "--help":
        note(
            f"nagaya: unknown command: nagaya {noun} {words[0]}\n\nUsage:  nagaya {noun}\n\n"
            f"Run 'nagaya {noun} --help' for more information"
        )
        return 1
    lines = [f"Usage:  nagaya {noun} COMMAND", "", "Commands:"]
    lines += [f"  {word.ljust(10)} {_load(name).SUMMARY}" for word, name in sorted(known.items())]
    print("\n".join(lines), file=sys.stdout if words else sys.stderr)
    return 0


def _run(name: str, title: str, rest: list[str], asked: Given) -> int:
    """Run the verb of that module with its words; `title` is how it was called. The exit code."""
    verb = _load(name)
    usage = f"Usage:  nagaya {title} {verb.USAGE}"
    more = f"'nagaya {title} --help' for more information"
    try:
        words = _words(verb, title, rest)
        if words is None:
            return 0
        from nagaya.cli import hosts

        status = int(verb.run(words, hosts.client(asked["host"])))
        sys.stdout.flush()
        return status
    except CountError as error:
        # docker says "See" where there is no upper bound
        note(f"{error}\n\n{usage}\n\n{'Run' if verb.ARGS[1] is not None else 'See'} {more}")
        return 1
    except FlagError as error:
        note(f"{error}\n\n{usage}\n\nRun {more}")
        return USAGE_STATUS
    except NagayaError as error:
        if asked["debug"]:
            raise
        sys.stdout.flush()
        creates = getattr(verb, "CREATES", False)
        pointer = f"\n\nRun {more}" if creates and isinstance(error, UsageError) else ""
        runs = pointer or creates == "and runs"
        note(f"nagaya: {error}{pointer}" if runs else str(error))
        return USAGE_STATUS if runs else 1


def _complete(words: list[str]) -> int:
    """Print what may stand in place of the last word (completing.py)."""
    from nagaya.cli import completing, hosts
    from nagaya.cli.http import Client

    host = completing.host(words[:-1])

    def names(kind: str) -> list[tuple[str, str]]:
        try:
            where, _ = hosts.choose(host)
            return completing.objects(Client(where), kind)
        except NagayaError:
            return []

    verbs = {verb: verb for verb in VERBS}
    found = completing.candidates(words[:-1], words[-1] if words else "", verbs, NOUNS, _load, GLOBAL, names)
    for word, text in found:
        print(f"{word}\t{text}")
    return 0


def _load(name: str) -> ModuleType:
    return __import__(f"nagaya.cli.verbs.{_MODULES.get(name, name)}", fromlist=["run"])


def _words(verb: ModuleType, title: str, rest: list[str]) -> Given | None:
    """The verb's parsed words; None when only its help was wanted."""
    flags: tuple[Flag, ...] = (*verb.FLAGS, _HELP)
    given = parse(flags, rest, interspersed=getattr(verb, "INTERSPERSED", True))
    if given["help"]:
        print(f"Usage:  nagaya {title} {verb.USAGE}\n\n{verb.SUMMARY}\n\nOptions:\n{help_text(flags)}")
        return None
    fewest, most = verb.ARGS
    count = len(given.args)
    if count < fewest or (most is not None and count > most):
        plural = "s" * ((fewest if most is None else most) != 1)
        if most == 0:
            wanted = "accepts no arguments"
        elif fewest == most:
            wanted = f"requires {fewest} argument{plural}"
        elif most is None:
            wanted = f"requires at least {fewest} argument{plural}"
        elif fewest == 0:
            wanted = f"requires at most {most} argument{plural}"
        else:
            wanted = f"requires at least {fewest} and at most {most} argument{plural}"
        raise CountError(f"nagaya: 'nagaya {title}' {wanted}")
    return given


def _overview() -> str:
    lines = ["Usage:  nagaya [OPTIONS] COMMAND", "", "A container stack in one house", "", "Commands:"]
    lines += [f"  {name.ljust(10)} {_load(name).SUMMARY}" for name in VERBS]
    return "\n".join([*lines, "", "Global Options:", help_text(GLOBAL)])
