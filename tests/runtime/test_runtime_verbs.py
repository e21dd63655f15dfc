"""The verbs of a low-level runtime, as runc defines them: output, exit codes, messages, state."""

from __future__ import annotations

import array
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from bundles import Bundle, cgroups_named, wait_until
from clients import Terminal

pytestmark = pytest.mark.root


def test_run_hands_on_output_and_exit_code(box: Bundle) -> None:
    done = box.run("sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert box.call("state", box.id).returncode == 1


def test_run_reports_a_killed_process_as_128_and_the_signal(box: Bundle) -> None:
    assert box.run("sh", "-c", "kill -9 $$").returncode in (0, 137)  # PID 1 is immune to its own signals
    box.spec["linux"]["namespaces"] = [n for n in box.spec["linux"]["namespaces"] if n["type"] != "pid"]
    assert box.run("sh", "-c", "kill -9 $$").returncode == 137


def test_run_passes_stdin_and_forwards_signals(box: Bundle) -> None:
    box.spec["process"]["args"] = [
        "sh",
        "-c",
        'trap "echo got; exit 3" TERM; read x; echo $x; while :; do sleep 0.05; done',
    ]
    box.save()
    process = subprocess.Popen(
        box.argv("run", "--bundle", str(box.path), box.id), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"hello\n")
    process.stdin.close()
    assert process.stdout.readline() == b"hello\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == b"got\n"
    assert process.wait(30) == 3
    process.stdout.close()


def test_the_life_of_a_container(box: Bundle) -> None:
    box.spec["annotations"] = {"org.example": "yes"}
    box.spec["process"]["args"] = ["sleep", "1000"]
    box.save()
    pid_file = box.base / "pid"
    box.ok("create", "--bundle", str(box.path), "--pid-file", str(pid_file), box.id)
    state = box.state()
    assert list(state) == [
        "ociVersion",
        "id",
        "pid",
        "status",
        "bundle",
        "rootfs",
        "created",
        "annotations",
        "owner",
    ]
    assert state["status"] == "created"
    assert state["pid"] == int(pid_file.read_text())
    assert (state["bundle"], state["rootfs"]) == (str(box.path), str(box.rootfs))
    assert state["annotations"] == {"org.example": "yes"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z", state["created"])
    assert Path(f"/proc/{state['pid']}/cmdline").read_bytes() != b"sleep\x001000\0"
    box.ok("start", box.id)
    wait_until(lambda: Path(f"/proc/{state['pid']}/cmdline").read_bytes() == b"sleep\x001000\0")
    assert box.status() == "running"
    refused = box.call("delete", box.id)
    assert refused.returncode == 1
    assert f"cannot delete container {box.id} that is not stopped: running" in refused.stderr
    box.ok("kill", box.id, "KILL")
    wait_until(lambda: box.status() == "stopped")
    assert box.state()["pid"] == 0
    box.ok("delete", box.id)
    assert "container does not exist" in box.call("state", box.id).stderr


def test_delete_of_a_created_and_forced_of_a_running_one(box: Bundle) -> None:
    box.save()
    box.ok("create", "--bundle", str(box.path), box.id)
    box.ok("delete", box.id)
    box.start()
    box.ok("delete", "--force", box.id)
    assert box.leaks() == []
    box.ok("delete", "--force", box.id)  # of nothing: no error


# verb and arguments after it -> the message, for a container that does not exist
ABSENT = ("state", "start", "kill", "delete", "exec", "ps", "pause", "resume", "update", "events")


@pytest.mark.parametrize("verb", ABSENT)
def test_no_such_container(box: Bundle, verb: str) -> None:
    done = box.call(verb, box.id, *(["true"] if verb == "exec" else []))
    assert done.returncode == (255 if verb == "exec" else 1)
    assert "container does not exist" in done.stderr


def test_wrong_order_is_refused_with_runcs_words(box: Bundle) -> None:
    def refused(message: str, *arguments: str, code: int = 1) -> None:
        done = box.call(*arguments)
        assert done.returncode == code, (arguments, done)
        assert message in done.stderr

    box.start()
    refused("cannot start an already running container", "start", box.id)
    refused("container with given ID already exists", "create", "--bundle", str(box.path), box.id)
    refused("container not paused", "resume", box.id)
    refused('unknown signal \\"BOGUS\\"', "kill", box.id, "BOGUS")
    refused("invalid argument", "kill", box.id, "99")
    box.ok("kill", box.id, "0")
    refused("duration interval must be greater than 0", "events", "--interval", "0s", box.id)
    refused("invalid format option", "ps", "--format", "xml", box.id)
    refused("invalid format option", "list", "--format", "xml")
    box.ok("pause", box.id)
    refused("cannot exec in a paused container", "exec", box.id, "true", code=255)
    refused("container not running", "pause", box.id)
    box.ok("resume", box.id)
    box.ok("kill", box.id, "SIGKILL")
    wait_until(lambda: box.status() == "stopped")
    refused("cannot start a container that has stopped", "start", box.id)
    refused("cannot exec in a stopped container", "exec", box.id, "true", code=255)
    refused("container not running", "kill", box.id, "TERM")
    refused("container not running", "pause", box.id)
    refused("container not running", "update", "--memory", "64m", box.id)
    refused("is not running", "events", "--stats", box.id)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["bogus"], 3, "No help topic for 'bogus'"),
        (["--bogus", "list"], 1, "flag provided but not defined: -bogus"),
        (["run", "--bogus", "x"], 1, "flag provided but not defined: -bogus"),
        (["state"], 1, "requires exactly 1 argument(s)"),
        (["kill"], 1, "requires a minimum of 1 argument(s)"),
        (["--log-format", "xml", "list"], 1, "invalid log-format: xml"),
        (["run", "a/b"], 1, "invalid container ID format"),
        (["run", "--bundle", "/nonexistent", "a"], 1, "/nonexistent: no such file or directory"),
    ],
)
def test_a_wrong_command_line(box: Bundle, arguments: list[str], code: int, message: str) -> None:
    box.save()
    done = box.call(*arguments, cwd=box.path)
    assert done.returncode == code
    assert message in (done.stdout + done.stderr).replace('\\"', '"')


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nope"], 'exec: "nope": executable file not found in $PATH'),
        (["/nope"], 'exec: "/nope": stat /nope: no such file or directory'),
        (["/plain"], 'exec: "/plain": permission denied'),
        (["/script"], "no such file or directory"),  # its interpreter is missing
        (["/garbage"], "exec format error"),
    ],
)
def test_an_executable_that_is_none(box: Bundle, args: list[str], message: str) -> None:
    for name, content, mode in (
        ("plain", "x", 0o644),
        ("script", "#!/nope\n", 0o755),
        ("garbage", "\x01\x02\x03", 0o755),
    ):
        (box.rootfs / name).write_text(content)
        (box.rootfs / name).chmod(mode)
    log = box.base / "log"
    box.spec["process"]["args"] = args
    box.save()
    done = box.call("--log", str(log), "--log-format", "json", "run", "--bundle", str(box.path), box.id)
    assert done.returncode == 1
    assert message in done.stderr
    assert box.leaks() == []
    if args[0] in ("/script", "/garbage") and not box.is_ours:
        return  # what execve(2) itself refuses, runc's init tells stderr alone
    last = json.loads(log.read_text().splitlines()[-1])
    assert (last["level"], message in last["msg"], bool(last["time"])) == ("error", True, True)
    assert "unable to start container process: " in last["msg"]


def test_exec(box: Bundle) -> None:
    box.start()
    assert box.ok("exec", box.id, "echo", "hi") == "hi\n"
    assert box.call("exec", box.id, "sh", "-c", "exit 9").returncode == 9
    assert box.call("exec", box.id, "sh", "-c", "kill -9 $$").returncode == 137
    environment = box.ok("exec", "--env", "A=b", "--cwd", "/tmp", box.id, "env").splitlines()
    assert {"A=b", "TERM=xterm"} <= set(environment)
    assert box.ok("exec", "--cwd", "/tmp", box.id, "pwd") == "/tmp\n"
    assert box.ok("exec", "--user", "5:6", box.id, "id").startswith("uid=5(five) gid=6")
    assert box.ok("exec", "-u", "5", "-g", "7", "-g", "8", box.id, "id", "-G").split()[-2:] == ["7", "8"]
    assert "NoNewPrivs:\t1" in box.ok("exec", "--no-new-privs", box.id, "cat", "/proc/self/status")
    assert box.ok("exec", box.id, "cat", "/proc/1/cmdline") == "sleep\x001000\0"
    for arguments, message in (
        (["nope"], 'exec: \\"nope\\": executable file not found in $PATH'),
        (["/nope"], "stat /nope: no such file or directory"),
    ):
        done = box.call("exec", box.id, *arguments)
        assert done.returncode == 255
        assert "exec failed: unable to start container process: exec: " in done.stderr
        assert message in done.stderr
    done = box.call("exec", "--cwd", "/nope", box.id, "true")
    assert (done.returncode, "set in config.json failed" in done.stderr) == (255, True)


def test_exec_of_a_process_document_detached_with_a_pid_file(box: Bundle) -> None:
    box.start()
    pid_file, document = box.base / "pid", box.base / "process.json"
    process = {
        **box.spec["process"],
        "args": ["sleep", "777"],
        "user": {"uid": 5, "gid": 6, "additionalGids": [9]},
    }
    document.write_text(json.dumps(process))
    box.ok("exec", "--detach", "--pid-file", str(pid_file), "--process", str(document), box.id)
    pid = int(pid_file.read_text())
    status = Path(f"/proc/{pid}/status").read_text()
    assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\x00777\0"
    assert "Uid:\t5\t5\t5\t5" in status and "Groups:\t9" in status
    assert pid in json.loads(box.ok("ps", "--format", "json", box.id))


def test_exec_caps_are_added_but_never_inheritable(box: Bundle) -> None:
    box.start()
    status = box.ok("exec", "--cap", "CAP_SYS_PTRACE", box.id, "cat", "/proc/self/status")
    sets = dict(re.findall(r"(Cap\w+):\t(\w+)", status))
    assert int(sets["CapEff"], 16) >> 19 & 1
    assert int(sets["CapInh"], 16) == int(sets["CapAmb"], 16) == 0


def test_list(box: Bundle) -> None:
    box.state_root.mkdir()
    assert box.ok("list", "--format", "json").strip() == "null"
    box.start()
    assert box.ok("list", "-q") == f"{box.id}\n"
    table = box.ok("list").splitlines()
    assert table[0].split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    assert table[1].split()[::2][:2] == [box.id, "running"]
    (entry,) = json.loads(box.ok("list", "--format", "json"))
    assert (entry["id"], entry["status"], entry["owner"]) == (box.id, "running", "root")


def test_ps(box: Bundle) -> None:
    box.start()
    pid = box.state()["pid"]
    assert json.loads(box.ok("ps", "--format", "json", box.id)) == [pid]
    lines = box.ok("ps", box.id).splitlines()
    assert "CMD" in lines[0] and len(lines) == 2 and "sleep 1000" in lines[1]
    assert box.ok("ps", box.id, "-o", "pid,comm").split()[2:] == [str(pid), "sleep"]


def test_pause_resume_update_and_events(box: Bundle) -> None:
    box.start("sh", "-c", "while :; do :; done")
    pid = box.state()["pid"]

    def used() -> int:
        return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))

    box.ok("pause", box.id)
    assert box.status() == "paused"
    before = used()
    time.sleep(0.1)
    assert used() == before
    box.ok("resume", box.id)
    assert box.status() == "running"
    box.ok("update", "--memory", "64m", "--pids-limit", "77", "--cpu-share", "512", box.id)
    document = json.loads(box.ok("events", "--stats", box.id))
    assert (document["type"], document["id"]) == ("stats", box.id)
    assert document["data"]["memory"]["usage"]["limit"] == 64 << 20
    assert document["data"]["pids"]["limit"] == 77
    assert document["data"]["cpu"]["usage"]["total"] > 0
    box.ok("update", "--resources", "-", box.id, stdin=_pipe('{"pids":{"limit":78}}'))
    assert json.loads(box.ok("events", "--stats", box.id))["data"]["pids"]["limit"] == 78


def _pipe(text: str) -> int:
    reader, writer = os.pipe()
    os.write(writer, text.encode())
    os.close(writer)
    return reader


def test_kill_all_reaches_every_process_of_the_cgroup(box: Bundle) -> None:
    box.spec["linux"]["namespaces"] = [n for n in box.spec["linux"]["namespaces"] if n["type"] != "pid"]
    box.start("sh", "-c", "sleep 1001 & sleep 1002 & wait")
    wait_until(lambda: len(json.loads(box.ok("ps", "--format", "json", box.id))) == 3)
    pids = json.loads(box.ok("ps", "--format", "json", box.id))
    box.ok("kill", "--all", box.id, "KILL")
    wait_until(lambda: all(_dead(pid) for pid in pids))


def _dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except OSError:
        return True


def test_spec_writes_a_bundle_that_runs_and_never_overwrites(box: Bundle) -> None:
    box.ok("spec", cwd=box.path)
    document = json.loads((box.path / "config.json").read_text())
    assert document["process"]["args"] == ["sh"]
    again = box.call("spec", "--bundle", str(box.path))
    assert (again.returncode, "File config.json exists. Remove it first" in again.stderr) == (1, True)
    document["process"]["terminal"] = False
    document["process"]["args"] = ["hostname"]
    (box.path / "config.json").write_text(json.dumps(document))
    assert box.ok("run", "--bundle", str(box.path), box.id).strip() == document["hostname"]


def test_features(box: Bundle) -> None:
    document = json.loads(box.ok("features"))
    assert document["ociVersionMin"].startswith("1.")
    assert {"rbind", "ro", "rro", "bind"} <= set(document["mountOptions"])
    assert {"mount", "pid", "user"} <= set(document["linux"]["namespaces"])
    assert document["linux"]["seccomp"]["enabled"] is True


def test_version_has_the_lines_that_engines_parse(box: Bundle) -> None:
    lines = box.ok("--version").splitlines()
    assert re.fullmatch(r"\S+ version \d\S*", lines[0])
    assert any(re.fullmatch(r"spec: 1\.\d+\.\S+", line) for line in lines)


def test_preserved_fds_and_no_others(box: Bundle) -> None:
    box.spec["process"]["args"] = ["sh", "-c", "echo x >&3; ls /proc/self/fd"]
    box.save()
    argv = box.argv("run", "--bundle", str(box.path), "--preserve-fds", "1", box.id)
    done = subprocess.run(
        ["sh", "-c", 'exec 3>given 5>other; exec "$@"', "sh", *argv],
        cwd=box.base,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert (box.base / "given").read_text() == "x\n"
    assert set(done.stdout.split()) <= {"0", "1", "2", "3", "4"}  # 4 is ls's own


def test_a_missing_preserved_fd_is_refused(box: Bundle) -> None:
    done = box.run("true", options=("--preserve-fds", "40"))
    assert (done.returncode, "preserved-fd" in done.stderr) == (1, True)


def test_terminal_in_the_foreground(box: Bundle) -> None:
    box.spec["process"]["terminal"] = True
    box.spec["process"]["args"] = [
        "sh",
        "-c",
        "tty; ls -l /dev/console; stty size; read line; echo got $line",
    ]
    box.save()
    pid, master = pty.fork()
    if pid == 0:
        os.execv(box.runtime, box.argv("run", "--bundle", str(box.path), box.id))
    os.write(master, b"hello\n")
    text = _read_all(master)
    os.close(master)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, text
    assert "/dev/pts/0" in text or "/dev/console" in text
    assert "got hello" in text


def test_a_terminal_in_the_foreground_that_changes_its_size(box: Bundle) -> None:
    """SIGWINCH is ours: the container's terminal gets the size, and its program a signal of its own."""
    box.spec["process"]["terminal"] = True
    box.spec["process"]["args"] = [
        "sh",
        "-c",
        "trap 'stty size; exit 3' WINCH; echo ready; while :; do sleep 0.05; done",
    ]
    box.save()
    argv = box.argv("run", "--bundle", str(box.path), box.id)
    with Terminal(argv, {"PATH": os.environ["PATH"]}, 24, 80) as terminal:
        terminal.expect(b"ready")
        terminal.resize(41, 101)
        terminal.expect(b"41 101")
        assert terminal.wait() == 3


def _read_all(fd: int) -> str:
    data = b""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if not select.select([fd], [], [], 0.2)[0]:
            continue
        try:
            chunk = os.read(fd, 4096)
        except OSError:
            break
        if not chunk:
            break
        data += chunk
    return data.decode()


def test_console_socket(box: Bundle) -> None:
    path = str(box.base / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.settimeout(30)
        box.spec["process"]["terminal"] = True
        box.spec["process"]["args"] = ["sh", "-c", "read line; echo got $line"]
        box.save()
        box.ok("run", "--detach", "--bundle", str(box.path), "--console-socket", path, box.id)
        connection, _ = listener.accept()
        with connection:
            fds = array.array("i")
            name, control, _, _ = connection.recvmsg(4096, socket.CMSG_SPACE(4))
            fds.frombytes(control[0][2][:4])
        assert name.startswith(b"/dev/p")
        master = fds[0]
        os.write(master, b"you\n")
        assert "got you" in _read_all(master)
        os.close(master)
    wait_until(lambda: box.status() == "stopped")


def test_console_socket_that_is_not_there_leaves_nothing(box: Bundle) -> None:
    box.spec["process"]["terminal"] = True
    box.save()
    done = box.call("create", "--bundle", str(box.path), "--console-socket", "/nonexistent", box.id)
    assert done.returncode == 1
    assert box.leaks() == []


def test_terminal_and_detach_must_fit(box: Bundle) -> None:
    done = box.run("true", options=("--console-socket", "/x"))
    assert "cannot use console socket if runc will not detach or allocate tty" in done.stderr
    box.spec["process"]["terminal"] = True
    done = box.run("true", options=("--detach",))
    assert "cannot allocate tty if runc will detach without setting console socket" in done.stderr


def test_no_pivot(box: Bundle) -> None:
    done = box.run("ls", "/", options=("--no-pivot",))
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {"bin", "etc", "proc", "sys", "dev", "tmp"}


def test_detached_run_goes_on_and_keep_keeps(box: Bundle) -> None:
    box.run("sleep", "1000", options=("--detach",))
    assert box.status() == "running"
    box.ok("delete", "--force", box.id)
    if box.is_ours:  # runc has the option since 1.1; its state has gone by then in some versions
        assert box.run("true", options=("--keep",)).returncode == 0
        assert box.status() == "stopped"


def test_cgroup_path_limits_and_removal(box: Bundle) -> None:
    path = f"/{box.tag}/inner"
    box.spec["linux"]["cgroupsPath"] = path
    box.spec["linux"]["resources"]["pids"] = {"limit": 33}
    box.spec["linux"]["resources"]["memory"] = {"limit": 32 << 20}
    box.start()
    pid = box.state()["pid"]
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    assert all(line.endswith(path) for line in lines if line.split(":")[1] in ("pids", "memory", "freezer"))
    if Path("/sys/fs/cgroup/pids").is_dir():
        assert Path(f"/sys/fs/cgroup/pids{path}/pids.max").read_text() == "33\n"
        assert Path(f"/sys/fs/cgroup/memory{path}/memory.limit_in_bytes").read_text() == f"{32 << 20}\n"
    box.ok("delete", "--force", box.id)
    left = cgroups_named(box.tag)
    for parent in left:  # the parent was made on the way; runc leaves it, too
        os.rmdir(parent)
    assert all(parent.endswith(box.tag) for parent in left)


def test_systemd_cgroup_without_systemd_is_one_clear_line(box: Bundle) -> None:
    if Path("/run/systemd/system").is_dir():
        pytest.skip("systemd runs here")
    box.spec["linux"]["cgroupsPath"] = f"user.slice:nagt:{box.id}"
    box.save()
    done = box.call("--systemd-cgroup", "run", "--bundle", str(box.path), box.id)
    assert done.returncode == 1
    assert "systemd" in done.stderr
    assert box.leaks() == []


def test_plan_shows_the_steps_and_does_none(our_box: Bundle) -> None:
    our_box.save()
    lines = our_box.ok("plan", "--bundle", str(our_box.path)).splitlines()
    names = [re.split(r"\s{2,}", line.strip())[1] for line in lines]
    assert names.index("clone") < names.index("mount /proc") < names.index("pivot_root") < names.index("exec")
    steps = json.loads(our_box.ok("plan", "--bundle", str(our_box.path), "--format", "json"))
    assert [s["step"] for s in steps] == names
    assert our_box.leaks() == []
