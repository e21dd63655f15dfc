"""Streams and HTTP of the command, against real sockets."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.cli import hosts
from nagaya.cli.auth import registry_auth, registry_host
from nagaya.cli.flags import UsageError
from nagaya.cli.http import ApiError, Client, target
from nagaya.cli.life import path, start_status
from nagaya.cli.progress import split
from nagaya.cli.stream import Frames, Matcher, keys
from nagaya.errors import DataLoss, InvalidArgument, NagayaError, Unavailable


def test_detach_keys_are_bytes() -> None:
    assert keys("ctrl-p,ctrl-q") == b"\x10\x11"
    assert keys("a,ctrl-@,ctrl-[") == b"a\0\x1b"
    assert keys("") == b""
    for bad in ("ctrl-", "ctrl-pq", "ab", "ctrl-1", "é"):
        with pytest.raises(UsageError, match="invalid detach keys"):
            keys(bad)


@given(st.binary(max_size=30), st.lists(st.integers(1, 5), max_size=10))
def test_detach_keys_are_found_however_they_arrive(noise: bytes, cuts: list[int]) -> None:
    noise = noise.replace(b"\x10", b"p")
    data = noise + b"\x10\x10\x11" + b"rest"
    matcher, position = Matcher(b"\x10\x11"), 0
    for cut in [*cuts, len(data)]:
        found = matcher.feed(data[position : position + cut])
        if found >= 0:
            assert position + found == len(noise) + 3
            return
        position += cut
    raise AssertionError("not found")


def test_no_keys_never_detach() -> None:
    assert Matcher(b"").feed(b"\x10\x11") == -1


@given(st.lists(st.tuples(st.integers(1, 2), st.binary(max_size=20))), st.integers(1, 7))
def test_frames_are_whole_however_they_arrive(pieces: list[tuple[int, bytes]], size: int) -> None:
    raw = b"".join(bytes([n, 0, 0, 0]) + len(data).to_bytes(4, "big") + data for n, data in pieces)
    frames, got = Frames(), {1: b"", 2: b""}
    for at in range(0, len(raw), size):
        for stream, data in frames.feed(raw[at : at + size]):
            got[stream] += data
    assert got == {n: b"".join(data for m, data in pieces if m == n) for n in (1, 2)}


def test_what_is_no_frame_is_refused() -> None:
    with pytest.raises(DataLoss):
        Frames().feed(b"plain text")


Serve = Callable[[bytes], Client]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """A server that gives each connection the same answer to each request, then closes."""
    server = socket.socket(socket.AF_UNIX)
    os.chdir(tmp_path)  # pytest's paths may be longer than a socket's
    server.bind("s")
    server.listen()

    def start(answer: bytes) -> Client:
        def loop() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client:
                    client.recv(65536)
                    client.sendall(answer)

        threading.Thread(target=loop, daemon=True).start()
        return Client("s")

    yield start
    server.close()
    os.chdir("/")


def http(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    return b"\r\n".join([b"HTTP/1.1 " + status, *headers, b"", body])


@pytest.mark.parametrize(
    "answer",
    [
        http(b'{"a": 1}', b"Content-Length: 8"),
        http(b'3\r\n{"a\r\n5;x=y\r\n": 1}\r\n0\r\nTrailer: x\r\n\r\n', b"Transfer-Encoding: chunked"),
        http(b'{"a": 1}', b"Connection: close"),
        http(b"", status=b"100 Continue") + http(b'{"a": 1}', b"content-length:8"),
    ],
)
def test_bodies_of_all_framings_are_read(serve: Serve, answer: bytes) -> None:
    client = serve(answer)
    assert client.call("GET", "/x") == {"a": 1}
    # the server has closed: the client notices, and connects again
    assert client.call("POST", "/x", {"q": "a b"}, {"body": True}) == {"a": 1}


def test_streams_of_objects_are_read_line_by_line(serve: Serve) -> None:
    client = serve(http(b'{"a":1}\n\r\n{"b"\r\n:2}\n'.replace(b'"b"\r\n', b'"b"')))
    assert list(client.send("GET", "/").objects()) == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize(
    ("answer", "status", "message"),
    [
        (
            http(b'{"message":"no such thing"}', b"Content-Length: 27", status=b"404 Not Found"),
            404,
            "no such thing",
        ),
        (http(b"plain", b"Content-Length: 5", status=b"500 X"), 500, "plain"),
        (http(b"", b"Content-Length: 0", status=b"503 X"), 503, "HTTP status 503"),
        (http(b"[]", b"Content-Length: 2", status=b"400 X"), 400, "[]"),
    ],
)
def test_refusals_carry_the_daemons_message(serve: Serve, answer: bytes, status: int, message: str) -> None:
    with pytest.raises(ApiError) as caught:
        serve(answer).call("GET", "/")
    assert (caught.value.status, caught.value.message) == (status, message)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        http(b"abc", b"Content-Length: 8"),
        http(b"8\r\nabc", b"Transfer-Encoding: chunked"),
        http(b"<html>", b"Content-Length: 6"),
    ],
)
def test_half_answers_are_one_clear_error(serve: Serve, answer: bytes) -> None:
    with pytest.raises(Unavailable) as caught:
        serve(answer).call("GET", "/")
    assert "\n" not in str(caught.value)


def test_a_hijacked_connection_keeps_what_came_with_the_answer(serve: Serve) -> None:
    response = serve(http(b"early bytes", b"Upgrade: tcp", status=b"101 UPGRADED")).hijack("/attach")
    assert response.stream.take() == b"early bytes"


def test_targets_are_encoded() -> None:
    assert target("/a", {"x": "a b&c=d+é", "no": "", "none": None, "off": False, "on": True, "zero": 0}) == (
        "/a?x=a%20b%26c%3Dd%2B%C3%A9&on=1&zero=0"
    )
    assert path("/name") == "/containers/name"
    assert path("../images/x") == "/containers/..%2Fimages%2Fx"
    with pytest.raises(InvalidArgument):
        path("")
    with pytest.raises(InvalidArgument):
        Client("/nowhere").call("GET", "/x\r\nEvil: 1")


def test_hosts_are_chosen_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NAGAYA_HOST", raising=False)
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    assert hosts.choose("") == ("/run/nagaya/docker.sock", False)
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:2375/")
    assert hosts.choose("") == (("127.0.0.1", 2375), True)
    monkeypatch.setenv("NAGAYA_HOST", "unix:///n")
    assert hosts.choose("") == ("/n", True)
    assert hosts.choose("unix:///h") == ("/h", True)
    for bad in ("unix://relative", "http://x", "tcp://x", "x", "tcp://:1"):
        with pytest.raises(InvalidArgument):
            hosts.choose(bad)


@pytest.mark.parametrize(
    ("message", "status"),
    [
        ('exec: "x": executable file not found in $PATH', 127),
        ("stat /x: no such file or directory", 127),
        ("exec /x: permission denied", 126),
        ("exec /x: is a directory", 126),
        ("no such image", 125),
    ],
)
def test_failed_starts_have_dockers_exit_codes(message: str, status: int) -> None:
    assert start_status(NagayaError(message)) == status


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("busybox", ("busybox", "latest")),
        ("busybox:1.36", ("busybox", "1.36")),
        ("127.0.0.1:5000/a/b", ("127.0.0.1:5000/a/b", "latest")),
        ("127.0.0.1:5000/a/b:c", ("127.0.0.1:5000/a/b", "c")),
        ("a@sha256:12", ("a", "sha256:12")),
    ],
)
def test_references_are_split(reference: str, parts: tuple[str, str]) -> None:
    assert split(reference) == parts


def decoded(name: str) -> object:
    import base64
    import json

    return json.loads(base64.urlsafe_b64decode(registry_auth(name)))


def test_credentials_come_from_dockers_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import base64
    import json

    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert decoded("busybox") == {}
    helper = tmp_path / "docker-credential-nagt"
    helper.write_text(
        '#!/bin/sh\n[ "$(cat)" = helped.io ] && echo \'{"Username":"<token>","Secret":"s"}\' || exit 1\n'
    )
    helper.chmod(0o755)
    auth = base64.b64encode("me:pä:ss?>".encode()).decode()
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "auths": {
                    "r.io": {"auth": auth},
                    "https://index.docker.io/v1/": {"identitytoken": "t"},
                    "e.io": {},
                },
                "credHelpers": {
                    "helped.io": "nagt",
                    "unknown.nagt": "nagt",
                    "broken.io": "missing",
                    "evil.io": "../x",
                },
            }
        )
    )
    assert decoded("r.io/a") == {"username": "me", "password": "pä:ss?>", "serveraddress": "r.io"}
    assert decoded("library/x") == {"identitytoken": "t", "serveraddress": registry_host("x")}
    assert decoded("e.io/a") == decoded("other.io/a") == decoded("unknown.nagt/a") == {}
    assert decoded("helped.io/a") == {"identitytoken": "s", "serveraddress": "helped.io"}
    for name in ("broken.io/a", "evil.io/a"):
        with pytest.raises(InvalidArgument):
            registry_auth(name)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InvalidArgument, match=r"config\.json"):
        registry_auth("busybox")
