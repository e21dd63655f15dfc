"""Whose ids a remapped container's are."""

from __future__ import annotations

import pytest

from nagaya.engine import remap
from nagaya.engine.model import Container, ContainerConfig
from nagaya.engine.settings import Range, Remap, Settings
from nagaya.errors import FailedPrecondition, InvalidArgument

SUBUID = """
# a comment
mia:100000:1000
bob:200000:65536
mia:500000:64536
1000:7:0
"""
MIA = (Range(0, 100000, 1000), Range(1000, 500000, 64536))
SETTINGS = Settings("/root", "/run", remap=Remap(MIA, MIA))


def test_the_ranges_of_a_user_are_one_line_of_ids() -> None:
    assert remap.ranges(SUBUID, "mia", 5) == MIA
    assert remap.ranges(SUBUID, "nobody", 1000) == ()
    assert remap.ranges("12:5:6", "x", 12) == (Range(0, 5, 6),)


def test_in_and_out() -> None:
    for inside, outside in ((0, 100000), (999, 100999), (1000, 500000)):
        assert remap.outside(MIA, inside) == outside
        assert remap.inside(MIA, outside) == inside
    assert remap.inside(MIA, 0) == 65534
    with pytest.raises(InvalidArgument, match="has no id 65536"):
        remap.outside(MIA, 65536)


@pytest.mark.parametrize(
    ("value", "said"),
    (("nobody-at-all", "no user 'nobody-at-all'"), ("root:no-group", "no group 'no-group'")),
)
def test_a_user_that_is_not_there(value: str, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        remap.read(value)


def test_who_has_none() -> None:
    assert remap.read("") is None
    assert remap.of(SETTINGS, ContainerConfig("i")) == SETTINGS.remap
    assert remap.of(SETTINGS, ContainerConfig("i", userns_mode="host")) is None
    assert remap.of(Settings("/root", "/run"), ContainerConfig("i")) is None


def test_the_user_namespace_of_what_is_joined() -> None:
    mine = ContainerConfig("i")
    peer = Container("a" * 64, "peer", mine, pid=7)
    assert remap.joined(SETTINGS, mine, {}, "") == ""
    assert remap.joined(SETTINGS, mine, {}, "/run/ns/x/net") == "/run/ns/x/user"
    assert remap.joined(SETTINGS, mine, {"peer": peer}, "") == "/proc/7/ns/user"
    peer.config = ContainerConfig("i", userns_mode="host")
    with pytest.raises(FailedPrecondition, match="--userns=host"):
        remap.joined(SETTINGS, mine, {"peer": peer}, "")
