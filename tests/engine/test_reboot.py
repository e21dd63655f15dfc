"""After a reboot: no process, no mount, no interface, no run directory of before; containers start as their
restart policies say."""

from __future__ import annotations

import json

import pytest
from house import House, wait_for

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"


def states(house: House) -> dict[str, str]:
    lines = house.ok("ps", "-a", "--format", "{{.Names}} {{.State}}").splitlines()
    return dict(line.split() for line in lines)


def test_policies_after_a_reboot() -> None:
    with House() as house:
        policies = {"always": "always", "unless": "unless-stopped", "failure": "on-failure:3", "no": "no"}
        for name, policy in policies.items():
            house.ok("run", "-d", "--name", name, "--restart", policy, IMAGE, "sleep", "600")
            house.ok("run", "-d", "--name", f"{name}-stopped", "--restart", policy, IMAGE, "sleep", "600")
            house.ok("stop", "-t", "0", f"{name}-stopped")
        house.ok("create", "--name", "created", "--restart", "always", IMAGE, "sleep", "600")
        house.ok("run", "-d", "--name", "well", "--restart", "on-failure", IMAGE, "true")
        house.ok("run", "-d", "--name", "gone", "--rm", IMAGE, "sleep", "600")
        crash = ("sh", "-c", "sleep 0.1; exit 3")
        house.ok("run", "-d", "--name", "crashing", "--restart", "on-failure", IMAGE, *crash)
        joins = ("--network", "container:always", "--restart", "always", "-v", "kept:/kept")
        house.ok("run", "-d", "--name", "joined", *joins, IMAGE, "sh", "-c", "date > /kept/f; exec sleep 600")
        linked = ("--link", "always:db", "--restart", "always")
        house.ok("run", "-d", "--name", "linked", *linked, IMAGE, "sleep", "600")
        house.ok("wait", "well")

        house.reboot()
        house.start()
        up = {"always", "unless", "failure", "always-stopped", "joined", "linked", "crashing"}
        wait_for(
            lambda: {n for n, s in states(house).items() if s in ("running", "restarting")} == up,
            30,
            "all up",
        )
        found = states(house)
        assert "gone" not in found
        assert found["created"] == "created"
        assert {found[f"{n}-stopped"] for n in ("unless", "failure", "no")} == {"exited"}
        (no,) = json.loads(house.ok("inspect", "no"))
        assert (no["State"]["ExitCode"], no["State"]["Pid"]) == (255, 0)
        again = house.ok("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "always")
        assert f" {again}/24 " in house.ok("exec", "joined", "ip", "-o", "addr")
        assert f"{again}\tdb " in house.ok("exec", "linked", "cat", "/etc/hosts")
        # the back-off goes on, too: it is started more than once
        before = house.ok("inspect", "-f", "{{.State.StartedAt}}", "crashing")
        wait_for(
            lambda: house.ok("inspect", "-f", "{{.State.StartedAt}}", "crashing") != before, 60, "another try"
        )
        # what it had is removed with it, as always
        assert house.ok("rm", "-f", *found) and states(house) == {}
