"""Health checks, on dockerd and on nagayad."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from dockerd import Dockerd
from house import House, wait_for
from rawhttp import call

pytestmark = pytest.mark.root

API = "/v1.41"
MS = 1_000_000
Server = Dockerd | House


@pytest.fixture(autouse=True)
def tidy(server: Server) -> Iterator[None]:
    yield
    for item in call(server.socket, "GET", f"{API}/containers/json?all=1").json:
        assert call(server.socket, "DELETE", f"{API}/containers/{item['Id']}?force=1&v=1").status == 204


def start(server: Server, test: list[str], **more: Any) -> str:
    check = {"Test": test, "Interval": 200 * MS, "Retries": 2, **more}
    body = {"Image": "nagaya/busybox", "Cmd": ["sleep", "600"], "Healthcheck": check}
    made = call(server.socket, "POST", f"{API}/containers/create", body)
    assert made.status == 201, made
    identity = str(made.json["Id"])
    assert call(server.socket, "POST", f"{API}/containers/{identity}/start").status == 204
    return identity


def health(server: Server, identity: str) -> dict[str, Any]:
    found = call(server.socket, "GET", f"{API}/containers/{identity}/json").json["State"]["Health"]
    assert isinstance(found, dict)
    return found


def until(server: Server, identity: str, status: str) -> dict[str, Any]:
    wait_for(lambda: health(server, identity)["Status"] == status, 60, f"to be {status}")
    return health(server, identity)


def run(server: Server, identity: str, *words: str) -> None:
    made = call(server.socket, "POST", f"{API}/containers/{identity}/exec", {"Cmd": list(words)})
    path = f"{API}/exec/{made.json['Id']}"
    assert call(server.socket, "POST", f"{path}/start", {"Detach": True}).status == 200
    wait_for(lambda: call(server.socket, "GET", f"{path}/json").json["ExitCode"] is not None, 60, "the exec")


def listed(server: Server, status: str) -> list[str]:
    filters = quote(json.dumps({"health": [status]}))
    return [c["Id"] for c in call(server.socket, "GET", f"{API}/containers/json?filters={filters}").json]


def line(server: Server, identity: str) -> str:
    (found,) = [c for c in call(server.socket, "GET", f"{API}/containers/json").json if c["Id"] == identity]
    return str(found["Status"])


def events(server: Server, identity: str, since: float) -> list[str]:
    filters = quote(json.dumps({"container": [identity]}))
    span = f"since={since:.9f}&until={time.time():.9f}"
    data = call(server.socket, "GET", f"{API}/events?{span}&filters={filters}").body
    return [json.loads(line)["Action"] for line in data.splitlines()]


def test_before_the_first_check(server: Server) -> None:
    identity = start(server, ["CMD", "false"], Interval=600_000 * MS)
    first = health(server, identity)
    assert (first["Status"], first["FailingStreak"], first["Log"] or []) == ("starting", 0, [])
    assert line(server, identity).endswith(" (health: starting)")
    assert listed(server, "starting") == [identity]


def test_a_life_of_checks(server: Server) -> None:
    begun = time.time() - 1
    command = 'test -e /well && head -c ${SIZE:-5} /dev/zero | tr "\\0" x'
    identity = start(server, ["CMD-SHELL", command])
    ill = until(server, identity, "unhealthy")
    assert ill["FailingStreak"] >= 2
    assert [(p["ExitCode"], p["Output"]) for p in ill["Log"][:2]] == [(1, ""), (1, "")]
    assert ill["Log"][0]["Start"] < ill["Log"][0]["End"] < ill["Log"][1]["Start"]
    assert line(server, identity).endswith(" (unhealthy)")
    run(server, identity, "touch", "/well")
    well = until(server, identity, "healthy")
    assert (well["FailingStreak"], well["Log"][-1]["Output"]) == (0, "xxxxx")
    assert line(server, identity).endswith(" (healthy)")
    assert (listed(server, "healthy"), listed(server, "none")) == ([identity], [])
    wait_for(lambda: len({p["Output"] for p in health(server, identity)["Log"]}) == 1, 60, "five good ones")
    assert len(health(server, identity)["Log"]) == 5
    told = events(server, identity, begun)
    assert [e for e in told if e.startswith("health")] == [
        "health_status: unhealthy",
        "health_status: healthy",
    ]
    assert f"exec_create: /bin/sh -c {command}" in told
    assert f"exec_start: /bin/sh -c {command}" in told
    assert "exec_die" in told
    assert call(server.socket, "POST", f"{API}/containers/{identity}/pause").status == 204
    paused = health(server, identity)
    assert paused["Status"] == "unhealthy"
    assert line(server, identity).endswith("(Paused)")
    assert call(server.socket, "POST", f"{API}/containers/{identity}/unpause").status == 204
    until(server, identity, "healthy")
    assert call(server.socket, "POST", f"{API}/containers/{identity}/stop?t=0").status == 204
    assert health(server, identity)["Status"] == "unhealthy"
    assert call(server.socket, "POST", f"{API}/containers/{identity}/start").status == 204
    assert len(health(server, identity)["Log"]) == 5


def test_what_a_check_says_is_bounded(server: Server) -> None:
    command = "[ -e /seen ] || { touch /seen; echo err >&2; exit; }; head -c 70000 /dev/zero | tr '\\0' x"
    identity = start(server, ["CMD", "sh", "-c", command])
    wait_for(lambda: len(health(server, identity)["Log"]) >= 2, 60, "two checks")
    assert [p["Output"] for p in health(server, identity)["Log"][:2]] == ["err\n", "x" * 4096 + "..."]


def test_a_check_that_hangs_is_killed_and_never_joined_by_another(server: Server) -> None:
    identity = start(server, ["CMD", "sleep", "500"], Timeout=300 * MS)
    ill = until(server, identity, "unhealthy")
    assert [p["ExitCode"] for p in ill["Log"][:2]] == [-1, -1]
    assert ill["Log"][0]["Output"] == "Health check exceeded timeout (300ms)"
    table = call(server.socket, "GET", f"{API}/containers/{identity}/top?ps_args=-o%20pid,args").json
    checks = [row for row in table["Processes"] if row[-1] == "sleep 500"]
    assert len(checks) <= 1 or isinstance(server, Dockerd)  # the old one lets them live


def test_a_check_that_cannot_be_run(server: Server) -> None:
    identity = start(server, ["CMD", "/no/such"])
    (first, *_) = until(server, identity, "unhealthy")["Log"]
    assert first["ExitCode"] in (-1, 127) and "/no/such" in first["Output"]


def test_failures_of_the_start_period_do_not_count(server: Server) -> None:
    identity = start(server, ["CMD", "false"], StartPeriod=3600_000 * MS, StartInterval=100 * MS)
    wait_for(lambda: len(health(server, identity)["Log"]) >= 4, 60, "checks")
    assert (health(server, identity)["Status"], health(server, identity)["FailingStreak"]) == ("starting", 0)


def test_no_check_no_health(server: Server) -> None:
    identity = start(server, ["NONE"])
    found = call(server.socket, "GET", f"{API}/containers/{identity}/json").json
    assert "Health" not in found["State"] and found["Config"]["Healthcheck"]["Test"] == ["NONE"]
    assert not line(server, identity).endswith(")")
    assert listed(server, "none") == [identity]


@pytest.mark.parametrize(
    ("check", "says"),
    (
        ({"Interval": 5}, "Interval in Healthcheck cannot be less than 1ms"),
        ({"Timeout": -1}, "Timeout in Healthcheck cannot be less than 1ms"),
        ({"StartPeriod": 999_999}, "StartPeriod in Healthcheck cannot be less than 1ms"),
        ({"Retries": -1}, "Retries in Healthcheck cannot be negative"),
    ),
)
def test_refusals(server: Server, check: dict[str, int], says: str) -> None:
    body = {"Image": "nagaya/busybox", "Cmd": ["true"], "Healthcheck": {"Test": ["CMD", "true"], **check}}
    answer = call(server.socket, "POST", f"{API}/containers/create", body)
    assert (answer.status, answer.message) == (400, says)
