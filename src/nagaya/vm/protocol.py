"""What host and guest say to each other, over one virtio-serial port named `agent`: the host's side, pure.

The host calls, the guest's agent (agent/agent.c) answers; the agent decides nothing. The host may be
trusted by the guest; the guest by nobody: all that it may send is bounded, and owed to something the host
asked for. Anything else is a DataLoss error, and the end of that guest.

A frame, little-endian: u32 length of the payload, u8 type, u8 stream, u16 zero, u32 id, payload.

    type        from   id       payload
    1 CALL      host   call     fields, the first of them `call`
    2 OK        guest  call     fields
    3 ERROR     guest  call     fields: errno, step, message
    4 DATA      both   process  bytes of stream 0 (to the process), 1, 2
    5 EOF       both   process  - ; that stream has ended, once each
    6 WINDOW    both   process  u32: so many bytes of that stream were taken, and as many more may come
    7 EXIT      guest  process  fields: status (of wait(2)), oom (kills in its cgroup); once
    8 READY     guest  0        fields: version, kernel; once, at boot

Fields are pairs, some more than once (marked *): key, NUL, u32 length of the value, value, NUL. Numbers are
decimal text unless said otherwise. A process has a number that the host chose and does not use again. Of a
stream at most WINDOW bytes (STDIN_WINDOW of stream 0) may be under way: who is not read stops reading.

    call       fields                                        answer
    ping       -                                             version
    renew      time (ns since 1970), seed (bytes)            -       after a restore: clock, randomness
    mount      type source target flags data                 -       mount(2); the target directory is made
    unmount    target flags                                  -       umount2(2)
    mkdir      path mode                                     -       with parents; fine when there
    write      path data mode uid gid append                 -       a file; parents are made
    symlink    path target                                   -
    read       path*  (limit of 64 KiB each)                 data* | error* (errno), one for each path
    remove     path                                          -       a file, or an empty directory
    netlink    data (rtnetlink messages)                     data    all the kernel's answers
    create     container root, and all below                 pid     waits for `start` before execve
    exec       container, and process's fields               pid     joins the container's first process
    start      process                                       -       the answer tells how execve went
    signal     process signal all                            -       all: every process of the container
    resize     process rows columns                          -
    close      process                                       -       its output is no longer wanted
    ps         container                                     stat* status* cmdline*, one for each process
    delete     container                                     -       kills what is left; EBUSY: ask again
    poweroff   -                                             -       sync, and the machine ends

    create's: container, root (a directory of the guest), readonly (1), namespaces (flags of clone(2)),
      join* ("PROCESS FLAGS": that process's), hostname, domainname, propagation (flags of mount(2)),
      mount* (NUL between: type source target flags propagation data), device* (NUL between: path type
      major minor mode uid gid), symlink* (NUL between: path target), mask*, protect* (made read-only),
      sysctl* (path below /proc/sys, =, value), limit* (file of the cgroup, =, value), devices (struct
      bpf_insn[]: what its cgroup allows)
    a process's: process, arg*, env*, cwd, uid, gid, group*, umask, caps ("BOUNDING EFFECTIVE PERMITTED
      INHERITABLE AMBIENT", hexadecimal), rlimit* ("NUMBER SOFT HARD"), nnp (1), oom (oom_score_adj),
      terminal ("ROWS COLUMNS"), stdin (1: stream 0 is wanted), seccomp (struct
      sock_filter[])

Without a terminal a process has streams 1 and 2, with one only 1.
"""

from __future__ import annotations

from struct import Struct

from nagaya.errors import CommandNotExecutable, CommandNotFound, DataLoss, InvalidArgument, KernelError
from nagaya.linux import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from nagaya.errors import NagayaError

    Value = str | bytes | int

VERSION = 1

CALL, OK, ERROR, DATA, EOF, WINDOW_, EXIT, READY = range(1, 9)
WINDOW = 256 << 10
STDIN_WINDOW = 64 << 10
MAX_DATA = 32 << 10
MAX_CALL = 4 << 20  # arguments and environment: MAX_ARG_STRLEN and the stack bound them to about 2 MiB
MAX_ANSWER = 1 << 20
_MAX_FIELDS = 16384
_HEADER = Struct("<IBBHI")
_LENGTH = Struct("<I")
_ENOENT, _EACCES, _ENOEXEC, _EISDIR = 2, 13, 8, 21


class Event:
    """What the guest tells: one of the classes below."""

    __slots__ = ()


class Ready(Event):
    """The guest has booted."""

    __slots__ = ("kernel", "version")

    def __init__(self, version: int, kernel: str) -> None:
        self.version = version
        self.kernel = kernel


class Reply(Event):
    """A call was done."""

    __slots__ = ("fields", "number")

    def __init__(self, number: int, fields: list[tuple[str, bytes]]) -> None:
        self.number = number
        self.fields = fields


class Failure(Event):
    """A call failed in the guest."""

    __slots__ = ("error", "number")

    def __init__(self, number: int, error: NagayaError) -> None:
        self.number = number
        self.error = error


class Output(Event):
    """What a process wrote to stream 1 or 2; `grant` lets as much more come once it is disposed of."""

    __slots__ = ("data", "process", "stream")

    def __init__(self, process: int, stream: int, data: bytes) -> None:
        self.process = process
        self.stream = stream
        self.data = data


class End(Event):
    """A process's stream 1 or 2 has ended; of stream 0: the process reads it no longer."""

    __slots__ = ("process", "stream")

    def __init__(self, process: int, stream: int) -> None:
        self.process = process
        self.stream = stream


class Exit(Event):
    """A process has ended: status of wait(2), kills for lack of memory in its cgroup. Output may follow."""

    __slots__ = ("oom", "process", "status")

    def __init__(self, process: int, status: int, oom: int) -> None:
        self.process = process
        self.status = status
        self.oom = oom


class Taken(Event):
    """A process took bytes of its stream 0: `sendable` has become more."""

    __slots__ = ("process",)

    def __init__(self, process: int) -> None:
        self.process = process


class _Process:
    __slots__ = ("exited", "may_come", "may_go", "sent", "streams")

    def __init__(self, *, stdin: bool, terminal: bool) -> None:
        # stream 0 is a terminal's input, too
        self.streams = {1} | ({0} if stdin else set()) | (set() if terminal else {2})
        self.may_come = {1: WINDOW, 2: WINDOW}
        self.may_go = STDIN_WINDOW
        self.exited = False


def _bad(what: str) -> DataLoss:
    return DataLoss(f"the guest broke the protocol: {what}", step="guest agent")


def encode_fields(fields: Iterable[tuple[str, Value]]) -> bytes:
    """Fields as bytes; text as the file system has it, numbers in decimal."""
    parts = []
    for key, value in fields:
        data = value if isinstance(value, bytes) else os.fsencode(str(value))
        parts += [key.encode(), b"\0", _LENGTH.pack(len(data)), data, b"\0"]
    return b"".join(parts)


def decode_fields(payload: bytes) -> list[tuple[str, bytes]]:
    """The inverse, of a guest's bytes. Raises DataLoss."""
    fields: list[tuple[str, bytes]] = []
    at = 0
    while at < len(payload):
        end = payload.find(b"\0", at, at + 33)
        if end <= at or len(fields) >= _MAX_FIELDS:
            raise _bad("no field where one should be")
        key = payload[at:end]
        if not key.isascii() or not key.isalnum() or end + 5 > len(payload):
            raise _bad("a field without a name or a length")
        begin = end + 5
        at = begin + _LENGTH.unpack_from(payload, end + 1)[0] + 1
        if at > len(payload) or payload[at - 1]:
            raise _bad("a field longer than its message")
        fields.append((key.decode(), payload[begin : at - 1]))
    return fields


def number_of(fields: list[tuple[str, bytes]], key: str) -> int:
    """The decimal number of that key, of at most 63 bits; 0 when it is not there. Raises DataLoss."""
    for name, value in fields:
        if name == key:
            if not 0 < len(value) <= 19 or not value.isdigit():
                raise _bad(f"{key} is not a number")
            return int(value)
    return 0


def text_of(fields: list[tuple[str, bytes]], key: str, limit: int = 4096) -> str:
    """The first value of that key as text without control characters, cut at the limit; "" when it is not
    there."""
    value = next((value for name, value in fields if name == key), b"")[:limit]
    return "".join(c if c >= " " and c != "\x7f" else "?" for c in value.decode("utf-8", "replace"))


def error_of(fields: list[tuple[str, bytes]]) -> NagayaError:
    """The error that an ERROR frame tells: a command that cannot be run, or KernelError. Raises DataLoss."""
    errno = number_of(fields, "errno")
    step, message = text_of(fields, "step"), text_of(fields, "message") or "unknown error"
    if step == "exec":
        if errno == _ENOENT:
            return CommandNotFound(message, step=step, errno=errno)
        if errno in (_EACCES, _ENOEXEC, _EISDIR):
            return CommandNotExecutable(message, step=step, errno=errno)
    return KernelError(message, step=step, errno=errno)


class Connection:
    """One host's end of the protocol: calls become bytes, the guest's bytes become events. No I/O here.

    Each method that returns bytes wants them sent, in the order of the calls.
    """

    def __init__(self, *, ready: bool = False) -> None:
        """ready: of a restored machine, whose agent said so long ago."""
        self._ready = ready
        self._buffer = bytearray()
        self._next = 0
        self._calls: dict[int, tuple[str, int]] = {}
        self._processes: dict[int, _Process] = {}

    def call(self, verb: str, fields: Iterable[tuple[str, Value]] = ()) -> tuple[int, bytes]:
        """A call's number, which its Reply or Failure will have, and its bytes.

        Raises InvalidArgument when it is too long for a frame.
        """
        every = [("call", verb), *fields]
        payload = encode_fields(every)
        if len(payload) > MAX_CALL:
            raise InvalidArgument(f"{verb}: {len(payload)} bytes are too many", subject=verb)
        self._next += 1
        process = 0
        if verb in ("create", "exec"):
            given = {key: value for key, value in every if key in ("process", "stdin", "terminal")}
            process = int(given["process"])
            self._processes[process] = _Process(stdin="stdin" in given, terminal="terminal" in given)
        self._calls[self._next] = (verb, process)
        return self._next, self._frame(CALL, self._next, payload)

    def sendable(self, process: int) -> int:
        """How many bytes of stream 0 may be sent now."""
        known = self._processes.get(process)
        return known.may_go if known and 0 in known.streams else 0

    def send(self, process: int, data: bytes) -> bytes:
        """Bytes for a process's stream 0, at most `sendable` of them."""
        if len(data) > self.sendable(process):
            raise InvalidArgument(f"process {process} takes {self.sendable(process)} bytes now")
        self._processes[process].may_go -= len(data)
        pieces = range(0, len(data), MAX_DATA)
        return b"".join(self._frame(DATA, process, data[at : at + MAX_DATA]) for at in pieces)

    def end(self, process: int) -> bytes:
        """No more for its stream 0."""
        known = self._processes.get(process)
        if known is None or 0 not in known.streams:
            return b""
        known.streams.discard(0)
        return self._frame(EOF, process, b"")

    def grant(self, process: int, stream: int, count: int) -> bytes:
        """So many bytes of its output are disposed of."""
        known = self._processes.get(process)
        if known is None or stream not in known.streams or not count:
            return b""
        known.may_come[stream] += count
        return self._frame(WINDOW_, process, _LENGTH.pack(count), stream)

    def receive(self, data: bytes) -> Iterator[Event]:
        """The events that these bytes complete. Raises DataLoss as soon as the guest breaks the rules."""
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            length, kind, stream, zero, number = _HEADER.unpack_from(self._buffer)
            if zero or length > (MAX_DATA if kind == DATA else MAX_ANSWER):
                raise _bad(f"a frame of type {kind} with {length} bytes")
            if len(self._buffer) < _HEADER.size + length:
                return
            payload = bytes(self._buffer[_HEADER.size : _HEADER.size + length])
            del self._buffer[: _HEADER.size + length]
            yield self._event(kind, stream, number, payload)

    def _frame(self, kind: int, number: int, payload: bytes, stream: int = 0) -> bytes:
        return _HEADER.pack(len(payload), kind, stream, 0, number) + payload

    def _event(self, kind: int, stream: int, number: int, payload: bytes) -> Event:
        if kind in (OK, ERROR):
            return self._answer(kind, number, decode_fields(payload))
        if kind == READY:
            fields = decode_fields(payload)
            if self._ready or number:
                raise _bad("ready a second time")
            self._ready = True
            return Ready(number_of(fields, "version"), text_of(fields, "kernel", 256))
        process = self._processes.get(number)
        if process is None:
            raise _bad(f"a frame of type {kind} about a process that there is not")
        if kind == EXIT:
            if process.exited:
                raise _bad("a process ended twice")
            fields = decode_fields(payload)
            status, oom = number_of(fields, "status"), number_of(fields, "oom")
            if status > 0xFFFF:
                raise _bad("no status of a process")
            process.exited = True
            self._forget(number)
            return Exit(number, status, oom)
        if kind == WINDOW_:
            if stream or len(payload) != 4:
                raise _bad("a window of no stream")
            # of stream 0 that the host has ended, bytes may still be taken
            process.may_go += _LENGTH.unpack(payload)[0]
            if process.may_go > STDIN_WINDOW:
                raise _bad("more was taken than was sent")
            return Taken(number)
        if stream not in process.streams:
            if kind == EOF and not stream:
                return End(number, 0)  # both sides ended it
            raise _bad(f"a frame of type {kind} on stream {stream}, which is not open")
        if kind == EOF:
            process.streams.discard(stream)
            self._forget(number)
            return End(number, stream)
        if kind != DATA or not stream or not payload:
            raise _bad(f"a frame of type {kind} on stream {stream}")
        process.may_come[stream] -= len(payload)
        if process.may_come[stream] < 0:
            raise _bad(f"more output than it may send, on stream {stream}")
        return Output(number, stream, payload)

    def _answer(self, kind: int, number: int, fields: list[tuple[str, bytes]]) -> Event:
        if number not in self._calls:
            raise _bad("an answer that nobody asked for")
        _, process = self._calls.pop(number)
        if kind == OK:
            return Reply(number, fields)
        if process:
            self._processes.pop(process, None)
        return Failure(number, error_of(fields))

    def _forget(self, number: int) -> None:
        process = self._processes[number]
        if process.exited and not process.streams & {1, 2}:
            del self._processes[number]
