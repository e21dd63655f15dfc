"""Exec, Attach and PortForward over both protocols, with clients that behave and clients that do not."""

from __future__ import annotations

import json

import pytest
from grpclib import Status
from house import wait_for
from kubelet import Node, refused
from streams import Client, Spdy, Tunnelled, WebSocket

from nagaya.api.cri import runtime_pb2 as cri
from nagaya.api.cri.streaming import spdy, websocket

pytestmark = pytest.mark.root


def command(node: Node, container: str, *cmd: str, kind: str = "spdy", **streams: bool) -> Spdy | WebSocket:
    """A client of a command, with its channels open."""
    asked = {"stdout": True, "stderr": not streams.get("tty"), **streams}
    url = node.kubelet.Exec(container_id=container, cmd=cmd, **asked).url
    return client(node, url, kind, **asked)


def client(node: Node, url: str, kind: str, **streams: bool) -> Spdy | WebSocket:
    if kind != "spdy":
        made: Spdy | WebSocket = WebSocket(node.house, url, kind)
        assert made.status == 101
        return made
    made = Spdy(node.house, url)
    assert made.status == 101
    made.open("error")
    for name in ("stdin", "stdout", "stderr"):
        if streams.get(name):
            made.open(name)
    if streams.get("tty"):
        made.open("resize")
    return made


KINDS = ("spdy", "v5.channel.k8s.io", "v4.channel.k8s.io")


@pytest.mark.parametrize("kind", KINDS)
def test_output_and_exit_code(node: Node, pod: str, kind: str) -> None:
    container = node.start(pod)
    script = "echo out; echo err >&2; exit 3"
    got = command(node, container, "sh", "-c", script, kind=kind).all()
    assert (got["stdout"], got["stderr"]) == (b"out\n", b"err\n")
    status = json.loads(got["error"])
    assert (status["status"], status["reason"]) == ("Failure", "NonZeroExitCode")
    assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "3"}]
    got = command(node, container, "true", kind=kind).all()
    assert json.loads(got["error"])["status"] == "Success"


@pytest.mark.parametrize("kind", KINDS[:2])
def test_input_and_its_end(node: Node, pod: str, kind: str) -> None:
    container = node.start(pod)
    made = command(node, container, "sh", "-c", "cat; echo end", kind=kind, stdin=True)
    text = bytes(range(256)) * 4096
    for begin in range(0, len(text), 60000):
        made.send("stdin", text[begin : begin + 60000])
        if kind == "spdy":  # read meanwhile, as its peer would wait for us
            continue
    made.end("stdin")
    assert made.all()["stdout"] == text + b"end\n"


@pytest.mark.parametrize("kind", KINDS[:2])
def test_a_terminal_and_its_size(node: Node, pod: str, kind: str) -> None:
    container = node.start(pod)
    script = "while [ \"$(stty size)\" != '33 77' ]; do sleep 0.05; done; tty; stty size; read x; echo got $x"
    made = command(node, container, "sh", "-c", script, kind=kind, tty=True, stdin=True)
    made.send("resize", b'{"Width":77,"Height":33}')
    made.until("stdout", b"33 77")
    assert b"/dev/pts/" in made.got["stdout"]
    made.send("stdin", b"it\n")
    assert b"got it" in made.all()["stdout"]


def test_a_command_that_is_not_there(node: Node, pod: str) -> None:
    status = json.loads(command(node, node.start(pod), "/no/such").all()["error"])
    assert status["status"] == "Failure"
    assert "/no/such" in status["message"]


def test_a_command_ends_with_its_client(node: Node, pod: str) -> None:
    container = node.start(pod)
    made = command(node, container, "sh", "-c", "echo here; exec sleep 7878")
    made.until("stdout", b"here")
    made.sock.close()
    wait_for(lambda: "7878" not in node.exec(container, "ps", "-o", "args"), 10, "the command's end")


@pytest.mark.parametrize("kind", KINDS)
def test_attaching(node: Node, pod: str, kind: str) -> None:
    script = "while read line; do echo said $line; echo more >&2; done; echo end"
    container = node.start(pod, "sh", "-c", script, stdin=True, stdin_once=True)
    asked = {"stdin": True, "stdout": True, "stderr": True}
    made = client(node, node.kubelet.Attach(container_id=container, **asked).url, kind, **asked)
    made.send("stdin", b"one\n")
    made.until("stdout", b"said one\n")
    made.until("stderr", b"more\n")
    if kind == "v4.channel.k8s.io":  # it has no word for the end of input: the client goes
        made.sock.close()
    else:
        made.end("stdin")
        assert made.all()["stdout"].endswith(b"end\n")
    assert node.ended(container).exit_code == 0


def test_attaching_to_a_terminal(node: Node, pod: str) -> None:
    container = node.start(pod, "sh", stdin=True, tty=True)
    attach = node.kubelet.Attach
    asked = {"stdin": True, "stdout": True, "tty": True}
    made = client(node, attach(container_id=container, **asked).url, "spdy", **asked)
    made.send("resize", b'{"Width":91,"Height":19}')
    made.send("stdin", b"sleep 0.2; stty size\n")
    made.until("stdout", b"19 91")
    made.sock.close()
    assert node.status(container).state == cri.CONTAINER_RUNNING
    refused(lambda: attach(container_id=container, stdout=True), Status.INVALID_ARGUMENT, "tty")


REQUEST = b"GET /index.html HTTP/1.0\r\n\r\n"


def served(node: Node, text: str, config: cri.PodSandboxConfig | None = None, port: int = 8080) -> str:
    """A pod with a web server that has the text, once it listens."""
    pod = node.run_pod(config)
    script = f"mkdir /www; echo {text} > /www/index.html; exec httpd -f -p {port} -h /www"
    container = node.start(pod, config=node.container_config("sh", "-c", script))
    tables = ("cat", "/proc/net/tcp", "/proc/net/tcp6")
    wait_for(lambda: f":{port:04X} " in node.exec(container, *tables), 20, "the server")
    return pod


@pytest.mark.parametrize("within", ["tcp", "websocket"])
def test_a_port_over_spdy(node: Node, within: str) -> None:
    pod = served(node, "hello")
    url = node.kubelet.PortForward(pod_sandbox_id=pod, port=[8080, 8081]).url
    made = Spdy(node.house, url, "portforward.k8s.io") if within == "tcp" else Tunnelled(node.house, url)
    assert made.status == 101
    for number in ("1", "2"):
        made.open(f"error {number}", streamtype="error", port="8080", requestid=number)
        made.open(f"data {number}", streamtype="data", port="8080", requestid=number)
        made.end(f"error {number}")
        made.send(f"data {number}", REQUEST)
        while f"data {number}" not in made.ended:
            made.read()
        assert made.got[f"data {number}"].endswith(b"hello\n")
        assert not made.got.get(f"error {number}")
    for port, word in (("8081", b"refused"), ("9", b"was not asked for")):
        made.open(f"error {port}", streamtype="error", port=port, requestid=port)
        made.open(f"data {port}", streamtype="data", port=port, requestid=port)
        made.until(f"error {port}", word)
    made.sock.close()
    node.kubelet.RemovePodSandbox(pod_sandbox_id=pod)


def test_a_port_over_websocket(node: Node) -> None:
    pod = served(node, "hallo")
    url = node.kubelet.PortForward(pod_sandbox_id=pod, port=[8080]).url
    made = WebSocket(node.house, url, "v4.channel.k8s.io", ("data", "error"))
    made.until("data", (8080).to_bytes(2, "little"))
    made.until("error", (8080).to_bytes(2, "little"))
    made.send("data", REQUEST)
    made.until("data", b"hallo\n")
    made.sock.close()
    node.kubelet.RemovePodSandbox(pod_sandbox_id=pod)


def test_a_port_of_a_pod_on_the_node_s_network(node: Node) -> None:
    config = node.pod_config()
    config.linux.security_context.namespace_options.network = cri.NODE
    pod = served(node, "node", config, 18089)
    made = Spdy(node.house, node.kubelet.PortForward(pod_sandbox_id=pod).url, "portforward.k8s.io")
    made.open("error", streamtype="error", port="18089", requestid="0")
    made.open("data", streamtype="data", port="18089", requestid="0")
    made.send("data", REQUEST)
    made.until("data", b"node\n")
    made.sock.close()
    node.kubelet.RemovePodSandbox(pod_sandbox_id=pod)


def test_addresses_are_good_once_and_nobody_guesses_them(node: Node, pod: str) -> None:
    container = node.start(pod)
    url = node.kubelet.Exec(container_id=container, cmd=["true"], stdout=True).url
    assert url.startswith("http://127.0.0.1:")
    wrong = [
        (Client(node.house, url.rpartition("/")[0] + "/guessed", ["Upgrade: SPDY/3.1"]), 404, b"no stream"),
        (Client(node.house, url, ["Upgrade: nonsense"]), 400, b"nonsense"),
        (Client(node.house, url, ["Upgrade: SPDY/3.1"]), 400, b"v4.channel.k8s.io"),
        (Client(node.house, url, ["Upgrade: websocket"]), 400, b"handshake"),
    ]
    for made, status, word in wrong:
        assert made.status == status
        made.take = lambda data, made=made: made.note("body", data)  # type: ignore[method-assign, misc]
        assert word in made.all()["body"]
    good = Spdy(node.house, url)
    assert good.status == 101
    good.open("error")
    good.open("stdout")
    good.all()
    assert Spdy(node.house, url).status == 404


def test_what_is_no_spdy_or_websocket_ends_the_stream_only(node: Node, pod: str) -> None:
    container = node.start(pod)
    for data in (
        b"\x80\x07\x00\x01\x00\x00\x00\x04abcd",
        b"\x80\x03\x00\x01\x00\x00\x00\x0eabcdabcdabgarbage"[:22],
    ):
        made = Spdy(node.house, node.kubelet.Exec(container_id=container, cmd=["cat"], stdout=True).url)
        made.sock.sendall(data)
        made.all()
    made2 = command(node, container, "cat", kind="v5.channel.k8s.io", stdin=True)
    made2.sock.sendall(b"\x82\x05hello")  # unmasked
    made2.all()
    assert node.exec(container, "echo", "alive") == "alive\n"


def test_pings_are_answered(node: Node, pod: str) -> None:
    container = node.start(pod)
    made = command(node, container, "cat", stdin=True)
    made.sock.sendall(spdy.ping(7))
    made.until("ping", (7).to_bytes(4, "big"))
    made.end("stdin")
    made.all()
    other = command(node, container, "cat", kind="v5.channel.k8s.io", stdin=True)
    assert isinstance(other, WebSocket)
    other.message(b"well?", websocket.PING)
    other.until("control", b"well?")
    other.sock.close()


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"cmd": ["x"]}, "stdout"),
        ({"stdout": True}, "cmd"),
        ({"cmd": ["x"], "stdout": True, "stderr": True, "tty": True}, "stderr"),
    ],
)
def test_contradictions_are_refused(node: Node, pod: str, fields: dict[str, object], word: str) -> None:
    container = node.start(pod)
    refused(lambda: node.kubelet.Exec(container_id=container, **fields), Status.INVALID_ARGUMENT, word)


def test_what_does_not_run_has_no_streams(node: Node, pod: str) -> None:
    kubelet = node.kubelet
    container = node.create(pod)
    for rpc, fields in ((kubelet.Exec, {"cmd": ["x"]}), (kubelet.Attach, {})):
        refused(
            lambda rpc=rpc, f=fields: rpc(container_id=container, stdout=True, **f),  # type: ignore[misc]
            Status.FAILED_PRECONDITION,
            "not running",
        )
    running = node.start(pod)
    refused(
        lambda: kubelet.Attach(container_id=running, stdin=True), Status.INVALID_ARGUMENT, "without stdin"
    )
    refused(lambda: kubelet.PortForward(pod_sandbox_id=pod, port=[0]), Status.INVALID_ARGUMENT, "port")
    stopped = node.run_pod()
    kubelet.StopPodSandbox(pod_sandbox_id=stopped)
    refused(lambda: kubelet.PortForward(pod_sandbox_id=stopped), Status.FAILED_PRECONDITION, "not ready")
    kubelet.RemovePodSandbox(pod_sandbox_id=stopped)
