"""A start that fails says in one line which field or step failed, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundles import Bundle, wait_until

pytestmark = pytest.mark.root

Change = Callable[[dict[str, Any]], object]


def put(*path: str | int, value: object) -> Change:
    """A change of config.json: set (or append with "+") the member at the path."""

    def change(spec: dict[str, Any]) -> None:
        place: Any = spec
        for key in path[:-1]:
            place = place.setdefault(key, {}) if isinstance(place, dict) else place[key]
        if path[-1] == "+":
            place.append(value)
        else:
            place[path[-1]] = value

    return change


def drop(key: str) -> Change:
    return lambda spec: spec.pop(key)


def mount(destination: str, kind: str, source: str, *options: str) -> Change:
    entry = {"destination": destination, "type": kind, "source": source, "options": list(options)}
    return put("mounts", "+", value=entry)


MOUNT, UTS = {"type": "mount"}, {"type": "uts"}
HOOK = {"path": "/bin/sh", "args": ["sh", "-c", "exit 4"]}
# name -> (change, what the message must contain)
FAILURES: dict[str, tuple[Change, str]] = {
    "no version": (drop("ociVersion"), "ociVersion"),
    "version 2": (put("ociVersion", value="2.0.0"), "ociVersion"),
    "no process": (drop("process"), "process: is missing"),
    "no root": (drop("root"), "root: is missing"),
    "no rootfs": (put("root", "path", value="nope"), "rootfs"),
    "rootfs is a file": (put("root", "path", value="config.json"), "is not a directory"),
    "no args": (put("process", "args", value=[]), "process.args"),
    "args of a wrong kind": (put("process", "args", value=[1]), "process.args[0]"),
    "relative cwd": (put("process", "cwd", value="tmp"), "process.cwd"),
    "cwd is a file": (put("process", "cwd", value="/bin/busybox"), "cwd"),
    "NUL in the environment": (put("process", "env", value=["A=\0"]), "process.env[0]"),
    "unknown rlimit": (
        put("process", "rlimits", value=[{"type": "RLIMIT_X", "soft": 1, "hard": 1}]),
        "RLIMIT_X",
    ),
    "rlimit twice": (put("process", "rlimits", value=[{"type": "RLIMIT_CORE"}] * 2), "process.rlimits[1]"),
    "unknown namespace": (put("linux", "namespaces", "+", value={"type": "moon"}), "linux.namespaces[6]"),
    "namespace twice": (put("linux", "namespaces", "+", value={"type": "pid"}), "given twice"),
    "namespace that is not there": (
        put("linux", "namespaces", value=[MOUNT, UTS, {"type": "network", "path": "/nope"}]),
        "join network",
    ),
    "namespace that is none": (
        put("linux", "namespaces", value=[MOUNT, UTS, {"type": "network", "path": "/dev/null"}]),
        "join network",
    ),
    "mappings without a user namespace": (
        put("linux", "uidMappings", value=[{"containerID": 0, "hostID": 1, "size": 1}]),
        "linux.uidMappings",
    ),
    "mounts without a mount namespace": (put("linux", "namespaces", value=[UTS]), "linux.namespaces"),
    "mount of an unknown type": (
        mount("/x", "nofs", "nofs"),
        "error during container init: error mounting",
    ),
    "mount of a source that is not there": (mount("/x", "bind", "/nope", "bind"), "mount /x"),
    "mount with an unknown option": (
        mount("/x", "tmpfs", "tmpfs", "colour=blue"),
        "error during container init: error mounting",
    ),
    "mount on a file's place": (mount("/bin/busybox/x", "tmpfs", "tmpfs"), "/bin/busybox/x"),
    "mount without a place": (put("mounts", "+", value={"type": "tmpfs"}), "mounts[7].destination"),
    "unknown propagation": (put("linux", "rootfsPropagation", value="loud"), "linux.rootfsPropagation"),
    "device of an unknown type": (
        put("linux", "devices", value=[{"path": "/dev/x", "type": "q"}]),
        "linux.devices[0].type",
    ),
    "sysctl that is not there": (put("linux", "sysctl", value={"net.nope": "1"}), "net.nope"),
    "sysctl with a wrong value": (put("linux", "sysctl", value={"net.ipv4.ip_forward": "x"}), "ip_forward"),
    "unknown seccomp action": (
        put("linux", "seccomp", value={"defaultAction": "SCMP_ACT_X"}),
        "linux.seccomp",
    ),
    "cgroup path upwards": (put("linux", "cgroupsPath", value="/../x"), "cgroupsPath"),
    "limit that the kernel refuses": (
        put("linux", "resources", "cpu", value={"quota": 1, "period": 100000}),
        "linux.resources.cpu.quota",
    ),
    "limit of a wrong kind": (put("linux", "resources", "pids", value={"limit": "many"}), "pids.limit"),
    "device rule of an unknown type": (
        put("linux", "resources", "devices", value=[{"allow": True, "type": "z"}]),
        "linux.resources.devices[0].type",
    ),
    "hook that fails": (put("hooks", value={"prestart": [HOOK]}), "exit status 4"),
    "hook inside that fails": (put("hooks", value={"createContainer": [HOOK]}), "exit status 4"),
    "hook that is not there": (put("hooks", value={"createRuntime": [{"path": "/nope"}]}), "/nope"),
    "hook that takes too long": (
        put(
            "hooks", value={"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "60"], "timeout": 1}]}
        ),
        "timed out",
    ),
    "command that is not there": (
        put("process", "args", value=["nope"]),
        '"nope": executable file not found',
    ),
    "start hook that fails": (
        put("hooks", value={"startContainer": [{"path": "/bin/false"}]}),
        "exit status 1",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_one_line_and_nothing_left(our_box: Bundle, name: str) -> None:
    change, message = FAILURES[name]
    change(our_box.spec)
    done = our_box.run()
    assert done.returncode == 1
    assert message in done.stderr.replace('\\"', '"')
    (line,) = done.stderr.splitlines()
    assert re.match(r'time="\S+Z" level=error msg="nagaya-oci run failed: ', line)
    assert done.stdout == ""
    assert our_box.leaks() == []
    # the id is free again
    from bundles import base_spec

    our_box.spec = base_spec()
    assert our_box.run("true").returncode == 0


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"nul", b"[" * 100000, b'{"a":1} x'])
def test_a_config_that_is_no_json(our_box: Bundle, content: bytes) -> None:
    our_box.save()
    (our_box.path / "config.json").write_bytes(content)
    done = our_box.call("run", "--bundle", str(our_box.path), our_box.id)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "config.json" in done.stderr
    assert our_box.leaks() == []


def test_an_unknown_capability_is_warned_of_and_left_out(our_box: Bundle) -> None:
    """As runc since 1.0: kernels differ in what they know."""
    our_box.spec["process"]["capabilities"]["bounding"].append("CAP_MOON")
    done = our_box.run("echo", "hi")
    assert (done.returncode, done.stdout) == (0, "hi\n")
    assert "ignoring unknown or unavailable capabilities: [CAP_MOON]" in done.stderr


def test_a_pid_file_that_cannot_be_written(our_box: Bundle) -> None:
    done = our_box.run("true", options=("--pid-file", "/nonexistent/pid"))
    assert done.returncode == 1
    assert "pid file /nonexistent/pid" in done.stderr
    assert our_box.leaks() == []


def test_a_runtime_that_is_killed_meanwhile_leaves_what_delete_can_remove(our_box: Bundle) -> None:
    our_box.save()
    for delay in (0.010, 0.014, 0.018, 0.022, 0.03):
        process = subprocess.Popen(
            our_box.argv("create", "--bundle", str(our_box.path), our_box.id),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        our_box.call("delete", "--force", our_box.id)
        wait_until(lambda: our_box.leaks() == [], 10, "nothing left")


def test_the_interpreter_keeps_its_hands_off_standard_streams_that_are_closed(our_box: Bundle) -> None:
    our_box.spec["process"]["args"] = ["true"]
    our_box.save()
    argv = our_box.argv("run", "--bundle", str(our_box.path), our_box.id)
    done = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *argv], timeout=60)
    assert done.returncode in (0, 1)
    assert our_box.leaks() == []


def test_log_file_gets_json_and_stderr_the_text(our_box: Bundle) -> None:
    log = our_box.base / "log"
    done = our_box.call("--log", str(log), "--log-format", "json", "state", our_box.id)
    assert (done.returncode, done.stderr) == (1, "container does not exist\n")
    (line,) = log.read_text().splitlines()
    assert json.loads(line)["msg"] == "container does not exist"
    assert os.stat(log).st_mode & 0o777 == 0o644


def test_root_without_a_mount_namespace_mounts_nothing_on_the_host(our_box: Bundle) -> None:
    our_box.spec["linux"]["namespaces"] = [UTS]
    our_box.spec["linux"]["maskedPaths"] = our_box.spec["linux"]["readonlyPaths"] = []
    our_box.spec["root"]["readonly"] = True
    done = our_box.run("ls", "/bin/busybox", "/proc")
    assert (done.returncode, done.stdout) == (0, "/bin/busybox\n\n/proc:\n"), done.stderr
    assert "mounts, and a read-only root, are left out" in done.stderr
    assert str(our_box.base) not in Path("/proc/self/mountinfo").read_text()


def test_a_terminal_without_a_mount_namespace_is_of_the_hosts(our_box: Bundle, tmp_path: Path) -> None:
    our_box.spec["linux"]["namespaces"] = [UTS]
    our_box.spec["linux"]["maskedPaths"] = our_box.spec["linux"]["readonlyPaths"] = []
    our_box.spec["process"]["terminal"] = True
    our_box.spec["process"]["args"] = ["sh", "-c", "echo $((6*7)); sleep 1000"]
    our_box.save()
    path = str(our_box.base / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        our_box.ok("run", "--detach", "--bundle", str(our_box.path), "--console-socket", path, our_box.id)
        with listener.accept()[0] as end:
            _, (master,), _, _ = socket.recv_fds(end, 100, 1)
    assert os.read(master, 100).startswith(b"42")
    os.close(master)


@pytest.mark.parametrize("member", ["maskedPaths", "readonlyPaths"])
def test_nothing_is_hidden_without_a_mount_namespace(our_box: Bundle, member: str) -> None:
    our_box.spec["linux"]["namespaces"] = [UTS]
    our_box.spec["linux"]["maskedPaths"] = our_box.spec["linux"]["readonlyPaths"] = []
    our_box.spec["linux"][member] = ["/proc/kcore"]
    done = our_box.run("true")
    assert done.returncode == 1 and "unable to restrict sys entries" in done.stderr


UNSUPPORTED: dict[str, tuple[Change, str]] = {
    "selinux label": (put("process", "selinuxLabel", value="x"), "process.selinuxLabel: selinux label is"),
    "mount label": (put("linux", "mountLabel", value="x"), "linux.mountLabel: selinux label is specified"),
    "intelRdt": (put("linux", "intelRdt", value={}), "linux.intelRdt: Intel RDT is not enabled"),
    "time offsets without a namespace": (
        put("linux", "timeOffsets", value={"monotonic": {"secs": 1}}),
        "linux.timeOffsets: needs a time namespace",
    ),
    "network device without a name": (
        put("linux", "netDevices", value={"": {}}),
        "linux.netDevices.: invalid network device name ''",
    ),
    "network device with a long name": (
        put("linux", "netDevices", value={"eth9": {"name": "x" * 16}}),
        "linux.netDevices.eth9: invalid network device name",
    ),
    "network device that is a list": (
        put("linux", "netDevices", value={"eth9": [1]}),
        "linux.netDevices.eth9: must be an object",
    ),
    "network device that is not there": (
        put("linux", "netDevices", value={"nagt-none": {}}),
        "link not found for interface nagt-none",
    ),
    "mapping of a mount": (
        put("mounts", 0, "uidMappings", value=[{"size": -1}]),
        "mounts[0].uidMappings[0].size",
    ),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_cannot_be_done_is_said_and_nothing_is_left(our_box: Bundle, name: str) -> None:
    change, message = UNSUPPORTED[name]
    change(our_box.spec)
    done = our_box.run("true")
    assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1, done
    assert our_box.leaks() == []


def test_an_apparmor_profile_needs_apparmor(our_box: Bundle) -> None:
    if Path("/sys/module/apparmor").exists():
        pytest.skip("this kernel has AppArmor")
    our_box.spec["process"]["apparmorProfile"] = "some-profile"
    done = our_box.run("true")
    assert done.returncode == 1 and "apparmor not supported" in done.stderr


def test_network_devices_need_a_network_namespace(our_box: Bundle) -> None:
    our_box.spec["linux"]["namespaces"] = [
        n for n in our_box.spec["linux"]["namespaces"] if n["type"] != "network"
    ]
    our_box.spec["linux"]["netDevices"] = {"eth0": {}}
    assert "without a private NET namespace" in our_box.run("true").stderr
