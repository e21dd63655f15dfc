"""kill -9 of nagayad at random moments while clients work: they try again, and all they asked for is true."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from agreement import disagreements, listed, rows
from house import House, wait_for
from rawhttp import Reply, call

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"
CLIENTS = 4
SECONDS = 15.0
LINES = 100


class Client:
    """One that never gives up, and knows what a request it saw no answer to may have done."""

    def __init__(self, house: House, number: int) -> None:
        self.house = house
        self.number = number
        self.chance = random.Random(number)
        self.lives = 0
        self.wrong: list[str] = []

    def ask(
        self, method: str, path: str, body: Any = None, *, again: Callable[[], bool] = lambda: True
    ) -> Reply:
        """The answer; asked again after a death of the daemon when `again` says so."""
        deadline = time.monotonic() + 60
        dead = False
        while True:
            try:
                if dead and not again():
                    return Reply(0, {}, b"")
                return call(self.house.socket, method, path, body)
            except (OSError, ValueError, AssertionError):
                dead = True
                assert time.monotonic() < deadline, f"{method} {path} has no answer"
                time.sleep(0.05)

    def state(self, name: str) -> dict[str, Any]:
        found = self.ask("GET", f"/containers/{name}/json").json["State"]
        assert isinstance(found, dict)
        return found

    def live(self) -> None:
        """A container's whole life; what is not as it must be goes to `wrong`."""
        self.lives += 1
        name, code = f"c{self.number}-{self.lives}", self.chance.randrange(100)
        script = f"i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); done; sleep 0.1; exit {code}"
        body = {
            "Image": IMAGE,
            "Cmd": ["sh", "-c", script],
            "Volumes": {"/v": {}},
            "HostConfig": {"NetworkMode": self.chance.choice(("none", "none", "bridge"))},
        }
        made = self.ask("POST", f"/containers/create?name={name}", body)
        self.check(made.status in (201, 409), name, made)
        started = self.ask(
            "POST", f"/containers/{name}/start", again=lambda: self.state(name)["Status"] == "created"
        )
        self.check(started.status in (0, 204, 304), name, started)
        if self.chance.random() < 0.5:
            session = self.ask("POST", f"/containers/{name}/exec", {"Cmd": ["true"]})
            if session.status == 201:
                path = f"/exec/{session.json['Id']}/start"
                self.ask("POST", path, {"Detach": True}, again=lambda: False)
        waited = self.ask("POST", f"/containers/{name}/wait")
        self.check(waited.json == {"StatusCode": code}, name, waited)
        self.check(self.state(name)["ExitCode"] == code, name, self.state(name))
        logs = self.ask("GET", f"/containers/{name}/logs?stdout=1").body
        lines = [line[8:].decode() for line in logs.splitlines()]  # behind docker's frame
        self.check(lines == [f"line {i}" for i in range(LINES)], name, lines)
        removed = self.ask("DELETE", f"/containers/{name}?v=1&force={self.chance.randrange(2)}")
        self.check(removed.status in (204, 404), name, removed)

    def check(self, true: bool, name: str, what: object) -> None:
        if not true:
            self.wrong.append(f"{name}: {what}")


@pytest.mark.parametrize("seed", [1])
def test_clients_never_notice(seed: int) -> None:
    with House() as house:
        house.ok("run", "--rm", IMAGE, "true")
        chance, over = random.Random(seed), Event()
        clients = [Client(house, number) for number in range(CLIENTS)]

        def work(client: Client) -> None:
            while not over.is_set():
                try:
                    client.live()
                except Exception as error:
                    client.wrong.append(repr(error))
                    return

        threads = [Thread(target=work, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        deaths, end = 0, time.monotonic() + SECONDS
        while time.monotonic() < end:
            time.sleep(chance.uniform(0.0, 0.8))
            house.kill_daemon()
            deaths += 1
            house.start()
        over.set()
        for thread in threads:
            thread.join(90)
            assert not thread.is_alive()
        assert [w for client in clients for w in client.wrong] == [], house.tail()
        assert deaths > 3 and sum(client.lives for client in clients) > deaths
        assert listed(house) == {}
        assert house.leaks() == []
        assert disagreements(house) == []
        assert rows(house, "SELECT name FROM volumes") == []
        assert "Traceback" not in house.log.read_text(), house.tail()


@pytest.mark.skipif(shutil.which("runc") is None, reason="needs runc")
@pytest.mark.parametrize("late", ["before", "after"])
def test_a_start_that_outlives_its_daemon(tmp_path: Path, late: str) -> None:
    """The next daemon calls it undone; what comes of it later, a process or an error, is cleared away."""
    slow, begun, gate = (tmp_path / name for name in ("slow", "begun", "gate"))
    wait = f"touch {begun}; until [ -e {gate} ]; do sleep 0.05; done"
    create = {"before": f'{wait}; exec runc "$@"', "after": f'runc "$@"; {wait}'}[late]
    slow.write_text(f'#!/bin/sh\ncase "$*" in *" create "*) {create};; *) exec runc "$@";; esac\n')
    slow.chmod(0o755)
    with House(config=f'[runtimes]\nslow = "{slow}"\n') as house:
        house.ok("create", "--name", "late", "--runtime", "slow", IMAGE, "sleep", "1000")
        starting = Thread(target=house.docker, args=("start", "late"))
        starting.start()
        wait_for(begun.exists, 20, "the slow start")
        house.kill_daemon()
        starting.join()
        house.start()
        assert {state for _, state in listed(house).values()} == {"created"}
        gate.touch()
        wait_for(lambda: "unasked" in house.log.read_text(), 10, "the late end")
        wait_for(lambda: all(x.startswith("container ") for x in house.leaks(0)), 5, "the end of all it had")
        house.ok("start", "late")
        assert house.ok("exec", "late", "cat", "/proc/1/comm") == "sleep"
        pid = house.ok("inspect", "-f", "{{.State.Pid}}", "late")
        processes = list(Path("/sys/fs/cgroup/pids").glob(f"{house.cgroup_parent}/*/cgroup.procs"))
        assert [p.read_text().split() for p in processes] == [[pid]]
        house.ok("rm", "-f", "late")
        assert house.leaks() == []
