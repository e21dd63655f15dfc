"""Searching registries, and files from the web: honest servers, lying ones, and none."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakeregistry import Answer, FakeRegistry, file, quick, tar
from memory_catalog import MemoryCatalog

from nagaya.errors import (
    Cancelled,
    InvalidArgument,
    NagayaError,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from nagaya.image import search
from nagaya.image.auth import RegistryAuth
from nagaya.image.making import Recipe
from nagaya.image.pull import Progress
from nagaya.image.search import Found
from nagaya.image.store import ImageStore

RECIPE = Recipe({}, "2026-01-02T03:04:05Z")


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as running:
        yield running


def store_at(path: Path, **changes: Any) -> ImageStore:
    return ImageStore(str(path / "root"), MemoryCatalog(), quick(**changes))


def answers(registry: FakeRegistry, table: dict[str, Answer]) -> None:
    """What is asked for is answered by the longest beginning of the path that is in the table."""

    def script(path: str, headers: dict[str, str]) -> None:
        for beginning in sorted(table, key=len, reverse=True):
            if path.startswith(beginning):
                raise table[beginning]
        raise Answer(404)

    registry.script = script


def results(*found: dict[str, Any]) -> Answer:
    return Answer(200, json.dumps({"results": found}).encode())


def test_terms() -> None:
    table = {
        "app": ("docker.io", "app"),
        "team/app": ("docker.io", "team/app"),
        "library/app": ("docker.io", "app"),
        "docker.io/app": ("docker.io", "app"),
        "localhost/app": ("localhost", "app"),
        "r.example:5000/a/b": ("r.example:5000", "a/b"),
        "Zwei Wörter": ("docker.io", "Zwei Wörter"),
    }
    for term, wanted in table.items():
        assert search.split(term) == wanted
    for term in ("", "r.example/", "http://r.example/a", "a\nb", "-x.y/a", "a" * 256, "r.example:x/a"):
        with pytest.raises(InvalidArgument):
            search.split(term)


def test_what_a_registry_finds(registry: FakeRegistry, tmp_path: Path) -> None:
    first = {"name": "team/app", "star_count": 3, "is_automated": True, "description": "two\nlines\x1b[2J"}
    official = {"name": f"{registry.address}/app", "is_official": True, "description": None}
    answers(registry, {"/v1/search?q=a+b&n=2": results(first, {"name": ""}, official)})
    found = store_at(tmp_path).search(f"{registry.address}/a b", 2)
    assert found == [Found(f"{registry.address}/team/app", "two lines [2J", 3, automated=True)]


def test_what_a_registry_lists(registry: FakeRegistry, tmp_path: Path) -> None:
    """Where there is no search: page by page, as far as needed."""
    link = {"Link": '</v2/_catalog?last=b%2Fapp&n=1000>; rel="next"'}
    answers(
        registry,
        {
            "/v2/_catalog?n=1000": Answer(200, b'{"repositories":["app","b/app","c"]}', link),
            "/v2/_catalog?last": Answer(200, b'{"repositories":["z/app"]}'),
        },
    )
    store, here = store_at(tmp_path), registry.address
    assert [f.name for f in store.search(f"{here}/app", 9)] == [
        f"{here}/{n}" for n in ("app", "b/app", "z/app")
    ]
    asked = len(registry.asked)
    assert len(store.search(f"{here}/app", 2)) == 2
    assert [path for path, _ in registry.asked[asked:] if "last" in path] == []


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answer(404), NotFound),
        (Answer(401), Unauthenticated),
        (Answer(403), PermissionDenied),
        (Answer(429), Unavailable),
        (Answer(502), Unavailable),
        (Answer(200, b"<html>hello</html>"), NotFound),
        (Answer(200, b'{"results":[{"name":7}]}'), NotFound),
        (Answer(200, b'{"results":' + b"[" * 100_000), NotFound),
    ],
)
def test_a_registry_that_cannot_or_will_not(
    registry: FakeRegistry, tmp_path: Path, answer: Answer, kind: type[NagayaError]
) -> None:
    answers(registry, {"/v1/search": answer})
    with pytest.raises(kind, match=f"registry {registry.address} cannot be searched"):
        store_at(tmp_path).search(f"{registry.address}/app", 5)


def test_a_catalog_that_never_ends(registry: FakeRegistry, tmp_path: Path) -> None:
    page = Answer(200, b'{"repositories":["x"]}', {"Link": '</v2/_catalog?n=1>; rel="next"'})
    answers(registry, {"/v2/_catalog": page})
    assert store_at(tmp_path).search(f"{registry.address}/app", 5) == []
    assert len(registry.asked) < 200


def test_credentials_are_shown_when_asked_for(registry: FakeRegistry, tmp_path: Path) -> None:
    def script(path: str, headers: dict[str, str]) -> None:
        if path.startswith("/v1/search"):
            if "authorization" not in headers:
                raise Answer(401, b"", {"WWW-Authenticate": 'Basic realm="x"'})
            raise results({"name": "app"})

    registry.script = script
    auth = RegistryAuth(username="me", password="secret")
    assert store_at(tmp_path).search(f"{registry.address}/app", 5, auth)
    with pytest.raises(Unauthenticated):
        store_at(tmp_path).search(f"{registry.address}/app", 5)


def test_a_mirror_is_asked_for_docker_hub(registry: FakeRegistry, tmp_path: Path) -> None:
    answers(registry, {"/v1/search?q=app": results({"name": "team/app"})})
    store = store_at(tmp_path, mirrors={"docker.io": [f"http://{registry.address}"]})
    assert [f.name for f in store.search("app", 5)] == ["team/app"]


# import of a URL


def test_a_file_is_fetched_and_told(registry: FakeRegistry, tmp_path: Path) -> None:
    archive = tar(file("a", b"x" * 3_000_000), owner=os.getuid())
    answers(
        registry, {"/files.tar": Answer(200, archive), "/there": Answer(302, b"", {"Location": "/files.tar"})}
    )
    store, told = store_at(tmp_path), list[Progress]()
    for url in (f"http://{registry.address}/files.tar", f"{registry.address}/there"):
        image = store.import_url(url, RECIPE, "web:1", told.append)
        assert (Path(store.files_of(image.id)[0]) / "a").stat().st_size == 3_000_000
    assert told[0] == Progress(f"Downloading from http://{registry.address}/files.tar")
    assert told[1].status == "Importing" and 0 < told[1].current <= told[1].total == len(archive)


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (Answer(404), NotFound, "with status 404 Not Found"),
        (Answer(500), Unavailable, "with status 500"),
        (Answer(200, b"not tar" * 999), InvalidArgument, "not a tar archive"),
        (Answer(200, tar(file("a", b"x" * 9_000)), cut=600), Unavailable, "broken"),
        (Answer(302, b"", {"Location": "ftp://a/b"}), Unavailable, "refused"),
        (Answer(302, b"", {"Location": "/x"}), Unavailable, "redirects"),
    ],
)
def test_a_file_that_cannot_be_had(
    registry: FakeRegistry, tmp_path: Path, answer: Answer, kind: type[NagayaError], words: str
) -> None:
    answers(registry, {"/": answer})
    store = store_at(tmp_path)
    with pytest.raises(kind, match=words):
        store.import_url(f"http://{registry.address}/x", RECIPE)
    assert not store.list()
    assert not [p for p in (tmp_path / "root/content").rglob("*") if p.is_file()]


@pytest.mark.parametrize("url", ["ftp://a/b", "http://", "http://[::1", "file:///etc/hostname", "http:///x"])
def test_what_is_no_url(tmp_path: Path, url: str) -> None:
    with pytest.raises(InvalidArgument, match="no URL"):
        store_at(tmp_path).import_url(url, RECIPE)


def test_credentials_in_a_url_are_not_told(registry: FakeRegistry, tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        store_at(tmp_path).import_url(f"http://me:secret@{registry.address}/x", RECIPE)
    assert "secret" not in str(caught.value)


def test_an_import_that_is_not_wanted_any_more(registry: FakeRegistry, tmp_path: Path) -> None:
    """Its server never answers: it ends all the same."""
    never, cancel = threading.Event(), threading.Event()

    def script(path: str, headers: dict[str, str]) -> None:
        cancel.set()
        never.wait(60)

    registry.script = script
    with pytest.raises(Cancelled):
        store_at(tmp_path).import_url(f"http://{registry.address}/x", RECIPE, cancel=cancel)
    never.set()
