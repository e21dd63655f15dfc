"""`logs -f` while files of a few lines are rotated away under it: no line is missed, none comes twice."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from house import DOCKER, House

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"
LINES = 5000


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        yield started


@pytest.mark.parametrize("files", [1, 2, 3])
@pytest.mark.parametrize("pause", ["", "[ $((i % 100)) = 0 ] && usleep 1000;"])
def test_every_line_is_followed(house: House, files: int, pause: str) -> None:
    script = f"read x; i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); {pause} done"
    options = ("--log-opt", "max-size=1k", "--log-opt", f"max-file={files}")
    name = f"talks{files}{len(pause)}"
    house.ok("create", "-i", "--name", name, "--network", "none", *options, IMAGE, "sh", "-c", script)
    house.ok("start", name)
    followers = [
        subprocess.Popen(
            house.inside([DOCKER, "logs", "-f", name]), stdout=subprocess.PIPE, env=house.environment
        )
        for _ in range(3)
    ]
    house.ok("exec", name, "sleep", "0.5")  # the followers are there
    house.docker("attach", name, input=b"go\n")
    expected = [f"line {i}" for i in range(LINES)]
    for follower in followers:
        output, _ = follower.communicate(timeout=60)
        assert output.decode().splitlines() == expected
    sizes = [p.stat().st_size for p in (house.root / "containers").glob("*/*-json.log*")]
    assert len(sizes) <= files
    house.ok("rm", "-f", name)


def test_without_a_follower_files_keep_their_size(house: House) -> None:
    options = ("--log-opt", "max-size=4k", "--log-opt", "max-file=2")
    script = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done"
    house.ok("run", "--name", "talks", "--network", "none", *options, IMAGE, "sh", "-c", script)
    sizes = [p.stat().st_size for p in (house.root / "containers").glob("*/*-json.log*")]
    assert len(sizes) == 2
    assert max(sizes) < 24 << 10  # one chunk of output more, at most
    assert house.ok("logs", "talks").splitlines()[-1] == "line 1999"
    house.ok("rm", "talks")
