"""Containers on cgroup v2. These tests are the test machine's (`./dev test-vm`), whose cgroups, disk and
swap nobody else uses; an ordinary run collects the one that starts such a machine."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundles import Bundle, bundle, forget, nagaya_oci
from clients import Cli
from guest import CGROUP_PARENT, Daemon
from house import wait_for

_GUESTS = ["test_cgroup2_*.py", "test_apparmor.py", "test_selinux.py"]
_HOSTS = ["test_machine.py", "test_micro*.py", "test_vmm*.py"]
collect_ignore_glob = _HOSTS if "NAGAYA_TEST_VM" in os.environ else _GUESTS
if not os.path.isdir("/run/systemd/system") or "NAGAYA_TEST_VM" not in os.environ:
    collect_ignore_glob.append("test_systemd.py")
if not os.path.exists("/sys/fs/selinux/enforce"):
    collect_ignore_glob.append("test_selinux.py")


@pytest.fixture(scope="session")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """nagaya-oci."""
    launcher = nagaya_oci(tmp_path_factory.mktemp("env"))
    yield launcher
    forget(launcher)


def _bundle(runtime: str) -> Iterator[Bundle]:
    tag = f"nagt-{uuid.uuid4().hex[:10]}"
    with bundle(runtime, Path(tempfile.mkdtemp(prefix=f"{tag}-")), tag) as made:
        made.spec["linux"]["cgroupsPath"] = f"/{tag}"
        yield made


@pytest.fixture(params=["nagaya-oci", *(name for name in ("runc", "crun") if shutil.which(name))])
def box(request: pytest.FixtureRequest, ours: str) -> Iterator[Bundle]:
    """A bundle of each runtime that is there, with a cgroup and a cgroup namespace of its own."""
    name = str(request.param)
    yield from _bundle(ours if name == "nagaya-oci" else name)


@pytest.fixture(params=["nagaya-oci", *(["runc"] if shutil.which("runc") else [])])
def events_box(request: pytest.FixtureRequest, ours: str) -> Iterator[Bundle]:
    """The same of those that have the command `events`; crun has not."""
    name = str(request.param)
    yield from _bundle(ours if name == "nagaya-oci" else name)


@pytest.fixture
def our_box(ours: str) -> Iterator[Bundle]:
    """The same of nagaya-oci alone."""
    yield from _bundle(ours)


@pytest.fixture(scope="module")
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """nagayad, with the module's ARGUMENTS if it has any; {base} in them is its directory."""
    made = Daemon(*getattr(request.module, "ARGUMENTS", ()))
    made.start()
    keeper = int((made.base / "run" / "supervisor.pid").read_text())
    yield made
    made.stop(signal.SIGTERM)
    os.kill(keeper, signal.SIGTERM)
    wait_for(lambda: not Path(f"/proc/{keeper}").exists(), 30, "the supervisor's end")
    left = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(made.base) in line]
    assert left == []
    shutil.rmtree(made.base)


@pytest.fixture
def cli(daemon: Daemon) -> Iterator[Cli]:
    found = Cli(daemon, "nagaya")
    yield found
    if left := found("ps", "-aq").out.split():
        found.ok("rm", "-f", *left)
    parent = Path("/sys/fs/cgroup", CGROUP_PARENT)
    assert [p.name for p in parent.glob("*") if p.is_dir()] == []
