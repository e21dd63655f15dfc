"""`checkpoint` and `restore`: with criu where it works on this kernel, and what is said where not."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from bundles import Bundle, wait_until

pytestmark = pytest.mark.root


def _criu_works() -> bool:
    return (
        shutil.which("criu") is not None
        and not subprocess.run(["criu", "check"], capture_output=True).returncode
    )


def _stand_in(directory: Path, script: str) -> dict[str, str]:
    """An environment in which `criu` is that script."""
    directory.mkdir()
    (directory / "criu").write_text(f"#!/bin/sh\n{script}\n")
    (directory / "criu").chmod(0o755)
    return {**os.environ, "PATH": f"{directory}:{os.environ['PATH']}"}


_FAILS = """
while [ $# -gt 0 ]; do
    case $1 in --images-dir) dir=$2 ;; --work-dir) work=$2 ;; --log-file) log=$2 ;; esac
    shift
done
echo "(00.0) Error (criu/util.c:1): exited, status=1
(00.1) Error (criu/x.c:1): the reason
(00.2) Error (criu/x.c:2): Dumping FAILED.
" >"${work:-$dir}/$log"
exit 1"""


def test_without_criu_the_container_goes_on(our_box: Bundle, tmp_path: Path) -> None:
    our_box.start()
    nowhere = {**os.environ, "PATH": str(tmp_path)}
    images = str(tmp_path / "images")
    done = our_box.call("checkpoint", "--image-path", images, our_box.id, env=nowhere)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "criu is not installed" in done.stderr
    assert our_box.status() == "running"
    our_box.ok("delete", "--force", our_box.id)
    back = ("restore", "--image-path", images, "--bundle", str(our_box.path), our_box.id)
    done = our_box.call(*back, env=nowhere)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "criu is not installed" in done.stderr
    assert our_box.leaks() == []


@pytest.mark.parametrize("work", [False, True])
def test_what_criu_complains_of_is_said(our_box: Bundle, tmp_path: Path, work: bool) -> None:
    our_box.start()
    environment = _stand_in(tmp_path / "bin", _FAILS)
    options = ["--image-path", str(tmp_path / "images")]
    options += ["--work-path", str(tmp_path / "work")] if work else []
    where = tmp_path / ("work" if work else "images")
    done = our_box.call("checkpoint", *options, our_box.id, env=environment)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done
    assert "criu failed: (00.1) Error (criu/x.c:1): the reason" in done.stderr
    assert f"log file: {where}/dump.log" in done.stderr
    assert our_box.status() == "running"
    our_box.ok("delete", "--force", our_box.id)
    done = our_box.call("restore", *options, "--bundle", str(our_box.path), our_box.id, env=environment)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done
    assert "the reason" in done.stderr and f"log file: {where}/restore.log" in done.stderr
    assert our_box.leaks() == []


def test_a_criu_that_dies_leaves_the_container_thawed(our_box: Bundle, tmp_path: Path) -> None:
    our_box.start()
    frozen = f"{our_box.runtime} --root {our_box.state_root} pause {our_box.id}; kill -9 $$"
    environment = _stand_in(tmp_path / "bin", frozen)
    done = our_box.call("checkpoint", "--image-path", str(tmp_path / "i"), our_box.id, env=environment)
    assert done.returncode == 1 and "criu failed: exit status -9" in done.stderr
    assert our_box.status() == "running"


def test_a_checkpoint_ends_and_deletes_the_container(our_box: Bundle, tmp_path: Path) -> None:
    """What criu does to the processes is done here by the one that stands in for it."""
    our_box.start()
    pid = our_box.state()["pid"]
    environment = _stand_in(tmp_path / "bin", f"kill -9 {pid}")
    images = str(tmp_path / "i")
    our_box.ok(
        "checkpoint", "--image-path", images, "--pre-dump", our_box.id, env=_stand_in(tmp_path / "b", "")
    )
    our_box.ok(
        "checkpoint", "--image-path", images, "--leave-running", our_box.id, env=_stand_in(tmp_path / "c", "")
    )
    assert our_box.status() == "running"
    our_box.ok("checkpoint", "--image-path", images, our_box.id, env=environment)
    assert our_box.leaks() == []


def test_a_created_and_a_stopped_container_cannot_be_checkpointed(box: Bundle, tmp_path: Path) -> None:
    box.save()
    box.ok("create", "--bundle", str(box.path), box.id)
    done = box.call("checkpoint", "--image-path", str(tmp_path), box.id, cwd=tmp_path)
    assert done.returncode == 1 and "cannot be checkpointed in created state" in done.stderr
    box.ok("start", box.id)
    wait_until(lambda: box.status() == "stopped")
    done = box.call("checkpoint", "--image-path", str(tmp_path), box.id, cwd=tmp_path)
    assert done.returncode == 1 and "cannot be checkpointed in stopped state" in done.stderr


def test_the_parent_path_is_relative_to_the_images(our_box: Bundle, tmp_path: Path) -> None:
    our_box.start()
    images = ("--image-path", str(tmp_path / "i"))
    for parent, message in (
        ("/absolute", "--parent-path must be relative"),
        ("../x", "invalid --parent-path"),
    ):
        done = our_box.call("checkpoint", *images, "--parent-path", parent, our_box.id)
        assert done.returncode == 1 and message in done.stderr
    assert our_box.status() == "running"


def test_what_no_restore_can_do_is_refused_first(our_box: Bundle, tmp_path: Path) -> None:
    (tmp_path / "descriptors.json").write_text("[]")
    back = ("restore", "--image-path", str(tmp_path), "--bundle", str(our_box.path), our_box.id)
    our_box.spec["process"]["terminal"] = True
    our_box.save()
    assert "a container with a terminal" in our_box.call(*back).stderr
    our_box.spec["process"]["terminal"] = False
    our_box.spec["hooks"] = {"createRuntime": [{"path": "/bin/true"}]}
    our_box.save()
    assert "createRuntime hooks cannot be run in a restore" in our_box.call(*back).stderr
    del our_box.spec["hooks"]
    our_box.save()
    (tmp_path / "descriptors.json").unlink()
    done = our_box.call(*back)
    assert done.returncode == 1 and "descriptors.json: no such file or directory" in done.stderr


@pytest.mark.skipif(not _criu_works(), reason="criu check fails on this kernel")
def test_a_counter_goes_on_where_it_was(box: Bundle, tmp_path: Path) -> None:
    """Its standard streams are pipes, as under any engine: a file of the host would not be found again."""
    box.spec["linux"]["namespaces"] = [n for n in box.spec["linux"]["namespaces"] if n["type"] != "network"]
    box.spec["process"]["args"] = [
        "sh",
        "-c",
        "while :; do i=$((i+1)); echo $i >/tmp/count; sleep 0.05; done",
    ]
    box.save()
    count = box.rootfs / "tmp" / "count"

    def value() -> int:
        return int(count.read_text() or 0) if count.exists() else 0

    paths = ("--image-path", str(tmp_path / "i"), "--work-path", str(tmp_path / "w"))
    own = os.pipe(), os.pipe()

    def piped(*command: str) -> int:
        argv = box.argv(*command, "--bundle", str(box.path), box.id)
        return subprocess.run(argv, stdin=own[0][0], stdout=own[1][1], stderr=own[1][1]).returncode

    try:
        assert piped("run", "--detach") == 0
        wait_until(lambda: value() > 5)
        box.ok("checkpoint", *paths, "--leave-running", box.id)
        assert box.status() == "running"
        box.ok("checkpoint", *paths, box.id)
        assert box.leaks() == []
        before = value()
        assert before > 5
        assert piped("restore", "--detach", *paths) == 0, os.read(own[1][0], 4096)
        assert box.status() == "running"
        wait_until(lambda: value() > before)
        assert box.ok("exec", box.id, "cat", "/proc/1/comm") == "sh\n"
        box.ok("delete", "--force", box.id)
        assert box.leaks() == []
    finally:
        for fd in (*own[0], *own[1]):
            os.close(fd)
