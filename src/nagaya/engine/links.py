"""`--link CONTAINER[:ALIAS]` (pure): names that one container has for another, in its hosts file and, of the
default bridge, in its environment (docs.docker.com, "Legacy container links").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from nagaya.errors import InvalidArgument

_ALIAS = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,252}")


def parse(text: str) -> tuple[str, str]:
    """(container, alias) of "c:a", "c", or "/c:/own/a" as inspect shows it. Raises InvalidArgument."""
    target, colon, alias = text.partition(":")
    target = target.removeprefix("/")
    alias = alias.rpartition("/")[2] if colon else target
    if not target or not _ALIAS.fullmatch(alias):
        raise InvalidArgument(f"bad format for links: {text}", subject="Links")
    return target, alias


Port = tuple[int, str]  # number and protocol

_NOT_TOLD = ("HOME", "PATH")  # of the other one's environment


def environment(
    owner: str, alias: str, address: str, exposed: Iterable[str], variables: Iterable[str]
) -> Iterator[str]:
    """The variables by which a container finds another: exposed: its ports, "80/tcp"; variables: its own
    environment, which is told, too."""
    word = alias.upper().replace("-", "_")
    # of one number tcp comes first; a name without protocol is tcp's
    ports = sorted(
        {(int(number), protocol or "tcp") for number, _, protocol in (e.partition("/") for e in exposed)},
        key=lambda port: (port[0], port[1] != "tcp"),
    )
    if ports:
        yield f"{word}_PORT={ports[0][1]}://{address}:{ports[0][0]}"
    for first, last in _in_a_row(ports):
        yield from _range(word, address, first, last)
    for number, protocol in ports:
        name = f"{word}_PORT_{number}_{protocol.upper()}"
        yield f"{name}={protocol}://{address}:{number}"
        yield f"{name}_ADDR={address}"
        yield f"{name}_PORT={number}"
        yield f"{name}_PROTO={protocol}"
    yield f"{word}_NAME=/{owner}/{alias}"
    for variable in variables:
        name, equals, _ = variable.partition("=")
        if equals and name not in _NOT_TOLD:
            yield f"{word}_ENV_{variable}"


def _in_a_row(ports: Sequence[Port]) -> Iterator[tuple[Port, Port]]:
    """First and last of each three or more ports that follow on one another, those of one number counted as
    dockerd does: each by itself."""
    start = 0
    while start < len(ports):
        end = start
        while end + 1 < len(ports) and ports[end + 1][0] <= ports[start][0] + end + 1 - start:
            end += 1
        if end > start + 1:
            yield ports[start], ports[end]
            start = end
        start += 1


def _range(word: str, address: str, first: Port, last: Port) -> Iterator[str]:
    name, end = (f"{word}_PORT_{first[0]}_{protocol.upper()}" for _, protocol in (first, last))
    yield f"{name}_START={first[1]}://{address}:{first[0]}"
    yield f"{name}_ADDR={address}"
    yield f"{name}_PROTO={first[1]}"
    yield f"{name}_PORT_START={first[0]}"
    yield f"{end}_END={last[1]}://{address}:{last[0]}"
    yield f"{end}_PORT_END={last[0]}"
