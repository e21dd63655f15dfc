"""The files from which the keeper's child knows containers by their names (network/dnszone.py), and which
published ports it relays (supervisor/relay.py).

It reads them itself, so it needs no word of ours and goes on while no daemon is there. One file a network,
one a container; each appears whole, by rename. Thread-safe.
"""

from __future__ import annotations

import os
import threading

import msgspec

from nagaya.engine import files
from nagaya.engine.links import parse
from nagaya.engine.model import Container, Network
from nagaya.engine.nettable import PREDEFINED, attachments
from nagaya.errors import NagayaError

_NOBODY = 65534  # whom the resolver runs as

_encode = msgspec.json.Encoder().encode


class _Member(msgspec.Struct, frozen=True):
    names: tuple[str, ...]
    addresses: tuple[str, ...]


class NameFiles:
    """RUN/dns."""

    def __init__(self, run: str) -> None:
        self._directory = f"{run}/dns"
        self._lock = threading.Lock()
        self._networks: dict[str, tuple[Network, dict[str, _Member]]] = {}
        self._containers: dict[str, tuple[str, ...]] = {}  # where each is
        self._relays: set[str] = set()

    def put(self, container: Container, networks: dict[str, Network], servers: tuple[str, ...]) -> None:
        """What there is to know of a container now. networks: all, by id; servers: those it asks instead of
        the host's. One that is in predefined networks only has no names. Raises KernelError and kin."""
        wishes = {a.network: a for a in attachments(container)}
        links: dict[str, str] = {}
        own: dict[str, _Member] = {}
        for place in container.endpoints:
            if place.network in PREDEFINED or place.network_id not in networks:
                continue
            wish = wishes.get(place.network) or wishes.get(place.network_id)
            aliases = wish.aliases if wish else ()
            for link in wish.links if wish else ():
                target, alias = parse(link)
                links[alias.lower()] = target
            names = dict.fromkeys((container.name, *aliases, container.id[:12], container.id))
            addresses = tuple(a for a in (place.address, place.address6) if a)
            own[place.network_id] = _Member(tuple(names), addresses)
        with self._lock:
            gone = set(self._containers.get(container.id, ())) - set(own)
            for network_id, member in own.items():
                _, members = self._networks.setdefault(network_id, (networks[network_id], {}))
                members[container.id] = member
                self._write_network(network_id)
            for network_id in gone:
                self._leave(network_id, container.id)
            if own:
                self._containers[container.id] = tuple(own)
                content = {"networks": list(own), "servers": list(servers) or None, "links": links}
                self._write(container.id, _encode(content))
            elif self._containers.pop(container.id, None) is not None:
                files.remove(f"{self._directory}/{container.id}")

    def drop(self, container_id: str) -> None:
        """It runs no more. May be repeated."""
        with self._lock:
            places = self._containers.pop(container_id, ())
            for network_id in places:
                self._leave(network_id, container_id)
            if places:
                files.remove(f"{self._directory}/{container_id}")

    def put_relay(self, owner: str, entries: list[dict[str, object]]) -> bool:
        """Which of an owner's reserving sockets are served, and where they lead. False: the file, perhaps of
        a former daemon, says so already. Raises KernelError and kin."""
        name, data = f"relay-{owner}", _encode(entries)
        with self._lock:
            self._relays.add(name)
            try:
                with open(f"{self._directory}/{name}", "rb") as file:
                    if file.read() == data:
                        return False
            except OSError:
                pass
            self._write(name, data)
            return True

    def drop_relay(self, owner: str) -> None:
        """None of them. May be repeated."""
        with self._lock:
            if f"relay-{owner}" in self._relays:
                self._relays.discard(f"relay-{owner}")
                files.remove(f"{self._directory}/relay-{owner}")

    def has(self, container_id: str) -> bool:
        """Has it names?"""
        return container_id in self._containers

    def sweep(self) -> None:
        """Take away the files of what a former daemon knew and we do not."""
        with self._lock:
            try:
                found = os.listdir(self._directory)
            except FileNotFoundError:
                return
            for name in found:
                if name not in self._networks and name not in self._containers and name not in self._relays:
                    files.remove(f"{self._directory}/{name}")

    def _leave(self, network_id: str, container_id: str) -> None:
        known = self._networks.get(network_id)
        if known is None:
            return
        known[1].pop(container_id, None)
        if known[1]:
            self._write_network(network_id)
        else:
            del self._networks[network_id]
            files.remove(f"{self._directory}/{network_id}")

    def _write_network(self, network_id: str) -> None:
        network, members = self._networks[network_id]
        content = {"name": network.name, "internal": network.asked.internal, "members": members}
        self._write(network_id, _encode(content))

    def _write(self, name: str, data: bytes) -> None:
        files.make_directory(self._directory, 0o710)
        path = f"{self._directory}/{name}"
        temporary = f"{path}.new"
        try:
            os.chown(self._directory, -1, _NOBODY)
            files.write(temporary, data.decode(), 0o640)
            os.chown(temporary, -1, _NOBODY)
            os.rename(temporary, path)
        except (OSError, NagayaError):
            files.remove(temporary)
            raise
