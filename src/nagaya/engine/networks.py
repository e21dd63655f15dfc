"""A container's places in its networks: from the plans in the ledger to the wire and back.

Order of a start: ports reserved and the endpoints planned (one transaction with the journal's
"start"), namespace pinned by a builder, interfaces and addresses made, ports published. Undone in
the reverse order; every step of that may be repeated, so recovery simply repeats it. Changes of a running
container are in `netchanges`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress

import msgspec

from nagaya.engine import files, names, remap
from nagaya.engine.launch import joined_container
from nagaya.engine.ledger import Ledger
from nagaya.engine.model import Attachment, Container, Endpoint, Network, PortBinding
from nagaya.engine.nettable import PREDEFINED, attachments, has_names, key_of, wired
from nagaya.engine.settings import Settings
from nagaya.engine.world import World
from nagaya.errors import InvalidArgument, KernelError, NagayaError, PermissionDenied
from nagaya.linux.mounts import MNT_DETACH, umount2
from nagaya.network.local import Wanted
from nagaya.network.model import DEFAULT, EndpointPlan, PublishedPort, Subnet
from nagaya.network.service import close_all

log = logging.getLogger(__name__)


def dns_token(container_id: str) -> str:
    """The keeper's token for the sockets of a container's resolver, which its child serves."""
    return f"dns-{container_id}"


async def hold_resolver(world: World, container_id: str, fds: Sequence[int]) -> None:
    """Give the sockets to the keeper; ours are closed."""
    try:
        await world.supervisor.hold(dns_token(container_id), fds)
    finally:
        close_all(fds)


def relay_token(owner: str) -> str:
    """The keeper's token for reserving sockets that its child serves."""
    return f"relay-{owner}"


async def relay(world: World, owner: str, made: Sequence[EndpointPlan]) -> None:
    """Have the reserving sockets of a container (or pod) served that must be, and no other."""
    held = world.supervisor.held
    entries: list[dict[str, object]] = [
        {
            "protocol": port.protocol,
            "host": port.host_ip or "0.0.0.0",
            "port": port.host_port,
            "target": plan.address or plan.address6,
            "target_port": port.container_port,
        }
        for plan in made
        for port in world.network.relayed(plan)
    ]
    token = relay_token(owner)
    if not entries or not held.get(hold_token(owner)):
        if token in held:
            await world.supervisor.unhold(token)
            await world.job(world.names.drop_relay, owner)
        return
    changed = await world.job(world.names.put_relay, owner, entries)
    if token in held:
        if not changed:
            return  # connections go on
        await world.supervisor.unhold(token)
    await world.supervisor.hold(token, held[hold_token(owner)])


async def relay_all(world: World) -> None:
    """The same for everybody: the host's INPUT rules have changed, or a daemon has just started."""
    owners = {token.removeprefix("ports-") for token in world.supervisor.held if token.startswith("ports-")}
    for owner in sorted(owners):
        slot = world.roster.get(owner)
        try:
            if slot is None:
                await relay(world, owner, await world.job(plans, world.ledger, owner))
                continue
            async with slot.lock:
                if slot.container.state in ("running", "paused"):
                    await relay(world, owner, await world.job(plans, world.ledger, owner))
        except NagayaError as error:
            log.error("published ports of %s: %s", owner[:12], error)


def tell_names(world: World, container: Container) -> None:
    """Let the resolver know the container as it is now. Blocking."""
    if world.names.has(container.id) or has_names(e.network for e in container.endpoints):
        servers = container.config.dns or world.settings.dns
        world.names.put(container, world.nets.by_id(), servers)


def hold_token(container_id: str) -> str:
    """The keeper's token for a container's reserving sockets."""
    return f"ports-{container_id}"


def published_ports(container: Container) -> list[PublishedPort]:
    """`-p`, and with `-P` every exposed port that `-p` does not name."""
    wanted = [
        PublishedPort(p.container_port, p.protocol, p.host_ip, p.host_port, p.last_port)
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


def resolve(world: World, container: Container) -> list[tuple[Attachment, Network]]:
    """The networks it will be in, its mode's first. Raises NotFound, InvalidArgument for what the network
    cannot give."""
    mode = world.nets.get(container.config.network_mode)
    found = [(attachment, world.nets.find(attachment.network)) for attachment in wired(container)]
    for attachment, network in found:
        check(attachment, network)
    found.sort(key=lambda pair: pair[1] is not mode)
    return found


def check(attachment: Attachment, network: Network) -> None:
    """Raise InvalidArgument, in dockerd's words, for wishes that this kind of network does not fulfil."""
    if network.id == PREDEFINED[DEFAULT].id:
        if attachment.address or attachment.address6:
            raise InvalidArgument("user specified IP address is supported on user defined networks only")
        if attachment.aliases:
            raise InvalidArgument(
                "network-scoped alias is supported only for containers in user defined networks"
            )
        return
    if network.asked.config_only:
        raise PermissionDenied("cannot create endpoint on configuration-only network")
    asked = [config.subnet for config in network.asked.ipam]
    for address in (attachment.address, attachment.address6):
        if address and not any((":" in subnet) is (":" in address) for subnet in asked if subnet):
            raise InvalidArgument(
                "user specified IP address is supported only when connecting to networks with user "
                "configured subnets"
            )


def chief(found: Sequence[tuple[Attachment, Network]]) -> int:
    """Which of them is the container's way out, and where its ports are published: the highest gateway
    priority, not an internal one, then the first name; -1: none is."""
    ways = [
        (-attachment.gateway_priority, network.asked.internal, network.name, index)
        for index, (attachment, network) in enumerate(found)
    ]
    return min(ways)[3] if ways else -1


def ports_of(container: Container, network: Network) -> list[PublishedPort]:
    """What is to be published there. In a network with IPv6 a port of all addresses is one of both kinds."""
    if network.asked.internal or network.asked.driver != "bridge":
        return []
    default = network.plan.host_ip if network.plan else ""
    found = []
    for port in published_ports(container):
        if not port.host_ip and default:
            found.append(msgspec.structs.replace(port, host_ip=default))
            continue
        if not port.host_ip and not network.asked.ipv4:
            found.append(msgspec.structs.replace(port, host_ip="::"))
            continue
        found.append(port)
        if not port.host_ip and network.asked.ipv6:
            # the same number as IPv4 gets: `reserve` puts it in
            found.append(msgspec.structs.replace(port, host_ip="::", host_port=0, last_port=0))
    return found


def plan(world: World, container: Container) -> tuple[list[EndpointPlan], list[int]]:
    """Decide the endpoints and write them down; returns them with the reserving sockets. Blocking."""
    found = resolve(world, container)
    first = chief(found)
    bound, fds = world.network.reserve(
        ports_of(container, found[first][1]), endpoint=f"{container.name} ({container.id})"
    )
    made: list[EndpointPlan] = []
    try:
        for index, (attachment, network) in enumerate(found):
            made.append(
                world.network.plan(
                    names.new_id(),
                    bound if index == first else (),
                    network=key_of(network),
                    wanted=wanted(attachment, f"eth{index}", default_route=index == first),
                )
            )
        write(world, container.id, made)
        files.make_directory(os.path.dirname(world.settings.netns(container.id)), 0o700)
    except BaseException:
        close_all(fds)
        for one in made:
            world.network.disconnect(one)
        raise
    return made, fds


def wanted(attachment: Attachment, interface: str, *, default_route: bool) -> Wanted:
    """An attachment as the network room is asked for it."""
    return Wanted(attachment.address, attachment.address6, attachment.mac, interface, default_route)


def write(world: World, container_id: str, made: Iterable[EndpointPlan]) -> None:
    """Put endpoints into the ledger; joins an open transaction. Raises AlreadyExists: an address is taken."""
    made = tuple(made)
    with world.ledger.write() as db:
        rewrite(world, container_id, made)
        db.executemany(
            "INSERT INTO addresses(network, address, owner) VALUES(?,?,?)",
            [(m.network, a, container_id) for m in made for a in (m.address, m.address6) if a],
        )


def rewrite(world: World, container_id: str, made: Iterable[EndpointPlan]) -> None:
    """Change what the ledger says of endpoints that keep their addresses; joins an open transaction."""
    with world.ledger.write() as db:
        db.executemany(
            "INSERT OR REPLACE INTO endpoints(container, network, document) VALUES(?,?,?)",
            [(container_id, m.network, msgspec.json.encode(m)) for m in made],
        )


def forget(world: World, container_id: str, network: str) -> None:
    """Take an endpoint out of the ledger; joins an open transaction."""
    with world.ledger.write() as db:
        db.execute("DELETE FROM endpoints WHERE container=? AND network=?", (container_id, network))
        db.execute("DELETE FROM addresses WHERE owner=? AND network=?", (container_id, network))


def connect(
    world: World, container: Container, made: Sequence[EndpointPlan], netlink_fd: int
) -> tuple[Endpoint, ...]:
    """Carry the plans out; the netlink socket is closed. Blocking."""
    try:
        for one in made:
            world.network.connect(one, world.settings.netns(container.id), netlink_fd)
    finally:
        os.close(netlink_fd)
    world.journal.point("start: connected")
    for one in made:
        world.network.publish(one)
    world.journal.point("start: published")
    return tuple(endpoint(world, one) for one in made)


def endpoint(world: World, made: EndpointPlan) -> Endpoint:
    """A plan as the APIs see it."""
    network = world.nets.of_key(made.network)
    return Endpoint(
        network=network.name,
        network_id=network.id,
        endpoint_id=made.endpoint_id,
        address=made.address,
        prefix=made.prefix,
        gateway=made.gateway,
        mac=made.mac,
        host_interface=made.host_interface,
        ports=tuple(PortBinding(p.container_port, p.protocol, p.host_ip, p.host_port) for p in made.ports),
        address6=made.address6,
        prefix6=made.prefix6,
        gateway6=made.gateway6,
    )


def tell(world: World, container: Container, action: str) -> None:
    """The networks' events of a container that came or went: "connect", "disconnect"."""
    for attachment in attachments(container):
        network = world.nets.get(attachment.network)
        if network is not None:
            tell_of(world, network, action, container=container.id)


def tell_of(world: World, network: Network, action: str, **attributes: str) -> None:
    """An event of a network."""
    world.bus.publish(
        "network", action, network.id, {**attributes, "name": network.name, "type": network.asked.driver}
    )


def traffic(world: World, container: Container) -> list[dict[str, object]]:
    """What its interfaces received and sent, as `events --stats` names it; of a container that joined
    another's network, that one's. Blocking. Raises KernelError."""
    joined = joined_container(container.config.network_mode)
    slot = world.roster.get(joined) if joined else None
    owner = slot.container if slot is not None else container
    found = []
    for index, place in enumerate(owner.endpoints):
        if not place.host_interface:  # a macvlan is counted nowhere but inside
            continue
        counted = world.network.counters(place.host_interface)
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
    world.names.drop(container_id)
    world.names.drop_relay(container_id)
    unpin_all(world.settings, container_id)
    with world.ledger.write() as db:
        db.execute("DELETE FROM endpoints WHERE container=?", (container_id,))
        db.execute("DELETE FROM addresses WHERE owner=?", (container_id,))


def unpin_all(settings: Settings, container_id: str) -> None:
    """Let its pinned network namespace go, and the user namespace that owns it. May be repeated."""
    pin = settings.netns(container_id)
    unpin(pin)
    unpin(remap.pin(pin))


def unpin(pin: str) -> None:
    """Let a pinned namespace go. May be repeated."""
    with suppress(KernelError):
        umount2(pin, MNT_DETACH)
    with suppress(FileNotFoundError):
        os.unlink(pin)
    with suppress(OSError):
        os.rmdir(os.path.dirname(pin))


def documents(world: World) -> list[dict[str, object]]:
    """All networks as Docker's Network resource."""
    members = _members(world)
    return [document(world, network, members.get(network.id, {})) for network in world.nets]


def document(world: World, network: Network, members: dict[str, dict[str, str]]) -> dict[str, object]:
    """One of them. members: the containers in it, by their ids."""
    asked = network.asked
    return {
        "Name": network.name,
        "Id": network.id,
        "Created": network.created,
        "Scope": "local",
        "Driver": asked.driver,
        "EnableIPv4": asked.ipv4,
        "EnableIPv6": asked.ipv6,
        "IPAM": {
            "Driver": asked.ipam_driver,
            "Options": asked.ipam_options,
            "Config": _ipam(world, network),
        },
        "Internal": asked.internal,
        "Attachable": asked.attachable,
        "Ingress": False,
        "ConfigFrom": {"Network": asked.config_from},
        "ConfigOnly": asked.config_only,
        "Containers": members,
        "Options": {"com.docker.network.bridge.name": world.settings.bridge}
        if network.id == PREDEFINED[DEFAULT].id
        else dict(asked.options),
        "Labels": dict(asked.labels),
    }


def _ipam(world: World, network: Network) -> list[dict[str, object]]:
    """Its subnets: as they were asked for, with what we chose."""
    if network.id == PREDEFINED[DEFAULT].id:
        try:
            subnets = world.network.subnets()
        except NagayaError:
            return []  # no free pool: the bridge cannot be made, but can be listed
        return [{"Subnet": str(subnet.network), "Gateway": subnet.gateway} for subnet in subnets]
    found: list[dict[str, object]] = []
    chosen: dict[int, Subnet] = {s.network.version: s for s in (network.plan.subnets if network.plan else ())}
    for config in network.asked.ipam:
        if config.subnet:
            version = 6 if ":" in config.subnet else 4
            shown: dict[str, object] = {"Subnet": config.subnet}
            if config.ip_range:
                shown["IPRange"] = config.ip_range
            if version in chosen:
                shown["Gateway"] = chosen.pop(version).gateway
            elif config.gateway:
                shown["Gateway"] = config.gateway
            if config.auxiliary:
                shown["AuxiliaryAddresses"] = dict(config.auxiliary)
            found.append(shown)
    return found + [{"Subnet": str(s.network), "Gateway": s.gateway} for s in chosen.values()]


def _members(world: World) -> dict[str, dict[str, dict[str, str]]]:
    found: dict[str, dict[str, dict[str, str]]] = {}
    for slot in world.roster:
        for place in slot.container.endpoints:
            found.setdefault(place.network_id, {})[slot.container.id] = {
                "Name": slot.container.name,
                "EndpointID": place.endpoint_id,
                "MacAddress": place.mac,
                "IPv4Address": f"{place.address}/{place.prefix}" if place.address else "",
                "IPv6Address": f"{place.address6}/{place.prefix6}" if place.address6 else "",
            }
    return found
