"""`nagaya ps`: the containers."""

from __future__ import annotations

from nagaya.cli.flags import Flag
from nagaya.cli.output import (
    ago,
    ellipsis,
    filters,
    go_quote,
    human_size,
    label_fields,
    local_time,
    rows,
    short_id,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS]"
SUMMARY = "List containers"
FLAGS = (
    Flag("all", "Show all containers, not only running ones", short="a"),
    Flag("filter", "Show those that match: status=exited, name=web, label=a=b", short="f", kind="list"),
    Flag("format", "table, json, or a Go template", kind="text"),
    Flag("last", "Show the newest N containers in any state", short="n", kind="int", default=-1),
    Flag("latest", "Show the newest container in any state", short="l"),
    Flag("no-trunc", "Do not shorten"),
    Flag("quiet", "Show ids only", short="q"),
    Flag("size", "Show sizes of the files", short="s"),
)
ARGS = (0, 0)

_COLUMNS = (
    ("ID", "CONTAINER ID"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("RunningFor", "CREATED"),
    ("Status", "STATUS"),
    ("Ports", "PORTS"),
    ("Names", "NAMES"),
)
_OTHERS = {
    "CreatedAt": "CREATED AT",
    "State": "STATE",
    "Size": "SIZE",
    "Labels": "LABELS",
    "Mounts": "MOUNTS",
    "Networks": "NETWORKS",
    "LocalVolumes": "LOCAL VOLUMES",
}


def run(given: Given, client: Client) -> int:
    """Print one line a container."""
    last = 1 if given["latest"] else given["last"]
    query = {
        "all": given["all"],
        "limit": last if last > 0 else None,
        "size": given["size"] or ".Size" in given["format"],
        "filters": filters(given["filter"]),
    }
    containers = client.call("GET", "/containers/json", query)
    if given["quiet"]:
        for item in containers:
            print(item["Id"] if given["no-trunc"] else short_id(item["Id"]))
        return 0
    columns = (*_COLUMNS, ("Size", "SIZE")) if given["size"] else _COLUMNS
    rows([row(item, full=given["no-trunc"]) for item in containers], columns, given["format"], _OTHERS)
    return 0


def row(item: Mapping[str, Any], *, full: bool) -> dict[str, Any]:
    """The fields of one container, under docker's names."""
    command = item.get("Command", "")
    size = human_size(item.get("SizeRw") or 0)
    if item.get("SizeRootFs"):
        size += f" (virtual {human_size(item['SizeRootFs'])})"
    names = [name.removeprefix("/") for name in item.get("Names") or ()]
    mounts = [mount.get("Name") or mount.get("Source", "") for mount in item.get("Mounts") or ()]
    return {
        "ID": item["Id"] if full else short_id(item["Id"]),
        "Image": item.get("Image") or "<no image>",
        "Command": go_quote(command if full else ellipsis(command, 20)),
        "CreatedAt": local_time(item.get("Created", 0)),
        "RunningFor": ago(item.get("Created", 0)),
        "Ports": ports(item.get("Ports") or ()),
        "State": item.get("State", ""),
        "Status": item.get("Status", ""),
        "Size": size,
        "Names": ",".join(names),
        **label_fields(item.get("Labels") or {}),
        "Mounts": ",".join(mounts if full else [ellipsis(m, 15) for m in mounts]),
        "LocalVolumes": str(sum(mount.get("Driver") == "local" for mount in item.get("Mounts") or ())),
        "Networks": ",".join(sorted((item.get("NetworkSettings") or {}).get("Networks") or ())),
    }


def ports(items: Sequence[Mapping[str, Any]]) -> str:
    """ "0.0.0.0:90-91->90-91/udp, 80/tcp, 0.0.0.0:8080->81/tcp": neighbours that keep their number become a
    range, those published under another number stand alone at the end, as docker has it."""
    alone: list[str] = []
    done: list[str] = []
    groups: dict[tuple[str, str], list[int]] = {}  # (address, protocol): first and last port

    def text(key: tuple[str, str], first: int, last: int) -> str:
        inner = str(first) if first == last else f"{first}-{last}"
        return f"{_host(key[0])}:{inner}->{inner}/{key[1]}" if key[0] else f"{inner}/{key[1]}"

    def order(port: Mapping[str, Any]) -> tuple[Any, ...]:
        return (port["PrivatePort"], port.get("IP", ""), port.get("PublicPort", 0), port["Type"])

    for port in sorted(items, key=order):
        address, public, private = port.get("IP", ""), port.get("PublicPort", 0), port["PrivatePort"]
        if address and public != private:
            alone.append(f"{_host(address)}:{public}->{private}/{port['Type']}")
            continue
        key = (address, port["Type"])
        if key in groups and private == groups[key][1] + 1:
            groups[key][1] = private
            continue
        if key in groups:
            done.append(text(key, *groups[key]))
            groups[key][:] = [private, private]
        else:
            groups[key] = [private, private]
    return ", ".join([*done, *(text(key, *ends) for key, ends in groups.items()), *alone])


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address
