"""Links, of which an API of old can take one away."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from clients import Cli, have_dockerd
from dockerd import Dockerd
from house import House

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"


@pytest.fixture(params=("dockerd", "nagayad"))
def linking(request: pytest.FixtureRequest) -> Iterator[Dockerd | House]:
    """A daemon with a default bridge, the original first."""
    if request.param == "nagayad":
        with House() as house:
            yield house
        return
    if not have_dockerd():
        pytest.skip("no dockerd here")
    with Dockerd(bip="10.231.88.1/24") as peer:
        yield peer


def test_a_link_is_removed(linking: Dockerd | House) -> None:
    cli = Cli(linking, "docker")
    cli.ok("run", "-d", "--name", "peer", IMAGE, "sleep", "600")
    cli.ok("run", "-d", "--name", "box", "--link", "peer:alias", IMAGE, "sleep", "600")
    assert "alias" in cli.ok("exec", "box", "cat", "/etc/hosts")
    cli.ok("rm", "--link", "/box/alias")
    assert cli.ok("inspect", "-f", "{{.HostConfig.Links}}", "box") in ("[]", "<no value>")
    assert cli("rm", "--link", "/box/alias").status == 1
    cli.ok("rm", "-f", "box", "peer")
