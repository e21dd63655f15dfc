"""What nagayad's configuration may say: each key's range, and what must exist for it to be any use.

Each check raises InvalidArgument whose subject is the key; `config` adds where the key was given.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shlex
import ssl
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from nagaya.engine import privileges
from nagaya.engine.model import Ulimit
from nagaya.errors import InvalidArgument

if TYPE_CHECKING:
    from nagaya.daemon.config import Config, Registries

_LEVELS = ("debug", "info", "warning", "error")
_SIZE = re.compile(r"([0-9]+)([kmg]?)b?", re.IGNORECASE)
_PLAIN_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_HOST = re.compile(r"(\[[0-9a-fA-F:]+\]|[a-zA-Z0-9]([a-zA-Z0-9.-]*[a-zA-Z0-9])?)(:[0-9]{1,5})?")
_DOMAIN = re.compile(r"\.|[a-zA-Z0-9_]([a-zA-Z0-9_.-]*[a-zA-Z0-9_.])?")
_SOCKET_PATH = 107  # unix(7): sun_path
_INT = 2**31 - 1
_BOOTED = "/run/systemd/system"  # sd_booted(3)


def refuse(key: str, why: str) -> InvalidArgument:
    """The error about a key."""
    return InvalidArgument(why, subject=key)


def parse_size(text: str) -> int:
    """Bytes of "20m". Raises InvalidArgument."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise refuse("log-max-size", f"{text!r} is not a size such as 20m")
    return int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2].lower()]


def check_values(config: Config) -> None:
    """Check what each key says by itself; looks at nothing outside but PATH, for runtimes."""
    _paths(config)
    _one_of("log-level", config.log_level, _LEVELS)
    _one_of("cgroup-driver", config.cgroup_driver, ("cgroupfs", "systemd"))
    if not all(_PLAIN_NAME.fullmatch(part) for part in config.cgroup_parent.strip("/").split("/")):
        raise refuse("cgroup-parent", f"{config.cgroup_parent!r} is not a cgroup's path")
    if config.group and _PLAIN_NAME.fullmatch(config.group.removeprefix("_")) is None:
        raise refuse("group", f"{config.group!r} is not the name of a group")
    _between("stop-timeout", config.stop_timeout, 0, _INT)
    _between("log-max-file", config.log_max_file, 1, _INT)
    parse_size(config.log_max_size)
    config.network()
    for address in config.dns:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise refuse("dns", f"{address!r} is not an address") from None
    for domain in config.dns_search:
        if _DOMAIN.fullmatch(domain) is None:
            raise refuse("dns-search", f"{domain!r} is not a domain")
    for option in config.dns_option:
        if not option.isprintable() or not option or " " in option:
            raise refuse("dns-option", f"{option!r} is not an option such as ndots:2")
    for name, path in config.runtimes.items():
        if _PLAIN_NAME.fullmatch(name) is None or name == "nagaya":
            raise refuse(f"runtimes.{name}", f"{name!r} cannot be a runtime's name")
        if not path.startswith("/"):
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
    _registries(config.registries)


def _paths(config: Config) -> None:
    for key, path in (("root", config.root), ("run", config.run)):
        # overlay's option syntax has no way to write the two signs
        if not path.startswith("/") or path == "/" or ":" in path or "," in path:
            raise refuse(key, f"{path!r} is not an absolute path without ':' and ','")
    others = {
        "docker-socket": config.docker_socket,
        "cri-socket": config.cri_socket,
        "nri-socket": config.nri_socket,
        "nri-plugin-dir": config.nri_plugin_dir,
        "nri-plugin-conf-dir": config.nri_plugin_conf_dir,
        "pidfile": config.pidfile,
        "init-path": config.init_path,
        "cni-conf-dir": config.cni_conf_dir,
        "cni-bin-dir": config.cni_bin_dir,
    }
    for key, path in others.items():
        if path and not path.startswith("/"):
            raise refuse(key, f"{path!r} is not an absolute path")
    sockets = {
        "docker-socket": config.socket,
        "cri-socket": config.cri_socket,
        "nri-socket": config.nri_socket,
    }
    for key, path in sockets.items():
        if len(os.fsencode(path)) > _SOCKET_PATH:
            raise refuse(key, f"is longer than the {_SOCKET_PATH} bytes a Unix socket's path may have")


def _registries(registries: Registries) -> None:
    for registry, mirrors in registries.mirrors.items():
        key = f"registries.mirrors.{registry}"
        _registry(key, registry)
        for mirror in mirrors:
            parts = urlsplit(mirror)
            if parts.scheme not in ("http", "https") or _HOST.fullmatch(parts.netloc) is None:
                raise refuse(key, f"{mirror!r} is not a URL such as https://mirror.example.com")
            if parts.query or parts.fragment:
                raise refuse(key, f"{mirror!r} has a query or a fragment")
    for host in registries.insecure:
        try:
            ipaddress.ip_network(host)
        except ValueError:
            if _HOST.fullmatch(host) is None:
                raise refuse(
                    "registries.insecure", f"{host!r} is neither HOST[:PORT] nor a network such as 10.0.0.0/8"
                ) from None
    for registry, path in registries.ca.items():
        _registry(f"registries.ca.{registry}", registry)
        if not path.startswith("/"):
            raise refuse(f"registries.ca.{registry}", f"{path!r} is not the absolute path of a PEM file")
    if registries.docker_config and not registries.docker_config.startswith(("/", "~/")):
        raise refuse("registries.docker-config", f"{registries.docker_config!r} is not an absolute path")
    for name in ("connect-timeout", "read-timeout"):
        if not 0 < getattr(registries, name.replace("-", "_")) <= 86400:
            raise refuse(f"registries.{name}", "is not more than 0 and at most 86400 seconds")
    _between("registries.retries", registries.retries, 0, 100)
    _between("registries.downloads", registries.downloads, 1, 1000)
    _between("registries.unpacks", registries.unpacks, 1, 1000)
    _between("registries.uploads", registries.uploads, 1, 1000)
    _between("registries.max-layer-size", registries.max_layer_size, 1, 1 << 50)
    _between("registries.max-layer-entries", registries.max_layer_entries, 1, 1 << 32)


def _registry(key: str, host: str) -> None:
    if _HOST.fullmatch(host) is None:
        raise refuse(key, f"{host!r} is not a registry's HOST[:PORT]")


def _one_of(key: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise refuse(key, f"{value!r} is none of {', '.join(known)}")


def _between(key: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise refuse(key, f"{value} is not between {least} and {most}")


def check_host(config: Config, default_docker_config: str) -> None:
    """Check that what the configuration names is there: without it the daemon would start and fail later."""
    if config.init_path:
        _program("init-path", config.init_path)
    for name, path in config.runtimes.items():
        try:
            words = shlex.split(path)
        except ValueError as error:
            raise refuse(f"runtimes.{name}", f"{path!r}: {error}") from None
        _program(f"runtimes.{name}", words[0])
    if config.cgroup_driver == "systemd" and not os.path.isdir(_BOOTED):
        raise refuse("cgroup-driver", f"systemd does not run here ({_BOOTED} is not there)")
    for key, path in (("docker-socket", config.socket), ("pidfile", config.pid_path)):
        directory = os.path.dirname(path)
        if directory != config.run and not os.path.isdir(directory):
            raise refuse(key, f"there is no directory {directory}")
    for registry, path in config.registries.ca.items():
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
        except ssl.SSLError:
            raise refuse(f"registries.ca.{registry}", f"{path}: not a PEM file of certificates") from None
        except OSError as error:
            raise refuse(f"registries.ca.{registry}", f"{path}: {_words(error)}") from None
    chosen = config.registries.docker_config
    if chosen and chosen != default_docker_config:
        try:
            with open(os.path.expanduser(chosen), "rb"):
                pass
        except OSError as error:
            raise refuse("registries.docker-config", f"{chosen}: {_words(error)}") from None


def _program(key: str, path: str) -> None:
    if not os.path.exists(path):
        raise refuse(key, f"{path}: no such file")
    if not os.path.isfile(path) or not os.access(path, os.X_OK):
        raise refuse(key, f"{path}: is not an executable file")


def _words(error: OSError) -> str:
    return os.strerror(error.errno or 0).lower()
