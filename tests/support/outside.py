"""Another machine beside a house: a network namespace with a cable to the house's."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from house import House, wait_for


def sh(house: House, *argv: str) -> str:
    """The output of a program in the house's network namespace."""
    done = subprocess.run(house.inside(argv), capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, (argv, done.stderr)
    return done.stdout


@contextmanager
def other_machine(house: House) -> Iterator[list[str]]:
    """The argv prefix that enters it. The cable is the house's `wan` and its own `eth0`; no addresses yet."""
    machine = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep infinity"],
        stdout=subprocess.PIPE,
    )
    try:
        assert machine.stdout is not None and machine.stdout.readline() == b"up\n"
        cable = f"link add wan type veth peer name eth0 netns {machine.pid}"
        sh(house, "ip", *cable.split())
        yield ["nsenter", f"--net=/proc/{machine.pid}/ns/net"]
    finally:
        machine.kill()
        machine.communicate()
        wait_for(lambda: "wan" not in sh(house, "ip", "-br", "link"), 20, "the end of the other machine")
