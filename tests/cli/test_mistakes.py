"""What people get wrong: one line that names it, docker's exit code, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from clients import Cli
from house import House

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"

RUN = [
    (["--memory", "1k"], "Minimum memory limit allowed is 6MB"),
    (["--memory", "lots"], "invalid"),
    (["--cpus", "1000"], "CPUs available"),
    (["--cpus", "x"], "cpus"),
    (["--cpu-period", "5"], "CPU cfs period"),
    (["--cpuset-cpus", "a-b"], "cpuset"),
    (["--pids-limit", "many"], "pids-limit"),
    (
        ["--memory-swap", "10m", "--memory", "20m"],
        "Minimum memoryswap limit should be larger than memory limit",
    ),
    (["--cap-add", "NOSUCH"], "CAP_NOSUCH"),
    (["--cap-drop", "NOSUCH"], "CAP_NOSUCH"),
    (["--name", "a b"], "Invalid container name (a b), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"),
    (["--name", "x"], "Invalid container name (x), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"),
    (["-v", "/a:/b:nosuch"], "invalid mode: nosuch"),
    (["-v", "rel/path:/b"], "includes invalid characters for a local volume name"),
    (["-v", "/a:/"], "destination can't be '/'"),
    (["-v", "/a:rel"], "mount path must be absolute"),
    (["--mount", "type=bind,source=/no/such/dir,target=/x"], "bind source path does not exist: /no/such/dir"),
    (["--mount", "type=nosuch,target=/x"], "mount type unknown"),
    (["--mount", "type=bind,source=/a"], "target"),
    (["-v", "/tmp:/x", "--tmpfs", "/x"], "Duplicate mount point: /x"),
    (["-w", "relative"], "the working directory 'relative' is invalid, it needs to be an absolute path"),
    (["-u", "nosuchuser"], "nosuchuser"),
    (["-p", "99999:80"], "invalid hostPort: 99999"),
    (["-p", "abc"], "invalid containerPort: abc"),
    (["-p", "1.2.3:80:80"], "1.2.3"),
    (["--network", "nosuch"], "network nosuch not found"),
    (["--network", "container:nosuch"], "No such container: nosuch"),
    (["--pid", "nosuch"], "PID mode"),
    (["--ipc", "nosuch"], "IPC mode"),
    (["--uts", "nosuch"], "UTS mode"),
    (["--runtime", "nosuch"], "nosuch"),
    (["--log-driver", "nosuch"], "nosuch"),
    (["--ulimit", "nosuch=1"], "ulimit"),
    (["--ulimit", "nofile=5:4"], "nofile"),
    (["--sysctl", "kernel.nosuch=1"], "kernel.nosuch"),
    (["--restart", "nosuch"], "nosuch"),
    (["--rm", "--restart", "always"], "--restart"),
    (["--shm-size", "-5"], "shm"),
    (["--oom-score-adj", "5000"], "[-1000, 1000]"),
    (["--security-opt", "nosuch=1"], "--security-opt"),
    (["--device", "/no/such/device"], "/no/such/device"),
    (["--env-file", "/no/such/file"], "open /no/such/file: no such file or directory"),
    (["--add-host", "x"], "add-host"),
    (["--hostname", "a" * 65], "hostname"),
    (["--stop-signal", "NOPE"], "NOPE"),
    (["--nosuchflag"], "unknown flag: --nosuchflag"),
    (["-Z"], "unknown shorthand flag: 'Z' in -Z"),
]


def test_run(cli: Cli) -> None:
    wrong = []
    for flags, says in RUN:
        rm = () if "--restart" in flags else ("--rm",)
        said = cli("run", *rm, *flags, IMAGE, "true")
        good = said.status in (1, 125, 126, 127) and says.lower() in said.err.lower() and not said.out
        if cli.name == "nagaya":  # docker adds its help, and so do we where the flags are wrong
            good = good and len([line for line in said.err.splitlines() if line]) <= 3
        if not good:
            wrong.append((flags, says, said))
    assert wrong == []
    assert cli.ok("ps", "-aq") == ""
    if isinstance(cli.server, House):
        assert cli.server.leaks() == []


def test_a_name_that_is_taken(cli: Cli) -> None:
    identity = cli.ok("create", "--name", "box", IMAGE)
    said = cli("run", "--name", "box", IMAGE)
    assert said.status == 125
    assert (
        f'Conflict. The container name "/box" is already in use by container "{identity}". '
        "You have to remove (or rename) that container to be able to reuse that name." in said.err
    )


def test_unknown_names_everywhere(cli: Cli) -> None:
    verbs = ("start", "stop", "kill", "rm", "restart", "pause", "unpause", "wait", "logs", "top", "port",
             "attach")  # fmt: skip
    for verb in verbs:
        said = cli(verb, "nosuch")
        assert said.status == 1 and said.out == "", (verb, said)
        assert "No such container: nosuch" in said.err, (verb, said)
    assert cli("update", "--cpus", "1", "nosuch").err.rstrip().endswith("No such container: nosuch")
    assert "No such container: nosuch" in cli("rename", "nosuch", "other").err
    assert cli("rm", "-f", "nosuch").status in (0, 1)
    assert cli("nosuchverb").status in (1, 125)


def test_an_ambiguous_prefix(cli: Cli) -> None:
    made: dict[str, str] = {}
    for _ in range(40):  # 16 first digits: two of them meet soon
        identity = cli.ok("create", IMAGE)
        if identity[0] in made:
            break
        made[identity[0]] = identity
    said = cli("rm", identity[0])
    assert said.status == 1
    assert identity[0] in said.err and ("ultiple IDs found" in said.err or "No such container" in said.err)
    assert cli.ok("rm", identity[:40]) == identity[:40]


def test_a_file_where_a_directory_should_be(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = cli("run", "--rm", "-v", f"{tmp_path}/file/below:/x", IMAGE, "true")
    assert said.status == 125 and "not a directory" in said.err
    said = cli("run", "--rm", "-v", f"{tmp_path}/file:/etc", IMAGE, "true")
    assert said.status in (125, 126, 127) and "not a directory" in said.err.lower()
    assert cli.ok("ps", "-aq") == ""


def test_no_daemon_there(cli: Cli) -> None:
    said = cli("-H", "unix:///no/such/socket", "ps")
    assert said.status == 1 and said.out == ""
    assert "annot connect to the " in said.err or "failed to connect to the docker API" in said.err
    wrong = cli("-H", "nosuch:///x", "ps")
    assert wrong.status == 1 and "nosuch" in wrong.err


def test_no_host_in_the_environment_is_the_default(cli: Cli) -> None:
    here = str(cli.server.environment["DOCKER_HOST"])
    said = cli("-H", here, "ps", "-q", environment={"DOCKER_HOST": "unix:///no", "NAGAYA_HOST": "unix:///no"})
    assert said == (0, "", "")
