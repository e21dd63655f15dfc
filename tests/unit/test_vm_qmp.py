"""The monitor's client against a peer that answers as QEMU does, and against one that does not."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from nagaya.errors import DataLoss, DeadlineExceeded, Unavailable
from nagaya.vm.qmp import Qmp, QmpError

HELLO = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}}, "capabilities": []}}


def with_peer(answer: Callable[[dict[str, Any]], list[bytes]], first: bytes = b"") -> Qmp:
    """A client whose peer sends `first` and then what `answer` makes of each command, and hangs up after
    an empty list."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with theirs, theirs.makefile("rb") as lines, contextlib.suppress(BrokenPipeError):
            theirs.sendall(first)
            for line in lines:
                if not (replies := answer(json.loads(line))):
                    return
                for reply in replies:
                    theirs.sendall(reply)

    threading.Thread(target=serve, daemon=True).start()
    return Qmp(ours, timeout=20)


def line(message: object) -> bytes:
    return json.dumps(message).encode() + b"\r\n"


def test_greeting_call_event_and_refusal() -> None:
    def answer(command: dict[str, Any]) -> list[bytes]:
        match command["execute"]:
            case "qmp_capabilities":
                return [line({"return": {}})]
            case "stop":
                event = line({"event": "STOP", "data": {}})
                return [event[:9], event[9:], line({"return": {}})]
            case _:
                return [line({"error": {"class": "CommandNotFound", "desc": "The command x is not known"}})]

    qmp = with_peer(answer, line(HELLO))
    qmp.greet()
    assert qmp.version == "7.2.22"
    assert qmp.call("stop") == {}
    assert [event["event"] for event in qmp.events()] == ["STOP"]
    assert qmp.events() == []
    with pytest.raises(QmpError, match="The command x is not known") as caught:
        qmp.call("x")
    assert (caught.value.kind, caught.value.subject) == ("CommandNotFound", "x")
    qmp.close()


@pytest.mark.parametrize(
    ("greeting", "kind"),
    [
        (b"", DeadlineExceeded),
        (b"SSH-2.0\r\n", DataLoss),
        (b'{"QMP": 3}\r\n', DataLoss),
        (b'{"QMP": {"version": {"qemu": {"major": "x"}}}}\r\n', DataLoss),
        (b"[" * 100_000 + b"\n", DataLoss),
        (b"x" * (2 << 20), DataLoss),
    ],
)
def test_no_greeting(greeting: bytes, kind: type[Exception]) -> None:
    qmp = with_peer(lambda _: [], greeting)
    with pytest.raises(kind):
        qmp.greet(timeout=1 if kind is DeadlineExceeded else 20)
    qmp.close()


def test_it_ends_in_the_middle() -> None:
    qmp = with_peer(lambda _: [], line(HELLO))
    with pytest.raises(Unavailable, match="qmp qmp_capabilities: QEMU has ended"):
        qmp.greet()
    with pytest.raises(Unavailable):
        qmp.events()
    qmp.close()


def test_events_without_end_are_no_memory_without_end() -> None:
    events = [line({"event": "X", "data": {"n": n}}) for n in range(1000)]
    qmp = with_peer(lambda c: [*events, line({"return": 1})], line(HELLO))
    qmp.greet()
    numbers = [event["data"]["n"] for event in qmp.events()]
    assert numbers[-1] == 999
    assert len(numbers) <= 256
    qmp.close()


def test_an_answer_nobody_asked_for() -> None:
    qmp = with_peer(lambda c: [line({"return": {}}), line({"return": {}})], line(HELLO))
    qmp.greet()
    with pytest.raises(DataLoss):
        for _ in range(1000):
            qmp.wait_event("SHUTDOWN")
    qmp.close()
