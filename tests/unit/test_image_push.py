"""Pushing to a registry that is honest, slow, forgetful, or hostile."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakeregistry import Answer, FakeRegistry, digest_of, file, quick, tar
from memory_catalog import MemoryCatalog
from parcels import docker_archive, packed, pieces

from nagaya.errors import (
    DataLoss,
    InvalidArgument,
    NagayaError,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from nagaya.image.auth import RegistryAuth
from nagaya.image.pull import Progress
from nagaya.image.store import ImageStore
from nagaya.oci import platform

ME = os.getuid()
BIG = tar(file("big", os.urandom(3 << 20)), owner=ME)
SMALL = tar(file("small", b"1"), owner=ME)


class Desk:
    """A store with an image of two layers, and a registry to push it to."""

    def __init__(self, path: Path, registry: FakeRegistry, **config: Any) -> None:
        self.registry, self.path = registry, path
        self.store = ImageStore(str(path), MemoryCatalog(), quick(**config))
        self.name = registry.name("1")
        self.store.load(pieces(packed(docker_archive(BIG, SMALL, tags=[self.name]))))
        self.manifest = self.store.resolve(self.name).manifest

    def push(self, name: str = "", **more: Any) -> list[Progress]:
        told: list[Progress] = []
        self.store.push(name or self.name, report=told.append, **more)
        return told

    def whole(self) -> bool:
        """Has the registry the image, and can it be pulled?"""
        fresh = ImageStore(str(self.path / "fresh"), MemoryCatalog(), quick())
        return fresh.pull(self.name).manifest == self.manifest


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as running:
        yield running


@pytest.fixture
def desk(tmp_path: Path, registry: FakeRegistry) -> Desk:
    return Desk(tmp_path, registry)


def lines(told: list[Progress]) -> list[str]:
    return [f"{p.layer}: {p.status}" if p.layer else p.status for p in told if p.status != "Pushing"]


def test_a_push_is_told_in_dockerds_words(desk: Desk) -> None:
    told = desk.push()
    big, small = digest_of(BIG)[7:19], digest_of(SMALL)[7:19]
    found = lines(told)
    repository = desk.name.rpartition(":")[0]
    size = len(desk.registry.manifests["1"][0])
    assert found[:3] == [
        f"The push refers to repository [{repository}]",
        f"{small}: Preparing",
        f"{big}: Preparing",
    ]
    assert sorted(found[3:5]) == sorted([f"{small}: Pushed", f"{big}: Pushed"])
    assert found[5:] == [f"1: digest: {desk.manifest} size: {size}", ""]
    assert told[-1].aux == {"Tag": "1", "Digest": desk.manifest, "Size": size}
    moving = [p for p in told if p.status == "Pushing" and p.layer == big]
    assert moving and all(0 < p.current <= p.total == len(BIG) for p in moving)
    assert desk.whole()
    # it is known by its digest there from now on, and nothing is sent a second time
    assert f"{repository}@{desk.manifest}" in desk.store.resolve(desk.name).names
    desk.registry.said.clear()
    found = lines(desk.push())
    assert sorted(found[3:5]) == sorted(f"{x}: Layer already exists" for x in (small, big))
    assert {line.split()[0] for line in desk.registry.said} == {"HEAD", "PUT"}
    assert sum(line.startswith("PUT") for line in desk.registry.said) == 1


def test_all_tags_and_what_is_not_here(desk: Desk) -> None:
    repository = desk.name.rpartition(":")[0]
    desk.store.tag(desk.name, f"{repository}:2")
    desk.push(repository)
    assert {"1", "2"} <= set(desk.registry.manifests)
    for name, kind, why in (
        (f"{repository}:3", NotFound, f"tag does not exist: {repository}:3"),
        (f"{desk.registry.address}/other:1", NotFound, "An image does not exist locally with the tag: "),
        (f"{repository}@{desk.manifest}", InvalidArgument, "cannot push a digest reference"),
    ):
        with pytest.raises(kind, match=why):
            desk.push(name)


def test_a_blob_of_another_repository_is_mounted(desk: Desk) -> None:
    desk.push()
    desk.registry.elsewhere["a/b"] = {digest_of(BIG)}
    other = f"{desk.registry.address}/c/d:1"
    desk.store.tag(desk.name, other)
    for digest in list(desk.registry.blobs):
        del desk.registry.blobs[digest]
    desk.registry.said.clear()
    found = lines(desk.push(other))
    assert f"{digest_of(BIG)[7:19]}: Mounted from a/b" in found
    assert f"{digest_of(SMALL)[7:19]}: Pushed" in found  # the offer to mount was the begin of its upload
    assert sum("mount=" in line for line in desk.registry.said) == 2
    assert not any(line.startswith("PATCH") for line in desk.registry.said)


def test_an_unplugged_cable_is_gone_on_with(desk: Desk) -> None:
    cuts = [1_000_000, 700_000]
    desk.registry.takes = lambda method, path: cuts.pop() if method == "PATCH" and cuts else 1 << 60
    desk.push()
    assert cuts == [] and desk.whole()
    ranges = [h["content-range"] for _, h in desk.registry.asked if "content-range" in h]
    starts = [int(r.partition("-")[0]) for r in ranges]
    assert starts == [0, 700_000, 1_700_000]


def test_a_forgotten_upload_begins_anew(desk: Desk) -> None:
    registry, cuts = desk.registry, [700_000]
    registry.takes = lambda method, path: cuts.pop() if method == "PATCH" and cuts else 1 << 60

    def forget(path: str, headers: dict[str, str]) -> None:
        if registry.said[-1].startswith("GET /v2/a/b/blobs/uploads/"):
            registry.uploads.clear()

    registry.script = forget
    desk.push()
    assert desk.whole()


def test_a_lost_answer_is_no_second_upload(desk: Desk) -> None:
    registry = desk.registry

    def lose(path: str, headers: dict[str, str]) -> None:
        if (
            registry.said[-1].startswith("PUT")
            and digest_of(BIG)[7:] in path
            and digest_of(BIG) not in registry.blobs
        ):
            registry.blobs[digest_of(BIG)] = BIG
            raise Answer(201, b"x" * 10, {"Content-Length": "100"}, cut=-10)

    registry.script = lose
    desk.push()
    assert sum(line.startswith("PATCH") for line in registry.said) == 1


def test_too_large_for_a_proxy(desk: Desk) -> None:
    registry = desk.registry

    def bound(path: str, headers: dict[str, str]) -> None:
        if int(headers.get("content-length", 0)) > 1 << 20:
            raise Answer(413)

    registry.script = bound
    desk.push()
    assert desk.whole()
    assert sum(line.startswith("PATCH") for line in registry.said) >= 3
    registry.blobs.clear()
    registry.script = lambda path, headers: (
        _raise(413) if "uploads" in path and "content-range" in headers else None
    )
    with pytest.raises(Unavailable, match="413"):
        desk.push()


def _raise(status: int, body: bytes = b"", **headers: str) -> None:
    raise Answer(status, body, {k.replace("_", "-"): v for k, v in headers.items()})


def test_a_least_size_of_pieces_is_kept(desk: Desk) -> None:
    registry = desk.registry
    real = registry.write

    def write(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        answer = real(method, path, headers, body)
        if method == "POST":
            answer.headers["OCI-Chunk-Min-Length"] = str(64 << 20)
        return answer

    registry.write = write  # type: ignore[method-assign]
    desk.push()
    assert desk.whole()


def test_a_busy_registry_is_waited_for(desk: Desk) -> None:
    times = {"n": 0}

    def busy(path: str, headers: dict[str, str]) -> None:
        if "uploads" in path and times["n"] < 2:
            times["n"] += 1
            raise Answer(429 if times["n"] == 1 else 503, b"", {"Retry-After": "0"})

    desk.registry.script = busy
    desk.push()
    assert desk.whole()


DENIED = b'{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}'
UNAUTHORIZED = b'{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}'


@pytest.mark.parametrize(
    ("status", "body", "challenge", "kind", "why"),
    [
        (401, b"", 'Basic realm="r"', Unauthenticated, "^no basic auth credentials$"),
        (401, UNAUTHORIZED, "", Unauthenticated, "^unauthorized: authentication required$"),
        (401, b"", "", Unauthenticated, "^unauthorized: authentication required$"),
        (403, DENIED, "", PermissionDenied, "^denied: requested access to the resource is denied$"),
        (403, b"\x00<html>", "", PermissionDenied, "^denied: requested access to the resource is denied$"),
        (405, b"", "", Unavailable, "405 Method Not Allowed"),
        (500, b"", "", Unavailable, "500 Internal Server Error"),
        (429, b"", "", Unavailable, "^toomanyrequests: "),
    ],
)
def test_a_refusal_is_told_as_dockerd_tells_it(
    status: int, body: bytes, challenge: str, kind: type[NagayaError], why: str, desk: Desk
) -> None:
    registry = desk.registry
    headers = {"WWW-Authenticate": challenge} if challenge else {}

    def refuse(path: str, _: dict[str, str]) -> None:
        if path != "/v2/":
            raise Answer(status, body, headers)

    registry.script = refuse
    with pytest.raises(kind, match=why):
        desk.push()
    desk.registry.script = lambda path, headers: None
    desk.push()
    assert desk.whole()


def test_credentials_stay_with_the_registry(desk: Desk) -> None:
    """An upload may lead elsewhere: what goes there is the blob, and nothing that opens the registry."""
    registry = desk.registry
    with FakeRegistry() as storage:
        real = registry.write

        def write(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
            if method == "POST":
                begun = storage.write(method, path, headers, body).headers["Location"]
                return Answer(202, b"", {"Location": f"http://{storage.address}{begun}"})
            return real(method, path, headers, body)

        def login(path: str, headers: dict[str, str]) -> None:
            if path != "/v2/" and "authorization" not in headers:
                raise Answer(401, b"", {"WWW-Authenticate": "Basic realm=r"})

        registry.write, registry.script = write, login  # type: ignore[method-assign]
        desk.push(auth=RegistryAuth("me", "secret"))
        assert digest_of(BIG) in storage.blobs and digest_of(SMALL) in storage.blobs
        assert storage.asked and not any("authorization" in headers for _, headers in storage.asked)


@pytest.mark.parametrize("location", ["", "ftp://x/y", "file:///etc/passwd", "http://[::1"])
def test_an_upload_to_nowhere_is_refused(location: str, desk: Desk) -> None:
    real = desk.registry.write

    def write(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        answer = real(method, path, headers, body)
        if method == "POST":
            answer.headers = {"Location": location} if location else {}
        return answer

    desk.registry.write = write  # type: ignore[method-assign]
    with pytest.raises(Unavailable, match=r"upload to .* refused"):
        desk.push()


def test_a_registry_that_stores_something_else(desk: Desk) -> None:
    real = desk.registry.write

    def write(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        answer = real(method, path, headers, body)
        if "/manifests/" in path:
            answer.headers["Docker-Content-Digest"] = digest_of(b"other")
        return answer

    desk.registry.write = write  # type: ignore[method-assign]
    with pytest.raises(DataLoss, match="the registry stored the manifest as sha256:"):
        desk.push()


def test_a_damaged_blob_is_ours_to_admit(desk: Desk) -> None:
    blob = desk.path / "content/blobs/sha256" / digest_of(BIG)[7:]
    blob.write_bytes(BIG[:-1] + b"x")
    with pytest.raises(DataLoss, match="the stored content does not match its digest"):
        desk.push()
    blob.unlink()
    with pytest.raises(DataLoss, match="is missing: pull the image again"):
        desk.push()


def test_a_whole_index_stays_one(registry: FakeRegistry, tmp_path: Path) -> None:
    kind = "application/vnd.oci.image.index.v1+json"
    host = platform.host()
    other = platform.Platform("linux", "s390x")
    entries = [
        {
            **registry.image(layer, where=where),
            "platform": {"os": where.os, "architecture": where.architecture},
        }
        for layer, where in ((BIG, host), (SMALL, other))
    ]
    document = {"schemaVersion": 2, "mediaType": kind, "manifests": entries}
    registry.manifest(document, "both", kind=kind)
    store = ImageStore(str(tmp_path), MemoryCatalog(), quick())
    name = registry.name("both")
    with FakeRegistry() as target:
        one = f"{target.address}/x/y:1"
        store.pull(name)
        store.tag(name, one)
        store.push(one)  # an image alone, as not all of the index is here
        assert target.manifests["1"][0] == registry.manifests[entries[0]["digest"]][0]
        store.pull(name, wanted="linux/s390x")
        store.pull(name)
        store.tag(name, one)
        store.push(one)
        assert target.manifests["1"] == registry.manifests["both"]
        assert set(target.manifests) >= {entry["digest"] for entry in entries}
        assert set(target.blobs) == set(registry.blobs)
        assert json.loads(target.manifests["1"][0])["manifests"] == entries


def test_foreign_layers_stay_where_they_are(registry: FakeRegistry, tmp_path: Path) -> None:
    foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar"
    descriptor = registry.image(SMALL, tag="f")
    document = json.loads(registry.manifests["f"][0])
    document["layers"][0] |= {
        "mediaType": foreign,
        "urls": [f"http://{registry.address}/v2/x/blobs/{digest_of(SMALL)}"],
    }
    registry.manifest(document, "f")
    assert descriptor["size"]
    store = ImageStore(str(tmp_path), MemoryCatalog(), quick())
    store.pull(registry.name("f"))
    with FakeRegistry() as target:
        store.tag(registry.name("f"), f"{target.address}/x:1")
        told: list[Progress] = []
        store.push(f"{target.address}/x:1", report=told.append)
        assert "Skipped foreign layer" in {p.status for p in told}
        assert digest_of(SMALL) not in target.blobs and "1" in target.manifests


def test_scopes_are_those_of_the_push(desk: Desk) -> None:
    """Docker's token flow: pull and push here, pull where blobs are mounted from."""
    registry = desk.registry
    desk.push()
    registry.blobs.clear()
    other = f"{registry.address}/c/d:1"
    desk.store.tag(desk.name, other)
    realm = f"http://{registry.address}/token"
    scopes: list[str] = []

    def script(path: str, headers: dict[str, str]) -> None:
        if path.startswith("/token"):
            scopes.extend(re.findall("scope=([^&]*)", path))
            raise Answer(200, b'{"token":"t"}')
        if path != "/v2/" and headers.get("authorization") != "Bearer t":
            challenge = f'Bearer realm="{realm}",scope="repository:c/d:pull"'
            raise Answer(401, b"", {"WWW-Authenticate": challenge})

    registry.script = script
    desk.push(other)
    assert scopes == [
        "repository%3Ac%2Fd%3Apull%2Cpush",
        "repository%3Aa%2Fb%3Apull",
        "repository%3Ac%2Fd%3Apull",
    ]
