"""Layers made to harm: each is refused or confined, and nothing outside its directory changes.

The corpus is that of docs/design.md's security history: names, links, whiteouts, devices, xattrs,
bombs. Every test unpacks beside a victim whose files, modes and times must stay as they were.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakeregistry import file, member, tar
from house import SOURCE

from nagaya.errors import DataLoss, InvalidArgument, NagayaError, ResourceExhausted, Unimplemented
from nagaya.image import layers, trees
from nagaya.image.layers import Limits, Unpacked
from nagaya.image.tar import TarReader

pytestmark = pytest.mark.root

DIR, SYM, HARD, CHR, BLK, FIFO = (
    tarfile.DIRTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.FIFOTYPE,
)
Unpack = Callable[..., Unpacked]


def folder(name: str, mode: int = 0o755) -> tarfile.TarInfo:
    return member(name, DIR, mode=mode)


def symlink(name: str, target: str) -> tarfile.TarInfo:
    return member(name, SYM, target)


def hardlink(name: str, target: str, mode: int = 0o644) -> tarfile.TarInfo:
    return member(name, HARD, target, mode)


def device(name: str, kind: bytes = CHR, major: int = 1, minor: int = 3) -> tarfile.TarInfo:
    info = member(name, kind)
    info.devmajor, info.devminor = major, minor
    return info


def pax(info: tarfile.TarInfo, **headers: str) -> tarfile.TarInfo:
    info.pax_headers = {key.replace("__", "."): value for key, value in headers.items()}
    return info


def header(name: bytes, kind: bytes = b"0", link: bytes = b"", size: bytes = b"00000000000\0") -> bytes:
    """One ustar header, as no archiver would write it (pax(1), "ustar Interchange Format")."""
    block = bytearray(
        name.ljust(100, b"\0")[:100] + b"0000644\0" + b"0000000\0" * 2 + size + b"00000000000\0"
    )
    block += b"        " + kind + link.ljust(100, b"\0")[:100] + b"ustar\00000" + bytes(247)
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def picture(directory: Path) -> list[tuple[object, ...]]:
    """Everything about a tree that unpacking elsewhere must not change."""
    found: list[tuple[object, ...]] = []
    for path in (directory, *sorted(directory.rglob("*"))):
        status = path.lstat()
        data = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found.append((str(path), status.st_mode, status.st_uid, status.st_nlink, status.st_mtime_ns, data))
    return found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = tmp_path / "home"
    made.mkdir(mode=0o700)
    return made


@pytest.fixture
def unpack(tmp_path: Path, home: Path) -> Iterator[Unpack]:
    """Unpack an archive into home/fs; the victim beside it is compared at the end."""
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o755)
    (victim / "shadow").write_bytes(b"root:x\n")
    (victim / "shadow").chmod(0o600)
    before = picture(victim)

    def run(*entries: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes] | bytes, **limits: int) -> Unpacked:
        data = entries[0] if isinstance(entries[0], bytes) else tar(*entries)  # type: ignore[arg-type]
        fd = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return layers.unpack([data], fd, Limits(**limits), lambda: None)
        finally:
            os.close(fd)

    yield run
    assert picture(victim) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "victim"]
    assert [p.name for p in home.iterdir()] == ["fs"]


def is_whiteout(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(path: Path) -> bool:
    try:
        return os.getxattr(path, "trusted.overlay.opaque", follow_symlinks=False) == b"y"
    except OSError:
        return False


# names


@pytest.mark.parametrize("name", ["../victim/x", "a/../../victim/x", "..", "a/..", "/../victim/x"])
def test_a_name_with_dots_is_refused(unpack: Unpack, name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"a name with '\.\.' in it: refused"):
        unpack(file(name, b"x"))


def test_an_absolute_name_is_below_the_root(unpack: Unpack, home: Path) -> None:
    unpack(file("/etc/x", b"in"))
    assert (home / "fs/etc/x").read_bytes() == b"in"


@pytest.mark.parametrize("name", [b".", b"./", b"/", b"", b"././", b"//"])
@pytest.mark.parametrize("kind", [b"2", b"1", b"6", b"3"])
def test_umoci_2021_29136_the_root_stays_a_directory(
    unpack: Unpack, home: Path, name: bytes, kind: bytes
) -> None:
    with pytest.raises(InvalidArgument, match="the root of a layer must be a directory"):
        unpack(header(name, kind, b"../victim"))
    assert stat.S_ISDIR((home / "fs").lstat().st_mode)


@pytest.mark.parametrize("name", [".", "./"])
def test_the_root_may_have_a_mode_and_an_owner(unpack: Unpack, home: Path, name: str) -> None:
    info = folder(name, 0o700)
    info.uid = 7
    unpack(info)
    status = (home / "fs").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o700, 7)


def test_a_name_with_a_nul_is_refused(unpack: Unpack) -> None:
    with pytest.raises(InvalidArgument, match="a name holds a NUL byte"):
        unpack(pax(file("x")[0], path="a\0b"))


def test_any_bytes_are_a_name(unpack: Unpack, home: Path) -> None:
    unpack(header(b"\xff\xed\xa0\x80 \n'") + bytes(1024))
    assert os.listdir(os.fsencode(home / "fs")) == [b"\xff\xed\xa0\x80 \n'"]


def test_a_path_of_300_levels(unpack: Unpack, home: Path) -> None:
    deep = "/".join(["d"] * 300)
    unpack(file(f"{deep}/x", b"deep"))
    assert (home / "fs" / deep / "x").read_bytes() == b"deep"


def test_a_tree_that_is_deeper_than_path_max_can_be_removed(unpack: Unpack, home: Path) -> None:
    """Built through links to its own bottom, so that each name of the archive is short."""
    part = "/".join(["n" * 200] * 10)
    entries = [folder(part), symlink("l0", part)]
    for level in range(4):
        entries += [folder(f"l{level}/{part}"), symlink(f"l{level + 1}", f"l{level}/{part}")]
    unpack(*entries)
    assert max(len(os.fsencode(d)) for d, _, _ in os.walk(home, onerror=None)) > 3000
    fd = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    try:
        trees.remove(fd, "fs")
    finally:
        os.close(fd)
    assert list(home.iterdir()) == []
    (home / "fs").mkdir()


def test_a_name_over_path_max_is_refused(unpack: Unpack) -> None:
    with pytest.raises(InvalidArgument, match="a name longer than 4096 bytes"):
        unpack(file("/".join(["x" * 100] * 50)))


def test_a_component_over_name_max_is_refused_by_the_kernel(unpack: Unpack) -> None:
    with pytest.raises(NagayaError, match="file name too long"):
        unpack(file("x" * 300))


# links


@pytest.mark.parametrize("target", ["../victim", "/../victim", "../../../../../victim"])
def test_a_file_below_a_link_that_leads_out_stays_inside(unpack: Unpack, home: Path, target: str) -> None:
    unpack(folder("victim"), symlink("out", target), file("out/shadow", b"mine", 0o777))
    assert os.readlink(home / "fs/out") == target
    assert (home / "fs/victim/shadow").read_bytes() == b"mine"


@pytest.mark.parametrize("target", ["../victim", "nowhere"])
def test_a_file_below_a_link_to_nothing_of_this_layer_is_refused(
    unpack: Unpack, home: Path, target: str
) -> None:
    with pytest.raises(NagayaError, match="unpack out/shadow: not a directory"):
        unpack(symlink("out", target), file("out/shadow", b"mine", 0o777))
    assert os.listdir(home / "fs") == ["out"]


def test_a_link_of_proc_is_not_followed_by_magic(unpack: Unpack, home: Path) -> None:
    unpack(folder("proc/self/root"), symlink("out", "/proc/self/root"), file("out/x", b"in"))
    assert (home / "fs/proc/self/root/x").read_bytes() == b"in"


def test_links_in_a_circle_end(unpack: Unpack) -> None:
    with pytest.raises(NagayaError, match="too many levels of symbolic links"):
        unpack(symlink("a", "b"), symlink("b", "a"), file("a/x"))


@pytest.mark.parametrize("target", ["../victim/shadow", "/../victim/shadow", "a/../../victim/shadow"])
def test_a_hard_link_that_leads_out_is_refused(unpack: Unpack, target: str) -> None:
    with pytest.raises(InvalidArgument, match="refused"):
        unpack(hardlink("x", target))


def test_a_hard_link_through_a_link_that_leads_out(unpack: Unpack) -> None:
    with pytest.raises(InvalidArgument, match=r"is not in this layer|no such file"):
        unpack(symlink("out", "../victim"), hardlink("x", "out/shadow"))


def test_containerd_2021_32760_mode_through_a_hard_link_to_a_link(
    unpack: Unpack, tmp_path: Path, home: Path
) -> None:
    """The link itself is linked, and a later entry of that name replaces it: chmod meets a new file."""
    unpack(
        symlink("evil", str(tmp_path / "victim/shadow")),
        hardlink("evil2", "evil", 0o777),
        file("evil2", b"", 0o777),
        member("evil", HARD, "evil2", 0o777),
    )
    assert stat.S_ISREG((home / "fs/evil2").lstat().st_mode)


def test_a_hard_link_to_a_directory_to_the_root_or_to_nothing_is_refused(unpack: Unpack, home: Path) -> None:
    for link, words in (("d", "hard link to the directory"), (".", "to the root"), ("no", "not in this")):
        with pytest.raises(InvalidArgument, match=words):
            unpack(folder("d"), hardlink("x", link))
        (home / "fs/d").rmdir()
        (home / "fs").rmdir()
    (home / "fs").mkdir()


def test_a_hard_link_to_itself_loses_nothing(unpack: Unpack, home: Path) -> None:
    unpack(file("a", b"kept"), hardlink("a", "a"), hardlink("a", "./a"))
    assert (home / "fs/a").read_bytes() == b"kept"


def test_the_name_is_replaced_and_its_other_links_stay(unpack: Unpack, home: Path) -> None:
    unpack(file("a", b"first"), hardlink("b", "a"), file("a", b"second"))
    assert (home / "fs/a").read_bytes() == b"second"
    assert (home / "fs/b").read_bytes() == b"first"


def test_a_directory_becomes_a_link_and_a_link_a_directory(unpack: Unpack, home: Path) -> None:
    unpack(
        *(
            folder("victim"),
            folder("d"),
            file("d/x", b"1"),
            symlink("d", "../victim"),
            file("d/shadow", b"2"),
        ),
        *(symlink("l", "../victim"), folder("l"), file("l/shadow", b"3")),
    )
    assert os.readlink(home / "fs/d") == "../victim"
    assert (home / "fs/victim/shadow").read_bytes() == b"2"
    assert (home / "fs/l").is_dir() and not (home / "fs/l").is_symlink()
    assert (home / "fs/l/shadow").read_bytes() == b"3"


def test_a_directory_entry_does_not_touch_what_a_link_points_to(unpack: Unpack, home: Path) -> None:
    unpack(folder("real", 0o700), symlink("l", "real"), folder("l", 0o777))
    assert stat.S_IMODE((home / "fs/real").stat().st_mode) == 0o700
    assert not (home / "fs/l").is_symlink()


def test_a_directory_is_swapped_below_a_cached_parent(unpack: Unpack, home: Path) -> None:
    """The open directory of an earlier entry is not written to once its name means something else."""
    unpack(
        *(folder("a/b"), file("a/b/x", b"1"), file("a", b"file now")),
        *(folder("c"), folder("a"), symlink("a/b", "/c"), file("a/b/x", b"2")),
    )
    assert (home / "fs/c/x").read_bytes() == b"2"
    assert os.readlink(home / "fs/a/b") == "/c"


# whiteouts


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh.", "d/.wh..", "d/.wh..."])
def test_a_whiteout_of_nothing_is_refused(unpack: Unpack, name: str) -> None:
    with pytest.raises(InvalidArgument, match="a whiteout of nothing"):
        unpack(file(name))


def test_whiteouts_take_overlayfs_form(unpack: Unpack, home: Path) -> None:
    done = unpack(file("d/.wh.gone"), file("o/.wh..wh..opq"), file("o/new", b"x"), file(".wh.top"))
    assert is_whiteout(home / "fs/d/gone") and is_whiteout(home / "fs/top")
    assert is_opaque(home / "fs/o") and not is_opaque(home / "fs/d")
    assert sorted(p.name for p in (home / "fs").rglob("*")) == ["d", "gone", "new", "o", "top"]
    assert not done.opaque_root


def test_an_opaque_root_is_told(unpack: Unpack) -> None:
    assert unpack(file(".wh..wh..opq")).opaque_root


def test_a_whiteout_does_not_hide_its_own_layer(unpack: Unpack, home: Path) -> None:
    unpack(file("a", b"new"), file(".wh.a"), file(".wh.b"), file("b", b"new"), folder("d"), file(".wh.d"))
    assert (home / "fs/a").read_bytes() == (home / "fs/b").read_bytes() == b"new"
    assert is_opaque(home / "fs/d")


def test_a_whiteout_of_a_directory_that_comes_back_hides_the_lower_one(unpack: Unpack, home: Path) -> None:
    unpack(file(".wh.d"), folder("d"), file("d/x"), file(".wh.e"), file("e/f/x"))
    assert is_opaque(home / "fs/d") and is_opaque(home / "fs/e")
    assert (home / "fs/e/f/x").exists()


def test_whiteout_and_opaque_through_a_link_that_leads_out(unpack: Unpack, home: Path) -> None:
    unpack(folder("victim"), symlink("out", "../victim"), file("out/.wh.shadow"), file("out/.wh..wh..opq"))
    assert is_whiteout(home / "fs/victim/shadow") and is_opaque(home / "fs/victim")


def test_a_whiteout_of_a_link_does_not_touch_its_target(unpack: Unpack, home: Path) -> None:
    unpack(file("t", b"kept"), symlink("l", "t"), file(".wh.l"))
    assert (home / "fs/t").read_bytes() == b"kept" and os.readlink(home / "fs/l") == "t"


def test_a_file_below_a_whiteout_is_refused(unpack: Unpack) -> None:
    with pytest.raises(InvalidArgument, match="a file below a whiteout"):
        unpack(file(".wh.d/x"))


def test_bookkeeping_of_aufs_is_left_out(unpack: Unpack, home: Path) -> None:
    unpack(folder(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", b"x"), file(".wh..wh.aufs"))
    assert list((home / "fs").iterdir()) == []


# devices, attributes, modes


def test_devices_are_made_as_told(unpack: Unpack, home: Path) -> None:
    unpack(device("null"), device("loop", BLK, 7, 3), member("pipe", FIFO, mode=0o640))
    null, loop, pipe = ((home / "fs" / n).lstat() for n in ("null", "loop", "pipe"))
    assert stat.S_ISCHR(null.st_mode) and null.st_rdev == os.makedev(1, 3)
    assert stat.S_ISBLK(loop.st_mode) and loop.st_rdev == os.makedev(7, 3)
    assert stat.S_ISFIFO(pipe.st_mode) and stat.S_IMODE(pipe.st_mode) == 0o640


def test_a_device_number_that_would_wrap_is_refused(unpack: Unpack) -> None:
    with pytest.raises(InvalidArgument, match="device number 4096:0 is out of range"):
        unpack(device("x", CHR, 1 << 12, 0))


def test_attributes_that_steer_overlayfs_or_the_host_are_dropped(unpack: Unpack, home: Path) -> None:
    names = ("trusted.overlay.redirect", "trusted.overlay.opaque", "trusted.overlay.metacopy",
             "user.overlay.opaque", "security.selinux", "trusted.anything", "security.ima")  # fmt: skip
    headers = {f"SCHILY.xattr.{n}": "y" for n in names} | {"SCHILY.xattr.user.mine": "kept"}
    entries = [member("f"), member("d", DIR)]
    for entry in entries:
        entry.pax_headers = headers
    unpack(*entries)
    for name in ("f", "d"):
        assert os.listxattr(home / "fs" / name) == ["user.mine"]


def test_capabilities_and_setuid_are_kept_whatever_the_owner(unpack: Unpack, home: Path) -> None:
    """chown(2) clears both: they are set after it."""
    value = bytes.fromhex("0100000200040000000000000000000000000000")
    capable = member("capable", mode=0o755)
    capable.uid = 1000
    capable.pax_headers = {"SCHILY.xattr.security.capability": value.decode("latin-1")}
    suid = file("suid", b"x", 0o6755)
    suid[0].uid = 1000
    raw = tar(capable, suid)
    unpack(raw)
    assert os.getxattr(home / "fs/capable", "security.capability") == value
    status = (home / "fs/suid").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o6755, 1000)


@pytest.mark.parametrize("owner", [str(2**32 - 1), str(2**32), str(2**63 - 1)])
def test_an_owner_that_would_wrap_is_refused(unpack: Unpack, owner: str) -> None:
    with pytest.raises(InvalidArgument, match=r"owner .* out of range"):
        unpack(pax(member("x"), uid=owner))


# duplicates, bombs, nonsense


def test_the_last_of_many_entries_of_one_name_counts(unpack: Unpack, home: Path) -> None:
    unpack(file("x", b"1"), symlink("x", "../victim"), folder("x"), file("x/y"), file("x", b"2", 0o600))
    assert (home / "fs/x").read_bytes() == b"2"


def test_sparse_entries_are_refused_in_every_dialect(unpack: Unpack, home: Path) -> None:
    """CVE-2025-58183: their maps are a bomb."""
    archives = [header(b"x", b"S") + bytes(1024)]
    for key in ("GNU__sparse__map", "GNU__sparse__major", "GNU__sparse__size", "GNU__sparse__numblocks"):
        archives.append(tar(pax(member("x"), **{key: "1"})))
    for data in archives:
        with pytest.raises(Unimplemented, match="sparse archive entries are not supported"):
            unpack(data)
        (home / "fs").rmdir()
    (home / "fs").mkdir()


def test_a_huge_extended_header_is_refused_before_it_is_read(unpack: Unpack) -> None:
    for kind in b"xLKg":
        with pytest.raises(InvalidArgument, match="extended header of 8589934591 bytes"):
            TarReader([header(b"x", bytes([kind]), size=b"77777777777\0")]).next_entry()
    unpack(file("fine"))


def test_extended_headers_without_end_are_refused(unpack: Unpack) -> None:
    with pytest.raises(InvalidArgument, match="more than 64 extended headers"):
        unpack(header(b"x", b"g") * 100)


def test_names_that_take_all_memory_are_refused(
    unpack: Unpack, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "_MAX_REMEMBERED", 100_000)
    folder = tarfile.DIRTYPE
    unpack(*(file(f"{n:0200}") for n in range(600)))  # files are not remembered
    trees.remove(os.open(home, os.O_RDONLY), "fs")
    with pytest.raises(ResourceExhausted, match="directories and whiteouts take more than"):
        unpack(*(member(f"{n:0200}", folder) for n in range(600)))
    trees.remove(os.open(home, os.O_RDONLY), "fs")
    with pytest.raises(ResourceExhausted, match="directories and whiteouts take more than"):
        unpack(*(file(f".wh.{n:0200}") for n in range(600)))


def test_more_entries_than_the_limit(unpack: Unpack) -> None:
    with pytest.raises(ResourceExhausted, match="more than 10 entries"):
        unpack(*(file(f"f{n}") for n in range(11)), entries=10)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"no tar at all" * 100, InvalidArgument),
        (header(b"x", size=b"00000001000\0") + b"short", DataLoss),
        (header(b"x")[:300], DataLoss),
        (header(b"x", size=b"-1234567890\0"), InvalidArgument),
        (header(b"x", size=b"\xff" * 12), InvalidArgument),
        (header(b"x", size=b"\x80" + b"\xff" * 11), InvalidArgument),
        (header(b"x", b"M"), Unimplemented),
        (tar(pax(member("x"), size="-5")), InvalidArgument),
        (tar(pax(member("x"), size="9" * 30)), InvalidArgument),
        (tar(pax(member("x"), mtime="1e999")), InvalidArgument),
    ],
    ids=["noise", "short data", "short header", "minus", "base256 minus", "base256 huge", "multi-volume",
         "pax minus", "pax huge", "pax time"],
)  # fmt: skip
def test_a_malformed_archive_is_an_error_and_no_crash(
    unpack: Unpack, data: bytes, kind: type[NagayaError]
) -> None:
    with pytest.raises(kind):
        unpack(data)


def test_times_beyond_every_calendar_are_clamped(unpack: Unpack, home: Path) -> None:
    unpack(pax(member("late"), mtime="99999999999999999"), pax(member("early"), mtime="-99999999999.5"))
    assert (home / "fs/late").stat().st_mtime > 2**31 and (home / "fs/early").stat().st_mtime <= 0


def test_a_full_disk_is_told_as_such(unpack: Unpack, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "no space")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ResourceExhausted, match="unpack x: no space left on device"):
        unpack(file("x", b"data"))


def test_a_mount_below_a_layer_stops_its_removal(unpack: Unpack, home: Path) -> None:
    """Nothing behind a mount is ever deleted: seen here with a bind mount in a private namespace."""
    unpack(file("d/x", b"1"))
    code = (
        "import os, sys; from nagaya.image import trees; from nagaya.errors import FailedPrecondition\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
        "try: trees.remove(fd, 'fs')\n"
        "except FailedPrecondition as error: print(error)"
    )
    script = 'mount --bind "$2" "$1/fs/d" && exec "$3" -c "$4" "$1"'
    outside = home / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"1")
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", str(home), str(outside), sys.executable, code],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )  # fmt: skip
    assert "something is mounted below fs" in done.stdout, done.stderr
    assert (outside / "precious").exists()
    (outside / "precious").unlink()
    outside.rmdir()
