"""Containers as GET /containers/json lists them, and its filters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nagaya.api.docker.types.filters import Filters
from nagaya.api.docker.types.inspect import mount_points, network_mode, networks
from nagaya.api.docker.types.pruning import PRUNE_FILTERS, criterion
from nagaya.api.docker.types.times import human_duration
from nagaya.engine.model import Container
from nagaya.errors import InvalidArgument, NotFound

Json = dict[str, Any]

STATES = ("created", "running", "paused", "restarting", "removing", "exited", "dead")
FILTERS = frozenset(
    "ancestor before exited expose health id is-task isolation label name network publish since status "
    "volume".split()
)


def summary(container: Container, root: str, now_ns: int) -> Json:
    """One element of the list."""
    return {
        "Id": container.id,
        "Names": ["/" + container.name],
        "Image": container.config.image,
        "ImageID": container.image_digest,
        "Command": command(container),
        "Created": container.created // 1_000_000_000,
        "Ports": ports(container),
        "Labels": dict(container.config.labels),
        "State": container.state,
        "Status": status(container, now_ns),
        "HostConfig": {"NetworkMode": network_mode(container.config)},
        "NetworkSettings": {"Networks": networks(container)},
        "Mounts": mount_points(container, root),
    }


def command(container: Container) -> str:
    """Path and arguments in one line; an argument with a space is quoted."""
    return " ".join([container.path, *(f"'{a}'" if " " in a else a for a in container.args)]).strip()


def ports(container: Container) -> list[Json]:
    """Published ports, then those only exposed; nothing while it does not run."""
    if container.state not in ("running", "paused", "restarting"):
        return []
    result: list[Json] = []
    published: set[str] = set()
    for endpoint in container.endpoints:
        for port in endpoint.ports:
            published.add(f"{port.container_port}/{port.protocol}")
            result.append(
                {
                    "IP": port.host_ip or "0.0.0.0",
                    "PrivatePort": port.container_port,
                    "PublicPort": port.host_port,
                    "Type": port.protocol,
                }
            )
    for text in container.config.exposed_ports:
        if text not in published:
            number, _, protocol = text.partition("/")
            result.append({"PrivatePort": int(number), "Type": protocol})
    return result


def status(container: Container, now_ns: int) -> str:
    """ "Up 5 minutes", "Exited (0) 3 seconds ago", as moby's State.String."""
    state = container.state
    if state == "running":
        return f"Up {human_duration(now_ns - container.started)}{_health(container)}"
    if state == "paused":
        return f"Up {human_duration(now_ns - container.started)} (Paused)"
    if state == "restarting":
        return f"Restarting ({container.exit_code}) {human_duration(now_ns - container.finished)} ago"
    if state == "removing":
        return "Removal In Progress"
    if state == "dead":
        return "Dead"
    if state == "created" or not container.finished:
        return "Created"
    return f"Exited ({container.exit_code}) {human_duration(now_ns - container.finished)} ago"


def _health(container: Container) -> str:
    if container.health is None:
        return ""
    status = container.health.status
    return " (health: starting)" if status == "starting" else f" ({status})"


def select(
    containers: Iterable[Container],
    filters: Filters,
    *,
    everything: bool,
    limit: int,
    images: Mapping[str, str],
) -> list[Container]:
    """The containers that the request means, newest first. `images` maps what an ancestor filter may
    name (references, ids) to image ids. Raises InvalidArgument."""
    filters.check(FILTERS)
    found = sorted(containers, key=lambda c: c.created, reverse=True)
    statuses = filters.values("status")
    for value in statuses:
        if value not in STATES:
            raise InvalidArgument(f"invalid filter 'status={value}': invalid container state")
    codes = set()
    for value in filters.values("exited"):
        try:
            codes.add(int(value))
        except ValueError:
            raise InvalidArgument(f"invalid filter 'exited={value}': not a number") from None
    health = filters.values("health")
    for value in health:
        if value not in ("none", "starting", "healthy", "unhealthy"):
            raise InvalidArgument(f"invalid filter 'health={value}'")
    before = [_named(found, value).created for value in filters.values("before")]
    since = [_named(found, value).created for value in filters.values("since")]
    ancestors = {images.get(value, value) for value in filters.values("ancestor")}
    # of the filters only this one, as in dockerd, looks at stopped containers too
    everything = everything or bool(limit > 0 or statuses)
    chosen: list[Container] = []
    for container in found:
        if not everything and container.state not in ("running", "paused", "restarting"):
            continue
        if statuses and container.state not in statuses:
            continue
        if codes and (container.exit_code not in codes or container.state not in ("exited", "dead")):
            continue
        if health and (container.health.status if container.health else "none") not in health:
            continue
        if any(container.created >= moment for moment in before):
            continue
        if any(container.created <= moment for moment in since):
            continue
        if ancestors and not ancestors & {container.image_digest, container.config.image}:
            continue
        if _matches(container, filters):
            chosen.append(container)
    return chosen[:limit] if limit > 0 else chosen


def _matches(container: Container, filters: Filters) -> bool:
    return (
        filters.matches_any("id", lambda value: container.id.startswith(value))
        and filters.matches_name("name", container.name)
        and filters.matches_labels(container.config.labels)
        and filters.matches_any("network", lambda value: _in_network(container, value))
        and filters.matches_any("volume", lambda value: _has_volume(container, value))
        and filters.matches_any("publish", lambda value: _publishes(container, value))
        and filters.matches_any("expose", lambda value: _exposes(container, value))
        and not any(value in ("true", "1") for value in filters.values("is-task"))
    )


def prunable(filters: Filters, now_ns: int) -> Callable[[Container], bool]:
    """The containers that a prune request means. Raises InvalidArgument."""
    filters.check(PRUNE_FILTERS)
    meant = criterion(filters, now_ns)
    return lambda container: meant(container.created, container.config.labels)


def _named(containers: Iterable[Container], ref: str) -> Container:
    for container in containers:
        if container.name == ref.removeprefix("/") or (ref and container.id.startswith(ref)):
            return container
    raise NotFound(f"No such container: {ref}", subject=ref)


def _in_network(container: Container, value: str) -> bool:
    return any(
        value == name or (value and str(endpoint["NetworkID"]).startswith(value))
        for name, endpoint in networks(container).items()
    )


def _has_volume(container: Container, value: str) -> bool:
    points = container.mount_points or container.config.mounts
    return any(value in (mount.source, mount.target) for mount in points)


def _publishes(container: Container, value: str) -> bool:
    number, _, protocol = value.partition("/")
    return any(
        str(port.get("PublicPort", "")) == number and port["Type"] == (protocol or "tcp")
        for port in ports(container)
    )


def _exposes(container: Container, value: str) -> bool:
    return (value if "/" in value else value + "/tcp") in container.config.exposed_ports
