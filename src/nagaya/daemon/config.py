"""nagayad's configuration: a TOML file, and a flag of the same name for every key that is not a table.

Flags win over the file, the file over the defaults below. An unknown key is an error, never ignored:
a misspelt limit must not silently be no limit. etc/nagayad.toml has every key with its comment.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import shutil
import tomllib
from collections.abc import Sequence
from typing import Any, get_origin, get_type_hints

import msgspec

import nagaya
from nagaya.engine import privileges
from nagaya.engine.model import Ulimit
from nagaya.engine.settings import Settings
from nagaya.errors import InvalidArgument
from nagaya.image.transport import RegistryConfig
from nagaya.network import ipam
from nagaya.network.service import NetworkService

DEFAULT_FILE = "/etc/nagaya/nagayad.toml"
_LEVELS = ("debug", "info", "warning", "error")
_SIZE = re.compile(r"([0-9]+)([kmg]?)b?", re.IGNORECASE)
_PLAIN_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")


class Registries(msgspec.Struct, frozen=True, rename="kebab", forbid_unknown_fields=True):
    """[registries]: how registries are reached. See image.transport.RegistryConfig."""

    mirrors: dict[str, list[str]] = {}
    insecure: tuple[str, ...] = ()
    ca: dict[str, str] = {}
    docker_config: str = "~/.docker/config.json"
    connect_timeout: float = 15.0
    read_timeout: float = 60.0
    retries: int = 4
    downloads: int = 3
    unpacks: int = 3


class Config(msgspec.Struct, frozen=True, rename="kebab", forbid_unknown_fields=True):
    """Every key, with its default. The flag of a key is --key; lists are given by repeating it."""

    root: str = "/var/lib/nagaya"
    run: str = "/run/nagaya"
    docker_socket: str = ""  # "": RUN/docker.sock
    cri_socket: str = ""  # "": RUN/cri.sock
    pidfile: str = ""  # "": RUN/nagayad.pid
    group: str = "nagaya"
    log_level: str = "info"
    bridge: str = "nagaya0"
    bip: str = ""
    default_address_pool: tuple[str, ...] = ()
    nft_table: str = "nagaya"
    mtu: int = 1500
    icc: bool = True
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_option: tuple[str, ...] = ()
    cni_conf_dir: str = "/etc/cni/net.d"
    cni_bin_dir: str = "/opt/cni/bin"
    cgroup_parent: str = "nagaya"
    cgroup_driver: str = "cgroupfs"
    default_runtime: str = "nagaya"
    init_path: str = ""  # "": catatonit, where it is found
    stop_timeout: int = 10
    log_max_size: str = "20m"
    log_max_file: int = 5
    runtimes: dict[str, str] = {}
    default_ulimits: dict[str, tuple[int, int]] = {}
    registries: Registries = Registries()

    @property
    def socket(self) -> str:
        """Where the Docker API is served."""
        return self.docker_socket or f"{self.run}/docker.sock"

    @property
    def pid_path(self) -> str:
        """Where the daemon's pid is written."""
        return self.pidfile or f"{self.run}/nagayad.pid"

    def settings(self) -> Settings:
        """What the engine is told. Raises InvalidArgument."""
        found = {name: path for name in ("runc", "crun", "runsc") if (path := shutil.which(name)) is not None}
        return Settings(
            root=self.root,
            run=self.run,
            bridge=self.bridge,
            cgroup_parent=self.cgroup_parent,
            cgroup_driver=self.cgroup_driver,
            default_runtime=self.default_runtime,
            runtimes={**found, **self.runtimes},
            init_path=self.init_path or _find_init(),
            stop_timeout=self.stop_timeout,
            log_max_size=parse_size(self.log_max_size),
            log_max_file=self.log_max_file,
            dns=self.dns,
            dns_search=self.dns_search,
            dns_options=self.dns_option,
            default_ulimits=self.default_ulimits,
        )

    def network(self) -> NetworkService:
        """The network room, which touches nothing before its start. Raises InvalidArgument."""
        pools = [ipam.parse_pool(text) for text in self.default_address_pool] or ipam.DEFAULT_POOLS
        return NetworkService(
            bridge=self.bridge,
            bip=self.bip,
            nft_table=self.nft_table,
            mtu=self.mtu,
            icc=self.icc,
            default_pools=pools,
        )

    def registry_config(self) -> RegistryConfig:
        """What the image room is told."""
        given = {f: getattr(self.registries, f) for f in Registries.__struct_fields__}
        return RegistryConfig(**given)


def _find_init() -> str:
    for path in ("/usr/bin/catatonit", "/usr/libexec/catatonit/catatonit", "/usr/libexec/podman/catatonit"):
        if os.access(path, os.X_OK):
            return path
    return shutil.which("catatonit") or ""


def parse_size(text: str) -> int:
    """Bytes of "20m". Raises InvalidArgument."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidArgument(f"{text!r} is not a size such as 20m", subject="log-max-size")
    return int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2].lower()]


def read_file(path: str, *, required: bool) -> dict[str, Any]:
    """The file's keys. Raises InvalidArgument for bad TOML, or a required file that is missing."""
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        if required:
            raise InvalidArgument(f"{path}: no such file", subject="config") from None
        return {}
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path}: {error}", subject="config") from None


def make(values: dict[str, Any], source: str) -> Config:
    """A checked configuration of key -> value. Raises InvalidArgument that names the key."""
    try:
        config = msgspec.convert(values, Config)
    except msgspec.ValidationError as error:
        text = str(error)
        unknown = re.search(r"unknown field `([^`]*)`(?: - at `\$\.?([^`]*)`)?", text)
        if unknown:
            key = f"{unknown[2]}.{unknown[1]}" if unknown[2] else unknown[1]
            raise InvalidArgument(f"{source}: unknown key {key!r}", subject=key) from None
        raise InvalidArgument(f"{source}: {text.replace('`', chr(39))}", subject="config") from None
    _check(config, source)
    return config


def _check(config: Config, source: str) -> None:
    def refuse(key: str, why: str) -> InvalidArgument:
        return InvalidArgument(f"{source}: {key}: {why}", subject=key)

    for key in ("root", "run"):
        value = getattr(config, key)
        if not value.startswith("/") or value == "/" or ":" in value or "," in value:
            # overlay's option syntax has no way to write them
            raise refuse(key, f"{value!r} is not an absolute path without ':' and ','")
    if config.log_level not in _LEVELS:
        raise refuse("log-level", f"{config.log_level!r} is none of {', '.join(_LEVELS)}")
    if config.cgroup_driver not in ("cgroupfs", "systemd"):
        raise refuse("cgroup-driver", f"{config.cgroup_driver!r} is neither cgroupfs nor systemd")
    parts = config.cgroup_parent.strip("/").split("/")
    if any(_PLAIN_NAME.fullmatch(part) is None for part in parts):
        raise refuse("cgroup-parent", f"{config.cgroup_parent!r} is not a cgroup's path")
    if config.stop_timeout < 0:
        raise refuse("stop-timeout", "is negative")
    if config.log_max_file < 1:
        raise refuse("log-max-file", "is less than 1")
    try:
        parse_size(config.log_max_size)
        config.network()
    except InvalidArgument as error:
        raise refuse(error.subject, error.message) from None
    for address in config.dns:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise refuse("dns", f"{address!r} is not an address") from None
    for name, path in config.runtimes.items():
        if _PLAIN_NAME.fullmatch(name) is None or name == "nagaya" or not path.startswith("/"):
            raise refuse(f"runtimes.{name}", f"{path!r} is not the absolute path of a runtime")
    if config.default_runtime not in config.settings().runtimes | {"nagaya": ""}:
        raise refuse(
            "default-runtime", f"{config.default_runtime!r} is neither nagaya nor one of the runtimes"
        )
    for name, (soft, hard) in config.default_ulimits.items():
        try:
            privileges.rlimits([Ulimit(name, soft, hard)])
        except InvalidArgument as error:
            raise refuse(f"default-ulimits.{name}", error.message) from None
    if len(os.fsencode(config.socket)) > 107:
        raise refuse("docker-socket", "is longer than the 107 bytes a Unix socket's path may have")


def parser() -> argparse.ArgumentParser:
    """The command line: a flag for each key."""
    made = argparse.ArgumentParser(
        prog="nagayad",
        description="The daemon: images, containers and networks behind Docker's Engine API.",
        allow_abbrev=False,
    )
    made.add_argument("--version", action="version", version=f"nagayad {nagaya.__version__}")
    made.add_argument("--config", metavar="FILE", help=f"configuration (default {DEFAULT_FILE} if it exists)")
    for field, hint in get_type_hints(Config).items():
        key = field.replace("_", "-")
        origin = get_origin(hint)
        if origin is dict or hint is Registries:
            continue  # tables: in the file only
        if origin is tuple:
            made.add_argument(f"--{key}", action="append", metavar="VALUE", default=None)
        elif hint is bool:
            made.add_argument(f"--{key}", action=argparse.BooleanOptionalAction, default=None)
        else:
            made.add_argument(f"--{key}", type=hint, metavar=hint.__name__.upper(), default=None)
    return made


def load(argv: Sequence[str]) -> Config:
    """The configuration of a command line. Raises InvalidArgument; SystemExit as argparse does."""
    options = vars(parser().parse_args(list(argv)))
    path = options.pop("config")
    values = read_file(path or DEFAULT_FILE, required=path is not None)
    source = path or DEFAULT_FILE
    make(values, source)  # so that a mistake in the file is not blamed on a flag
    given = {k.replace("_", "-"): v for k, v in options.items() if v is not None}
    for key in ("root", "run", "docker-socket", "cri-socket", "pidfile"):
        if key in given:
            given[key] = os.path.abspath(given[key])
    return make({**values, **given}, "command line" if given else source)


def keys() -> list[str]:
    """Every key as the file spells it, the tables' included."""
    found = []
    for field, hint in get_type_hints(Config).items():
        found.append(field.replace("_", "-"))
        if hint is Registries:
            found += [f"{field}.{f.replace('_', '-')}" for f in Registries.__struct_fields__]
    return found
