"""How long a microVM takes (`./dev bench vm`): a cold boot and a clone with `run echo`, an exec in a running
one, ten clones at once; beside `runsc run`, gVisor's sandbox, and nagaya-oci without a machine.

All take turns in the same rounds with the same busybox. Where the processor cannot virtualize, QEMU emulates
it: the first line says which, and the numbers of the one say nothing about the other.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import stage
from measure import Contest, Failed, Peer
from nagaya.vm import accel
from stage import BIN, Command, attempt, need, say

CLONES = 10
_TIMEOUT = 120  # seconds


class Vm:
    """nagaya-vm with its bundles and a state directory of its own."""

    def __init__(self, base: Path, root: Path) -> None:
        self._base = base
        self._program = [
            str(BIN / "nagaya-vm"),
            "--state",
            str(base / "vm-state"),
            "--root",
            str(base / "vm"),
        ]
        self._short = stage.bundle(base, "vm-short", root, _echo)
        self._long = stage.bundle(base, "vm-long", root, _sleep)
        # each with a cgroup of its own
        self._many = [stage.bundle(base, f"vm-{number}", root, _echo) for number in range(CLONES)]
        self._numbers = itertools.count()

    def argv(self, *options: str) -> list[str]:
        """`run echo`; {n} is the run's number."""
        return [*self._program, *options, "run", "--bundle", str(self._short), "vm-{n}"]

    def begin(self) -> None:
        """The container that execs go to. Raises Failed."""
        words = [*self._program, "run", "--detach", "--bundle", str(self._long), "vm-long"]
        done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=_TIMEOUT)
        if done.returncode:
            raise Failed(f"run --detach ended with {done.returncode}")

    def exec(self) -> list[str]:
        """One more process in it."""
        return [*self._program, "exec", "vm-long", "/bin/true"]

    def together(self) -> None:
        """So many clones at once, from the first start to the last end. Raises Failed."""
        number = next(self._numbers)
        running = [
            subprocess.Popen(
                [*self._program, "run", "--bundle", str(bundle), f"{bundle.name}-{number}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            for bundle in self._many
        ]
        said = [(process.communicate(timeout=_TIMEOUT)[1], process.returncode) for process in running]
        failed = [text for text, code in said if code]
        if failed:
            raise Failed(failed[0].decode("utf-8", "replace").strip()[-200:])

    def end(self) -> None:
        """Take the long one away."""
        subprocess.run([*self._program, "delete", "--force", "vm-long"], timeout=_TIMEOUT)


def _echo(config: dict[str, Any]) -> None:
    config["process"]["args"] = ["/bin/echo", "hi"]


def _sleep(config: dict[str, Any]) -> None:
    config["process"]["args"] = ["/bin/sleep", "1000000"]


def contests(base: Path, root: Path, vm: Vm) -> list[Contest]:
    """Ours first: a clone against all others."""
    short = stage.bundle(base, "oci-short", root, _echo)

    def runsc() -> Callable[[], None]:
        # a file as its stdout is written from the beginning by each write: Command gives it a pipe
        words = [need("runsc"), "--root", str(base / "runsc"), "--network=none", "--ignore-cgroups"]
        return Command(base, *words, "--platform=ptrace", "run", "--bundle", str(short), "runsc-{n}")

    def ours() -> Callable[[], None]:
        words = [str(BIN / "nagaya-oci"), "--root", str(base / "oci")]
        return Command(base, *words, "run", "--bundle", str(short), "oci-{n}")

    run = [
        attempt("nagaya-vm, a clone", lambda: Command(base, *vm.argv())),
        attempt("nagaya-vm, booted", lambda: Command(base, *vm.argv("--no-snapshot"))),
        attempt("runsc", runsc),
        attempt("nagaya-oci", ours),
    ]
    return [
        Contest("`run echo`, ms", run),
        Contest(
            "`exec true` in a running one, ms", [attempt("nagaya-vm", lambda: Command(base, *vm.exec()))]
        ),
        Contest(f"{CLONES} clones at once, `run echo` of all, ms", [Peer("nagaya-vm", vm.together)]),
    ]


def compete(base: Path, rounds: int) -> list[dict[str, Any]]:
    """Play all contests, and return the results."""
    root = stage.rootfs(base)
    vm = Vm(base, root)
    say(f"the accelerator is {accel.here()}; {rounds} rounds")
    vm.begin()
    try:
        played = contests(base, root, vm)
        for contest in played:
            measure.play([contest], rounds)
    finally:
        vm.end()
    return [contest.result() for contest in played]


def main() -> int:
    """Measure, print, and keep the JSON in benchmarks/results."""
    parser = argparse.ArgumentParser(prog="./dev bench vm", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="timed turns of each peer (default 10)")
    stage.add_options(parser)
    options = parser.parse_args()
    base = stage.enter()
    about = stage.machine()
    return stage.publish("vm", compete(base, options.rounds), about, options, measure.table)


if __name__ == "__main__":
    sys.exit(main())
