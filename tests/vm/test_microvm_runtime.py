"""nagaya-vm, as a low-level runtime is used: bundles that run in microVMs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import microruntime
import pytest
from bundles import Bundle, bundle, wait_until
from clients import Terminal

pytestmark = microruntime.needed

MB = 1 << 20


@pytest.fixture(scope="module")
def nagaya_vm(tmp_path_factory: pytest.TempPathFactory) -> str:
    return microruntime.command(tmp_path_factory.mktemp("vm"))


def _box(runtime: str) -> Iterator[Bundle]:
    tag = f"nagt-{uuid.uuid4().hex[:10]}"
    with bundle(runtime, Path(tempfile.mkdtemp(prefix=f"{tag}-")), tag) as made:
        made.spec["linux"]["cgroupsPath"] = f"/{tag}"
        (made.rootfs / "bin" / "uname").symlink_to("busybox")
        (made.rootfs / "bin" / "nc").symlink_to("busybox")
        yield made
    assert not list(made.state_root.parent.glob("state.*/*")), "a machine left something"


@pytest.fixture
def box(nagaya_vm: str) -> Iterator[Bundle]:
    yield from _box(nagaya_vm)


@pytest.fixture(scope="module")
def running(nagaya_vm: str) -> Iterator[Bundle]:
    """One container for the tests that only look, or run something in it."""
    for box in _box(nagaya_vm):
        box.spec["linux"]["resources"]["memory"] = {"limit": 64 * MB}
        box.spec["linux"]["resources"]["pids"] = {"limit": 50}
        box.start("sleep", "100000")
        yield box


def test_a_kernel_of_its_own(box: Bundle) -> None:
    assert box.run("uname", "-r").stdout.strip() != os.uname().release


def test_a_cold_boot(nagaya_vm: str) -> None:
    for box in _box(nagaya_vm):
        box.save()
        done = subprocess.run(
            [nagaya_vm, "--no-snapshot", "--root", box.state_root, "run", "--bundle", box.path, box.id],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_streams_and_code(box: Bundle) -> None:
    box.spec["process"]["args"] = ["sh", "-c", "cat; echo oops >&2; exit 7"]
    box.save()
    argv = box.argv("run", "--bundle", str(box.path), box.id)
    data = os.urandom(1 << 20).hex().encode()
    done = subprocess.run(argv, input=data, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (7, b"oops\n")
    assert done.stdout == data


def test_the_program_is_missing(box: Bundle) -> None:
    done = box.run("nothing-here")
    assert done.returncode == 1 and "executable file not found in $PATH" in done.stderr


def test_create_start_signal_delete(box: Bundle) -> None:
    box.spec["process"]["args"] = [
        "sh",
        "-c",
        "trap 'echo term; exit 3' TERM; echo up; while :; do sleep 0.1; done",
    ]
    box.save()
    out = box.base / "out"
    with out.open("w") as file:
        subprocess.run(
            box.argv("create", "--bundle", str(box.path), "--pid-file", str(box.base / "pid"), box.id),
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=True, timeout=120,
        )  # fmt: skip
    state = box.state()
    assert state["status"] == "created" and state["pid"] == int((box.base / "pid").read_text())
    assert out.read_text() == ""
    box.ok("start", box.id)
    assert box.status() == "running"
    assert box.call("start", box.id).stderr.endswith('already running container"\n')
    wait_until(lambda: out.read_text() == "up\n", 60, "output")
    assert box.call("delete", box.id).returncode == 1
    box.ok("kill", box.id, "TERM")
    wait_until(lambda: box.status() == "stopped", 30, "the end")
    assert out.read_text() == "up\nterm\n"
    box.ok("delete", box.id)
    assert box.call("state", box.id).returncode == 1


def test_kill_9_of_the_monitor_takes_the_machine_along(box: Bundle) -> None:
    box.start()
    pid = box.state()["pid"]
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert children
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: box.status() == "stopped", 30, "the end")
    wait_until(lambda: not any(os.path.exists(f"/proc/{c}/exe") for c in children), 30, "QEMU's end")
    box.ok("delete", box.id)


def test_two_at_once(nagaya_vm: str, box: Bundle) -> None:
    box.start()
    assert box.call("create", "--bundle", str(box.path), box.id).stderr.endswith('given ID already exists"\n')
    assert box.status() == "running"


def test_exec(running: Bundle) -> None:
    assert running.ok("exec", running.id, "sh", "-c", "echo $PPID; id -u").split() == ["0", "0"]
    done = running.call("exec", "--cwd", "/tmp", "--env", "A=b c", "--user", "5:6", running.id, "sh", "-c",
                        "pwd; echo $A; id -u; id -g; exit 9")  # fmt: skip
    assert (done.returncode, done.stdout) == (9, "/tmp\nb c\n5\n6\n")
    done = running.call("exec", running.id, "nothing-here")
    assert done.returncode == 255 and "executable file not found in $PATH" in done.stderr
    argv = running.argv("exec", running.id, "cat")
    assert subprocess.run(argv, input=b"over", capture_output=True, timeout=60).stdout == b"over"
    done = running.call("exec", "--preserve-fds", "1", running.id, "true")
    assert "has no meaning in a microVM" in done.stderr


def test_exec_detached_has_a_stand_in(running: Bundle) -> None:
    document = {**running.spec["process"], "args": ["sleep", "3333"]}
    (running.base / "process.json").write_text(json.dumps(document))
    running.ok("exec", "--detach", "--process", str(running.base / "process.json"), "--pid-file",
               str(running.base / "exec.pid"), running.id)  # fmt: skip
    pid = int((running.base / "exec.pid").read_text())
    assert "sleep 3333" in running.ok("ps", running.id)
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: "sleep 3333" not in running.ok("ps", running.id), 30, "the signal in the guest")
    wait_until(lambda: not os.path.exists(f"/proc/{pid}/exe"), 30, "the stand-in's end")


def test_a_killed_stand_in_takes_its_process_along(running: Bundle) -> None:
    with subprocess.Popen(running.argv("exec", running.id, "sleep", "2000")) as process:
        wait_until(lambda: "sleep 2000" in running.ok("ps", running.id), 30, "the process")
        process.kill()
    wait_until(lambda: "sleep 2000" not in running.ok("ps", running.id), 30, "its end")


def test_a_terminal(running: Bundle) -> None:
    argv = running.argv("exec", "--tty", running.id, "sh")
    terminal = Terminal(argv, os.environ, 33, 77)
    terminal.send(b"stty size; tty\n")
    terminal.expect(b"33 77\r\n/dev/pts/")
    terminal.resize(44, 99)
    terminal.send(b"stty size; exit 5\n")
    terminal.expect(b"44 99\r\n")
    assert terminal.wait() == 5


def test_limits_and_usage(running: Bundle) -> None:
    files = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/pids.max")
    assert running.ok("exec", running.id, "cat", *files).split() == [str(64 * MB), "50"]
    running.ok("update", "--memory", "48m", "--pids-limit", "60", running.id)
    assert running.ok("exec", running.id, "cat", *files).split() == [str(48 * MB), "60"]
    line = json.loads(running.ok("events", "--stats", running.id))
    assert line["type"] == "stats" and line["id"] == running.id
    data = line["data"]
    assert data["memory"]["usage"]["limit"] == 48 * MB and 0 < data["memory"]["usage"]["usage"] < 48 * MB
    assert data["pids"]["limit"] == 60 and data["cpu"]["usage"]["total"] > 0
    done = running.call("update", "--memory", "100g", running.id)
    assert "a higher limit needs a new start" in done.stderr


def test_pause(running: Bundle) -> None:
    running.ok("pause", running.id)
    assert running.status() == "paused"
    assert "paused container" in running.call("exec", running.id, "true").stderr
    running.ok("resume", running.id)
    assert running.ok("exec", running.id, "echo", "on") == "on\n"


def test_out_of_memory(box: Bundle) -> None:
    box.spec["linux"]["resources"]["memory"] = {"limit": 16 * MB}
    assert box.run("sh", "-c", "dd if=/dev/zero of=/dev/null bs=64M count=1; exit $?").returncode == 137


def test_files_and_directories_of_the_host(box: Bundle) -> None:
    for kind in ("bounding", "effective", "permitted"):
        box.spec["process"]["capabilities"][kind].append("CAP_CHOWN")
    (box.base / "shared").mkdir()
    (box.base / "shared" / "secret").write_text("deep")
    (box.base / "shared" / "secret").chmod(0o600)
    (box.base / "hosts").write_text("1.2.3.4 there\n")
    for source, target, option in (
        ("shared", "/shared", "rw"), ("shared", "/fixed", "ro"), ("hosts", "/etc/hosts", "rw"),
    ):  # fmt: skip
        box.spec["mounts"].append(
            {
                "destination": target,
                "type": "bind",
                "source": str(box.base / source),
                "options": ["rbind", option],
            }
        )
    out = box.shell(
        "cat /shared/secret /etc/hosts; echo made > /shared/made; chmod 640 /shared/made;"
        " cat /fixed/made; chown 5:6 /shared/made; mkdir -p /shared/a/b; ln -s made /shared/link;"
        " (echo x > /fixed/x) 2>&1 || true"
    )
    assert out.startswith("deep1.2.3.4 there\nmade\n") and "Read-only" in out
    made = (box.base / "shared" / "made").stat()
    assert (made.st_uid, made.st_gid, made.st_mode & 0o777) == (5, 6, 0o640)
    assert os.readlink(box.base / "shared" / "link") == "made" and (box.base / "shared/a/b").is_dir()


def _bind(spec: dict[str, Any], source: str) -> None:
    spec["mounts"].append({"destination": "/x", "type": "bind", "source": source, "options": ["bind"]})


def _user_namespace(spec: dict[str, Any]) -> None:
    spec["linux"]["namespaces"].append({"type": "user"})
    for key in ("uidMappings", "gidMappings"):
        spec["linux"][key] = [{"containerID": 0, "hostID": 1000, "size": 1}]


_DISK = {"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}
_REFUSED: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda s: s["linux"].update(namespaces=[{"type": "mount"}, {"type": "uts"}]), "the host's network"),
    (_user_namespace, "a microVM has no user namespaces"),
    (lambda s: _bind(s, "/dev/null"), "a device or a socket of the host"),
    (lambda s: _bind(s, "/not/there"), "stat /not/there: no such file or directory"),
    (lambda s: s["linux"].update(devices=[_DISK]), "a microVM has not the host's device /dev/sda"),
    (lambda s: s.update(hooks={"startContainer": [{"path": "/bin/true"}]}), "cannot run in a microVM"),
    (lambda s: s["root"].update(path="nowhere"), "no such file or directory"),
]


@pytest.mark.parametrize(("change", "words"), _REFUSED, ids=[words for _, words in _REFUSED])
def test_what_cannot_be_is_refused(
    box: Bundle, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    change(box.spec)
    done = box.run("true")
    assert done.returncode == 1 and words in done.stderr, done.stderr


def test_no_kernel(box: Bundle, tmp_path: Path) -> None:
    box.save()
    done = box.call("--guest", str(tmp_path), "run", "--bundle", str(box.path), box.id)
    assert done.returncode == 1 and "`./dev vm" in done.stderr


def test_hooks_and_a_read_only_root(box: Bundle) -> None:
    box.spec["root"]["readonly"] = True
    box.spec["hooks"] = {
        name: [{"path": "/bin/sh", "args": ["sh", "-c", f"cat > {box.base}/{name}"]}]
        for name in ("prestart", "createRuntime", "poststart", "poststop")
    }
    done = box.run("sh", "-c", "touch /x")
    assert done.returncode == 1 and "Read-only file system" in done.stderr
    statuses = {name: json.loads((box.base / name).read_text())["status"] for name in box.spec["hooks"]}
    assert statuses == {
        "prestart": "creating", "createRuntime": "creating", "poststart": "running", "poststop": "stopped",
    }  # fmt: skip
