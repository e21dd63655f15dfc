"""What instructions without files make of an image's configuration, and how its history tells it.

Pure. The configuration is image-spec's `config` as a table, with Docker's keys (Shell, OnBuild, Healthcheck).
What becomes of it, and the texts, are moby's (builder/dockerfile/dispatchers.go).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nagaya.build.language import commands
from nagaya.build.language.ast import (
    Arg,
    Cmd,
    CommandLine,
    DockerfileError,
    Entrypoint,
    Env,
    Expose,
    Healthcheck,
    Instruction,
    Label,
    Maintainer,
    Onbuild,
    Pair,
    Shell,
    StopSignal,
    User,
    Volume,
    Workdir,
)
from nagaya.engine import signals
from nagaya.errors import InvalidArgument

Config = dict[str, Any]

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PROTOCOLS = ("tcp", "udp", "sctp")
_PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)
_MAX_PORTS = 65536
_QUOTES = {"\a": "a", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t", "\v": "v", "\\": "\\", '"': '"'}


def with_path(config: Mapping[str, Any]) -> Config:
    """A stage's first configuration: its base's, with a PATH when that has none, and without triggers."""
    found = {key: value for key, value in config.items() if key != "OnBuild"}
    env = list(found.get("Env") or ())
    if not any(line.startswith("PATH=") for line in env):
        env.append(f"PATH={PATH}")
    return {**found, "Env": env}


def apply(config: Mapping[str, Any], instruction: Instruction, commanded: bool = False) -> Config:
    """The configuration after an expanded instruction; one that does not concern it changes nothing.

    commanded: the stage has had a CMD, which its ENTRYPOINT then leaves alone. Raises DockerfileError.
    """
    change = _CHANGES.get(type(instruction))
    found = dict(config)
    if change is not None:
        try:
            change(found, instruction)
        except InvalidArgument as error:
            raise DockerfileError(error.message, instruction.line) from None
    if isinstance(instruction, Entrypoint) and not commanded:
        found["Cmd"] = None  # it was made for the other
    return found


def created_by(config: Mapping[str, Any], instruction: Instruction) -> str:
    """How the history tells an expanded instruction that changed only the configuration; config is that after
    it. Workdir makes a directory, and is told with one blank less."""
    shell = " ".join(config.get("Shell") or commands.SHELL)
    blank = "" if isinstance(instruction, Workdir) else " "
    return f"{shell} #(nop) {blank}{_told(config, instruction)}"


def _told(config: Mapping[str, Any], instruction: Instruction) -> str:
    match instruction:
        case Env(pairs=pairs):
            return " ".join(["ENV", *map(str, pairs)])
        case Label(pairs=pairs):
            return " ".join(["LABEL", *map(str, pairs)])
        case Arg(args=args):
            return " ".join(["ARG", *(a.key if a.value is None else str(a) for a in args)])
        case Maintainer(name=name):
            return f"MAINTAINER {name}"
        case Cmd():
            return f"CMD {_quoted_list(config.get('Cmd') or ())}"
        case Entrypoint():
            return f"ENTRYPOINT {_quoted_list(config.get('Entrypoint') or ())}"
        case Healthcheck() as check:
            times = (_go_duration(t) for t in (check.interval, check.timeout, check.start_period))
            shown = " ".join([_quoted_list(check.test), *map(quoted, times), _rune(check.retries)])
            return f"HEALTHCHECK &{{{shown}}}"
        case Expose(ports=ports):
            return " ".join(["EXPOSE", *ports])
        case User(user=user):
            return f"USER {user}"
        case Volume(paths=paths):
            return f"VOLUME [{' '.join(paths)}]"
        case Workdir():
            return f"WORKDIR {config.get('WorkingDir')}"
        case StopSignal(signal=signal):
            return f"STOPSIGNAL {signal}"
        case Shell(words=words):
            return f"SHELL [{' '.join(words)}]"
        case Onbuild(expression=expression):
            return f"ONBUILD {expression}"
    return instruction.text


def _quoted_list(words: Sequence[str]) -> str:
    return f"[{' '.join(map(quoted, words))}]"


def quoted(text: str) -> str:
    """In double quotes, as Go's %q."""
    parts = []
    for char in text:
        if char in _QUOTES:
            parts.append("\\" + _QUOTES[char])
        elif char.isprintable():
            parts.append(char)
        elif ord(char) < 0x80:
            parts.append(f"\\x{ord(char):02x}")
        else:
            parts.append(f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}")
    return f'"{"".join(parts)}"'


def _rune(number: int) -> str:
    """A number as Go's %q, which takes it for a character: moby prints the retries so."""
    char = chr(number) if number < 0xD800 or 0xE000 <= number < 0x110000 else "\ufffd"
    inner = {"'": "\\'", '"': '"'}.get(char) or quoted(char)[1:-1]
    return f"'{inner}'"


def _go_duration(nanoseconds: int) -> str:
    """ "1m30s" as Go's Duration.String writes whole seconds, smaller ones in their unit."""
    if nanoseconds < 10**9:
        for unit, size in (("ms", 10**6), ("µs", 10**3), ("ns", 1)):
            if nanoseconds >= size:
                return f"{nanoseconds / size:g}{unit}"
        return "0s"
    seconds = nanoseconds / 10**9
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    if hours:
        return f"{hours}h{minutes}m{rest:g}s"
    return f"{minutes}m{rest:g}s" if minutes else f"{rest:g}s"


# changes


def _env(config: Config, instruction: Env) -> None:
    lines = list(config.get("Env") or ())
    places = {line.partition("=")[0]: place for place, line in reversed(list(enumerate(lines)))}
    for pair in instruction.pairs:
        if pair.key in places:
            lines[places[pair.key]] = str(pair)
        else:
            places[pair.key] = len(lines)
            lines.append(str(pair))
    config["Env"] = lines


def _label(config: Config, instruction: Label) -> None:
    config["Labels"] = {**(config.get("Labels") or {}), **_table(instruction.pairs)}


def _table(pairs: Sequence[Pair]) -> dict[str, str]:
    return {pair.key: pair.value or "" for pair in pairs}


def _command(config: Config, command: CommandLine) -> list[str]:
    return commands.words(command, config.get("Shell"))


def _cmd(config: Config, instruction: Cmd) -> None:
    config["Cmd"] = _command(config, instruction.command)


def _entrypoint(config: Config, instruction: Entrypoint) -> None:
    bare = not instruction.command.words  # none at all, where a bare CMD is a shell without a line
    config["Entrypoint"] = None if bare else _command(config, instruction.command)


def _health(config: Config, instruction: Healthcheck) -> None:
    times = {
        "Interval": instruction.interval,
        "Timeout": instruction.timeout,
        "StartPeriod": instruction.start_period,
        "StartInterval": instruction.start_interval,
        "Retries": instruction.retries,
    }
    config["Healthcheck"] = {
        "Test": list(instruction.test),
        **{name: value for name, value in times.items() if value},
    }


def _expose(config: Config, instruction: Expose) -> None:
    ports = dict(config.get("ExposedPorts") or {})
    for port in instruction.ports:
        ports.update({key: {} for key in _ports(port)})
    config["ExposedPorts"] = ports


def _ports(text: str) -> list[str]:
    """ "80/tcp" for each port of "8080:80-81/TCP"; where it would be published means nothing here."""
    numbers, _, protocol = text.rpartition(":")[2].partition("/")
    protocol = protocol.lower() or "tcp"
    if not numbers:
        raise InvalidArgument(f"No port specified: {text[:80]}<empty>")
    if protocol not in _PROTOCOLS:
        raise InvalidArgument(f"Invalid proto: {protocol[:80]}")
    match = _PORTS.fullmatch(numbers)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if not first <= last < _MAX_PORTS:
        raise InvalidArgument(f"Invalid containerPort: {numbers[:80]}")
    return [f"{port}/{protocol}" for port in range(first, last + 1)]


def _user(config: Config, instruction: User) -> None:
    config["User"] = instruction.user


def _workdir(config: Config, instruction: Workdir) -> None:
    if not instruction.path:
        raise InvalidArgument("cannot normalize nothing")
    path = posixpath.normpath(posixpath.join("/", config.get("WorkingDir") or "", instruction.path))
    config["WorkingDir"] = "/" + path.lstrip("/")  # POSIX leaves two slashes at the beginning alone


def _volume(config: Config, instruction: Volume) -> None:
    if not all(instruction.paths):
        raise InvalidArgument("VOLUME specified can not be an empty string")
    config["Volumes"] = {**(config.get("Volumes") or {}), **{path: {} for path in instruction.paths}}


def _stop_signal(config: Config, instruction: StopSignal) -> None:
    signals.number(instruction.signal)
    config["StopSignal"] = instruction.signal


def _shell(config: Config, instruction: Shell) -> None:
    config["Shell"] = list(instruction.words)


def _onbuild(config: Config, instruction: Onbuild) -> None:
    config["OnBuild"] = [*(config.get("OnBuild") or ()), instruction.expression]


_CHANGES: dict[type[Instruction], Callable[[Config, Any], None]] = {
    Cmd: _cmd,
    Entrypoint: _entrypoint,
    Env: _env,
    Expose: _expose,
    Healthcheck: _health,
    Label: _label,
    Onbuild: _onbuild,
    Shell: _shell,
    StopSignal: _stop_signal,
    User: _user,
    Volume: _volume,
    Workdir: _workdir,
}
