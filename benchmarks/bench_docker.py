"""Everyday work over Docker's API, on nagayad and on dockerd (`./dev bench docker`).

One verb at a time by the same docker command and over the bare socket; crowds of containers; lines of output
to the log and through `logs -f`; published ports; a daemon's start with many containers. Where podman has
the verb and takes no longer than dockerd, it takes part.
"""

from __future__ import annotations

import argparse
import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import measure
import stage
import start
import traffic
from measure import Contest, Failed, Peer, as_rate
from stage import IMAGE, OUR_IMAGE, Client, Command, Daemons, attempt, need, say

CROWD = 50
LISTED = 100
STOPPED = 500
PORTS = 40
# lines of a log, and bytes of each: many small ones, and ones as long as dockerd leaves whole
LOGS = {"lines of 100 bytes": (300_000, 100), "lines of 8 KiB": (8_000, 8192)}
_TERMINABLE = ["sh", "-c", "trap exit TERM; sleep 1000000 & wait"]
_V = "/v1.41"


class Daemon:
    """One daemon behind Docker's API, and how it is asked. Raises Failed when it does not run."""

    def __init__(self, base: Path, socket: Path, image: str) -> None:
        if not socket.exists():
            raise Failed("its daemon does not run")
        self.base, self.socket, self.image = base, socket, image
        self.client = Client(socket)
        self.env = {"DOCKER_HOST": f"unix://{socket}", "DOCKER_CONFIG": str(base), "DOCKER_BUILDKIT": "0"}

    def docker(self, *words: str) -> Command:
        """A docker command line as a run."""
        return Command(self.base, need("docker"), *words, env=self.env)

    def create(self, command: Sequence[str], host: dict[str, Any] | None = None, name: str = "") -> str:
        """Create a container over the API; its id. Raises Failed."""
        body = {"Image": self.image, "Cmd": command, "HostConfig": host or {"NetworkMode": "none"}}
        path = f"{_V}/containers/create" + (f"?name={name}" if name else "")
        return str(stage.decode(self.client.request("POST", path, body))["Id"])

    def start(self, container: str) -> None:
        """Start it. Raises Failed."""
        self.client.request("POST", f"{_V}/containers/{container}/start")

    def remove(self, container: str) -> None:
        """Remove it, whatever it does. Raises Failed."""
        self.client.request("DELETE", f"{_V}/containers/{container}?force=1")


def begin(base: Path, daemons: Daemons, archive: Path) -> dict[str, Daemon]:
    """Start nagayad and dockerd, and give dockerd the image; who does not start is left out with a line."""
    found: dict[str, Daemon] = {}
    for name, start_it in (("nagayad", daemons.start_nagaya), ("", daemons.start_containerd),
                           ("dockerd", daemons.start_dockerd)):  # fmt: skip
        try:
            start_it()
            if name:
                path = daemons.nagaya if name == "nagayad" else daemons.dockerd
                found[name] = Daemon(base, path, OUR_IMAGE if name == "nagayad" else IMAGE)
        except Failed as failed:
            say(str(failed))
    if "dockerd" in found:
        found["dockerd"].docker("load", "-i", str(archive))()
    return found


def verbs(base: Path, archive: Path, daemons: dict[str, Daemon]) -> Iterator[Contest]:
    """exec, create and ps, by command line and over the API."""

    def podman(*words: str) -> Callable[[], None]:
        return Command(base, *stage.podman(base, archive), *words)

    def podman_exec() -> Callable[[], None]:
        podman("run", "-d", "--name", "x", *stage.podman_options(base), IMAGE, "sleep", "1000000")()
        return podman("exec", "x", "true")

    sleeping = {name: one.create(["sleep", "1000000"]) for name, one in daemons.items()}
    for name, one in daemons.items():
        one.start(sleeping[name])
    yield Contest(
        "`docker exec`, ms",
        [Peer(name, one.docker("exec", sleeping[name], "true")) for name, one in daemons.items()]
        + [attempt("podman", podman_exec)],
    )
    yield Contest(
        "exec over the API, ms",
        [Peer(name, partial(api_exec, one, sleeping[name])) for name, one in daemons.items()],
    )
    for name, one in daemons.items():
        one.remove(sleeping[name])
    options = ("--network", "none")
    yield Contest(
        "`docker create`, ms",
        [
            Peer(name, one.docker("create", "--name", "c{n}", *options, one.image, "true"))
            for name, one in daemons.items()
        ]
        + [attempt("podman", lambda: podman("create", *options, *stage.podman_options(base), IMAGE, "true"))],
    )
    yield Contest(
        "create over the API, ms", [Peer(name, partial(_create, one)) for name, one in daemons.items()]
    )
    for one in daemons.values():
        clear(one)
        for _ in range(LISTED):
            one.create(["true"])
    yield Contest(
        f"`docker ps -a`, {LISTED} containers, ms",
        [Peer(name, one.docker("ps", "-a")) for name, one in daemons.items()],
    )
    yield Contest(
        f"list of {LISTED} containers over the API, ms",
        [Peer(name, partial(listed, one, LISTED)) for name, one in daemons.items()],
    )
    for one in daemons.values():
        clear(one)


def _create(one: Daemon) -> None:
    one.create(["true"])


def api_exec(one: Daemon, container: str) -> None:
    """create, start, read to the end and inspect, as an SDK does. Raises Failed."""
    body = {"Cmd": ["true"], "AttachStdout": True, "AttachStderr": True}
    made = stage.decode(one.client.request("POST", f"{_V}/containers/{container}/exec", body))
    with Client(one.socket) as stream:
        stream.hijack(f"{_V}/exec/{made['Id']}/start", {"Detach": False, "Tty": False})
    code = stage.decode(one.client.request("GET", f"{_V}/exec/{made['Id']}/json"))["ExitCode"]
    if code != 0:
        raise Failed(f"the exec ended with {code}")


def listed(one: Daemon, count: int) -> None:
    """List all containers. Raises Failed when there are fewer."""
    found = stage.decode(one.client.request("GET", f"{_V}/containers/json?all=1"))
    if len(found) < count:
        raise Failed(f"{len(found)} containers, not {count}")


def clear(one: Daemon) -> None:
    """Remove what does not run."""
    one.client.request("POST", f"{_V}/containers/prune")


class Crowd:
    """Containers that come and go together, by the docker command."""

    def __init__(self, one: Daemon) -> None:
        self._one = one
        self._names = [f"crowd{number}" for number in range(CROWD)]

    def run(self) -> None:
        """So many `docker run -d` at once, until the last one is back. Raises Failed."""
        env = {"PATH": os.environ["PATH"], "HOME": str(self._one.base), **self._one.env}
        started = [
            subprocess.Popen(
                [need("docker"), "run", "-d", "--name", name, self._one.image, *_TERMINABLE],
                env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )
            for name in self._names
        ]  # fmt: skip
        ended = [(process.communicate()[1], process.returncode) for process in started]
        for said, code in ended:
            if code:
                raise Failed(f"exit code {code}: {said.decode(errors='replace').strip()[-300:]}")

    def stop(self) -> None:
        """`docker stop` of all. Raises Failed."""
        self._one.docker("stop", *self._names)()

    def again(self) -> None:
        """`docker start` of all. Raises Failed."""
        self._one.docker("start", *self._names)()

    def remove(self) -> None:
        """`docker rm -f` of all. Raises Failed."""
        self._one.docker("rm", "-f", *self._names)()


def crowds(daemons: dict[str, Daemon]) -> list[Contest]:
    """The life of a crowd, in order."""
    many = {name: Crowd(one) for name, one in daemons.items()}
    return [
        Contest(f"{CROWD} `docker run -d` at once, ms", [Peer(n, c.run) for n, c in many.items()]),
        Contest(f"`docker stop` of {CROWD}, ms", [Peer(n, c.stop) for n, c in many.items()]),
        Contest(
            f"`docker rm -f` of {CROWD} running, ms",
            [Peer(n, c.remove, prepare=c.again) for n, c in many.items()],
        ),
    ]


class Writer:
    """A container that waits at a gate, and then writes a file's lines as fast as it can."""

    def __init__(self, one: Daemon, where: Path, count: int) -> None:
        self._one, self._where, self._count = one, where, count
        self._container = ""
        self._follow: Callable[[bytes], int] = lambda _: 0

    def ready(self) -> None:
        """A new one, at its gate. Raises Failed."""
        if self._container:
            self._one.remove(self._container)
        # its program reads the gate, not its standard input: that would be one more stream
        command = ["sh", "-c", "read go < /work/gate; cat /work/lines"]
        host = {"NetworkMode": "none", "Binds": [f"{self._where}:/work"]}
        self._container = self._one.create(command, host)
        self._one.start(self._container)

    def followed(self) -> None:
        """The same, with a reader of its log. Raises Failed."""
        self.ready()
        self._follow = Client(self._one.socket).follow(
            f"{_V}/containers/{self._container}/logs?stdout=1&follow=1"
        )

    def _open(self) -> None:
        deadline = time.monotonic() + 20
        while True:
            try:
                gate = os.open(self._where / "gate", os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                if error.errno != errno.ENXIO or time.monotonic() > deadline:
                    raise Failed(f"nobody reads the gate: {error}") from None
                time.sleep(0.001)
                continue
            os.write(gate, b"\n")
            os.close(gate)
            return

    def write(self) -> None:
        """Open the gate and wait for the end: all is in the log then. Raises Failed."""
        self._open()
        path = f"{_V}/containers/{self._container}"
        ended = stage.decode(self._one.client.request("POST", f"{path}/wait"))
        last = self._one.client.request("GET", f"{path}/logs?stdout=1&tail=1")
        if ended["StatusCode"] or f"{self._count - 1:08}~".encode() not in last:
            raise Failed(f"exit code {ended['StatusCode']}, the last line is {last[-50:]!r}")

    def read(self) -> None:
        """Open the gate and read what comes, to the end. Raises Failed."""
        self._open()
        seen = self._follow(b"~")
        if seen < self._count:
            raise Failed(f"{seen} lines of {self._count} came")


def logs(base: Path, daemons: dict[str, Daemon], rounds: int) -> Iterator[dict[str, Any]]:
    """Lines to the file, and through `logs -f`, of two lengths."""
    for title, (count, size) in LOGS.items():
        where = base / f"lines-{size}"
        where.mkdir()
        os.mkfifo(where / "gate")
        with (where / "lines").open("w") as file:
            file.writelines(f"{number:08}~".ljust(size - 1, "x") + "\n" for number in range(count))
        writers = {name: Writer(one, where, count) for name, one in daemons.items()}
        small = size < 1000
        unit, amount = ("thousand lines/s", count / 1e3) if small else ("MB/s", count * size / 1e6)
        for way in ("to the file", "through `logs -f`"):
            contest = Contest(
                f"log, {title} {way}, {unit}",
                [
                    Peer(name, one.write, prepare=one.ready)
                    if way == "to the file"
                    else Peer(name, one.read, prepare=one.followed)
                    for name, one in writers.items()
                ],
            )
            say(contest.title)
            contest.play(rounds, warmups=1)
            yield as_rate(contest.result(), amount)


def with_ports(daemons: Daemons) -> dict[str, Any]:
    """Memory of idle containers, each with a published port."""

    def host(number: int) -> dict[str, Any]:
        return {"PortBindings": {"80/tcp": [{"HostPort": str(19000 + number)}]}}

    found = [
        start.idle("nagayad", daemons.nagaya, OUR_IMAGE, start.OUR_PROGRAMS, PORTS, host),
        start.idle("dockerd", daemons.dockerd, IMAGE, start.THEIR_PROGRAMS, PORTS, host),
    ]
    for row in found:
        if "left_out" not in row:
            row["value"] = row["each_further_kb"]
    ours, theirs = (row.get("value") for row in found)
    if ours is not None and theirs:
        found[1]["ours_over_theirs"] = round(ours / theirs, 3)
    return {"title": "memory of each further idle container with a published port, KB", "rows": found}


def startups(daemons: Daemons, found: dict[str, Daemon]) -> Contest:
    """A daemon's start, until it has listed all its containers, none of which runs."""
    starts = {"nagayad": daemons.start_nagaya, "dockerd": daemons.start_dockerd}
    for one in found.values():
        clear(one)
        for _ in range(STOPPED):
            one.create(["true"])

    def begin(name: str) -> None:
        starts[name]()
        found[name].client = Client(found[name].socket)
        listed(found[name], STOPPED)

    return Contest(
        f"start of the daemon with {STOPPED} containers that do not run, ms",
        [Peer(name, partial(begin, name), prepare=partial(daemons.end, name)) for name in found],
    )


def compete(base: Path, rounds: int, chosen: Sequence[str]) -> list[dict[str, Any]]:
    """Start the daemons, play what was chosen, and return the results."""
    daemons = Daemons(base)
    results: list[dict[str, Any]] = []
    few = max(2, rounds // 5)
    try:
        archive = stage.archive(base, stage.rootfs(base))
        found = begin(base, daemons, archive)
        if "verbs" in chosen:
            for contest in verbs(base, archive, found):
                say(contest.title)
                contest.play(rounds)
                results.append(contest.result())
        if "crowds" in chosen:
            say(f"crowds of {CROWD}")
            played = crowds(found)
            measure.play(played, few, warmups=0)
            results += [contest.result() for contest in played]
        if "logs" in chosen:
            results += logs(base, found, few)
        if "ports" in chosen:
            results += traffic.measure(base, {n: (one.socket, one.image) for n, one in found.items()}, few)
        if "memory" in chosen:
            say("memory with published ports")
            results.append(with_ports(daemons))
        if "startup" in chosen:
            contest = startups(daemons, found)
            say(contest.title)
            contest.play(few, warmups=0)
            results.append(contest.result())
        return results
    finally:
        daemons.stop()


PARTS = ("verbs", "crowds", "logs", "ports", "memory", "startup")


def main() -> int:
    """Measure, print, and keep the JSON in benchmarks/results."""
    parser = argparse.ArgumentParser(prog="./dev bench docker", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="timed turns of each peer (default 15)")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this; repeatable")
    stage.add_options(parser)
    options = parser.parse_args()
    base = stage.enter()
    about = stage.machine()
    results = compete(base, options.rounds, options.part or PARTS)
    return stage.publish("docker", results, about, options, measure.matrix)


if __name__ == "__main__":
    sys.exit(main())
