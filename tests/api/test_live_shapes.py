"""The same requests to dockerd and to nagayad: the same fields of the same types, the same refusals."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from clients import have_dockerd
from dockerd import Dockerd
from house import House
from images import Registry
from rawhttp import Reply, call

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"
API = "/v1.41"

# what newer Dockers do not show either, and facts about runc, Go and containerd
GONE = re.compile(
    r"(HostConfig\.)?KernelMemory(TCP)?|Config\.NetworkDisabled|Container|ContainerConfig|"
    r"RegistryConfig\.AllowNondistributableArtifacts.*|\w+Commit\.Expected|Runtimes\.io\.containerd\..*|"
    r"Components\[\]\.Details\.(BuildTime|GitCommit|GoVersion)"
)
BODY = {
    "Image": IMAGE,
    "Cmd": ["sleep", "600"],
    "Env": ["A=1"],
    "Labels": {"a": "b"},
    "ExposedPorts": {"80/tcp": {}},
    "StopSignal": "SIGINT",
    "StopTimeout": 3,
    "HostConfig": {
        "Binds": ["named:/v:ro", "/tmp:/t"],
        "Mounts": [{"Type": "tmpfs", "Target": "/q"}],
        "Tmpfs": {"/z": "size=1m"},
        "Memory": 64 << 20,
        "NanoCpus": 500_000_000,
        "PidsLimit": 50,
        "CapAdd": ["NET_ADMIN"],
        "Ulimits": [{"Name": "nofile", "Soft": 500, "Hard": 600}],
        "Dns": ["9.9.9.9"],
        "ExtraHosts": ["a:10.0.0.1"],
        "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 1},
        "Init": True,
    },
}
"""Everything at once: a field that is empty on both sides says nothing."""


class Both:
    """Asks both daemons."""

    def __init__(self, peer: Dockerd, house: House) -> None:
        self.daemons: tuple[Dockerd | House, ...] = (peer, house)

    def __call__(self, method: str, target: str, body: Any = None) -> tuple[Reply, Reply]:
        first, second = (call(daemon.socket, method, API + target, body) for daemon in self.daemons)
        return first, second


@pytest.fixture(scope="module")
def both() -> Iterator[Both]:
    if not have_dockerd():
        pytest.skip("no dockerd here")
    with Dockerd() as peer, House() as house:
        asked = Both(peer, house)
        for answer in asked("POST", "/containers/create?name=box", BODY):
            assert answer.status == 201, answer
        idle = {"Image": IMAGE, "Cmd": ["true"], "HostConfig": {"LogConfig": {"Type": "none"}}}
        for answer in asked("POST", "/containers/create?name=idle", idle):
            assert answer.status == 201, answer
        for answer in asked("POST", "/containers/box/start"):
            assert answer.status == 204, answer
        yield asked
        for name in ("box", "idle"):
            asked("DELETE", f"/containers/{name}?force=1")


def differences(theirs: Any, ours: Any, path: str = "") -> Iterator[str]:
    """Fields of theirs that ours has not, or with another type. null agrees with everything: Go's
    decoders take it for the zero value."""
    if theirs is None or ours is None:
        return
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        for key, value in theirs.items():
            inner = f"{path}.{key}".lstrip(".")
            if key not in ours:
                if not GONE.fullmatch(inner):
                    yield f"{inner} is missing"
            else:
                yield from differences(value, ours[key], inner)
    elif isinstance(theirs, list) and isinstance(ours, list):
        if theirs and ours:
            yield from differences(theirs[0], ours[0], path + "[]")
    elif type(theirs) is not type(ours) and {type(theirs), type(ours)} != {int, float}:
        yield f"{path} is {type(ours).__name__}, not {type(theirs).__name__}"


DOCUMENTS = (
    "/containers/box/json",
    "/containers/box/json?size=1",
    "/containers/json",
    "/containers/json?all=1&size=1",
    "/containers/box/top",
    "/containers/box/stats?stream=0",
    f"/images/{IMAGE}/json",
    f"/images/{IMAGE}/history",
    "/images/json",
    "/containers/idle/json",
    "/containers/idle/stats?stream=0",
    "/networks",
    "/networks/host",
    "/networks/none",
    "/volumes",
    "/info",
    "/version",
    "/system/df",
)


@pytest.mark.parametrize("target", DOCUMENTS)
def test_fields_and_types(both: Both, target: str) -> None:
    theirs, ours = both("GET", target)
    assert (theirs.status, ours.status) == (200, 200)
    assert list(differences(theirs.json, ours.json)) == []


def test_what_has_to_do_with_images(both: Both, tmp_path: Path) -> None:
    for answer in both("POST", "/commit?container=box&repo=committed&tag=1"):
        assert (answer.status, list(answer.json)) == (201, ["Id"])
    answers: dict[str, list[Any]] = {}
    for place, daemon in zip(("dockerd", "nagayad"), both.daemons, strict=True):
        with Registry(tmp_path / place, daemon.inside([])) as registry:
            registry.push_busybox(tmp_path / place, "a/b:1")
            who = {"serveraddress": registry.address, "username": "me", "password": "x"}
            for method, target, body in (
                ("POST", "/auth", who),
                ("GET", f"/distribution/{registry.address}/a/b:1/json", None),
                ("GET", f"/distribution/{registry.address}/a/none:1/json", None),
            ):
                answers.setdefault(target, []).append(call(daemon.socket, method, API + target, body))
    for target, (theirs, ours) in answers.items():
        assert theirs.status == ours.status, (target, theirs, ours)
        assert list(differences(theirs.json, ours.json)) == [], target


def test_values_of_inspect(both: Both) -> None:
    """What was asked for comes back in the same words."""
    theirs, ours = (answer.json for answer in both("GET", "/containers/box/json"))
    for part, keys in {
        "Config": "Env Cmd Image Labels ExposedPorts StopSignal StopTimeout Tty OpenStdin User WorkingDir "
        "Entrypoint",
        "HostConfig": "Binds Mounts Tmpfs Memory MemorySwap NanoCpus PidsLimit CapAdd CapDrop Ulimits "
        "Dns ExtraHosts RestartPolicy Init AutoRemove NetworkMode PidMode IpcMode ShmSize ReadonlyRootfs "
        "LogConfig",
        "State": "Status Running Paused Restarting OOMKilled Dead ExitCode Error",
    }.items():
        for key in keys.split():
            found, wanted = ours[part][key], theirs[part][key]
            if key in ("Env", "CapAdd", "NetworkMode", "IpcMode", "Init"):
                continue
            assert found == wanted or (not found and not wanted), (part, key)
    assert "A=1" in ours["Config"]["Env"]
    assert ours["HostConfig"]["CapAdd"] in (["NET_ADMIN"], ["CAP_NET_ADMIN"])
    assert ours["HostConfig"]["Init"] is True
    for mount in ("/v", "/t", "/q"):
        one, two = (next(m for m in d["Mounts"] if m["Destination"] == mount) for d in (theirs, ours))
        for key in ("Type", "Mode", "RW", "Name"):
            assert one.get(key) == two.get(key), (mount, key)
    for key in ("Path", "Args", "Name", "RestartCount", "Driver", "Platform"):
        assert theirs[key] == ours[key], key


REFUSALS: tuple[tuple[str, str, Any], ...] = (
    ("GET", "/containers/nosuch/json", None),
    ("POST", "/containers/nosuch/start", None),
    ("POST", "/containers/nosuch/wait", None),
    ("DELETE", "/containers/nosuch", None),
    ("DELETE", "/containers/box", None),
    ("POST", "/containers/create?name=box", {"Image": IMAGE}),
    ("POST", "/containers/create?name=a%20b", {"Image": IMAGE}),
    ("POST", "/containers/create", {"Image": "nosuch:1"}),
    ("POST", "/containers/create", {"Image": "UPPER"}),
    ("POST", "/containers/create", {"Image": IMAGE, "HostConfig": {"Memory": 5}}),
    (
        "POST",
        "/containers/create",
        {"Image": IMAGE, "HostConfig": {"Memory": 9 << 20, "MemorySwap": 8 << 20}},
    ),
    ("POST", "/containers/create", {"Image": IMAGE, "HostConfig": {"NanoCpus": 10**15}}),
    ("POST", "/containers/create", {"Image": IMAGE, "HostConfig": {"Binds": ["/a:/b:x"]}}),
    ("POST", "/containers/create", {"Image": IMAGE, "HostConfig": {"Binds": ["/a:/"]}}),
    ("POST", "/containers/create", {"Image": IMAGE, "HostConfig": {"Binds": ["/a:b"]}}),
    ("POST", "/containers/create", {"Image": IMAGE, "HostConfig": {"Binds": ["/a:/b", "/c:/b"]}}),
    (
        "POST",
        "/containers/create",
        {"Image": IMAGE, "HostConfig": {"Mounts": [{"Type": "x", "Target": "/a"}]}},
    ),
    ("POST", "/containers/create", {"Image": IMAGE, "HostConfig": {"OomScoreAdj": 2000}}),
    ("POST", "/containers/create", {"Image": IMAGE, "HostConfig": {"ShmSize": -1}}),
    ("POST", "/containers/create", {"Image": IMAGE, "WorkingDir": "rel"}),
    ("GET", "/containers/box/logs", None),
    ("GET", "/containers/idle/logs?stdout=1", None),
    ("GET", "/containers/idle/top", None),
    ("POST", "/containers/idle/kill", None),
    ("POST", "/containers/idle/pause", None),
    ("POST", "/containers/idle/exec", {"Cmd": ["x"]}),
    ("POST", "/containers/box/rename?name=idle", None),
    ("POST", "/containers/box/rename", None),
    ("POST", "/containers/box/kill?signal=NOPE", None),
    ("POST", "/containers/box/update", {"Memory": 5}),
    ("GET", "/images/nosuch/json", None),
    ("GET", "/images/nosuch/history", None),
    ("DELETE", "/images/nosuch", None),
    ("POST", "/images/nosuch/tag?repo=a", None),
    ("GET", "/networks/nosuch", None),
    ("GET", "/exec/nosuch/json", None),
    ("POST", "/containers/nosuch/exec", {"Cmd": ["x"]}),
    ("POST", "/containers/box/exec", {"Cmd": []}),
    ("POST", "/containers/box/unpause", None),
    ("GET", "/nosuch", None),
    ("GET", "/containers/json?filters=x", None),
)


@pytest.mark.parametrize(
    ("method", "target", "body"), REFUSALS, ids=[f"{m} {t} {b}"[:90] for m, t, b in REFUSALS]
)
def test_refusals(both: Both, method: str, target: str, body: Any) -> None:
    theirs, ours = both(method, target, body)
    assert theirs.status >= 400
    # a 500 of theirs for the client's fault is not copied
    assert ours.status == theirs.status or (theirs.status == 500 and 400 <= ours.status < 500), ours
    wanted = plain(theirs.message)
    assert plain(ours.message) in (wanted, SAME.get(wanted))


def plain(message: str) -> str:
    """Without ids, ends and capitals, which newer dockerds have changed too."""
    for prefix in ("Error: ", "Error when allocating new name: "):
        message = message.removeprefix(prefix)
    return re.sub("[0-9a-f]{64}", "ID", message).rstrip(".\n").lower()


SAME: Mapping[str, str] = {
    "you cannot remove a running container id. "
    "stop the container before attempting removal or force remove": (
        'cannot remove container "box": container is running: '
        "stop the container before removing or force remove"
    ),
    "invalid reference format: repository name must be lowercase": (
        "invalid reference format: repository name (library/upper) must be lowercase"
    ),
    "no such image: nosuch: no such image: nosuch:latest": "no such image: nosuch:latest",
    "invalid character 'x' looking for beginning of value": (
        "invalid filter: json is malformed: invalid character (byte 0)"
    ),
}
"""Message of dockerd 20.10: what newer ones, and ours, say for it."""
