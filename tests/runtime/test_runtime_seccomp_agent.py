"""SCMP_ACT_NOTIFY: the filter's listener goes to the agent at listenerPath, which answers the calls."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from bundles import Bundle

pytestmark = pytest.mark.root

# linux/seccomp.h: SECCOMP_IOCTL_NOTIF_RECV and _SEND of struct seccomp_notif (80 bytes) and _resp (24)
RECV, SEND = 0xC0502100, 0xC0182101
EDQUOT = 122


class Agent:
    """Answers every call of every listener with EDQUOT; keeps the states that came with them."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.states: list[dict[str, Any]] = []
        self.calls: list[int] = []
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(path)
        self._socket.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                end, _ = self._socket.accept()
            except OSError:
                return
            with end:
                data, fds, _, _ = socket.recv_fds(end, 1 << 16, 4)
            self.states.append(json.loads(data))
            for fd in fds:
                threading.Thread(target=self._answer, args=(fd,), daemon=True).start()

    def _answer(self, fd: int) -> None:
        try:
            while True:
                request = bytearray(80)
                fcntl.ioctl(fd, RECV, request)
                identifier, pid = struct.unpack_from("=QI", request)
                self.calls.append(pid)
                fcntl.ioctl(fd, SEND, struct.pack("=QqiI", identifier, 0, -EDQUOT, 0))
        except OSError:
            os.close(fd)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def agent(box: Bundle) -> Iterator[Agent]:
    made = Agent(str(box.base / "agent"))
    profile(box, made.path)
    yield made
    made.close()


def profile(box: Bundle, path: str, *names: str) -> None:
    box.spec["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "listenerPath": path,
        "listenerMetadata": "mine",
        "syscalls": [{"names": list(names or ("mkdir",)), "action": "SCMP_ACT_NOTIFY"}],
    }


@pytest.mark.parametrize("privileges", [False, True])
def test_the_agent_answers(box: Bundle, agent: Agent, privileges: bool) -> None:
    box.spec["process"]["noNewPrivileges"] = privileges
    done = box.run("mkdir", "/dev/shm/x")
    assert done.returncode == 1 and "uota exceeded" in done.stderr, done
    assert agent.calls
    (state,) = agent.states
    assert state["fds"] == ["seccompFd"] and state["metadata"] == "mine"
    assert state["ociVersion"].startswith("1.")
    assert state["state"]["id"] == box.id and state["state"]["status"] == "creating"
    assert state["pid"] == state["state"]["pid"] > 1


@pytest.mark.parametrize("privileges", [False, True])
def test_created_containers_and_exec_have_the_agent_too(box: Bundle, agent: Agent, privileges: bool) -> None:
    box.spec["process"]["noNewPrivileges"] = privileges
    box.start("sh", "-c", "mkdir /dev/shm/x; sleep 1000")
    done = box.call("exec", box.id, "mkdir", "/dev/shm/y")
    assert done.returncode == 1 and "uota exceeded" in done.stderr, done
    first, second = agent.states
    assert second["state"]["status"] == "running"
    assert second["state"]["pid"] == first["pid"] == box.state()["pid"] != second["pid"]


def test_without_an_agent_nothing_starts(box: Bundle) -> None:
    profile(box, str(box.base / "nobody"))
    for privileges in (False, True):
        box.spec["process"]["noNewPrivileges"] = privileges
        done = box.run("true")
        assert done.returncode == 1
        assert "failed to connect with seccomp agent" in done.stderr
        assert box.call("state", box.id).returncode == 1


def test_write_cannot_be_answered_by_an_agent(box: Bundle, agent: Agent) -> None:
    profile(box, agent.path, "write")
    done = box.run("true")
    assert done.returncode == 1
    assert "SCMP_ACT_NOTIFY cannot be used for the write syscall" in done.stderr


def test_an_agent_needs_a_place(our_box: Bundle) -> None:
    for path in ("", "relative"):
        profile(our_box, path)
        done = our_box.run("true")
        assert done.returncode == 1
        assert "linux.seccomp.listenerPath: must be an absolute path" in done.stderr
