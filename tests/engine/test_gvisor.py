"""Docker's containers in gVisor (`--runtime runsc`), with Debian's: no KVM, the host's network stack."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator

import pytest
from house import House, wait_for

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("runsc") is None, reason="gVisor is not installed"),
]

IMAGE = "nagaya/busybox"


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    words = f"{shutil.which('runsc')} --platform=ptrace --network="
    config = f'[runtimes]\nrunsc = "{words}host"\nalone = "{words}none"\n'
    with House(config=config) as made:
        yield made


def run(house: House, *arguments: str, code: int = 0) -> str:
    done = house.docker(*arguments)
    assert done.returncode == code, (done, house.tail())
    return done.stdout.decode()


def test_a_life_in_a_sandbox(house: House) -> None:
    script = "dmesg | grep -c gVisor; hostname; echo err >&2; cat /v/in; echo out > /v/out; exit 3"
    run(house, "run", "--rm", "-v", "vol:/v", IMAGE, "sh", "-c", "echo in > /v/in")
    words = ("--runtime", "runsc", "--hostname", "inside", "-v", "vol:/v", "--memory", "256m")
    done = house.docker("run", "--rm", *words, IMAGE, "sh", "-c", script)
    assert done.returncode == 3, (done, house.tail())
    assert done.stdout.split() == [b"1", b"inside", b"in"] and done.stderr == b"err\n"
    assert run(house, "run", "--rm", "-v", "vol:/v", IMAGE, "cat", "/v/out") == "out\n"


def test_the_hosts_null_device_stays_roots(house: House) -> None:
    """A sandbox without the host's network is nobody's, and so is what its stdin was: runsc sees to it."""
    assert run(house, "run", "--rm", "--runtime", "alone", IMAGE, "cat") == ""
    assert os.stat("/dev/null").st_uid == 0


def test_exec_logs_restart_and_stop(house: House) -> None:
    loop = "echo up; trap 'echo bye; exit 7' TERM; while :; do sleep 0.1; done"
    run(house, "run", "-d", "--name", "box", "--runtime", "runsc", "-p", "18941:80", IMAGE, "sh", "-c", loop)
    assert "Starting gVisor" in run(house, "exec", "box", "dmesg")
    assert house.docker("exec", "-i", "box", "cat", input=b"typed").stdout == b"typed"
    assert house.docker("exec", "box", "sh", "-c", "exit 5").returncode == 5
    found = json.loads(run(house, "inspect", "box"))[0]
    assert found["HostConfig"]["Runtime"] == "runsc" and found["State"]["Running"]
    assert run(house, "exec", "box", "cat", "/etc/hosts").count(found["NetworkSettings"]["IPAddress"]) == 1
    house.kill_daemon()
    house.start()
    assert run(house, "exec", "box", "echo", "here") == "here\n"
    run(house, "stop", "-t", "20", "box")
    assert json.loads(run(house, "inspect", "box"))[0]["State"]["ExitCode"] == 7
    assert run(house, "logs", "box").split() == ["up", "bye"]
    run(house, "start", "box")
    wait_for(lambda: run(house, "logs", "box").split() == ["up", "bye", "up"], 20, "the second start")
    run(house, "rm", "-f", "box")
    assert run(house, "ps", "-aq") == ""


def test_a_program_that_is_not_there(house: House) -> None:
    done = house.docker("run", "--rm", "--runtime", "runsc", IMAGE, "/no/such")
    assert done.returncode == 127, done
    assert run(house, "ps", "-aq") == ""
