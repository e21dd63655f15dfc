"""/networks: reading. Changing them is a later issue (docs/docker-api.md)."""

from __future__ import annotations

from collections.abc import Mapping

from nagaya.api.docker.respond import json_response
from nagaya.api.docker.types.filters import Filters
from nagaya.api.http.messages import Request, Response
from nagaya.api.http.router import Route
from nagaya.engine.service import EngineService
from nagaya.errors import InvalidArgument, NotFound

_FILTERS = frozenset({"driver", "id", "label", "name", "scope", "type", "dangling"})


async def listing(engine: EngineService, request: Request) -> Response:
    """GET /networks"""
    filters = Filters.parse(request.get("filters"))
    filters.check(_FILTERS)
    for kind in filters.values("type"):
        if kind not in ("builtin", "custom"):
            raise InvalidArgument(f"invalid filter: 'type'='{kind}'")
    return json_response([network for network in engine.networks() if _matches(network, filters)])


def _matches(network: Mapping[str, object], filters: Filters) -> bool:
    name, number = str(network.get("Name", "")), str(network.get("Id", ""))
    labels = network.get("Labels")
    return (
        filters.matches_any("name", lambda value: value in name)
        and filters.matches_any("id", lambda value: value in number)
        and filters.matches_any("driver", lambda value: value == network.get("Driver"))
        and filters.matches_any("scope", lambda value: value == network.get("Scope", "local"))
        and filters.matches_any("type", lambda value: value == "builtin")
        and filters.matches_labels(
            {str(k): str(v) for k, v in labels.items()} if isinstance(labels, Mapping) else {}
        )
        and filters.boolean("dangling") is not True
    )


async def inspect(engine: EngineService, request: Request) -> Response:
    """GET /networks/{id}"""
    ref = request.params["id"]
    networks = engine.networks()
    for network in networks:
        if ref in (network.get("Name"), network.get("Id")):
            return json_response(network)
    found = [network for network in networks if str(network.get("Id", "")).startswith(ref)]
    if len(found) == 1:
        return json_response(found[0])
    if found:
        raise InvalidArgument(f"network {ref} is ambiguous ({len(found)} matches found based on ID prefix)")
    raise NotFound(f"network {ref} not found", subject=ref)


ROUTES = (
    Route("GET", "/networks", listing),
    Route("GET", "/networks/{id}", inspect),
)
