"""The networks that there are: bridge, host and none, and those in the ledger's facts (area "network")."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import msgspec

from nagaya.engine.ledger import Ledger
from nagaya.engine.model import Attachment, Container, Network, NetworkCreation
from nagaya.errors import InvalidArgument, NotFound
from nagaya.network.model import DEFAULT

if TYPE_CHECKING:
    from nagaya.network.model import NetworkPlan

_AREA = "network"
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Network).decode


def network_id(name: str) -> str:
    """The fixed id of a predefined network: 64 hexadecimal digits that spell its name."""
    return name.encode().hex().ljust(64, "0")


PREDEFINED = {
    name: Network(network_id(name), time.time_ns(), NetworkCreation(name, driver))
    for name, driver in (("bridge", "bridge"), ("host", "host"), ("none", "null"))
}


class NetworkTable:
    """All networks. Lives on the event loop; `find` may be called from anywhere."""

    def __init__(self, *, ipv6: bool = False) -> None:
        """ipv6: has the default bridge IPv6?"""
        self._networks = {network.id: network for network in PREDEFINED.values()}
        default = PREDEFINED[DEFAULT]
        asked = msgspec.structs.replace(default.asked, ipv6=ipv6)
        self._networks[default.id] = msgspec.structs.replace(default, asked=asked)

    def load(self, ledger: Ledger) -> None:
        """Read those of the ledger. Blocking."""
        for (document,) in ledger.read("SELECT document FROM facts WHERE area=?", (_AREA,)):
            network = _decode(document if isinstance(document, bytes) else str(document))
            self._networks[network.id] = network

    def __iter__(self) -> Iterator[Network]:
        return iter(tuple(self._networks.values()))

    def add(self, network: Network) -> None:
        """One whose row is written."""
        self._networks[network.id] = network

    def discard(self, network_id: str) -> None:
        """One whose row is gone."""
        self._networks.pop(network_id, None)

    def by_id(self) -> dict[str, Network]:
        """All of them by their ids."""
        return dict(self._networks)

    def named(self, name: str) -> Network | None:
        """The network of that name."""
        return next((n for n in self if n.name == name), None)

    def get(self, ref: str) -> Network | None:
        """By name or whole id."""
        return self._networks.get(ref) or self.named(ref)

    def find(self, ref: str) -> Network:
        """By id, name, or unambiguous id prefix, as Docker resolves it. Raises NotFound, InvalidArgument."""
        found = self._networks.get(ref) or self.named("bridge" if ref == "default" else ref)
        if found is None and ref:
            matches = [n for n in self if n.id.startswith(ref)]
            if len(matches) > 1:
                raise InvalidArgument(
                    f"network {ref} is ambiguous ({len(matches)} matches found based on ID prefix)"
                )
            found = matches[0] if matches else None
        if found is None:
            raise NotFound(f"network {ref} not found", subject=ref)
        return found

    def of_key(self, key: str) -> Network:
        """By the key that the network room and the ledger's rows have for it. Raises NotFound."""
        return self.find(DEFAULT if key == DEFAULT else key)

    def plans(self) -> list[NetworkPlan]:
        """Those that users made, for the network room."""
        return [network.plan for network in self if network.plan is not None]


def key_of(network: Network) -> str:
    """What the network room and the ledger's rows call it."""
    return DEFAULT if network.id == PREDEFINED[DEFAULT].id else network.id


def put(ledger: Ledger, network: Network) -> None:
    """Write a network's row; joins an open transaction."""
    with ledger.write() as db:
        db.execute(
            "INSERT INTO facts(area, key, document) VALUES(?,?,?)", (_AREA, network.id, _encode(network))
        )


def delete(ledger: Ledger, network_id: str) -> None:
    """Forget it; joins an open transaction. May be repeated."""
    with ledger.write() as db:
        db.execute("DELETE FROM facts WHERE area=? AND key=?", (_AREA, network_id))


def attachments(container: Container) -> tuple[Attachment, ...]:
    """The networks that the container belongs to, by its wish or by what was changed since."""
    if container.networks is not None:
        return container.networks
    mode = container.config.network_mode
    if mode.startswith("container:"):
        return ()
    return container.config.networks or (
        Attachment("bridge" if mode in ("default", "") else mode, links=container.config.links),
    )


def wired(container: Container) -> tuple[Attachment, ...]:
    """Those that need an interface."""
    return tuple(a for a in attachments(container) if a.network not in ("none", "host"))


def has_names(network_names: Iterable[str]) -> bool:
    """Do containers in these networks know one another by name? Only in users' networks."""
    return any(name not in PREDEFINED for name in network_names)
