"""The names of a daemon's containers, read from the files that the daemon writes (engine/namefiles.py).

    RUN/dns/NETWORK     {"name": "shop", "internal": false,
                         "members": {CONTAINER: {"names": [...], "addresses": [...]}}}
    RUN/dns/CONTAINER   {"networks": [NETWORK, ...], "servers": null | [...], "links": {ALIAS: NAME}}

A file is read again when it is another one: so the reader needs nobody to tell it, and goes on while the
daemon is away. It runs in the keeper's child and imports what that may.
"""

from __future__ import annotations

import os

from nagaya.errors import InvalidArgument
from nagaya.linux import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MOST_BYTES = 16 << 20
_RESOLV_CONF = "/etc/resolv.conf"
_MOST_SERVERS = 3  # resolv.conf(5), MAXNS


class _File:
    __slots__ = ("content", "index", "stamp")

    def __init__(self, stamp: tuple[int, int, int], content: dict[str, Any]) -> None:
        self.stamp = stamp
        self.content = content
        self.index: dict[str, list[str]] | None = None  # name -> addresses, of a network


class Zones:
    """What is known now. directory: an open RUN/dns."""

    def __init__(self, directory: int) -> None:
        self._directory = directory
        self._files: dict[str, _File] = {}
        self._host: tuple[tuple[int, int, int], list[str]] = ((0, 0, 0), [])

    def forget(self, name: str) -> None:
        """A container has gone."""
        self._files.pop(name, None)

    def _file(self, name: str) -> _File | None:
        try:
            facts = os.stat(name, dir_fd=self._directory)
            stamp = (facts.st_mtime_ns, facts.st_ino, facts.st_size)
            known = self._files.get(name)
            if known is not None and known.stamp == stamp:
                return known
            if facts.st_size > _MOST_BYTES:
                return None
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._directory)
            try:
                data = os.read(fd, _MOST_BYTES)
            finally:
                os.close(fd)
            content = json.loads(data)
        except (OSError, InvalidArgument):
            self._files.pop(name, None)
            return None
        found = self._files[name] = _File(stamp, content)
        return found

    def _networks(self, container: str) -> list[_File]:
        own = self._file(container)
        names = own.content["networks"] if own is not None else ()
        return [file for name in names if (file := self._file(name)) is not None]

    def addresses(self, container: str, name: str) -> list[str] | None:
        """The addresses that a name has for this container, of both families; None: it is nobody's name."""
        own = self._file(container)
        if own is None:
            return None
        name = own.content["links"].get(name, name).lower()
        found: list[str] = []
        known = False
        for network in self._networks(container):
            index = _index(network)
            suffix = "." + network.content["name"].lower()
            for word in (name, name.removesuffix(suffix)):
                if word in index:
                    known = True
                    found += [address for address in index[word] if address not in found]
                    break
        return found if known else None

    def name_of(self, container: str, address: str) -> str:
        """NAME.NETWORK of a neighbour's address; "" when it is nobody's."""
        for network in self._networks(container):
            for member in network.content["members"].values():
                if address in member["addresses"]:
                    return f"{member['names'][0]}.{network.content['name']}"
        return ""

    def servers(self, container: str) -> list[str]:
        """Where other names are asked for: the container's own servers, or the host's as they are now; none
        when all its networks are internal."""
        own = self._file(container)
        if own is None or all(n.content["internal"] for n in self._networks(container)):
            return []
        chosen = own.content["servers"]
        return list(chosen)[:_MOST_SERVERS] if chosen is not None else self._host_servers()

    def _host_servers(self) -> list[str]:
        try:
            facts = os.stat(_RESOLV_CONF)
            stamp = (facts.st_mtime_ns, facts.st_ino, facts.st_size)
            if self._host[0] != stamp:
                with open(_RESOLV_CONF, encoding="utf-8", errors="replace") as file:
                    lines = [line.split() for line in file.read(65536).splitlines()]
                found = [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]
                self._host = (stamp, found[:_MOST_SERVERS])
        except OSError:
            return []
        return self._host[1]


def _index(network: _File) -> dict[str, list[str]]:
    if network.index is None:
        network.index = {}
        for member in network.content["members"].values():
            for name in member["names"]:
                network.index.setdefault(name.lower(), []).extend(member["addresses"])
    return network.index
