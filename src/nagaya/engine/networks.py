"""A container's place in the default bridge network: from the plan in the ledger to the wire and back.

Order of a start: ports reserved and the endpoint planned (one transaction with the journal's
"start"), namespace pinned by a builder, interface and addresses made, ports published. Undone in
the reverse order; every step of that may be repeated, so recovery simply repeats it.
"""

from __future__ import annotations

import os
from contextlib import suppress

import msgspec

from nagaya.engine import files, names
from nagaya.engine.launch import joined_container
from nagaya.engine.ledger import Ledger
from nagaya.engine.model import Container, Endpoint, PortBinding
from nagaya.engine.world import World
from nagaya.errors import KernelError, NagayaError
from nagaya.linux.mounts import MNT_DETACH, umount2
from nagaya.network.model import EndpointPlan, PublishedPort
from nagaya.network.service import close_all

NETWORK = "bridge"


def wants_bridge(container: Container) -> bool:
    """Does the container live in the bridge network?"""
    return container.config.network_mode in ("default", "bridge", "")


def hold_token(container_id: str) -> str:
    """The keeper's token for a container's reserving sockets."""
    return f"ports-{container_id}"


def published_ports(container: Container) -> list[PublishedPort]:
    """`-p`, and with `-P` every exposed port that `-p` does not name."""
    wanted = [
        PublishedPort(
            p.container_port, "sctp" if p.protocol == "sctp" else p.protocol, p.host_ip, p.host_port
        )
        for p in container.config.ports
    ]
    if container.config.publish_all:
        named = {(p.container_port, p.protocol) for p in wanted}
        for exposed in container.config.exposed_ports:
            number, _, protocol = exposed.partition("/")
            if number.isdigit() and (int(number), protocol or "tcp") not in named:
                match protocol:
                    case "" | "tcp":
                        wanted.append(PublishedPort(int(number)))
                    case "udp" | "sctp":
                        wanted.append(PublishedPort(int(number), protocol))
    return wanted


def plans(ledger: Ledger, container_id: str = "") -> list[EndpointPlan]:
    """The endpoints in the ledger, of one container or all."""
    if container_id:
        rows = ledger.read("SELECT document FROM endpoints WHERE container=?", (container_id,))
    else:
        rows = ledger.read("SELECT document FROM endpoints")
    return [msgspec.json.decode(d if isinstance(d, bytes) else str(d), type=EndpointPlan) for (d,) in rows]


def plan(world: World, container: Container) -> tuple[EndpointPlan, list[int]]:
    """Decide the endpoint and write it down; returns it with the reserving sockets. Blocking."""
    network = world.network
    bound, fds = network.reserve(published_ports(container), endpoint=f"{container.name} ({container.id})")
    try:
        made = network.plan(names.new_id(), (), bound)
        with world.ledger.write() as db:
            db.execute(
                "INSERT OR REPLACE INTO endpoints(container, network, document) VALUES(?,?,?)",
                (container.id, NETWORK, msgspec.json.encode(made)),
            )
            db.execute(
                "INSERT INTO addresses(network, address, owner) VALUES(?,?,?)",
                (NETWORK, made.address, container.id),
            )
        files.make_directory(os.path.dirname(world.settings.netns(container.id)), 0o700)
    except BaseException:
        close_all(fds)
        raise
    return made, fds


def connect(world: World, container: Container, made: EndpointPlan, netlink_fd: int) -> Endpoint:
    """Carry the plan out; the netlink socket is closed. Blocking."""
    try:
        world.network.connect(made, world.settings.netns(container.id), netlink_fd)
    finally:
        os.close(netlink_fd)
    world.journal.point("start: connected")
    world.network.publish(made)
    world.journal.point("start: published")
    return endpoint(made)


def endpoint(made: EndpointPlan) -> Endpoint:
    """A plan as the APIs see it."""
    return Endpoint(
        network=NETWORK,
        network_id=network_id(NETWORK),
        endpoint_id=made.endpoint_id,
        address=made.address,
        prefix=made.prefix,
        gateway=made.gateway,
        mac=made.mac,
        host_interface=made.host_interface,
        ports=tuple(PortBinding(p.container_port, p.protocol, p.host_ip, p.host_port) for p in made.ports),
    )


def network_id(name: str) -> str:
    """The fixed id of a predefined network: 64 hexadecimal digits that spell its name."""
    return name.encode().hex().ljust(64, "0")


def traffic(world: World, container: Container) -> list[dict[str, object]]:
    """What its interfaces received and sent, as `events --stats` names it; of a container that joined
    another's network, that one's. Blocking. Raises KernelError."""
    joined = joined_container(container.config.network_mode)
    slot = world.roster.get(joined) if joined else None
    owner = slot.container if slot is not None else container
    found = []
    for index, endpoint in enumerate(owner.endpoints):
        counted = world.network.counters(endpoint.host_interface)
        if counted is None:
            continue
        counters: dict[str, object] = {"Name": f"eth{index}"}
        for word, way in zip(("Rx", "Tx"), counted, strict=True):
            counters |= {
                f"{word}Bytes": way.bytes,
                f"{word}Packets": way.packets,
                f"{word}Errors": way.errors,
                f"{word}Dropped": way.dropped,
            }
        found.append(counters)
    return found


def take_down(world: World, container_id: str) -> None:
    """Undo everything of the container's network but the keeper's sockets. Blocking; may be repeated."""
    for made in plans(world.ledger, container_id):
        world.network.unpublish(made)
        world.network.disconnect(made)
    unpin(world.settings.netns(container_id))
    with world.ledger.write() as db:
        db.execute("DELETE FROM endpoints WHERE container=?", (container_id,))
        db.execute("DELETE FROM addresses WHERE owner=?", (container_id,))


def unpin(pin: str) -> None:
    """Let a pinned namespace go. May be repeated."""
    with suppress(KernelError):
        umount2(pin, MNT_DETACH)
    with suppress(FileNotFoundError):
        os.unlink(pin)
    with suppress(OSError):
        os.rmdir(os.path.dirname(pin))


def documents(world: World) -> list[dict[str, object]]:
    """bridge, host and none as Docker's Network resource."""
    config: list[dict[str, str]] = []
    try:
        subnet = world.network.subnet()
        config = [{"Subnet": str(subnet.network), "Gateway": subnet.gateway}]
    except NagayaError:
        pass  # no free pool: the bridge cannot be made, but can be listed
    found: list[dict[str, object]] = []
    for name, driver in (("bridge", "bridge"), ("host", "host"), ("none", "null")):
        found.append(
            {
                "Name": name,
                "Id": network_id(name),
                "Created": "1970-01-01T00:00:00Z",
                "Scope": "local",
                "Driver": driver,
                "EnableIPv4": True,
                "EnableIPv6": False,
                "IPAM": {
                    "Driver": "default",
                    "Options": None,
                    "Config": config if name == "bridge" else [],
                },
                "Internal": False,
                "Attachable": False,
                "Ingress": False,
                "ConfigFrom": {"Network": ""},
                "ConfigOnly": False,
                "Containers": _members(world) if name == "bridge" else {},
                "Options": {"com.docker.network.bridge.name": world.settings.bridge}
                if name == "bridge"
                else {},
                "Labels": {},
            }
        )
    return found


def _members(world: World) -> dict[str, dict[str, str]]:
    return {
        slot.container.id: {
            "Name": slot.container.name,
            "EndpointID": endpoint.endpoint_id,
            "MacAddress": endpoint.mac,
            "IPv4Address": f"{endpoint.address}/{endpoint.prefix}",
            "IPv6Address": "",
        }
        for slot in world.roster
        for endpoint in slot.container.endpoints
    }
