"""What containers change and take with them: changes, export, prune; on dockerd and on nagayad."""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from dockerd import Dockerd
from house import House
from rawhttp import Reply, call

pytestmark = pytest.mark.root

API = "/v1.41"
Server = Dockerd | House


@pytest.fixture(autouse=True)
def tidy(server: Server) -> Iterator[None]:
    yield
    for item in call(server.socket, "GET", f"{API}/containers/json?all=1").json:
        assert call(server.socket, "DELETE", f"{API}/containers/{item['Id']}?force=1&v=1").status == 204


def make(server: Server, *command: str, **body: Any) -> str:
    wish = {"Image": "nagaya/busybox", "Cmd": list(command), **body}
    answer = call(server.socket, "POST", f"{API}/containers/create", wish)
    assert answer.status == 201, answer
    return str(answer.json["Id"])


def run(server: Server, script: str, **body: Any) -> str:
    identity = make(server, "sh", "-c", script, **body)
    assert call(server.socket, "POST", f"{API}/containers/{identity}/start").status == 204
    assert call(server.socket, "POST", f"{API}/containers/{identity}/wait").json["StatusCode"] == 0
    return identity


def changes(server: Server, identity: str) -> dict[str, int] | None:
    answer = call(server.socket, "GET", f"{API}/containers/{identity}/changes")
    assert answer.status == 200
    return None if answer.json is None else {item["Path"]: item["Kind"] for item in answer.json}


def test_changes(server: Server) -> None:
    assert changes(server, make(server, "true")) is None
    script = """
    echo x > /new; mkdir -p /deep/er; touch /deep/er/file; echo more >> /etc/passwd; rm /etc/group
    mkdir /gone; rmdir /gone; ln -s /new /link; chmod 711 /root; touch /tmp/x; rm /tmp/x; echo > /data/f
    """
    identity = run(server, script, Volumes={"/data": {}})
    assert changes(server, identity) == {
        "/new": 1,
        "/deep": 1,
        "/deep/er": 1,
        "/deep/er/file": 1,
        "/link": 1,
        "/data": 1,
        "/etc": 0,
        "/etc/passwd": 0,
        "/root": 0,
        "/etc/group": 2,
    }
    assert call(server.socket, "GET", f"{API}/containers/nosuch/changes").status == 404


def test_changes_of_a_replaced_directory(server: Server) -> None:
    script = "rm -r /bin/../etc; mkdir /etc; echo new > /etc/own; rm -r /root; touch /root"
    found = changes(server, run(server, script, HostConfig={"NetworkMode": "none"}))
    assert found is not None
    assert (found["/etc"], found["/etc/own"], found["/etc/group"]) == (0, 1, 2)
    assert found["/root"] == 0


def test_export(server: Server) -> None:
    script = "mkdir /d; echo hello > /d/f; ln /d/f /d/hard; ln -s f /d/link; rm /etc/group; echo > /vol/in"
    identity = run(server, f"{script}; chown 5:6 /d/f; chmod 4755 /d/f", Volumes={"/vol": {}})
    answer = call(server.socket, "GET", f"{API}/containers/{identity}/export")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/octet-stream")
    with tarfile.open(fileobj=io.BytesIO(answer.body)) as tar:
        found = {m.name: m for m in tar}
        content = tar.extractfile("d/f")
        assert content is not None and content.read() == b"hello\n"
    assert {"bin/busybox", "etc/passwd", "etc/hosts", ".dockerenv", "proc", "dev", "vol"} <= set(found)
    assert not {"etc/group", "vol/in", ".", "/"} & set(found)
    file, hard, link = found["d/f"], found["d/hard"], found["d/link"]
    assert (file.mode & 0o7777, file.uid, file.gid, link.linkname) == (0o4755, 5, 6, "f")
    assert (hard.islnk(), hard.linkname) == (True, "d/f")
    assert found["etc/hosts"].size == 0
    assert call(server.socket, "GET", f"{API}/containers/nosuch/export").status == 404


def test_export_of_a_running_one_is_told(server: Server) -> None:
    identity = make(server, "sleep", "600")
    assert call(server.socket, "POST", f"{API}/containers/{identity}/start").status == 204
    begun = time.time()
    assert call(server.socket, "GET", f"{API}/containers/{identity}/export").body[257:262] == b"ustar"
    filters = quote(json.dumps({"container": [identity], "event": ["export"]}))
    span = f"since={begun - 1:.9f}&until={time.time():.9f}"
    told = call(server.socket, "GET", f"{API}/events?{span}&filters={filters}").body
    assert json.loads(told)["Action"] == "export"


def prune(server: Server, **filters: list[str]) -> Reply:
    return call(server.socket, "POST", f"{API}/containers/prune?filters={quote(json.dumps(filters))}")


def test_prune(server: Server) -> None:
    running = make(server, "sleep", "600")
    assert call(server.socket, "POST", f"{API}/containers/{running}/start").status == 204
    red, blue = make(server, "true", Labels={"c": "red"}), make(server, "true", Labels={"c": "blue"})
    ended = run(server, "head -c 100000 /dev/zero > /f")
    assert prune(server, until=["1h"]).json["ContainersDeleted"] in (None, [])
    assert prune(server, label=["c=red"]).json["ContainersDeleted"] == [red]
    answer = prune(server, **{"label!": ["c"]})
    assert answer.json["ContainersDeleted"] == [ended]
    assert answer.json["SpaceReclaimed"] >= 100_000
    assert prune(server, until=[str(int(time.time()) + 1)]).json["ContainersDeleted"] == [blue]
    left = call(server.socket, "GET", f"{API}/containers/json?all=1").json
    assert [c["Id"] for c in left] == [running]


@pytest.mark.parametrize("filters", ({"colour": ["x"]}, {"until": ["1h", "2h"]}, {"until": ["soon"]}))
def test_bad_prunes(server: Server, filters: dict[str, list[str]]) -> None:
    assert prune(server, **filters).status in ((400,) if isinstance(server, House) else (400, 500))
