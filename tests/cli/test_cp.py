"""Files between a container and this machine."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from clients import Cli

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"
SCRIPT = "mkdir -p /d/sub; echo one > /d/f; echo two > /d/sub/g; ln -s f /d/link; ln -s /d /dl; sleep 600"


@pytest.fixture
def box(cli: Cli) -> str:
    cli.ok("run", "-d", "--name", "box", "--network", "none", IMAGE, "sh", "-c", SCRIPT)
    while cli("exec", "box", "test", "-L", "/dl").status:
        pass
    return "box"


def tree(top: Path) -> dict[str, str]:
    return {
        str(p.relative_to(top)): f"-> {p.readlink()}"
        if p.is_symlink()
        else ""
        if p.is_dir()
        else p.read_text()
        for p in sorted(top.rglob("*"))
    }


DIRECTORY = {"f": "one\n", "link": "-> f", "sub": "", "sub/g": "two\n"}


def below(name: str) -> dict[str, str]:
    return {name: "", **{f"{name}/{inner}": text for inner, text in DIRECTORY.items()}}


def test_out_of_a_container(cli: Cli, box: str, tmp_path: Path) -> None:
    (tmp_path / "z").mkdir()
    cli.ok("cp", "box:/d/f", f"{tmp_path}/z")
    cli.ok("cp", "box:/d/f", f"{tmp_path}/z/renamed")
    assert tree(tmp_path / "z") == {"f": "one\n", "renamed": "one\n"}
    cli.ok("cp", "box:/d/sub/g", f"{tmp_path}/z/renamed")
    assert (tmp_path / "z/renamed").read_text() == "two\n"
    for name, source, place, found in (
        ("a", "/d", "", below("d")),
        ("b", "/d", "/new", below("new")),
        ("c", "/d/.", "", DIRECTORY),
        ("e", "/d/.", "/new", below("new")),
        ("f", "/dl", "", {"dl": "-> /d"}),
        ("g", "/dl/", "", below("dl")),
    ):
        (tmp_path / name).mkdir()
        cli.ok("cp", f"box:{source}", f"{tmp_path}/{name}{place}")
        assert tree(tmp_path / name) == found, (source, place)
    (tmp_path / "h").mkdir()
    cli.ok("cp", "-L", "box:/d/link", f"{tmp_path}/h")
    assert tree(tmp_path / "h") == {"link": "one\n"}
    cli.ok("cp", "-L", "box:/dl", f"{tmp_path}/h")
    assert tree(tmp_path / "h")["dl/f"] == "one\n"


def test_into_a_container(cli: Cli, box: str, tmp_path: Path) -> None:
    (tmp_path / "s/sub").mkdir(parents=True)
    (tmp_path / "s/f").write_text("mine\n")
    (tmp_path / "s/sub/g").write_text("deep\n")
    (tmp_path / "s/link").symlink_to("f")
    os.chmod(tmp_path / "s/f", 0o750)
    show = ("exec", "box", "sh", "-c", 'cd "$0" && find . | sort | tr "\\n" " "')
    cli.ok("cp", f"{tmp_path}/s", "box:/tmp")
    assert cli.ok(*show, "/tmp/s") == ". ./f ./link ./sub ./sub/g "
    cli.ok("cp", f"{tmp_path}/s", "box:/tmp/new")
    cli.ok("cp", f"{tmp_path}/s/.", "box:/tmp/other")
    assert cli.ok(*show, "/tmp/new") == cli.ok(*show, "/tmp/other") == ". ./f ./link ./sub ./sub/g "
    cli.ok("cp", f"{tmp_path}/s/f", "box:/dl/sub/")
    cli.ok("cp", f"{tmp_path}/s/f", "box:/dl/named")
    assert cli.ok("exec", "box", "cat", "/d/sub/f", "/d/named") == "mine\nmine"
    assert cli.ok("exec", "box", "stat", "-c", "%a %u %g", "/d/named") == "750 0 0"
    cli.ok("cp", "-L", f"{tmp_path}/s/link", "box:/tmp/followed")
    assert cli.ok("exec", "box", "cat", "/tmp/followed") == "mine"


def test_streams(cli: Cli, box: str) -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        member = tarfile.TarInfo("streamed")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    cli.ok("cp", "-", "box:/tmp", input=made.getvalue())
    assert cli.ok("exec", "box", "cat", "/tmp/streamed") == "abc"
    back = cli("cp", "box:/tmp/streamed", "-")
    with tarfile.open(fileobj=io.BytesIO(back.out.encode())) as tar:
        assert tar.getnames() == ["streamed"]


def test_mistakes(cli: Cli, box: str, tmp_path: Path) -> None:
    for source, target, says in (
        ("box:/a", "box:/b", "copying between containers is not supported"),
        ("/a", "/b", "must specify at least one container source"),
        ("box:/nosuch", "/tmp", "Could not find the file /nosuch in container box"),
        ("box:/d", f"{tmp_path}/no/x", f'invalid output path: directory "{tmp_path}/no" does not exist'),
        (f"{tmp_path}/no", "box:/tmp", "no such file or directory"),
        ("/bin/", "box:/d/f", "cannot copy directory"),
        ("/bin/sh", "box:/new/", "no such directory"),
        ("-", "box:/d/f", 'destination "box:/d/f" must be a directory'),
        ("/bin/sh", "nosuch:/x", "No such container: nosuch"),
    ):
        said = cli("cp", source, target)
        assert said.status == 1 and said.out == "", (source, target, said)
        assert says in said.err or cli.name == "docker20", (source, target, said)


def test_what_was_copied_is_told_on_a_terminal(cli: Cli, box: str, tmp_path: Path) -> None:
    with cli.terminal("cp", "box:/d/f", str(tmp_path)) as person:
        assert person.wait() == 0
        if cli.name == "docker20":  # it says nothing
            assert person.seen == b""
            return
        assert f"Successfully copied 2.05kB to {tmp_path}\r\n".encode() in person.seen
    with cli.terminal("cp", str(tmp_path / "f"), "box:/tmp") as person:
        assert person.wait() == 0
        assert b"Successfully copied 2.05kB to box:/tmp\r\n" in person.seen
