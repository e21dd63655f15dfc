"""Events are there after the daemon's end, also a sudden one; and what a damaged file does."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from house import House, wait_for
from rawhttp import call

from nagaya.engine import history
from nagaya.engine.events import Bus
from nagaya.engine.history import History

IMAGE = "nagaya/busybox"


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        yield started


def told(house: House, since: float, name: str) -> list[str]:
    found = call(house.socket, "GET", f"/events?since={since:.6f}&until={time.time():.6f}").body
    events = [json.loads(line) for line in found.splitlines()]
    return [e["Action"] for e in events if e["Actor"]["Attributes"].get("name") == name]


@pytest.mark.root
def test_after_an_orderly_end_and_a_sudden_one(house: House) -> None:
    begun = time.time()
    house.ok("run", "--name", "one", "--network", "none", IMAGE, "true")
    whole = ["create", "attach", "start", "die"]
    assert [a for a in told(house, begun, "one") if a in whole] == whole
    before = told(house, begun, "one")
    house.stop_daemon()
    house.start()
    assert told(house, begun, "one") == before
    house.ok("rm", "one")
    kept = house.root / "events.jsonl"
    wait_for(lambda: b'"destroy"' in kept.read_bytes(), 30, "the last event")
    house.kill_daemon()
    house.start()
    assert told(house, begun, "one") == [*before, "destroy"]


def publish(path: Path, *names: str) -> None:
    async def main() -> None:
        bus = Bus(History(str(path)))
        for name in names:
            bus.publish("volume", "create", name, {})
        bus.close()

    asyncio.run(main())


def names(path: Path, count: int = 100) -> list[str]:
    return [event.id for event in History(str(path)).load(count)]


def test_torn_and_foreign_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    publish(path, "one")
    with path.open("ab") as file:
        file.write(b"\xff\xfe\n{}\n[]\n" + b"[" * 100_000 + b"\n" + path.read_bytes()[:20] + b"\n")
    publish(path, "two")
    assert names(path) == ["one", "two"]


def test_it_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_MOST", 2000)
    path = tmp_path / "events.jsonl"
    for number in range(100):
        publish(path, str(number))
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) < 6000
    assert names(path, 5) == ["95", "96", "97", "98", "99"]


def test_where_it_cannot_be_written_all_else_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.symlink_to(tmp_path / "elsewhere")
    publish(path, "one")
    assert names(path) == [] and not (tmp_path / "elsewhere").exists()
