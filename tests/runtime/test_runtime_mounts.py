"""Mounts as runc makes them: owners mapped, flags kept and cleared, places that links and prefixes name."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bundles import Bundle

pytestmark = pytest.mark.root


@pytest.fixture
def volume(box: Bundle) -> Iterator[Path]:
    """A tmpfs of the host with a file of 1000:2000."""
    path = box.base / "volume"
    path.mkdir(mode=0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "strictatime", "tmpfs", path], check=True)
    (path / "file").write_text("x")
    os.chown(path / "file", 1000, 2000)
    box.base.chmod(0o755)
    yield path
    subprocess.run(["umount", path], check=True)


def add(box: Bundle, source: Path | str, destination: str, *options: str, **members: Any) -> None:
    box.spec["mounts"].append(
        {
            "type": "bind",
            "source": str(source),
            "destination": destination,
            "options": list(options),
            **members,
        }
    )


def mapping(inside: int, outside: int, size: int = 65536) -> list[dict[str, int]]:
    return [{"containerID": inside, "hostID": outside, "size": size}]


def remap(box: Bundle) -> None:
    box.spec["linux"]["namespaces"].append({"type": "user"})
    box.spec["linux"]["uidMappings"] = box.spec["linux"]["gidMappings"] = mapping(0, 100000)
    box.path.chmod(0o755)
    for path in (box.rootfs, *box.rootfs.rglob("*")):
        os.chown(path, 100000, 100000, follow_symlinks=False)


def owners(box: Bundle, path: str = "/mnt/file") -> str:
    return box.shell(f"stat -c %u:%g {path}").strip()


def skip_old_runc(box: Bundle) -> None:
    if not box.is_ours:
        pytest.skip("runc has it since 1.2")


def test_owners_are_mapped(box: Bundle, volume: Path) -> None:
    skip_old_runc(box)
    add(box, volume, "/mnt", "bind", uidMappings=mapping(1000, 5), gidMappings=mapping(2000, 7))
    assert owners(box) == "5:7"


@pytest.mark.parametrize(("word", "expected"), [("idmap", "1000:2000"), ("ridmap", "5:7")])
def test_a_whole_tree_is_mapped_only_by_ridmap(box: Bundle, volume: Path, word: str, expected: str) -> None:
    skip_old_runc(box)
    above = box.base / "above"
    (above / "sub").mkdir(parents=True)
    subprocess.run(["mount", "--bind", volume, above / "sub"], check=True)
    try:
        maps = {"uidMappings": mapping(1000, 5), "gidMappings": mapping(2000, 7)}
        add(box, above, "/mnt", "rbind", word, **maps)
        assert owners(box, "/mnt/sub/file") == expected
    finally:
        subprocess.run(["umount", above / "sub"], check=True)


def test_in_a_user_namespace_idmap_takes_the_containers_mapping(box: Bundle, volume: Path) -> None:
    skip_old_runc(box)
    remap(box)
    add(box, volume, "/mnt", "bind", "idmap")
    assert owners(box) == "1000:2000"


def test_a_mapping_that_is_not_whole_is_refused(our_box: Bundle) -> None:
    add(our_box, "/usr", "/mnt", "bind", uidMappings=mapping(0, 5))
    done = our_box.run("true")
    assert done.returncode == 1
    assert "id-mapped mounts must have both uid and gid mappings" in done.stderr
    our_box.spec["mounts"][-1] |= {"type": "tmpfs", "options": [], "gidMappings": mapping(0, 5)}
    assert "only supported for bind-mounts" in our_box.run("true").stderr


def flags(box: Bundle, path: str = "/mnt") -> set[str]:
    for line in box.shell("cat /proc/self/mounts").splitlines():
        if line.split()[1] == path:
            return set(line.split()[3].split(","))
    raise AssertionError(path)


def test_flags_of_the_source_stay_only_without_any_option(box: Bundle, volume: Path) -> None:
    skip_old_runc(box)
    subprocess.run(["mount", "-o", "remount,bind,ro,noexec,noatime", volume], check=True)
    add(box, volume, "/mnt", "bind")
    assert {"ro", "noexec", "noatime"} <= flags(box)
    box.spec["mounts"][-1]["options"] = ["bind", "nosuid"]
    assert {"rw", "nosuid", "noatime"} <= flags(box) and "noexec" not in flags(box)
    box.spec["mounts"][-1]["options"] = ["bind", "relatime"]
    assert {"rw", "relatime"} <= flags(box) and "noatime" not in flags(box)


def test_a_user_namespace_keeps_the_flags_that_protect(box: Bundle, volume: Path) -> None:
    skip_old_runc(box)
    subprocess.run(["mount", "-o", "remount,bind,ro,noexec", volume], check=True)
    remap(box)
    add(box, volume, "/mnt", "bind", "nosuid")
    assert {"ro", "nosuid", "noexec"} <= flags(box)
    box.spec["mounts"][-1]["options"] = ["bind", "rw"]
    done = box.run("true")
    assert done.returncode == 1
    assert "error during container init: error mounting" in done.stderr
    assert "operation not permitted" in done.stderr


def test_a_tmpfs_has_the_mode_of_what_it_covers(box: Bundle) -> None:
    (box.rootfs / "kept").mkdir()
    (box.rootfs / "kept").chmod(0o710)
    for place in ("/kept", "/fresh"):
        box.spec["mounts"].append({"type": "tmpfs", "source": "tmpfs", "destination": place})
    assert box.shell("stat -c %a /kept /fresh").split() == ["710", "1777"]


def test_a_place_may_be_given_by_its_name_on_the_host(box: Bundle, volume: Path) -> None:
    skip_old_runc(box)
    add(box, volume, f"{box.rootfs}/mnt", "bind")
    assert box.shell("cat /mnt/file") == "x"


def test_a_place_behind_a_link_to_nothing_is_made_inside(box: Bundle, volume: Path) -> None:
    skip_old_runc(box)
    (box.rootfs / "jump").symlink_to("/made/by")
    (box.rootfs / "etc" / "hosts").unlink(missing_ok=True)
    (box.rootfs / "etc" / "hosts").symlink_to("/../../jump/us/hosts")
    add(box, volume / "file", "/etc/hosts", "bind")
    assert box.shell("cat /etc/hosts /made/by/us/hosts") == "xx"
    assert not Path("/made").exists()


def test_links_in_a_circle_are_an_error(our_box: Bundle) -> None:
    (our_box.rootfs / "one").symlink_to("two")
    (our_box.rootfs / "two").symlink_to("one")
    add(our_box, "/usr", "/one/x", "bind")
    done = our_box.run("true")
    assert done.returncode == 1 and "too many levels of symbolic links" in done.stderr


@pytest.mark.parametrize("word", ["shared", "slave", "private"])
def test_propagation_of_the_root_in_a_shared_world(box: Bundle, word: str) -> None:
    if word == "shared":
        skip_old_runc(box)
    box.spec["linux"]["rootfsPropagation"] = word
    box.spec["process"]["args"] = ["cat", "/proc/self/mountinfo"]
    box.save()
    run = " ".join(box.argv("run", "--bundle", str(box.path), box.id))
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "shared", "sh", "-c", f"mount --make-rshared /; {run}"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done
    root = next(line for line in done.stdout.splitlines() if line.split()[4] == "/")
    words = {"shared": "shared:", "slave": "master:", "private": " - "}
    assert words[word] in root


@pytest.mark.parametrize("users", [False, True])
def test_a_source_in_the_root_has_what_was_mounted_there_before(
    box: Bundle, volume: Path, users: bool
) -> None:
    skip_old_runc(box)
    if users:
        remap(box)
    add(box, volume, "/one", "bind")
    add(box, box.rootfs / "one", "/two", "rbind")
    assert box.shell("cat /two/file") == "x"
    add(box, box.rootfs / "nowhere", "/three", "bind")
    done = box.run("true")
    assert done.returncode == 1 and "no such file or directory" in done.stderr and "nowhere" in done.stderr
