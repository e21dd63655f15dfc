"""`run`: what the container is like inside, what comes out, and with which exit code the client ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from clients import Cli

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"


def inside(cli: Cli, *flags: str, script: str) -> str:
    """The output of a shell in a container."""
    return cli.ok("run", "--rm", *flags, IMAGE, "sh", "-c", script)


def test_output_and_exit_code(cli: Cli) -> None:
    said = cli("run", "--rm", IMAGE, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert said == (7, "out\n", "err\n")


@pytest.mark.parametrize(
    ("command", "status", "word"),
    [
        (["/no/such/program"], 127, "no such file or directory"),
        (["nosuchprogram"], 127, "executable file not found in $PATH"),
        (["/etc/passwd"], 126, "permission denied"),
        (["/etc"], 126, "permission denied"),
    ],
)
def test_commands_that_do_not_start(cli: Cli, command: list[str], status: int, word: str) -> None:
    said = cli("run", "--rm", IMAGE, *command)
    # docker 20.10 knows one of the words for a directory only
    assert said.status == status or (cli.name == "docker20" and command == ["/etc"] and said.status == 125)
    assert said.out == ""
    lines = said.err.splitlines()
    if cli.name == "docker20":  # what waits in this client notes its own end, before or after the error
        lines = [
            line for line in lines if not line.endswith('"error waiting for container: context canceled"')
        ]
    first = lines[0]
    assert first.startswith(("docker: Error response from daemon: ", "nagaya: Error response from daemon: "))
    assert word in said.err or (command == ["/etc"] and "is a directory" in said.err)
    assert cli.ok("ps", "-aq") == ""


def test_death_by_a_signal_is_128_and_its_number(cli: Cli) -> None:
    for number in (9, 15):
        said = cli("run", "--rm", "--init", IMAGE, "sh", "-c", f"kill -{number} $$")
        assert said == (128 + number, "", "")


def test_environment_directory_user_and_host_name(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("# c\nFROM_FILE=1 2\n")
    script = "echo $A,$FROM_FILE,$HOME; pwd; id -u; id -g; hostname; echo $HOSTNAME"
    shown = inside(
        cli, "-e", "A=b c", "--env-file", str(tmp_path / "env"), "-w", "/new/dir", "-u", "1000:100",
        "--hostname", "web.example", script=script,
    )  # fmt: skip
    assert shown.splitlines() == ["b c,1 2,/", "/new/dir", "1000", "100", "web.example", "web.example"]
    assert inside(cli, "-u", "nobody", script="id -un; id -gn; echo $HOME") == "nobody\nnogroup\n/"


def test_limits_are_in_the_kernel(cli: Cli) -> None:
    script = (
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cpu/cpu.cfs_quota_us "
        "/sys/fs/cgroup/cpu/cpu.cfs_period_us /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/cpu/cpu.shares"
        " 2>/dev/null || cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max /sys/fs/cgroup/pids.max"
    )
    shown = inside(
        cli, "--memory", "64m", "--cpus", "0.5", "--pids-limit", "77", "--cpu-shares", "512", script=script
    )
    numbers = shown.split()
    assert numbers[:4] == ["67108864", "50000", "100000", "77"]
    assert numbers[4:] in (["512"], [])


def test_too_much_memory_kills_it_and_inspect_says_why(cli: Cli) -> None:
    cli("run", "--name", "greedy", "--memory", "16m", IMAGE, "sh", "-c", "exec tail /dev/zero")
    shown = cli.ok("inspect", "-f", "{{.State.OOMKilled}} {{.State.ExitCode}}", "greedy")
    assert shown == "true 137"


def test_read_only_and_writable_places(cli: Cli) -> None:
    script = "touch /x 2>&1; touch /tmp/y && echo tmp; touch /dev/shm/z && echo shm"
    shown = inside(cli, "--read-only", "--tmpfs", "/tmp:size=1m", script=script)
    assert shown.splitlines() == ["touch: /x: Read-only file system", "tmp", "shm"]
    script = "for f in hosts hostname resolv.conf; do echo >>/etc/$f || echo no; done 2>/dev/null"
    assert inside(cli, "--read-only", script=script).split() == ["no"] * 3
    assert inside(cli, script=script) == ""


def test_the_mark_of_a_container(cli: Cli) -> None:
    assert inside(cli, script="ls -l /.dockerenv | cut -c1-10; wc -c </.dockerenv").split() == [
        "-rwxr-xr-x",
        "0",
    ]


def test_times_nobody_understands(cli: Cli) -> None:
    cli.ok("create", "--name", "box", IMAGE)
    if cli.name != "docker20":
        for flag in ("since", "until"):
            said = cli("logs", f"--{flag}", "nosuch", "box")
            assert said.err == (
                f'invalid value for "{flag}": failed to parse value as time or duration: "nosuch"\n'
            )


def test_capabilities(cli: Cli) -> None:
    script = "grep CapEff /proc/self/status"
    usual = int(inside(cli, script=script).split()[1], 16)
    assert usual == 0xA80425FB
    added = inside(cli, "--cap-add", "NET_ADMIN", "--cap-drop", "chown", script=script)
    assert int(added.split()[1], 16) == (usual | 1 << 12) & ~1
    none = inside(cli, "--cap-drop", "ALL", "--cap-add", "KILL", script=script)
    assert int(none.split()[1], 16) == 1 << 5
    assert inside(cli, "-u", "1000", script=script).split()[1] == "0" * 16


def test_init_reaps_and_forwards(cli: Cli) -> None:
    shown = inside(cli, "--init", script="readlink /proc/1/exe; echo $$")
    first, own = shown.splitlines()
    assert first != "/bin/busybox" and own != "1"
    assert inside(cli, script="echo $$") == "1"


def test_namespaces_are_its_own_and_dev_is_docker_like(cli: Cli) -> None:
    shown = inside(
        cli, script="ls -d /proc/[0-9]* | wc -l; ls /dev | sort; stat -c %a /dev/null; cat /proc/self/comm"
    )
    lines = shown.splitlines()
    assert int(lines[0]) < 6
    devices = lines[1:-2]
    assert {"null", "zero", "full", "random", "urandom", "tty", "pts", "ptmx", "shm", "mqueue", "fd"} <= set(
        devices
    )
    assert lines[-2:] == ["666", "cat"]


def test_host_files(cli: Cli) -> None:
    shown = inside(
        cli, "--add-host", "other:10.1.2.3", "--hostname", "me", script="cat /etc/hosts /etc/hostname"
    )
    assert "10.1.2.3\tother" in shown and "127.0.0.1\tlocalhost" in shown and shown.endswith("\nme")
    shown = inside(cli, "--dns", "9.9.9.9", "--dns-search", "corp.example", script="cat /etc/resolv.conf")
    if cli.server.__class__.__name__ == "House":
        assert "nameserver 9.9.9.9" in shown and "search corp.example" in shown


def test_binds_and_volumes(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_text("from the host\n")
    tmp_path.chmod(0o755)
    source = str(tmp_path / "in")
    script = "cat /a/file; echo x > /a/back; touch /b/no 2>&1; echo kept > /v/file"
    shown = inside(
        cli, "-v", f"{source}:/a", "-v", f"{source}:/b:ro", "-v", "named:/v", script=script
    )  # fmt: skip
    assert shown.splitlines() == ["from the host", "touch: /b/no: Read-only file system"]
    assert (tmp_path / "in" / "back").read_text() == "x\n"
    shown = inside(cli, "--mount", "type=volume,source=named,target=/w,readonly", script="cat /w/file")
    assert shown == "kept"
    fresh = tmp_path / "made"
    assert inside(cli, "-v", f"{fresh}:/m", script="ls /m") == ""
    assert fresh.is_dir()
    # an anonymous volume starts with the image's files
    assert "passwd" in inside(cli, "-v", "/etc/", script="ls /etc")


def test_sysctl_ulimit_shm_and_devices(cli: Cli) -> None:
    script = (
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start; ulimit -n; ulimit -Hn; "
        "df -k /dev/shm | tail -1 | awk '{print $2}'; ls -l /dev/mine | cut -c1,2-10"
    )
    shown = inside(
        cli, "--sysctl", "net.ipv4.ip_unprivileged_port_start=80", "--ulimit", "nofile=100:200",
        "--shm-size", "8m", "--device", "/dev/zero:/dev/mine:r", script=script,
    )  # fmt: skip
    assert shown.splitlines()[:4] == ["80", "100", "200", "8192"]
    assert shown.splitlines()[4][0] == "c"


def test_what_is_masked(cli: Cli) -> None:
    script = (
        "cat /proc/kcore /proc/keys /proc/timer_list 2>/dev/null | wc -c; ls /sys/firmware | wc -l; "
        "echo x > /proc/sys/kernel/hostname"
    )
    said = cli("run", "--rm", IMAGE, "sh", "-c", script)
    assert said.out.split() == ["0", "0"]
    assert "Read-only" in said.err


def test_detached_prints_the_id_only(cli: Cli) -> None:
    identity = cli.ok("run", "-d", "--name", "box", IMAGE, "sleep", "60")
    assert len(identity) == 64
    assert cli.ok("inspect", "-f", "{{.Id}} {{.Name}} {{.State.Status}}", "box") == f"{identity} /box running"


def test_detached_that_does_not_start(cli: Cli) -> None:
    said = cli("run", "-d", IMAGE, "nosuchprogram")
    assert said.status == 127
    assert len(said.out.strip()) == 64  # the container was made
    assert cli.ok("ps", "-aq", "--no-trunc") == said.out.strip()
    assert cli.ok("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", said.out.strip()) == "created 127"


def test_cidfile_and_labels(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "cid"
    identity = cli.ok("create", "--cidfile", str(path), "--label", "a=b", "--label", "c", IMAGE)
    assert path.read_text() == identity
    assert cli.ok("inspect", "-f", "{{json .Config.Labels}}", identity) == '{"a":"b","c":""}'
    again = cli("create", "--cidfile", str(path), IMAGE)
    assert again.status in (1, 125) and "container ID file found" in again.err


def test_stdin_goes_in_and_ends(cli: Cli) -> None:
    text = "".join(f"line {n}\n" for n in range(2000))
    assert cli("run", "--rm", "-i", IMAGE, "cat", input=text) == (0, text, "")
    assert cli("run", "--rm", "-i", IMAGE, "wc", "-c", input=b"x" * 3_000_000) == (0, "3000000\n", "")
    assert cli("run", "--rm", IMAGE, "cat", input="not passed on") == (0, "", "")


def test_attach_chooses_streams(cli: Cli) -> None:
    said = cli("run", "--rm", "-a", "stderr", IMAGE, "sh", "-c", "echo out; echo err >&2")
    assert said == (0, "", "err\n")


def test_a_lot_of_output_comes_whole(cli: Cli) -> None:
    said = cli("run", "--rm", IMAGE, "sh", "-c", "seq 1 100000; seq 1 1000 >&2")
    assert said.status == 0
    assert said.out == "".join(f"{n}\n" for n in range(1, 100001))
    assert said.err == "".join(f"{n}\n" for n in range(1, 1001))


def test_entrypoint(cli: Cli) -> None:
    assert cli.ok("run", "--rm", "--entrypoint", "echo", IMAGE, "a", "b") == "a b"
