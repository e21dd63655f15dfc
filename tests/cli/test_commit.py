"""Images of containers and of archives, by the command line."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from changes_table import CHANGES, REFUSED
from clients import Cli
from dockerd import Dockerd
from fakeregistry import file, member, tar

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"
SCRIPT = """
echo hi > /new; mkdir /d; ln /new /d/hard; rm /etc/group; rm -r /var/spool; mkfifo /p; chmod 700 /home
rm -r /usr; mkdir /usr; echo 1 > /usr/x; chown 7:8 /d; ln -s x /d/link; mkdir /empty; chmod 4755 /d/hard
touch -d @1000000000 /d/hard
"""


def config(cli: Cli, image: str) -> dict[str, Any]:
    found = json.loads(cli.ok("inspect", image))[0]["Config"]
    return {key: value for key, value in found.items() if value not in (None, "", [], {}, False)}


def layer(cli: Cli, image: str, path: Path) -> dict[str, tarfile.TarInfo]:
    """The members of the image's top layer."""
    cli.ok("save", "-o", str(path), image)
    with tarfile.open(path) as archive:
        manifest = archive.extractfile("manifest.json")
        assert manifest is not None
        data = archive.extractfile(json.load(manifest)[0]["Layers"][-1])
        assert data is not None
        with tarfile.open(fileobj=io.BytesIO(data.read())) as inner:
            return {info.name: info for info in inner}


def test_commit(cli: Cli, tmp_path: Path) -> None:
    cli.ok(
        "run", "--name", "box", "--network", "none", "-e", "A=1", "--label", "l=1", IMAGE, "sh", "-c", SCRIPT
    )
    image = cli.ok("commit", "-a", "me", "-m", "words", "box", "com:1")
    assert image.startswith("sha256:")
    about = json.loads(cli.ok("inspect", "com:1"))[0]
    assert (about["Id"], about["Author"], about["Comment"]) == (image, "me", "words")
    assert len(about["RootFS"]["Layers"]) == 2
    found = config(cli, "com:1")
    assert "A=1" in found["Env"] and found["Labels"] == {"l": "1"} and found["Cmd"][:2] == ["sh", "-c"]
    line = cli.ok("history", "--no-trunc", "--format", "{{.Comment}}|{{.CreatedBy}}", "com:1").splitlines()[0]
    assert line.startswith("words|sh -c")
    members = layer(cli, "com:1", tmp_path / "c.tar")
    assert {name.removeprefix("./") for name in members} == {
        *("d", "d/hard", "d/link", "empty", "etc", "etc/.wh.group", "home", "new", "p", "usr"),
        *("usr/.wh..wh..opq", "usr/x", "var", "var/.wh.spool"),
    }
    hard = [m for m in (members["new"], members["d/hard"]) if m.islnk()]
    assert len(hard) == 1 and {hard[0].linkname, hard[0].name} == {"new", "d/hard"}
    assert (members["d"].uid, members["d"].gid) == (7, 8)
    assert members["home"].mode & 0o777 == 0o700 and members["p"].isfifo()
    check = "cat /new /usr/x; ls -A /var /usr; ls /etc/group; readlink /d/link; "
    check += "stat -c '%h %a %Y' /d/hard; stat -c '%u %g' /d"
    said = cli("run", "--rm", "--network", "none", "com:1", "sh", "-c", check)
    assert said.out == "hi\n1\n/usr:\nx\n\n/var:\nrun\ntmp\nx\n2 4755 1000000000\n7 8\n"
    assert "/etc/group" in said.err
    # nothing changed: no layer
    cli.ok("create", "--name", "still", "--network", "none", IMAGE)
    cli.ok("commit", "still", "com:2")
    assert len(json.loads(cli.ok("inspect", "com:2"))[0]["RootFS"]["Layers"]) == 1
    assert cli.ok("commit", "still").startswith("sha256:")
    cli.ok("rm", "box", "still")


def test_changes(cli: Cli) -> None:
    cli.ok(
        "create",
        "--name",
        "box",
        "--network",
        "none",
        "-e",
        "A=1",
        "--label",
        "own=1",
        "--entrypoint",
        "e",
        IMAGE,
        "a",
        "b",
    )
    # all of them by dockerd, to prove the table; by us in tests/unit/test_build_changes.py
    for change, expected in CHANGES if isinstance(cli.server, Dockerd) else CHANGES[::6]:
        image = cli.ok("commit", "-c", change, "box")
        found = config(cli, image)
        for key, value in expected.items():
            if key == "Env":
                assert isinstance(value, list) and set(value) <= set(found["Env"]), (change, found)
            else:
                assert found.get(key) == value, (change, found)
    image = cli.ok("commit", "-c", 'CMD ["x"]', "-c", "ENTRYPOINT y", "box")
    assert config(cli, image)["Cmd"] == ["x"]
    for change, why in REFUSED:
        said = cli("commit", "-c", change, "box")
        assert said.status == 1 and why in said.err, (change, said)
    for words, why in (
        (("nobody",), "No such container: nobody"),
        (("box", "A:1"), "must be lowercase"),
    ):
        said = cli("commit", *words)
        assert said.status == 1 and why in said.err
    cli.ok("rm", "box")


def test_commit_of_a_running_container(cli: Cli) -> None:
    cli.ok(
        "run",
        "-d",
        "--name",
        "box",
        "--network",
        "none",
        IMAGE,
        "sh",
        "-c",
        "echo 1 > /x; echo up; sleep 1000",
    )
    with cli.background("logs", "-f", "box") as logs:
        assert logs.line() == "up"
    for words in ((), ("--pause=false",)):
        image = cli.ok("commit", *words, "box")
        assert cli.ok("inspect", "-f", "{{.State.Status}}", "box") == "running"
        assert cli.ok("run", "--rm", "--network", "none", image, "cat", "/x") == "1"
    cli.ok("pause", "box")
    cli.ok("commit", "box")
    assert cli.ok("inspect", "-f", "{{.State.Status}}", "box") == "paused"
    cli.ok("unpause", "box")
    cli.ok("rm", "-f", "box")


def test_import(cli: Cli, tmp_path: Path) -> None:
    archive = tar(member("etc", tarfile.DIRTYPE, mode=0o755), file("etc/motd", b"welcome\n"))
    path = tmp_path / "files.tar"
    path.write_bytes(archive)
    image = cli.ok("import", "-c", 'CMD ["x"]', "-c", "ENV A=1", "-m", "mine", str(path), "imp:1")
    about = json.loads(cli.ok("inspect", "imp:1"))[0]
    assert about["Id"] == image and about["Comment"] == "mine" and len(about["RootFS"]["Layers"]) == 1
    assert (config(cli, "imp:1")["Cmd"], config(cli, "imp:1")["Env"]) == (["x"], ["A=1"])
    cli.ok("create", "--name", "box", "--network", "none", "imp:1")
    said = cli("export", "-o", str(tmp_path / "out.tar"), "box")
    assert said.status == 0
    with tarfile.open(tmp_path / "out.tar") as exported:
        found = exported.extractfile("etc/motd")
        assert found is not None and found.read() == b"welcome\n"
    cli.ok("rm", "box")
    piped = cli("import", "-", input=archive)
    assert piped.status == 0 and piped.out.startswith("sha256:")
    assert json.loads(cli.ok("inspect", piped.out.strip()))[0]["Comment"] == "Imported from -"
    for data in (b"nothing of the kind" * 100, archive[:1000]):
        said = cli("import", "-", input=data)
        assert said.status == 1 and said.err.count("\n") == 1, said
    said = cli("import", str(tmp_path / "absent"))
    assert said.status == 1 and "no such file or directory" in said.err
    said = cli("import", "-c", "RUN x", str(path))
    assert said.status == 1 and "run is not a valid change command" in said.err
