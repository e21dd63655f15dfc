"""The API as a program uses it, right and wrong, on dockerd and on nagayad."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from dockerd import Dockerd
from house import House, wait_for
from rawhttp import JSON, UPGRADE, Connection, Reply, call

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"
API = "/v1.41"


@pytest.fixture(autouse=True)
def tidy(server: Dockerd | House) -> Iterator[None]:
    yield
    for item in call(server.socket, "GET", f"{API}/containers/json?all=1").json:
        assert call(server.socket, "DELETE", f"{API}/containers/{item['Id']}?force=1&v=1").status == 204


def make(server: Dockerd | House, *command: str, **body: Any) -> str:
    answer = call(
        server.socket, "POST", f"{API}/containers/create", {"Image": IMAGE, "Cmd": list(command), **body}
    )
    assert answer.status == 201, answer
    return str(answer.json["Id"])


def post(server: Dockerd | House, target: str, body: Any = None) -> Reply:
    return call(server.socket, "POST", API + target, body)


def test_wait_answers_its_header_before_the_start(server: Dockerd | House) -> None:
    identity = make(server, "sh", "-c", "exit 9")
    for condition in ("next-exit", "removed"):
        with Connection(server.socket, 10) as connection:
            connection.send("POST", f"{API}/containers/{identity}/wait?condition={condition}")
            status, headers = connection.head()  # comes although nothing runs
            assert status == 200 and headers["content-type"] == "application/json"
            if condition == "next-exit":
                assert post(server, f"/containers/{identity}/start").status == 204
            else:
                assert call(server.socket, "DELETE", f"{API}/containers/{identity}").status == 204
            assert json.loads(connection.chunk())["StatusCode"] == 9
            assert connection.chunk() == b""


def test_wait_for_what_has_ended_answers_at_once(server: Dockerd | House) -> None:
    identity = make(server, "sh", "-c", "exit 4")
    assert post(server, f"/containers/{identity}/start").status == 204
    assert post(server, f"/containers/{identity}/wait").json["StatusCode"] == 4
    assert post(server, f"/containers/{identity}/wait").json["StatusCode"] == 4


def test_attach_is_a_hijack_with_and_without_upgrade(server: Dockerd | House) -> None:
    for upgrade, expected in ((UPGRADE, 101), (JSON, 200)):
        identity = make(
            server, "sh", "-c", "cat; echo err >&2", OpenStdin=True, StdinOnce=True, AttachStdin=True
        )
        with Connection(server.socket) as connection:
            query = "stream=1&stdin=1&stdout=1&stderr=1"
            connection.send("POST", f"{API}/containers/{identity}/attach?{query}", b"", upgrade)
            status, headers = connection.head()
            assert (status, headers["content-type"]) == (expected, "application/vnd.docker.raw-stream")
            assert post(server, f"/containers/{identity}/start").status == 204
            connection.sock.sendall(b"hello")
            connection.sock.shutdown(socket.SHUT_WR)
            assert connection.rest() == (b"\x01\0\0\0\0\0\0\x05hello\x02\0\0\0\0\0\0\x04err\n")
        assert post(server, f"/containers/{identity}/wait").json["StatusCode"] == 0


def test_exec_over_the_api(server: Dockerd | House) -> None:
    identity = make(server, "sleep", "600")
    assert post(server, f"/containers/{identity}/start").status == 204
    wish = {"Cmd": ["sh", "-c", "echo out; exit 3"], "AttachStdout": True, "AttachStderr": True}
    made = post(server, f"/containers/{identity}/exec", wish)
    assert made.status == 201
    path = f"/exec/{made.json['Id']}"
    before = call(server.socket, "GET", API + path + "/json").json
    assert (before["Running"], before["ExitCode"], before["ContainerID"]) == (False, None, identity)
    with Connection(server.socket) as connection:
        start = b'{"Detach":false,"Tty":false}'
        connection.send("POST", f"{API}{path}/start", start, {**JSON, **UPGRADE})
        assert connection.head()[0] == 101
        assert connection.rest() == b"\x01\0\0\0\0\0\0\x04out\n"
    wait_for(lambda: not call(server.socket, "GET", API + path + "/json").json["Running"], 20, "the command")
    after = call(server.socket, "GET", API + path + "/json").json
    assert (after["ExitCode"], after["ProcessConfig"]["entrypoint"]) == (3, "sh")
    assert after["ProcessConfig"]["arguments"] == ["-c", "echo out; exit 3"]
    assert post(server, path + "/start", {"Detach": True}).status == 409
    assert post(server, "/exec/nosuch/start", {}).status == 404
    assert call(server.socket, "GET", f"{API}/exec/nosuch/json").status == 404


def test_status_of_every_verb(server: Dockerd | House) -> None:
    identity = make(server, "sleep", "600")
    path = f"/containers/{identity}"
    assert [post(server, path + verb).status for verb in ("/kill", "/pause", "/unpause")] == [
        409,
        409,
        500,
    ] or ([post(server, path + verb).status for verb in ("/kill", "/pause", "/unpause")] == [409, 409, 409])
    assert post(server, path + "/stop").status == 304
    assert post(server, path + "/start").status == 204
    assert post(server, path + "/start").status == 304
    assert post(server, path + "/resize?h=10&w=20").status in (200, 400, 500)  # it has no terminal
    assert call(server.socket, "DELETE", API + path).status == 409
    assert post(server, path + "/kill?signal=NOPE").status in (400, 500)
    assert post(server, path + "/pause").status == 204
    assert post(server, path + "/unpause").status == 204
    assert post(server, path + "/restart?t=0").status == 204
    assert post(server, path + "/stop?t=0").status == 204
    assert post(server, path + "/rename?name=other").status == 204
    assert call(server.socket, "GET", f"{API}/containers/other/json").json["Id"] == identity
    assert call(server.socket, "DELETE", f"{API}/containers/other").status == 204
    assert call(server.socket, "DELETE", f"{API}/containers/other").status == 404


CREATE: list[tuple[Any, int, str]] = [
    (b"{", 400, ""),
    (b"[]", 400, ""),
    (b'"x"', 400, ""),
    (b"\xff\xfe", 400, ""),
    (b'{"Image": 5}', 400, "Image"),
    ({"Image": IMAGE, "HostConfig": {"Memory": "lots"}}, 400, "Memory"),
    ({"Image": IMAGE, "HostConfig": {"Binds": "x"}}, 400, "Binds"),
    ({"Image": "nosuch:1"}, 404, "No such image: nosuch:1"),
    ({"Image": "UPPER"}, 400, "invalid reference format"),
    ({}, 400, ""),
    ({"Image": IMAGE, "HostConfig": {"Memory": 5}}, 400, "Minimum memory limit allowed is 6MB"),
    ({"Image": IMAGE, "HostConfig": {"CapAdd": ["NOSUCH"]}}, 400, "CAP_NOSUCH"),
    ({"Image": IMAGE, "HostConfig": {"Mounts": [{"Type": "x", "Target": "/a"}]}}, 400, "mount type unknown"),
    ({"Image": IMAGE, "HostConfig": {"Binds": ["/a:/b:/c:/d"]}}, 400, "invalid volume specification"),
    ({"Image": IMAGE, "HostConfig": {"PortBindings": {"x/tcp": [{}]}}}, 400, "x"),
    ({"Image": IMAGE, "HostConfig": {"RestartPolicy": {"Name": "x"}}}, 400, "restart policy"),
    ({"Image": IMAGE, "HostConfig": {"NetworkMode": "container:"}}, 400, "network mode"),
    ({"Image": IMAGE, "WorkingDir": "rel"}, 400, "rel"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "says"), CREATE, ids=[str(body)[:50] for body, _, _ in CREATE])
def test_bad_creates(server: Dockerd | House, body: Any, status: int, says: str) -> None:
    answer = post(server, "/containers/create", body)
    # dockerd has some of them as 500: the client's fault is 400 here
    assert answer.status == status or (isinstance(server, Dockerd) and answer.status in (400, 500)), answer
    assert says.lower() in answer.message.lower() or isinstance(server, Dockerd)
    assert "\n" not in answer.message and answer.headers["content-type"] == "application/json"
    assert call(server.socket, "GET", f"{API}/containers/json?all=1").json == []


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/v1.41/nosuch", 404),
        ("GET", "/nosuch", 404),
        ("GET", "/", 404),
        ("PUT", "/v1.41/containers/json", 404),
        ("GET", "/v9.99/info", 400),
        ("GET", "/v1.1/info", 400),
        ("GET", "/v1.41/containers/nosuch/json", 404),
        ("GET", "/v1.41/containers/..%2f..%2fetc/json", 404),
        ("GET", "/v1.41/containers/%00/json", 404),
        ("GET", "/v1.41/images/nosuch/json", 404),
        ("GET", "/v1.41/containers/json?filters=%7B", 400),
        ("GET", "/v1.41/containers/json?filters=%7B%22nosuch%22%3A%7B%22x%22%3Atrue%7D%7D", 400),
        ("GET", "/v1.41/containers/json?limit=x", 400),
        ("POST", "/v1.41/containers/create?name=a%20b", 400),
        ("POST", "/v1.41/images/create", 400),
        ("POST", "/v1.41/containers/nosuch/wait?condition=x", 400),
        ("GET", "/v1.41/containers/nosuch/logs?stdout=1", 404),
        ("GET", "/v1.41/events?since=x", 400),
        ("GET", "/v1.41/networks/nosuch", 404),
    ],
)
def test_bad_requests(server: Dockerd | House, method: str, target: str, status: int) -> None:
    answer = call(server.socket, method, target, {"Image": IMAGE} if "create?name" in target else None)
    assert answer.status == status or (
        isinstance(server, Dockerd) and answer.status in (301, 400, 404, 500)
    ), answer
    assert isinstance(server, Dockerd) or (answer.message and "\n" not in answer.message)
    assert call(server.socket, "GET", "/_ping").body == b"OK"


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\0\0\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /_ping HTTP/1.1\r\nHost: d\r\nContent-Length: x\r\n\r\n",
        b"POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Length: -1\r\n\r\n",
        b"GET /" + b"a" * 2_000_000 + b" HTTP/1.1\r\nHost: d\r\n\r\n",
        b"GET /_ping HTTP/1.1\r\nHost: d\r\n" + b"X: y\r\n" * 400_000 + b"\r\n",
    ],
    ids=range(7),
)
def test_what_is_no_http(server: Dockerd | House, data: bytes) -> None:
    with Connection(server.socket, 20) as connection:
        try:
            connection.sock.sendall(data)
            connection.sock.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it had enough
        try:
            answer = connection.rest()
        except ConnectionResetError:
            answer = b""
    assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 505", b"HTTP/1.0 4")), answer[:200]
    assert call(server.socket, "GET", "/_ping").body == b"OK"


def test_half_requests_hold_nobody_up(server: Dockerd | House) -> None:
    idle = [Connection(server.socket) for _ in range(50)]
    for number, connection in enumerate(idle):
        connection.sock.sendall(
            (b"GET /_pi", b"POST /v1.41/containers/create HTTP/1.1\r\nHost: d\r\nContent-Length: 9\r\n\r\n{")[
                number % 2
            ]
        )
    begin = time.monotonic()
    assert call(server.socket, "GET", "/_ping").body == b"OK"
    assert time.monotonic() - begin < 5
    for connection in idle:
        connection.sock.close()


def test_many_at_once(server: Dockerd | House) -> None:
    codes: list[int] = []

    def life(number: int) -> None:
        identity = make(server, "sh", "-c", f"exit {number}")
        with Connection(server.socket) as connection:
            connection.send("POST", f"{API}/containers/{identity}/wait?condition=next-exit")
            assert connection.head()[0] == 200
            assert post(server, f"/containers/{identity}/start").status == 204
            codes.append(json.loads(connection.chunk())["StatusCode"])
        assert call(server.socket, "DELETE", f"{API}/containers/{identity}").status == 204

    threads = [threading.Thread(target=life, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(codes) == list(range(8))


def test_one_name_for_one_of_many(server: Dockerd | House) -> None:
    answers: list[int] = []

    def create() -> None:
        answers.append(
            call(server.socket, "POST", f"{API}/containers/create?name=one", {"Image": IMAGE}).status
        )

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(answers) == [201] + [409] * 7


def test_a_reader_that_does_not_read_stalls_nobody(server: Dockerd | House) -> None:
    identity = make(server, "sh", "-c", "echo first; yes | head -c 3000000; echo last")
    with Connection(server.socket) as deaf:
        deaf.send("POST", f"{API}/containers/{identity}/attach?stream=1&stdout=1", b"", UPGRADE)
        assert deaf.head()[0] == 101
        assert post(server, f"/containers/{identity}/start").status == 204
        assert call(server.socket, "GET", f"{API}/containers/json").status == 200
        other = make(server, "true")
        assert post(server, f"/containers/{other}/start").status == 204
        assert post(server, f"/containers/{other}/wait").json["StatusCode"] == 0
    assert post(server, f"/containers/{identity}/wait").json["StatusCode"] == 0  # it waited for the reader


def test_events_come_as_they_happen(server: Dockerd | House) -> None:
    with Connection(server.socket) as watcher:
        watcher.send("GET", f"{API}/events?filters=%7B%22type%22%3A%7B%22container%22%3Atrue%7D%7D")
        assert watcher.head()[0] == 200
        identity = make(server, "true")
        assert post(server, f"/containers/{identity}/start").status == 204
        seen = []
        while "die" not in seen:
            event = json.loads(watcher.chunk())
            assert (
                event["Type"] == "container"
                and event["id"] == identity
                and event["status"] == event["Action"]
            )
            assert event["timeNano"] // 10**9 == event["time"]
            seen.append(event["Action"])
        assert [action for action in seen if action != "attach"] == ["create", "start", "die"]


def test_exec_as_its_users_know_it(server: Dockerd | House) -> None:
    identity = make(server, "sleep", "600", Env=["KEPT=yes"], WorkingDir="/tmp")
    assert post(server, f"/containers/{identity}/exec", {"Cmd": ["true"]}).status == 409
    assert post(server, f"/containers/{identity}/start").status == 204

    def output(wish: dict[str, Any], typed: bytes = b"") -> bytes:
        streams = {"AttachStdout": True, "AttachStderr": True, "AttachStdin": bool(typed)}
        made = post(server, f"/containers/{identity}/exec", {**streams, **wish})
        assert made.status == 201, made
        with Connection(server.socket) as connection:
            begin = json.dumps({"Tty": wish.get("Tty", False)}).encode()
            connection.send("POST", f"{API}/exec/{made.json['Id']}/start", begin, {**JSON, **UPGRADE})
            assert connection.head()[0] == 101
            if typed:
                connection.sock.sendall(typed)
                connection.sock.shutdown(socket.SHUT_WR)
            return connection.rest()

    shell = ["sh", "-c", "echo $KEPT $MORE $(id -u) $(pwd)"]
    assert output({"Cmd": shell, "Env": ["MORE=1"]})[8:] == b"yes 1 0 /tmp\n"
    assert output({"Cmd": shell, "User": "65534:1", "WorkingDir": "/etc"})[8:] == b"yes 65534 /etc\n"
    assert output({"Cmd": ["cat"]}, b"half closed")[8:] == b"half closed"
    assert output({"Cmd": ["sh", "-c", "tty"], "Tty": True}).startswith(b"/dev/")
    capabilities = ["sh", "-c", "grep CapBnd /proc/self/status"]
    assert output({"Cmd": capabilities}) != output({"Cmd": capabilities, "Privileged": True})
    assert b"executable file not found" in output({"Cmd": ["/no/such"]}) or b"no such file" in output(
        {"Cmd": ["/no/such"]}
    )


def test_detach_keys_are_looked_at_first(server: Dockerd | House) -> None:
    identity = make(server, "sleep", "600", Tty=True)
    assert post(server, f"/containers/{identity}/start").status == 204
    for keys in ("foo", "ctrl-a,,b"):
        answer = post(server, f"/containers/{identity}/attach?stream=1&detachKeys={keys}")
        assert answer.status == 400
        assert f"Invalid detach keys ({keys}) provided".encode() in answer.body
        answer = post(server, f"/containers/{identity}/exec", {"Cmd": ["true"], "DetachKeys": keys})
        assert (answer.status, answer.message) == (
            400 if isinstance(server, House) else 500,
            f"Invalid escape keys ({keys}) provided",
        )


def test_execs_end_with_their_container_and_not_while_it_is_paused(server: Dockerd | House) -> None:
    identity = make(server, "sleep", "600")
    assert post(server, f"/containers/{identity}/start").status == 204
    made = post(server, f"/containers/{identity}/exec", {"Cmd": ["sleep", "500"]})
    path = f"/exec/{made.json['Id']}"
    assert post(server, path + "/start", {"Detach": True}).status == 200
    running = call(server.socket, "GET", API + path + "/json").json
    assert (running["Running"], running["Pid"] > 0, running["CanRemove"]) == (True, True, False)
    assert post(server, f"/containers/{identity}/pause").status == 204
    assert post(server, f"/containers/{identity}/exec", {"Cmd": ["true"]}).status == 409
    assert post(server, f"/containers/{identity}/unpause").status == 204
    assert post(server, f"/containers/{identity}/kill").status == 204
    wait_for(lambda: not call(server.socket, "GET", API + path + "/json").json["Running"], 20, "its end")
    ended = call(server.socket, "GET", API + path + "/json").json
    assert ended["ExitCode"] == 137
    assert post(server, path + "/start", {"Detach": True}).status in (409, 500)


def test_many_execs_leave_nothing(server: Dockerd | House) -> None:
    identity = make(server, "sleep", "600")
    assert post(server, f"/containers/{identity}/start").status == 204

    def some(count: int) -> None:
        for _ in range(count):
            wish = {"Cmd": ["true"], "AttachStdout": True}
            path = f"/exec/{post(server, f'/containers/{identity}/exec', wish).json['Id']}"
            with Connection(server.socket) as connection:
                connection.send("POST", f"{API}{path}/start", b"{}", {**JSON, **UPGRADE})
                connection.rest()
            assert call(server.socket, "GET", f"{API}{path}/json").json["ExitCode"] == 0

    def fds() -> list[int]:
        if isinstance(server, Dockerd):
            return []
        daemon = int((server.run_dir / "nagayad.pid").read_text())
        return [len(os.listdir(f"/proc/{p}/fd")) for p in (daemon, server.supervisor_pid(), server.io_pid())]

    some(10)
    before = fds()
    crowd = [threading.Thread(target=some, args=(25,)) for _ in range(4)]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join()
    wait_for(lambda: all(now <= then for now, then in zip(fds(), before, strict=True)), 20, "as before")
    assert len(call(server.socket, "GET", f"{API}/containers/{identity}/top").json["Processes"]) == 1
