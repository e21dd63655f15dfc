"""Compose v2 on our socket: a web server and redis, up, scaled, looked at, restarted, taken down."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import composing
import pytest
from house import House

pytestmark = pytest.mark.root

PROJECT = """
name: shop
services:
  web:
    image: nagaya/busybox
    command:
      - sh
      - -c
      - mkdir -p /www; echo page of $$HOSTNAME >/www/index.html; echo serving; exec httpd -f -h /www
    stop_signal: SIGKILL
    init: true
    ports: ["80"]
    environment:
      REDIS: redis
    depends_on:
      redis:
        condition: service_healthy
    networks: [front, back]
  redis:
    image: example/redis:1
    healthcheck:
      test: ["CMD", "redis-cli", "ping"]
      interval: 200ms
      timeout: 5s
      retries: 50
    volumes: ["data:/data"]
    networks:
      back:
        aliases: [cache]
    labels:
      tier: storage
networks:
  front:
  back:
    internal: true
volumes:
  data:
    labels:
      kept: "yes"
"""


class Compose:
    """docker-compose in a project's directory."""

    def __init__(self, house: House, directory: Path) -> None:
        self.house = house
        self.directory = directory
        self.program = str(composing.program())
        (directory / "compose.yaml").write_text(PROJECT)

    def __call__(
        self, *arguments: str, timeout: float = 120, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.house.inside([self.program, "--ansi", "never", *arguments]),
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=self.directory,
            env={**self.house.environment, **environment},
        )

    def ok(self, *arguments: str) -> str:
        """A command that must succeed; what it printed."""
        done = self(*arguments)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr, self.house.tail())
        return done.stdout.rstrip("\n")

    def services(self) -> dict[str, list[str]]:
        """The states of the containers by service."""
        found: dict[str, list[str]] = {}
        for line in self.ok("ps", "-a", "--format", "json").splitlines():
            container = json.loads(line)
            found.setdefault(container["Service"], []).append(container["State"])
        return found

    def page(self, index: int) -> str:
        """What the index-th web server serves at its published port."""
        address = self.ok("port", "--index", str(index), "web", "80")
        port = address.rpartition(":")[2]
        fetch = ["curl", "-s", "--retry", "20", "--retry-connrefused", f"http://127.0.0.1:{port}/"]
        return subprocess.run(self.house.inside(fetch), capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    with House() as house:
        house.ok("load", input=composing.redis_archive("example/redis:1"))
        yield Compose(house, tmp_path_factory.mktemp("shop"))


def test_a_project_s_life(compose: Compose) -> None:
    assert "redis" in compose.ok("config", "--services")
    compose.ok("up", "-d")
    assert compose.services() == {"web": ["running"], "redis": ["running"]}
    assert compose.page(1).startswith("page of ")

    # by names and aliases, over the network that leads nowhere else
    for name in ("redis", "cache", "shop-redis-1"):
        ping = f"(printf 'PING\\r\\n'; sleep 0.3) | nc -w 2 {name} 6379"
        assert compose.ok("exec", "-T", "web", "sh", "-c", ping) == "+PONG"
    assert compose.ok("exec", "-T", "redis", "redis-cli", "set", "key", "value") == "OK"

    compose.ok("up", "-d", "--scale", "web=3")
    assert compose.services()["web"] == ["running"] * 3
    assert len({compose.page(index) for index in (1, 2, 3)}) == 3

    logs = compose.ok("logs", "web")
    assert logs.count("| serving") == 3
    assert compose.ok("logs", "--no-log-prefix", "--tail", "1", "redis")

    assert "redis-server" in compose.ok("top", "redis")
    assert "shop-redis-1" in compose.ok("ps", "--filter", "status=running", "redis")

    compose.ok("restart", "redis")
    wait_until_healthy(compose)
    assert compose.ok("exec", "-T", "redis", "redis-cli", "get", "key") == "value"

    compose.ok("stop", "web")
    assert compose.services()["web"] == ["exited"] * 3
    compose.ok("start", "web")
    compose.ok("pause", "web")
    assert compose.services()["web"] == ["paused"] * 3
    compose.ok("unpause", "web")
    compose.ok("up", "-d", "--scale", "web=1")
    assert compose.services()["web"] == ["running"]

    said = compose.ok("run", "--rm", "-T", "redis", "redis-cli", "-h", "cache", "get", "key")
    assert said == "value"
    house = compose.house
    assert house.ok("volume", "ls", "-q", "--filter", "label=kept=yes") == "shop_data"
    compose.ok("down")
    assert compose.services() == {}
    assert house.ok("volume", "ls", "-q") == "shop_data"
    compose.ok("up", "-d", "--wait")
    compose.ok("down", "-v")
    assert house.ok("volume", "ls", "-q") == ""
    assert house.ok("network", "ls", "-q", "--filter", "type=custom") == ""
    assert house.ok("ps", "-aq") == ""


def wait_until_healthy(compose: Compose) -> None:
    deadline = time.monotonic() + 90
    while compose.house.ok("inspect", "-f", "{{.State.Health.Status}}", "shop-redis-1") != "healthy":
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_mistakes_are_told(compose: Compose) -> None:
    other = compose.directory / "bad.yaml"
    other.write_text(
        "services: {one: {image: nagaya/busybox, networks: [a]}}\nnetworks: {a: {external: true}}"
    )
    said = compose("-f", str(other), "up", "-d")
    assert said.returncode == 1 and "network a declared as external, but could not be found" in said.stderr


def test_a_service_is_built(compose: Compose) -> None:
    """By the classic builder's API; else Compose fetches a BuildKit to run in a container."""
    place = compose.directory / "built"
    place.mkdir()
    (place / "Dockerfile").write_text("FROM nagaya/busybox\nARG word\nRUN echo $word >/word\nCMD cat /word\n")
    (place / "compose.yaml").write_text(
        "name: b\nservices: {one: {image: 'b:1', network_mode: none, build: "
        "{context: ., network: none, args: {word: hello}}}}\n"
    )
    files = ("--project-directory", str(place), "-f", str(place / "compose.yaml"))
    said = compose(*files, "build", DOCKER_BUILDKIT="0")
    assert said.returncode == 0, said
    assert compose.house.ok("run", "--rm", "--network", "none", "b:1") == "hello"
    up = compose(*files, "up", "--build", DOCKER_BUILDKIT="0")
    assert up.returncode == 0 and "one-1  | hello" in up.stdout, up
    compose(*files, "down", "--rmi", "all")
