"""The `nagaya` command: finds the verb, imports only its module, and turns errors into exit codes.

A verb's module (`cli.verbs.NAME`) offers USAGE (what follows the verb's name), SUMMARY, FLAGS, ARGS
(fewest and most positional arguments, None for any number), optionally INTERSPERSED = False, and
`run(given, client) -> exit code`.
"""

from __future__ import annotations

import os
import sys

import nagaya
from nagaya.cli.flags import CountError, Flag, Given, UsageError, help_text, parse
from nagaya.errors import NagayaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

VERBS = (
    "attach",
    "create",
    "events",
    "exec",
    "explain",
    "history",
    "images",
    "info",
    "inspect",
    "kill",
    "logs",
    "pause",
    "port",
    "ps",
    "pull",
    "rename",
    "restart",
    "rm",
    "rmi",
    "run",
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

# docker's nouns: `nagaya container ls` is `nagaya ps`
NOUNS = {
    "container": {
        **{v: v for v in VERBS if v not in ("events", "images", "info", "version", "history", "tag", "pull")},
        "ls": "ps",
        "list": "ps",
    },
    "image": {
        **{v: v for v in ("pull", "tag", "history", "inspect")},
        "ls": "images",
        "list": "images",
        "rm": "rmi",
        "remove": "rmi",
    },
    "system": {"info": "info", "events": "events"},
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
        if given["version"]:
            print(f"nagaya version {nagaya.__version__}")
            return 0
        name, rest = _verb(given.args)
    except UsageError as error:
        print(f"{error}\n\nRun 'nagaya --help' for more information", file=sys.stderr)
        return USAGE_STATUS
    if not name:
        print(_overview())
        return 0
    if given["help"]:
        rest = ["--help"]
    verb = _load(name)
    try:
        words = _words(verb, name, rest)
        if words is None:
            return 0
        from nagaya.cli import hosts

        status = int(verb.run(words, hosts.client(given["host"])))
        sys.stdout.flush()
        return status
    except UsageError as error:
        usage = f"Usage:  nagaya {name} {verb.USAGE}"
        print(f"{error}\n\n{usage}\n\nRun 'nagaya {name} --help' for more information", file=sys.stderr)
        return 1 if isinstance(error, CountError) else USAGE_STATUS
    except NagayaError as error:
        if given["debug"]:
            raise
        sys.stdout.flush()
        print(f"nagaya: {error}" if getattr(verb, "RUNS", False) else error, file=sys.stderr)
        return USAGE_STATUS if getattr(verb, "RUNS", False) else 1


def _verb(args: list[str]) -> tuple[str, list[str]]:
    """(verb, its words); ("", []) for none. Raises UsageError for an unknown one."""
    if not args or args == ["help"]:
        return "", []
    if args[0] == "help":
        return _verb([*args[1:], "--help"])
    if args[0] in NOUNS:
        known = NOUNS[args[0]]
        if len(args) < 2 or args[1] not in known:
            raise UsageError(f"nagaya {args[0]} knows: {', '.join(sorted(known))}")
        # `image inspect` must not look among containers
        extra = [f"--type={args[0]}"] if args[1] == "inspect" else []
        return known[args[1]], extra + args[2:]
    if args[0] not in VERBS:
        raise UsageError(f"nagaya: '{args[0]}' is not a nagaya command")
    return args[0], args[1:]


def _load(name: str) -> ModuleType:
    return __import__(f"nagaya.cli.verbs.{name.replace('exec', 'execute')}", fromlist=["run"])


def _words(verb: ModuleType, name: str, rest: list[str]) -> Given | None:
    """The verb's parsed words; None when only its help was wanted."""
    flags: tuple[Flag, ...] = (*verb.FLAGS, _HELP)
    given = parse(flags, rest, interspersed=getattr(verb, "INTERSPERSED", True))
    if given["help"]:
        print(f"Usage:  nagaya {name} {verb.USAGE}\n\n{verb.SUMMARY}\n\nOptions:\n{help_text(flags)}")
        return None
    fewest, most = verb.ARGS
    count = len(given.args)
    if count < fewest or (most is not None and count > most):
        if fewest == most:
            wanted = "no arguments" if most == 0 else f"{fewest} argument{'s' * (fewest != 1)}"
        elif most is None or count < fewest:
            wanted = f"at least {fewest} argument{'s' * (fewest != 1)}"
        else:
            wanted = f"at most {most} argument{'s' * (most != 1)}"
        raise CountError(f"nagaya: 'nagaya {name}' {'accepts' if most == 0 else 'requires'} {wanted}")
    return given


def _overview() -> str:
    lines = ["Usage:  nagaya [OPTIONS] COMMAND", "", "A container stack in one house", "", "Commands:"]
    lines += [f"  {name.ljust(10)} {_load(name).SUMMARY}" for name in VERBS]
    return "\n".join([*lines, "", "Global Options:", help_text(GLOBAL)])
