"""Settings of one registry: the files HOST/hosts.toml of a directory, in containerd's format.

    server = "https://registry.example.com"        # where the registry itself is; default https://HOST
    ca = "/etc/ssl/registry.pem"                   # and the other keys below, for the server

    [host."https://mirror.example.com"]            # asked before it, in this order
    capabilities = ["pull", "resolve"]             # and "push"; default: pull and resolve
    ca = ["/a.pem", "/b.pem"]                      # further certificate authorities
    client = [["/cert.pem", "/key.pem"]]           # how we show who we are; or one file with both
    skip_verify = true                             # any certificate, or plain HTTP
    override_path = true                           # the URL has its own path instead of /v2
    header = { X-Token = "..." }                   # sent with every request to this host

HOST is as in image references ("registry.example.com:5000"; "registry.example.com_5000_" is read too);
_default/hosts.toml is for registries that have none. A file is read again for each pull: no restart.
"""

from __future__ import annotations

import os
import tomllib
from typing import Any
from urllib.parse import urlsplit

import msgspec

from nagaya.errors import InvalidArgument

_FILE = "hosts.toml"
_CAPABILITIES = frozenset(("pull", "resolve", "push"))
_READING = ("pull", "resolve")


class Host(msgspec.Struct, frozen=True):
    """One place to ask. url: with scheme, without "/v2" unless own_path. capabilities: "resolve" turns a
    tag into a digest, "pull" serves content by digest, "push" takes it."""

    url: str
    capabilities: frozenset[str] = frozenset(_READING)
    ca: tuple[str, ...] = ()
    client: tuple[tuple[str, str], ...] = ()  # (certificate, key); the key "" when both are in one file
    skip_verify: bool = False
    own_path: bool = False
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def netloc(self) -> str:
        """Host and port."""
        return urlsplit(self.url).netloc


class Hosts(msgspec.Struct, frozen=True):
    """Where to find a registry: mirrors in their order, then itself."""

    mirrors: tuple[Host, ...]
    server: Host


class _Table(msgspec.Struct, forbid_unknown_fields=True):
    capabilities: list[str] | None = None
    ca: str | list[str] = []
    client: str | list[str | list[str]] = []
    skip_verify: bool = False
    override_path: bool = False
    header: dict[str, str | list[str]] = {}


class _File(_Table, forbid_unknown_fields=True):
    server: str = ""
    host: dict[str, _Table] = {}


def load(directory: str, domain: str, home: str) -> Hosts | None:
    """The settings of a registry (its host as in references); None when there are none.

    home: its URL unless the file says another. Raises InvalidArgument, naming the file.
    """
    if not directory:
        return None
    for name in (domain, domain.replace(":", "_") + "_" if ":" in domain else "", "_default"):
        path = f"{directory}/{name}/{_FILE}"
        if not name or not os.path.exists(path):
            continue
        try:
            with open(path, "rb") as file:
                parsed = msgspec.convert(tomllib.load(file), _File)
            return _hosts(parsed, home)
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
            raise InvalidArgument(f"{path}: {error}", subject=path) from None
        except InvalidArgument as error:
            raise InvalidArgument(f"{path}: {error.message}", subject=path) from None
    return None


def _hosts(parsed: _File, home: str) -> Hosts:
    every = [*_READING, "push"]
    server = _host(parsed.server or home, parsed, every)
    return Hosts(tuple(_host(url, table, _READING) for url, table in parsed.host.items()), server)


def _host(url: str, table: _Table, default: Any) -> Host:
    parts = urlsplit(url if "://" in url else f"https://{url}")
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise InvalidArgument(f"{url[:200]!r} is no URL of a registry")
    capabilities = frozenset(default if table.capabilities is None else table.capabilities)
    if not capabilities <= _CAPABILITIES:
        unknown = sorted(capabilities - _CAPABILITIES)[0]
        raise InvalidArgument(f"unknown capability {unknown[:40]!r}: want pull, resolve, push")
    headers = []
    for name, given in table.header.items():
        for value in [given] if isinstance(given, str) else given:
            if not name.isascii() or not name.replace("-", "").isalnum() or not value.isprintable():
                raise InvalidArgument(f"header {name[:40]!r} is not valid")
            headers.append((name, value))
    return Host(
        parts.geturl().rstrip("/") if table.override_path else parts.geturl().rstrip("/").removesuffix("/v2"),
        capabilities,
        (table.ca,) if isinstance(table.ca, str) else tuple(table.ca),
        tuple(map(_client, [table.client] if isinstance(table.client, str) else table.client)),
        table.skip_verify,
        table.override_path,
        tuple(headers),
    )


def _client(given: str | list[str]) -> tuple[str, str]:
    found = [given] if isinstance(given, str) else given
    if not 1 <= len(found) <= 2 or not found[0]:
        raise InvalidArgument("client: want a file, or pairs of certificate and key")
    return found[0], found[1] if len(found) == 2 else ""
