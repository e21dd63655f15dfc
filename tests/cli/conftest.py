"""The same conversations with every pair of client and daemon: first the original (which proves the
test), then ours with two real docker clients and with the nagaya command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from clients import Cli, available, have_dockerd
from dockerd import Dockerd
from house import House

PAIRS = ("dockerd-docker", "nagayad-docker", "nagayad-docker20", "nagayad-nagaya")

Servers = Callable[[str], "Dockerd | House"]


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    """Daemons by name, started when first asked for, ended with the module."""
    with ExitStack() as stack:
        running: dict[str, Dockerd | House] = {}

        def get(name: str) -> Dockerd | House:
            if name not in running:
                started: Dockerd | House = House() if name == "nagayad" else Dockerd()
                running[name] = started
                stack.enter_context(started)
            return running[name]

        yield get


@pytest.fixture
def cli(pair: str, servers: Servers) -> Iterator[Cli]:
    """One of PAIRS. Whatever containers a test leaves are removed."""
    daemon, client = pair.split("-")
    if not available(client) or (daemon == "dockerd" and not have_dockerd()):
        pytest.skip(f"no {pair} here")
    found = Cli(servers(daemon), client)
    yield found
    left = found("ps", "-aq").out.split()
    if left:
        found("rm", "-f", "-v", *left)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cli" in metafunc.fixturenames:
        metafunc.parametrize("pair", PAIRS, scope="module")
