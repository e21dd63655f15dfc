"""Archives of images from strangers: whatever is wrong with one, it is one line, and nothing is left."""

from __future__ import annotations

import gzip
import json
import os
import tarfile
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from fakeregistry import file, quick, tar
from memory_catalog import MemoryCatalog
from parcels import config, docker_archive, layout, left, link, packed, parcel, pieces, saved, sha

from nagaya.errors import (
    DataLoss,
    InvalidArgument,
    NagayaError,
    NotFound,
    ResourceExhausted,
    Unimplemented,
)
from nagaya.image.layers import Limits
from nagaya.image.store import ImageStore

ME = os.getuid()
LAYER = tar(file("a", b"a"), owner=ME)
OTHER = tar(file("b", b"b"), owner=ME)


def store_at(path: Path, **changes: Any) -> ImageStore:
    return ImageStore(str(path), MemoryCatalog(), quick(**changes))


def refused(path: Path, data: bytes, kind: type[NagayaError], why: str, **changes: Any) -> None:
    store = store_at(path, **changes)
    with pytest.raises(kind, match=why) as caught:
        store.load(pieces(data))
    assert "\n" not in str(caught.value)
    assert left(path) == [] and store.list() == []


def changed(members: Mapping[str, bytes], name: str, change: Callable[[Any], Any]) -> bytes:
    """The archive with one JSON document changed."""
    document = change(json.loads(members[name]))
    return packed({**members, name: json.dumps(document).encode()})


def without(members: Mapping[str, bytes], part: str) -> bytes:
    return packed({name: data for name, data in members.items() if part not in name})


def long(name: str, size: int) -> bytes:
    """A header that promises so many bytes, and 512 of them."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(512)


@pytest.mark.parametrize(
    ("data", "kind", "why"),
    [
        (b"", InvalidArgument, "neither index.json nor manifest.json"),
        (bytes(10240), InvalidArgument, "neither index.json nor manifest.json"),
        (b"text" * 1000, InvalidArgument, "not a tar archive"),
        (b"\x1f\x8b" + bytes(100), DataLoss, "damaged gzip"),
        (gzip.compress(packed(layout(LAYER)), mtime=0)[:-20], DataLoss, "cut short"),
        (packed(layout(LAYER))[:1700], DataLoss, "cut short"),
        (parcel(("../x", b"1")), InvalidArgument, "'..' in it"),
        (parcel(("blobs/sha256/../../../x", b"1")), InvalidArgument, "'..' in it"),
        (parcel((f"blobs/sha256/{sha(b'1')}", b"2")), DataLoss, "has digest"),
        (parcel(("manifest.json", b"{}")), InvalidArgument, "manifest.json is not valid"),
        (parcel(("manifest.json", b"[" * 100_000)), InvalidArgument, "manifest.json is not valid"),
        (parcel(("manifest.json", b"null")), InvalidArgument, "names no image"),
        (parcel(("index.json", b"{}")), InvalidArgument, "schemaVersion 0"),
        (parcel(("index.json", b'{"schemaVersion":2,"manifests":[]}')), InvalidArgument, "names no image"),
        (parcel(("repositories", b"{}")), InvalidArgument, "docker before 1.10"),
        (parcel(("index.json", bytes((4 << 20) + 1))), InvalidArgument, "over the limit of 4194304"),
        (long("index.json", 1 << 40), InvalidArgument, "over the limit"),
        (long("0/layer.tar", 1 << 50), ResourceExhausted, "registries.max-layer-size"),
        (long("0/layer.tar", 1 << 30), DataLoss, "cut short"),
        (parcel(*(link(f"{n:0100}", "x") for n in range(100_001))), ResourceExhausted, "100000 entries"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_is_no_archive_of_images(data: bytes, kind: type[NagayaError], why: str, tmp_path: Path) -> None:
    refused(tmp_path, data, kind, why)


@pytest.mark.parametrize(
    "members", [docker_archive(LAYER, OTHER), layout(LAYER, OTHER)], ids=["docker", "oci"]
)
def test_a_missing_blob_is_named(members: dict[str, bytes], tmp_path: Path) -> None:
    for name in members:
        if name not in ("manifest.json", "index.json", "oci-layout"):
            refused(tmp_path, without(members, name), NotFound, "the archive lacks")


@pytest.mark.parametrize(
    ("change", "kind", "why"),
    [
        (lambda d: [{**d[0], "Layers": d[0]["Layers"][:1]}], InvalidArgument, "expected 1, got 2"),
        (lambda d: [{**d[0], "Layers": d[0]["Layers"][::-1]}], DataLoss, "diff id"),
        (lambda d: [{**d[0], "Layers": ["0/layer.tar", "/etc/passwd"]}], NotFound, "lacks '/etc/passwd'"),
        (lambda d: [{**d[0], "Config": "../../etc/passwd"}], NotFound, "lacks"),
        (lambda d: [{**d[0], "Config": "0/layer.tar"}], InvalidArgument, "is not valid"),
        (lambda d: [{**d[0], "RepoTags": ["a/b"]}], InvalidArgument, 'invalid tag "a/b"'),
        (lambda d: [{**d[0], "RepoTags": ["A:1"]}], InvalidArgument, "must be lowercase"),
        (lambda d: [{**d[0], "RepoTags": [f"a@sha256:{'0' * 64}"]}], InvalidArgument, "invalid tag"),
        (lambda d: d * 1001, InvalidArgument, "more than 1000 images"),
        # the second image is the bad one, and the first is not kept either
        (lambda d: [d[0], {**d[0], "Config": "none"}], NotFound, "lacks 'none'"),
    ],
)
def test_a_manifest_json_that_lies(
    change: Callable[[Any], Any], kind: type[NagayaError], why: str, tmp_path: Path
) -> None:
    refused(tmp_path, changed(docker_archive(LAYER, OTHER), "manifest.json", change), kind, why)


def entry(**changes: Any) -> Callable[[Any], Any]:
    return lambda d: {**d, "manifests": [{**d["manifests"][0], **changes}]}


@pytest.mark.parametrize(
    ("change", "kind", "why"),
    [
        (entry(digest="sha256:../../x"), InvalidArgument, "invalid digest"),
        (entry(digest=f"sha256:{'0' * 64}"), NotFound, "the archive lacks blob"),
        (entry(size=1 << 40), InvalidArgument, "size"),
        (entry(annotations={"io.containerd.image.name": "a/../b"}), InvalidArgument, "invalid reference"),
        (entry(annotations={"io.containerd.image.name": "a/b"}), InvalidArgument, "invalid tag"),
        (entry(artifactType="x/y"), InvalidArgument, "names no image"),
        (lambda d: {**d, "layers": []}, InvalidArgument, "ambiguous"),
        (lambda d: {**d, "schemaVersion": 1}, Unimplemented, "schema 1"),
    ],
)
def test_an_index_that_lies(
    change: Callable[[Any], Any], kind: type[NagayaError], why: str, tmp_path: Path
) -> None:
    refused(tmp_path, changed(layout(LAYER), "index.json", change), kind, why)


def test_an_index_within_itself_ends(tmp_path: Path) -> None:
    """Digests cannot be circular; but nesting can be deep, and bounded it is."""
    members = layout(LAYER)
    document = json.loads(members.pop("index.json"))
    for _ in range(6):
        inner = json.dumps({**document, "mediaType": "application/vnd.oci.image.index.v1+json"}).encode()
        members[f"blobs/sha256/{sha(inner)}"] = inner
        described = {"digest": f"sha256:{sha(inner)}", "size": len(inner)}
        document = {"schemaVersion": 2, "manifests": [described]}
    members["index.json"] = json.dumps(document).encode()
    refused(tmp_path, packed(members), InvalidArgument, "nested too deeply")


def test_links_lead_within_the_archive_only(tmp_path: Path) -> None:
    members = docker_archive(LAYER, LAYER)
    data = members.pop("1/layer.tar")
    assert data == LAYER
    store = store_at(tmp_path / "good")
    store.load(pieces(parcel(*members.items(), link("1/layer.tar", "../0/layer.tar"))))
    store.load(pieces(parcel(*members.items(), link("1/layer.tar", "0/layer.tar", tarfile.LNKTYPE))))
    assert len(store.list()) == 1
    circle = (link("1/layer.tar", "../2"), link("2", "1/layer.tar"))
    for number, (links, kind, why) in enumerate(
        (
            ((link("1/layer.tar", "/etc/passwd"),), NotFound, "the archive lacks"),
            ((link("1/layer.tar", "../../../../etc/passwd"),), NotFound, "the archive lacks"),
            (circle, InvalidArgument, "too many links"),
        )
    ):
        refused(tmp_path / str(number), parcel(*members.items(), *links), kind, why)


def test_devices_pipes_and_directories_are_passed_over(tmp_path: Path) -> None:
    odd = [tarfile.TarInfo(n) for n in ("pipe", "null", "dir")]
    for info, kind in zip(odd, (tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE), strict=True):
        info.type = kind
    store = store_at(tmp_path)
    (image,) = store.load(pieces(parcel(*odd, *layout(LAYER).items(), ("b", b"1"))))
    assert image.names == ("docker.io/a/b:1",)


def test_the_last_of_two_members_of_one_name_counts(tmp_path: Path) -> None:
    """As when the archive is unpacked first, which is what other tools do."""
    members = docker_archive(LAYER)
    store = store_at(tmp_path)
    (image,) = store.load(pieces(parcel(("0/layer.tar", OTHER), link("0/layer.tar", "x"), *members.items())))
    assert image.document.diff_ids == (f"sha256:{sha(LAYER)}",)


@pytest.mark.parametrize("shape", ["docker", "oci"])
def test_a_compressed_layer_with_its_own_digest_for_diff_id(shape: str, tmp_path: Path) -> None:
    """What has been hashed as it came need not be again, but only if the files are no other bytes."""
    lied = gzip.compress(LAYER)
    members = docker_archive(lied) if shape == "docker" else layout(lied)
    refused(tmp_path, packed(members), DataLoss, "diff id")


def test_a_hostile_layer_leaves_nothing_of_the_others(tmp_path: Path) -> None:
    bad = tar(file("../../x", b"1"), owner=ME)
    for members in (docker_archive(LAYER, bad), layout(LAYER, bad)):
        refused(tmp_path, packed(members), InvalidArgument, r"'\.\.' in it")


def test_bombs(tmp_path: Path) -> None:
    limits = Limits(size=1 << 20, entries=10)
    small = {"limits": limits}
    big = tar(file("big", bytes(2 << 20)), owner=ME)
    refused(tmp_path, gzip.compress(packed(layout(big))), ResourceExhausted, "max-layer-size", **small)
    members = docker_archive(big, packed=gzip.compress)
    refused(tmp_path, packed(members), ResourceExhausted, "unpacks to more than", **small)
    many = tar(*(file(str(n)) for n in range(11)), owner=ME)
    refused(tmp_path, packed(layout(many)), ResourceExhausted, "more than 10 entries", **small)


def test_a_great_index_costs_no_memory(tmp_path: Path) -> None:
    """CVE-2023-25153: what is read whole is bounded before it is read."""

    def endless() -> Any:
        yield long("index.json", 1 << 30)[:512]
        for _ in range(1024):
            yield bytes(1 << 20)

    tracemalloc.start()
    try:
        with pytest.raises(InvalidArgument, match="over the limit"):
            store_at(tmp_path).load(endless())
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_other_systems_images(tmp_path: Path) -> None:
    about = config(LAYER, os="windows")
    refused(
        tmp_path, packed(layout(LAYER, about=about)), InvalidArgument, "cannot load windows image on linux"
    )


def test_a_load_completes_and_repairs_what_is_here(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    members = layout(LAYER, OTHER)
    (image,) = store.load(pieces(packed(members)))
    whole = saved(store, "a/b:1")
    blob = tmp_path / "content/blobs/sha256" / sha(LAYER)
    blob.write_bytes(b"damaged")
    with pytest.raises(DataLoss):
        saved(store, "a/b:1")
    # a layout may leave out what its reader has, and brings what it has not
    store.load(pieces(without(members, sha(OTHER))))
    assert saved(store, "a/b:1") == whole
    blob.unlink()
    with pytest.raises(NotFound):
        saved(store, "a/b:1")
    store.load(pieces(packed(members)))
    assert saved(store, image.id[7:19]) and saved(store, "a/b:1") == whole


def test_a_damaged_image_is_not_saved_as_if_it_were_whole(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    store.load(pieces(packed(layout(LAYER))))
    blob = tmp_path / "content/blobs/sha256" / sha(LAYER)
    blob.write_bytes(LAYER[:-1] + b"x")
    stream = store.save(["a/b:1"])
    with pytest.raises(DataLoss, match="pull it again"):
        for _ in stream:
            pass


def test_a_stream_that_is_closed_early_lets_its_blobs_go(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    store.load(pieces(packed(layout(LAYER))))
    stream = store.save(["a/b:1"])
    next(stream)
    store.remove("a/b:1", ())
    assert b"".join(stream)  # what is being saved stays as long as that takes
    assert left(tmp_path) == []
    store.load(pieces(packed(layout(LAYER))))
    stream = store.save(["a/b:1"])
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    store.remove("a/b:1", ())
    assert left(tmp_path) == []
