"""Many clients at once on the same containers: whatever they did, all books agree in the end."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from agreement import disagreements, listed
from house import House, wait_for
from rawhttp import Connection, Reply, call

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"
THREADS = 6
OPERATIONS = 120  # of each thread
NAMES = ("one", "two", "three", "four")


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        yield started


def settle(house: House) -> None:
    """All books agree soon, and after the removal of all containers nothing is left."""
    try:
        wait_for(lambda: not disagreements(house), 10, "agreement")
    except AssertionError:
        raise AssertionError("\n".join(disagreements(house)) + "\n" + house.tail()) from None
    for container_id in listed(house):
        reply = call(house.socket, "DELETE", f"/containers/{container_id}?force=1&v=1")
        assert reply.status in (204, 404), reply  # 404: `--rm` was faster
    assert house.leaks(10) == []
    assert disagreements(house) == []
    assert "Traceback" not in house.log.read_text(), house.tail()


def together(*actions: Callable[[], Any]) -> list[Any]:
    """Run them at the same moment; what each returned."""
    barrier = threading.Barrier(len(actions))
    results: list[Any] = [None] * len(actions)

    def work(index: int) -> None:
        barrier.wait()
        try:
            results[index] = actions[index]()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(actions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def create(house: House, name: str, *command: str, **host: Any) -> Reply:
    body = {"Image": IMAGE, "Cmd": list(command), "HostConfig": host}
    return call(house.socket, "POST", f"/containers/create?name={name}", body)


def started(house: House, name: str, *command: str, **host: Any) -> str:
    """The id of a new running container."""
    made = create(house, name, *command, **host)
    assert made.status == 201, made
    reply = call(house.socket, "POST", f"/containers/{name}/start")
    assert reply.status == 204, reply
    container_id = made.json["Id"]
    assert isinstance(container_id, str)
    return container_id


def post(house: House, path: str, body: Any = None) -> Callable[[], Reply]:
    return lambda: call(house.socket, "POST", path, body)


def delete(house: House, path: str) -> Callable[[], Reply]:
    return lambda: call(house.socket, "DELETE", path)


def states(house: House) -> dict[str, str]:
    return dict(listed(house).values())


def one_operation(house: House, chance: random.Random) -> str:
    """Something random; what was unexpected about its answer, "" for nothing."""
    name = chance.choice(NAMES)
    match chance.choices(
        ("create", "start", "stop", "restart", "kill", "rm", "rename", "wait", "pause", "exec", "update"),
        (5, 6, 3, 3, 3, 4, 2, 2, 2, 2, 1),
    )[0]:
        case "create":
            extra = chance.choice(({}, {}, {"AutoRemove": True}, {"RestartPolicy": {"Name": "always"}}))
            seconds = chance.choice(("0", "0.05", "1000", "1000"))
            network = chance.choice(("none", "none", "default"))
            reply = create(house, name, "sleep", seconds, NetworkMode=network, **extra)
        case "start":
            reply = call(house.socket, "POST", f"/containers/{name}/start")
        case "stop" | "restart" as verb:
            reply = call(house.socket, "POST", f"/containers/{name}/{verb}?t=0")
        case "kill":
            reply = call(
                house.socket,
                "POST",
                f"/containers/{name}/kill?signal={chance.choice(('KILL', 'TERM', 'CONT'))}",
            )
        case "rm":
            reply = call(house.socket, "DELETE", f"/containers/{name}?v=1&force={chance.randrange(2)}")
        case "rename":
            reply = call(house.socket, "POST", f"/containers/{name}/rename?name={chance.choice(NAMES)}")
        case "wait":  # and hang up
            condition = chance.choice(("not-running", "next-exit", "removed"))
            with suppress(TimeoutError), Connection(house.socket, 0.05) as connection:
                connection.send("POST", f"/containers/{name}/wait?condition={condition}")
                connection.reply()
            return ""
        case "pause":
            reply = call(house.socket, "POST", f"/containers/{name}/pause")
            if reply.status == 204:
                reply = call(house.socket, "POST", f"/containers/{name}/unpause")
        case "exec":
            reply = call(house.socket, "POST", f"/containers/{name}/exec", {"Cmd": ["true"]})
            if reply.status == 201:
                path = f"/exec/{reply.json['Id']}/start"
                reply = call(house.socket, "POST", path, {"Detach": True})
        case _:
            limit = chance.choice((32, 64)) << 20
            body = {"Memory": limit, "MemorySwap": limit}
            reply = call(house.socket, "POST", f"/containers/{name}/update", body)
    if reply.status in (200, 201, 204, 304, 404, 409):
        return ""
    if reply.status == 400 and "same name as its current name" in reply.message:
        return ""
    return f"{reply.status} {reply.body!r}"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_operations(house: House, seed: int) -> None:
    strange: list[str] = []
    slow: list[float] = []

    def work(number: int) -> None:
        chance = random.Random(seed * 1000 + number)
        for _ in range(OPERATIONS):
            begun = time.monotonic()
            said = one_operation(house, chance)
            slow.append(time.monotonic() - begun)
            if said:
                strange.append(said)

    together(*(lambda number=number: work(number) for number in range(THREADS)))
    assert strange == []
    assert max(slow) < 9, max(slow)  # less than any patience that gives up
    settle(house)


@pytest.mark.parametrize("attempt", range(4))
def test_exit_against_rename(house: House, attempt: int) -> None:
    container_id = started(house, "before", "sh", "-c", "sleep 0.1; exit 7", NetworkMode="none")
    time.sleep(0.07 + 0.01 * attempt)
    (reply,) = together(post(house, "/containers/before/rename?name=after"))
    assert reply.status == 204
    assert call(house.socket, "POST", "/containers/after/wait").json["StatusCode"] == 7
    assert listed(house) == {container_id: ("after", "exited")}
    assert create(house, "before", "true").status == 201  # the old name is free
    settle(house)


@pytest.mark.parametrize("attempt", range(4))
def test_exit_against_remove(house: House, attempt: int) -> None:
    """Removed, or refused because it ran: nothing between. With `--rm`, gone in any case."""
    for name, extra in (("plain", {}), ("brief", {"AutoRemove": True})):
        started(house, name, "sleep", "0.1", **extra)
    time.sleep(0.05 + 0.02 * attempt)
    replies = together(*(delete(house, f"/containers/{name}") for name in ("plain", "brief", "plain")))
    assert {r.status for r in replies} <= {204, 404, 409}, replies
    removed = 204 in (replies[0].status, replies[2].status)
    wait_for(lambda: states(house) == ({} if removed else {"plain": "exited"}), 10, "the ends")
    settle(house)


@pytest.mark.parametrize("network", ["none", "default"])
def test_forced_removal_against_start(house: House, network: str) -> None:
    for _ in range(5):
        assert create(house, "torn", "sleep", "1000", NetworkMode=network).status == 201
        start, removal = together(
            post(house, "/containers/torn/start"), delete(house, "/containers/torn?force=1")
        )
        assert removal.status == 204
        assert start.status in (204, 404, 409), start
        assert states(house) == {}
    settle(house)


def test_restart_against_stop(house: House) -> None:
    started(house, "torn", "sleep", "1000", NetworkMode="none")
    for _ in range(5):
        restart, stop = together(
            post(house, "/containers/torn/restart?t=0"), post(house, "/containers/torn/stop?t=0")
        )
        assert restart.status == 204, restart
        assert stop.status in (204, 304), stop
        assert states(house)["torn"] in ("running", "exited")
    settle(house)


def test_forced_removal_by_several(house: House) -> None:
    for network in ("none", "default"):
        started(house, "torn", "sleep", "1000", NetworkMode=network)
        replies = together(*[delete(house, "/containers/torn?force=1")] * 3)
        assert {r.status for r in replies} <= {204, 404}, replies
        assert 204 in {r.status for r in replies}
        assert states(house) == {}
    settle(house)


def test_restarts_at_once_keep_the_automatic_removal(house: House) -> None:
    container_id = started(house, "brief", "sleep", "1000", NetworkMode="none", AutoRemove=True)
    for _ in range(3):
        replies = together(*[post(house, "/containers/brief/restart?t=0")] * 3)
        assert {r.status for r in replies} == {204}, replies
        assert listed(house) == {container_id: ("brief", "running")}
        found = call(house.socket, "GET", "/containers/brief/json").json
        assert found["HostConfig"]["AutoRemove"] is True
    assert call(house.socket, "POST", "/containers/brief/stop?t=0").status == 204
    wait_for(lambda: not listed(house), 5, "its removal")
    settle(house)


def test_a_restart_forgets_no_update(house: House) -> None:
    """What changes while a container that ignores SIGTERM is being restarted, stays changed."""
    started(house, "stubborn", "sh", "-c", "trap '' TERM; sleep 1000", NetworkMode="none", AutoRemove=True)
    memory = {"Memory": 64 << 20, "MemorySwap": 64 << 20}
    time.sleep(0.2)  # the trap is set

    def update() -> Reply:
        time.sleep(0.4)
        return call(house.socket, "POST", "/containers/stubborn/update", memory)

    replies = together(post(house, "/containers/stubborn/restart?t=1"), update)
    assert [r.status for r in replies] == [204, 200], replies
    found = call(house.socket, "GET", "/containers/stubborn/json").json["HostConfig"]
    assert (found["Memory"], found["AutoRemove"]) == (64 << 20, True)
    settle(house)


def test_a_restart_that_fails_removes_what_was_to_be_removed(house: House, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)
    started(house, "brief", "/p/program", NetworkMode="none", AutoRemove=True, Binds=[f"{tmp_path}:/p"])
    program.unlink()
    reply = call(house.socket, "POST", "/containers/brief/restart?t=0")
    assert reply.status == 400, reply
    wait_for(lambda: not listed(house), 5, "its removal")
    settle(house)
