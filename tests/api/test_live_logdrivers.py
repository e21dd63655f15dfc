"""Log drivers and what they add to lines, on dockerd and on nagayad."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from dockerd import Dockerd
from house import House, wait_for
from rawhttp import call

from nagaya.linux.namespaces import CLONE_NEWNET, setns

pytestmark = pytest.mark.root

API = "/v1.41"
Server = Dockerd | House


@pytest.fixture(autouse=True)
def tidy(server: Server) -> Iterator[None]:
    yield
    for item in call(server.socket, "GET", f"{API}/containers/json?all=1").json:
        assert call(server.socket, "DELETE", f"{API}/containers/{item['Id']}?force=1&v=1").status == 204


def create(server: Server, driver: str, options: dict[str, str], *command: str, **body: Any) -> Any:
    log = {"Type": driver, "Config": options}
    host = {"LogConfig": log, "NetworkMode": "none"}
    wish = {"Image": "nagaya/busybox", "Cmd": list(command), "HostConfig": host, **body}
    return call(server.socket, "POST", f"{API}/containers/create?name=box", wish)


def run(server: Server, driver: str, options: dict[str, str], *command: str, **body: Any) -> str:
    made = create(server, driver, options, *command, **body)
    assert made.status == 201, made
    identity = str(made.json["Id"])
    started = call(server.socket, "POST", f"{API}/containers/{identity}/start")
    assert started.status == 204, started
    return identity


def logs(server: Server, identity: str, query: str = "") -> bytes:
    assert call(server.socket, "POST", f"{API}/containers/{identity}/wait").status == 200
    return call(server.socket, "GET", f"{API}/containers/{identity}/logs?stdout=1&stderr=1{query}").body


class Receiver:
    """A syslog of a test's own, on any kind of socket."""

    def __init__(self, kind: str, place: Path) -> None:
        """place: of a Unix socket; of a directory with key.pem and cert.pem for TLS."""
        stream = kind in ("tcp", "unix", "tcp+tls")
        family = socket.AF_UNIX if kind.startswith("unix") else socket.AF_INET
        self._tls = _tls(place) if kind == "tcp+tls" else None
        self._sock = socket.socket(family, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM)
        self._sock.bind(("127.0.0.1", 0) if family == socket.AF_INET else str(place))
        if stream:
            self._sock.listen()
        where = place if family == socket.AF_UNIX else f"127.0.0.1:{self._sock.getsockname()[1]}"
        self.address = f"{kind}://{where}"
        self.seen = b""
        threading.Thread(target=self._stream if stream else self._datagrams, daemon=True).start()

    def _datagrams(self) -> None:
        while True:
            try:
                self.seen += self._sock.recv(65536)
            except OSError:
                return

    def _stream(self) -> None:
        while True:
            try:
                client, _ = self._sock.accept()
            except OSError:
                return
            threading.Thread(target=self._read, args=(client,), daemon=True).start()

    def _read(self, client: socket.socket) -> None:
        if self._tls is not None:
            try:
                client = self._tls.wrap_socket(client, server_side=True)
            except OSError:  # it does not trust us
                return
        while data := client.recv(65536):
            self.seen += data
        client.close()

    def close(self) -> None:
        with suppress(OSError):  # of datagrams: it wakes the reader all the same
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


def _tls(place: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(place / "cert.pem", place / "key.pem")
    return context


def test_details(server: Server) -> None:
    options = {"labels": "a,none", "env": "E", "tag": "{{.Name}}"}
    body = {"Labels": {"a": "x y"}, "Env": ["E=1,2"]}
    identity = run(server, "json-file", options, "echo", "line", **body)
    line = logs(server, identity, "&details=1")[8:]
    assert line == b"E=1%2C2,a=x+y,tag=box line\n"
    assert logs(server, identity)[8:] == b"line\n"
    stamped = logs(server, identity, "&details=1&timestamps=1")[8:]
    assert re.fullmatch(rb"2\S+Z E=1%2C2,a=x\+y,tag=box line\n", stamped)


def test_a_tail_is_of_both_streams_whichever_is_asked_for(server: Server) -> None:
    script = "echo a; sleep .2; echo b >&2; sleep .2; echo c >&2; sleep .2; echo d"
    identity = run(server, "json-file", {}, "sh", "-c", script)
    assert [line[8:] for line in logs(server, identity, "&tail=3").splitlines()] == [b"b", b"c", b"d"]
    path = f"{API}/containers/{identity}/logs"
    seen = {
        (stream, tail): call(server.socket, "GET", f"{path}?{stream}=1&tail={tail}").body
        for stream in ("stdout", "stderr")
        for tail in (1, 2, 4)
    }
    assert {where: [line[8:] for line in body.splitlines()] for where, body in seen.items()} == {
        ("stdout", 1): [b"d"],
        ("stdout", 2): [b"d"],
        ("stdout", 4): [b"a", b"d"],
        ("stderr", 1): [],
        ("stderr", 2): [b"c"],
        ("stderr", 4): [b"b", b"c"],
    }


@pytest.mark.parametrize("driver", ("local", "json-file"))
def test_what_can_be_read_and_rotates(server: Server, driver: str) -> None:
    options = {"max-size": "20k", "max-file": "2"}
    identity = run(server, driver, options, "seq", "5000")
    assert logs(server, identity, "&tail=1")[8:] == b"5000\n"
    assert 0 < logs(server, identity).count(b"\n") < 5000


def test_none_keeps_nothing(server: Server) -> None:
    identity = run(server, "none", {}, "echo", "line")
    assert call(server.socket, "POST", f"{API}/containers/{identity}/wait").status == 200
    answer = call(server.socket, "GET", f"{API}/containers/{identity}/logs?stdout=1")
    assert b"configured logging driver does not support reading" in answer.body


@pytest.mark.parametrize("kind", ("unix", "unixgram", "udp", "tcp"))
def test_a_real_syslog(server: Server, kind: str, tmp_path: Path) -> None:
    inside = kind in ("tcp", "udp")
    receiver = None if inside else Receiver(kind, tmp_path / "s")
    if inside:  # it must be where the daemon is: in its network namespace
        receiver = _within(server, kind, tmp_path)
    assert receiver is not None
    options = {"syslog-address": receiver.address, "tag": "t/{{.Name}}", "syslog-facility": "local3"}
    identity = run(server, "syslog", options, "sh", "-c", "echo out; echo err >&2; printf last")
    wait_for(lambda: all(w in receiver.seen for w in (b": out\n", b": err\n", b": last\n")), 60, "all three")
    lines = sorted(receiver.seen.splitlines())
    found = [
        re.fullmatch(rb"<(\d+)>\w{3} [ \d]\d \d\d:\d\d:\d\d t/box\[\d+\]: (\w+)", line) for line in lines
    ]
    assert all(found), lines
    # the older one may send a line again
    assert {m.groups() for m in found if m} == {(b"155", b"err"), (b"158", b"last"), (b"158", b"out")}, lines
    assert b"out\n" in logs(server, identity)  # what is sent away can be read here, too
    assert call(server.socket, "GET", f"{API}/containers/{identity}/json").json["LogPath"] == ""
    receiver.close()


@pytest.mark.parametrize("style", ("rfc3164", "rfc5424"))
def test_a_syslog_over_tls(server: Server, style: str, tmp_path: Path) -> None:
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=nagt -keyout key.pem -out cert.pem"
    names = ("-addext", "subjectAltName=IP:127.0.0.1")
    subprocess.run([*command.split(), *names], cwd=tmp_path, check=True, capture_output=True)
    receiver = _within(server, "tcp+tls", tmp_path)
    options = {"syslog-address": receiver.address, "syslog-format": style, "tag": "t"}
    trust = {"syslog-tls-ca-cert": str(tmp_path / "cert.pem")}
    run(server, "syslog", options | trust, "sh", "-c", "echo one; echo three")
    wait_for(lambda: receiver.seen.count(b"\n") == 2, 60, "both lines")
    first, second = receiver.seen.splitlines()
    if style == "rfc5424":  # after their lengths, with the newline (RFC 5425)
        for line in (first, second):
            length, _, message = line.partition(b" ")
            assert int(length) == len(message) + 1 and message.startswith(b"<30>1 ")
    else:
        assert first.startswith(b"<30>") and second.startswith(b"<30>")
    assert first.endswith(b"one") and second.endswith(b"three")
    for wish, status in ((options, 500), (options | {"syslog-tls-skip-verify": "false"}, 204)):
        assert call(server.socket, "DELETE", f"{API}/containers/box?force=1").status == 204
        assert create(server, "syslog", wish, "true").status == 201
        started = call(server.socket, "POST", f"{API}/containers/box/start")
        assert started.status == status, started
        if status == 500:
            assert "certificate" in started.message
    receiver.close()


def test_certificates_that_are_not_there(server: Server) -> None:
    wish = {"syslog-address": "tcp+tls://127.0.0.1:1", "syslog-tls-ca-cert": "/no/such.pem"}
    assert create(server, "syslog", wish, "true").status == 201
    started = call(server.socket, "POST", f"{API}/containers/box/start")
    assert started.status == 400 and "/no/such.pem" in started.message, started


def _within(server: Server, kind: str, place: Path) -> Receiver:
    """A receiver in the daemon's network namespace, which one thread of ours joins for it."""
    pid = server.netns.pid if isinstance(server, House) else server.daemon.pid
    made: list[Receiver] = []

    def work() -> None:
        with open(f"/proc/{pid}/ns/net") as namespace:
            setns(namespace.fileno(), CLONE_NEWNET)
        made.append(Receiver(kind, place))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return made[0]


@pytest.mark.parametrize(
    ("driver", "options", "says"),
    (
        ("foo", {}, 'plugin "foo" not found'),
        ("json-file", {"foo": "x"}, "unknown log opt 'foo' for json-file log driver"),
        ("local", {"foo": "x"}, "unknown log opt 'foo' for log driver local"),
        ("syslog", {"foo": "x"}, "unknown log opt 'foo' for syslog log driver"),
        (
            "syslog",
            {"syslog-address": "x://y"},
            "syslog-address should be in form proto://address, got x://y",
        ),
        ("syslog", {"syslog-address": "tcp://127.0.0.1:1"}, "failed to initialize logging driver: dial tcp"),
        ("journald", {}, "journald is not enabled on this host"),
        ("json-file", {"max-size": "x"}, "invalid size: 'x'"),
        ("json-file", {"tag": "{{.Nope}}"}, "can't evaluate field Nope in type *logger.Info"),
    ),
)
def test_refusals(server: Server, driver: str, options: dict[str, str], says: str) -> None:
    answer = create(server, driver, options, "true")
    if answer.status == 201:
        answer = call(server.socket, "POST", f"{API}/containers/{answer.json['Id']}/start")
    assert answer.status in (400, 500)
    assert says in answer.message


def test_no_line_is_lost_when_daemon_and_syslog_go_and_come(server: Server, tmp_path: Path) -> None:
    if isinstance(server, Dockerd):
        return  # it takes its containers with it
    receiver = Receiver("unixgram", tmp_path / "s")
    count = "i=0; while [ ! -e /stop ]; do i=$((i + 1)); echo line $i; sleep 0.02; done; echo end"
    identity = run(server, "syslog", {"syslog-address": receiver.address}, "sh", "-c", count)
    wait_for(lambda: b"line 20\n" in receiver.seen, 60, "some lines")
    server.kill_daemon()
    seen = receiver.seen.count(b"\n")
    server.start()
    wait_for(lambda: receiver.seen.count(b"\n") > seen + 20, 60, "lines from the new daemon")
    receiver.close()
    (tmp_path / "s").unlink()
    again = Receiver("unixgram", tmp_path / "s")
    wait_for(lambda: again.seen.count(b"\n") > 20, 60, "lines at the new receiver")
    made = call(server.socket, "POST", f"{API}/containers/{identity}/exec", {"Cmd": ["touch", "/stop"]})
    assert call(server.socket, "POST", f"{API}/exec/{made.json['Id']}/start", {"Detach": True}).status == 200
    wait_for(lambda: again.seen.endswith(b": end\n"), 60, "the last line")
    found = [int(n) for n in re.findall(rb": line (\d+)\n", receiver.seen + again.seen)]
    assert set(found) == set(range(1, max(found) + 1))
    again.close()
