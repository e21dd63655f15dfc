"""How long each verb of the low-level runtimes takes, and how much memory `run` (`./dev bench runtime`).

Peers take turns with whole lives of a container, verb by verb, on bundles that differ in their cgroup's
name only. Memory is the largest resident set of the runtime and of what it waited for, as GNU time tells.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import measure
import stage
from measure import Contest, Failed, Peer
from nagaya.oci.seccomp_default import resolve
from stage import BIN, Command, attempt, need, say

RUNTIMES = ("nagaya-oci", "runc", "crun")
FILTERED = "run, Docker's seccomp profile"  # as podman, containerd and dockerd ask for it
VERBS = ("run", FILTERED, "create", "start", "exec", "state", "kill", "delete")
_ENDING = 10.0  # seconds


class Runtime:
    """One runtime with its bundles: `true` for run, with a seccomp filter or without; `sleep` for the life of
    the other verbs."""

    def __init__(self, base: Path, root: Path, name: str) -> None:
        self._base = base
        self._program = str(BIN / name) if name == "nagaya-oci" else need(name)
        self._state = str(base / f"{name}-state")
        self._pid_file = base / f"{name}-pid"
        self._short = stage.bundle(base, f"{name}-short", root, lambda _: None)
        self._filtered = stage.bundle(base, f"{name}-filtered", root, _filters)
        self._long = stage.bundle(base, f"{name}-long", root, _sleeps)

    def argv(self, verb: str) -> list[str]:
        """The command line of a verb; {n} is the run's number."""
        if verb in ("run", FILTERED):
            where = self._short if verb == "run" else self._filtered
            verb, words = "run", ["--bundle", str(where), where.name + "-{n}"]
        elif verb == "create":
            words = ["--bundle", str(self._long), "--pid-file", str(self._pid_file), self._long.name]
        else:
            words = [self._long.name, *{"exec": ["/bin/true"], "kill": ["KILL"]}.get(verb, [])]
        return [self._program, "--root", self._state, verb, *words]

    def command(self, verb: str) -> Callable[[], None]:
        """A verb as a peer's run."""
        return Command(self._base, *self.argv(verb))

    def ended(self) -> None:
        """Wait until the killed process is gone. Raises Failed."""
        if not self._pid_file.exists():
            raise Failed("it was never created")
        process = Path("/proc", self._pid_file.read_text().strip())
        deadline = time.monotonic() + _ENDING
        while process.exists():
            if time.monotonic() > deadline:
                raise Failed(f"still there after {_ENDING:.0f} seconds")
            time.sleep(0.001)

    def peak(self) -> float:
        """The largest resident set of a `run`, in megabytes. Raises Failed."""
        seen = self._base / "peak"
        Command(self._base, need("time"), "-f", "%M", "-o", str(seen), *self.argv("run"))()
        return int(seen.read_text()) / 1000


def _sleeps(config: dict[str, Any]) -> None:
    config["process"]["args"] = ["/bin/sleep", "1000000"]


def _filters(config: dict[str, Any]) -> None:
    config["linux"]["seccomp"] = resolve(config["process"]["capabilities"]["bounding"])


def contests(runtimes: dict[str, Runtime | str]) -> list[Contest]:
    """One for each verb; a runtime that is not there, the reason in its place, is left out."""

    def peer(verb: str, name: str, runtime: Runtime | str) -> Peer:
        if isinstance(runtime, str):
            return Peer(name, lambda: None, failure=runtime)
        made = attempt(name, partial(runtime.command, verb))
        if verb == "delete":
            made.prepare = runtime.ended
        return made

    return [Contest(title(verb), [peer(verb, *one) for one in runtimes.items()]) for verb in VERBS]


def title(verb: str) -> str:
    """Of a verb's contest."""
    word, _, rest = verb.partition(",")
    return f"`{word}`{',' * bool(rest)}{rest}, ms"


def memory(runtimes: dict[str, Runtime | str], runs: int = 5) -> dict[str, Any]:
    """The median of some runs' peaks, as a contest's result."""
    rows: list[dict[str, Any]] = []
    for name, runtime in runtimes.items():
        try:
            if isinstance(runtime, str):
                raise Failed(runtime)
            peaks = sorted(runtime.peak() for _ in range(runs))
            row: dict[str, Any] = {"peer": name, "peak_mb": peaks[runs // 2]}
        except Failed as failed:
            row = {"peer": name, "left_out": str(failed)}
        if rows and "peak_mb" in rows[0] and "peak_mb" in row:
            row["ours_over_theirs"] = round(rows[0]["peak_mb"] / row["peak_mb"], 3)
        rows.append(row)
    return {"title": "`run`, peak memory, MB", "rows": rows}


def compete(base: Path, rounds: int) -> list[dict[str, Any]]:
    """Play all contests, and return the results."""
    root = stage.rootfs(base)
    runtimes: dict[str, Runtime | str] = {}
    for name in RUNTIMES:
        try:
            runtimes[name] = Runtime(base, root, name)
        except Failed as failed:
            runtimes[name] = str(failed)
    played = contests(runtimes)
    say(f"{rounds} rounds of {len(played)} verbs")
    measure.play(played, rounds)
    return [*(contest.result() for contest in played), memory(runtimes)]


def main() -> int:
    """Measure, print, and keep the JSON in benchmarks/results."""
    parser = argparse.ArgumentParser(prog="./dev bench runtime", description=__doc__)
    parser.add_argument("--rounds", type=int, default=40, help="timed turns of each peer (default 40)")
    stage.add_options(parser)
    options = parser.parse_args()
    base = stage.enter()
    about = stage.machine()
    return stage.publish("runtime", compete(base, options.rounds), about, options, measure.matrix)


if __name__ == "__main__":
    sys.exit(main())
