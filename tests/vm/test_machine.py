"""cgroup v2, systemd, and a kernel older than this machine's: tests/vm in an emulated machine
(`./dev test-vm`)."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.vm,
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the machine is an x86_64"),
    pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="QEMU is not installed"),
]


def boot(log: Path, *arguments: str) -> None:
    """Run our tests there, but not the peers' runs of them, for which there is the command. It may take as
    long as it takes: what hangs is ended by boot.py."""
    with log.open("wb") as out:
        program = Path(__file__).with_name("boot.py")
        # the other workers' tests have deadlines
        argv = [
            "nice",
            "-n",
            "5",
            sys.executable,
            "-s",
            "-E",
            str(program),
            "--ours",
            "--tb=short",
            *arguments,
        ]
        status = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out).returncode
    said = log.read_text(errors="replace")
    if status == 77:
        pytest.skip(said.strip().splitlines()[-1])
    assert status == 0, said[-20000:]
    assert " passed" in said


def test_runtime_and_daemon_on_cgroup_v2(tmp_path: Path) -> None:
    boot(tmp_path / "log")


@pytest.mark.skipif(not shutil.which("checkpolicy"), reason="checkpolicy is not installed")
def test_labels_of_selinux(tmp_path: Path) -> None:
    boot(tmp_path / "log", "--selinux")


@pytest.mark.skipif(not os.access("/lib/systemd/systemd", os.X_OK), reason="systemd is not installed")
@pytest.mark.skipif(not shutil.which("dbus-daemon"), reason="D-Bus is not installed")
def test_the_systemd_driver(tmp_path: Path) -> None:
    boot(tmp_path / "log", "--systemd")
