"""Attached clients that are slow, dead or in a hurry: who waits for whom, and for how long."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from keeping import Keeping, fds_of, live, until

from nagaya.linux import seqpacket
from nagaya.supervisor import io as io_module
from nagaya.supervisor.io import Io
from nagaya.wire.messages import FROM_IO, TO_IO, check, message


@live
async def test_a_thousand_aborted_attaches_leave_nothing() -> None:
    """CVE-2022-23471, CVE-2025-64329: what an aborted attach holds must not outlive it."""
    async with Keeping(host=True) as house:
        await house.host("c", "cat", stdin=True, log=house.log("c"))
        keeper, io = house.keeper_pid, await house.io()

        async def abort(kind: int) -> None:
            near, far = socket.socketpair()
            await house.client.attach("c", far.detach(), stdin=kind % 2 == 0, stdin_once=False)
            if kind % 3 == 0:
                near.send(b"x\n")
            near.close()

        await abort(0)
        await until(lambda: len(house.detached) == 1)
        before = [fds_of(p) for p in (keeper, io, os.getpid())]
        for round in range(10):
            await asyncio.gather(*(abort(n + round) for n in range(100)))
        await until(lambda: len(house.detached) == 1001)
        await until(lambda: [fds_of(p) for p in (keeper, io, os.getpid())] == before, "no descriptor more")
        viewer = await house.attach("c", stdin=True, stdin_once=True, mux=False)
        await viewer.write(b"last\n")
        assert (await viewer.until(b"last\n")).endswith(b"last\n")
        viewer.half_close()
        assert (await house.exit("c")).code == 0


@live
async def test_aborted_attaches_to_a_process_that_reads_nothing() -> None:
    """Their input waits for ever; they need not."""
    async with Keeping(host=True) as house:
        await house.host("s", "sleep", "1000", stdin=True)
        filler = await house.attach("s", stdin=True)
        io = await house.io()
        writing = asyncio.ensure_future(filler.write(bytes(1 << 20)))
        await asyncio.sleep(0.2)
        assert not writing.done()  # the container reads slowly: so does its client write
        before = fds_of(io)
        for _ in range(50):
            near, far = socket.socketpair()
            await house.client.attach("s", far.detach(), stdin=True)
            near.send(bytes(1000))
            near.close()
        await until(lambda: len(house.detached) == 50)
        assert fds_of(io) == before
        writing.cancel()


@live
async def test_clients_of_a_token_that_never_starts() -> None:
    async with Keeping(host=True) as house:
        viewer = await house.attach("never", stdin=True)
        gone = await house.attach("never")
        gone.close()
        await until(lambda: house.detached)
        await house.client.release("never")
        assert await viewer.rest() == b""
        await until(lambda: len(house.detached) == 2)
        with pytest.raises(ValueError, match="as asked"):
            try:
                viewer = await house.attach("fails")
                await house.client.run("fails", {"op": "fail"})
            except Exception as error:
                raise ValueError(str(error)) from None
        await house.client.release("fails")  # once they have been told why
        assert await viewer.rest() == b""


@live
async def test_a_slow_client_gets_everything_and_a_fast_one_too() -> None:
    async with Keeping(host=True) as house:
        slow = await house.attach("seq", mux=False)
        fast = await house.attach("seq", mux=False)
        await house.host("seq", "seq", "500000", log=house.log("seq", max_size=-1))

        async def crawl() -> bytes:
            seen = b""
            while data := await slow.read():
                seen += data
                await asyncio.sleep(0.002)
            return seen

        expected = b"".join(b"%d\n" % n for n in range(1, 500001))
        seen, whole = await asyncio.gather(crawl(), fast.rest())
        assert seen == expected
        assert whole == expected
        assert (await house.exit("seq")).code == 0


@live
async def test_a_client_that_dies_frees_the_container() -> None:
    async with Keeping(host=True) as house:
        dead = await house.attach("seq", mux=False)
        await house.host("seq", "seq", "400000", log=house.log("seq", max_size=-1))
        await asyncio.sleep(0.5)
        assert "seq" not in house.exits  # it waits for the client, as with dockerd
        dead.close()
        assert (await house.exit("seq")).code == 0
        assert house.output("seq").endswith("\n400000\n")


class Stage:
    """An io in a thread of this process, spoken to as the keeper does, with little patience."""

    def __init__(self) -> None:
        self.keeper, theirs = seqpacket.pair()
        self.state = [os.memfd_create("journal"), *os.pipe2(os.O_NONBLOCK)]
        self.io = Io(theirs, *self.state)
        self.output, self.container = os.pipe2(os.O_NONBLOCK)
        os.set_blocking(self.container, True)
        self.thread = threading.Thread(target=self.io.serve)
        self.thread.start()

    def say(self, kind: str, passing: list[int], /, **fields: Any) -> None:
        data = json.dumps(message(TO_IO, kind, **fields)).encode()
        seqpacket.send(self.keeper, data, passing, wait=True)

    def hear(self, kind: str) -> dict[str, Any]:
        """The next message of io, which must be of this kind."""
        self.keeper.settimeout(20)
        packet = seqpacket.receive(self.keeper, wait=True)
        assert packet is not None
        said = check(FROM_IO, json.loads(packet.data))
        assert said["kind"] == kind, said
        return said

    def attach(self, serial: int) -> socket.socket:
        near, far = socket.socketpair()
        near.settimeout(20)
        self.say("attach", [far.fileno()], serial=serial, token="t", stdout=True)
        far.close()
        assert self.hear("attached")["error"] is None
        return near

    def close(self) -> None:
        self.keeper.close()
        self.thread.join(20)
        for fd in (*self.state, self.output, self.container):
            os.close(fd)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr(io_module, "PATIENCE", 1.5)
    monkeypatch.setattr(io_module, "PATIENCE_SHARED", 0.2)
    stage = Stage()
    try:
        stage.say("open", [stage.output], token="t", pid=1, stdio="pipes", fds=["stdout"])
        yield stage
    finally:
        stage.close()


def pour(stage: Stage, total: int) -> threading.Thread:
    """Write as the container does."""

    def write() -> None:
        done = 0
        while done < total:
            done += os.write(stage.container, bytes(min(65536, total - done)))

    thread = threading.Thread(target=write)
    thread.start()
    return thread


def test_a_client_that_takes_nothing_does_not_stall_the_others_for_long(stage: Stage) -> None:
    dead = stage.attach(1)
    alive = stage.attach(2)
    begin = time.monotonic()
    writer = pour(stage, 4 << 20)
    got = 0
    while got < 4 << 20 and (data := alive.recv(65536)):
        got += len(data)
    assert got == 4 << 20
    writer.join(20)
    assert time.monotonic() - begin >= 0.2
    gone = stage.hear("detached")
    assert (gone["serial"], gone["reason"]) == (1, "slow")
    dead.close()
    alive.close()
    assert stage.hear("detached")["reason"] == "gone"


def test_a_client_that_takes_nothing_does_not_stall_the_container_for_ever(stage: Stage) -> None:
    dead = stage.attach(1)
    begin = time.monotonic()
    writer = pour(stage, 4 << 20)
    gone = stage.hear("detached")
    assert (gone["serial"], gone["reason"]) == (1, "slow")
    assert time.monotonic() - begin >= 1.5
    writer.join(20)
    assert not writer.is_alive()
    dead.close()


def test_a_client_that_takes_a_little_is_waited_for(stage: Stage) -> None:
    slow = stage.attach(1)
    writer = pour(stage, 4 << 20)
    begin, got = time.monotonic(), 0
    while time.monotonic() - begin < 3:
        got += len(slow.recv(8000))
        time.sleep(0.1)
    while data := slow.recv(65536):
        got += len(data)
        if got == 4 << 20:
            break
    assert got == 4 << 20
    writer.join(20)
    slow.close()
    assert stage.hear("detached")["reason"] == "gone"
