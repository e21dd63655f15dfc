"""Output of containers: from their pipes and terminals to the log and to attached clients.

A stream that is logged goes through the stage, a pipe that outlives io (see `Pump`); without a log
there is nothing to lose, and the stream is read directly, or dropped in the kernel.
"""

from __future__ import annotations

import os
import time
from errno import EAGAIN, EIO

from nagaya.errors import InternalError
from nagaya.linux import splice
from nagaya.supervisor.format import split
from nagaya.supervisor.journal import COMMIT, FLUSHING, IDLE, LOGGING, MOVING, REDO, Journal, decide
from nagaya.supervisor.logfile import LogFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

STDOUT, STDERR = 1, 2
NAMES = {STDOUT: "stdout", STDERR: "stderr"}

_FLAGS = splice.SPLICE_F_MOVE | splice.SPLICE_F_NONBLOCK
_CHUNK = 65536


class Stream:
    """One output of a container, as io sees it."""

    __slots__ = ("carry", "dropped", "ended", "error", "fd", "half", "log", "number", "slot", "tty")

    def __init__(self, fd: int, number: int, slot: int, log: LogFile | None, tty: bool) -> None:
        self.fd = fd
        self.number = number
        self.slot = slot
        self.log = log
        self.tty = tty
        self.half = 0
        self.carry = b""  # the beginning of an unfinished line; a copy of what the journal has
        self.ended = False
        self.dropped = 0  # log lines that could not be written, since the last report
        self.error = 0


class Pump:
    """Moves bytes of streams, one stream at a time, so that a SIGKILL at any point loses and repeats
    no log line. The order of the steps is the whole trick (docs/adr/0002-lossless-stdio.md):

    intent "moving" -> splice stream to stage -> tee and read -> unfinished line into the free half ->
    intent "logging" -> append -> slot header -> empty the stage.
    """

    __slots__ = ("_journal", "_null", "_scratch_in", "_scratch_out", "_stage_in", "_stage_out")

    def __init__(self, journal: Journal, stage_out: int, stage_in: int) -> None:
        self._journal = journal
        self._stage_out = stage_out
        self._stage_in = stage_in
        self._scratch_out, self._scratch_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)

    def adopt(self, stream: Stream) -> None:
        """Take over the unfinished line that an earlier io left."""
        stream.half, length = self._journal.header(stream.slot)
        stream.carry = self._journal.carry(stream.slot, stream.half, length)

    def recover(self, find: Callable[[int], Stream | None]) -> None:
        """Finish what the intent says that a killed io was doing; find gives the stream of a slot."""
        intent = self._journal.intent()
        staged = splice.pending(self._stage_out)
        stream = find(intent.slot)
        if stream is None or stream.log is None:  # released meanwhile: nobody wants it
            self._drop(staged)
            return
        try:
            decision, cut = decide(staged, intent, stream.log.size())
            if cut is not None:
                stream.log.truncate(cut)
        except OSError:  # the directory is gone, the disk is broken: what is staged will be counted as lost
            decision = REDO
        if decision == COMMIT:
            self._journal.write_header(intent.slot, intent.half, intent.carry)
            self.adopt(stream)
            self._drop(staged)
            self._journal.write_intent(IDLE, intent.slot)
        elif staged:
            self._log(stream, self._peek(staged))

    def move(self, stream: Stream, wanted: bool) -> bytes | None:
        """Take what the stream has now, at most one chunk; log it.

        Returns the bytes, for attached clients; b"" when there is nothing now (or nobody wanted it);
        None at the end of the stream.
        """
        if stream.ended:
            return None
        try:
            if stream.log is None:
                return self._pass(stream, wanted)
            self._journal.write_intent(MOVING, stream.slot)
            count = os.splice(stream.fd, self._stage_in, stream.log.chunk, flags=_FLAGS)
        except OSError as error:
            if error.errno == EAGAIN:
                return b""
            if error.errno != EIO:
                raise
            count = 0  # a terminal whose last slave was closed
        if not count:
            self._end(stream)
            return None
        data = self._peek(count)
        self._log(stream, data)
        return data

    def flush(self, stream: Stream) -> None:
        """Log the unfinished line as it is: the stream or its process has ended."""
        log = stream.log
        if not stream.carry or log is None:
            return
        half = 1 - stream.half
        segments, _ = split(stream.carry, final=True)
        record = log.records(segments, NAMES[stream.number], time.time_ns())
        try:
            before = log.room()
            self._journal.write_intent(FLUSHING, stream.slot, before, sum(map(len, record)), half, 0)
            log.append(record, before)
        except OSError as error:
            _count(stream, segments, error)
        self._journal.write_header(stream.slot, half, 0)
        self._journal.write_intent(IDLE, stream.slot)
        stream.half, stream.carry = half, b""

    def _pass(self, stream: Stream, wanted: bool) -> bytes | None:
        if wanted or stream.tty:
            data = os.read(stream.fd, _CHUNK)
            if not data:
                stream.ended = True
                return None
            return data
        if not os.splice(stream.fd, self._null, _CHUNK, flags=_FLAGS):
            stream.ended = True
            return None
        return b""

    def _peek(self, count: int) -> bytes:
        """The bytes of the stage, which stay there."""
        copied = splice.tee(self._stage_out, self._scratch_in, count)
        data = os.read(self._scratch_out, copied) if copied else b""
        if len(data) != count:
            raise InternalError(f"read {len(data)} of {count} staged bytes", step="tee")
        return data

    def _log(self, stream: Stream, data: bytes) -> None:
        log, journal = stream.log, self._journal
        if log is None:
            return
        segments, rest = split(stream.carry + data)
        # A carry is never changed in place: the current half must last until the record is written.
        half = 1 - stream.half if rest or stream.carry else stream.half
        if rest:
            journal.write_carry(stream.slot, half, rest)
        if segments:
            record = log.records(segments, NAMES[stream.number], time.time_ns())
            try:
                before = log.room()
                journal.write_intent(LOGGING, stream.slot, before, sum(map(len, record)), half, len(rest))
                log.append(record, before)
            except OSError as error:
                _count(stream, segments, error)
                # length 0: a successor finds the log complete, and does not try these lines again
                journal.write_intent(LOGGING, stream.slot, 0, 0, half, len(rest))
        else:
            journal.write_intent(LOGGING, stream.slot, 0, 0, half, len(rest))
        if half != stream.half:
            journal.write_header(stream.slot, half, len(rest))
            stream.half, stream.carry = half, rest
        self._drop(len(data))

    def _drop(self, count: int) -> None:
        while count > 0:
            count -= os.splice(self._stage_out, self._null, count, flags=_FLAGS)

    def _end(self, stream: Stream) -> None:
        self.flush(stream)
        stream.ended = True


def _count(stream: Stream, segments: list[bytes], error: OSError) -> None:
    stream.dropped += sum(s.count(b"\n") + (not s.endswith(b"\n")) for s in segments)
    stream.error = error.errno or 0
