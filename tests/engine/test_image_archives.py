"""Archives to and from every tool that writes or reads them: the same files, the same digests."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from clients import have_dockerd
from dockerd import Dockerd
from fakeregistry import quick
from images import Registry, layer, write_layout
from imagetrees import free_port, mounted, sample, survey
from memory_catalog import MemoryCatalog
from parcels import docker_archive, left, packed, pieces, saved, sha

from nagaya.image.store import Image, ImageStore

pytestmark = pytest.mark.root


def run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, timeout=120, text=True)
    assert done.returncode == 0, (argv, done.stdout, done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sample") / "layout"
    write_layout(made, sample(), {"Cmd": ["true"]})
    return made


@pytest.fixture(scope="module")
def expected(layout: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[object, ...]]:
    tree = tmp_path_factory.mktemp("umoci") / "tree"
    run("umoci", "raw", "unpack", "--image", f"{layout}:latest", str(tree))
    return survey(tree)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(str(tmp_path / "root"), MemoryCatalog(), quick())


def load(store: ImageStore, archive: Path) -> Image:
    (image,) = store.load(pieces(archive))
    return image


def skopeo(source: str, target: str, *options: str) -> None:
    run("skopeo", "copy", "--insecure-policy", "-q", *options, source, target)


def config_of(layout: Path) -> str:
    return str(_manifest(layout)["config"]["digest"])  # type: ignore[index]


def _manifest(layout: Path) -> dict[str, object]:
    (entry,) = json.loads((layout / "index.json").read_text())["manifests"]
    found = json.loads((layout / "blobs" / entry["digest"].replace(":", "/")).read_text())
    return dict(found)


@pytest.mark.parametrize("outer", ["tar", "gzip", "zstd"])
@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive", "layout"])
def test_what_others_wrote(
    kind: str, outer: str, layout: Path, expected: object, store: ImageStore, tmp_path: Path
) -> None:
    archive = tmp_path / "a.tar"
    if kind == "layout":
        run("tar", "-C", str(layout), "-cf", str(archive), ".")
    else:
        skopeo(f"oci:{layout}:latest", f"{kind}:{archive}:x/y:1")
    if outer != "tar":
        run(outer, "-q", "-f", str(archive))
        archive = archive.with_name("a.tar" + {"gzip": ".gz", "zstd": ".zst"}[outer])
    image = load(store, archive)
    # an image is its configuration, which a copy to docker's format writes anew
    if kind != "docker-archive":
        assert image.id == config_of(layout)
    assert image.names == (() if kind == "layout" else ("docker.io/x/y:1",))
    assert mounted(store, image.id, tmp_path / "merged") == expected


def test_podmans(layout: Path, expected: object, store: ImageStore, tmp_path: Path) -> None:
    short = tempfile.TemporaryDirectory(prefix="nagt-", dir="/tmp")  # podman takes no long path
    where = f"--root={short.name}/p --runroot={short.name}/r --storage-driver=vfs".split()
    given = tmp_path / "given.tar"
    skopeo(f"oci:{layout}:latest", f"oci-archive:{given}:localhost/x/y:1")
    run("podman", *where, "load", "-q", "-i", str(given))
    ids = set()
    for kind in ("docker-archive", "oci-archive"):
        archive = tmp_path / f"{kind}.tar"
        run("podman", *where, "save", "-q", f"--format={kind}", "-o", str(archive), "localhost/x/y:1")
        image = load(store, archive)
        ids.add(image.id)
        assert "localhost/x/y:1" in image.names
        assert mounted(store, image.id, tmp_path / kind) == expected
    ours = tmp_path / "ours.tar"
    store.tag("localhost/x/y:1", "back:1")
    ours.write_bytes(saved(store, "back:1"))
    run("podman", *where, "rmi", "-af")
    assert "back:1" in run("podman", *where, "load", "-q", "-i", str(ours))
    assert run("podman", *where, "images", "-q", "--no-trunc").strip() in ids
    short.cleanup()


def test_buildahs_and_back(store: ImageStore, tmp_path: Path) -> None:
    """By archives and by a registry: an image that buildah made is here what it is there, and goes back."""
    layout = tmp_path / "layout"
    lower = [("etc", None), ("etc/gone", b"1"), ("etc/kept", b"2"), ("etc/link", "kept")]
    write_layout(layout, [layer(lower)], {"Cmd": ["true"]})
    short = tempfile.TemporaryDirectory(prefix="nagt-", dir="/tmp")  # containers' storage takes no long path
    buildah = f"buildah --root={short.name}/p --runroot={short.name}/r --storage-driver=overlay".split()
    run(*buildah, "pull", "-q", f"oci:{layout}:latest")
    (begun,) = run(*buildah, "images", "-q", "--no-trunc").split()
    box = run(*buildah, "from", "--pull-never", begun).strip()
    try:
        there = Path(run(*buildah, "mount", box).strip())
        (there / "etc/gone").unlink()
        (there / "made").write_text("by buildah")
        os.chown(there / "made", 1234, 5678)
        (there / "made").chmod(0o4711)
        os.link(there / "made", there / "etc/made")
        os.setxattr(there / "etc/kept", "user.by", b"buildah")
        run(*buildah, "config", "--cmd", "serve", "--env", "A=1", "--label", "by=buildah", box)
        made = run(*buildah, "commit", "-q", box, "localhost/made:1").strip()
        merged = survey(there)
        with Registry(tmp_path / "registry", port=free_port()) as registry:
            name, back = f"{registry.address}/made:1", f"{registry.address}/back:1"
            run(*buildah, "push", "-q", "--tls-verify=false", "localhost/made:1", f"docker://{name}")
            for kind in ("oci-archive", "docker-archive", "registry"):
                if kind == "registry":
                    image = store.pull(name)
                else:
                    archive = tmp_path / f"{kind}.tar"
                    run(*buildah, "push", "-q", "localhost/made:1", f"{kind}:{archive}:localhost/made:1")
                    image = load(store, archive)
                assert kind == "docker-archive" or image.id == f"sha256:{made}"
                about = image.config
                assert about is not None and (about.cmd, about.env) == (["serve"], ["A=1"]), about
                assert mounted(store, image.id, tmp_path / f"tree-{kind}") == merged
            ours = tmp_path / "ours.tar"
            ours.write_bytes(saved(store, name))
            store.tag(name, back)
            store.push(back)
            run(*buildah, "rm", "-a")
            run(*buildah, "rmi", "-a", "-f")
            for source in (f"docker-archive:{ours}", f"oci-archive:{ours}", f"docker://{back}"):
                run(*buildah, "pull", "-q", "--tls-verify=false", source)
                assert run(*buildah, "images", "-q", "--no-trunc").split() == [f"sha256:{made}"], source
                again = run(*buildah, "from", "--pull-never", made).strip()
                assert survey(Path(run(*buildah, "mount", again).strip())) == merged, source
                run(*buildah, "rm", "-a")
                run(*buildah, "rmi", "-a", "-f")
    finally:
        run(*buildah, "rm", "-a")
        short.cleanup()


def test_others_read_ours(layout: Path, expected: object, store: ImageStore, tmp_path: Path) -> None:
    given, ours = tmp_path / "given.tar", tmp_path / "ours.tar"
    skopeo(f"oci:{layout}:latest", f"oci-archive:{given}:x/y:1")
    image = load(store, given)
    store.tag("x/y:1", "x/y:2")
    ours.write_bytes(saved(store, "x/y"))
    assert saved(store, "x/y") == ours.read_bytes()
    # skopeo, by both of the archive's faces; the manifest is the one that came
    skopeo(f"docker-archive:{ours}:x/y:2", f"dir:{tmp_path}/docker")
    skopeo(f"oci-archive:{ours}:2", f"oci:{tmp_path}/oci:latest", "--preserve-digests")
    assert _manifest(tmp_path / "oci") == _manifest(layout)
    # umoci
    (tmp_path / "unpacked").mkdir()
    run("tar", "-C", str(tmp_path / "unpacked"), "-xf", str(ours))
    assert run("umoci", "ls", "--layout", str(tmp_path / "unpacked")).split() == ["1", "2"]
    run("umoci", "raw", "unpack", "--image", f"{tmp_path}/unpacked:1", str(tmp_path / "tree"))
    assert survey(tmp_path / "tree") == expected
    # and ourselves, elsewhere
    other = ImageStore(str(tmp_path / "other"), MemoryCatalog(), quick())
    copy = load(other, ours)
    assert (copy.id, copy.manifest) == (image.id, image.manifest)
    assert copy.names == ("docker.io/x/y:1", "docker.io/x/y:2")
    assert saved(other, "x/y") == ours.read_bytes()


@pytest.fixture(scope="module")
def peer() -> Iterator[Dockerd]:
    if not have_dockerd():
        pytest.skip("no dockerd here")
    with Dockerd() as running:
        yield running


def docker(peer: Dockerd, *argv: str) -> str:
    done = subprocess.run(
        ["docker", *argv], capture_output=True, env=peer.environment, timeout=120, text=True
    )
    assert done.returncode == 0, (argv, done.stderr)
    return done.stdout.strip()


def test_dockerds_and_back(
    peer: Dockerd, layout: Path, expected: object, store: ImageStore, tmp_path: Path
) -> None:
    given, theirs, ours = (tmp_path / f"{name}.tar" for name in ("given", "theirs", "ours"))
    skopeo(f"oci:{layout}:latest", f"docker-archive:{given}:x/y:1")
    assert docker(peer, "load", "-i", str(given)).splitlines()[-1] == "Loaded image: x/y:1"
    docker(peer, "save", "-o", str(theirs), "x/y:1")
    image = load(store, theirs)
    assert image.id == docker(peer, "inspect", "-f", "{{.Id}}", "x/y:1")
    assert mounted(store, "x/y:1", tmp_path / "merged") == expected
    ours.write_bytes(saved(store, "x/y:1"))
    docker(peer, "rmi", "x/y:1")
    assert docker(peer, "load", "-i", str(ours)).splitlines()[-1] == "Loaded image: x/y:1"
    assert docker(peer, "inspect", "-f", "{{.Id}}", "x/y:1") == image.id
    docker(peer, "rmi", "x/y:1")
    # a layer that came compressed goes out compressed, and dockerd takes that, too
    packed_store = ImageStore(str(tmp_path / "packed"), MemoryCatalog(), quick())
    skopeo(f"oci:{layout}:latest", f"oci-archive:{tmp_path}/oci.tar:x/y:1")
    load(packed_store, tmp_path / "oci.tar")
    ours.write_bytes(saved(packed_store, "x/y:1"))
    docker(peer, "load", "-i", str(ours))
    assert docker(peer, "inspect", "-f", "{{len .RootFS.Layers}}", "x/y:1") == "3"
    docker(peer, "rmi", "x/y:1")


def test_an_image_that_is_here_keeps_the_digests_it_came_with(
    layout: Path, store: ImageStore, tmp_path: Path
) -> None:
    skopeo(f"oci:{layout}:latest", f"oci-archive:{tmp_path}/a.tar:x/y:1")
    image = load(store, tmp_path / "a.tar")
    layers = [gzip.decompress(data) for data in sample()]
    document = (layout / "blobs" / config_of(layout).replace(":", "/")).read_bytes()
    again = tmp_path / "b.tar"
    again.write_bytes(packed(docker_archive(*layers, tags=["z:1"], document=document)))
    same = load(store, again)
    assert (same.id, same.manifest) == (image.id, image.manifest)
    assert same.names == ("docker.io/library/z:1", "docker.io/x/y:1")
    # what the archive brought besides is nobody's, and goes with the next removal
    store.remove("z:1", ())
    store.remove("x/y:1", ())
    assert left(tmp_path / "root") == []


def test_the_archive_begins_with_what_it_holds(layout: Path, store: ImageStore, tmp_path: Path) -> None:
    skopeo(f"oci:{layout}:latest", f"oci-archive:{tmp_path}/a.tar:x/y:1")
    image = load(store, tmp_path / "a.tar")
    path = tmp_path / "b.tar"
    path.write_bytes(saved(store, image.id))
    with tarfile.open(path) as archive:
        names = archive.getnames()
        members = archive.getmembers()
    assert names[:3] == ["oci-layout", "index.json", "manifest.json"]  # no names: no repositories
    assert len([n for n in names if n.startswith("blobs/sha256/")]) == 5
    assert f"blobs/sha256/{sha(_config(layout))}" in names
    assert {(m.uid, m.gid, m.mtime) for m in members} == {(0, 0, 0)}


def _config(layout: Path) -> bytes:
    return (layout / "blobs" / config_of(layout).replace(":", "/")).read_bytes()
