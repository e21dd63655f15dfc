"""The event bus, who waits for a container, and reading logs that are written meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nagaya.engine import events, logs
from nagaya.engine.model import Container, ContainerConfig, Event, LogLine
from nagaya.engine.roster import Roster
from nagaya.engine.world import World
from nagaya.errors import AlreadyExists, InvalidArgument, NotFound

A, B = "ab" + "0" * 62, "ac" + "0" * 62


def container(container_id: str = A, name: str = "one") -> Container:
    return Container(container_id, name, ContainerConfig("img"), labels={"l": "v"})


def test_events_carry_what_dockers_do() -> None:
    async def main() -> Event:
        bus = events.Bus()
        reader = bus.subscribe()
        first = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0)
        bus.container(container(), "die", exitCode="3")
        return await first

    found = asyncio.run(main())
    assert (found.type, found.action, found.id) == ("container", "die", A)
    assert found.attributes == {"l": "v", "image": "img", "name": "one", "exitCode": "3"}


def test_since_and_until() -> None:
    async def main() -> tuple[list[str], list[str]]:
        bus = events.Bus()
        bus.publish("image", "old", "i", {})
        await asyncio.sleep(0.002)
        middle = time.time_ns()
        bus.publish("image", "new", "i", {})
        past = [e.action async for e in bus.subscribe(1, time.time_ns())]
        recent = [e.action async for e in bus.subscribe(middle, time.time_ns() + 20_000_000)]
        return past, recent

    assert asyncio.run(main()) == (["old", "new"], ["new"])


def test_a_reader_that_does_not_keep_up_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_BACKLOG", 4)

    async def main() -> list[str]:
        bus = events.Bus()
        reader = bus.subscribe()
        first = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0)
        for number in range(20):
            bus.publish("image", str(number), "i", {})
        return [(await first).action, *[e.action async for e in reader]]

    assert asyncio.run(main()) == ["0", "1", "2", "3"]


def test_waiters_are_told_what_they_asked_for() -> None:
    async def main() -> list[bool]:
        slot = Roster().add(container())
        assert slot.wait("not-running").done()  # created: it does not run
        slot.container.state = "running"
        waits = [slot.wait("not-running"), slot.wait("next-exit"), slot.wait("removed")]
        gone = slot.wait("next-exit")
        gone.cancel()
        await asyncio.sleep(0)
        assert len(slot.waiters) == 3
        slot.container.exit_code = 7
        slot.notify("not-running", "next-exit")
        await asyncio.sleep(0)
        assert len(slot.waiters) == 1
        assert waits[0].result().exit_code == 7
        return [w.done() for w in waits]

    assert asyncio.run(main()) == [True, True, False]


def test_names_and_prefixes_find_containers() -> None:
    async def main() -> None:
        roster = Roster()
        assert roster.reserve("one", A) == "one"
        with pytest.raises(AlreadyExists, match='"/one" is already in use by container "ab0'):
            roster.reserve("/one", B)
        roster.add(container(A, "one"))
        roster.add(container(B, "ab"))
        for ref in ("one", "/one", A, "ab0", A[:12]):
            assert roster.find(ref).container.id == A
        assert roster.find("ab").container.id == B  # a name beats a prefix
        with pytest.raises(InvalidArgument, match="multiple IDs"):
            roster.find("a")
        for ref in ("", "two", "zz", "AB0"):
            with pytest.raises(NotFound, match=f"No such container: {ref}"):
                roster.find(ref)
        roster.discard(A)
        roster.discard(A)
        assert roster.reserve("one", B) == "one"
        assert len(roster) == 1

    asyncio.run(main())


# logs


def record(text: str, stream: str = "stdout", second: int = 0) -> str:
    stamp = f"2026-01-02T03:04:{second:02d}.000000001Z"
    return json.dumps({"log": text, "stream": stream, "time": stamp}) + "\n"


START = 1_767_323_040_000_000_000  # 2026-01-02T03:04:00Z


def read(path: Path, state: str = "exited", **wanted: Any) -> list[LogLine]:
    shown = Container(A, "one", ContainerConfig("i"), log_path=str(path), state=cast(Any, state))
    options = {"stdout": True, "stderr": True, "since": 0, "until": 0, "tail": None, "follow": False}

    async def job(work: Any, *args: Any) -> Any:
        return work(*args)

    async def main() -> list[LogLine]:
        world = cast(World, SimpleNamespace(job=job))
        batches = logs.read(world, lambda: shown, **{**options, **wanted})
        return [line async for lines in batches for line in lines]

    return asyncio.run(main())


def texts(path: Path, **wanted: Any) -> list[str]:
    return [line.data.decode() for line in read(path, **wanted)]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Three files, as rotation leaves them."""
    path = tmp_path / "x.log"
    path.with_name("x.log.2").write_text(record("0\n", second=0) + record("1\n", "stderr", 1))
    path.with_name("x.log.1").write_text(record("2\n", second=2))
    path.write_text(record("3\n", second=3) + record("4", second=4))
    return path


def test_rotated_files_are_one_log(log: Path) -> None:
    assert texts(log) == ["0\n", "1\n", "2\n", "3\n", "4"]
    assert texts(log, stdout=False) == ["1\n"]
    assert [line.time_ns - START for line in read(log)] == [n * 10**9 + 1 for n in range(5)]
    assert texts(log, since=START + 3 * 10**9) == ["3\n", "4"]
    assert texts(log, until=START + 1 * 10**9) == ["0\n"]


@pytest.mark.parametrize("wanted", range(7))
def test_tail(log: Path, wanted: int) -> None:
    every = ["0\n", "1\n", "2\n", "3\n", "4"]
    assert texts(log, tail=wanted) == (every[-wanted:] if wanted else [])


def test_tail_over_many_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_BATCH", 97)
    path = tmp_path / "x.log"
    path.write_text("".join(record(f"{n}\n") for n in range(200)))
    for wanted in (1, 3, 50, 199, 200, 201):
        assert texts(path, tail=wanted) == [f"{n}\n" for n in range(200)][-wanted:]
    assert len(texts(path)) == 200


def test_a_tail_over_files_and_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any length, whichever part of a file a block begins and ends with."""
    every = [f"{n}\n" for n in range(30)]
    for index, name in enumerate(("y.log.2", "y.log.1", "y.log")):
        (tmp_path / name).write_text("".join(map(record, every[index * 10 : index * 10 + 10])))
    size = len(record("0\n"))
    for block in (size - 1, size, size + 1, 3 * size, 1 << 18):
        monkeypatch.setattr(logs, "_BATCH", block)
        for wanted in range(33):
            assert texts(tmp_path / "y.log", tail=wanted) == (every[-wanted:] if wanted else [])
    open_files = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if fd.isdigit()
                  and os.path.lexists(f"/proc/self/fd/{fd}")]  # fmt: skip
    assert not [name for name in open_files if "y.log" in name]


def test_a_broken_line_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_text(record("a\n") + '{"log":"cut sh\n' + "\n[]\n" + record("b\n") + record("unfinished")[:-5])
    assert texts(path) == ["a\n", "b\n"]


def test_no_log_is_no_error(tmp_path: Path) -> None:
    assert texts(tmp_path / "none.log") == []


def test_following_crosses_a_rotation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_POLL", 0.001)
    path = tmp_path / "x.log"
    path.write_text(record("a\n"))
    shown = Container(A, "one", ContainerConfig("i"), log_path=str(path), state="running")
    older = [tmp_path / "x.log.1", tmp_path / "x.log.2"]

    def append(text: str) -> None:
        with path.open("a") as file:
            file.write(record(text))

    def rotate() -> None:
        if older[0].exists():
            older[0].rename(older[1])
        path.rename(older[0])

    def between() -> None:
        append("c\n")
        rotate()

    def twice() -> None:
        rotate()
        append("e\n")

    def end() -> None:
        shown.state = "exited"

    def nothing() -> None:
        pass

    steps: list[Callable[[], None]] = [partial(append, "b\n"), between, partial(append, "d\n"), twice, end]
    left = iter([*steps, nothing])

    async def job(work: Any, *args: Any) -> Any:
        found = work(*args)
        if found == b"":
            next(left)()
        return found

    async def main() -> list[str]:
        world = cast(World, SimpleNamespace(job=job))
        batches = logs.read(
            world,
            lambda: shown,
            stdout=True,
            stderr=True,
            since=0,
            until=0,
            tail=None,
            follow=True,
        )
        return [line.data.decode() async for lines in batches for line in lines]

    assert asyncio.run(asyncio.wait_for(main(), 20)) == ["a\n", "b\n", "c\n", "d\n", "e\n"]


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01T00:00:00Z", "2026-01-02T03:04:05.xZ"])
def test_bad_times(text: str) -> None:
    assert logs.parse_time(text) == 0


def test_a_reader_that_goes_while_a_file_is_opened_leaves_it_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    path.write_text("")
    shown = Container(A, "one", ContainerConfig("i"), log_path=str(path), state="running")
    opening, go_on = threading.Event(), threading.Event()
    real = logs._Files._newer

    def slow(self: Any, than: Any) -> list[int]:
        opening.set()
        go_on.wait(10)
        return real(self, than)

    monkeypatch.setattr(logs._Files, "_newer", slow)

    async def main() -> None:
        async def job(work: Any, *args: Any) -> Any:
            return await asyncio.get_running_loop().run_in_executor(None, work, *args)

        world = cast(World, SimpleNamespace(job=job))
        lines = logs.read(
            world, lambda: shown, stdout=True, stderr=True, since=0, until=0, tail=None, follow=True
        )
        reader = asyncio.ensure_future(anext(lines))
        await asyncio.to_thread(opening.wait, 10)
        reader.cancel()
        await asyncio.sleep(0.05)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await reader

    asyncio.run(main())
    held = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if fd.isdigit() and os.path.lexists(f"/proc/self/fd/{fd}")
    ]
    assert str(path) not in held
