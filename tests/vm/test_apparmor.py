"""AppArmor, which the test machine's kernel has: profiles of the runtime, the daemon and the CRI's."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest
from bundles import Bundle
from clients import Cli

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"
CURRENT = ("cat", "/proc/self/attr/apparmor/current")
PROFILE = "nagt-no-secrets"
TEXT = f"""profile {PROFILE} flags=(attach_disconnected,mediate_deleted) {{
  file, capability, network, signal, ptrace,
  deny /tmp/secret rw,
}}
"""


@pytest.fixture(scope="module", autouse=True)
def profile() -> Iterator[str]:
    """A profile of the tests' own, loaded."""
    subprocess.run(["apparmor_parser", "-Kr"], input=TEXT, text=True, check=True)
    yield PROFILE
    subprocess.run(["apparmor_parser", "-KR"], input=TEXT, text=True, check=True)


def test_the_program_runs_in_its_profile(box: Bundle) -> None:
    box.spec["process"]["apparmorProfile"] = PROFILE
    done = box.run(*CURRENT)
    assert (done.returncode, done.stdout) == (0, f"{PROFILE} (enforce)\n"), done
    done = box.run("sh", "-c", "echo x > /tmp/open && echo x > /tmp/secret")
    assert done.returncode == 1 and "Permission denied" in done.stderr, done


def test_and_with_no_new_privileges(box: Bundle) -> None:
    box.spec["process"] |= {"apparmorProfile": PROFILE, "noNewPrivileges": True}
    assert box.run(*CURRENT).stdout == f"{PROFILE} (enforce)\n"


def test_a_further_program_runs_in_it_or_in_its_own(events_box: Bundle) -> None:
    events_box.spec["process"]["apparmorProfile"] = PROFILE
    events_box.start()
    assert events_box.ok("exec", events_box.id, *CURRENT) == f"{PROFILE} (enforce)\n"
    said = events_box.ok("exec", "--apparmor", "unconfined", events_box.id, *CURRENT)
    assert said == "unconfined\n"


def test_a_profile_that_is_not_loaded_is_an_error(box: Bundle) -> None:
    box.spec["process"]["apparmorProfile"] = "nagt-nowhere"
    done = box.run("true")
    assert done.returncode != 0 and "no such file or directory" in done.stderr.lower(), done
    assert box.leaks() == []


def test_containers_get_the_default_profile(cli: Cli) -> None:
    assert cli.ok("run", "--rm", IMAGE, *CURRENT) == "nagaya-default (enforce)"
    assert cli.ok("run", "--rm", "--privileged", IMAGE, *CURRENT) == "unconfined"
    assert cli.ok("run", "--rm", "--security-opt", "apparmor=unconfined", IMAGE, *CURRENT) == "unconfined"
    named = cli.ok("run", "--rm", "--security-opt", f"apparmor={PROFILE}", IMAGE, *CURRENT)
    assert named == f"{PROFILE} (enforce)"
    assert "name=apparmor" in cli.ok("info", "--format", "{{.SecurityOptions}}")


def test_a_daemon_refuses_what_is_not_loaded(cli: Cli) -> None:
    said = cli("run", "--rm", "--security-opt", "apparmor=nagt-nowhere", IMAGE, "true")
    assert said.status == 127 and "unable to apply apparmor profile nagt-nowhere" in said.err, said


def test_exec_and_inspect_know_the_profile(cli: Cli) -> None:
    cli.ok("run", "-d", "--name", "box", IMAGE, "sleep", "600")
    assert cli.ok("exec", "box", *CURRENT) == "nagaya-default (enforce)"
    assert json.loads(cli.ok("inspect", "box"))[0]["AppArmorProfile"] == "nagaya-default"
    # the daemon may still end it, and one process of it another
    cli.ok("exec", "box", "sh", "-c", "sleep 100 & kill $! && ! wait $!")
    cli.ok("stop", "-t", "1", "box")


@pytest.mark.parametrize(
    "command",
    [
        "mount -t tmpfs none /mnt",
        "echo 1 > /proc/sys/kernel/randomize_va_space",
        "echo 1 > /proc/sys/vm/swappiness",
        "echo b > /proc/sysrq-trigger",
        "cat /sys/kernel/security/lsm",
    ],
)
def test_the_default_profile_guards_the_kernel_even_from_capabilities(cli: Cli, command: str) -> None:
    """What an unmasked /proc and all capabilities would allow, the profile still denies."""
    options = ("--cap-add", "ALL", "--security-opt", "systempaths=unconfined", "-v", "/sys:/sys", "-v",
               "/mnt:/mnt")  # fmt: skip
    said = cli("run", "--rm", *options, IMAGE, "sh", "-c", command)
    assert said.status != 0 and ("denied" in said.err), said
    free = cli("run", "--rm", *options, "--security-opt", "apparmor=unconfined", IMAGE, "sh", "-c",
               command.replace("echo b", "test -w"))  # fmt: skip
    assert free.status == 0, free


@pytest.mark.parametrize(
    "command", ["echo 4096 > /proc/sys/kernel/shmmni", "echo 9 > /proc/sys/kernel/msgmni", "ps", "mkdir /x"]
)
def test_the_default_profile_leaves_what_is_the_containers_own(cli: Cli, command: str) -> None:
    cli.ok("run", "--rm", "--security-opt", "systempaths=unconfined", IMAGE, "sh", "-c", command)
