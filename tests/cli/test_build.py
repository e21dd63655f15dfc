"""`build`: the same Dockerfiles with every pair of client and daemon."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from clients import Cli, Said
from dockerd import Dockerd
from house import House

Servers = Callable[[str], "Dockerd | House"]

pytestmark = pytest.mark.root

BASE = "FROM nagaya/busybox\n"


def build(cli: Cli, *words: str, input: bytes = b"") -> Said:
    """A build without a network, by the classic builder's API: neither daemon has BuildKit."""
    return cli("build", "--network", "none", *words, input=input, environment={"DOCKER_BUILDKIT": "0"})


def built(cli: Cli, *words: str) -> str:
    """stdout of one that must succeed."""
    said = build(cli, *words)
    assert said.status == 0, said
    return said.out.removesuffix("\n")


def context(path: Path, dockerfile: str, **files: str) -> str:
    (path / "Dockerfile").write_text(BASE + dockerfile)
    for name, text in files.items():
        (path / name).write_text(text)
    return str(path)


def test_an_image_with_a_name(cli: Cli, tmp_path: Path) -> None:
    place = context(tmp_path, "ARG v=1\nRUN echo $v > /v\nCOPY f /f\nLABEL a=b\nCMD cat /v /f\n", f="file\n")
    said = built(cli, "-t", "b:1", "-t", "b:2", "--build-arg", "v=2", "--label", "c=d", place)
    assert "Step 1/7 : FROM nagaya/busybox" in said and "Successfully tagged b:2" in said
    assert cli.ok("run", "--rm", "--network", "none", "b:1") == "2\nfile"
    (about,) = json.loads(cli.ok("inspect", "b:2"))
    assert about["Config"]["Labels"] == {"a": "b", "c": "d"}
    again = built(cli, "-t", "b:3", "--build-arg", "v=2", "--label", "c=d", place)
    assert again.count("Using cache") == 6
    assert json.loads(cli.ok("inspect", "b:3"))[0]["Id"] == about["Id"]
    other = built(cli, "--no-cache", "--build-arg", "v=3", place)
    assert "Using cache" not in other
    cli.ok("rmi", "b:1", "b:2", "b:3")


def test_quiet_and_the_id_in_a_file(cli: Cli, tmp_path: Path) -> None:
    place = context(tmp_path, "RUN true\n")
    ids = tmp_path.parent / f"{tmp_path.name}.iid"
    said = built(cli, "-q", "--iidfile", str(ids), place)
    assert said == ids.read_text().strip() and said.startswith("sha256:")
    ids.unlink()


def test_a_command_that_fails(cli: Cli, tmp_path: Path) -> None:
    said = build(cli, context(tmp_path, "RUN echo so; exit 7\n"))
    assert said.status == 7 and "so\n" in said.out
    assert "The command '/bin/sh -c echo so; exit 7' returned a non-zero code: 7" in said.err


@pytest.mark.parametrize(
    ("dockerfile", "why"),
    [
        ("FOO x\n", "dockerfile parse error line 2: unknown instruction: FOO"),
        ("ENV a=1 b\n", 'Syntax error - can\'t find = in "b". Must be of the form: name=value'),
        ("COPY nosuch /\n", "file not found in build context or excluded by .dockerignore"),
        ("COPY --from=0 x /\n", "invalid from flag value 0: refers to current build stage"),
        ("EXPOSE x\n", "Invalid containerPort: x"),
    ],
)
def test_a_mistake(cli: Cli, tmp_path: Path, dockerfile: str, why: str) -> None:
    said = build(cli, context(tmp_path, dockerfile))
    assert said.status == 1 and why in said.err, said


def test_dockerfiles_from_elsewhere(cli: Cli, tmp_path: Path) -> None:
    place = tmp_path / "context"
    place.mkdir()
    context(place, "RUN false\n", f="1\n")
    other = tmp_path / "other"
    other.write_text(f"{BASE}COPY . /c\nRUN : {cli.name}; ls -A /c\n")
    assert "\nDockerfile\nf\n" in built(cli, "-f", str(other), str(place))
    piped = build(cli, "-", input=f"{BASE}RUN : {cli.name}; echo by stdin\n".encode())
    assert piped.status == 0 and "by stdin" in piped.out, piped
    said = cli(
        "build",
        "--network",
        "none",
        "-f",
        "-",
        str(place),
        input=f"{BASE}COPY . /e\nRUN : {cli.name}; ls -A /e\n".encode(),
    )
    assert said.status == 0 and "\nDockerfile\nf\n" in said.out, said
    said = build(cli, str(tmp_path / "nosuch"))
    assert said.status == 1 and "unable to prepare context: path" in said.err
    said = build(cli, "-f", str(tmp_path / "nosuch"), str(place))
    assert said.status == 1 and "no such file or directory" in said.err


def test_what_dockerignore_leaves(cli: Cli, tmp_path: Path) -> None:
    place = context(tmp_path, f"COPY . /c\nRUN : {cli.name}; cd /c && find . | sort\n", a="", b="")
    (tmp_path / "d").mkdir()
    for name in ("x", "y"):
        (tmp_path / "d" / name).write_text("")
    (tmp_path / ".dockerignore").write_text("a\nd\n!d/y\nDockerfile\n.dockerignore\n")
    said = built(cli, place)
    assert "\n.\n./b\n./d\n./d/y\n" in said, said


def test_target(cli: Cli, tmp_path: Path) -> None:
    place = context(tmp_path, "FROM nagaya/busybox AS one\nRUN echo 1\nFROM nagaya/busybox\nRUN false\n")
    assert "Successfully built" in built(cli, "--target", "one", place)
    assert build(cli, "--target", "nosuch", place).status == 1


# what only ours has


@pytest.fixture
def own(servers: Servers) -> Cli:
    return Cli(servers("nagayad"), "nagaya")


def test_a_terminal_shows_a_line_for_each_step(own: Cli, tmp_path: Path) -> None:
    place = context(tmp_path, "RUN echo words; true\nRUN echo more; false\n")
    said = build(own, "--progress", "tty", place)
    assert said.status == 1 and "[2/3] RUN echo words; true" in said.out
    assert said.out.endswith("RUN echo more; false\x1b[0m\nmore\n"), said
    assert "returned a non-zero code: 1" in said.err


def test_secrets_and_agents_leave_no_trace(own: Cli, tmp_path: Path) -> None:
    place = tmp_path / "c"
    place.mkdir()
    (place / "Dockerfile").write_text(
        f"{BASE}RUN --mount=type=secret,id=s,required cat /run/secrets/s | md5sum\n"
        "RUN --mount=type=secret,id=t,env=T,required --mount=type=ssh,required"
        " echo $T | md5sum; test -S $SSH_AUTH_SOCK && ls /run/buildkit\n"
        "RUN ls -R /run; env\n"
    )
    (tmp_path / "s").write_text("hush-1")
    agent = tmp_path / "agent"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(agent))
        words = (
            "--secret",
            f"id=s,src={tmp_path}/s",
            "--secret",
            "id=t,env=HUSH",
            "--ssh",
            f"default={agent}",
        )
        said = own(
            "build", "--network", "none", "-t", "quiet", *words, str(place), environment={"HUSH": "hush-2"}
        )
    assert said.status == 0, said
    assert hashlib.md5(b"hush-1").hexdigest() in said.out
    assert hashlib.md5(b"hush-2\n").hexdigest() in said.out
    last = said.out[said.out.index("Step 4/4") :]
    assert "hush" not in said.out and "SSH_AUTH_SOCK" not in last and "ssh_agent" not in last
    assert "hush" not in own.ok("history", "--no-trunc", "quiet") + own.ok("inspect", "quiet")
    server = own.server
    assert isinstance(server, House)
    traces = subprocess.run(["grep", "-rlE", "hush-[12]", server.base], capture_output=True, text=True)
    assert traces.stdout == ""
    said = own("build", "--no-cache", "--network", "none", str(place))
    assert said.status == 1 and "secret s: not found" in said.err


def test_insecure_commands_have_to_be_allowed(own: Cli, tmp_path: Path) -> None:
    place = context(tmp_path, "RUN --security=insecure grep Seccomp: /proc/self/status\n")
    said = build(own, place)
    assert said.status == 1 and "security.insecure is not allowed" in said.err
    assert "Seccomp:\t0" in built(own, "--allow", "security.insecure", place)


def test_files_instead_of_an_image(own: Cli, tmp_path: Path) -> None:
    before = own.ok("images", "-qa")
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY f /d/f\n")
    (tmp_path / "f").write_text("1")
    (tmp_path / ".dockerignore").write_text("out*\n")
    built(own, "-o", str(tmp_path / "out"), str(tmp_path))
    assert (tmp_path / "out" / "d" / "f").read_text() == "1"
    assert (tmp_path / "out" / "d" / "f").stat().st_uid == os.geteuid()
    built(own, "-o", f"type=tar,dest={tmp_path}/out.tar", str(tmp_path))
    shutil.unpack_archive(tmp_path / "out.tar", tmp_path / "out2")
    assert (tmp_path / "out2" / "d" / "f").read_text() == "1"
    assert own.ok("images", "-qa") == before
    built(own, "-t", "stays", str(tmp_path))
    built(own, "-o", "-", str(tmp_path))  # makes the same image
    assert own.ok("images", "-q", "stays")
