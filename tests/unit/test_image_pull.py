"""Pulling from a registry that is honest, slow, broken or a liar: what comes, what is said, what stays."""

from __future__ import annotations

import base64
import gzip
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fakeregistry import OCI_INDEX, OCI_MANIFEST, Answer, FakeRegistry, digest_of, file, quick, tar
from memory_catalog import MemoryCatalog

from nagaya.errors import (
    Cancelled,
    DataLoss,
    InvalidArgument,
    NagayaError,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from nagaya.image.auth import RegistryAuth
from nagaya.image.layers import Limits
from nagaya.image.pull import Progress
from nagaya.image.store import ImageStore
from nagaya.oci.platform import Platform

ME = os.getuid()
BASE = tar(file("a", b"one\n"), file("both", b"low\n"), owner=ME)
TOP = tar(file("b", b"two\n"), file("both", b"high\n"), owner=ME)
BIG = tar(file("big", os.urandom(1 << 20)), owner=ME)


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as running:
        yield running


def store_at(path: Path, **config: Any) -> ImageStore:
    return ImageStore(str(path), MemoryCatalog(), quick(**config))


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return store_at(tmp_path)


def left(path: Path) -> list[str]:
    """Every file and layer that a pull may leave."""
    found = [str(p.relative_to(path)) for p in (path / "content").rglob("*") if p.is_file()]
    return found + [p.name for p in (path / "snapshots/l").iterdir() if p.name != "empty"]


def read(store: ImageStore, name: str, path: str) -> bytes:
    """A file of the image, as overlayfs would show it."""
    rootfs = store.prepare("reader-" + os.urandom(4).hex(), store.resolve(name).id)
    found = [Path(layer, path) for layer in rootfs["lower"] if Path(layer, path).exists()]
    return found[0].read_bytes()


def gzipped(data: bytes) -> bytes:
    """The same bytes in every second: the header has room for a time."""
    return gzip.compress(data, mtime=0)


def test_a_pull_tells_what_dockerd_tells(registry: FakeRegistry, store: ImageStore) -> None:
    registry.image(BASE, TOP, packed=gzipped)
    told: list[Progress] = []
    image = store.pull(registry.name(), report=told.append)
    words = [p.status for p in told]
    assert words[0] == "Pulling from a/b"
    assert words.count("Pulling fs layer") == 2
    for word in ("Verifying Checksum", "Download complete", "Pull complete"):
        assert words.count(word) == 2
    digest = digest_of(registry.manifests["1"][0])
    assert words[-2:] == [
        f"Digest: {digest}",
        f"Status: Downloaded newer image for {registry.name()}",
    ]
    assert {p.layer for p in told[1:] if p.layer} == {digest_of(gzipped(x))[7:19] for x in (BASE, TOP)}
    assert image.names == (registry.name(), f"{registry.address}/a/b@{digest}")
    assert image.config is not None and image.config.cmd == ["true"]
    assert read(store, registry.name(), "both") == b"high\n"
    assert read(store, registry.name(), "a") == b"one\n"
    again: list[Progress] = []
    store.pull(registry.name(), report=again.append)
    assert [p.layer for p in again if p.layer] == ["1"]  # of what is here no layers are told
    assert again[-1].status == f"Status: Image is up to date for {registry.name()}"
    assert registry.count("/blobs/") == 3


def test_all_tags_of_a_repository_page_by_page(registry: FakeRegistry, store: ImageStore) -> None:
    registry.image(BASE, tag="1")
    registry.image(BASE, TOP, tag="2")
    registry.image(BASE, TOP, tag="latest")
    pages = {
        "/v2/a/b/tags/list": (["1", "2"], '</v2/a/b/tags/list?n=2&last=2>; rel="next"'),
        "/v2/a/b/tags/list?n=2&last=2": (["latest"], ""),
    }

    def script(path: str, headers: dict[str, str]) -> None:
        if path in pages:
            tags, link = pages[path]
            raise Answer(200, json.dumps({"name": "a/b", "tags": tags}).encode(), {"Link": link})

    registry.script = script
    told: list[Progress] = []
    name = f"{registry.address}/a/b"
    pulled = store.pull_all(name, report=told.append)
    assert [len(i.document.diff_ids) for i in pulled] == [1, 2]
    assert [p.layer for p in told if p.status == "Pulling from a/b"] == ["1", "2", "latest"]
    assert sum(p.status.startswith("Digest: ") for p in told) == 3
    assert told[-1].status == f"Status: Downloaded newer image for {name}"
    assert len({n for i in store.list() for n in i.names if "@" not in n}) == 3
    store.pull_all(name, report=told.append)
    assert told[-1].status == f"Status: Image is up to date for {name}"


@pytest.mark.parametrize(
    ("body", "link"),
    [
        (b'{"tags":["../../x"]}', ""),
        (b'{"tags":[1]}', ""),
        (b"[" * 100_000, ""),
        (json.dumps({"tags": [f"t{n}" for n in range(10_001)]}).encode(), ""),
        (b'{"tags":["1"]}', '</v2/a/b/tags/list?last=1>; rel="next"'),  # the same page for ever
    ],
)
def test_a_list_of_tags_that_lies(registry: FakeRegistry, store: ImageStore, body: bytes, link: str) -> None:
    def script(path: str, headers: dict[str, str]) -> None:
        if "/tags/list" in path:
            raise Answer(200, body, {"Link": link})

    registry.script = script
    with pytest.raises((InvalidArgument, NotFound)):
        store.pull_all(f"{registry.address}/a/b")
    assert registry.count("/tags/list") <= 2


def test_a_descriptor_may_carry_annotations(registry: FakeRegistry, store: ImageStore) -> None:
    registry.image(BASE, TOP, annotations={"org.example.anything": "x"})
    assert len(store.pull(registry.name()).document.diff_ids) == 2


def test_the_same_layer_twice_is_fetched_once(registry: FakeRegistry, store: ImageStore) -> None:
    registry.image(BASE, TOP, BASE)
    image = store.pull(registry.name())
    assert len(image.document.diff_ids) == 3
    assert registry.count(digest_of(BASE)) == 1
    assert read(store, registry.name(), "both") == b"low\n"


def test_an_image_without_layers(registry: FakeRegistry, store: ImageStore) -> None:
    registry.image()
    image = store.pull(registry.name())
    assert image.document.diff_ids == () and image.size == 0
    assert store.prepare("c" * 64, image.id)["lower"]


def test_an_index_is_resolved_to_the_platform(registry: FakeRegistry, store: ImageStore) -> None:
    mine = registry.image(BASE, tag="mine")
    other = registry.image(TOP, tag="other", where=Platform("linux", "s390x"))
    here = store.pull(registry.name("mine")).document.platform
    index = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [
            {**mine, "platform": {"os": "unknown", "architecture": "unknown"}, "artifactType": "x/y"},
            {**other, "platform": {"os": "linux", "architecture": "s390x"}},
            {**mine, "platform": {"os": here.os, "architecture": here.architecture}},
        ],
    }
    described = registry.manifest(index, "many", kind=OCI_INDEX)
    image = store.pull(registry.name("many"))
    assert image.manifest == mine["digest"]
    assert f"{registry.address}/a/b@{described['digest']}" in image.names
    assert store.pull(registry.name("many"), "linux/s390x").manifest == other["digest"]
    with pytest.raises(NotFound, match=r"no matching manifest for linux/riscv64 in the manifest list"):
        store.pull(registry.name("many"), "linux/riscv64")
    # of a single image there is nothing to choose: it is kept, and its user warned
    told: list[Progress] = []
    assert store.pull(registry.name("mine"), "linux/s390x", report=told.append).manifest == mine["digest"]
    (warning,) = [p.status for p in told if p.status.startswith("WARNING: ")]
    assert "specified platform (linux/s390x), but the resulting image's configured platform (" in warning
    with pytest.raises(NotFound, match="does not match the specified platform"):
        store.resolve(registry.name("mine"), "linux/s390x")


def test_by_digest(registry: FakeRegistry, store: ImageStore) -> None:
    digest = registry.image(BASE)["digest"]
    image = store.pull(f"{registry.address}/a/b@{digest}")
    assert image.names == (f"{registry.address}/a/b@{digest}",)
    assert store.resolve(f"{registry.address}/a/b:ignored@{digest}").id == image.id


# resume and company


def test_a_broken_download_is_taken_up_where_it_broke(registry: FakeRegistry, store: ImageStore) -> None:
    registry.image(BIG)
    broken: list[str] = []

    def script(path: str, headers: dict[str, str]) -> None:
        if digest_of(BIG) in path and len(broken) < 2:
            start = int(headers.get("range", "bytes=0-")[6:-1])
            broken.append(headers.get("range", ""))
            said = {"Content-Range": f"bytes {start}-{len(BIG) - 1}/{len(BIG)}"}
            raise Answer(206 if start else 200, BIG[start:], said if start else {}, cut=300_000)

    registry.script = script
    store.pull(registry.name())
    ranges = [h.get("range", "") for p, h in registry.asked if digest_of(BIG) in p]
    assert ranges == ["", "bytes=300000-", "bytes=600000-"]


def test_another_process_takes_up_what_the_last_one_left(registry: FakeRegistry, tmp_path: Path) -> None:
    registry.image(BIG)

    def script(path: str, headers: dict[str, str]) -> None:
        if digest_of(BIG) in path:
            if headers.get("range"):
                raise Answer(503, headers={"Retry-After": "100000"})
            raise Answer(200, BIG, cut=500_000)

    registry.script = script
    with pytest.raises(Unavailable):
        store_at(tmp_path).pull(registry.name())
    assert any("ingest" in f for f in left(tmp_path))
    registry.script = lambda path, headers: None
    registry.asked.clear()
    store = store_at(tmp_path)
    store.recover()
    store.pull(registry.name())
    assert [h.get("range") for p, h in registry.asked if digest_of(BIG) in p] == ["bytes=500000-"]
    assert len(read(store, registry.name(), "big")) == 1 << 20


def test_a_wrong_left_over_is_no_hindrance(registry: FakeRegistry, tmp_path: Path) -> None:
    registry.image(BIG)
    store = store_at(tmp_path)
    partial = tmp_path / "content/ingest" / digest_of(BIG).replace(":", "-")
    partial.write_bytes(BIG[:1000] + b"not the blob's bytes")
    store.pull(registry.name())
    assert len(read(store, registry.name(), "big")) == 1 << 20


def test_a_registry_without_ranges_is_read_from_the_start(registry: FakeRegistry, tmp_path: Path) -> None:
    registry.image(BIG)
    store = store_at(tmp_path)
    (tmp_path / "content/ingest" / digest_of(BIG).replace(":", "-")).write_bytes(BIG[:1000])

    def script(path: str, headers: dict[str, str]) -> None:
        if headers.get("range"):
            raise Answer(200, BIG)

    registry.script = script
    store.pull(registry.name())
    assert len(read(store, registry.name(), "big")) == 1 << 20


def test_sixteen_pulls_of_one_image_fetch_it_once(registry: FakeRegistry, store: ImageStore) -> None:
    registry.image(BASE, TOP, BIG)
    with ThreadPoolExecutor(16) as pool:
        found = {image.id for image in pool.map(lambda _: store.pull(registry.name()), range(16))}
    assert len(found) == 1
    for layer in (BASE, TOP, BIG):
        assert registry.count(digest_of(layer)) == 1


def test_sixteen_images_that_share_a_layer(registry: FakeRegistry, store: ImageStore, tmp_path: Path) -> None:
    for number in range(16):
        registry.image(BIG, tar(file("mine", b"%d" % number), owner=ME), tag=str(number))
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: store.pull(registry.name(str(n))), range(16)))
    assert registry.count(digest_of(BIG)) == 1
    for number in range(16):
        assert read(store, registry.name(str(number)), "mine") == b"%d" % number
    assert len(list((tmp_path / "snapshots/l").iterdir())) == 18  # shared, 16 of their own, "empty"


def test_a_cancelled_pull_ends_and_the_one_that_joined_goes_on(
    registry: FakeRegistry, store: ImageStore
) -> None:
    registry.image(BIG)
    begun, go_on, cancel = threading.Event(), threading.Event(), threading.Event()

    def script(path: str, headers: dict[str, str]) -> None:
        if digest_of(BIG) in path:
            begun.set()
            assert go_on.wait(30)

    registry.script = script
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(store.pull, registry.name(), cancel=cancel)
        assert begun.wait(30)
        second = pool.submit(store.pull, registry.name())
        cancel.set()
        go_on.set()
        with pytest.raises(Cancelled):
            first.result(60)
        assert second.result(60).names


# who may see whose credentials


def bearer(registry: FakeRegistry, *, user: str = "", scope: str = "repository:a/b:pull") -> None:
    """The registry wants a token, which its own /token gives to `user` ("": anybody)."""

    def script(path: str, headers: dict[str, str]) -> None:
        if path.startswith("/token"):
            if user and headers.get("authorization") != "Basic " + base64.b64encode(user.encode()).decode():
                raise Answer(401)
            assert "service=the-service" in path and f"scope={scope.replace(':', '%3A')}" in path.replace(
                "%2F", "/"
            )
            raise Answer(200, b'{"token":"sesame","expires_in":60}')
        if path != "/v2/" and headers.get("authorization") != "Bearer sesame":
            challenge = (
                f'Bearer realm="http://{registry.address}/token",service="the-service",scope="{scope}"'
            )
            raise Answer(401, headers={"WWW-Authenticate": challenge})

    registry.script = script


def basic(registry: FakeRegistry, user: str) -> None:
    wanted = "Basic " + base64.b64encode(user.encode()).decode()

    def script(path: str, headers: dict[str, str]) -> None:
        if path != "/v2/" and headers.get("authorization") != wanted:
            raise Answer(401, headers={"WWW-Authenticate": 'Basic realm="x"'})

    registry.script = script


def test_a_token_for_anybody(registry: FakeRegistry, store: ImageStore) -> None:
    registry.image(BASE)
    bearer(registry)
    store.pull(registry.name())
    assert registry.count("/token") == 1


def test_a_token_for_somebody(registry: FakeRegistry, store: ImageStore) -> None:
    registry.image(BASE)
    bearer(registry, user="me:secret")
    with pytest.raises(Unauthenticated, match="incorrect username or password"):
        store.pull(registry.name(), auth=RegistryAuth("me", "wrong"))
    store.pull(registry.name(), auth=RegistryAuth("me", "secret"))


def test_basic_credentials_of_the_request_and_of_the_file(registry: FakeRegistry, tmp_path: Path) -> None:
    registry.image(BASE)
    basic(registry, "me:secret")
    with pytest.raises(NotFound, match=r"pull access denied for .*may require 'docker login'"):
        store_at(tmp_path / "1").pull(registry.name())
    with pytest.raises(Unauthenticated, match="pull access denied"):
        store_at(tmp_path / "1").pull(registry.name(), auth=RegistryAuth("me", "wrong"))
    store_at(tmp_path / "1").pull(registry.name(), auth=RegistryAuth("me", "secret"))
    config = tmp_path / "config.json"
    packed = base64.b64encode(b"me:secret").decode()
    config.write_text(json.dumps({"auths": {registry.address: {"auth": packed}}}))
    store_at(tmp_path / "2", docker_config=str(config)).pull(registry.name())


def test_a_redirect_to_another_host_carries_no_authorization(
    registry: FakeRegistry, store: ImageStore
) -> None:
    registry.image(BASE)
    basic(registry, "me:secret")
    guarded = registry.script
    with FakeRegistry() as elsewhere:
        elsewhere.blobs = registry.blobs

        def script(path: str, headers: dict[str, str]) -> None:
            guarded(path, headers)
            if "/blobs/" in path:
                raise Answer(307, headers={"Location": f"http://{elsewhere.address}/signed{path}?sig=1"})

        registry.script = script
        store.pull(registry.name(), auth=RegistryAuth("me", "secret"))
        assert elsewhere.count("/signed/") == 2
        assert not any("authorization" in headers for _, headers in elsewhere.asked)


def test_another_host_that_asks_for_credentials_gets_none(registry: FakeRegistry, store: ImageStore) -> None:
    """CVE-2020-15157."""
    registry.image(BASE)
    basic(registry, "me:secret")
    guarded = registry.script
    with FakeRegistry() as thief:

        def steal(path: str, headers: dict[str, str]) -> None:
            raise Answer(401, headers={"WWW-Authenticate": f'Bearer realm="http://{thief.address}/token"'})

        def script(path: str, headers: dict[str, str]) -> None:
            guarded(path, headers)
            if "/blobs/" in path:
                raise Answer(302, headers={"Location": f"http://{thief.address}/x"})

        thief.script, registry.script = steal, script
        with pytest.raises(Unavailable, match="401 Unauthorized after a redirect"):
            store.pull(registry.name(), auth=RegistryAuth("me", "secret"))
        assert thief.count("/x") == 1
        assert thief.count("/token") == 0
        assert not any("authorization" in headers for _, headers in thief.asked)


FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"


def foreign(registry: FakeRegistry, urls: list[str], kind: str = FOREIGN) -> None:
    """An image of one layer which the registry does not serve, but says who does."""
    descriptor = registry.image(BASE)
    document = json.loads(registry.manifests[descriptor["digest"]][0])
    document["layers"][0].update(mediaType=kind, urls=urls)
    registry.manifest(document, "1")
    del registry.blobs[digest_of(BASE)]


def test_a_foreign_layer_comes_from_its_url_without_credentials(
    registry: FakeRegistry, store: ImageStore
) -> None:
    """CVE-2020-15157, also when the other host asks for them."""
    with FakeRegistry() as elsewhere:
        foreign(registry, [f"http://{elsewhere.address}/files/x.tar"])
        basic(registry, "me:secret")
        elsewhere.script = lie(
            "",
            lambda: Answer(401, headers={"WWW-Authenticate": f'Bearer realm="http://{elsewhere.address}/t"'}),
        )
        with pytest.raises(NotFound, match=r"/files/x\.tar.*HTTP status 401"):
            store.pull(registry.name(), auth=RegistryAuth("me", "secret"))
        assert (elsewhere.count("/t"), elsewhere.count("/files/")) == (0, 1)
        elsewhere.script = lie("/files/", lambda: Answer(200, BASE))
        store.pull(registry.name(), auth=RegistryAuth("me", "secret"))
        assert read(store, registry.name(), "both") == b"low\n"
        assert not any("authorization" in headers for _, headers in elsewhere.asked)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("file:///etc/passwd", "is not https"),
        ("http://203.0.113.1/x", "is not https"),
        ("/etc/passwd", "is not https"),
        ("https://[::", r"'invalid:https://\[::' is not https"),
        ("https://x:99999999/", "is not https"),
        ("gopher://127.0.0.1/x", "is not https"),
    ],
)
def test_a_foreign_layer_from_nowhere(
    registry: FakeRegistry, store: ImageStore, tmp_path: Path, url: str, words: str
) -> None:
    foreign(registry, [url])
    with pytest.raises(NagayaError, match=words) as caught:
        store.pull(registry.name())
    assert "\n" not in str(caught.value)
    assert left(tmp_path) == []


def test_an_ordinary_layers_urls_are_not_asked(registry: FakeRegistry, store: ImageStore) -> None:
    with FakeRegistry() as elsewhere:
        foreign(registry, [f"http://{elsewhere.address}/x"], "application/vnd.oci.image.layer.v1.tar")
        with pytest.raises(NotFound):
            store.pull(registry.name())
        assert elsewhere.asked == []


@pytest.mark.parametrize(
    "digest",
    [
        *("sha256:../../../../etc/passwd", "sha256:" + "A" * 64, "sha256:" + "0" * 63 + "\n"),
        *("sha256:" + "0" * 64 + "/../../x", "sha512:" + "0" * 64, "md5:" + "0" * 32, ""),
    ],
)
@pytest.mark.parametrize("where", ["config", "layer", "index", "diff id"])
def test_c_image_2024_3727_what_is_no_digest_is_refused_wherever_it_stands(
    registry: FakeRegistry, store: ImageStore, tmp_path: Path, where: str, digest: str
) -> None:
    if where == "diff id":
        registry.image(BASE, diff_ids=[digest])
    else:
        descriptor = registry.image(BASE)
        document = json.loads(registry.manifests[descriptor["digest"]][0])
        if where == "index":
            document = {"schemaVersion": 2, "manifests": [{**descriptor, "digest": digest}]}
        else:
            (document["config"] if where == "config" else document["layers"][0])["digest"] = digest
        registry.manifest(document, "1", kind=OCI_INDEX if where == "index" else OCI_MANIFEST)
    with pytest.raises(InvalidArgument, match=r"invalid (digest|diff id)"):
        store.pull(registry.name())
    assert left(tmp_path) == []
    assert not any(".." in path for path, _ in registry.asked)


def test_a_giant_configuration_is_refused_before_it_is_fetched(
    registry: FakeRegistry, store: ImageStore, tmp_path: Path
) -> None:
    descriptor = registry.image(BASE)
    document = json.loads(registry.manifests[descriptor["digest"]][0])
    config = document["config"]["digest"]
    document["config"]["size"] = 1 << 40
    registry.manifest(document, "1")
    with pytest.raises(InvalidArgument, match=f"has size {1 << 40} in config"):
        store.pull(registry.name())
    assert registry.count(config) == 0
    document["config"]["size"] = 100  # and one that is longer than announced is not read to its end
    registry.manifest(document, "1")
    registry.script = lie(config, lambda: Answer(200, b" " * (64 << 20), {"Transfer-Encoding": "x"}))
    with pytest.raises((DataLoss, Unavailable)):
        store.pull(registry.name())
    assert left(tmp_path) == []


def test_a_mirror_is_asked_first_and_never_with_the_registrys_credentials(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.image(BASE)
    basic(registry, "me:secret")
    with FakeRegistry() as mirror:
        mirror.blobs, mirror.manifests = dict(registry.blobs), registry.manifests
        del mirror.blobs[digest_of(BASE)]  # which it does not have yet
        store = store_at(tmp_path, mirrors={registry.address: [f"http://{mirror.address}"]})
        store.pull(registry.name(), auth=RegistryAuth("me", "secret"))
        assert mirror.count("/manifests/") == 1 and mirror.count("/blobs/") == 2
        assert registry.count("/manifests/") == 0
        assert not any("authorization" in headers for _, headers in mirror.asked)


def test_a_dead_mirror_is_no_hindrance(registry: FakeRegistry, tmp_path: Path) -> None:
    registry.image(BASE)
    store = store_at(tmp_path, mirrors={registry.address: ["http://127.0.0.1:1"]})
    assert store.pull(registry.name()).names


# liars


def lie(part: str, answer: Callable[[], Answer]) -> Callable[[str, dict[str, str]], None]:
    def script(path: str, headers: dict[str, str]) -> None:
        if part in path:
            raise answer()

    return script


def no_token(path: str, headers: dict[str, str]) -> None:
    if path.startswith("/token"):
        raise Answer(200, b'{"token":"with a\\nline"}')
    raise Answer(401, headers={"WWW-Authenticate": 'Bearer realm="/token"'})


OTHER = tar(file("a", b"six\n"), file("both", b"LOW\n"), owner=ME)
BLOB = f"/blobs/{digest_of(BASE)}"
LIES: dict[str, tuple[Callable[[str, dict[str, str]], None], type[NagayaError], str]] = {
    "manifest-404": (lie("/manifests/", lambda: Answer(404)), NotFound, "manifest for .* not found"),
    "manifest-401": (lie("/manifests/", lambda: Answer(401)), NotFound, "pull access denied"),
    "manifest-403": (lie("/manifests/", lambda: Answer(403)), NotFound, "denied"),
    "manifest-500": (
        lie("/manifests/", lambda: Answer(500)),
        Unavailable,
        "received unexpected HTTP status: 500 Internal Server Error",
    ),
    "manifest-429": (
        lie("/manifests/", lambda: Answer(429, headers={"Retry-After": "86400"})),
        Unavailable,
        "toomanyrequests",
    ),
    "manifest-no-json": (lie("/manifests/", lambda: Answer(200, b"<html>")), InvalidArgument, "not valid"),
    "manifest-deep": (
        lie("/manifests/", lambda: Answer(200, b'{"manifests":' + b"[" * 200_000)),
        InvalidArgument,
        "manifest",
    ),
    "manifest-too-big": (
        lie("/manifests/", lambda: Answer(200, b" " * ((4 << 20) + 1))),
        InvalidArgument,
        "over the limit",
    ),
    "manifest-digest": (
        lie("/manifests/", lambda: Answer(200, b"{}", {"Docker-Content-Digest": digest_of(b"x")})),
        DataLoss,
        "has digest",
    ),
    "manifest-both": (  # CVE-2021-41190
        lie("/manifests/", lambda: Answer(200, b'{"schemaVersion":2,"manifests":[],"layers":[]}')),
        InvalidArgument,
        "both 'manifests' and 'layers'",
    ),
    "manifest-schema1": (
        lie("/manifests/", lambda: Answer(200, b'{"schemaVersion":1,"fsLayers":[]}')),
        Unimplemented,
        "schema 1 is no longer supported",
    ),
    "blob-wrong": (lie(BLOB, lambda: Answer(200, OTHER)), DataLoss, "the blob's digest is"),
    "blob-short": (lie(BLOB, lambda: Answer(200, BASE[:-1])), DataLoss, "its descriptor says"),
    "blob-long": (lie(BLOB, lambda: Answer(200, BASE + b"x")), DataLoss, "its descriptor says"),
    "blob-truncated": (
        lie(BLOB, lambda: Answer(200, b"", {"Content-Length": str(len(BASE))}, cut=0)),
        Unavailable,
        "connection broken|ended the blob",
    ),
    "blob-404": (lie(BLOB, lambda: Answer(404)), NotFound, "not found"),
    "blob-503": (lie(BLOB, lambda: Answer(503)), Unavailable, "503 Service Unavailable"),
    "loop": (
        lie("/manifests/", lambda: Answer(302, headers={"Location": "/v2/a/b/manifests/1"})),
        Unavailable,
        "stopped after 10 redirects",
    ),
    "redirect-to-file": (
        lie("/manifests/", lambda: Answer(302, headers={"Location": "file:///etc/passwd"})),
        Unavailable,
        "redirect to 'file:///etc/passwd' refused",
    ),
    "redirect-to-nonsense": (
        lie("/manifests/", lambda: Answer(302, headers={"Location": "https://[::"})),
        Unavailable,
        r"redirect to 'invalid:https://\[::' refused",
    ),
    "token-server-nonsense": (
        lie("", lambda: Answer(401, headers={"WWW-Authenticate": 'Bearer realm="https://[::"'})),
        Unauthenticated,
        "is not a URL",
    ),
    "token-server-no-token": (
        no_token,
        Unauthenticated,
        "the token server's answer holds no token",
    ),
    "token-server-elsewhere": (
        lie("", lambda: Answer(401, headers={"WWW-Authenticate": 'Bearer realm="ftp://x/y"'})),
        Unauthenticated,
        "is not a URL",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lying_registry_gets_one_clear_line_and_leaves_nothing(
    name: str, registry: FakeRegistry, store: ImageStore, tmp_path: Path
) -> None:
    script, kind, words = LIES[name]
    registry.image(BASE, TOP)
    registry.script = script
    with pytest.raises(kind, match=words) as caught:
        store.pull(registry.name())
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500, text
    assert store.list() == []
    if not isinstance(caught.value, Unavailable):
        assert left(tmp_path) == []
    # and whatever it was, an honest registry works afterwards, with the same store
    registry.script = lambda path, headers: None
    store.pull(registry.name())
    assert read(store, registry.name(), "both") == b"high\n"


def test_who_waits_as_told_gets_the_image(registry: FakeRegistry, store: ImageStore) -> None:
    registry.image(BASE)
    answers = [Answer(429, headers={"Retry-After": "0"}), Answer(503)]

    def script(path: str, headers: dict[str, str]) -> None:
        if "/manifests/" in path and answers:
            raise answers.pop(0)

    registry.script = script
    store.pull(registry.name())
    assert registry.count("/manifests/") == 3


def test_nobody_listens(store: ImageStore) -> None:
    with pytest.raises(Unavailable, match=r'Get "http.*127\.0\.0\.1:1/v2/.*": connection refused'):
        store.pull("127.0.0.1:1/a/b")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Upper/Case", "must be lowercase"),
        ("", "invalid reference format"),
        ("a/b:", "invalid reference format"),
        ("a/b@sha256:12", "invalid reference format"),
        ("x" * 300, "more than 255"),
        ("a\n/b", "invalid reference format"),
    ],
)
def test_a_wrong_name_asks_nobody(store: ImageStore, name: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        store.pull(name)


def test_a_wrong_platform_asks_nobody(registry: FakeRegistry, store: ImageStore) -> None:
    with pytest.raises(InvalidArgument, match=r"invalid platform|unknown operating system"):
        store.pull(registry.name(), "a/b/c/d")
    assert registry.asked == []


def test_layers_and_configuration_must_agree(
    registry: FakeRegistry, store: ImageStore, tmp_path: Path
) -> None:
    registry.image(BASE, TOP, diff_ids=[digest_of(BASE)])
    with pytest.raises(InvalidArgument, match="manifest has 2 layers, its configuration 1"):
        store.pull(registry.name())
    registry.image(BASE, TOP, diff_ids=[digest_of(BASE), digest_of(b"")], tag="2")
    with pytest.raises(DataLoss, match="the configuration says"):
        store.pull(registry.name("2"))
    assert left(tmp_path) == []


def test_a_bomb_ends_at_the_limit(registry: FakeRegistry, tmp_path: Path) -> None:
    registry.image(tar(file("bomb", bytes(8 << 20)), owner=ME), packed=gzipped)
    store = store_at(tmp_path, limits=Limits(size=1 << 20))
    with pytest.raises(NagayaError, match="unpacks to more than 1048576 bytes"):
        store.pull(registry.name())
    assert left(tmp_path) == []


def test_one_bad_layer_spoils_nobody_elses_pull(
    registry: FakeRegistry, store: ImageStore, tmp_path: Path
) -> None:
    registry.image(BASE, BIG, tag="good")
    registry.image(BASE, TOP, diff_ids=[digest_of(BASE), digest_of(b"")], tag="bad")
    with ThreadPoolExecutor(2) as pool:
        for _ in range(4):
            bad = pool.submit(store.pull, registry.name("bad"))
            good = pool.submit(store.pull, registry.name("good"))
            assert isinstance(bad.exception(60), DataLoss)
            assert good.result(60).names
    assert read(store, registry.name("good"), "a") == b"one\n"
    assert len([f for f in left(tmp_path) if "/" not in f]) == 2


def test_permission_denied_to_who_is_known(registry: FakeRegistry, store: ImageStore) -> None:
    registry.image(BASE)
    registry.script = lie("/manifests/", lambda: Answer(403))
    with pytest.raises(PermissionDenied, match="pull access denied"):
        store.pull(registry.name(), auth=RegistryAuth("me", "secret"))


@pytest.mark.parametrize("how", ["other bytes", "zeros", "cut short", "empty"])
@pytest.mark.parametrize("packed", [lambda data: data, gzipped], ids=["plain", "gzip"])
def test_a_damaged_blob_with_its_lost_layer_is_repaired_though_another_image_has_it(
    registry: FakeRegistry, tmp_path: Path, how: str, packed: Callable[[bytes], bytes]
) -> None:
    registry.image(BASE, tag="one", packed=packed)
    registry.image(BASE, TOP, tag="two", packed=packed)
    catalog = MemoryCatalog()
    store = ImageStore(str(tmp_path), catalog, quick())
    store.pull(registry.name("one"))
    store.pull(registry.name("two"))
    digest = digest_of(packed(BASE))
    blob = tmp_path / "content/blobs" / digest.replace(":", "/")
    blob.chmod(0o600)
    data = blob.read_bytes()
    half = len(data) // 2
    blob.write_bytes(
        {
            "other bytes": data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :],
            "zeros": bytes(len(data)),
            "cut short": data[:half],
            "empty": b"",
        }[how]
    )
    row = catalog.layer(digest_of(BASE))
    assert row is not None
    os.rename(tmp_path / "snapshots/l" / row.directory, tmp_path / "away")
    store = ImageStore(str(tmp_path), catalog, quick())
    store.recover()
    with pytest.raises(DataLoss, match="pull the image again"):
        read(store, registry.name("two"), "both")
    store.pull(registry.name("one"))
    assert read(store, registry.name("one"), "both") == b"low\n"
    assert read(store, registry.name("two"), "both") == b"high\n"
    assert digest_of(blob.read_bytes()) == digest


def test_a_layer_that_vanished_under_a_running_daemon_is_repaired_without_a_restart(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.image(BASE)
    catalog = MemoryCatalog()
    store = ImageStore(str(tmp_path), catalog, quick())
    store.pull(registry.name())
    os.rename(tmp_path / "snapshots/l" / catalog.layers()[0].directory, tmp_path / "away")
    with pytest.raises(DataLoss, match="pull the image again"):
        read(store, registry.name(), "both")
    store.pull(registry.name())
    assert read(store, registry.name(), "both") == b"low\n"


def test_a_damaged_manifest_is_repaired_too(registry: FakeRegistry, tmp_path: Path) -> None:
    descriptor = registry.image(BASE)
    store = store_at(tmp_path)
    store.pull(registry.name())
    blob = tmp_path / "content/blobs" / descriptor["digest"].replace(":", "/")
    blob.chmod(0o600)
    blob.write_bytes(b"")
    store.pull(registry.name())
    assert digest_of(blob.read_bytes()) == descriptor["digest"]


def test_a_damaged_or_missing_file_is_repaired_by_the_next_pull(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.image(BASE, TOP)
    catalog = MemoryCatalog()
    store = ImageStore(str(tmp_path), catalog, quick())
    image = store.pull(registry.name())
    config = tmp_path / "content/blobs" / image.id.replace(":", "/")
    config.chmod(0o600)
    config.write_bytes(b"{}")
    row = catalog.layers()[0]
    os.rename(tmp_path / "snapshots/l" / row.directory, tmp_path / "away")
    store = ImageStore(str(tmp_path), catalog, quick())
    store.recover()
    with pytest.raises(DataLoss, match="pull it again"):
        store.resolve(registry.name())
    store.pull(registry.name())
    assert read(store, registry.name(), "both") == b"high\n"
    assert OCI_MANIFEST in registry.manifests["1"][0].decode()
