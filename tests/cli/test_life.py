"""Containers from create to rm, and what is told of them on the way."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path

import pytest
from clients import Cli
from house import wait_for

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"
PATIENT = ("sh", "-c", "trap 'exit 5' TERM; trap 'echo hup' HUP; echo up; while :; do sleep 0.05; done")


def status(cli: Cli, name: str) -> str:
    return cli.ok("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", name)


def test_create_start_stop_rm(cli: Cli) -> None:
    identity = cli.ok("create", "--name", "box", IMAGE, *PATIENT)
    assert re.fullmatch("[0-9a-f]{64}", identity)
    assert status(cli, identity[:12]) == "created 0"
    assert cli.ok("start", "box") == "box"
    wait_for(lambda: cli("logs", "box").out == "up\n", 30, "the trap")
    assert cli("start", "box") == (0, "box\n", "")  # as nothing
    assert cli.ok("stop", "box") == "box"
    assert status(cli, "box") == "exited 5"
    assert cli("stop", "box") == (0, "box\n", "")
    assert cli.ok("rm", "box") == "box"
    said = cli("rm", "box")
    assert said.status == 1 and said.err.rstrip().endswith("No such container: box")


def test_stop_kills_what_does_not_listen(cli: Cli) -> None:
    cli.ok("run", "-d", "--name", "deaf", IMAGE, "sleep", "600")  # process 1 has no handler
    assert cli.ok("stop", "-t", "1", "deaf") == "deaf"
    assert status(cli, "deaf") == "exited 137"
    cli.ok("run", "-d", "--name", "other", "--stop-signal", "KILL", IMAGE, "sleep", "600")
    assert cli.ok("stop", "other") == "other"
    assert status(cli, "other") == "exited 137"


def test_kill_and_its_signals(cli: Cli) -> None:
    cli.ok("run", "-d", "--name", "box", IMAGE, *PATIENT)
    wait_for(lambda: cli("logs", "box").out == "up\n", 30, "the trap")
    assert cli.ok("kill", "-s", "SIGHUP", "box") == "box"
    wait_for(lambda: cli("logs", "box").out == "up\nhup\n", 20, "the signal")
    assert cli.ok("kill", "--signal", "15", "box") == "box"
    assert cli.ok("wait", "box") == "5"
    again = cli("kill", "box")
    assert again.status == 1 and "is not running" in again.err
    cli.ok("start", "box")
    wrong = cli("kill", "-s", "NOPE", "box")
    assert wrong.status == 1
    assert wrong.err.lower() == "error response from daemon: invalid signal: nope\n"
    assert cli.ok("kill", "box") == "box"
    assert cli.ok("wait", "box") == "137"


def test_wait_for_several(cli: Cli) -> None:
    cli.ok("run", "-d", "--name", "one", IMAGE, "sh", "-c", "sleep 0.3; exit 3")
    cli.ok("run", "-d", "--name", "two", IMAGE, "sh", "-c", "exit 4")
    assert cli.ok("wait", "one", "two") == "3\n4"
    said = cli("wait", "nosuch", "two")
    assert (said.status, said.out) == (1, "4\n")
    assert said.err.rstrip() == "Error response from daemon: No such container: nosuch"


def test_restart_keeps_files_and_counts_nothing(cli: Cli) -> None:
    cli.ok(
        "run", "-d", "--name", "box", IMAGE, "sh", "-c", "echo x >> /count; wc -l < /count; exec sleep 600"
    )
    first = cli.ok("inspect", "-f", "{{.State.StartedAt}}", "box")
    assert cli.ok("restart", "-t", "0", "box") == "box"
    wait_for(lambda: cli("logs", "box").out == "1\n2\n", 30, "the second start")
    second, count = cli.ok("inspect", "-f", "{{.State.StartedAt}} {{.RestartCount}}", "box").split()
    assert second > first and count == "0"


def test_pause(cli: Cli) -> None:
    cli.ok("run", "-d", "--name", "box", IMAGE, "sh", "-c", "while :; do echo x; sleep 0.05; done")
    assert cli.ok("pause", "box") == "box"
    assert cli.ok("ps", "--format", "{{.Status}}").endswith("(Paused)")
    quiet = cli.ok("logs", "box")
    assert cli.ok("inspect", "-f", "{{.State.Status}} {{.State.Paused}} {{.State.Running}}", "box") == (
        "paused true true"
    )
    again = cli("pause", "box")
    assert again.status == 1 and "is already paused" in again.err
    exec_ = cli("exec", "box", "true")
    assert exec_.status == 1 and "is paused, unpause the container before exec" in exec_.err
    assert cli.ok("logs", "box") == quiet
    assert cli.ok("unpause", "box") == "box"
    wait_for(lambda: len(cli.ok("logs", "box")) > len(quiet), 20, "more output")
    not_paused = cli("unpause", "box")
    assert not_paused.status == 1 and "is not paused" in not_paused.err


def test_rename(cli: Cli) -> None:
    cli.ok("create", "--name", "old", IMAGE)
    cli.ok("create", "--name", "taken", IMAGE)
    assert cli("rename", "old", "new") == (0, "", "")
    assert cli.ok("inspect", "-f", "{{.Name}}", "new") == "/new"
    assert cli("inspect", "old").status == 1
    clash = cli("rename", "new", "taken")
    assert clash.status == 1 and 'The container name "/taken" is already in use by container' in clash.err
    wrong = cli("rename", "new", "a b")
    assert wrong.status == 1 and "a b), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed" in wrong.err


def test_update_changes_the_kernel_s_mind(cli: Cli) -> None:
    cli.ok("run", "-d", "--name", "box", "--memory", "64m", IMAGE, "sleep", "600")
    read = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes || cat /sys/fs/cgroup/memory.max"
    assert cli.ok("exec", "box", "sh", "-c", read) == "67108864"
    assert cli.ok("update", "--memory", "32m", "--memory-swap", "64m", "--cpus", "0.25", "box") == "box"
    assert cli.ok("exec", "box", "sh", "-c", read) == "33554432"
    assert (
        cli.ok("inspect", "-f", "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}}", "box")
        == "33554432 250000000"
    )
    assert cli.ok("update", "--restart", "on-failure:3", "box") == "box"
    assert cli.ok("inspect", "-f", "{{json .HostConfig.RestartPolicy}}", "box") == (
        '{"Name":"on-failure","MaximumRetryCount":3}'
    )
    assert cli.ok("update", "--restart", "no", "box") == "box"


def test_ps(cli: Cli) -> None:
    one = cli.ok("run", "-d", "--name", "one", "-l", "tier=web", "-l", "x", IMAGE, "sleep", "600")
    two = cli.ok("create", "--name", "two", "-l", "tier=db", IMAGE, "echo", "a b")
    cli("run", "--name", "three", IMAGE, "sh", "-c", "exit 3")
    names = ["ps", "--format", "{{.Names}}"]
    assert cli.ok(*names) == "one"
    assert cli.ok(*names, "-a") == "three\ntwo\none"
    assert cli.ok("ps", "-aq", "--no-trunc").splitlines()[1:] == [two, one]
    assert cli.ok("ps", "-q") == one[:12]
    assert cli.ok(*names, "-l") == "three"
    assert cli.ok(*names, "-n", "2") == "three\ntwo"
    for words, found in {
        "status=exited": "three",
        "status=created": "two",
        "exited=3": "",
        "label=tier": "one",
        "name=^/o": "one",
        f"id={one[:10]}": "one",
        f"ancestor={IMAGE}": "one",
        "before=two": "one",
        "since=two": "",
    }.items():
        assert cli.ok(*names, "--filter", words) == found, words
    assert cli.ok(*names, "-a", "-f", "exited=3") == "three"
    assert cli.ok(*names, "-a", "-f", "since=two") == "three"
    assert cli.ok(*names, "-a", "-f", "label=tier=db") == "two"
    assert cli.ok(*names, "-a", "-f", "name=t", "-f", "status=created") == "two"
    table = cli.ok("ps", "-a").splitlines()
    assert re.fullmatch("CONTAINER ID   IMAGE {12}COMMAND +CREATED +STATUS +PORTS     NAMES", table[0])
    assert re.search(
        r'"sh -c \'exit 3\'" +(Less than a|\d+) seconds? ago +Exited \(3\) (Less|\d).* ago', table[1]
    )
    assert re.search(r"\"echo 'a b'\" .* Created ", table[2])
    assert re.search(r'"sleep 600" .* Up (Less than a|\d+) second', table[3])
    shown = json.loads(
        cli.ok("ps", "--format", "json") if cli.name != "docker20" else cli.ok("ps", "--format", "{{json .}}")
    )
    assert (shown["ID"], shown["Names"], shown["State"]) == (one[:12], "one", "running")
    assert shown["Labels"].split(",") == ["tier=web", "x="] or shown["Labels"].split(",") == [
        "x=",
        "tier=web",
    ]
    wrong = cli("ps", "-f", "nosuch=1")
    assert (
        wrong.status == 1
        and "invalid filter 'nosuch'" in wrong.err.replace("nvalid filter: 'n", "nvalid filter 'n").lower()
    )


def test_ps_shows_sizes(cli: Cli) -> None:
    cli("run", "--name", "big", IMAGE, "sh", "-c", "dd if=/dev/zero of=/file bs=1000 count=3000 2>/dev/null")
    shown = cli.ok("ps", "-a", "-s", "--format", "{{.Size}}")
    found = re.fullmatch(r"3(\.\d+)?MB \(virtual (\d(\.\d+)?)MB\)", shown)
    assert found and float(found[2]) > 3.5, shown
    size = json.loads(cli.ok("inspect", "-s", "big"))[0]
    assert 3_000_000 <= size["SizeRw"] < 3_200_000 < size["SizeRootFs"]


def test_top(cli: Cli) -> None:
    cli.ok("run", "-d", "--name", "box", IMAGE, "sh", "-c", "sleep 599 & sleep 601; :")
    wait_for(lambda: cli.ok("top", "box").count("\n") == 3, 20, "the processes")
    lines = cli.ok("top", "box").splitlines()
    assert lines[0].split() == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    assert [line.split(None, 7)[7] for line in lines[1:]] == [
        "sh -c sleep 599 & sleep 601; :",
        "sleep 599",
        "sleep 601",
    ]
    lines = cli.ok("top", "box", "-o", "pid,comm").splitlines()
    assert lines[0].split() == ["PID", "COMMAND"] and [line.split()[1] for line in lines[1:]] == [
        "sh",
        "sleep",
        "sleep",
    ]
    cli.ok("create", "--name", "idle", IMAGE)
    said = cli("top", "idle")
    assert said.status == 1 and "is not running" in said.err


def test_stats(cli: Cli) -> None:
    cli.ok("run", "-d", "--name", "box", "--memory", "64m", IMAGE, "sh", "-c", "while :; do :; done")
    template = "{{.Name}} {{.CPUPerc}} {{.MemUsage}} {{.PIDs}}"
    shown = cli.ok("stats", "--no-stream", "--format", template, "box")
    found = re.fullmatch(r"box (\d+\.\d+)% ([\d.]+)([KM]iB|B) / 64MiB (\d)", shown)
    assert found, shown
    assert float(found[1]) > 1 and found[4] == "1"
    header = cli.ok("stats", "--no-stream").splitlines()[0]
    assert header.split("  ")[0] == "CONTAINER ID" and "MEM USAGE / LIMIT" in header


def test_inspect(cli: Cli) -> None:
    identity = cli.ok("create", "--name", "box", "-e", "A=1", "-p", "80", "-v", "/data", IMAGE, "sleep", "1")
    shown = json.loads(cli.ok("inspect", "box"))
    assert len(shown) == 1 and shown[0]["Id"] == identity
    assert (shown[0]["Path"], shown[0]["Args"]) == ("sleep", ["1"])
    assert "A=1" in shown[0]["Config"]["Env"]
    assert shown[0]["Mounts"][0]["Destination"] == "/data" and re.fullmatch(
        "[0-9a-f]{64}", shown[0]["Mounts"][0]["Name"]
    )
    assert cli.ok("inspect", "-f", "{{.HostConfig.PortBindings}}", "box") in (
        "map[80/tcp:[{ }]]",
        "map[80/tcp:[{ 0}]]",
        "map[80/tcp:[map[HostIp: HostPort:]]]",
    )
    mixed = cli("inspect", "--format", "{{.Id}}", "box", "nosuch", IMAGE)
    assert mixed.status == 1
    assert mixed.out.splitlines()[0] == identity and mixed.out.splitlines()[1].startswith("sha256:")
    assert mixed.err.lower().rstrip() == "error: no such object: nosuch"
    wrong = cli("inspect", "--type", "container", IMAGE)
    assert wrong.status == 1 and wrong.err.lower().rstrip().endswith("no such container: " + IMAGE)


def test_events(cli: Cli) -> None:
    since = cli.ok("info", "-f", "{{.SystemTime}}")
    cli.ok("run", "--rm", "--name", "box", "-l", "mine=1", IMAGE, "true")
    template = "{{.Type}} {{.Action}} {{.Actor.Attributes.name}}"
    wait_for(lambda: "destroy" in _events(cli, since, template), 20, "the end")
    found = _events(cli, since, template).splitlines()
    mine = [line.split()[1] for line in found if line.startswith("container ") and line.endswith(" box")]
    assert [action for action in mine if action != "attach"] == ["create", "start", "die", "destroy"]
    died = cli.ok(
        "events", "--since", since, "--until", _now(cli), "-f", "event=die", "-f", "label=mine=1"
    ).splitlines()
    assert len(died) == 1
    assert re.search(
        r"container die [0-9a-f]{64} \(.*exitCode=0, .*image=nagaya/busybox, mine=1, name=box\)", died[0]
    )


def _events(cli: Cli, since: str, template: str) -> str:
    return cli.ok("events", "--since", since, "--until", _now(cli), "--format", template)


def _now(cli: Cli) -> str:
    return cli.ok("info", "-f", "{{.SystemTime}}")


def test_several_names_and_one_wrong(cli: Cli) -> None:
    for name in ("one", "two"):
        cli.ok("create", "--name", name, IMAGE, "sleep", "600")
    said = cli("start", "one", "nosuch", "two")
    assert said.status == 1 and said.out == "one\ntwo\n" and "No such container: nosuch" in said.err
    busy = cli("rm", "one")
    assert busy.status == 1
    assert "container" in busy.err and (
        "cannot remove" in busy.err or "You cannot remove a running container" in busy.err
    )
    assert cli.ok("rm", "-f", "one", "two") == "one\ntwo"


def test_restart_policies(cli: Cli) -> None:
    cli.ok("run", "-d", "--name", "box", "--restart", "on-failure:2", IMAGE, "sh", "-c", "echo try; exit 9")
    wait_for(
        lambda: cli.ok("inspect", "-f", "{{.RestartCount}} {{.State.Status}}", "box") == "2 exited",
        40,
        "two tries",
    )
    assert cli.ok("logs", "box") == "try\ntry\ntry"


def test_diff_export_and_prune(cli: Cli, tmp_path: Path) -> None:
    cli.ok("run", "--name", "box", IMAGE, "sh", "-c", "echo x > /new; rm /etc/group")
    assert sorted(cli.ok("diff", "box").splitlines()) == ["A /new", "C /etc", "D /etc/group"]
    cli.ok("export", "-o", str(tmp_path / "root.tar"), "box")
    with tarfile.open(tmp_path / "root.tar") as tar:
        assert {"new", "bin/busybox"} <= set(tar.getnames())
    assert cli("export", "-o", str(tmp_path / "no/where"), "box").status == 1
    assert cli("export", "nosuch").err.endswith("No such container: nosuch\n")
    assert list(tmp_path.iterdir()) == [tmp_path / "root.tar"]
    said = cli("container", "prune", input="n\n")
    assert said.out.startswith("WARNING! This will remove all stopped containers.\n")
    identity = cli.ok("ps", "-aq", "--no-trunc")
    assert identity
    pruned = []

    def prune() -> bool:
        pruned.append(cli("container", "prune", "-f", "--filter", "until=0s"))
        return pruned[-1].out != "Total reclaimed space: 0B\n"

    wait_for(prune, 5, "the next second, in which dockerd calls it older than now")
    assert pruned[-1].out.startswith(f"Deleted Containers:\n{identity}\n\nTotal reclaimed space: ")
    assert cli("container", "prune", "-f").out == "Total reclaimed space: 0B\n"


def test_what_is_null_is_shown_as_its_type(cli: Cli) -> None:
    cli.ok("create", "--name", "box", IMAGE, "true")
    nulls = "{{.HostConfig.CapAdd}} {{.HostConfig.PidsLimit}} {{.Config.Volumes}} {{.ExecIDs}}"
    assert cli.ok("inspect", "-f", nulls, "box") == "[] <nil> map[] []"


def test_health(cli: Cli) -> None:
    check = ("--health-cmd", "test -e /well", "--health-interval", "200ms", "--health-retries", "1")
    cli.ok("run", "-d", "--name", "box", *check, IMAGE, "sleep", "600")
    status = ("inspect", "-f", "{{.State.Health.Status}} {{json .Config.Healthcheck.Test}}", "box")
    told = ' ["CMD-SHELL","test -e /well"]'
    wait_for(lambda: cli.ok(*status) == "unhealthy" + told, 20, "its illness")
    cli.ok("exec", "box", "touch", "/well")
    wait_for(lambda: cli.ok(*status) == "healthy" + told, 20, "its health")
    listed = ("ps", "--filter", "health=healthy", "--format", "{{.Names}} {{.Status}}")
    assert re.fullmatch(r"box Up .* \(healthy\)", cli.ok(*listed))
    cli.ok("run", "-d", "--name", "other", "--no-healthcheck", IMAGE, "sleep", "600")
    assert "(" not in cli.ok("ps", "--filter", "name=other", "--format", "{{.Status}}")


def test_auto_remove_takes_its_volumes(cli: Cli) -> None:
    cli.ok("run", "-d", "--rm", "--name", "box", "-v", "/data", IMAGE, "sleep", "600")
    name = cli.ok("inspect", "-f", "{{(index .Mounts 0).Name}}", "box")
    source = cli.ok("inspect", "-f", "{{(index .Mounts 0).Source}}", "box")
    assert name in source
    assert cli.ok("stop", "-t", "0", "box") == "box"
    wait_for(lambda: cli("inspect", "box").status == 1, 20, "its removal")
