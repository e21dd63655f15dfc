"""A Dockerfile's bytes to typed instructions, in stages.

Messages and what is accepted are those of moby/buildkit's frontend/dockerfile/instructions.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from nagaya.build.language import flags, lines, mounts, words
from nagaya.build.language.ast import (
    Add,
    Arg,
    Cmd,
    CommandLine,
    Copy,
    Dockerfile,
    DockerfileError,
    Entrypoint,
    Env,
    Expose,
    From,
    Healthcheck,
    Heredoc,
    Instruction,
    Label,
    Maintainer,
    Onbuild,
    Pair,
    Run,
    Shell,
    Stage,
    StopSignal,
    User,
    Volume,
    Workdir,
)
from nagaya.build.language.lines import Line

_STAGE_NAME = re.compile(r"[a-z][a-z0-9-_.]*", re.ASCII)
_ONBUILD = re.compile(r"\s*ONBUILD\s*", re.IGNORECASE)
_NETWORKS = ("default", "none", "host")
_SECURITIES = ("sandbox", "insecure")


def parse(data: bytes) -> Dockerfile:
    """A whole Dockerfile. Raises DockerfileError, which knows the line."""
    try:
        read = lines.read(data)
    except DockerfileError as error:
        raise DockerfileError(f"failed to parse Dockerfile: {error.message}", error.line) from None
    arguments: list[Arg] = []
    begins: list[From] = []
    bodies: list[list[Instruction]] = []
    for line in read.lines:
        try:
            found = instruction(line, read.escape)
        except DockerfileError as error:
            message = f"dockerfile parse error line {error.line}: {error.message}"
            raise DockerfileError(message, error.line) from None
        if isinstance(found, From):
            begins.append(found)
            bodies.append([])
        elif bodies:
            bodies[-1].append(found)
        elif isinstance(found, Arg):
            arguments.append(found)
        else:
            raise DockerfileError("no build stage in current context", line.line)
    return Dockerfile(
        tuple(arguments),
        tuple(Stage(begin, tuple(body)) for begin, body in zip(begins, bodies, strict=True)),
        read.escape,
        read.directives.get("syntax", ""),
        read.directives.get("check", ""),
        read.warnings,
    )


def parse_trigger(expression: str) -> Instruction:
    """The one instruction of an ONBUILD, as an image's configuration keeps it. Raises DockerfileError."""
    read = lines.read(expression.encode())
    if len(read.lines) != 1:
        raise DockerfileError("onbuild trigger should be a single expression")
    found = instruction(read.lines[0], read.escape)
    if isinstance(found, From):
        raise DockerfileError("FROM isn't allowed as an ONBUILD trigger")
    return found


def instruction(line: Line, escape: str) -> Instruction:
    """One line's instruction. Raises DockerfileError, which does not tell the line in its message."""
    try:
        reader = _INSTRUCTIONS.get(line.keyword.lower())
        if reader is None:
            raise DockerfileError(f"unknown instruction: {line.keyword[:80]}")
        made = reader(line, escape)
    except DockerfileError as error:
        raise DockerfileError(error.message, line.line) from None
    return msgspec.structs.replace(made, text=line.text.strip(words.BLANKS), line=line.line, end=line.end)


def _no_flags(line: Line) -> None:
    flags.parse(line.flags, {})


def _one(line: Line) -> str:
    if not line.rest:
        raise DockerfileError(f"{line.keyword.upper()} requires exactly one argument")
    _no_flags(line)
    return line.rest


def _some(line: Line) -> None:
    if not line.rest:
        raise DockerfileError(f"{line.keyword.upper()} requires at least one argument")


def _array_or_list(line: Line) -> tuple[str, ...]:
    array = words.array(line.rest)
    return words.listed(line.rest) if array is None else array


def _command(line: Line) -> CommandLine:
    array = words.array(line.rest)
    if array is not None:
        return CommandLine(array, shell=False)
    return CommandLine((line.rest,) if line.rest else (), shell=True, heredocs=line.heredocs)


def _pairs(line: Line, escape: str) -> tuple[Pair, ...]:
    """`a=b c="d e"`, or the old `a b c` of one."""
    name = line.keyword.upper()
    found = words.split(line.rest, escape)
    if not found:
        raise DockerfileError(f"{name} requires at least one argument")
    if "=" not in found[0]:
        key, *value = words.GAP.split(line.rest, maxsplit=1)
        if not value:
            raise DockerfileError(f"{name} must have two arguments")
        pairs = [Pair(key, value[0], old=True)]
    else:
        pairs = []
        for word in found:
            key, equals, assigned = word.partition("=")
            if not equals:
                raise DockerfileError(
                    f'Syntax error - can\'t find = in "{word[:80]}". Must be of the form: name=value'
                )
            pairs.append(Pair(key, assigned))
    if not all(pair.key for pair in pairs):
        raise DockerfileError(f"{name} names can not be blank")
    _no_flags(line)
    return tuple(pairs)


def _arg(line: Line, escape: str) -> Arg:
    found = words.split(line.rest, escape)
    if not found:
        raise DockerfileError("ARG requires at least one argument")
    pairs = []
    for word in found:
        key, equals, value = word.partition("=")
        if not key:
            raise DockerfileError("ARG names can not be blank")
        pairs.append(Pair(key, value if equals else None))
    return Arg(args=tuple(pairs))


def _from(line: Line, escape: str) -> From:
    found = words.listed(line.rest)
    name = ""
    if len(found) == 3 and found[1].lower() == "as":
        name = found[2].lower()
        if not _STAGE_NAME.fullmatch(name):
            raise DockerfileError(
                f'invalid name for build stage: "{found[2][:80]}", name can\'t start with a number or'
                " contain symbols"
            )
    elif len(found) != 1:
        raise DockerfileError("FROM requires either one or three arguments")
    given = flags.parse(line.flags, {"platform": str})
    return From(base=found[0], name=name, platform=given.text("platform"))


class _Sources(msgspec.Struct):
    paths: list[str]
    inline: list[Heredoc]
    destination: str


def _sources(line: Line) -> _Sources:
    name, found = line.keyword.upper(), _array_or_list(line)
    if len(found) < 2:
        raise DockerfileError(
            f"{name} requires at least two arguments, but only one was provided."
            " Destination could not be determined"
        )
    *sources, destination = found
    documents = {heredoc.name: heredoc for heredoc in line.heredocs}
    result = _Sources([], [], destination)
    marks = {word: lines.mark(word) for word in found if documents and "<<" in word}
    if marks.get(destination) is not None:
        raise DockerfileError(f"{name} cannot accept a heredoc as a destination")
    for source in sources:
        mark = marks.get(source)
        if mark is not None and mark.name in documents:
            result.inline.append(documents[mark.name])
        else:
            result.paths.append(source)
    return result


def _copy(line: Line, escape: str) -> Copy:
    sources = _sources(line)
    given = flags.parse(
        line.flags,
        {"chown": str, "from": str, "chmod": str, "link": bool, "exclude": list, "parents": bool},
    )
    return Copy(
        sources=tuple(sources.paths),
        inline=tuple(sources.inline),
        destination=sources.destination,
        origin=given.text("from"),
        chown=given.text("chown"),
        chmod=given.text("chmod"),
        link=given.truth("link"),
        parents=given.truth("parents"),
        exclude=given.texts("exclude"),
    )


def _add(line: Line, escape: str) -> Add:
    sources = _sources(line)
    known = {"chown": str, "chmod": str, "link": bool, "keep-git-dir": bool, "checksum": str, "unpack": bool}
    given = flags.parse(line.flags, {**known, "exclude": list})
    if "keep-git-dir" in given.values:
        raise DockerfileError("ADD --keep-git-dir is not supported: git repositories cannot be added")
    return Add(
        sources=tuple(sources.paths),
        inline=tuple(sources.inline),
        destination=sources.destination,
        chown=given.text("chown"),
        chmod=given.text("chmod"),
        link=given.truth("link"),
        exclude=given.texts("exclude"),
        checksum=given.text("checksum"),
        unpack=given.truth("unpack") if "unpack" in given.values else None,
    )


def _run(line: Line, escape: str) -> Run:
    given = flags.parse(line.flags, {"mount": list, "network": str, "security": str, "device": list})
    network, security = given.text("network", "default"), given.text("security", "sandbox")
    if network not in _NETWORKS:
        raise DockerfileError(f'invalid network mode "{network[:80]}"')
    if security not in _SECURITIES:
        raise DockerfileError(f'security "{security[:80]}" is not valid')
    if given.texts("device"):
        raise DockerfileError("RUN --device is not supported")
    command = _command(line)
    for text in given.texts("mount"):
        mounts.origin(text)
    return Run(command=command, mount_flags=given.texts("mount"), network=network, security=security)


def _cmd(line: Line, escape: str) -> Cmd:
    _no_flags(line)
    return Cmd(command=_command(line))


def _entrypoint(line: Line, escape: str) -> Entrypoint:
    _no_flags(line)
    return Entrypoint(command=_command(line))


def _shell(line: Line, escape: str) -> Shell:
    _no_flags(line)
    array = words.array(line.rest)
    if not (line.rest if array is None else array):
        raise DockerfileError("SHELL requires at least one argument")
    if array is None:
        raise DockerfileError("SHELL requires the arguments to be in JSON form")
    return Shell(words=array)


def _healthcheck(line: Line, escape: str) -> Healthcheck:
    _some(line)
    kind, *rest = line.rest.split(maxsplit=1)
    argument = rest[0] if rest else ""
    array = words.array(argument)
    if kind.upper() == "NONE":
        if argument:
            raise DockerfileError("HEALTHCHECK NONE takes no arguments")
        return Healthcheck(test=("NONE",))
    names = ("interval", "timeout", "start-period", "start-interval", "retries")
    given = flags.parse(line.flags, dict.fromkeys(names, str))
    if kind.upper() != "CMD":
        raise DockerfileError(f'Unknown type "{kind.upper()[:40]}" in HEALTHCHECK (try CMD)')
    if not (argument if array is None else array):
        raise DockerfileError("Missing command after HEALTHCHECK CMD")
    return Healthcheck(
        test=("CMD-SHELL", argument) if array is None else ("CMD", *array),
        interval=flags.interval(given, "interval"),
        timeout=flags.interval(given, "timeout"),
        start_period=flags.interval(given, "start-period"),
        start_interval=flags.interval(given, "start-interval"),
        retries=flags.retries(given),
    )


def _expose(line: Line, escape: str) -> Expose:
    _some(line)
    _no_flags(line)
    return Expose(ports=tuple(sorted(words.listed(line.rest))))


def _volume(line: Line, escape: str) -> Volume:
    found = _array_or_list(line)
    if not found:
        raise DockerfileError("VOLUME requires at least one argument")
    _no_flags(line)
    paths = tuple(word.strip(words.BLANKS) for word in found)
    if not all(paths):
        raise DockerfileError("VOLUME specified can not be an empty string")
    return Volume(paths=paths)


def _onbuild(line: Line, escape: str) -> Onbuild:
    _some(line)
    _no_flags(line)
    keyword = lines.cut(line.rest, escape)[0].upper()
    if keyword == "ONBUILD":
        raise DockerfileError("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if keyword in ("MAINTAINER", "FROM"):
        raise DockerfileError(f"{keyword} isn't allowed as an ONBUILD trigger")
    parts = [_ONBUILD.sub("", line.text, count=1)]
    parts += [f"\n{heredoc.content}{heredoc.name}" for heredoc in line.heredocs]
    return Onbuild(expression="".join(parts))


_INSTRUCTIONS: dict[str, Callable[[Line, str], Instruction]] = {
    "add": _add,
    "arg": _arg,
    "cmd": _cmd,
    "copy": _copy,
    "entrypoint": _entrypoint,
    "env": lambda line, escape: Env(pairs=_pairs(line, escape)),
    "expose": _expose,
    "from": _from,
    "healthcheck": _healthcheck,
    "label": lambda line, escape: Label(pairs=_pairs(line, escape)),
    "maintainer": lambda line, escape: Maintainer(name=_one(line)),
    "onbuild": _onbuild,
    "run": _run,
    "shell": _shell,
    "stopsignal": lambda line, escape: StopSignal(signal=_one(line)),
    "user": lambda line, escape: User(user=_one(line)),
    "volume": _volume,
    "workdir": lambda line, escape: Workdir(path=_one(line)),
}
