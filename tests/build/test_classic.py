"""`docker build` by the classic builder, with the real docker command: what comes out, what is cached, what
is refused and how, what stays."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from building import build, run, work_left
from house import House

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        yield started


def config(house: House, image: str) -> dict[str, object]:
    """The configuration of an image."""
    document = json.loads(house.docker("image", "inspect", image).stdout)[0]
    found = document["Config"]
    assert isinstance(found, dict)
    return found


FIRST = {
    "a.txt": "hello\n",
    "Dockerfile": """FROM nagaya/busybox
COPY a.txt /app/
RUN cat /app/a.txt && echo two >/app/two && echo oops >&2
WORKDIR /app/x
ENV A=b
CMD ["cat", "/app/two"]
""",
}


def test_a_build_is_an_image_that_runs(house: House, tmp_path: Path) -> None:
    said = build(house, tmp_path, FIRST, "-t", "first").stdout
    assert re.search(r"Step 1/6 : FROM nagaya/busybox\n ---> [0-9a-f]{12}\n", said)
    assert re.search(r"Step 3/6 : RUN cat .*\n ---> Running in ([0-9a-f]{12})\nhello\n", said)
    assert re.search(r"Removing intermediate container [0-9a-f]{12}\n ---> [0-9a-f]{12}\n", said)
    assert "\x1b[91moops" in said
    assert re.search(r"Successfully built [0-9a-f]{12}\nSuccessfully tagged first:latest\n", said)
    assert run(house, "first") == "two\n"
    assert config(house, "first")["WorkingDir"] == "/app/x"
    assert work_left(house) == [] and house.leaks() == []


def test_the_same_again_is_cached_and_the_same_image(house: House, tmp_path: Path) -> None:
    first = build(house, tmp_path, FIRST, "-q").stdout
    again = build(house, tmp_path, FIRST, "-t", "again").stdout
    assert again.count("---> Using cache") == 5 and "Running in" not in again
    assert house.docker("image", "inspect", "-f", "{{.Id}}", "again").stdout.decode() == first
    assert build(house, tmp_path, FIRST, "--no-cache").stdout.count("Using cache") == 0


def test_what_a_step_reads_decides_and_not_when_it_was_written(house: House, tmp_path: Path) -> None:
    build(house, tmp_path, FIRST)
    (tmp_path / "a.txt").touch()
    assert build(house, tmp_path, {}).stdout.count("Using cache") == 5
    assert build(house, tmp_path, {"a.txt": "other\n"}).stdout.count("Using cache") == 0
    (tmp_path / "a.txt").chmod(0o700)
    assert build(house, tmp_path, {}).stdout.count("Using cache") == 0


def test_a_changed_line_is_built_from_there_on(house: House, tmp_path: Path) -> None:
    lines = "FROM nagaya/busybox\nRUN echo 1 >/one\nENV A={}\nRUN echo $A >/two\nCOPY a.txt /\n"
    build(house, tmp_path, {"a.txt": "x", "Dockerfile": lines.format(1)})
    said = build(house, tmp_path, {"Dockerfile": lines.format(2)}, "-t", "changed").stdout
    assert said.count("Using cache") == 1
    assert run(house, "changed", "cat", "/two") == "2\n"


def test_a_failed_command_says_so_and_what_came_before_is_kept(house: House, tmp_path: Path) -> None:
    lines = "FROM nagaya/busybox\nRUN echo kept >/kept\nRUN exit 3\n"
    failed = build(house, tmp_path, {"Dockerfile": lines}, ok=False)
    assert "The command '/bin/sh -c exit 3' returned a non-zero code: 3" in failed.stderr
    assert failed.returncode == 3
    assert "Using cache" in build(house, tmp_path, {"Dockerfile": lines}, ok=False).stdout
    assert work_left(house) == [] and house.leaks() == []


def test_a_quiet_build_that_fails_tells_all(house: House, tmp_path: Path) -> None:
    failed = build(
        house, tmp_path, {"Dockerfile": "FROM nagaya/busybox\nRUN echo why; exit 4\n"}, "-q", ok=False
    )
    assert failed.returncode == 4 and "\nwhy\n" in failed.stderr and failed.stdout == ""


def test_a_dockerfile_that_is_none(house: House, tmp_path: Path) -> None:
    wrong = build(house, tmp_path, {"Dockerfile": "FROM nagaya/busybox\nFOO bar\n"}, ok=False)
    assert "unknown instruction: FOO" in wrong.stderr
    missing = build(house, tmp_path, {"Dockerfile": "FROM nagaya/busybox\nCOPY no /x\n"}, ok=False)
    assert (
        "COPY failed: file not found in build context or excluded by .dockerignore: "
        "stat no: file does not exist" in missing.stderr
    )
    outside = build(house, tmp_path, {"Dockerfile": "FROM nagaya/busybox\nCOPY ../x /x\n"}, ok=False)
    assert "COPY failed: forbidden path outside the build context: ../x ()" in outside.stderr
    assert work_left(house) == []


def test_from_scratch_and_nothing(house: House, tmp_path: Path) -> None:
    nothing = build(house, tmp_path, {"Dockerfile": "FROM scratch\n"}, ok=False)
    assert "No image was generated. Is your Dockerfile empty?" in nothing.stderr
    build(house, tmp_path, {"Dockerfile": "FROM scratch\nLABEL a=b\n"}, "-t", "labels")
    assert config(house, "labels")["Labels"] == {"a": "b"}
    build(house, tmp_path, {"Dockerfile": "FROM scratch\nWORKDIR /made\n"}, "-t", "made")
    assert json.loads(house.docker("image", "inspect", "made").stdout)[0]["RootFS"]["Layers"]


def test_stages_and_targets(house: House, tmp_path: Path) -> None:
    lines = """ARG BASE=nagaya/busybox
FROM $BASE AS one
ARG WHAT=default
RUN echo $WHAT >/made
FROM $BASE AS never
RUN exit 9
FROM scratch AS two
COPY --from=one /made /bin/busybox /out/
FROM two
COPY --from=one /made /second
"""
    build(house, tmp_path, {"Dockerfile": lines}, "-t", "staged", "--build-arg", "WHAT=given")
    assert run(house, "staged", "/out/busybox", "cat", "/out/made", "/second") == "given\ngiven\n"
    failed = build(house, tmp_path, {}, "--target", "never", ok=False)
    assert failed.returncode == 9
    unknown = build(house, tmp_path, {}, "--target", "none", ok=False)
    assert 'target stage "none" could not be found' in unknown.stderr


def test_dockerignore_counts_here_too(house: House, tmp_path: Path) -> None:
    files = {
        ".dockerignore": "secret*\n!secret.public\ndir/*.log\n",
        "secret.key": "x",
        "secret.public": "x",
        "dir/a.log": "x",
        "dir/b": "x",
        "Dockerfile": "FROM nagaya/busybox\nCOPY . /all/\n",
    }
    build(house, tmp_path, files, "-t", "ignoring")
    found = run(house, "ignoring", "find", "/all", "-type", "f").split()
    assert sorted(found) == ["/all/.dockerignore", "/all/Dockerfile", "/all/dir/b", "/all/secret.public"]


def test_the_build_cache_is_shown_and_goes(house: House, tmp_path: Path) -> None:
    build(house, tmp_path, {"Dockerfile": "FROM nagaya/busybox\nRUN echo gone >/gone\n"})
    shown = json.loads(house.curl("/system/df?type=build-cache"))["BuildCache"]
    record = next(found for found in shown if "echo gone" in found["Description"])
    assert record["Size"] == 5 and record["Type"] == "regular" and not record["InUse"]
    pruned = house.docker("builder", "prune", "-a", "-f").stdout.decode()
    assert "Total" in pruned
    assert json.loads(house.curl("/system/df?type=build-cache"))["BuildCache"] == []
    assert "Using cache" not in build(house, tmp_path, {}).stdout


def test_buildkit_is_refused_with_the_way_out(house: House, tmp_path: Path) -> None:
    answer = house.curl("/build?version=2", "-X", "POST")
    assert b"DOCKER_BUILDKIT=0" in answer
