"""What a program finds inside its container. Where runc is installed, both get the same config.json
and must show the same."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from struct import pack
from typing import Any

import pytest
from bundles import Bundle, bundle

from nagaya.linux.ffi import try_syscall
from nagaya.oci import defaults
from nagaya.oci.seccomp_default import resolve

pytestmark = pytest.mark.root


@pytest.fixture
def pair(ours: str) -> Iterator[tuple[Bundle, Bundle]]:
    """A bundle of nagaya-oci, and the same of runc."""
    runc = shutil.which("runc")
    if runc is None:
        pytest.skip("runc is not installed")
    tag = f"nagt-{uuid.uuid4().hex[:10]}"
    with (
        bundle(ours, Path(tempfile.mkdtemp(prefix=f"{tag}o-")), tag + "o") as first,
        bundle(runc, Path(tempfile.mkdtemp(prefix=f"{tag}r-")), tag + "r") as second,
    ):
        yield first, second


def docker_spec() -> dict[str, Any]:
    """What dockerd composes for `docker run` without options on this cgroup version."""
    caps = list(defaults.CAPABILITIES)
    spec: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0, "additionalGids": [0, 10]},
            "args": ["true"],
            "env": defaults.environment("boxy"),
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), caps),
            "oomScoreAdj": 0,
        },
        "root": {"path": "rootfs"},
        "hostname": "boxy",
        "mounts": defaults.mounts(),
        "linux": {
            "sysctl": dict(defaults.SYSCTLS),
            "resources": {"devices": defaults.device_rules(), "memory": {}, "cpu": {"shares": 0}},
            "namespaces": [{"type": kind} for kind in defaults.NAMESPACES],
            "seccomp": resolve(caps),
            "maskedPaths": list(defaults.MASKED_PATHS),
            "readonlyPaths": list(defaults.READONLY_PATHS),
        },
    }
    return spec


# every line of output is compared
LOOKS = {
    "identity": "id; umask; pwd; hostname; env | sort; cat /proc/self/oom_score_adj",
    "status": "grep -E '^(Cap|NoNew|Seccomp|Groups|Sig(Blk|Ign)|Uid|Gid|Umask|Spec)' /proc/self/status",
    "limits": "cat /proc/self/limits",
    "devices": "cd /dev && stat -c '%n %F %a %u:%g %t,%T' * pts/ptmx",
    "links": "cd /dev && for l in fd stdin stdout stderr ptmx core; do readlink $l; done; true",
    "sysctls": "cat /proc/sys/net/ipv4/ping_group_range /proc/sys/net/ipv4/ip_unprivileged_port_start",
    "masked": "for p in {masked}; do [ -e $p ] && stat -c '%n %F %t,%T' $p; ls -A $p; done 2>&1; true",
    "readonly": "for p in {readonly}; do [ -e $p ] && touch $p/x 2>&1; done; true",
    "network": "cat /proc/net/dev | sed 1,2d | cut -d: -f1; cat /sys/class/net/lo/flags",
    "namespaces": "ls /proc/self/ns; ls / ; ls /sys /sys/fs/cgroup; cat /proc/1/comm",
    "denied": "(mount -t tmpfs x /tmp; mknod /tmp/kmsg c 1 11; cat /tmp/kmsg; hostname x) 2>&1; true",
}


def look(box: Bundle, script: str) -> list[str]:
    script = script.format(masked=" ".join(defaults.MASKED_PATHS), readonly=" ".join(defaults.READONLY_PATHS))
    done = box.run("sh", "-c", script)
    assert done.returncode == 0, (box.runtime, done)
    return done.stdout.replace(box.tag, "TAG").splitlines()


@pytest.mark.parametrize("name", LOOKS)
def test_dockers_default_container_looks_the_same_in_both(pair: tuple[Bundle, Bundle], name: str) -> None:
    ours, runcs = pair
    ours.spec, runcs.spec = docker_spec(), docker_spec()
    assert look(ours, LOOKS[name]) == look(runcs, LOOKS[name])


def mount_table(box: Bundle) -> list[tuple[str, ...]]:
    """(place, root, options, type, super options) of every mount inside, in no order."""
    rows: list[tuple[str, ...]] = []
    for line in box.shell("cat /proc/self/mountinfo").splitlines():
        left, right = line.split(" - ")
        fields, rest = left.split(), right.split(" ", 2)
        if fields[4] in defaults.MASKED_PATHS:  # ours is nosuid, nodev and noexec, too
            rows.append((fields[4], rest[0]))
            continue
        root = re.sub(r".*/nagt-\w+[or]-\w+/|.*/(?=nagt-)", "", fields[3]).replace(box.tag, "TAG")
        options = ",".join(sorted(fields[5].split(",")))
        if fields[4] == "/sys/fs/cgroup":
            options = options.removesuffix("ro").removesuffix("rw")  # runc 1.1 leaves it writable on v1
        rows.append((fields[4], root, options, rest[0], re.sub(r"inode64,?|,inode64", "", rest[2])))
    return sorted(rows)


@pytest.mark.parametrize("own_cgroup_namespace", [False, True])
def test_dockers_default_mounts_are_the_same_in_both(
    pair: tuple[Bundle, Bundle], own_cgroup_namespace: bool
) -> None:
    tables = []
    for box in pair:
        box.spec = docker_spec()
        if own_cgroup_namespace:
            box.spec["linux"]["namespaces"].append({"type": "cgroup"})
        tables.append(mount_table(box))
    assert tables[0] == tables[1]


def mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def test_a_program_that_asked_for_much(pair: tuple[Bundle, Bundle]) -> None:
    volume = tempfile.mkdtemp(prefix="nagt-volume-")
    try:
        (Path(volume) / "file").write_text("content\n")
        results = []
        for box in pair:
            spec = docker_spec()
            spec["process"]["user"] = {"uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 0o77}
            spec["process"]["rlimits"] = [
                {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
                {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
            ]
            spec["process"]["noNewPrivileges"] = True
            spec["process"]["cwd"] = "/work/here"
            spec["root"]["readonly"] = True
            spec["mounts"] += [
                mount("/data", "bind", volume, "rbind", "ro", "rprivate"),
                mount("/one", "bind", f"{volume}/file", "bind", "rw"),
                mount("/big", "tmpfs", "tmpfs", "size=1m", "noexec", "mode=700"),
            ]
            fuse = {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}
            spec["linux"]["devices"] = [{**fuse, "fileMode": 0o640, "uid": 3, "gid": 4}]
            spec["process"]["env"].append("HOME=/here")
            box.spec = spec
            script = (
                "id; pwd; umask; echo $HOME; cat /one; touch /x /data/y 2>&1; stat -c '%F %a' /dev/fuse /big"
                "; grep -E 'Cap|NoNew|Seccomp:' /proc/self/status; grep -E 'open file|core' /proc/self/limits"
            )
            results.append(look(box, script))
        assert results[0] == results[1]
    finally:
        shutil.rmtree(volume)


def test_user_namespace(pair: tuple[Bundle, Bundle]) -> None:
    results = []
    for box in pair:
        spec = docker_spec()
        del spec["linux"]["sysctl"]
        spec["linux"]["namespaces"].append({"type": "user"})
        for kind in ("uidMappings", "gidMappings"):
            spec["linux"][kind] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
        box.spec = spec
        # the mapped root must be able to reach its root file system
        os.chmod(box.base, 0o755)
        results.append(
            look(
                box,
                "id; cat /proc/self/uid_map; grep Cap /proc/self/status; stat -c '%n %F %u %t,%T' /dev/*",
            )
        )
    assert results[0] == results[1]


def test_joined_namespaces_are_those(box: Bundle) -> None:
    other = copy.deepcopy(box.spec)
    box.start()
    pid = box.state()["pid"]
    kinds = {"network": "net", "ipc": "ipc", "uts": "uts", "pid": "pid"}
    wanted = {name: os.readlink(f"/proc/{pid}/ns/{name}") for name in kinds.values()}
    first, box.id, box.spec = box.id, box.id + "b", other
    box.spec["linux"]["namespaces"] = [
        {"type": "mount"},
        *({"type": kind, "path": f"/proc/{pid}/ns/{name}"} for kind, name in kinds.items()),
    ]
    del box.spec["hostname"]
    seen = box.shell("for n in net ipc uts pid; do readlink /proc/self/ns/$n; done; ps | grep -c sleep")
    box.id = first
    assert seen.split()[:4] == list(wanted.values())
    assert int(seen.split()[4]) >= 1


def test_hooks_run_in_their_order_with_the_state_and_a_clean_environment(box: Bundle) -> None:
    log = box.base / "hooks"
    hook = box.base / "hook"
    hook.write_text(
        f'#!/bin/sh\nread state\necho "$1 $(echo $state | grep -o \'"status":"[a-z]*"\') ${{LD_PRELOAD-none}}'
        f' ${{MINE-none}}" >> {log}\n'
    )
    hook.chmod(0o755)
    kinds = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"]
    box.spec["hooks"] = {
        kind: [{"path": str(hook), "args": ["hook", kind], "env": ["MINE=yes", "PATH=/usr/bin:/bin"]}]
        for kind in kinds
    }
    box.spec["process"]["env"].append("LD_PRELOAD=/evil.so")  # NVIDIA CVE-2025-23266
    assert box.run("true").returncode == 0
    rows = [line.split() for line in log.read_text().splitlines()]
    assert [row[0] for row in rows] == kinds
    assert all(row[2:] == ["none", "yes"] for row in rows)
    statuses = [row[1].split('"')[3] for row in rows]
    assert statuses[:3] == ["creating"] * 3 and statuses[4] == "stopped"


def test_a_failing_hook_stops_the_start_and_says_so(box: Bundle) -> None:
    box.spec["hooks"] = {
        "createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", "echo broken >&2; exit 3"]}]
    }
    done = box.run("true")
    assert done.returncode == 1
    assert "hook" in done.stderr and "exit status 3" in done.stderr and "broken" in done.stderr
    assert box.leaks() == []


def test_home_comes_from_the_images_passwd(box: Bundle) -> None:
    box.spec["process"]["user"] = {"uid": 5, "gid": 5}
    assert "HOME=/five\n" in box.shell("env")


def test_memory_limit_smaller_than_a_python(our_box: Bundle) -> None:
    """The interpreter that prepares the container must not be charged to the container's limit."""
    for cgroup_namespace in (True, False):
        kinds = ["pid", "mount", "ipc", "uts"] + ["cgroup"] * cgroup_namespace
        our_box.spec["linux"]["namespaces"] = [{"type": kind} for kind in kinds]
        our_box.spec["linux"]["resources"]["memory"] = {"limit": 1 << 20}
        assert our_box.shell("grep -qE 'memory|^0::/' /proc/self/cgroup && echo alive") == "alive\n"


def test_exec_into_a_memory_limit_smaller_than_a_python(our_box: Bundle) -> None:
    """Neither must the interpreter that joins: it enters the cgroup of memory when it has prepared all."""
    our_box.spec["linux"]["resources"]["memory"] = {"limit": 1 << 20}
    our_box.start()
    for _ in range(3):
        assert our_box.ok("exec", our_box.id, "echo", "alive") == "alive\n"
    calls = our_box.base / "calls"
    trace = ["strace", "-f", "-y", "-e", "trace=write,sendmsg", "-o", str(calls)]
    subprocess.run([*trace, *our_box.argv("exec", our_box.id, "true")], check=True, stdin=subprocess.DEVNULL)
    lines = calls.read_text().splitlines()
    (joined,) = (n for n, line in enumerate(lines) if re.search(r"write\(\d+<[^>]*/memory/[^>]*tasks>", line))
    (ready,) = (n for n, line in enumerate(lines) if "ready" in line)
    assert ready < joined
    (early,) = (n for n, line in enumerate(lines) if re.search(r"write\(\d+<[^>]*/freezer/[^>]*tasks>", line))
    assert early < ready


def test_joining_a_user_namespace(our_box: Bundle) -> None:
    """A stage in between joins it, so that the container's own namespaces belong to it."""
    spec = copy.deepcopy(our_box.spec)
    os.chmod(our_box.base, 0o755)
    our_box.spec["linux"]["namespaces"].append({"type": "user"})
    for kind in ("uidMappings", "gidMappings"):
        our_box.spec["linux"][kind] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    our_box.start()
    pid = our_box.state()["pid"]
    user = os.readlink(f"/proc/{pid}/ns/user")
    assert our_box.ok("exec", our_box.id, "readlink", "/proc/self/ns/user").strip() == user
    first, our_box.id, our_box.spec = our_box.id, our_box.id + "b", spec
    spec["linux"]["namespaces"].append({"type": "user", "path": f"/proc/{pid}/ns/user"})
    assert our_box.shell("readlink /proc/self/ns/user; id -u").split() == [user, "0"]
    our_box.id = first


def ignore_signals() -> None:
    """As a caller may leave them: of the C library's own two, too, as a Python of 2024 does."""
    for number in (1, 13, 15, 32, 33, 40):
        try_syscall("rt_sigaction", number, pack("=QQQQ", 1, 0, 0, 0), None, 8)  # SIG_IGN


def test_signals_that_the_caller_ignored_are_not_ignored_inside(our_box: Bundle) -> None:
    assert "SigBlk:\t0000000000000000" in our_box.run("grep", "SigBlk", "/proc/self/status").stdout
    done = our_box.run("grep", "SigIgn", "/proc/self/status", preexec_fn=ignore_signals)
    assert (done.returncode, done.stdout.split()) == (0, ["SigIgn:", "0" * 16]), done
