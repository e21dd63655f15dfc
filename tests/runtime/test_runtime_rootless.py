"""Containers of an ordinary user: his own id mapped, or ranges by newuidmap; cgroups where he may."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bundles import SOURCE, Bundle, bundle, cgroups_named, nagaya_oci, wait_until

pytestmark = pytest.mark.root

USER = 54321  # nobody has it
FIRST = 231000000  # of the range that newuidmap is to allow


@pytest.fixture(scope="module")
def public() -> Iterator[str]:
    """nagaya-oci where everybody may read it; for hosts where a user may have a namespace of his own."""
    for command in (["unshare", "--user", "--map-root-user", "--mount", "true"], [sys.executable, "-c", ""]):
        if subprocess.run(
            command, user=USER, group=USER, extra_groups=[], capture_output=True, cwd="/"
        ).returncode:
            pytest.skip(f"an ordinary user cannot run {command[0]}")
    directory = Path(tempfile.mkdtemp(prefix="nagt-public-"))
    directory.chmod(0o755)
    launcher = nagaya_oci(directory)
    (packages,) = directory.glob("lib/*/site-packages/nagaya")
    packages.unlink()
    shutil.copytree(SOURCE / "nagaya", packages, ignore=shutil.ignore_patterns("*.cache", "__pycache__"))
    yield launcher
    shutil.rmtree(directory)


@pytest.fixture(params=["nagaya-oci", "runc"])
def hers(request: pytest.FixtureRequest, public: str) -> Iterator[Bundle]:
    """A user's bundle, with what `spec --rootless` writes and no terminal."""
    runtime = public if request.param == "nagaya-oci" else shutil.which("runc")
    if runtime is None:
        pytest.skip("runc is not installed")
    tag = f"nagt-{uuid.uuid4().hex[:10]}"
    with bundle(runtime, Path(tempfile.mkdtemp(prefix=f"{tag}-")), tag) as made:
        made.state_root.mkdir()
        made.spec = {}
        for top, directories, files in os.walk(made.base):
            for name in (top, *(f"{top}/{n}" for n in (*directories, *files))):
                os.chown(name, USER, USER, follow_symlinks=False)
        _ok(made, "spec", "--rootless", "--bundle", str(made.path))
        made.spec = json.loads((made.path / "config.json").read_text())
        made.spec["process"]["terminal"] = False
        made.spec["root"]["readonly"] = False
        yield made


def _as_user(box: Bundle, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """One command of the runtime, run by the user."""
    return box.call(*arguments, user=USER, group=USER, extra_groups=[], **options)


def _ok(box: Bundle, *arguments: str, **options: Any) -> str:
    done = _as_user(box, *arguments, **options)
    assert done.returncode == 0, (arguments, done)
    return done.stdout


def _run(box: Bundle, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    box.spec["process"]["args"] = list(args)
    box.save()
    return _as_user(box, "run", "--bundle", str(box.path), box.id, **options)


def test_a_users_own_id_is_root_inside(hers: Bundle) -> None:
    done = _run(
        hers, "sh", "-c", "id -u; cat /proc/self/uid_map /proc/self/setgroups; echo x >/tmp/file; exit 7"
    )
    assert done.returncode == 7, done
    assert done.stdout.split() == ["0", "0", str(USER), "1", "deny"]
    assert (hers.rootfs / "tmp" / "file").stat().st_uid == USER
    assert hers.leaks() == []


def test_the_life_of_a_users_container(hers: Bundle) -> None:
    hers.spec["process"]["args"] = ["sleep", "1000"]
    hers.save()
    _ok(hers, "create", "--bundle", str(hers.path), hers.id)
    assert json.loads(_ok(hers, "state", hers.id))["status"] == "created"
    _ok(hers, "start", hers.id)
    assert _ok(hers, "exec", hers.id, "cat", "/proc/1/comm") == "sleep\n"
    assert hers.id in _ok(hers, "list")
    _ok(hers, "kill", hers.id, "KILL")
    wait_until(lambda: json.loads(_ok(hers, "state", hers.id))["status"] == "stopped")
    _ok(hers, "delete", hers.id)
    assert hers.leaks() == []


def test_the_state_is_below_the_users_runtime_directory(hers: Bundle) -> None:
    directory = hers.base / "runtime-directory"
    directory.mkdir(mode=0o700)
    os.chown(directory, USER, USER)
    hers.spec["process"]["args"] = ["sleep", "1000"]
    hers.save()
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(directory)}

    def plain(*arguments: str) -> None:
        subprocess.run(
            [hers.runtime, *arguments],
            env=environment,
            user=USER,
            group=USER,
            extra_groups=[],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60,
        )

    plain("run", "--detach", "--bundle", str(hers.path), hers.id)
    (root,) = directory.iterdir()
    assert root.name == os.path.basename(hers.runtime)
    assert root.stat().st_mode & 0o7777 == 0o1700  # the sticky bit keeps it from being tidied away
    assert (root / hers.id).is_dir()
    plain("delete", "--force", hers.id)
    assert list(root.iterdir()) == []


def test_a_cgroup_that_is_named_must_be_writable(hers: Bundle) -> None:
    hers.spec["linux"]["cgroupsPath"] = f"/{hers.tag}"
    done = _run(hers, "true")
    assert done.returncode == 1
    assert f"{hers.tag}: permission denied" in done.stderr
    assert hers.leaks() == []


def test_a_limit_that_cannot_be_is_refused(hers: Bundle) -> None:
    hers.spec["linux"]["resources"] = {"memory": {"limit": 100 << 20}}
    done = _run(hers, "true")
    assert done.returncode == 1
    v1 = "cannot set memory limit: container could not join or create cgroup"
    v2 = "rootless needs no limits + no cgrouppath when no permission is granted for cgroups"
    assert v1 in done.stderr or (v2 in done.stderr and "runc" in hers.runtime)
    assert hers.leaks() == []


@pytest.mark.skipif(not Path("/sys/fs/cgroup/pids").is_dir(), reason="cgroup v1 is not mounted")
def test_limits_in_a_cgroup_of_the_users_own(hers: Bundle) -> None:
    for hierarchy in Path("/sys/fs/cgroup").iterdir():
        if not hierarchy.is_symlink():
            path = hierarchy / hers.tag
            path.mkdir()
            for name in (path, path / "cgroup.procs", path / "tasks"):
                if name.exists():
                    os.chown(name, USER, USER)
            if hierarchy.name == "cpuset":
                for file in ("cpuset.cpus", "cpuset.mems"):
                    (path / file).write_text((hierarchy / file).read_text())
    hers.spec["linux"]["cgroupsPath"] = f"/{hers.tag}/one"
    hers.spec["linux"]["resources"] = {"pids": {"limit": 33}}
    try:
        done = _run(hers, "cat", "/proc/self/cgroup")
        assert done.returncode == 0, done
        assert f"pids:/{hers.tag}/one" in done.stdout and f"memory:/{hers.tag}/one" in done.stdout
        assert [path for path in cgroups_named(hers.tag) if path.endswith("/one")] == []
    finally:
        for made in cgroups_named(hers.tag):
            Path(made).rmdir()


_WITH_RANGES = f"""
for name in passwd subuid subgid; do mount --bind "$1/$name" "/etc/$name" || exit 99; done
shift
exec setpriv --reuid {USER} --regid {USER} --clear-groups "$@"
"""


def _run_with_ranges(box: Bundle, *args: str) -> subprocess.CompletedProcess[str]:
    """`run` where /etc/subuid and /etc/subgid give the user a range: own files, in a mount namespace."""
    own = box.base / "etc"
    own.mkdir()
    own.chmod(0o755)
    (own / "passwd").write_text(f"root:x:0:0::/root:/bin/sh\nnagt:x:{USER}:{USER}::/:/bin/sh\n")
    for name in ("subuid", "subgid"):
        (own / name).write_text(f"nagt:{FIRST}:65536\n")
    for kind in ("uidMappings", "gidMappings"):
        box.spec["linux"][kind] = [
            {"containerID": 0, "hostID": USER, "size": 1},
            {"containerID": 1, "hostID": FIRST, "size": 65536},
        ]
    box.spec["process"]["args"] = list(args)
    box.save()
    inner = ["sh", "-c", _WITH_RANGES, "-", str(own), *box.argv("run", "--bundle", str(box.path), box.id)]
    return subprocess.run(
        ["unshare", "--mount", "--propagation", "private", *inner], capture_output=True, text=True, timeout=60
    )


@pytest.mark.skipif(shutil.which("newuidmap") is None, reason="newuidmap is not installed")
def test_ranges_are_mapped_by_newuidmap(hers: Bundle) -> None:
    hers.spec["process"]["user"] = {"uid": 5, "gid": 7}
    done = _run_with_ranges(
        hers, "sh", "-c", "id -u; id -g; cat /proc/self/uid_map; cat /proc/self/setgroups"
    )
    assert done.returncode == 0, done
    assert done.stdout.split() == ["5", "7", "0", str(USER), "1", "1", str(FIRST), "65536", "allow"]
    assert hers.leaks() == []


@pytest.mark.skipif(shutil.which("newuidmap") is None, reason="newuidmap is not installed")
def test_a_range_that_is_not_his_is_refused(hers: Bundle) -> None:
    hers.spec["linux"]["uidMappings"] = hers.spec["linux"]["gidMappings"] = [
        {"containerID": 0, "hostID": USER, "size": 1},
        {"containerID": 1, "hostID": FIRST, "size": 1},
    ]
    done = _run(hers, "true")
    assert done.returncode == 1
    if not hers.runtime.endswith("runc"):
        assert done.stderr.count("\n") == 1 and "newuidmap" in done.stderr
    assert hers.leaks() == []


def test_without_newuidmap_one_id_can_be_mapped(public: str) -> None:
    tag = f"nagt-{uuid.uuid4().hex[:10]}"
    with bundle(public, Path(tempfile.mkdtemp(prefix=f"{tag}-")), tag) as box:
        box.base.chmod(0o755)
        box.state_root.mkdir()
        os.chown(box.state_root, USER, USER)
        box.spec["linux"]["namespaces"].append({"type": "user"})
        box.spec["linux"]["uidMappings"] = box.spec["linux"]["gidMappings"] = [
            {"containerID": 0, "hostID": USER, "size": 1},
            {"containerID": 1, "hostID": FIRST, "size": 1},
        ]
        os.chown(box.base, USER, USER)
        done = _run(box, "true", env={**os.environ, "PATH": "/nonexistent"})
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1 and "newuidmap is not installed" in done.stderr
        assert box.leaks() == []


def test_additional_groups_are_refused(hers: Bundle) -> None:
    hers.spec["process"]["user"]["additionalGids"] = [5]
    done = _run(hers, "true")
    assert done.returncode == 1 and "additional groups" in done.stderr
    assert hers.leaks() == []


@pytest.mark.parametrize("word", ["true", "auto"])
def test_rootless_is_what_one_says_it_is(hers: Bundle, word: str) -> None:
    hers.spec["process"]["args"] = ["true"]
    hers.save()
    command = [hers.runtime, "--rootless", word, "--root", str(hers.state_root)]
    subprocess.run(
        [*command, "run", "--bundle", str(hers.path), hers.id],
        user=USER,
        group=USER,
        extra_groups=[],
        check=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


def test_not_rootless_misses_its_cgroups(hers: Bundle) -> None:
    hers.spec["process"]["args"] = ["true"]
    hers.save()
    command = [hers.runtime, "--rootless", "false", "--root", str(hers.state_root)]
    done = subprocess.run(
        [*command, "run", "--bundle", str(hers.path), hers.id],
        user=USER,
        group=USER,
        extra_groups=[],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1 and "permission denied" in done.stderr
    assert hers.leaks() == []
