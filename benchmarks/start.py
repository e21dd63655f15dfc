"""How long a container takes from go to gone, and what it costs while it idles (`./dev bench start`).

Contests, peers taking turns in each: the low-level runtimes on one bundle; the command lines; lives over
the API socket without a command line, one at a time and many at once; memory of idle containers.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import stage
from measure import Contest, Failed, Peer, table
from stage import BIN, IMAGE, OUR_IMAGE, Client, Command, Daemons, attempt, need, say

OUR_PROGRAMS = (os.path.basename(os.path.realpath(sys.executable)).rstrip("0123456789."),)
THEIR_PROGRAMS = ("dockerd", "containerd", "containerd-shim-runc-v", "docker-proxy")


def runtimes(base: Path, root: Path, title: str, configure: Callable[[dict[str, Any]], None]) -> Contest:
    """`run` of /bin/true by the low-level runtimes, on bundles that differ in their cgroup's name only."""

    def runtime(name: str) -> Callable[[], None]:
        program = str(BIN / name) if name == "nagaya-oci" else need(name)
        where = stage.bundle(base, f"{name}-{len(list(base.iterdir()))}", root, configure)
        state = base / "state" / where.name
        return Command(
            base, program, "--root", str(state), "run", "--bundle", str(where), where.name + "-{n}"
        )

    peers = [attempt(f"{n} run", partial(runtime, n)) for n in ("nagaya-oci", "runc", "crun")]
    return Contest(title, peers)


def plain(_: dict[str, Any]) -> None:
    """The configuration as `spec` writes it."""


def limited(config: dict[str, Any]) -> None:
    """With limits, as people set them: they cost writes to the cgroup's files."""
    config["linux"]["resources"] = {
        **config["linux"].get("resources", {}),
        "memory": {"limit": 256 << 20, "swap": 256 << 20},
        "cpu": {"quota": 50000, "period": 100000, "shares": 512},
        "pids": {"limit": 100},
    }


def commands(base: Path, daemons: Daemons, archive: Path, network: bool) -> Contest:
    """`run --rm` of `true` by command line."""
    none = [] if network else ["--network", "none"]

    def docker(socket: Path, image: str) -> Callable[[], None]:
        if not socket.exists():
            raise Failed("its daemon does not run")
        env = {"DOCKER_HOST": f"unix://{socket}", "DOCKER_CONFIG": str(base)}
        return Command(base, need("docker"), "run", "--rm", *none, image, "true", env=env)

    def nagaya() -> Callable[[], None]:
        env = {"NAGAYA_HOST": f"unix://{daemons.nagaya}"}
        return Command(base, str(BIN / "nagaya"), "run", "--rm", *none, OUR_IMAGE, "true", env=env)

    def podman() -> Callable[[], None]:
        argv = stage.podman(base, archive)
        return Command(base, *argv, "run", "--rm", *none, *stage.podman_options(base), IMAGE, "true")

    def ctr() -> Callable[[], None]:
        if not daemons.containerd.exists():
            raise Failed("containerd does not run")
        argv = [need("ctr"), "--address", str(daemons.containerd), "--namespace", base.name]
        Command(base, *argv, "images", "import", str(archive))()
        return Command(base, *argv, "run", "--rm", IMAGE, "ctr-{n}", "true")

    peers = [
        attempt("nagaya run", nagaya),
        attempt("docker run, on nagayad", partial(docker, daemons.nagaya, OUR_IMAGE)),
        attempt("docker run, on dockerd", partial(docker, daemons.dockerd, IMAGE)),
        attempt("podman run", podman),
    ]
    if not network:
        peers.append(attempt("ctr run", ctr))
    return Contest(f"Command lines, run --rm, {'bridge network' if network else 'no network'}", peers)


def live(client: Client, image: str, network: str) -> None:
    """One container's life over the API: create, start, wait, remove. Raises Failed."""
    body = {"Image": image, "Cmd": ["true"], "HostConfig": {"NetworkMode": network}}
    answer = stage.decode(client.request("POST", "/v1.41/containers/create", body))
    path = f"/v1.41/containers/{answer['Id']}"
    client.request("POST", f"{path}/start")
    ended = stage.decode(client.request("POST", f"{path}/wait"))
    client.request("DELETE", path)
    if ended["StatusCode"] != 0:
        raise Failed(f"the container ended with {ended['StatusCode']}")


def lives(socket: Path, image: str, network: str, together: int) -> Callable[[], None]:
    """A run of so many lives at once, each on a connection of its own."""
    if not socket.exists():
        raise Failed("its daemon does not run")
    clients = [Client(socket) for _ in range(together)]
    if together == 1:
        return lambda: live(clients[0], image, network)
    pool = ThreadPoolExecutor(together)

    def run() -> None:
        for _ in pool.map(lambda client: live(client, image, network), clients):
            pass

    return run


def api(daemons: Daemons, bare: Peer | None, network: str, together: int) -> Contest:
    """Lives over the socket: ours, dockerd's, and a bare runtime's run to compare."""
    title = f"API, create start wait remove, {'no' if network == 'none' else network} network"
    title += f", {together} at once, time for each" if together > 1 else ", one at a time"
    peers = [
        attempt("nagayad", partial(lives, daemons.nagaya, OUR_IMAGE, network, together)),
        attempt("dockerd", partial(lives, daemons.dockerd, IMAGE, network, together)),
    ]
    return Contest(title, [*peers, bare] if bare else peers, per_run=together)


def idle(
    name: str,
    socket: Path,
    image: str,
    exes: Sequence[str],
    count: int,
    host: Callable[[int], dict[str, Any]] = lambda _: {"NetworkMode": "none"},
) -> dict[str, Any]:
    """Memory (PSS) of all processes of a stack but the containers' own: none, one, each more. `host` gives
    each one's HostConfig by its number."""
    try:
        if not socket.exists():
            raise Failed("its daemon does not run")
        with Client(socket) as client:
            seen = [_memory(exes)]
            made = []
            for number in range(count + 1):
                body = {"Image": image, "Cmd": ["sleep", "1000000"], "HostConfig": host(number)}
                answer = stage.decode(client.request("POST", "/v1.41/containers/create", body))
                made.append(answer["Id"])
                client.request("POST", f"/v1.41/containers/{answer['Id']}/start")
                if number in (0, count):
                    seen.append(_memory(exes))
            for identifier in made:
                client.request("DELETE", f"/v1.41/containers/{identifier}?force=1")
    except Failed as failed:
        return {"peer": name, "left_out": str(failed)}
    before, first, last = seen
    return {
        "peer": name,
        "without_containers_kb": before,
        "first_container_kb": first - before,
        "each_further_kb": round((last - first) / count, 1),
        "containers": count + 1,
    }


def _memory(exes: Sequence[str]) -> int:
    time.sleep(2)  # what was started for the start alone is gone by then
    return stage.pss(stage.processes(exes))


def memory(daemons: Daemons, count: int) -> dict[str, Any]:
    """Idle containers without network; ours runs in Python, theirs in dockerd, containerd and its shims."""
    return {
        "title": f"Memory of {count} idle containers, PSS of the stack's own processes",
        "rows": [
            idle("nagayad, keeper and io", daemons.nagaya, OUR_IMAGE, OUR_PROGRAMS, count),
            idle("dockerd, containerd and shims", daemons.dockerd, IMAGE, THEIR_PROGRAMS, count),
        ],
    }


def contests(base: Path, daemons: Daemons, together: int) -> Iterator[Contest]:
    """All contests of time, each made when its turn has come."""
    root = stage.rootfs(base)
    archive = stage.archive(base, root)
    if daemons.dockerd.exists():
        env = {"DOCKER_HOST": f"unix://{daemons.dockerd}"}
        Command(base, need("docker"), "load", "-i", str(archive), env=env)()
    bare = runtimes(base, root, "Low-level runtimes, `spec`'s configuration", plain)
    yield bare
    yield runtimes(base, root, "Low-level runtimes, with limits", limited)
    yield commands(base, daemons, archive, network=False)
    yield commands(base, daemons, archive, network=True)
    crun = bare.peers[2]
    for network in ("none", "bridge"):
        yield api(daemons, Peer("crun run, bare", crun.run, failure=crun.failure), network, 1)
        yield api(daemons, None, network, together)


def compete(base: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Start the daemons, play all contests, and return the results."""
    daemons = Daemons(base)
    results = []
    try:
        for start in (daemons.start_nagaya, daemons.start_containerd, daemons.start_dockerd):
            try:
                start()
            except Failed as failed:
                say(str(failed))
        for contest in contests(base, daemons, options.together):
            say(contest.title)
            contest.play(max(5, options.rounds // contest.per_run))
            results.append(contest.result())
        if options.idle:
            say(f"memory of {options.idle} idle containers")
            results.append(memory(daemons, options.idle))
        return results
    finally:
        daemons.stop()


def main() -> int:
    """Measure, print, and keep the JSON in benchmarks/results."""
    parser = argparse.ArgumentParser(prog="./dev bench start", description=__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="timed turns of each peer (default 30)")
    parser.add_argument("--together", type=int, default=16, help="lives at once (default 16)")
    parser.add_argument("--idle", type=int, default=100, help="idle containers; 0 leaves memory out")
    stage.add_options(parser)
    options = parser.parse_args()
    base = stage.enter()
    about = stage.machine()
    return stage.publish("start", compete(base, options), about, options, table)


if __name__ == "__main__":
    sys.exit(main())
