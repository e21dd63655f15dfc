"""Checkpoints over the socket: what is refused, what a failure leaves, and the archive. Whether criu works is
the kernel's affair: here a stand-in shows what is made of its files, tests/vm has the real one."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grpclib import GRPCError, Status
from house import wait_for
from kubelet import Node, log_lines, refused

from nagaya.api.cri import runtime_pb2 as cri

pytestmark = pytest.mark.root

_CRIU = """#!/bin/sh
verb=$1
while [ $# -gt 0 ]; do
    case $1 in --images-dir) dir=$2 ;; --pidfile) pid=$2 ;; --root) root=$2 ;; esac
    shift
done
if [ $verb = restore ]; then
    cat "$dir/inventory.img" "$root/root/file"
    sleep 4321 >/dev/null 2>&1 &
    echo $! >"$pid"
    exit
fi
case $(cat {base}/behave) in
slow) exec sleep 60 ;;
fail) echo "(00.1) Error (criu/x.c:1): the reason" >"$dir/dump.log"; exit 1 ;;
esac
echo log >"$dir/dump.log"
echo image >"$dir/inventory.img"
"""


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    made = Node()
    directory = made.house.base / "bin"
    directory.mkdir()
    (directory / "criu").write_text(_CRIU.format(base=made.house.base))
    (directory / "criu").chmod(0o755)
    made.house.environment["PATH"] = f"{directory}:{made.house.environment['PATH']}"
    behave(made, "well")
    with made:
        yield made


def behave(node: Node, how: str) -> None:
    (node.house.base / "behave").write_text(how)


def left(node: Node) -> list[str]:
    """What of checkpoints is there still."""
    base = node.house.root / "checkpoints"
    return [p.name for p in base.iterdir()] if base.exists() else []


def freezer(container: str) -> str:
    (state,) = Path("/sys/fs/cgroup/freezer").rglob(f"*{container}/freezer.state")
    return state.read_text().strip()


def names(archive: bytes) -> set[str]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        return set(opened.getnames())


def test_an_archive_of_a_container_that_goes_on(node: Node, pod: str, tmp_path: Path) -> None:
    made = node.start(pod, "sh", "-c", "echo written > /root/file; rm /bin/vi; exec sleep 600")
    wait_for(lambda: "sleep" in node.exec(made, "ps", "-o", "comm"), 10, "the files")
    place = tmp_path / "one.tar"
    node.kubelet.CheckpointContainer(container_id=made, location=str(place))
    assert place.stat().st_mode & 0o777 == 0o600
    with tarfile.open(place) as archive:
        kept = {m.name: archive.extractfile(m) for m in archive.getmembers() if m.isfile()}
        files = {name: file.read() for name, file in kept.items() if file is not None}
    assert {"checkpoint/inventory.img", "config.dump", "spec.dump", "rootfs-diff.tar", "dump.log"} <= set(
        files
    )
    about = json.loads(files["config.dump"])
    assert (about["id"], about["runtime"]) == (made, "nagaya")
    assert about["rootfsImageName"] == "nagaya/busybox"
    assert json.loads(files["spec.dump"])["process"]["args"][0] == "sh"
    assert {"root/file", "bin/.wh.vi"} <= names(files["rootfs-diff.tar"])
    assert node.status(made).state == cri.CONTAINER_RUNNING
    assert node.exec(made, "cat", "/root/file") == "written\n"
    assert left(node) == [] and [p.name for p in tmp_path.iterdir()] == ["one.tar"]


def test_containers_of_a_pod_at_one_moment(node: Node, pod: str, tmp_path: Path) -> None:
    both = [node.start(pod), node.start(pod)]
    node.kubelet.CheckpointPod(pod_sandbox_id=pod, output_path=str(tmp_path), container_ids=both)
    about = json.loads((tmp_path / "pod.json").read_text())
    assert about["id"] == pod
    assert [c["id"] for c in about["containers"]] == both
    assert {p.name for p in tmp_path.iterdir()} == {"pod.json", *(c["archive"] for c in about["containers"])}
    for container in both:
        archive = (tmp_path / f"{container}.tar").read_bytes()
        assert {"checkpoint/inventory.img", "rootfs-diff.tar"} <= names(archive)
        assert node.exec(container, "echo", "on") == "on\n"


@pytest.mark.parametrize(
    ("how", "timeout", "status", "word"),
    [
        ("fail", 0, Status.FAILED_PRECONDITION, "the reason"),
        ("slow", 1, Status.DEADLINE_EXCEEDED, "took longer"),
    ],
)
def test_after_a_failure_the_container_goes_on_and_nothing_is_left(
    node: Node, pod: str, tmp_path: Path, how: str, timeout: int, status: Status, word: str
) -> None:
    made = node.start(pod)
    behave(node, how)
    ask = node.kubelet.CheckpointContainer
    try:
        place = str(tmp_path / "x.tar")
        refused(lambda: ask(container_id=made, location=place, timeout=timeout), status, word)
        fields = {"pod_sandbox_id": pod, "output_path": str(tmp_path), "container_ids": [made]}
        # the caller's own deadline comes first, and the container is let go all the same
        with pytest.raises((GRPCError, TimeoutError)):
            node.kubelet.CheckpointPod(**fields, within=2)
    finally:
        behave(node, "well")
    wait_for(lambda: freezer(made) == "THAWED" and left(node) == [], 10, "its end")
    assert node.exec(made, "echo", "on") == "on\n"
    assert node.status(made).state == cri.CONTAINER_RUNNING
    assert list(tmp_path.iterdir()) == []


def test_what_a_checkpoint_held_still_goes_on_when_the_daemon_was_killed(
    node: Node, pod: str, tmp_path: Path
) -> None:
    made = node.start(pod)
    behave(node, "slow")
    ask = node.kubelet.method("CheckpointContainer")
    request = cri.CheckpointContainerRequest(container_id=made, location=str(tmp_path / "x.tar"))
    node.kubelet.begin(ask(request))
    try:
        wait_for(lambda: freezer(made) == "FROZEN", 10, "the freezer")
        node.house.kill_daemon()
    finally:
        behave(node, "well")
    node.restart()
    assert freezer(made) == "THAWED"
    assert node.exec(made, "echo", "on") == "on\n"
    assert left(node) == []


def test_a_pod_is_made_of_its_checkpoint(node: Node, pod: str, tmp_path: Path) -> None:
    first = node.container_config("sh", "-c", "echo kept > /root/file; rm /bin/vi; exec sleep 600")
    second = node.container_config("sleep", "601")
    both = [node.start(pod, config=first), node.start(pod, config=second)]
    wait_for(lambda: "sleep" in node.exec(both[0], "ps", "-o", "comm"), 10, "the files")
    node.exec(both[1], "sh", "-c", "echo other > /root/file")
    node.kubelet.CheckpointPod(pod_sandbox_id=pod, output_path=str(tmp_path), container_ids=both)
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    config, ask = node.pod_config(), node.kubelet.RestorePod
    fields = {"checkpoint_path": str(tmp_path), "config": config, "container_configs": [second, first]}
    made = ask(**fields)
    assert ask(**fields) == made, "the same request again"
    names_of = {one.name: one.container_id for one in made.restored_containers}
    assert set(names_of) == {first.metadata.name, second.metadata.name}
    for container in names_of.values():
        assert node.status(container).state == cri.CONTAINER_CREATED
    node.house.kill_daemon()
    node.restart()  # what waits for its start outlives the daemon
    for name, text in ((first.metadata.name, "kept"), (second.metadata.name, "other")):
        node.kubelet.StartContainer(container_id=names_of[name])
        status = node.status(names_of[name])
        assert status.state == cri.CONTAINER_RUNNING
        log = Path(status.log_path)
        wait_for(lambda log=log: len(log.read_text().splitlines()) == 2, 10, "the log")  # type: ignore[misc]
        assert list(log_lines(log.read_text().splitlines(), "stdout")) == ["image", text]
    assert left(node) == []
    node.kubelet.RemovePodSandbox(pod_sandbox_id=made.pod_sandbox_id)
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before


def test_what_no_pod_is_made_of(node: Node, pod: str, tmp_path: Path) -> None:
    config = node.container_config()
    made = node.start(pod, config=config)
    node.kubelet.CheckpointPod(pod_sandbox_id=pod, output_path=str(tmp_path), container_ids=[made])
    other = node.container_config("sleep", "1")
    other.metadata.CopyFrom(config.metadata)
    empty = tmp_path / "empty"
    empty.mkdir()
    pods = {p.id for p in node.kubelet.ListPodSandbox().items}
    cases: list[tuple[dict[str, Any], Status, str]] = [
        ({"checkpoint_path": "relative"}, Status.INVALID_ARGUMENT, "checkpoint_path"),
        ({"checkpoint_path": str(empty)}, Status.NOT_FOUND, "pod.json"),
        ({"container_configs": []}, Status.INVALID_ARGUMENT, "container_configs"),
        ({"container_configs": [config, config]}, Status.INVALID_ARGUMENT, "container_configs"),
        ({"container_configs": [node.container_config()]}, Status.INVALID_ARGUMENT, "container_configs"),
        ({"container_configs": [other]}, Status.INVALID_ARGUMENT, "command"),
        ({"options": {"a": "b"}}, Status.INVALID_ARGUMENT, "options"),
        ({"runtime_handler": "runc"}, Status.UNIMPLEMENTED, "runc"),
    ]
    for change, status, word in cases:
        fields = {
            "checkpoint_path": str(tmp_path),
            "config": node.pod_config(),
            "container_configs": [config],
        }
        refused(lambda fields=fields | change: node.kubelet.RestorePod(**fields), status, word)  # type: ignore[misc]
    (tmp_path / f"{made}.tar").write_bytes(b"no archive")
    refused(lambda: node.kubelet.RestorePod(**fields), Status.DATA_LOSS, "checkpoint_path")
    assert {p.id for p in node.kubelet.ListPodSandbox().items} == pods
    assert left(node) == []


def test_what_cannot_be_is_refused(node: Node, pod: str, tmp_path: Path) -> None:
    one, pods = node.kubelet.CheckpointContainer, node.kubelet.CheckpointPod
    made, created = node.start(pod), node.create(pod)
    place = str(tmp_path / "x.tar")
    cases: list[tuple[dict[str, Any], Status, str]] = [
        ({"container_id": "", "location": place}, Status.INVALID_ARGUMENT, "container_id"),
        ({"container_id": "0123", "location": place}, Status.NOT_FOUND, "0123"),
        ({"container_id": created, "location": place}, Status.FAILED_PRECONDITION, "not running"),
        ({"container_id": made, "location": ""}, Status.INVALID_ARGUMENT, "location"),
        ({"container_id": made, "location": "x.tar"}, Status.INVALID_ARGUMENT, "location"),
        ({"container_id": made, "location": "/no/such/x.tar"}, Status.INVALID_ARGUMENT, "location"),
        ({"container_id": made, "location": str(tmp_path)}, Status.INVALID_ARGUMENT, "location"),
        ({"container_id": made, "location": place, "timeout": -1}, Status.INVALID_ARGUMENT, "timeout"),
    ]
    for fields, status, word in cases:
        refused(lambda fields=fields: one(**fields), status, word)  # type: ignore[misc]
    good = {"pod_sandbox_id": pod, "output_path": str(tmp_path), "container_ids": [made]}
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("")
    other = node.run_pod()
    cases = [
        ({"pod_sandbox_id": "0123"}, Status.NOT_FOUND, "0123"),
        ({"pod_sandbox_id": other}, Status.INVALID_ARGUMENT, "container_ids"),
        ({"container_ids": []}, Status.INVALID_ARGUMENT, "container_ids"),
        ({"container_ids": [made, made]}, Status.INVALID_ARGUMENT, "container_ids"),
        ({"container_ids": [created]}, Status.FAILED_PRECONDITION, "not running"),
        ({"output_path": str(full)}, Status.INVALID_ARGUMENT, "output_path"),
        ({"output_path": "relative"}, Status.INVALID_ARGUMENT, "output_path"),
        ({"options": {"a": "b"}}, Status.INVALID_ARGUMENT, "options"),
    ]
    for fields, status, word in cases:
        refused(lambda fields=fields: pods(**{**good, **fields}), status, word)  # type: ignore[misc]
    node.kubelet.RemovePodSandbox(pod_sandbox_id=other)
    assert node.exec(made, "echo", "on") == "on\n"
