"""`--log-driver` and `--log-opt`: checked with dockerd's words, and what io is told (pure).

All drivers but "none" keep a json-file log of ours, from which `logs` reads; what syslog and journald are
sent is read from there, too (forwarding.py), so that nothing is lost while they or the daemon are away.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from nagaya.engine.model import Container, LogConfig
from nagaya.engine.settings import Settings
from nagaya.errors import InvalidArgument

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_COMMON = frozenset(("mode", "max-buffer-size"))
_FILES = frozenset(("max-size", "max-file", "compress"))
_DETAILS = frozenset(("labels", "labels-regex", "env", "env-regex", "tag"))
_SYSLOG = frozenset(
    f"syslog-{n}" for n in "address facility format tls-ca-cert tls-cert tls-key tls-skip-verify".split()
)
# driver -> (its own options, how an unknown one is told)
_DRIVERS = {
    "json-file": (_FILES | _DETAILS, "unknown log opt '{}' for json-file log driver"),
    "local": (_FILES, "unknown log opt '{}' for log driver local"),
    "syslog": (_SYSLOG | _DETAILS, "unknown log opt '{}' for syslog log driver"),
    "journald": (_DETAILS, "unknown log opt '{}' for journald log driver"),
}
DRIVERS = (*sorted(_DRIVERS), "none")
FACILITIES = {
    name: number
    for number, name in enumerate(
        "kern user mail daemon auth syslog lpr news uucp cron authpriv ftp".split()
        + ["", "", "", ""]
        + [f"local{n}" for n in range(8)]
    )
    if name
}
FORMATS = ("", "rfc3164", "rfc5424", "rfc5424micro")
_FIELD = re.compile(r"\{\{\s*\.(\w+)\s*\}\}")


def _bad(text: str) -> InvalidArgument:
    return InvalidArgument(text, subject="LogConfig")


def _size(text: str) -> int:
    bare = text.strip().lower().removesuffix("b") if len(text) > 1 else text
    number, unit = (bare[:-1], bare[-1:]) if bare[-1:] in ("k", "m", "g") else (bare, "")
    if not number.isdigit() or not number.isascii():
        raise _bad(f"invalid size: '{text}'")
    return int(number) * _UNITS[unit]


def _count(text: str) -> int:
    if not (text.isascii() and text[:6].isdigit()) or int(text[:6]) < 1:
        raise _bad("max-file cannot be less than 1")
    return int(text[:6])


def check(config: LogConfig, *, journal: bool = False) -> list[str]:
    """Warnings. journal: this host has journald's socket. Raises InvalidArgument for a driver that is not
    here, or an option that is none of its."""
    driver, options = config.driver or "json-file", config.options
    if driver == "none":
        return []
    if driver not in _DRIVERS:
        raise _bad(f'error looking up logging plugin {driver}: plugin "{driver}" not found')
    known, complaint = _DRIVERS[driver]
    for name in options:
        if name not in known and name not in _COMMON:
            raise _bad(complaint.format(name))
    if options.get("mode", "blocking") not in ("blocking", "non-blocking"):
        raise _bad(f"logger: logging mode not supported: {options['mode']}")
    if "max-buffer-size" in options:
        try:
            _size(options["max-buffer-size"])
        except InvalidArgument as error:
            raise _bad(f"error parsing option max-buffer-size: {error.message}") from None
    _size(options.get("max-size", "1m"))
    _count(options.get("max-file", "1"))
    for name in ("labels-regex", "env-regex"):
        try:
            re.compile(options.get(name, ""))
        except re.error as error:
            raise _bad(f"{name}: {error}") from None
    tag(options.get("tag", ""), {})
    if driver == "journald" and not journal:
        raise _bad("journald is not enabled on this host")
    if driver == "syslog":
        target(options)
    if options.get("compress", "false") not in ("true", "false"):
        raise _bad(f'strconv.ParseBool: parsing "{options["compress"]}": invalid syntax')
    if options.get("compress") == "true":
        return ["log opt 'compress' changes nothing: rotated logs are kept as they are"]
    return []


class Target(NamedTuple):
    """Where a syslog is: "unix", "unixgram", "udp", "tcp" or "tcp+tls"; a path, or host and port."""

    kind: str
    path: str = ""
    host: str = ""
    port: int = 0


def target(options: dict[str, str]) -> Target:
    """The syslog that is meant; its facility and format are checked. Raises InvalidArgument."""
    facility = options.get("syslog-facility", "daemon")
    if facility not in FACILITIES and not (facility.isdecimal() and int(facility[:3]) < 24):
        raise _bad("invalid syslog facility")
    if options.get("syslog-format", "") not in FORMATS:
        raise _bad("Invalid syslog format")
    address = options.get("syslog-address", "")
    if not address:
        return Target("unixgram", "/dev/log")
    kind, mark, rest = address.partition("://")
    if not mark or kind not in ("unix", "unixgram", "udp", "tcp", "tcp+tls") or not rest:
        raise _bad(f"syslog-address should be in form proto://address, got {address}")
    if kind.startswith("unix"):
        return Target(kind, rest)
    host, colon, port = rest.rpartition(":")
    if not colon or host.endswith(":"):
        host, port = rest, "514"
    if not port.isdecimal() or not 0 < int(port[:6]) < 65536:
        raise _bad(f"syslog-address should be in form proto://address, got {address}")
    return Target(kind, host=host.removeprefix("[").removesuffix("]"), port=int(port))


def tag(template: str, fields: dict[str, str]) -> str:
    """A tag with its fields filled in; without `fields` it is only checked. Raises InvalidArgument."""

    def value(found: re.Match[str]) -> str:
        name = found[1]
        if name not in _FIELDS:
            raise _bad(
                f'template: log-tag:1:{found.start(1)}: executing "log-tag" at <.{name}>: '
                f"can't evaluate field {name} in type *logger.Info"
            )
        return fields.get(name, "")

    text = _FIELD.sub(value, template)
    if "{{" in text:
        raise _bad(f"log tag {template!r}: only fields such as {{{{.Name}}}} can be used")
    return text


_FIELDS = frozenset("ID FullID Name ImageID ImageFullID ImageName Command DaemonName".split())


def fields(container: Container) -> dict[str, str]:
    """What a tag may name."""
    return {
        "ID": container.id[:12],
        "FullID": container.id,
        "Name": container.name,
        "ImageID": container.image_digest[:19],
        "ImageFullID": container.image_digest,
        "ImageName": container.config.image,
        "Command": " ".join([container.path, *container.args]),
        "DaemonName": "nagaya",
    }


def attributes(container: Container) -> dict[str, str]:
    """The labels and variables that the options name, as `logs --details` shows them."""
    options = container.config.log.options
    variables = dict(v.partition("=")[::2] for v in container.env if "=" in v)
    return {
        **_chosen(container.labels.items(), options.get("labels", ""), options.get("labels-regex", "")),
        **_chosen(variables.items(), options.get("env", ""), options.get("env-regex", "")),
    }


def _chosen(pairs: Iterable[tuple[str, str]], names: str, pattern: str) -> dict[str, str]:
    wanted = set(names.split(","))
    return {k: v for k, v in pairs if k in wanted or (pattern and re.search(pattern, k))}


def path(settings: Settings, container_id: str, config: LogConfig) -> str:
    """Where the log is; "" for the driver "none"."""
    if config.driver == "none":
        return ""
    return f"{settings.container_dir(container_id)}/{container_id}-json.log"


def for_io(settings: Settings, container: Container) -> dict[str, Any] | None:
    """What io is told; None for the driver "none"."""
    config = container.config.log
    where = path(settings, container.id, config)
    if not where:
        return None
    options = config.options
    found: dict[str, Any] = {
        "driver": "json-file",
        "path": where,
        "max_size": _size(options["max-size"]) if "max-size" in options else settings.log_max_size,
        "max_file": _count(options["max-file"]) if "max-file" in options else settings.log_max_file,
    }
    shown = attributes(container)
    if options.get("tag"):
        shown["tag"] = tag(options["tag"], fields(container))
    if shown:
        found["attributes"] = msgspec.json.encode(shown, order="sorted").decode()
    return found
