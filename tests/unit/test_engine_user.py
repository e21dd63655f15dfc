"""`--user` against an image's passwd and group: docker's semantics, and what attackers put there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nagaya.engine.layered import LayeredRoot
from nagaya.engine.user import MAX_ID, Identity, resolve
from nagaya.errors import InvalidArgument

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
# a comment
daemon:x:1:1::/usr/sbin
user:x:1000:1000:A User:/home/user:/bin/sh
nohome:x:1001:1001::
short:x:5
bad:x:-1:0::/
huge:x:4294967296:0::/
1234567890123:x:0:0:a name of digits:/evil:/bin/sh
2147483648:x:0:0:another:/evil:/bin/sh
"""
GROUP = """\
root:x:0:
wheel:x:10:root,user
users:x:100:user
audio:x:63:nohome,user
bad:x:-5:user
"""


@pytest.fixture
def root(tmp_path: Path) -> LayeredRoot:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text(GROUP)
    return LayeredRoot([str(tmp_path)])


@pytest.mark.parametrize(
    ("user", "add", "expected"),
    [
        ("", (), Identity(0, 0, (0, 10), "/root")),
        ("root", (), Identity(0, 0, (0, 10), "/root")),
        ("0", (), Identity(0, 0, (0, 10), "/root")),
        ("user", (), Identity(1000, 1000, (1000, 10, 100, 63), "/home/user")),
        ("1000", (), Identity(1000, 1000, (1000, 10, 100, 63), "/home/user")),
        # a group that was named is all there is, as with docker run -u
        ("user:users", (), Identity(1000, 100, (100,), "/home/user")),
        ("1000:1000", (), Identity(1000, 1000, (1000,), "/home/user")),
        ("4242", (), Identity(4242, 0, (0,), "/")),
        ("4242:4343", (), Identity(4242, 4343, (4343,), "/")),
        (":100", (), Identity(0, 100, (100,), "/root")),
        ("nohome", (), Identity(1001, 1001, (1001, 63), "/")),
        (f"{MAX_ID}:{MAX_ID}", (), Identity(MAX_ID, MAX_ID, (MAX_ID,), "/")),
        ("user:users", ("audio", "7"), Identity(1000, 100, (100, 63, 7), "/home/user")),
        ("4242", ("100",), Identity(4242, 0, (0, 100), "/")),
    ],
)
def test_resolved(root: LayeredRoot, user: str, add: tuple[str, ...], expected: Identity) -> None:
    assert resolve(user, add, root) == expected


@pytest.mark.parametrize("user", ["", "user", "1000", "4242", "user:users", "4242:4343"])
def test_the_primary_group_is_among_the_supplementary_ones(root: LayeredRoot, user: str) -> None:
    """CVE-2023-25173, CVE-2022-36109: else leaving it would pass a check for 'not this group'."""
    found = resolve(user, (), root)
    assert found.groups[0] == found.gid


@pytest.mark.parametrize(
    "user",
    [
        # beyond 31 bits (CVE-2024-40635: wrapped around to 0)
        "2147483648",
        "4294967296",
        "4294967296:4294967296",
        "0:4294967296",
        "18446744073709551616",
        # signs and other scripts' digits
        "-1",
        "+0",
        "0:-1",
        "\u0661",
        " 0",
        "1_0",
        # a number is never looked up as a name, whatever passwd says (CVE-2026-46680)
        "1234567890123",
    ],
)
def test_what_only_looks_like_a_number_is_refused(root: LayeredRoot, user: str) -> None:
    with pytest.raises(InvalidArgument, match="must be in range"):
        resolve(user, (), root)


@pytest.mark.parametrize(
    ("user", "add", "message"),
    [
        ("nobody", (), "unable to find user nobody: no matching entries in passwd file"),
        ("bad", (), "unable to find user bad"),
        ("huge", (), "unable to find user huge"),
        ("short", (), "unable to find user short"),
        ("user:nogroup", (), "unable to find group nogroup: no matching entries in group file"),
        ("user:bad", (), "unable to find group bad"),
        ("user", ("nogroup",), "unable to find group nogroup"),
        ("user", ("4294967296",), "must be in range"),
    ],
)
def test_unknown_names(root: LayeredRoot, user: str, add: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        resolve(user, add, root)


def test_an_image_without_the_files(tmp_path: Path) -> None:
    root = LayeredRoot([str(tmp_path)])
    assert resolve("7:8", (), root) == Identity(7, 8, (8,), "/")
    with pytest.raises(InvalidArgument):
        resolve("root", (), root)


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _directory(path: Path) -> None:
    path.mkdir()


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2 << 30)


def _to_zero(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _loop(path: Path) -> None:
    path.symlink_to("passwd")


@pytest.mark.parametrize("make", [_fifo, _directory, _sparse, _loop])
def test_a_passwd_that_is_no_small_file_is_refused(tmp_path: Path, make: object) -> None:
    """CVE-2026-47262: neither memory nor a thread of ours may hang on it."""
    assert callable(make)
    (tmp_path / "etc").mkdir()
    make(tmp_path / "etc/passwd")
    with pytest.raises(InvalidArgument):
        resolve("user", (), LayeredRoot([str(tmp_path)]))


def test_a_link_is_resolved_in_the_image_only(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    _to_zero(tmp_path / "etc/passwd")  # the image has no /dev/zero
    assert resolve("7", (), LayeredRoot([str(tmp_path)])).uid == 7
    (tmp_path / "etc/passwd").unlink()
    (tmp_path / "etc/passwd").symlink_to("../../../../lib/users")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/users").write_text("inner:x:12:13::/in\n")
    assert resolve("inner", (), LayeredRoot([str(tmp_path)])) == Identity(12, 13, (13,), "/in")


def test_the_upper_layer_wins(tmp_path: Path) -> None:
    for name, uid in (("upper", 1), ("lower", 2)):
        (tmp_path / name / "etc").mkdir(parents=True)
        (tmp_path / name / "etc/passwd").write_text(f"u:x:{uid}:{uid}::/{name}\n")
    root = LayeredRoot([str(tmp_path / "upper"), str(tmp_path / "lower")])
    assert resolve("u", (), root).uid == 1
    (tmp_path / "upper/etc/passwd").unlink()
    assert resolve("u", (), root).uid == 2


@pytest.mark.root
def test_whiteouts_hide(tmp_path: Path) -> None:
    for name in ("upper", "lower"):
        (tmp_path / name / "etc").mkdir(parents=True)
    (tmp_path / "lower/etc/passwd").write_text("u:x:2:2::/\n")
    root = LayeredRoot([str(tmp_path / "upper"), str(tmp_path / "lower")])
    assert resolve("u", (), root).uid == 2
    os.mknod(tmp_path / "upper/etc/passwd", 0o020000, os.makedev(0, 0))
    with pytest.raises(InvalidArgument):
        resolve("u", (), root)
    (tmp_path / "upper/etc/passwd").unlink()
    os.setxattr(tmp_path / "upper/etc", "trusted.overlay.opaque", b"y")
    with pytest.raises(InvalidArgument):
        resolve("u", (), root)
