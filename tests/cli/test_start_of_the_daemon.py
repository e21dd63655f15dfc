"""`nagaya` where no host was chosen and none runs: it starts the daemon, once.

The default places are fixed, so each test has a mount namespace in which they are empty.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

BIN = Path(sys.executable).parent
PREPARE = """
set -e
ip link set lo up
for place in /run /var/lib /var/log; do mount -t tmpfs none $place; done
ended() {
    for pid in $(cat /run/nagaya/nagayad.pid /run/nagaya/supervisor.pid 2>/dev/null); do
        kill $pid 2>/dev/null || :
        tries=0
        while kill -0 $pid 2>/dev/null && [ $tries -lt 300 ]; do sleep 0.1; tries=$((tries + 1)); done
    done
    for parent in /sys/fs/cgroup/*/nagaya; do
        [ ! -d $parent ] || find $parent -depth -type d -exec rmdir {} + 2>/dev/null || :
    done
}
trap ended EXIT
"""


def in_an_empty_house(script: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a shell script in namespaces of its own, with our launchers on PATH."""
    if not os.access(BIN / "nagaya", os.X_OK):
        pytest.skip("nagaya is not installed beside this interpreter")
    environment = {"PATH": f"{BIN}:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/nonexistent"}
    return subprocess.run(
        ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", PREPARE + script],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
    )


def test_the_first_command_starts_it() -> None:
    done = in_an_empty_house(
        "nagaya run --rm --network none nagaya/busybox echo hi; cat /run/nagaya/nagayad.pid; nagaya ps -aq; "
        "cat /run/nagaya/nagayad.pid; ls -d /var/log/nagayad.log; "
        "nagaya -H unix:///run/other.sock ps || echo $?"
    )
    lines = done.stdout.splitlines()
    assert lines[:1] == ["hi"], done
    assert lines[1] == lines[2] and lines[1].isdecimal()  # the same daemon answered
    assert lines[3:] == ["/var/log/nagayad.log", "1"]
    assert "Cannot connect" in done.stderr  # a chosen host is never started


def test_many_at_once_start_one() -> None:
    done = in_an_empty_house(
        "for i in 1 2 3 4 5; do nagaya version -f '{{.Server.Version}}' & done; wait; "
        "grep -c 'serving the Docker API' /var/log/nagayad.log; ls /run/nagaya/docker.sock"
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 7 and len(set(lines[:5])) == 1, done
    assert lines[5:] == ["1", "/run/nagaya/docker.sock"]


def test_a_daemon_that_cannot_start_is_one_line() -> None:
    done = in_an_empty_house("echo x > /var/lib/nagaya; nagaya ps || echo $?")
    assert done.stdout.splitlines()[-1:] == ["1"], done
    assert "its last words are in /var/log/nagayad.log" in done.stderr and done.stderr.count("\n") == 1


def test_who_may_not_start_it_is_told_so() -> None:
    done = in_an_empty_house(
        "setpriv --reuid 65534 --regid 65534 --clear-groups nagaya ps || echo $?", timeout=60
    )
    assert done.stdout == "1\n", done
    assert "Is nagayad running?" in done.stderr and done.stderr.count("\n") == 1
