"""The Docker API's transport: real HTTP over a real Unix socket, against a scripted engine.

The engine here only answers what the test scripts: what the real one does is tested in tests/api.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest

from nagaya.api.docker.server import start_server
from nagaya.api.http import connection
from nagaya.engine.model import (
    AttachRequest,
    Container,
    ContainerConfig,
    Created,
    CreateRequest,
    Exec,
    ExecConfig,
    LogLine,
    PullProgress,
    RegistryAuth,
    VolumeSummary,
    WaitResult,
)
from nagaya.engine.service import WaitCondition
from nagaya.errors import (
    CommandNotFound,
    FailedPrecondition,
    NotFound,
    NotModified,
    Unauthenticated,
)


class Script:
    """An engine with one container "c1" whose behaviour the test sets."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.exited = asyncio.Event()
        self.slow_cancelled = threading.Event()
        self.stop_finished = threading.Event()
        self.tty = False

    def inspect_container(self, ref: str) -> Container:
        if ref not in ("c1", "slow"):
            raise NotFound(f"No such container: {ref}")
        return Container("c1", "one", ContainerConfig("img", tty=self.tty), state="running", path="sh")

    def list_containers(self) -> list[Container]:
        return [self.inspect_container("c1")]

    async def list_images(self) -> list[Any]:
        return []

    async def container_size(self, ref: str) -> tuple[int, int]:
        return 1000, 5000

    def info(self) -> dict[str, object]:
        return {"root": "/r", "run": "/u"}

    async def cdi_devices(self) -> list[str]:
        return ["vendor.com/gpu=0"]

    def volumes(self) -> list[VolumeSummary]:
        return [VolumeSummary("data", 10**18, "/r/volumes/data/_data", False, {"a": "b"})]

    def networks(self) -> list[dict[str, object]]:
        return [{"Name": "bridge", "Id": "b" * 64, "Driver": "bridge"}]

    async def create_container(self, request: CreateRequest) -> Created:
        self.calls.append(("create", request))
        if request.config.image == "absent":
            raise NotFound("No such image: absent:latest")
        return Created("c1", ("careful",))

    async def start_container(self, ref: str) -> None:
        if ref == "running":
            raise NotModified("it runs")
        if ref == "typo":
            raise CommandNotFound('exec: "typo"')
        self.inspect_container(ref)

    async def stop_container(self, ref: str, timeout: int | None = None, signal: str = "") -> None:
        await asyncio.sleep(0.3)
        self.stop_finished.set()

    def begin_wait(self, ref: str, condition: WaitCondition) -> Callable[[], AsyncIterator[WaitResult]]:
        self.inspect_container(ref)

        async def results() -> AsyncIterator[WaitResult]:
            await self.exited.wait()
            yield WaitResult(7)

        return results

    async def attach_container(self, ref: str, request: AttachRequest, fd: int) -> None:
        self.calls.append(("attach", request))
        if self.tty:
            os.close(fd)
            raise FailedPrecondition("it has gone meanwhile")
        peer = socket.socket(fileno=fd)
        peer.setblocking(True)

        def echo() -> None:
            with peer:
                peer.sendall(request.preface.upper())
                while data := peer.recv(4096):
                    peer.sendall(data.upper())

        threading.Thread(target=echo, daemon=True).start()

    async def logs(self, ref: str, **wishes: Any) -> AsyncIterator[list[LogLine]]:
        self.calls.append(("logs", wishes))
        yield [LogLine("stdout", 1_700_000_000_000_000_005, b"out\n")]
        yield [LogLine("stderr", 1_700_000_000_000_000_006, b"err\n")]
        if wishes["follow"]:
            try:
                await asyncio.sleep(60)
            finally:
                self.slow_cancelled.set()

    def inspect_exec(self, exec_id: str) -> Exec:
        if exec_id != "e1":
            raise NotFound(f"No such exec instance: {exec_id}")
        return Exec("e1", "c1", ExecConfig(("nope",)))

    async def start_exec(self, exec_id: str, fd: int | None, **rest: Any) -> None:
        if fd is not None:
            os.close(fd)
        raise CommandNotFound('exec: "nope"')

    async def pull_image(
        self, reference: str, platform: str, auth: RegistryAuth | None, *, all_tags: bool = False
    ) -> AsyncIterator[PullProgress]:
        self.calls.append(("pull", (reference, platform, auth, all_tags)))
        if reference.startswith("secret"):
            raise Unauthenticated("pull access denied")
        yield PullProgress("Pulling from library/x", "1")
        yield PullProgress("Downloading", "abcdef", 1000, 2000)
        raise NotFound("the blob has gone")


class Live:
    """A server in a thread of its own."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._main())

    async def _main(self) -> None:
        self.engine = Script()
        self._stop = asyncio.Event()
        server = await start_server(self.engine, self.path, group="no-such-group")  # type: ignore[arg-type]
        self._ready.set()
        await self._stop.wait()
        server.close()
        await server.wait_closed()

    def call(self, function: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(function)

    def close(self) -> None:
        self.call(self._stop.set)
        self._thread.join(15)
        assert not self._thread.is_alive()

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(10)
        sock.connect(self.path)
        return sock

    def raw(self, data: bytes) -> bytes:
        """Everything the server says until it closes; our side is half-closed after `data`."""
        with self.connect() as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: sock.recv(65536), b""))

    def ask(self, method: str, target: str, body: bytes = b"", extra: str = "") -> tuple[int, bytes, bytes]:
        """Status, head, body (chunks joined)."""
        text = f"{method} {target} HTTP/1.1\r\nHost: d\r\nConnection: close\r\n{extra}"
        if body:
            text += f"Content-Length: {len(body)}\r\n"
        head, _, rest = self.raw(text.encode() + b"\r\n" + body).partition(b"\r\n\r\n")
        if b"chunked" in head.lower():
            rest = unchunk(rest)
        return int(head.split()[1]), head, rest


def unchunk(data: bytes) -> bytes:
    result = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        result += data[: int(size, 16)]
        data = data[int(size, 16) + 2 :]
    return result


def until(sock: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        more = sock.recv(1)
        assert more, data
        data += more
    return data


@pytest.fixture
def live(tmp_path: Any) -> Iterator[Live]:
    server = Live(str(tmp_path / "api.sock"))
    yield server
    server.close()
    assert not os.path.exists(server.path)


def test_ping_and_its_headers(live: Live) -> None:
    status, head, body = live.ask("GET", "/_ping")
    assert (status, body) == (200, b"OK")
    for header in (b"Api-Version: 1.51", b"Ostype: linux", b"Docker-Experimental: false", b"Server: nagaya/"):
        assert header in head
    assert live.ask("HEAD", "/v1.24/_ping")[::2] == (200, b"")


@pytest.mark.parametrize(
    ("target", "status", "message"),
    [
        (
            "/v1.99/_ping",
            400,
            "client version 1.99 is too new. Maximum supported API version is 1.51",
        ),
        (
            "/v1.12/_ping",
            400,
            (
                "client version 1.12 is too old. Minimum supported API version is 1.24, "
                "please upgrade your client to a newer version"
            ),
        ),
        ("/nothing", 404, "page not found"),
        ("/v1.51/containers/json/", 404, "page not found"),
        ("/containers/nope/json", 404, "No such container: nope"),
        ("/containers/json?filters=%7B", 400, None),
        (
            "/containers/json?filters=%7B%22colour%22%3A%7B%22red%22%3Atrue%7D%7D",
            400,
            "invalid filter 'colour'",
        ),
    ],
)
def test_refusals(live: Live, target: str, status: int, message: str | None) -> None:
    got, _, body = live.ask("GET", target)
    assert got == status
    if message is not None:
        assert json.loads(body) == {"message": message}


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({}, ["data"]),
        ({"name": ["at"], "label": ["a=b"], "driver": ["local"]}, ["data"]),
        ({"dangling": ["true"]}, ["data"]),
        ({"dangling": ["false"]}, []),
        ({"label": ["a=c"]}, []),
    ],
)
def test_volumes(live: Live, filters: dict[str, list[str]], names: list[str]) -> None:
    status, _, body = live.ask("GET", f"/volumes?filters={quote(json.dumps(filters))}")
    assert status == 200
    assert [volume["Name"] for volume in json.loads(body)["Volumes"]] == names
    assert live.ask("GET", "/volumes?filters=%7B%22x%22%3A%5B%221%22%5D%7D")[0] == 400


def test_sizes_are_asked_for_only_where_wanted(live: Live) -> None:
    for target in ("/containers/json?all=1", "/containers/c1/json"):
        shown = json.loads(live.ask("GET", target)[2])
        assert "SizeRw" not in (shown[0] if isinstance(shown, list) else shown)
        shown = json.loads(live.ask("GET", target + ("&" if "?" in target else "?") + "size=1")[2])
        item = shown[0] if isinstance(shown, list) else shown
        assert (item["SizeRw"], item["SizeRootFs"]) == (1000, 5000)


def test_a_volume(live: Live) -> None:
    status, _, body = live.ask("GET", "/volumes/data")
    assert status == 200
    assert json.loads(body) == {
        "CreatedAt": "2001-09-09T01:46:40Z",
        "Driver": "local",
        "Labels": {"a": "b"},
        "Mountpoint": "/r/volumes/data/_data",
        "Name": "data",
        "Options": None,
        "Scope": "local",
    }
    assert live.ask("GET", "/volumes/other")[::2] == (404, b'{"message": "get other: no such volume"}\n')


def test_socket_permissions(live: Live) -> None:
    assert stat.S_IMODE(os.stat(live.path).st_mode) == 0o600


def test_a_second_server_refuses_a_live_socket_and_replaces_a_stale_one(live: Live, tmp_path: Any) -> None:
    async def second(path: str) -> None:
        server = await start_server(Script(), path)  # type: ignore[arg-type]
        server.close()
        await server.wait_closed()

    with pytest.raises(FailedPrecondition, match="already in use"):
        asyncio.run(second(live.path))
    stale = str(tmp_path / "stale.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(stale)
    asyncio.run(second(stale))
    assert not os.path.exists(stale)


def test_keep_alive_and_pipelining(live: Live) -> None:
    with live.connect() as sock:
        sock.sendall(b"GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n" * 50)
        data = b""
        while data.count(b"\r\n\r\nOK") < 50:
            data += sock.recv(65536)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET /_ping HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET /_ping HTTP/1.1\r\nHost: d\r\nX: " + b"y" * 600_000 + b"\r\n\r\n", 431),
        (b"POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Length: 99999999999\r\n\r\n{", 413),
    ],
)
def test_what_is_not_http_gets_one_answer(live: Live, data: bytes, status: int) -> None:
    answer = live.raw(data)
    assert int(answer.split()[1]) == status, answer
    json.loads(answer.partition(b"\r\n\r\n")[2])


def test_a_chunked_body_over_the_bound_is_413(live: Live) -> None:
    with live.connect() as sock:
        sock.sendall(b"POST /containers/create HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            for _ in range(100):
                sock.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        except OSError:
            pass
        assert sock.recv(65536).startswith(b"HTTP/1.1 413 ")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT", 0.6)
    monkeypatch.setattr(connection, "BODY_TIMEOUT", 0.6)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    "half",
    [
        b"GET /_ping HT",
        b"GET /_ping HTTP/1.1\r\nHost: d\r\nX: y",
        b"POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Length: 9\r\n\r\n{",
        b"POST /containers/create HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n{",
        b"POST /containers/c1/attach HTTP/1.1\r\nHost: d\r\nContent-Length: 9\r\n\r\n",
        b"GET /_ping HTTP/1.1\r\nHost: d\r\n\r\nGET /_pi",  # a whole one first
    ],
)
def test_half_a_request_holds_no_connection(live: Live, half: bytes) -> None:
    with live.connect() as sock:
        begun = time.monotonic()
        sock.sendall(half)
        said = b"".join(iter(lambda: sock.recv(65536), b""))
        assert 0.5 < time.monotonic() - begun < 5
        assert b"HTTP/1.1 408 " in said and b'"message":' in said
    assert live.ask("GET", "/_ping")[0] == 200


@pytest.mark.usefixtures("hasty")
def test_what_is_slow_but_goes_on_is_left_alone(live: Live) -> None:
    body = b'{"Image": "img"}'
    with live.connect() as idle, live.connect() as slow, live.connect() as waiting:
        waiting.sendall(b"POST /containers/c1/wait HTTP/1.1\r\nHost: d\r\n\r\n")
        head = (
            b"POST /containers/create HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        )
        slow.sendall(head % len(body))
        for number in range(len(body)):  # 1.6 s in all
            time.sleep(0.1)
            slow.sendall(body[number : number + 1])
        assert b" 201 " in until(slow, b"\r\n\r\n")
        idle.sendall(b"GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n")
        assert b"OK" in until(idle, b"OK")
        live.call(live.engine.exited.set)
        assert b'"StatusCode":' in until(waiting, b"}")


def test_expect_continue(live: Live) -> None:
    with live.connect() as sock:
        sock.sendall(
            b"POST /containers/create HTTP/1.1\r\nHost: d\r\n"
            b"Expect: 100-continue\r\nContent-Length: 13\r\n\r\n"
        )
        assert b"100 " in until(sock, b"\r\n\r\n")
        sock.sendall(b'{"Image":"x"}')
        assert b" 201 " in until(sock, b"\r\n\r\n")


def test_create_answers_id_and_warnings_and_404_for_a_missing_image(live: Live) -> None:
    status, _, body = live.ask("POST", "/v1.50/containers/create?name=web", b'{"Image":"x","Cmd":["a"]}')
    assert (status, json.loads(body)) == (201, {"Id": "c1", "Warnings": ["careful"]})
    request = live.engine.calls[0][1]
    assert (request.name, request.config.command) == ("web", ("a",))
    assert live.ask("POST", "/containers/create", b'{"Image":"absent"}')[0] == 404
    assert live.ask("POST", "/containers/create", b'{"Image":3}')[0] == 400
    assert live.ask("POST", "/containers/create", b"[" * 100_000)[0] == 400


def test_start_status(live: Live) -> None:
    assert live.ask("POST", "/containers/c1/start")[0] == 204
    assert live.ask("POST", "/containers/running/start")[0] == 304
    status, _, body = live.ask("POST", "/containers/typo/start")
    assert status == 400 and b"executable file not found in $PATH" in body


def test_wait_sends_its_header_before_the_exit(live: Live) -> None:
    with live.connect() as sock:
        sock.sendall(b"POST /containers/c1/wait?condition=next-exit HTTP/1.1\r\nHost: d\r\n\r\n")
        assert until(sock, b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
        live.call(live.engine.exited.set)
        assert b'{"StatusCode":7}' in until(sock, b"0\r\n\r\n")
    assert live.ask("POST", "/containers/nope/wait")[0] == 404
    assert live.ask("POST", "/containers/c1/wait?condition=never")[0] == 400


@pytest.mark.parametrize("upgrade", [True, False])
def test_attach_loses_no_byte_that_comes_with_the_request(live: Live, upgrade: bool) -> None:
    header = "Connection: Upgrade\r\nUpgrade: tcp\r\n" if upgrade else ""
    with live.connect() as sock:
        sock.sendall(
            b"POST /v1.51/containers/c1/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: d\r\n"
            + f"{header}\r\nearly ".encode()
        )
        head = until(sock, b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 UPGRADED\r\n" if upgrade else b"HTTP/1.1 200 OK\r\n")
        assert b"Content-Type: application/vnd.docker.multiplexed-stream\r\n" in head
        sock.sendall(b"late")
        sock.shutdown(socket.SHUT_WR)
        assert b"".join(iter(lambda: sock.recv(100), b"")) == b"EARLY LATE"
    request = live.engine.calls[-1][1]
    assert (request.stdin, request.stdout, request.stderr, request.logs) == (True, True, False, False)


def test_attach_failing_after_the_hijack_tells_the_client_and_ends(live: Live) -> None:
    live.engine.tty = True
    answer = live.raw(b"POST /containers/c1/attach?stream=1 HTTP/1.1\r\nHost: d\r\n\r\n")
    assert b"raw-stream" in answer
    assert answer.endswith(b"it has gone meanwhile\r\n")


def test_exec_of_a_missing_command(live: Live) -> None:
    status, _, body = live.ask("POST", "/exec/e1/start", b'{"Detach":false}', "Upgrade: tcp\r\n")
    assert status == 101 and body[:1] == b"\x02"
    assert b"executable file not found" in body
    assert live.ask("POST", "/exec/e1/start", b'{"Detach":true}')[0] == 400
    assert live.ask("POST", "/exec/e2/start", b"{}")[0] == 404


def test_logs_frames_and_stamps(live: Live) -> None:
    status, head, body = live.ask(
        "GET", "/containers/c1/logs?stdout=1&stderr=1&timestamps=1&tail=3&since=1.5"
    )
    assert status == 200 and b"multiplexed-stream" in head
    stamp = b"2023-11-14T22:13:20.00000000"
    assert body == (
        b"\x01\0\0\0\0\0\0\x23" + stamp + b"5Z out\n" + b"\x02\0\0\0\0\0\0\x23" + stamp + b"6Z err\n"
    )
    wishes = live.engine.calls[-1][1]
    assert (wishes["tail"], wishes["since"]) == (3, 1_500_000_000)
    assert live.ask("GET", "/containers/c1/logs")[0] == 400


def test_a_client_that_goes_away_cancels_its_stream(live: Live) -> None:
    sock = live.connect()
    sock.sendall(b"GET /containers/c1/logs?stdout=1&follow=1 HTTP/1.1\r\nHost: d\r\n\r\n")
    until(sock, b"err\n")
    sock.close()
    assert live.engine.slow_cancelled.wait(5)


def test_a_half_closed_client_that_goes_away_later_is_noticed(live: Live) -> None:
    sock = live.connect()
    sock.sendall(b"GET /containers/c1/logs?stdout=1&follow=1 HTTP/1.1\r\nHost: d\r\n\r\n")
    sock.shutdown(socket.SHUT_WR)
    until(sock, b"err\n")
    assert not live.engine.slow_cancelled.wait(0.3)
    sock.close()
    assert live.engine.slow_cancelled.wait(5)


def test_a_client_that_goes_away_does_not_stop_an_operation_half_way(live: Live) -> None:
    sock = live.connect()
    sock.sendall(b"POST /containers/c1/stop HTTP/1.1\r\nHost: d\r\n\r\n")
    time.sleep(0.1)
    sock.close()
    assert live.engine.stop_finished.wait(5)


def test_closing_waits_for_operations(tmp_path: Any) -> None:
    live = Live(str(tmp_path / "s"))
    with live.connect() as sock:
        sock.sendall(b"POST /containers/c1/stop HTTP/1.1\r\nHost: d\r\n\r\n")
        time.sleep(0.1)
        live.close()
        assert b" 204 " in sock.recv(1000)


def test_pull_errors_before_and_after_the_first_progress(live: Live) -> None:
    assert live.ask("POST", "/images/create?fromImage=secret/x&tag=1")[0] == 401
    status, _, body = live.ask(
        "POST",
        "/images/create?fromImage=x&tag=1&platform=linux/arm64",
        extra="X-Registry-Auth: eyJ1c2VybmFtZSI6InUifQ\r\n",
    )
    assert status == 200
    lines = [json.loads(line) for line in body.splitlines()]
    assert lines[0] == {"status": "Pulling from library/x", "id": "1"}
    assert lines[1]["progressDetail"] == {"current": 1000, "total": 2000}
    assert lines[2] == {"errorDetail": {"message": "the blob has gone"}, "error": "the blob has gone"}
    reference, platform, auth, all_tags = live.engine.calls[-1][1]
    assert (reference, platform, auth.username, all_tags) == ("x:1", "linux/arm64", "u", False)
    for query, everything in (
        ("fromImage=h:1/x", True),
        ("fromImage=h:1/x:2", False),
        ("fromImage=x&tag=sha256:" + "0" * 64, False),
    ):
        live.ask("POST", f"/images/create?{query}")
        assert live.engine.calls[-1][1][3] is everything


def test_a_thousand_idle_connections_and_a_fast_answer(live: Live) -> None:
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit[1] < 4096:
        pytest.skip("needs 4096 open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limit[0], 4096), limit[1]))
    idle = [live.connect() for _ in range(1000)]
    try:
        with live.connect() as sock:
            for _ in range(20):
                sock.sendall(b"GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n")
                until(sock, b"\r\n\r\nOK")
    finally:
        for each in idle:
            each.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
