"""nagayad's configuration: a TOML file, and a flag of the same name for every key that is not a table.

Flags win over the file, the file over the defaults below. An unknown key is an error, never ignored:
a misspelt limit must not silently be no limit. etc/nagayad.toml has every key with its comment.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tomllib
from collections.abc import Collection, Sequence
from typing import Any, NoReturn, get_origin, get_type_hints

import msgspec

import nagaya
from nagaya.daemon import checks
from nagaya.engine import remap
from nagaya.engine.settings import Settings
from nagaya.errors import InvalidArgument
from nagaya.image.layers import Limits
from nagaya.image.transport import RegistryConfig
from nagaya.network import ipam
from nagaya.network.service import NetworkService

DEFAULT_FILE = "/etc/nagaya/nagayad.toml"


class Registries(msgspec.Struct, frozen=True, rename="kebab", forbid_unknown_fields=True):
    """[registries]: how registries are reached. See image.transport.RegistryConfig."""

    mirrors: dict[str, list[str]] = {}
    insecure: tuple[str, ...] = ()
    ca: dict[str, str] = {}
    hosts_dir: str = "/etc/nagaya/registries.d"
    docker_config: str = "~/.docker/config.json"
    connect_timeout: float = 15.0
    read_timeout: float = 60.0
    retries: int = 4
    downloads: int = 3
    unpacks: int = 3
    uploads: int = 5
    max_layer_size: int = Limits().size
    max_layer_entries: int = Limits().entries


class Config(msgspec.Struct, frozen=True, rename="kebab", forbid_unknown_fields=True):
    """Every key, with its default. The flag of a key is --key; lists are given by repeating it."""

    root: str = "/var/lib/nagaya"
    run: str = "/run/nagaya"
    docker_socket: str = ""  # "": RUN/docker.sock
    cri_socket: str = ""  # "": no CRI
    nri_socket: str = ""  # "": no plugins
    nri_plugin_dir: str = "/opt/nri/plugins"
    nri_plugin_conf_dir: str = "/etc/nri/conf.d"
    pidfile: str = ""  # "": RUN/nagayad.pid
    group: str = "nagaya"
    log_level: str = "info"
    bridge: str = "nagaya0"
    bip: str = ""
    ipv6: bool = False
    fixed_cidr_v6: str = ""
    default_address_pool: tuple[str, ...] = ()
    nft_table: str = "nagaya"
    mtu: int = 1500
    icc: bool = True
    firewall: str = "host"
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_option: tuple[str, ...] = ()
    cni_conf_dir: str = "/etc/cni/net.d"
    cni_bin_dir: str = "/opt/cni/bin"
    cgroup_parent: str = "nagaya"
    cgroup_driver: str = "cgroupfs"
    default_runtime: str = "nagaya"
    userns_remap: str = ""  # USER[:GROUP], whose ids /etc/subuid and /etc/subgid say
    init_path: str = ""  # "": catatonit, where it is found
    stop_timeout: int = 10
    log_max_size: str = "20m"
    log_max_file: int = 5
    cdi_spec_dirs: tuple[str, ...] = ("/etc/cdi", "/var/run/cdi")
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
        if path := _beside_us("nagaya-vm"):
            found["nagaya-vm"] = path
        return Settings(
            root=self.root,
            run=self.run,
            bridge=self.bridge,
            ipv6=self.ipv6,
            address_pools=tuple(ipam.parse_pool(text) for text in self.default_address_pool),
            cgroup_parent=self.cgroup_parent,
            cgroup_driver=self.cgroup_driver,
            default_runtime=self.default_runtime,
            runtimes={**found, **self.runtimes},
            init_path=self.init_path or _find_init(),
            stop_timeout=self.stop_timeout,
            log_max_size=checks.parse_size(self.log_max_size),
            log_max_file=self.log_max_file,
            dns=self.dns,
            dns_search=self.dns_search,
            dns_options=self.dns_option,
            default_ulimits=self.default_ulimits,
            cdi_spec_dirs=self.cdi_spec_dirs,
            cni_conf_dir=self.cni_conf_dir,
            cni_bin_dir=self.cni_bin_dir,
            remap=remap.read(self.userns_remap),
        )

    def network(self) -> NetworkService:
        """The network room, which touches nothing before its start. Raises InvalidArgument."""
        pools = [ipam.parse_pool(text) for text in self.default_address_pool] or ipam.DEFAULT_POOLS
        return NetworkService(
            bridge=self.bridge,
            bip=self.bip,
            ipv6=self.ipv6,
            fixed_cidr_v6=self.fixed_cidr_v6,
            nft_table=self.nft_table,
            mtu=self.mtu,
            icc=self.icc,
            firewall=self.firewall,
            default_pools=pools,
        )

    def registry_config(self) -> RegistryConfig:
        """What the image room is told."""
        given = msgspec.structs.asdict(self.registries)
        limits = Limits(given.pop("max_layer_size"), given.pop("max_layer_entries"))
        return RegistryConfig(**given, limits=limits)


def _beside_us(name: str) -> str:
    """A launcher of this installation, else one in PATH; "" when there is none."""
    beside = f"{os.path.dirname(sys.executable)}/{name}"
    return beside if os.access(beside, os.X_OK) else shutil.which(name) or ""


def _find_init() -> str:
    for path in ("/usr/bin/catatonit", "/usr/libexec/catatonit/catatonit", "/usr/libexec/podman/catatonit"):
        if os.access(path, os.X_OK):
            return path
    return shutil.which("catatonit") or ""


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


def make(values: dict[str, Any], source: str, flags: Collection[str] = ()) -> Config:
    """A checked configuration of key -> value, of which `flags` were on the command line and the others in
    `source`. Raises InvalidArgument: "SOURCE: key: what is wrong"."""
    try:
        config = msgspec.convert(values, Config)
    except msgspec.ValidationError as error:
        raise _misfit(str(error), source, flags) from None
    try:
        checks.check_values(config)
    except InvalidArgument as error:
        raise _located(error.subject, error.message, source, flags) from None
    return config


def _located(key: str, why: str, source: str, flags: Collection[str]) -> InvalidArgument:
    return InvalidArgument(f"{'command line' if key in flags else source}: {key}: {why}", subject=key)


def _misfit(text: str, source: str, flags: Collection[str]) -> InvalidArgument:
    """msgspec's words, such as "Expected `int`, got `str` - at `$.mtu`", in our order."""
    why, _, place = text.replace("`", "").partition(" - at ")
    key = place.removeprefix("$").removeprefix(".").removesuffix("[...]").partition("[")[0]
    unknown = re.fullmatch("Object contains unknown field (.*)", why)
    if unknown:
        whole = f"{key}.{unknown[1]}" if key else unknown[1]
        return InvalidArgument(f"{source}: unknown key {whole!r}", subject=whole)
    return _located(key, why[:1].lower() + why[1:], source, flags)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InvalidArgument(f"command line: {message} (nagayad --help shows the flags)", subject="flags")


def parser() -> argparse.ArgumentParser:
    """The command line: a flag for each key. Parsing raises InvalidArgument."""
    made = _Parser(
        prog="nagayad",
        description="The daemon: images, containers and networks behind Docker's Engine API.",
        allow_abbrev=False,
    )
    made.add_argument("--version", action="version", version=f"nagayad {nagaya.__version__}")
    made.add_argument("--config", metavar="FILE", help=f"configuration (default {DEFAULT_FILE} if it exists)")
    made.add_argument("--validate", action="store_true", help="check the configuration and end")
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


def load(argv: Sequence[str]) -> tuple[Config, bool]:
    """(the configuration of a command line, is it only to be validated?).

    Raises InvalidArgument; SystemExit for --help and --version."""
    options = vars(parser().parse_args(list(argv)))
    path, validate = options.pop("config"), options.pop("validate")
    values = read_file(path or DEFAULT_FILE, required=path is not None)
    source = path or DEFAULT_FILE
    make(values, source)  # a mistake in the file is one also when a flag wins over it
    given = {k.replace("_", "-"): v for k, v in options.items() if v is not None}
    for key in ("root", "run", "docker-socket", "cri-socket", "pidfile"):
        if given.get(key):
            given[key] = os.path.abspath(given[key])
    config = make({**values, **given}, source, given)
    try:
        checks.check_host(config, Registries().docker_config)
    except InvalidArgument as error:
        raise _located(error.subject, error.message, source, given) from None
    return config, validate


def keys() -> list[str]:
    """Every key as the file spells it, the tables' included."""
    found = []
    for field, hint in get_type_hints(Config).items():
        found.append(field.replace("_", "-"))
        if hint is Registries:
            found += [f"{field}.{f.replace('_', '-')}" for f in Registries.__struct_fields__]
    return found
