"""Changes to an image's configuration in the words of a Dockerfile (`docker commit --change`, `import`).

Pure. The instructions are those that moby allows there (builder/dockerfile, validCommitCommands); each
sees the variables that the configuration has so far.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nagaya.errors import InvalidArgument

Config = dict[str, Any]

_SHELL = ["/bin/sh", "-c"]
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_MAX_PORTS = 65536
_TIMES = {
    "interval": "Interval",
    "timeout": "Timeout",
    "start-period": "StartPeriod",
    "start-interval": "StartInterval",
}


def apply(config: Mapping[str, Any], changes: Sequence[str]) -> Config:
    """The configuration (image-spec's `config`) after these instructions. Raises InvalidArgument."""
    found: Config = dict(config)
    commanded = False
    for change in changes:
        lines = [line.strip() for line in change.replace("\\\n", "").split("\n")]
        lines = [line for line in lines if line and not line.startswith("#")]
        if not lines:
            raise _bad("file with no instructions")
        for line in lines:
            word, _, rest = line.partition(" ")
            instruction = _INSTRUCTIONS.get(word.lower())
            if instruction is None:
                raise _bad(f"{word.lower()[:40]} is not a valid change command")
            if not rest.strip():
                raise _bad(f"{word.upper()} requires at least one argument")
            instruction(found, rest.strip())
            commanded = commanded or word.lower() == "cmd"
            if word.lower() == "entrypoint" and not commanded:
                found["Cmd"] = None  # it was made for the other
    return found


def _command(key: str) -> Callable[[Config, str], None]:
    def change(config: Config, text: str) -> None:
        words = _array(text)
        config[key] = words if words is not None else [*_SHELL, text]

    return change


def _env(config: Config, text: str) -> None:
    variables = dict(_pair(v) for v in config.get("Env") or ())
    variables.update(_assignments(text, "ENV", _variables(config)))
    config["Env"] = [f"{name}={value}" for name, value in variables.items()]


def _label(config: Config, text: str) -> None:
    config["Labels"] = {**(config.get("Labels") or {}), **_assignments(text, "LABEL", _variables(config))}


def _expose(config: Config, text: str) -> None:
    ports: dict[str, Any] = dict(config.get("ExposedPorts") or {})
    for word in _words(text, _variables(config)):
        match = _PORT.fullmatch(word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not match or not first <= last < _MAX_PORTS:
            raise _bad(f"Invalid containerPort: {word[:80]}")
        for port in range(first, last + 1):
            ports[f"{port}/{(match[3] or 'tcp').lower()}"] = {}
    config["ExposedPorts"] = ports


def _user(config: Config, text: str) -> None:
    config["User"] = _expand(text, _variables(config))


def _workdir(config: Config, text: str) -> None:
    path = _expand(text, _variables(config))
    config["WorkingDir"] = posixpath.normpath(posixpath.join("/", config.get("WorkingDir") or "", path))


def _volume(config: Config, text: str) -> None:
    words = _array(text) or _words(text, _variables(config))
    if not all(words):
        raise _bad("VOLUME specified can not be an empty string")
    config["Volumes"] = {**(config.get("Volumes") or {}), **{word: {} for word in words}}


def _onbuild(config: Config, text: str) -> None:
    word = text.split()[0].upper()
    if word in ("ONBUILD", "FROM", "MAINTAINER"):
        raise _bad(f"{word} isn't allowed as an ONBUILD trigger")
    config["OnBuild"] = [*(config.get("OnBuild") or ()), text]


def _healthcheck(config: Config, text: str) -> None:
    words = text.split()
    check: Config = {}
    while words and words[0].startswith("--"):
        name, _, value = words.pop(0)[2:].partition("=")
        if name in _TIMES:
            check[_TIMES[name]] = _duration(value)
        elif name == "retries" and value.isdigit():
            check["Retries"] = int(value)
        else:
            raise _bad(f"Unknown flag or bad value: {name[:40]}")
    kind = words[0].upper() if words else ""
    if kind == "NONE" and len(words) == 1 and not check:
        config["Healthcheck"] = {"Test": ["NONE"]}
        return
    if kind != "CMD" or len(words) < 2:
        raise _bad(f'Unknown type "{kind[:40]}" in HEALTHCHECK (try CMD)')
    rest = text[text.upper().index("CMD") + 3 :].strip()
    array = _array(rest)
    config["Healthcheck"] = {"Test": ["CMD", *array] if array is not None else ["CMD-SHELL", rest], **check}


_INSTRUCTIONS: dict[str, Callable[[Config, str], None]] = {
    "cmd": _command("Cmd"),
    "entrypoint": _command("Entrypoint"),
    "env": _env,
    "expose": _expose,
    "healthcheck": _healthcheck,
    "label": _label,
    "onbuild": _onbuild,
    "user": _user,
    "volume": _volume,
    "workdir": _workdir,
}


# words


def _array(text: str) -> list[str] | None:
    """A JSON array of strings; None when it is none: then it is a line for the shell."""
    if not text.startswith("["):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) and all(isinstance(word, str) for word in found) else None


def _assignments(text: str, instruction: str, variables: Mapping[str, str]) -> dict[str, str]:
    """ "a=b c='d e'", or the old "a b c" of one."""
    first = re.match(r"\S+", text)
    if first is not None and "=" not in _split(text)[0]:
        name, _, value = text.partition(" ")
        if not value.strip():
            raise _bad(f"{instruction} must have two arguments")
        return {name: _expand(value.strip(), variables)}
    found: dict[str, str] = {}
    for word in _split(text):
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise _bad(f"Syntax error - can't find = in {word[:80]!r}. Must be of the form: name=value")
        found[_expand(name, variables)] = _expand(value, variables)
    return found


def _words(text: str, variables: Mapping[str, str]) -> list[str]:
    return [_expand(word, variables) for word in _split(text)]


def _split(text: str) -> list[str]:
    """Words as the Dockerfile's parser splits them: at blanks outside of quotes, which stay."""
    found, word, quote = [], "", ""
    at = 0
    while at < len(text):
        char = text[at]
        if char == "\\" and quote != "'" and at + 1 < len(text):
            word += text[at : at + 2]
            at += 2
            continue
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in " \t":
            if word:
                found.append(word)
            word = ""
            at += 1
            continue
        word += char
        at += 1
    return [*found, word] if word else found


def _expand(word: str, variables: Mapping[str, str]) -> str:
    """Quotes taken away, $NAME and ${NAME}, ${NAME:-word}, ${NAME:+word} put in, as the shell has them."""
    out, quote, at = "", "", 0
    while at < len(word):
        char = word[at]
        if char == "\\" and quote != "'":
            following = word[at + 1 : at + 2]
            out += following if not quote or following in '"$\\' else char + following
            at += 2
        elif char in "'\"" and quote in ("", char):
            quote = "" if quote else char
            at += 1
        elif char == "$" and quote != "'":
            value, at = _variable(word, at + 1, variables)
            out += value
        else:
            out += char
            at += 1
    if quote:
        raise _bad(f"unexpected end of statement while looking for matching {quote}")
    return out


def _variable(word: str, at: int, variables: Mapping[str, str]) -> tuple[str, int]:
    if word[at : at + 1] != "{":
        match = _NAME.match(word, at)
        return (variables.get(match[0], ""), match.end()) if match else ("$", at)
    end = word.find("}", at)
    match = _NAME.match(word, at + 1)
    if end < 0 or match is None:
        raise _bad("syntax error: bad substitution")
    value, how = variables.get(match[0], ""), word[match.end() : end]
    if how.startswith(":-"):
        value = value or how[2:]
    elif how.startswith(":+"):
        value = how[2:] if value else ""
    elif how:
        raise _bad(f"unsupported modifier ({how[:2]}) in substitution")
    return value, end + 1


def _variables(config: Config) -> dict[str, str]:
    return dict(_pair(variable) for variable in config.get("Env") or ())


def _pair(variable: str) -> tuple[str, str]:
    name, _, value = variable.partition("=")
    return name, value


def _duration(text: str) -> int:
    """Nanoseconds of Go's notation, "1m30s"."""
    parts = _DURATION.findall(text)
    if not parts or "".join(n + u for n, u in parts) != text:
        raise _bad(f'time: invalid duration "{text[:40]}"')
    return sum(int(float(number) * _UNITS[unit]) for number, unit in parts)


def _bad(why: str) -> InvalidArgument:
    return InvalidArgument(why, subject="changes")


def merge(config: Mapping[str, Any], below: Mapping[str, Any]) -> Config:
    """`config` with what it leaves out taken from `below` (moby, daemon/commit.go, merge)."""
    found: Config = dict(config)
    for key in ("User", "WorkingDir", "StopSignal", "Healthcheck"):
        if not found.get(key) and below.get(key):
            found[key] = below[key]
    for key in ("ExposedPorts", "Labels", "Volumes"):
        both = {**(below.get(key) or {}), **(found.get(key) or {})}
        if both:
            found[key] = both
    given = {name for name, _ in map(_pair, found.get("Env") or ())}
    rest = [v for v in below.get("Env") or () if _pair(v)[0] not in given]
    found["Env"] = [*(found.get("Env") or ()), *rest]
    if not found.get("Entrypoint"):
        if not found.get("Cmd"):
            found["Cmd"] = below.get("Cmd")
        if found.get("Entrypoint") is None:
            found["Entrypoint"] = below.get("Entrypoint")
    return {key: value for key, value in found.items() if value not in (None, "", [], {})}
