"""Devices by name: specs in throwaway directories, asked for by the real client and by ours."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from house import House

from nagaya.engine import cdi
from nagaya.engine.model import DeviceRequest
from nagaya.errors import InvalidArgument

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"
YAML = """
cdiVersion: "0.6.0"
kind: nvidia.com/gpu
devices:
  - name: "0"
    containerEdits:
      env: [GPU=zero]
  - name: "1"
    containerEdits:
      env: [GPU1=one]
  - name: all
    containerEdits:
      env: [GPU=all]
containerEdits:
  env:
    - COMMON=yes
"""


def spec(kind: str, *devices: dict[str, Any], **common: Any) -> str:
    return json.dumps({"cdiVersion": "0.6.0", "kind": kind, "devices": devices, "containerEdits": common})


def device(name: str, **edits: Any) -> dict[str, Any]:
    return {"name": name, "containerEdits": edits}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cdi")


@pytest.fixture(scope="module")
def house(directory: Path) -> Iterator[House]:
    with House("--cdi-spec-dirs", str(directory), "--cdi-spec-dirs", str(directory / "later")) as started:
        yield started


def test_what_a_device_brings_along(house: House, directory: Path) -> None:
    (directory / "library").write_text("driver\n")
    edits = {
        "env": ["VENDOR=new", "PATH_OF=x"],
        "deviceNodes": [
            {"path": "/dev/vendor", "hostPath": "/dev/zero", "fileMode": 0o660, "gid": 7},
            {"path": "/dev/readable", "hostPath": "/dev/kmsg", "permissions": "r"},
        ],
        "mounts": [{"hostPath": str(directory / "library"), "containerPath": "/usr/lib/vendor.so"}],
        "additionalGids": [0, 4711],
        "hooks": [{"hookName": "createContainer", "path": "/bin/touch", "args": ["touch", "hooked"]}],
    }
    (directory / "vendor.json").write_text(spec("vendor.com/class", device("one", **edits)))
    script = "echo $VENDOR; ls -ln /dev/vendor; cat /usr/lib/vendor.so; id -G; head -c 3 /dev/vendor | wc -c"
    for client in (house.docker, house.nagaya):
        said = client(
            "run", "--rm", "-e", "VENDOR=old", "--device", "vendor.com/class=one", IMAGE, "sh", "-c", script
        )
        assert said.returncode == 0, said
        variable, node, library, groups, count = said.stdout.decode().splitlines()
        assert (variable, library, count) == ("new", "driver", "3")
        assert node.split()[:4] == ["crw-rw----", "1", "0", "7"] and "4711" in groups.split()
    refused = house.docker(
        "run", "--rm", "--device", "vendor.com/class=one", IMAGE, "sh", "-c", "echo > /dev/readable"
    )
    assert refused.returncode == 1 and b"ot permitted" in refused.stderr


@pytest.mark.parametrize(
    ("words", "shown"),
    (("all", "all yes"), ("2", "zero one yes"), ("device=1", "one yes"), ('"device=0,1"', "zero one yes")),
)
def test_gpus(house: House, directory: Path, words: str, shown: str) -> None:
    (directory / "nvidia.yaml").write_text(YAML)
    for client in (house.docker, house.nagaya):
        said = client("run", "--rm", "--gpus", words, IMAGE, "sh", "-c", "echo $GPU $GPU1 $COMMON")
        assert said.stdout.decode().strip() == shown, said


def test_what_is_not_there(house: House, directory: Path) -> None:
    (directory / "broken.yaml").write_text("kind: [")
    said = house.docker("run", "--name", "lost", "--device", "vendor.com/class=two", IMAGE, "true")
    assert said.returncode == 125
    assert b"unresolvable CDI devices vendor.com/class=two (" in said.stderr
    assert b"broken.yaml" in said.stderr
    (directory / "broken.yaml").unlink()
    house.ok("rm", "lost")
    body = json.dumps(
        {"Image": IMAGE, "HostConfig": {"DeviceRequests": [{"Driver": "x", "Capabilities": [["a"]]}]}}
    )
    answer = house.curl("/containers/create", "-d", body, "-H", "Content-Type: application/json")
    assert json.loads(answer)["message"] == 'could not select device driver "x" with capabilities: [[a]]'


def test_later_directories_win_and_doubles_are_nobody(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    (first / "x.json").write_text(spec("v.com/c", device("d", env=["A=1"]), device("e", env=["E=1"])))
    (second / "x.json").write_text(spec("v.com/c", device("d", env=["A=2"])))
    both = [str(first), str(second), str(tmp_path / "missing")]
    assert cdi.Catalog(both).edits(["v.com/c=d"])[1].env == ("A=2",)
    assert cdi.Catalog(both).edits(["v.com/c=e"])[1].env == ("E=1",)
    (second / "y.json").write_text(spec("v.com/c", device("e")))
    (second / "z.json").write_text(spec("v.com/c", device("e")))
    with pytest.raises(InvalidArgument, match=r"is in two specs of .*/b"):
        cdi.Catalog(both[1:]).edits(["v.com/c=e"])


@pytest.mark.parametrize("name", ("v.com/c", "v.com/c=", "/c=d", "v.com=d", "v.com/c=../d", "v/c=a b"))
def test_names(name: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid CDI device name"):
        cdi.names([DeviceRequest("cdi", ids=(name,))])


def test_a_node_takes_from_the_host_what_the_spec_leaves_out() -> None:
    document: dict[str, Any] = {
        "process": {"env": [], "user": {}},
        "mounts": [],
        "linux": {"resources": {"devices": []}},
    }
    node = {"path": "/dev/mine", "hostPath": "/dev/null"}
    edits = msgspec.convert({"deviceNodes": [node]}, cdi.Edits)
    cdi.apply(document, [edits])
    info = os.stat("/dev/null")
    major, minor = os.major(info.st_rdev), os.minor(info.st_rdev)
    assert document["linux"]["devices"] == [
        {"path": "/dev/mine", "type": "c", "major": major, "minor": minor}
    ]
    rule = {"allow": True, "type": "c", "access": "rwm", "major": major, "minor": minor}
    assert document["linux"]["resources"]["devices"] == [rule]
