"""Docker's library for Python on our socket: what its users do every day, with dockerd first."""

from __future__ import annotations

import io
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import APIError, BuildError, ContainerError, ImageNotFound, NotFound
from docker.types import LogConfig, Mount, Ulimit
from dockerd import Dockerd
from house import House, wait_for

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"
NONE = {"network_mode": "none"}


@pytest.fixture
def client(server: Dockerd | House) -> Iterator[docker.DockerClient]:
    found = docker.DockerClient(base_url=f"unix://{server.socket}", timeout=60)
    yield found
    for container in found.containers.list(all=True):
        container.remove(force=True, v=True)
    for volume in found.volumes.list():
        volume.remove()
    found.close()


def sleeping(client: docker.DockerClient, **more: Any) -> Any:
    return client.containers.run(IMAGE, ["sleep", "600"], detach=True, **{**NONE, **more})


def archive(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def test_the_daemon(client: docker.DockerClient) -> None:
    assert client.ping()
    assert client.version()["ApiVersion"]
    facts = client.info()
    assert facts["OSType"] == "linux" and facts["NCPU"] >= 1
    assert {"Images", "Containers", "Volumes", "LayersSize"} <= set(client.df())


def test_run(client: docker.DockerClient) -> None:
    assert client.containers.run(IMAGE, ["echo", "hi"], remove=True, **NONE) == b"hi\n"
    assert client.containers.run(IMAGE, "sh -c 'echo $A'", environment={"A": "x y"}, remove=True, **NONE) == (
        b"x y\n"
    )
    with pytest.raises(ContainerError) as failed:
        client.containers.run(IMAGE, ["sh", "-c", "echo bad >&2; exit 3"], remove=True, **NONE)
    assert (failed.value.exit_status, failed.value.stderr) == (3, b"bad\n")
    with pytest.raises(ImageNotFound):
        client.containers.create("nosuch:1", ["true"])
    with pytest.raises(APIError, match="executable file not found"):
        client.containers.run(IMAGE, ["nosuchprogram"], remove=True, **NONE)


def test_many_wishes(client: docker.DockerClient) -> None:
    container = sleeping(
        client,
        name="wishes",
        hostname="h",
        working_dir="/tmp",
        user="1000:1000",
        labels={"a": "b"},
        mem_limit="64m",
        nano_cpus=500_000_000,
        pids_limit=50,
        cap_drop=["NET_RAW"],
        read_only=True,
        tmpfs={"/t": "size=1m"},
        ulimits=[Ulimit(name="nofile", soft=100, hard=200)],
        log_config=LogConfig(type=LogConfig.types.JSON, config={"max-size": "1m"}),
        restart_policy={"Name": "on-failure", "MaximumRetryCount": 2},
        mounts=[Mount("/v", "data"), Mount("/x", None, type="tmpfs")],
        init=True,
    )
    assert container.labels == {"a": "b"}
    assert client.containers.list(filters={"label": "a=b"}) == [container]
    said = container.exec_run(["sh", "-c", "id -u; pwd; hostname; ulimit -Hn; touch /r 2>&1; touch /t/x"])
    assert said.exit_code == 0
    assert said.output.decode().split("\n")[:4] == ["1000", "/tmp", "h", "200"]
    assert b"Read-only file system" in said.output
    container.reload()
    host = container.attrs["HostConfig"]
    assert (host["Memory"], host["NanoCpus"], host["PidsLimit"]) == (64 << 20, 500_000_000, 50)
    assert {m["Destination"] for m in container.attrs["Mounts"]} == {"/v", "/x"}


def test_life(client: docker.DockerClient) -> None:
    container = client.containers.create(IMAGE, ["sh", "-c", "trap 'exit 5' TERM; sleep 600 & wait"], **NONE)
    assert container.status == "created"
    container.start()
    container.reload()
    assert container.status == "running"
    container.pause()
    container.reload()
    assert container.status == "paused"
    container.unpause()
    container.rename("other")
    container.update(mem_limit="128m", memswap_limit="256m")
    container.reload()
    assert (container.name, container.attrs["HostConfig"]["Memory"]) == ("other", 128 << 20)
    # the trap is set once the shell has got so far
    wait_for(lambda: "sleep" in str(container.top()["Processes"]), 30, "the shell")
    container.stop(timeout=20)
    assert container.wait()["StatusCode"] == 5
    container.restart()
    container.kill()
    assert container.wait()["StatusCode"] == 137
    container.remove()
    with pytest.raises(NotFound):
        client.containers.get("other")


def test_logs(client: docker.DockerClient) -> None:
    script = "for n in 1 2 3; do echo $n; echo e$n >&2; done; sleep 600"
    container = client.containers.run(IMAGE, ["sh", "-c", script], detach=True, **NONE)
    wait_for(lambda: container.logs().count(b"\n") == 6, 30, "six lines")
    assert container.logs(stderr=False) == b"1\n2\n3\n"
    assert container.logs(stdout=False) == b"e1\ne2\ne3\n"
    # dockerd counts the lines of both streams, which it writes in any order
    assert container.logs(stderr=False, timestamps=True, tail=6).split(b"Z ")[-1] == b"3\n"
    assert container.logs(since=int(time.time()) + 100) == b""
    lines: list[bytes] = []
    follower = threading.Thread(
        target=lambda: lines.extend(container.logs(stream=True, follow=True, stderr=False))
    )
    follower.start()
    wait_for(lambda: b"".join(lines) == b"1\n2\n3\n", 30, "the follower")
    container.kill()
    follower.join(30)
    assert not follower.is_alive()


def test_exec(client: docker.DockerClient) -> None:
    container = sleeping(client)
    assert container.exec_run("sh -c 'exit 7'").exit_code == 7
    assert (
        container.exec_run(["env"], environment=["A=1"], user="7", workdir="/tmp").output.count(b"A=1\n") == 1
    )
    out, err = container.exec_run(["sh", "-c", "echo o; echo e >&2"], demux=True).output
    assert (out, err) == (b"o\n", b"e\n")
    assert b"".join(container.exec_run(["echo", "x"], stream=True).output) == b"x\n"
    assert container.exec_run(["tty"], tty=True).output == b"/dev/pts/0\r\n"
    made = client.api.exec_create(container.id, ["sh", "-c", "read x; echo got $x"], stdin=True)
    sock = client.api.exec_start(made["Id"], socket=True)
    sock._sock.sendall(b"line\n")
    said = b""
    while b"got line" not in said:
        data = sock._sock.recv(4096)
        assert data, said
        said += data
    sock.close()
    wait_for(lambda: not client.api.exec_inspect(made["Id"])["Running"], 30, "its end")
    assert client.api.exec_inspect(made["Id"])["ExitCode"] == 0


def test_attach(client: docker.DockerClient) -> None:
    container = client.containers.create(IMAGE, ["cat"], stdin_open=True, **NONE)
    sock = container.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})
    container.start()
    sock._sock.sendall(b"hello\n")
    said = b""
    while b"hello\n" not in said:
        said += sock._sock.recv(4096)
    sock._sock.close()
    sock.close()
    container.kill()
    short = client.containers.create(IMAGE, ["echo", "out"], **NONE)
    stream = short.attach(stream=True, logs=True)
    short.start()
    assert b"".join(stream) == b"out\n"


def test_archives(client: docker.DockerClient) -> None:
    container = sleeping(client)
    assert container.put_archive("/tmp", archive("file", b"content"))
    stream, status = container.get_archive("/tmp/file")
    assert (status["name"], status["size"]) == ("file", 7)
    with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as tar:
        read = tar.extractfile("file")
        assert read is not None and read.read() == b"content"
    with pytest.raises(NotFound):
        container.get_archive("/nothing")
    assert {"Path": "/tmp/file", "Kind": 1} in container.diff()
    with tarfile.open(fileobj=io.BytesIO(b"".join(container.export()))) as tar:
        assert "tmp/file" in tar.getnames()


def test_stats_and_top(client: docker.DockerClient) -> None:
    container = sleeping(client)
    wait_for(lambda: "sleep 600" in str(container.top()["Processes"]), 30, "more than runc's first process")
    once = container.stats(stream=False)
    assert once["memory_stats"]["usage"] > 0 and once["cpu_stats"]["cpu_usage"]["total_usage"] > 0
    flow = container.stats(decode=True)
    first, second = next(flow), next(flow)
    assert first["read"] < second["read"]
    flow.close()


def test_events(client: docker.DockerClient) -> None:
    begun = int(time.time())
    flow = client.events(decode=True, since=begun, filters={"type": "container", "event": ["create", "die"]})
    client.containers.run(IMAGE, ["true"], name="told", **NONE)
    found = []
    for event in flow:
        if event["Actor"]["Attributes"]["name"] == "told":
            found.append(event["Action"])
            if event["Action"] == "die":
                break
    flow.close()
    assert found == ["create", "die"]


def test_images(client: docker.DockerClient) -> None:
    image = client.images.get(IMAGE)
    assert f"{IMAGE}:latest" in image.tags
    assert image.tag("other", "v1")
    assert client.images.get("other:v1").id == image.id
    assert [i.id for i in client.images.list(name="other")] == [image.id]
    assert image.history()
    client.images.remove("other:v1")
    with pytest.raises(ImageNotFound):
        client.images.get("other:v1")
    saved = b"".join(image.save(named=True))
    (loaded,) = client.images.load(saved)
    assert loaded.id == image.id


def test_volumes(client: docker.DockerClient) -> None:
    volume = client.volumes.create("data", labels={"a": "b"})
    assert client.volumes.get("data") == volume and volume.attrs["Labels"] == {"a": "b"}
    client.containers.run(
        IMAGE, ["touch", "/d/x"], volumes={"data": {"bind": "/d", "mode": "rw"}}, remove=True
    )
    assert client.containers.run(IMAGE, ["ls", "/d"], volumes=["data:/d:ro"], remove=True, **NONE) == b"x\n"
    assert [v.name for v in client.volumes.list(filters={"label": "a=b"})] == ["data"]
    user = sleeping(client, volumes=["data:/d"])
    with pytest.raises(APIError, match="volume is in use"):
        volume.remove()
    user.remove(force=True)
    volume.remove()
    with pytest.raises(NotFound):
        client.volumes.get("data")
    client.volumes.create()
    assert len(client.volumes.prune()["VolumesDeleted"]) == 1


def test_prune(client: docker.DockerClient) -> None:
    container = client.containers.create(IMAGE, ["true"], labels={"prune": "me"}, **NONE)
    keep = client.containers.create(IMAGE, ["true"], **NONE)
    assert client.containers.prune(filters={"label": ["prune"]})["ContainersDeleted"] == [container.id]
    assert [c.id for c in client.containers.list(all=True)] == [keep.id]


@pytest.mark.parametrize("version", ["1.24", "1.30", "1.40", "1.41"])
def test_old_versions_of_the_api(server: Dockerd | House, version: str) -> None:
    client = docker.DockerClient(base_url=f"unix://{server.socket}", version=version)
    container = client.containers.run(IMAGE, ["sh", "-c", "echo hi; sleep 600"], detach=True)
    wait_for(lambda: container.logs() == b"hi\n", 30, "its line")
    assert [c.id for c in client.containers.list()] == [container.id]
    assert container.exec_run(["echo", "x"]).output == b"x\n"
    assert client.images.list()
    container.remove(force=True)
    client.close()


def test_an_exec_s_stream_is_what_its_start_says(client: docker.DockerClient) -> None:
    """Frames also of a terminal, when the start does not say that there is one; the two have no more to do
    with one another."""
    container = sleeping(client)
    for tty in (False, True):
        made = client.api.exec_create(container.id, ["printf", "yay"], tty=tty)
        assert client.api.exec_start(made["Id"], demux=True) == (b"yay", None)
    made = client.api.exec_create(container.id, ["printf", "yay"])
    stream = client.api.exec_start(made["Id"], tty=True, socket=True)
    stream = getattr(stream, "_sock", stream)
    assert stream.recv(16) == b"yay"
    stream.close()


def test_members_may_be_in_any_case(client: docker.DockerClient) -> None:
    """The library itself says `detachKeys`; Go's JSON takes it for DetachKeys."""
    container = sleeping(client, name="cases")
    post = client.api._post_json
    answer = post(
        client.api._url("/containers/create"), {"image": IMAGE, "CMD": ["true"], "labels": {"aB": "c"}}
    )
    made = client.containers.get(answer.json()["Id"])
    assert made.attrs["Config"]["Cmd"] == ["true"] and made.labels == {"aB": "c"}
    answer = post(
        client.api._url("/containers/{0}/exec", container.id), {"cmd": ["true"], "detachKeys": "ctrl-x"}
    )
    exec_id = answer.json()["Id"]
    assert client.api.exec_inspect(exec_id)["DetachKeys"] is not None


def test_words_that_are_only_kept(client: docker.DockerClient) -> None:
    container = client.containers.create(IMAGE, ["true"], volume_driver="nosuch", isolation="default", **NONE)
    host = container.attrs["HostConfig"]
    assert (host["VolumeDriver"], host["Isolation"]) == ("nosuch", "default")
    with pytest.raises(APIError, match='plugin "nosuch" not found'):
        client.containers.create(IMAGE, ["true"], volume_driver="nosuch", volumes=["/v"], **NONE)


def test_builds(client: docker.DockerClient, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {IMAGE}\nARG v=0\nCOPY . /c\nRUN echo $v >/v\n")
    (tmp_path / "f").write_text("1")
    (tmp_path / "left").write_text("2")
    (tmp_path / ".dockerignore").write_text("left\n")
    image, log = client.images.build(
        path=str(tmp_path), tag="py:1", buildargs={"v": "7"}, labels={"a": "b"}, network_mode="none", rm=True
    )
    said = [line["stream"] for line in log if "stream" in line]
    assert said[0].startswith("Step 1/") and any(line.startswith("Successfully built") for line in said)
    assert image.tags == ["py:1"] and image.labels == {"a": "b"}
    assert (
        client.containers.run("py:1", ["sh", "-c", "cat /v; ls /c"], remove=True, **NONE)
        == b"7\nDockerfile\nf\n"
    )
    image, _ = client.images.build(fileobj=io.BytesIO(f"FROM {IMAGE}\nCMD true\n".encode()), rm=True)
    assert image.attrs["Config"]["Cmd"] == ["/bin/sh", "-c", "true"]
    with pytest.raises(BuildError, match="returned a non-zero code: 3") as failed:
        client.images.build(
            fileobj=io.BytesIO(f"FROM {IMAGE}\nRUN echo so; exit 3\n".encode()), network_mode="none"
        )
    assert any(line.get("stream") == "so\n" for line in failed.value.build_log)
    with pytest.raises(APIError, match="unknown instruction: FOO"):
        client.images.build(fileobj=io.BytesIO(b"FOO\n"))
    client.images.remove("py:1", force=True)


def test_what_was_written_is_there_for_who_attaches_late(
    client: docker.DockerClient, server: Dockerd | House
) -> None:
    """The library drops what comes in one read with the answer's head: dockerd's log at times, never ours."""
    right = {b"hello\n"} if isinstance(server, House) else {b"hello\n", b""}
    for _ in range(20):
        container = client.containers.create(IMAGE, ["echo", "hello"], **NONE)
        container.start()
        container.wait()
        assert container.attach(logs=True) in right
        container.remove()


def test_who_asks_at_once_sees_what_a_short_program_said(client: docker.DockerClient) -> None:
    """A start and its log, without a wait between: dockerd's start is so slow that this works."""
    for _ in range(10):
        container = client.containers.create(IMAGE, ["ls", "-a", "/etc"], **NONE)
        container.start()
        assert b"passwd" in container.logs()
        container.remove(force=True)


def test_an_image_knows_what_it_was_committed_from(client: docker.DockerClient) -> None:
    container = client.containers.create(IMAGE, ["true"], **NONE)
    made = container.commit("committed")
    assert made.attrs["Parent"] == client.images.get(IMAGE).id
    container.remove()
    client.images.remove("committed")
