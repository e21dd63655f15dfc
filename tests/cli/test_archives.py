"""Images into archives and out of them by the command line."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path

import pytest
from clients import Cli

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"


def save(cli: Cli, *names: str, path: Path) -> tarfile.TarFile:
    cli.ok("save", "-o", str(path), *names)
    return tarfile.open(path)


def test_save_and_load(cli: Cli, tmp_path: Path) -> None:
    cli.ok("inspect", "-f", "{{.Id}}", IMAGE)
    cli.ok("tag", IMAGE, "x/y:1")
    cli.ok("tag", IMAGE, "x/y:2")
    image = cli.ok("inspect", "-f", "{{.Id}}", "x/y:1")
    for names, expected in (
        (("x/y:1",), ["x/y:1"]),
        (("x/y",), ["x/y:1", "x/y:2"]),
        (("x/y:1", "x/y:2"), ["x/y:1", "x/y:2"]),
        ((image,), None),
        ((image[7:19], "x/y:2"), ["x/y:2"]),
    ):
        with save(cli, *names, path=tmp_path / "a.tar") as archive:
            member = archive.extractfile("manifest.json")
            assert member is not None
            (item,) = json.load(member)
            assert item["RepoTags"] == expected, names
            config = archive.extractfile(item["Config"])
            assert config is not None
            assert json.load(config)["os"] == "linux"
            assert len(item["Layers"]) == 1 and item["Layers"][0] in archive.getnames()
    cli.ok("save", "-o", str(tmp_path / "a.tar"), "x/y")
    streamed = subprocess.run(
        cli.argv("save", "x/y"), capture_output=True, env=cli.server.environment, timeout=60, check=True
    )
    with tarfile.open(fileobj=io.BytesIO(streamed.stdout)) as archive:
        assert "manifest.json" in archive.getnames()
    cli.ok("rmi", "x/y:1", "x/y:2")
    assert cli.ok("load", "-i", str(tmp_path / "a.tar")) == "Loaded image: x/y:1\nLoaded image: x/y:2"
    assert cli.ok("inspect", "-f", "{{.Id}}", "x/y:1") == image
    assert cli.ok("run", "--rm", "--network", "none", "x/y:2", "echo", "hi") == "hi"
    cli.ok("rmi", "x/y:1", "x/y:2")


def test_a_name_that_meant_another_image(cli: Cli, tmp_path: Path) -> None:
    cli.ok("inspect", "-f", "{{.Id}}", IMAGE)
    cli.ok("tag", IMAGE, "moved:1")
    image = cli.ok("inspect", "-f", "{{.Id}}", "moved:1")
    cli.ok("save", "-o", str(tmp_path / "a.tar"), "moved:1")
    other = tmp_path / "other.tar"
    with tarfile.open(tmp_path / "a.tar") as archive, tarfile.open(other, "w") as changed:
        member = archive.extractfile("manifest.json")
        assert member is not None
        (item,) = json.load(member)
        (layer,) = item["Layers"]
        found = archive.extractfile(layer)
        config = archive.extractfile(item["Config"])
        assert found is not None and config is not None
        document = {**json.load(config), "author": "somebody"}
        new = {"Config": "c.json", "RepoTags": ["moved:1"], "Layers": ["l/layer.tar"]}
        for name, data in (
            ("c.json", json.dumps(document).encode()),
            ("l/layer.tar", found.read()),
            ("manifest.json", json.dumps([new]).encode()),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            changed.addfile(info, io.BytesIO(data))
    assert cli.ok("load", "-i", str(other)).splitlines() == [
        f"The image moved:1 already exists, renaming the old one with ID {image} to empty string",
        "Loaded image: moved:1",
    ]
    assert cli.ok("inspect", "-f", "{{.Author}}", "moved:1") == "somebody"
    cli.ok("rmi", "moved:1")
    assert cli.ok("load", "-q", "-i", str(other)) == "Loaded image: moved:1"
    cli.ok("rmi", "moved:1")


def test_what_cannot_be_saved_or_loaded(cli: Cli, tmp_path: Path) -> None:
    cli.ok("inspect", "-f", "{{.Id}}", IMAGE)
    said = cli("save", "nothing", "-o", str(tmp_path / "a.tar"))
    assert said.status == 1 and "No such image: nothing" in said.err
    assert not list(tmp_path.iterdir())
    said = cli("save", IMAGE, "-o", str(tmp_path / "no/such/a.tar"))
    assert said.status == 1 and "invalid output path" in said.err
    said = cli("save")
    assert said.status == 1 and "requires at least 1 argument" in said.err
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_bytes(b"nothing of the kind\n" * 1000)
    for name in ("empty", "text"):
        said = cli("load", "-i", str(tmp_path / name))
        assert said.status == 1 and said.err.count("\n") == 1, said
    said = cli("load", "-i", str(tmp_path / "absent"))
    assert said.status == 1 and "no such file or directory" in said.err


def test_a_terminal_is_no_archive(cli: Cli) -> None:
    cli.ok("inspect", "-f", "{{.Id}}", IMAGE)
    for words, line in (
        (("save", IMAGE), "cowardly refusing to save to a terminal"),
        (("load",), "requested load from stdin, but stdin is empty"),
    ):
        with cli.terminal(*words) as terminal:
            terminal.expect(line.encode())
            assert terminal.wait() == 1
