"""The command line of nagaya-vmm, which is Firecracker's. Pure."""

from __future__ import annotations

import argparse
from typing import NoReturn

from nagaya.api.firecracker.controller import VERSION

DEFAULT_SOCKET = "/run/firecracker.socket"
DEFAULT_ID = "anonymous-instance"
DEFAULT_LIMIT = 51200


class ArgumentsError(Exception):
    """The command line is wrong; str() says how."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ArgumentsError(f"Arguments parsing error: {message} \n\nFor more information try --help.")


def _size(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """What understands it."""
    made = _Parser(
        prog="nagaya-vmm",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"One microVM behind Firecracker's REST API (v{VERSION}), run by QEMU.",
    )

    def value(name: str, text: str, **more: object) -> None:
        made.add_argument(f"--{name}", help=text, **more)  # type: ignore[arg-type]

    def flag(name: str, text: str) -> None:
        made.add_argument(f"--{name}", action="store_true", help=text)

    value("api-sock", f"the API's Unix socket ({DEFAULT_SOCKET})", default=DEFAULT_SOCKET)
    value("id", f"the microVM's name ({DEFAULT_ID})", default=DEFAULT_ID)
    value("config-file", "configure and start the microVM from this JSON file")
    value("metadata", "JSON file with the contents of the metadata service")
    flag("no-api", "no API socket; needs --config-file")
    value("log-path", "file or named pipe for the log")
    value("level", "of the log: Error, Warning, Info, Debug, Trace, Off")
    value("module", "log only what this module says")
    flag("show-level", "name the level in the log")
    flag("show-log-origin", "name module and line in the log")
    value("metrics-path", "file or named pipe for the metrics")
    flag("boot-timer", "accepted; there is no such device")
    flag("enable-pci", "accepted; all devices are on virtio-mmio")
    flag("no-seccomp", "accepted; QEMU's own filter stays on")
    value("seccomp-filter", "accepted; QEMU has its own filter")
    for name in ("start-time-us", "start-time-cpu-us", "parent-cpu-time-us"):
        value(name, "when the process was started, for the metrics", type=_size)
    value("http-api-max-payload-size", "of a request", type=_size, default=DEFAULT_LIMIT, metavar="BYTES")
    value("mmds-size-limit", "of the metadata (as a request)", type=_size, metavar="BYTES")
    flag("version", "print the version of the API")
    flag("snapshot-version", "print the version of snapshots")
    value("describe-snapshot", "print the version of this snapshot")
    return made


def parse(argv: list[str]) -> argparse.Namespace:
    """The options. Raises ArgumentsError; SystemExit after --help."""
    options = parser().parse_args(argv)
    if options.no_api and not options.config_file:
        raise ArgumentsError(_needs("no-api", "config-file"))
    if options.no_seccomp and options.seccomp_filter:
        raise ArgumentsError(
            "Arguments parsing error: Argument 'no-seccomp' cannot be used together with argument"
            " 'seccomp-filter'. \n\nFor more information try --help."
        )
    return options


def _needs(name: str, other: str) -> str:
    return (
        f"Arguments parsing error: Argument '{other}' required, but not found, for argument '{name}'."
        " \n\nFor more information try --help."
    )


def check_id(name: str) -> str:
    """What is wrong with a microVM's name, "" when nothing is."""
    if not 1 <= len(name) <= 64:
        return f"Invalid len ({len(name)});  the length must be between 1 and 64"
    for position, character in enumerate(name):
        if character != "-" and not character.isalnum():
            return f"Invalid char ({character}) at position {position}"
    return ""
