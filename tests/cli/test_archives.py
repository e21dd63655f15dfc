"""Images into archives and out of them by the command line."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path

import pytest
from clients import Cli
from fakeregistry import file, tar
from parcels import parcel

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


def made(cli: Cli, tmp_path: Path, tag: str, *layers: bytes, **config: object) -> str:
    """Load an image of these plain layers under a tag ("": none); its id."""
    document = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "created": "2020-01-01T00:00:00Z",
            "config": config,
            "rootfs": {
                "type": "layers",
                "diff_ids": [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in layers],
            },
        }
    ).encode()
    item = {
        "Config": "c.json",
        "RepoTags": [tag] if tag else [],
        "Layers": [f"{n}.tar" for n in range(len(layers))],
    }
    path = tmp_path / "made.tar"
    members = [(f"{n}.tar", data) for n, data in enumerate(layers)]
    path.write_bytes(parcel(("c.json", document), ("manifest.json", json.dumps([item]).encode()), *members))
    cli.ok("load", "-q", "-i", str(path))
    return "sha256:" + hashlib.sha256(document).hexdigest()


def test_prune(cli: Cli, tmp_path: Path) -> None:
    everything = cli.ok("images", "-q", "--no-trunc").split()
    if everything:
        cli.ok("rmi", "-f", *set(everything))
    base, top, other = (tar(file(name, bytes(size))) for name, size in (("b", 5000), ("t", 300), ("o", 20)))
    dangling = made(cli, tmp_path, "", base, top, Labels={"keep": "no"})
    named = made(cli, tmp_path, "named:1", base, Labels={"keep": "yes"})
    cli.ok("tag", "named:1", "named:2")
    used = made(cli, tmp_path, "used:1", base, other, Cmd=["x"])
    cli.ok("create", "--name", "user", "used:1")
    shown = cli.ok(
        "system", "df", "--format", "{{.Type}} {{.TotalCount}} {{.Active}} {{.Size}} {{.Reclaimable}}"
    )
    # the base once, and in use: three have it, so that docker counts it to nobody
    assert shown.splitlines()[0] == "Images 3 1 5.32kB 5.3kB (99%)"
    said = cli("image", "prune", "-f", "--filter", "label=keep=other")
    assert (said.status, said.out) == (0, "Total reclaimed space: 0B\n")
    said = cli("image", "prune", "-f", "--filter", "label!=keep=no")
    assert (said.status, said.out) == (0, "Total reclaimed space: 0B\n")
    said = cli("image", "prune", "-f", "--filter", "until=2019-01-01")
    assert (said.status, said.out) == (0, "Total reclaimed space: 0B\n")
    said = cli("image", "prune", input="n\n")
    assert "WARNING! This will remove all dangling images." in said.out
    lines = cli.ok("image", "prune", "-f", "--filter", "until=1h").splitlines()
    assert lines[:2] == ["Deleted Images:", f"deleted: {dangling}"]
    assert lines[2].startswith("deleted: sha256:") and lines[3:] == ["", "Total reclaimed space: 300B"]
    said = cli("image", "prune", "-f", "--filter", "size=3")
    assert said.status == 1 and "nvalid filter 'size'" in said.err
    lines = cli.ok("image", "prune", "-a", "-f").splitlines()
    assert lines[0] == "Deleted Images:" and lines[-1] == "Total reclaimed space: 0B"
    assert sorted(lines[1:-2]) == [f"deleted: {named}", "untagged: named:1", "untagged: named:2"]
    assert cli.ok("images", "-q", "--no-trunc") == used
    cli.ok("rm", "user")
    assert cli.ok("image", "prune", "-af").endswith("Total reclaimed space: 5.02kB")
    assert cli.ok("images", "-q") == ""
