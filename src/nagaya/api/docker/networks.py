"""/networks: reading, making, removing, and plugging containers in and out."""

from __future__ import annotations

import time
from collections.abc import Mapping

from nagaya.api.docker.respond import json_response
from nagaya.api.docker.types.filters import Filters
from nagaya.api.docker.types.networks import (
    ConnectBody,
    CreateNetworkBody,
    DisconnectBody,
    attachment,
    creation,
)
from nagaya.api.docker.types.structs import EndpointBody, decode_body
from nagaya.api.docker.types.times import parse_timestamp, rfc3339_nano
from nagaya.api.http.messages import Request, Response
from nagaya.api.http.router import Route
from nagaya.engine.model import Network
from nagaya.engine.service import EngineService
from nagaya.errors import InvalidArgument, NotFound

_FILTERS = frozenset({"driver", "id", "label", "name", "scope", "type", "dangling"})
_PRUNE_FILTERS = frozenset({"until", "label", "label!"})
_PREDEFINED = ("bridge", "host", "none")


async def listing(engine: EngineService, request: Request) -> Response:
    """GET /networks"""
    filters = Filters.parse(request.get("filters"))
    filters.check(_FILTERS)
    for kind in filters.values("type"):
        if kind not in ("builtin", "custom"):
            raise InvalidArgument(f"invalid filter: 'type'='{kind}'")
    # the list does not tell who is in it: dockerd asks for that one by one
    hidden = request.version >= (1, 28)
    return json_response(
        [
            _shown(network) | ({"Containers": {}} if hidden else {})
            for network in engine.networks()
            if _matches(network, filters)
        ]
    )


def _shown(network: Mapping[str, object]) -> dict[str, object]:
    return {**network, "Created": rfc3339_nano(int(str(network["Created"])))}


def _matches(network: Mapping[str, object], filters: Filters) -> bool:
    name, number = str(network.get("Name", "")), str(network.get("Id", ""))
    labels = network.get("Labels")
    kind = "builtin" if name in _PREDEFINED else "custom"
    dangling = filters.boolean("dangling")
    return (
        filters.matches_any("name", lambda value: value in name)
        and filters.matches_any("id", lambda value: value in number)
        and filters.matches_any("driver", lambda value: value == network.get("Driver"))
        and filters.matches_any("scope", lambda value: value == network.get("Scope", "local"))
        and filters.matches_any("type", lambda value: value == kind)
        and filters.matches_labels(
            {str(k): str(v) for k, v in labels.items()} if isinstance(labels, Mapping) else {}
        )
        and (dangling is None or dangling is (kind == "custom" and not network.get("Containers")))
    )


def _find(engine: EngineService, ref: str) -> Mapping[str, object]:
    networks = engine.networks()
    for network in networks:
        if ref in (network.get("Name"), network.get("Id")):
            return network
    found = [network for network in networks if str(network.get("Id", "")).startswith(ref)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InvalidArgument(f"network {ref} is ambiguous ({len(found)} matches found based on ID prefix)")
    raise NotFound(f"network {ref} not found", subject=ref)


async def inspect(engine: EngineService, request: Request) -> Response:
    """GET /networks/{id}"""
    return json_response(_shown(_find(engine, request.params["id"])))


async def create(engine: EngineService, request: Request) -> Response:
    """POST /networks/create"""
    body = decode_body(await request.body(), CreateNetworkBody)
    made = await engine.create_network(creation(body))
    return json_response({"Id": made.id, "Warning": ""}, 201)


async def remove(engine: EngineService, request: Request) -> Response:
    """DELETE /networks/{id}"""
    await engine.remove_network(request.params["id"])
    return Response(204)


async def prune(engine: EngineService, request: Request) -> Response:
    """POST /networks/prune"""
    filters = Filters.parse(request.get("filters"))
    filters.check(_PRUNE_FILTERS)
    until = [parse_timestamp(text, "until", time.time_ns()) for text in filters.values("until")]

    def wanted(network: Network) -> bool:
        labels = network.asked.labels
        excluded = bool(filters.values("label!")) and filters.matches_labels(labels, "label!")
        return (
            all(network.created < moment for moment in until)
            and filters.matches_labels(labels)
            and not excluded
        )

    return json_response({"NetworksDeleted": await engine.prune_networks(wanted) or None})


async def connect(engine: EngineService, request: Request) -> Response:
    """POST /networks/{id}/connect"""
    body = decode_body(await request.body(), ConnectBody)
    if not body.Container:
        raise InvalidArgument("no container was named", subject="Container")
    ref = request.params["id"]
    wish = attachment(ref, body.EndpointConfig or EndpointBody(), "EndpointConfig.")
    await engine.connect_network(ref, body.Container, wish)
    return Response(200, content_type=b"")


async def disconnect(engine: EngineService, request: Request) -> Response:
    """POST /networks/{id}/disconnect"""
    body = decode_body(await request.body(), DisconnectBody)
    if not body.Container:
        raise InvalidArgument("no container was named", subject="Container")
    await engine.disconnect_network(request.params["id"], body.Container, force=bool(body.Force))
    return Response(200, content_type=b"")


ROUTES = (
    Route("GET", "/networks", listing),
    Route("POST", "/networks/create", create),
    Route("POST", "/networks/prune", prune),
    Route("GET", "/networks/{id}", inspect),
    Route("DELETE", "/networks/{id}", remove),
    Route("POST", "/networks/{id}/connect", connect),
    Route("POST", "/networks/{id}/disconnect", disconnect),
)
