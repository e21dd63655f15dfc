"""Every member of config.json with a value of a wrong type: one line that names it, and nothing is left."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from bundles import Bundle

pytestmark = pytest.mark.root

MORE: dict[str, Any] = {
    "hooks": {"prestart": [{"path": "/bin/true", "args": ["true"], "env": ["A=b"], "timeout": 5}]},
    "annotations": {"a": "b"},
    "domainname": "d",
    "linux": {
        "devices": [
            {"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "fileMode": 438, "uid": 0, "gid": 0}
        ],
        "sysctl": {"net.ipv4.ip_forward": "1"},
        "rootfsPropagation": "slave",
        "cgroupsPath": "",
        "maskedPaths": ["/proc/kcore"],
        "readonlyPaths": ["/proc/sys"],
        "personality": {"domain": "LINUX", "flags": []},
        "memoryPolicy": {"mode": "MPOL_DEFAULT", "nodes": "", "flags": []},
        "resources": {
            "memory": {
                "limit": 100 << 20,
                "kernel": 0,
                "disableOOMKiller": False,
                "checkBeforeUpdate": False,
            },
            "cpu": {"shares": 10, "quota": 10000, "period": 100000, "cpus": "0"},
            "pids": {"limit": 100},
            "devices": [{"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"}],
        },
        "seccomp": {
            "defaultAction": "SCMP_ACT_ALLOW",
            "defaultErrnoRet": 1,
            "architectures": ["SCMP_ARCH_X86_64"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "listenerPath": "",
            "listenerMetadata": "",
            "syscalls": [
                {
                    "names": ["mkdir"],
                    "action": "SCMP_ACT_ERRNO",
                    "errnoRet": 1,
                    "args": [{"index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_EQ"}],
                }
            ],
        },
    },
    "process": {
        "args": ["true"],
        "scheduler": {"policy": "SCHED_OTHER", "nice": 0},
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 1},
        "execCPUAffinity": {"initial": "0", "final": "0"},
        "oomScoreAdj": 100,
        "consoleSize": {"height": 1, "width": 1},
    },
}


def merge(spec: dict[str, Any], more: dict[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(spec.get(key), dict):
            merge(spec[key], value)
        else:
            spec[key] = copy.deepcopy(value)


def members(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in pairs:
        yield (*path, key)
        yield from members(below, (*path, key))


def name_of(path: tuple[str | int, ...]) -> str:
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return text.removeprefix(".")


def test_every_member(our_box: Bundle) -> None:
    good = copy.deepcopy(our_box.spec)
    merge(good, MORE)
    our_box.spec = good
    assert our_box.run("true").returncode == 0
    wrong: list[str] = []
    for path in members(good):
        for value in (7, True, {"q": 5}, [5]):
            spec = copy.deepcopy(good)
            place: Any = spec
            for key in path[:-1]:
                place = place[key]
            if type(place[path[-1]]) is type(value):
                continue
            place[path[-1]] = value
            our_box.spec = spec
            done = our_box.run()
            lines = done.stderr.splitlines()
            if done.returncode != 1 or len(lines) != 1 or name_of(path) not in done.stderr:
                wrong.append(f"{name_of(path)} = {value!r}: {done.returncode} {done.stderr[-200:]}")
            if any(our_box.state_root.iterdir()):
                wrong.append(f"{name_of(path)} = {value!r}: state is left")
    assert wrong == []
