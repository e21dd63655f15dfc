"""Whatever config.json says: a container, or one line that names the member; no traceback, nothing left."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bundles import Bundle, base_spec, bundle, forget, nagaya_oci
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nagaya.errors import NagayaError
from nagaya.linux import seccomp
from nagaya.linux.json import loads
from nagaya.oci import runtime as oci
from nagaya.runtime import plan
from nagaya.runtime.cgroups import v1_limits, v2

QUICK = settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
FEW = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
SECONDS = 5  # for one config, on the busiest machine

FULL: dict[str, Any] = {
    "domainname": "d",
    "annotations": {"a": "b"},
    "hooks": {
        kind: [{"path": "/bin/true", "args": ["true"], "env": ["A=b"], "timeout": 5}]
        for kind in ("createRuntime", "createContainer", "startContainer", "poststart", "poststop")
    },
    "process": {
        **base_spec()["process"],
        "user": {"uid": 0, "gid": 0, "umask": 18, "additionalGids": [5]},
        "scheduler": {"policy": "SCHED_OTHER", "nice": 0, "flags": ["SCHED_FLAG_RESET_ON_FORK"]},
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 1},
        "execCPUAffinity": {"initial": "0", "final": "0-1"},
        "oomScoreAdj": 100,
        "consoleSize": {"height": 1, "width": 1},
        "apparmorProfile": "",
        "selinuxLabel": "",
    },
    "linux": {
        **base_spec()["linux"],
        "namespaces": [
            *({"type": t} for t in ("pid", "network", "ipc", "uts", "mount", "user", "time")),
            {"type": "cgroup", "path": ""},
        ],
        "uidMappings": [{"containerID": 0, "hostID": 231000, "size": 65536}],
        "gidMappings": [{"containerID": 0, "hostID": 231000, "size": 65536}],
        "timeOffsets": {"monotonic": {"secs": 5, "nanosecs": 7}},
        "devices": [
            {"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "fileMode": 438, "uid": 0, "gid": 0}
        ],
        "sysctl": {"net.ipv4.ip_forward": "1"},
        "rootfsPropagation": "slave",
        "cgroupsPath": "/nagt-fuzz/one",
        "mountLabel": "",
        "personality": {"domain": "LINUX", "flags": []},
        "memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]},
        "netDevices": {"nagt0": {"name": "eth9"}},
        "resources": {
            "memory": {"limit": 100 << 20, "swap": 200 << 20, "reservation": 1 << 20, "swappiness": 5},
            "cpu": {"shares": 10, "quota": 10000, "period": 100000, "burst": 1, "cpus": "0", "idle": 0},
            "pids": {"limit": 100},
            "blockIO": {
                "weight": 100,
                "weightDevice": [{"major": 8, "minor": 0, "weight": 100}],
                "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1000}],
            },
            "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
            "network": {"classID": 1, "priorities": [{"name": "lo", "priority": 1}]},
            "rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10}},
            "unified": {"memory.high": "1"},
            "devices": [{"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"}],
        },
        "seccomp": {
            "defaultAction": "SCMP_ACT_ALLOW",
            "defaultErrnoRet": 1,
            "architectures": ["SCMP_ARCH_X86_64"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
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
}

# values that are likely to be wrong in a new way: numbers at the ends of types, text that means something to
# the kernel, to a path or to a line, words of the specification in other places
_NUMBERS = [0, -1, 1, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, -(2**63), 10**30, 0.5, 1e300]
_TEXTS = [
    "",
    "/",
    "..",
    "a/../b",
    "\0",
    "\n",
    "a\nb",
    "\udcff",
    "\ud800",
    "é",
    "x" * 5000,
    "%s",
    "0",
    "-1",
    "0-99999999999",
]
_WORDS = [
    "rprivate",
    "SCMP_ACT_NOTIFY",
    "SCMP_ACT_KILL",
    "user",
    "mount",
    "time",
    "IDLE",
    "SCHED_FIFO",
    "rro",
    "idmap",
]
scalars = (
    st.sampled_from([None, True, False, *_NUMBERS, *_TEXTS, *_WORDS]) | st.integers() | st.text(max_size=8)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in pairs:
        yield (*path, key)
        yield from _places(below, (*path, key))


def _change(draw: st.DrawFn, spec: Any, kept: tuple[str, ...]) -> None:
    places = [p for p in _places(spec) if not any(".".join(map(str, p)).startswith(k) for k in kept)]
    *above, last = draw(st.sampled_from(places))
    parent = spec
    for key in above:
        parent = parent[key]
    what = draw(st.sampled_from(["replace", "replace", "move", "remove", "add", "double"]))
    if what == "replace":
        parent[last] = draw(values)
    elif what == "move":  # a value of another place
        value = spec
        for key in draw(st.sampled_from(places)):
            value = value[key]
        parent[last] = copy.deepcopy(value)
    elif what == "remove":
        del parent[last]
    elif isinstance(parent, list):
        parent.extend([copy.deepcopy(parent[last])] * draw(st.sampled_from([1, 500])))
    elif what == "add":
        parent[draw(st.text(max_size=5))] = draw(values)


@st.composite
def specs(draw: st.DrawFn, full: Any, kept: tuple[str, ...] = ()) -> Any:
    """A valid config.json with one to four changes somewhere."""
    spec = copy.deepcopy(full)
    for _ in range(draw(st.integers(1, 4))):
        _change(draw, spec, kept)
    return spec


def _decide(spec: Any) -> None:
    """All that is decided about a container before anything is made, on both kinds of cgroups."""
    oci.validate(spec)
    plan.plan_container(spec, "/bundle")
    plan.plan_container(spec, "/bundle", console=(0, 0), no_pivot=True)
    plan.plan_exec(spec, spec["process"], 1, 0)
    linux = spec.get("linux") or {}
    if linux.get("seccomp"):
        seccomp.precompile(linux["seccomp"])
    resources = linux.get("resources") or {}
    for decide in (v1_limits.plan_v1, v2.plan_v2):
        try:
            decide(resources)
        except NagayaError as error:
            _is_clear(error)


def _is_clear(error: NagayaError) -> None:
    text = str(error)
    assert text and "\n" not in text, error
    assert len(text) < 1000, text
    assert re.split(r"[.\[]", error.subject)[0] in (*base_spec(), *FULL, "config.json"), (error.subject, text)


def test_the_full_one_is_valid() -> None:
    spec = copy.deepcopy({**base_spec(), **FULL})
    spec["process"]["capabilities"] = base_spec()["process"]["capabilities"]
    oci.validate(spec)
    assert len(plan.plan_container(spec, "/bundle").steps) > 20


@QUICK
@given(spec=specs({**base_spec(), **FULL}))
def test_a_changed_config_is_planned_or_refused_by_name(spec: Any) -> None:
    text = json.dumps(spec)
    begin = time.process_time()
    try:
        _decide(loads(text))
    except NagayaError as error:
        _is_clear(error)
    assert time.process_time() - begin < SECONDS


@QUICK
@given(text=st.text(max_size=60) | values.map(json.dumps))
def test_a_document_that_is_no_config_is_refused(text: str) -> None:
    try:
        _decide(loads(text))
    except NagayaError as error:
        assert "\n" not in str(error)
    else:
        pytest.fail("nothing as short is a config")


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    launcher = nagaya_oci(tmp_path_factory.mktemp("env"))
    yield launcher
    forget(launcher)


@pytest.fixture
def box(ours: str) -> Iterator[Bundle]:
    tag = f"nagt-{uuid.uuid4().hex[:10]}"
    with bundle(ours, Path(tempfile.mkdtemp(prefix=f"{tag}-")), tag) as made:
        yield made


def _runnable() -> Any:
    """Without what this machine lacks, or what a change of would reach the machine."""
    spec = copy.deepcopy({**base_spec(), **FULL})
    for section, members in (
        ("linux", ("netDevices", "cgroupsPath", "resources", "memoryPolicy", "uidMappings", "gidMappings")),
        ("process", ("selinuxLabel", "apparmorProfile")),
    ):
        for member in members:
            spec[section].pop(member, None)
    spec["linux"]["namespaces"] = [n for n in spec["linux"]["namespaces"] if n["type"] != "user"]
    spec["linux"]["resources"] = {"memory": {"limit": 100 << 20}, "pids": {"limit": 100}}
    spec["process"]["args"] = ["true"]
    del spec["hooks"]
    return spec


@pytest.mark.root
@FEW
@given(spec=specs(_runnable(), kept=("root", "process.args", "linux.cgroupsPath")))
def test_a_changed_config_runs_or_fails_with_one_line(box: Bundle, spec: Any) -> None:
    """In mount and network namespaces of its own, for a changed one may have none."""
    (box.path / "config.json").write_text(json.dumps(spec))
    command = ["unshare", "--mount", "--net", "--propagation", "private"]
    done = subprocess.run(
        [*command, *box.argv("run", "--bundle", str(box.path), box.id)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        env={**os.environ, "LC_ALL": "C"},
    )
    lines = done.stderr.decode().splitlines()
    errors = [line for line in lines if "level=warning" not in line]
    assert (done.returncode == 0 and errors == []) or (done.returncode == 1 and len(errors) == 1), done
    assert "Traceback" not in done.stderr.decode()
    assert box.leaks() == []


@pytest.mark.root
@pytest.mark.parametrize("place", ["process.args", "process.env", "hostname", "annotations.a", "later"])
def test_half_a_surrogate_pair_is_no_text(box: Bundle, place: str) -> None:
    section, _, member = place.rpartition(".")
    value: Any = ["\ud800"] if section == "process" else "\ud800"
    (box.spec.setdefault(section, {}) if section else box.spec)[member] = value
    done = box.run()
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done
    assert "UTF-8" in done.stderr and place.removesuffix(".a").replace("later", "config.json") in done.stderr
    assert box.leaks() == []
