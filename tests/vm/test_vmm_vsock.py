"""The guest's vsock and the host's Unix sockets, with a driver of the rings that is played here. No VM."""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nagaya.api.firecracker.virtqueue import BrokenRing, Memory, Queue, Region
from nagaya.api.firecracker.vsock import Vsock

HEADER = struct.Struct("<QQIIIHHIII")
REQUEST, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST = range(1, 8)
CID, HOST = 42, 2
SIZE = 4 << 20
RINGS = 64
GUEST_BASE = 0x1000_0000
USER_BASE = 0x7F00_0000_0000


FDS = st.integers(0, 3)


class Ring:
    """The guest's side of a ring at an offset of its memory, with a page for each buffer."""

    def __init__(self, memory: mmap.mmap, base: int) -> None:
        self.memory, self.base = memory, base
        self.kick, self.call = os.eventfd(0), os.eventfd(0)
        self.index = self.seen = 0
        self.buffers = base + 0x4000

    def addresses(self) -> tuple[int, int, int]:
        return self.base, self.base + 0x2000, self.base + 0x1000  # descriptors, used, available

    def post(self, data: bytes, *, writable: bool, slot: int | None = None) -> None:
        slot = self.index % RINGS if slot is None else slot
        at = self.buffers + slot * 8192
        self.memory[at : at + len(data)] = data
        flags = 2 if writable else 0
        struct.pack_into("<QIHH", self.memory, self.base + slot * 16, GUEST_BASE + at, len(data), flags, 0)
        self.offer(slot)

    def offer(self, slot: int) -> None:
        struct.pack_into("<H", self.memory, self.base + 0x1000 + 4 + 2 * (self.index % RINGS), slot)
        self.index = (self.index + 1) & 0xFFFF
        self._word(0x1002)[0] = self.index

    def used(self) -> int:
        return self._word(0x2002)[0]

    def _word(self, offset: int) -> memoryview:
        at = self.base + offset  # struct goes by bytes: half a number could be seen
        return memoryview(self.memory)[at : at + 2].cast("H")


class Guest:
    """QEMU and its guest: sets the rings up, and speaks packets."""

    def __init__(self, path: str) -> None:
        self.fd = os.memfd_create("ram")
        os.ftruncate(self.fd, SIZE)
        self.memory = mmap.mmap(self.fd, SIZE)
        self.rx, self.tx = Ring(self.memory, 0), Ring(self.memory, 0x100000)
        self.qemu = socket.socket(socket.AF_UNIX)
        self.qemu.settimeout(20)
        self.qemu.connect(path)
        self.sent = 0
        self.forwarded = 0
        self.room = 1 << 18

    def close(self) -> None:
        self.qemu.close()
        self.memory.close()
        for fd in (self.fd, self.rx.kick, self.rx.call, self.tx.kick, self.tx.call):
            os.close(fd)

    def tell(self, request: int, body: bytes, *fds: int, answer: bool = False) -> bytes:
        socket.send_fds(self.qemu, [struct.pack("<III", request, 9, len(body)) + body], list(fds))
        head = self.qemu.recv(12, socket.MSG_WAITALL)
        number, flags, size = struct.unpack("<III", head)
        assert (number, flags & 7) == (request, 5)
        return self.qemu.recv(size, socket.MSG_WAITALL)

    def start(self) -> None:
        features = struct.unpack("<Q", self.tell(1, b""))[0]
        assert features & 1 << 32
        assert self.tell(24, struct.pack("<III", 0, 8, 0) + bytes(8))[12:] == struct.pack("<Q", CID)
        self.tell(5, struct.pack("<IIQQQQ", 1, 0, GUEST_BASE, SIZE, USER_BASE, 0), self.fd)
        for index, ring in enumerate((self.rx, self.tx)):
            descriptors, used, available = ring.addresses()
            where = [USER_BASE + at for at in (descriptors, used, available)]
            self.tell(8, struct.pack("<II", index, RINGS))
            self.tell(10, struct.pack("<II", index, ring.index))
            self.tell(9, struct.pack("<IIQQQQ", index, 0, *where, 0))
            self.tell(13, struct.pack("<Q", index), ring.call)
            self.tell(12, struct.pack("<Q", index), ring.kick)
            self.tell(18, struct.pack("<II", index, 1))

    def stop(self) -> list[int]:
        return [struct.unpack("<II", self.tell(11, struct.pack("<II", i, 0)))[1] for i in (0, 1)]

    def give_buffers(self, count: int = 32, size: int = 4096 + 44) -> None:
        for _ in range(count):
            self.rx.post(bytes(size), writable=True)
        os.eventfd_write(self.rx.kick, 1)

    def send(
        self, host: int, guest: int, operation: int, data: bytes = b"", flags: int = 0, **odd: int
    ) -> None:
        fields = {"source": CID, "target": HOST, "size": len(data), "kind": 1, **odd}
        head = HEADER.pack(
            fields["source"],
            fields["target"],
            guest,
            host,
            fields["size"],
            fields["kind"],
            operation,
            flags,
            self.room,
            self.forwarded & 0xFFFFFFFF,
        )
        until = time.monotonic() + 20
        while (self.tx.index - self.tx.used()) & 0xFFFF >= RINGS:
            assert time.monotonic() < until
            time.sleep(0.001)
        self.tx.post(head + data, writable=False)
        os.eventfd_write(self.tx.kick, 1)

    def next(self, *, again: bool = True) -> tuple[int, int, int, bytes, int]:
        """The next packet: host port, guest port, operation, data, flags; its buffer is given again."""
        until = time.monotonic() + 20
        while self.rx.used() == self.rx.seen:
            select.select([self.rx.call], [], [], 0.05)
            assert time.monotonic() < until, "no packet"
        at = self.rx.base + 0x2004 + 8 * (self.rx.seen % RINGS)
        slot, length = struct.unpack_from("<II", self.memory, at)
        self.rx.seen = (self.rx.seen + 1) & 0xFFFF
        begin = self.rx.buffers + slot * 8192
        packet = self.memory[begin : begin + length]
        source, target, host, guest, size, kind, operation, flags, _, _ = HEADER.unpack_from(packet)
        assert (source, target, kind, size) == (HOST, CID, 1, length - HEADER.size)
        if again:
            self.rx.offer(slot)
            os.eventfd_write(self.rx.kick, 1)
        return host, guest, operation, packet[HEADER.size :], flags


class Box:
    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "v.sock")
        self.counts: dict[str, int] = {}
        vhost = socket.socket(socket.AF_UNIX)
        vhost.bind(str(directory / "vhost.sock"))
        vhost.listen(1)
        self.ours: Callable[[int], bool] = lambda fd: True
        self.said: list[str] = []
        self.vsock = Vsock(CID, self.path, vhost, self.is_ours, self.count, self.said.append)
        self.guest = Guest(str(directory / "vhost.sock"))

    def is_ours(self, fd: int) -> bool:
        return self.ours(fd)

    def count(self, name: str, by: int) -> None:
        self.counts[name] = self.counts.get(name, 0) + by

    def close(self) -> None:
        self.vsock.close()
        self.guest.close()

    def host(self, words: bytes = b"") -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(20)
        client.connect(self.path)
        client.sendall(words)
        return client


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    before = set(os.listdir("/proc/self/fd"))
    made = Box(tmp_path)
    made.guest.start()
    made.guest.give_buffers()
    yield made
    made.close()
    assert not os.path.exists(made.path)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def connected(box: Box) -> tuple[socket.socket, int, int]:
    """A connection from the host's side to port 52."""
    client = box.host(b"CONNECT 52\n")
    host, guest, operation, _, _ = box.guest.next()
    assert (guest, operation) == (52, REQUEST) and host >= 1 << 30
    box.guest.send(host, guest, RESPONSE)
    assert client.recv(64) == b"OK %d\n" % host
    return client, host, guest


def test_a_host_connects(box: Box) -> None:
    client, host, port = connected(box)
    client.sendall(b"hello")
    assert box.guest.next()[:4] == (host, port, RW, b"hello")
    box.guest.send(host, port, RW, b"welcome")
    assert client.recv(64) == b"welcome"
    client.shutdown(socket.SHUT_WR)
    assert box.guest.next()[2:] == (SHUTDOWN, b"", 2)
    box.guest.send(host, port, RW, b"and bye")  # the other direction still stands
    assert client.recv(64) == b"and bye"
    box.guest.send(host, port, SHUTDOWN, flags=3)
    assert client.recv(64) == b""
    assert box.guest.next()[2] == RST
    client.close()


def test_words_after_the_line_are_the_guests(box: Box) -> None:
    client = box.host(b"connect 7\nearly")
    host, guest, operation, _, _ = box.guest.next()
    assert (guest, operation) == (7, REQUEST)
    box.guest.send(host, guest, RESPONSE)
    assert client.recv(64) == b"OK %d\n" % host
    assert box.guest.next()[:4] == (host, 7, RW, b"early")
    client.close()


def test_nobody_listens_in_the_guest(box: Box) -> None:
    client = box.host(b"CONNECT 52\n")
    host, guest, _, _, _ = box.guest.next()
    box.guest.send(host, guest, RST)
    assert client.recv(64) == b""
    client.close()


@pytest.mark.parametrize(
    "words",
    [b"HELLO 52\n", b"CONNECT\n", b"CONNECT x\n", b"CONNECT 4294967296\n", b"C" * 40, b"CONNECT 1 2\n"],
)
def test_other_words_are_turned_away(box: Box, words: bytes) -> None:
    with box.host(words) as client:
        try:
            assert client.recv(64) == b""
        except ConnectionResetError:
            pass  # with words unread


def test_a_guest_connects(box: Box) -> None:
    box.guest.send(99, 1000, REQUEST)
    assert box.guest.next()[:3] == (99, 1000, RST)  # nobody is there
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{box.path}_99")
        listener.listen()
        listener.settimeout(20)
        box.guest.send(99, 1000, REQUEST)
        server, _ = listener.accept()
        server.settimeout(20)
        assert box.guest.next()[:3] == (99, 1000, RESPONSE)
        box.guest.send(99, 1000, RW, b"hi")
        assert server.recv(64) == b"hi"
        server.sendall(b"ho")
        assert box.guest.next()[2:4] == (RW, b"ho")
        box.guest.send(99, 1000, CREDIT_REQUEST)
        assert box.guest.next()[2] == CREDIT_UPDATE
        server.close()
        assert box.guest.next()[2] == SHUTDOWN
        box.guest.send(99, 1000, RST)
    assert box.counts["conns_added"] == 1


def test_the_guest_takes_as_much_as_it_has_room_for(box: Box) -> None:
    box.guest.room = 10000
    client, host, port = connected(box)
    sender = threading.Thread(target=client.sendall, args=(bytes(100000),))
    sender.start()
    got = 0
    while got < 10000:
        packet = box.guest.next()
        assert packet[2] == RW
        got += len(packet[3])
    assert got == 10000
    time.sleep(0.05)
    assert box.guest.rx.used() == box.guest.rx.seen  # no more, and waiting costs nothing
    while got < 100000:
        box.guest.forwarded = got
        box.guest.send(host, port, CREDIT_UPDATE)
        got += len(box.guest.next()[3])
    sender.join()
    client.close()


def test_a_slow_host_and_a_guest_that_says_too_much(box: Box) -> None:
    client, host, port = connected(box)
    for _ in range(4):
        box.guest.send(host, port, RW, b"x" * 4000)
    received = 0
    while received < 16000:
        received += len(client.recv(65536))
    # now beyond what it was told there is room for, while the host reads nothing
    for _ in range(200):
        box.guest.send(host, port, RW, b"x" * 4000)
    while (packet := box.guest.next())[2] == CREDIT_UPDATE:
        pass
    assert packet[2] == RST
    client.close()


def test_packets_that_lie(box: Box) -> None:
    client, host, port = connected(box)
    for odd in ({"source": 7}, {"target": 3}, {"kind": 2}, {"size": 100}):
        box.guest.send(host, port, RW, b"lie", **odd)
    box.guest.tx.post(b"short", writable=False)
    box.guest.send(host, 77, RW, b"to nobody")
    box.guest.send(host, port, RW, b"truth")
    assert client.recv(64) == b"truth"
    answers = [box.guest.next()[:3] for _ in range(4)]
    assert answers == [(host, port, RST)] * 3 + [(host, 77, RST)]
    client.close()


def test_a_guest_without_buffers_stops_what_makes_it_packets(tmp_path: Path) -> None:
    box = Box(tmp_path)
    box.guest.start()
    for _ in range(RINGS * 3):
        box.guest.send(5, 6, REQUEST)
    stalled = RINGS * 3
    for _ in range(100):
        if (box.guest.tx.index - box.guest.tx.used()) & 0xFFFF >= RINGS:
            break
        box.guest.send(5, 6, REQUEST)
        stalled += 1
    assert stalled <= 256 + RINGS + 1
    box.guest.give_buffers()
    for _ in range(stalled):
        assert box.guest.next()[2] == RST
    box.close()


def test_a_guest_that_breaks_its_rings_is_left_alone(box: Box) -> None:
    """Who was connected with it hears of the end, and who comes later is not served."""
    client, _, _ = connected(box)
    box.guest.tx.offer(RINGS + 5)
    os.eventfd_write(box.guest.tx.kick, 1)
    assert client.recv(64) == b""
    client.close()
    assert "descriptor 69 of 64" in box.said[0]
    with box.host(b"CONNECT 52\n") as late:
        assert box.counts["rx_queue_event_fails"] == 1
        late.settimeout(0.2)
        with pytest.raises(TimeoutError):
            late.recv(64)


def test_stopped_and_started_again(box: Box) -> None:
    client, _host, _port = connected(box)
    bases = box.guest.stop()
    assert bases == [box.guest.rx.seen, box.guest.tx.index] or bases[1] == box.guest.tx.index
    client.sendall(b"waits")
    time.sleep(0.05)
    assert box.guest.rx.used() == box.guest.rx.seen
    for index, ring in enumerate((box.guest.rx, box.guest.tx)):
        box.guest.tell(10, struct.pack("<II", index, bases[index]))
        box.guest.tell(12, struct.pack("<Q", index), ring.kick)
    assert box.guest.next()[3] == b"waits"
    client.close()


def test_memory_that_is_not_ours_is_not_mapped(tmp_path: Path) -> None:
    box = Box(tmp_path)
    box.ours = lambda fd: False
    with pytest.raises((AssertionError, struct.error, ConnectionError)):
        box.guest.start()
    box.close()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.binary(max_size=80), st.integers(0, 15), st.integers(0, 3)),
        max_size=6,
    )
)
def test_no_message_of_qemu_breaks_it(
    tmp_path_factory: pytest.TempPathFactory, messages: list[tuple[int, bytes, int, int]]
) -> None:
    box = Box(tmp_path_factory.mktemp("fuzz"))
    try:
        for request, body, flags, fds in messages:
            head = struct.pack("<III", request, flags, len(body))
            socket.send_fds(box.guest.qemu, [head + body], [box.guest.fd] * fds)
    except OSError:
        pass
    box.host(b"CONNECT 1\n").close()  # it still listens
    box.close()


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=64, max_size=600), st.sampled_from([1, 2, 4, 8]), st.booleans())
def test_no_ring_breaks_it(content: bytes, size: int, writable: bool) -> None:
    """Whatever the guest writes into its memory, a chain is inside it or there is none."""
    fd = os.memfd_create("ram")
    os.write(fd, content.ljust(4096, b"\1"))
    memory = Memory([Region(0, 4096, 0, 0, fd)])
    os.close(fd)
    queue = None
    try:
        queue = Queue(memory, size, 0, size * 16, 2048, 0)
        for _ in range(20):
            chain = queue.take(writable=writable)
            if chain is None:
                break
            assert chain.size <= 4096 * size
            if not writable:
                chain.read()
            queue.give_back(chain, 0)
            del chain
    except BrokenRing:
        pass
    queue = None
    memory.close()
