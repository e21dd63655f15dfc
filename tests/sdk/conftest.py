"""The original first, which proves the test, then ours."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from clients import have_dockerd
from dockerd import Dockerd
from house import House


@pytest.fixture(scope="module", params=("dockerd", "nagayad"))
def server(request: pytest.FixtureRequest) -> Iterator[Dockerd | House]:
    if request.param == "nagayad":
        with House() as house:
            yield house
        return
    if not have_dockerd():
        pytest.skip("no dockerd here")
    with Dockerd() as peer:
        yield peer
