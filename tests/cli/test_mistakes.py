"""What people get wrong: one line that names it, docker's exit code, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from clients import Cli, available
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
    assert cli("nosuchverb").status == 1


def test_removing_by_force_what_is_not_there(cli: Cli) -> None:
    for argv in (("rm", "-f", "nosuch"), ("rmi", "-f", "nosuch"), ("container", "rm", "-f", "nosuch")):
        said = cli(*argv)
        assert said.status == 0 and said.out == "" and "No such" in said.err, (argv, said)
    cli.ok("create", "--name", "box", IMAGE)
    said = cli("rm", "-f", "nosuch", "box")
    assert said.status == 0 and said.out.split() == ["box"]


WRONG = [
    (["run"], 1),
    (["run", "--rm=maybe", "x"], 125),
    (["run", "--memory"], 125),
    (["run", "--pull", "nosuch", IMAGE], 125),
    (["run", "--rm", "--restart", "always", IMAGE], 125),
    (["create", "--rm", "--restart", "always", IMAGE], 125),
    (["create"], 1),
    (["exec", "x"], 1),
    (["exec", "--env-file", "/no/such/file", "a", "b"], 1),
    (["port"], 1),
    (["port", "a", "b", "c"], 1),
    (["rename", "a"], 1),
    (["history"], 1),
    (["images", "a", "b"], 1),
    (["stop", "-t", "x", "c"], 125),
    (["update", "x"], 1),
    (["ps", "--filter", "x"], 125),
    (["ps", "x"], 1),
    (["container", "ls", "--nosuch"], 125),
    (["container", "ls", "x"], 1),
    (["container", "nosuch"], 1),
    (["network", "nosuch"], 1),
    (["inspect", "--type", "nosuch", "x"], 1),
    (["--nosuch", "ps"], 125),
    (["-Z", "ps"], 125),
    (["-H"], 125),
    (["start", "nosuch", "nosuch2"], 1),
    (["rename", "nosuch", "other"], 1),
    (["inspect", "nosuch"], 1),
    (["inspect", "--type", "image", "nosuch"], 1),
    (["image", "inspect", "nosuch"], 1),
    (["volume", "inspect", "nosuch"], 1),
    (["network", "inspect", "nosuch"], 1),
    (["kill", "nosuch"], 1),
    (["wait", "nosuch"], 1),
    (["logs", "nosuch"], 1),
    (["tag", "nosuch", "x"], 1),
    (["rmi", "nosuch"], 1),
    (["exec", "nosuch", "true"], 1),
    (["stats", "--no-stream", "nosuch"], 1),
    (["run", "--pull", "never", "nosuch"], 125),
    (["run", "--cidfile", "/etc/passwd", IMAGE], 125),
    (["create", "--cidfile", "/etc/passwd", IMAGE], 1),
]


def test_exit_codes_of_mistakes(cli: Cli) -> None:
    if cli.name == "docker20":
        pytest.skip("the codes are those of the present client")
    found = {tuple(argv): cli(*argv).status for argv, _ in WRONG}
    assert found == {tuple(argv): status for argv, status in WRONG}


def test_what_our_command_says_is_what_dockers_says(cli: Cli) -> None:
    """Word for word, with our name for docker's."""
    if cli.name != "nagaya" or not available("docker"):
        pytest.skip("compares nagaya with docker")
    peer = Cli(cli.server, "docker")
    own_words = {("run", "--rm=maybe", "x"), ("stop", "-t", "x", "c"), ("ps", "--filter", "x")}
    own_words |= {("inspect", "--type", "nosuch", "x"), ("images", "a", "b")}  # "SRun", says docker 28
    # one line is enough where flags and words are right: no pointer to the help, nothing said twice
    own_words |= {("start", "nosuch", "nosuch2"), ("rename", "nosuch", "other")}
    own_words |= {("run", "--pull", "never", "nosuch"), ("run", "--cidfile", "/etc/passwd", IMAGE)}
    for argv, _ in WRONG:
        if tuple(argv) not in own_words:
            ours, theirs = cli(*argv), peer(*argv)
            assert ours.err.replace("nagaya", "docker") == theirs.err.replace("nagaya", "docker"), argv
            assert ours.out == theirs.out, argv


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
