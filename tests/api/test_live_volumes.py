"""/volumes and what containers do with them: first Debian's dockerd, which proves the test, then ours."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from dockerd import Dockerd
from house import House
from rawhttp import Reply, call

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"
TMPFS = {"type": "tmpfs", "device": "tmpfs", "o": "size=1m,uid=1000,mode=750"}


class Asker:
    """One server, asked with one version of the API."""

    def __init__(self, server: Dockerd | House) -> None:
        self.server = server
        self.ours = isinstance(server, House)

    def __call__(self, method: str, target: str, body: Any = None) -> Reply:
        return call(self.server.socket, method, "/v1.41" + target, body)

    def ok(self, method: str, target: str, body: Any = None) -> Any:
        answer = self(method, target, body)
        assert answer.status < 300, answer
        return answer.json if answer.body else None

    def run(self, name: str, *command: str, **host: Any) -> str:
        """A container that runs the command until it is removed."""
        body = {"Image": IMAGE, "Cmd": list(command or ("sleep", "600")), "HostConfig": host}
        made = self.ok("POST", f"/containers/create?name={name}", body)["Id"]
        self.ok("POST", f"/containers/{name}/start")
        return str(made)

    def says(self, name: str, *command: str) -> str:
        """What a command in a running container says."""
        made = self.ok("POST", f"/containers/{name}/exec", {"Cmd": list(command), "AttachStdout": True})
        answer = call(self.server.socket, "POST", f"/v1.41/exec/{made['Id']}/start", {})
        return answer.body[8:].decode()

    def events(self, since: float, **filters: list[str]) -> list[dict[str, Any]]:
        query = f"since={since:.9f}&until={time.time():.9f}&filters={quote(json.dumps(filters))}"
        return [json.loads(line) for line in self("GET", f"/events?{query}").body.splitlines()]

    def volumes(self, **filters: list[str]) -> list[str]:
        found = self.ok("GET", f"/volumes?filters={quote(json.dumps(filters))}")
        return sorted(v["Name"] for v in found["Volumes"] or ())


@pytest.fixture
def ask(server: Dockerd | House) -> Iterator[Asker]:
    asker = Asker(server)
    yield asker
    for container in asker.ok("GET", "/containers/json?all=1"):
        asker.ok("DELETE", f"/containers/{container['Id']}?force=1&v=1")
    for name in asker.volumes():
        asker.ok("DELETE", f"/volumes/{name}")
    assert asker.volumes() == []


def test_a_volume_s_life(ask: Asker) -> None:
    begun = time.time()
    made = ask("POST", "/volumes/create", {"Name": "data", "Driver": "local", "Labels": {"a": "1"}})
    assert made.status == 201
    assert made.json == ask.ok("GET", "/volumes/data")
    assert {k: made.json[k] for k in ("Driver", "Labels", "Name", "Options", "Scope")} == {
        "Driver": "local",
        "Labels": {"a": "1"},
        "Name": "data",
        "Options": None,
        "Scope": "local",
    }
    assert made.json["Mountpoint"].endswith("/volumes/data/_data")
    # once more: the one that is there, whatever else is said of it
    again = ask("POST", "/volumes/create", {"Name": "data", "Labels": {"b": "2"}, "DriverOpts": TMPFS})
    assert (again.status, again.json) == (201, made.json)
    anonymous = ask.ok("POST", "/volumes/create", {})["Name"]
    assert len(anonymous) == 64
    assert ask.volumes() == sorted(("data", anonymous))
    assert ask.volumes(label=["a=1"]) == ask.volumes(name=["dat"]) == ["data"]
    assert ask.volumes(label=["a=2"]) == ask.volumes(driver=["other"]) == []
    assert ask("DELETE", "/volumes/data").status == 204
    assert ask("DELETE", "/volumes/data").status == 404
    assert ask("DELETE", "/volumes/data?force=1").status == 204
    assert ask("GET", "/volumes/data").message == "get data: no such volume"
    told = [(e["Action"], e["Actor"]["Attributes"]) for e in ask.events(begun, volume=["data"])]
    assert told[0] == ("create", {"driver": "local"})
    assert told[-1] == ("destroy", {"driver": "local"})


REFUSED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"Name": "a"}, "volume name is too short, names should be at least two alphanumeric characters"),
    ({"Name": "a/b"}, '"a/b" includes invalid characters for a local volume name'),
    ({"Name": "xx", "Driver": "odd"}, 'error looking up volume plugin odd: plugin "odd" not found'),
    ({"Name": "xx", "DriverOpts": {"size": "10m"}}, "quota size requested but no quota support"),
    ({"Name": "xx", "DriverOpts": {"size": "junk"}}, "invalid size: 'junk'"),
    ({"Name": "xx", "DriverOpts": {"type": "tmpfs"}}, 'missing required option: "device"'),
    ({"Name": "xx", "DriverOpts": {"device": "tmpfs"}}, 'missing required option: "type"'),
    ({"Name": "xx", "DriverOpts": {"o": "ro"}}, 'missing required option: "device"'),
    ({"Name": "xx", "DriverOpts": {"odd": "ro"}}, 'invalid option: "odd"'),
)


@pytest.mark.parametrize(("body", "message"), REFUSED, ids=[str(b) for b, _ in REFUSED])
def test_refused(ask: Asker, body: dict[str, Any], message: str) -> None:
    answer = ask("POST", "/volumes/create", body)
    # where dockerd takes a client's fault for its own, ours is no 500
    assert answer.status in ((400, 404) if ask.ours else (400, 404, 500))
    assert answer.message.startswith(f"create {body['Name']}: {message}")


@pytest.mark.parametrize("query", ['filters={"odd":["x"]}', 'filters={"dangling":["x"]}', "filters=x"])
def test_odd_filters(ask: Asker, query: str) -> None:
    assert ask("GET", f"/volumes?{query}").status == 400


def test_in_use(ask: Asker) -> None:
    user = ask.run("user", Binds=["data:/d"])
    for query in ("", "?force=1"):
        refused = ask("DELETE", f"/volumes/data{query}")
        assert (refused.status, refused.message) == (409, f"remove data: volume is in use - [{user}]")
    ask.ok("POST", "/volumes/create", {"Name": "idle"})
    assert ask.volumes(dangling=["true"]) == ["idle"]
    assert ask.volumes(dangling=["false"]) == ["data"]
    usage = {v["Name"]: v["UsageData"]["RefCount"] for v in ask.ok("GET", "/system/df")["Volumes"]}
    assert usage == {"data": 1, "idle": 0}


def test_prune_by_label(ask: Asker) -> None:
    for name in ("one", "two"):
        ask.ok("POST", "/volumes/create", {"Name": name, "Labels": {name: "x"}})

    def prune(**filters: list[str]) -> Any:
        return ask.ok("POST", f"/volumes/prune?filters={quote(json.dumps(filters))}")

    assert prune(label=["three"]) == {"VolumesDeleted": [], "SpaceReclaimed": 0}
    assert prune(label=["one=x"])["VolumesDeleted"] == ["one"]
    assert prune(**{"label!": ["two=x"]})["VolumesDeleted"] == []
    assert prune(**{"label!": ["two=y"]})["VolumesDeleted"] == ["two"]
    assert ask("POST", '/volumes/prune?filters={"odd":["x"]}').status == 400


def test_a_volume_with_options_is_not_pruned(ask: Asker) -> None:
    ask.ok("POST", "/volumes/create", {"Name": "memory", "DriverOpts": TMPFS})
    assert ask.ok("POST", "/volumes/prune")["VolumesDeleted"] == []
    assert ask.volumes() == ["memory"]


def test_propagation_that_the_source_has_not(ask: Asker) -> None:
    body = {"Image": IMAGE, "Cmd": ["true"], "HostConfig": {"Binds": ["/proc:/p:rslave"]}}
    ask.ok("POST", "/containers/create?name=user", body)
    refused = ask("POST", "/containers/user/start")
    assert refused.status == (409 if ask.ours else 500)
    assert refused.message == "path /proc is mounted on /proc but it is not a shared or slave mount"


def test_events_of_a_container_s_volumes(ask: Asker) -> None:
    begun = time.time()
    user = ask.run("user", Binds=["data:/d:ro", "/anonymous"])
    ask.ok("POST", "/containers/user/kill")
    ask.ok("POST", "/containers/user/wait?condition=not-running")
    ask.ok("DELETE", "/containers/user?v=1")
    told = ask.events(begun, type=["volume"])
    mounted = next(e for e in told if e["Action"] == "mount" and e["Actor"]["ID"] == "data")
    assert mounted["Actor"]["Attributes"] == {
        "container": user,
        "destination": "/d",
        "driver": "local",
        "propagation": "",
        "read/write": "false",
    }
    unmounted = next(e for e in told if e["Action"] == "unmount" and e["Actor"]["ID"] == "data")
    assert unmounted["Actor"]["Attributes"] == {"container": user, "driver": "local"}
    (gone,) = [e for e in told if e["Action"] == "destroy"]
    assert len(gone["Actor"]["ID"]) == 64
    order = [e["Action"] for e in told if e["Actor"]["ID"] == gone["Actor"]["ID"]]
    assert order == ["create", "mount", "unmount", "destroy"]


def test_a_file_system_of_its_own(ask: Asker) -> None:
    """Mounted as long as somebody who runs has it, and one for all of them."""
    ask.ok("POST", "/volumes/create", {"Name": "memory", "DriverOpts": TMPFS})
    assert ask.ok("GET", "/volumes/memory")["Options"] == TMPFS
    ask.run("one", Binds=["memory:/m"])
    assert ask.says("one", "stat", "-f", "-c", "%T %b", "/m").split()[0] == "tmpfs"
    assert ask.says("one", "stat", "-c", "%u %a", "/m") == "1000 750\n"
    ask.says("one", "touch", "/m/mine")
    ask.run("two", Mounts=[{"Type": "volume", "Source": "memory", "Target": "/m"}])
    assert ask.says("two", "ls", "/m") == "mine\n"
    ask.ok("DELETE", "/containers/one?force=1")
    assert ask.says("two", "ls", "/m") == "mine\n"
    ask.ok("DELETE", "/containers/two?force=1")
    ask.run("three", Binds=["memory:/m"])
    assert ask.says("three", "ls", "/m") == ""


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"type": "none", "device": "/no/such/directory", "o": "bind"}, "no such file or directory"),
        ({"type": "nfs", "device": ":/x", "o": "addr=127.0.0.1,rw"}, "no such device"),
        ({"type": "nosuchfs", "device": "x"}, "no such device"),
    ],
    ids=("bind", "nfs", "odd"),
)
def test_what_cannot_be_mounted(ask: Asker, options: dict[str, str], why: str) -> None:
    ask.ok("POST", "/volumes/create", {"Name": "bad", "DriverOpts": options})
    body = {"Image": IMAGE, "Cmd": ["true"], "HostConfig": {"Binds": ["bad:/nothing/there"]}}
    assert ask("POST", "/containers/create?name=user", body).status == 201
    failed = ask("POST", "/containers/user/start")
    assert failed.status == (400 if ask.ours else 500)
    assert failed.message.startswith("error while mounting volume '")
    assert f"failed to mount local volume: mount {options['device']}:" in failed.message
    assert failed.message.endswith(f": {why}")
    # to be filled it must be mounted at once
    body["HostConfig"] = {"Binds": ["bad:/bin"]}
    failed = ask("POST", "/containers/create?name=other", body)
    assert failed.status in ((400,) if ask.ours else (500,))
    assert failed.message.endswith(f": {why}")
    assert ask("GET", "/containers/other/json").status == 404


def test_a_bind_volume_is_filled_once(ask: Asker) -> None:
    ask.run("host", "sh", "-c", "sleep 600", Tmpfs={"/x": ""})
    options = {"type": "none", "device": "/dev/shm", "o": "bind,ro"}
    ask.ok("POST", "/volumes/create", {"Name": "shared", "DriverOpts": options})
    ask.run("reader", Binds=["shared:/nothing/there"])
    assert ask.says("reader", "sh", "-c", "touch /nothing/there/x 2>&1 || true").endswith(
        "Read-only file system\n"
    )


def test_a_volume_made_by_a_mount(ask: Asker) -> None:
    wanted = [
        {
            "Type": "volume",
            "Source": "made",
            "Target": "/m",
            "VolumeOptions": {
                "NoCopy": True,
                "Labels": {"a": "1"},
                "DriverConfig": {"Name": "local", "Options": TMPFS},
            },
        },
        {"Type": "volume", "Target": "/anonymous", "VolumeOptions": {"Labels": {"b": "2"}}},
        {"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 65536, "Mode": 0o700}},
        {
            "Type": "bind",
            "Source": "/var",
            "Target": "/b",
            "ReadOnly": True,
            "BindOptions": {"Propagation": "rprivate", "NonRecursive": True},
        },
    ]
    ask.run("user", Mounts=wanted)
    shown = ask.ok("GET", "/containers/user/json")
    assert shown["HostConfig"]["Mounts"] == wanted
    assert not shown["HostConfig"]["Binds"]
    made = ask.ok("GET", "/volumes/made")
    assert (made["Labels"], made["Options"]) == ({"a": "1"}, TMPFS)
    assert [len(name) for name in ask.volumes(label=["b=2"])] == [64]
    assert ask.says("user", "stat", "-c", "%a", "/t") == "700\n"
    assert "ro" in mount_options(ask.says("user", "cat", "/proc/mounts"), "/b")


def mount_options(text: str, target: str) -> list[str]:
    """The options of the last mount at target in the text of /proc/mounts."""
    return [line.split()[3].split(",") for line in text.splitlines() if line.split()[1] == target][-1]


ODD_MOUNTS: tuple[dict[str, Any], ...] = (
    {"Type": "volume", "Target": "/x", "ReadOnly": True},
    {"Type": "volume", "Target": "/x", "BindOptions": {}},
    {"Type": "bind", "Target": "/x", "Source": "/tmp", "VolumeOptions": {}},
    {"Type": "bind", "Target": "/x", "Source": "/tmp", "BindOptions": {"Propagation": "odd"}},
    {"Type": "bind", "Target": "/x", "Source": "/no/such/directory"},
    {"Type": "tmpfs", "Target": "/x", "Source": "/tmp"},
    {"Type": "volume", "Target": "/x", "Source": "a/b"},
    {"Type": "volume", "Target": "/x", "VolumeOptions": {"DriverConfig": {"Name": "odd"}}},
)


@pytest.mark.parametrize("mount", ODD_MOUNTS, ids=[str(m) for m in ODD_MOUNTS])
def test_odd_mounts(ask: Asker, mount: dict[str, Any]) -> None:
    body = {"Image": IMAGE, "Cmd": ["true"], "HostConfig": {"Mounts": [mount]}}
    answer = ask("POST", "/containers/create", body)
    assert answer.status in (400, 404), answer
