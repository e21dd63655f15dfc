"""What nagaya has and docker has not: `explain`, one line for an error, and how it behaves on a terminal."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from clients import Cli
from fakeregistry import file, tar
from house import House
from images import Registry, busybox_layers, write_layout
from imagetrees import free_port
from parcels import docker_archive, packed

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        yield started


@pytest.fixture
def nagaya(house: House) -> Iterator[Cli]:
    """The command. Whatever containers a test leaves are removed."""
    found = Cli(house, "nagaya")
    yield found
    left = found("ps", "-aq").out.split()
    if left:
        found("rm", "-f", *left)


def test_explain_draws_the_start(nagaya: Cli) -> None:
    nagaya.ok("run", "-d", "--name", "box", "--memory", "64m", IMAGE, "sleep", "600")
    lines = nagaya.ok("explain", "box").splitlines()
    axis, *steps, total = lines
    assert re.fullmatch(r" +0 +[\d.]+ ms", axis)
    rooms = {line.split()[0] for line in steps}
    assert {"engine", "network", "builder"} <= rooms
    assert all("█" in line or re.search("[▏▎▍▌▋▊▉]", line) for line in steps)
    assert re.search("builder +pivot_root", "\n".join(steps))
    assert re.fullmatch(r"[\d.]+ ms from first to last step, [\d.]+ ms of it in steps", total)
    assert "\x1b" not in "".join(lines)


def test_explain_fits_the_terminal(nagaya: Cli) -> None:
    nagaya.ok("run", "--name", "box", IMAGE, "true")
    with nagaya.terminal("explain", "box", columns=70) as person:
        assert person.wait() == 0
        seen = person.seen.decode()
    assert "\x1b[" in seen  # a colour for each room
    plain = re.sub(r"\x1b\[\d+m", "", seen).splitlines()
    assert len(plain) > 5 and max(map(len, plain)) <= 70


def test_explain_for_machines(nagaya: Cli) -> None:
    identity = nagaya.ok("run", "-d", "--name", "box", IMAGE, "sleep", "600")
    for flags in (("--json",), ("--format", "json")):
        shown = json.loads(nagaya.ok("explain", *flags, "box"))
        assert (shown["Id"], shown["Name"]) == (identity, "/box")
        assert len(shown["Steps"]) > 10
        for step in shown["Steps"]:
            assert set(step) == {"Room", "Name", "Detail", "StartNs", "DurationNs"}
            assert step["StartNs"] > 0 and step["DurationNs"] >= 0


def test_explain_where_there_is_nothing_to_tell(nagaya: Cli) -> None:
    nagaya.ok("create", "--name", "idle", IMAGE)
    assert nagaya.ok("explain", "idle").startswith("no steps are known")
    assert nagaya("explain", "nosuch") == (
        1, "", "Error response from daemon: No such container: nosuch\n",
    )  # fmt: skip


def test_errors_are_one_line(nagaya: Cli) -> None:
    for words in (
        ("run", IMAGE, "nosuchprogram"),
        ("run", "--memory", "1k", IMAGE),
        ("start", "nosuch"),
        ("inspect", "nosuch"),
        ("pull", "a//b"),
        ("logs", "nosuch"),
        ("exec", "nosuch", "true"),
        ("ps", "--filter", "nosuch=1"),
        ("ps", "--format", "{{.Nosuch"),
        ("inspect", "-f", "{{.Nosuch.Field.Deep}}", IMAGE),
        ("attach", "nosuch"),
        ("-H", "nosuch", "ps"),
    ):
        said = nagaya(*words)
        assert said.status in (1, 125, 127), (words, said)
        assert said.err.count("\n") == 1 and "Traceback" not in said.err, (words, said)


def test_detach_keys_are_checked_before_anything_is_made(nagaya: Cli) -> None:
    said = nagaya("run", "--detach-keys", "ctrl-nosuch", IMAGE, "true")
    assert said.status == 125 and "invalid detach keys" in said.err
    assert nagaya.ok("ps", "-aq") == ""


def test_a_pipe_whose_reader_has_gone(nagaya: Cli) -> None:
    with nagaya.background("run", "--rm", IMAGE, "sh", "-c", "while :; do echo y || exit; done") as run:
        assert run.line() == "y"
        assert run.process.stdout is not None
        run.process.stdout.close()
        run.process.stdout = None
        assert run.process.wait(60) == 141
        assert run.process.stderr is not None and run.process.stderr.read() == b""


def test_a_pull_on_a_terminal_draws_bars(nagaya: Cli, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    write_layout(layout, busybox_layers(), {"Cmd": ["sh"]})
    with Registry(tmp_path / "registry", nagaya.server.inside([]), port=5001) as registry:
        reference = registry.push(f"oci:{layout}:latest", "bars:1")
        with nagaya.terminal("pull", reference, columns=120) as person:
            assert person.wait() == 0
            seen = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", person.seen.decode())
    assert "Pulling from bars" in seen and seen.count("Pull complete") >= 3
    assert f"Status: Downloaded newer image for {reference}" in seen
    assert seen.rstrip().endswith(reference)


def test_docker_s_nouns(nagaya: Cli) -> None:
    nagaya.ok("container", "create", "--name", "box", IMAGE)
    assert nagaya.ok("container", "ls", "-a", "--format", "{{.Names}}") == "box"
    assert nagaya.ok("image", "ls", "-q", IMAGE) == nagaya.ok("images", "-q", IMAGE)
    said = nagaya("image", "inspect", "box")
    assert said.status == 1 and "o such image: box" in said.err
    assert nagaya.ok("container", "rm", "box") == "box"
    assert nagaya("image", "nosuch").status == 1


def test_version_and_info(nagaya: Cli) -> None:
    both = json.loads(nagaya.ok("version", "--format", "json"))
    assert both["Client"]["Version"] == both["Server"]["Version"]
    assert nagaya.ok("version", "-f", "{{.Server.ApiVersion}}") == both["Server"]["ApiVersion"]
    facts = json.loads(nagaya.ok("info", "-f", "json"))
    assert facts["DefaultRuntime"] == "nagaya" and "nagaya" in facts["Runtimes"]
    text = nagaya.ok("info")
    assert "Default Runtime: nagaya" in text and "Storage Driver: overlay2" in text
    nagaya.ok("create", IMAGE)
    assert nagaya.ok("info", "-f", "{{.Containers}} {{.ContainersRunning}}") == "1 0"


def test_the_tree_of_layers(nagaya: Cli, tmp_path: Path) -> None:
    base, top = tar(file("base", bytes(5000))), tar(file("top", bytes(300)))
    for name, layers in (("tree:1", (base,)), ("tree:2", (base, top))):
        path = tmp_path / "archive.tar"
        path.write_bytes(packed(docker_archive(*layers, tags=[name])))
        nagaya.ok("load", "-i", str(path))
    lines = nagaya.ok("image", "ls", "--tree").splitlines()
    assert lines[0].split() == ["LAYER", "SIZE", "IMAGE"] and re.fullmatch(
        r"\d+ images, \d+ layers, .*B", lines[-1]
    )
    (first,) = [n for n, line in enumerate(lines) if line.endswith("tree:1")]
    assert "5kB" in lines[first] and lines[first + 1].endswith("tree:2") and "300B" in lines[first + 1]
    said = nagaya("images", "--tree", "-q")
    assert said.status != 0 and "--tree" in said.err
    nagaya.ok("rmi", "tree:1", "tree:2")


def test_system_prune_takes_what_nothing_needs(house: House) -> None:
    house.ok("run", "--name", "ended", "-v", "/anonymous", "nagaya/busybox", "true")
    house.ok("network", "create", "unused")
    house.ok("volume", "create", "named")
    asked = house.nagaya("system", "prune", "--volumes", input=b"n\n")
    assert asked.returncode == 0 and b"- all stopped containers" in asked.stdout
    assert house.ok("ps", "-aq")
    done = house.nagaya("system", "prune", "-f", "--volumes")
    assert done.returncode == 0, done
    said = done.stdout.decode()
    for heading in (
        "Deleted Containers:",
        "Deleted Networks:\nunused",
        "Deleted Volumes:",
        "Total reclaimed space: ",
    ):
        assert heading in said
    assert house.ok("ps", "-aq") == "" and house.ok("volume", "ls", "-q") == "named"
    house.ok("volume", "rm", "named")


def test_bars_of_a_load_and_a_push(nagaya: Cli, tmp_path: Path) -> None:
    path = tmp_path / "archive.tar"
    layer = tar(file("big", os.urandom(3 << 20)))
    path.write_bytes(packed(docker_archive(layer, tags=["bars:1"])))
    with nagaya.terminal("load", "-i", str(path)) as person:
        assert person.wait() == 0
        seen = person.seen.decode()
    assert "Loading layer" in seen and "Loaded image: bars:1" in seen and "\x1b[" in seen
    with Registry(tmp_path / "registry", nagaya.server.inside([]), port=free_port()) as registry:
        name = f"{registry.address}/bars:1"
        nagaya.ok("tag", "bars:1", name)
        for status in ("Pushed", "Layer already exists"):
            with nagaya.terminal("push", name) as person:
                assert person.wait() == 0
                seen = person.seen.decode()
            assert status in seen, seen
            assert re.search(r"1: digest: sha256:[0-9a-f]{64} size: ", seen), seen
            assert "aux" not in seen
    nagaya.ok("rmi", name, "bars:1")
