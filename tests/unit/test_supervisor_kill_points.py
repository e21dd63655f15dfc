"""io killed at every single system call it makes while logging: what its successor makes of it.

The calls by which `Pump`, `Journal` and `LogFile` change the world are counted, and the n-th one
raises instead of (or after, or half-way through) its work, as SIGKILL would leave it. A new Pump then
recovers and goes on. For every n the log must hold what was written, once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from nagaya.linux import splice as kernel_splice
from nagaya.supervisor import journal as journal_module
from nagaya.supervisor import logfile as logfile_module
from nagaya.supervisor import streams as streams_module
from nagaya.supervisor.journal import Journal
from nagaya.supervisor.logfile import LogFile
from nagaya.supervisor.streams import STDERR, STDOUT, Pump, Stream


class Killed(BaseException):
    """SIGKILL."""


class Os:
    """The os module, with a kill at the n-th call that changes something. how: "before" the call,
    "after" it, or "half": a write that got through in part."""

    CHANGES = ("pwrite", "write", "splice", "rename", "ftruncate", "open")

    def __init__(self, at: int, how: str) -> None:
        self.left = at
        self.how = how

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in self.CHANGES:
            return real

        def call(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left:
                return real(*arguments, **options)
            if self.how == "before":
                raise Killed
            if self.how == "half" and name == "write":
                data = bytes(arguments[1])
                real(arguments[0], data[: len(data) // 2])
                raise Killed
            with suppress(OSError):
                real(*arguments, **options)
            raise Killed

        return call


class World:
    """Two logged streams of one container, and what of io outlives io."""

    def __init__(self, directory: Path, max_size: int) -> None:
        self.path = directory / "c.log"
        self.journal = os.memfd_create("journal")
        self.stage_out, self.stage_in = os.pipe2(os.O_NONBLOCK)
        self.pipes = [os.pipe2(os.O_NONBLOCK) for _ in range(2)]
        self.settings = {"path": str(self.path), "max_size": max_size, "max_file": 1000}
        self.ended = False
        self.pumps: list[Pump] = []
        self.files: list[LogFile] = []

    def io(self) -> tuple[Pump, list[Stream]]:
        """A new io that took over."""
        log = LogFile(self.settings)
        self.files.append(log)
        pump = Pump(Journal(self.journal), self.stage_out, self.stage_in)
        self.pumps.append(pump)
        streams = [
            Stream(self.pipes[i][0], number, i, log, False) for i, number in enumerate((STDOUT, STDERR))
        ]
        for stream in streams:
            pump.adopt(stream)
        pump.recover({s.slot: s for s in streams}.get)
        return pump, streams

    def text(self, stream: str) -> str:
        olds = sorted(self.path.parent.glob("c.log.*"), key=lambda p: -int(p.suffix[1:]))
        found = ""
        for path in [*olds, self.path]:
            for line in path.read_bytes().splitlines() if path.exists() else ():
                record = json.loads(line)
                found += record["log"] if record["stream"] == stream else ""
        return found

    def end(self) -> None:
        """The container has closed its ends."""
        if not self.ended:
            self.ended = True
            for pipe in self.pipes:
                os.close(pipe[1])

    def close(self) -> None:
        self.end()
        for fd in (self.journal, self.stage_out, self.stage_in, *(pipe[0] for pipe in self.pipes)):
            os.close(fd)
        for pump in self.pumps:
            for fd in (pump._scratch_in, pump._scratch_out, pump._null):
                os.close(fd)
        for log in self.files:
            log.close()


# What is written to the two streams, piece by piece: whole lines, halves of lines, ends of lines,
# a line longer than a record may be, and an end without a newline.
PIECES = [
    (0, b"one\ntwo\n"),
    (0, b"begin "),
    (1, b"error begins "),
    (0, b"middle "),
    (0, b"end\nnext begin "),
    (1, b"error ends\n"),
    (0, b"x" * 20000),
    (1, b"a\n" * 300),
    (0, b"y\n"),
    (0, b"no newline at the end"),
]
WRITTEN = ["".join(p.decode() for i, p in PIECES if i == index) for index in (0, 1)]


def work(world: World, todo: list[tuple[int, bytes]]) -> None:
    """Be io: write the pieces that are left as the container would, and move them; then the end."""
    pump, streams = world.io()
    for stream in streams:  # what a predecessor left in the pipes
        while pump.move(stream, False):
            pass
    while todo:
        index, piece = todo[0]
        os.write(world.pipes[index][1], piece)
        del todo[0]
        while pump.move(streams[index], False):
            pass
    world.end()
    for stream in streams:
        while pump.move(stream, False) is not None:
            pass


def use(monkeypatch: pytest.MonkeyPatch, fake: Any) -> None:
    for module in (streams_module, journal_module, logfile_module):
        monkeypatch.setattr(module, "os", fake)


def points(
    monkeypatch: pytest.MonkeyPatch, directory: Path, max_size: int, how: str
) -> Iterator[tuple[int, Callable[[], World]]]:
    """(n, what the world is after a kill at the n-th call, and a successor) until there is no n-th."""
    number = 0
    done = False

    def one() -> World:
        nonlocal done
        place = directory / f"{how}-{number}"
        place.mkdir()
        world, todo = World(place, max_size), list(PIECES)
        use(monkeypatch, Os(number, how))
        try:
            work(world, todo)
            done = True
        except Killed:
            use(monkeypatch, os)
            work(world, todo)
        finally:
            use(monkeypatch, os)
        return world

    while not done:
        number += 1
        yield number, one


@pytest.mark.parametrize("max_size", [-1, 1024], ids=["no rotation", "rotation"])
@pytest.mark.parametrize("how", ["before", "after", "half"])
def test_a_kill_at_any_call_loses_and_doubles_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, max_size: int, how: str
) -> None:
    count = 0
    for number, one in points(monkeypatch, tmp_path, max_size, how):
        world = one()
        try:
            assert [world.text("stdout"), world.text("stderr")] == WRITTEN, (how, number)
            assert kernel_splice.pending(world.stage_out) == 0
        finally:
            world.close()
        count = number
    assert count > 60, "the kills did not reach into the work"


@pytest.mark.parametrize("first", range(1, 60, 7))
def test_a_successor_that_is_killed_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, first: int) -> None:
    """Kills while recovering from kills."""
    for second in range(1, 12):
        place = tmp_path / str(second)
        place.mkdir()
        world, todo = World(place, 1024), list(PIECES)
        for number in (first, second, second + 2):
            use(monkeypatch, Os(number, "half"))
            try:
                work(world, todo)
            except Killed:
                pass
            finally:
                use(monkeypatch, os)
        work(world, todo)
        assert [world.text("stdout"), world.text("stderr")] == WRITTEN, (first, second)
        world.close()
