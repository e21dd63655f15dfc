"""Random instructions, read by us and by dockerd: quotes, escapes, variables, arrays.

dockerd reads them as `docker commit --change`, which is its builder's own parser, and quicker than a build.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from clients import have_dockerd
from dockerd import Dockerd
from rawhttp import call

from nagaya.build import changes
from nagaya.errors import InvalidArgument

pytestmark = pytest.mark.root

PIECES = [
    *("a", "b", "=", " ", "  ", "\t", "x=", "y=z", "#", "é", "-", ",", "[", "]", "{", "--f"),
    *("$A", "${A}", "${B:-x}", "${A:+y}", "${C:-$A}", "$", "$1", "$_x", "${"),
    *("\\", "\\\\", "\\$A", '\\"', "\\'", "'", '"'),
]
ARRAYS = ("", '"a"', '"a", "b"', '"$A"', "1", '"a",', '"\\u00e9\\t"')
KEYS = ("Env", "Labels", "Cmd", "Entrypoint", "ExposedPorts", "Volumes", "User", "WorkingDir", "OnBuild")
OWN = {"Env": ["A=1 2", "PATH=/bin:/usr/bin:/sbin:/usr/sbin"], "Cmd": ["x"]}
COUNT = 80


@pytest.fixture(scope="module")
def dockerd() -> Iterator[Dockerd]:
    if not have_dockerd():
        pytest.skip("no dockerd here")
    with Dockerd() as started:
        yield started


def lines(seed: int) -> Iterator[str]:
    chosen = random.Random(seed)

    def words(most: int) -> str:
        return "".join(chosen.choice(PIECES) for _ in range(chosen.randint(1, most)))

    for _ in range(COUNT):
        keyword = chosen.choice(
            ["ENV v=", 'ENV v="', "ENV ", "ENV k ", "LABEL v=", "LABEL ", "CMD ", "ENTRYPOINT ", "USER ",
             "EXPOSE 80 ", "EXPOSE $A", "VOLUME /v", "WORKDIR ", "ONBUILD ", "HEALTHCHECK CMD ", "CMD [",
             "VOLUME ["]
        )  # fmt: skip
        if keyword.endswith("["):
            yield f"{keyword}{chosen.choice(ARRAYS)}]"
        else:
            yield keyword + words(7)


def test_dockerd_reads_the_same(dockerd: Dockerd) -> None:
    body = {"Image": "nagaya/busybox", "Cmd": ["x"], "Env": ["A=1 2"], "HostConfig": {"NetworkMode": "none"}}
    container = call(dockerd.socket, "POST", "/containers/create", body).json["Id"]
    read = 0
    for line in lines(seed=7):
        query = urlencode({"container": container, "changes": line, "pause": "0"})
        answer = call(dockerd.socket, "POST", f"/commit?{query}")
        try:
            ours: dict[str, Any] | None = changes.apply(OWN, [line])
        except InvalidArgument:
            ours = None
        assert (answer.status == 201) == (ours is not None), (line, answer.body)
        if ours is None:
            continue
        image = answer.json["Id"]
        theirs = call(dockerd.socket, "GET", f"/images/{image}/json").json["Config"]
        call(dockerd.socket, "DELETE", f"/images/{image}")
        for key in KEYS:
            if key == "Cmd" and not ours.get(key):
                continue  # what a commit leaves out comes from the container
            assert sorted(theirs.get(key) or ()) == sorted(ours.get(key) or ()), (line, key)
            if key == "Labels":
                assert (theirs.get(key) or {}) == (ours.get(key) or {}), line
        read += 1
    assert COUNT / 3 < read < COUNT  # both kinds were among them
