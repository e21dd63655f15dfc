"""Whatever a registry sends, a pull ends in an image or in an error of ours, and touches nothing else."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nagaya.errors import DataLoss, InvalidArgument, NagayaError, Unimplemented
from nagaya.image import layers, streams, trees
from nagaya.image.streams import pieces
from nagaya.image.tar import DIRECTORY, HARDLINK, SYMLINK, TarReader
from nagaya.oci import digest as digests
from nagaya.oci import imageconfig, manifest, platform, reference

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
MALFORMED = (InvalidArgument, DataLoss, Unimplemented)

# archives

KINDS = {
    "file": tarfile.REGTYPE,
    "folder": tarfile.DIRTYPE,
    "symlink": tarfile.SYMTYPE,
    "hardlink": tarfile.LNKTYPE,
    "fifo": tarfile.FIFOTYPE,
    "device": tarfile.CHRTYPE,
}
OURS = {"file": 0, "hardlink": HARDLINK, "symlink": SYMLINK, "device": 3, "folder": DIRECTORY, "fifo": 6}
words = st.sampled_from(
    [
        "a",
        "b",
        "c",
        "..",
        ".",
        "",
        ".wh.a",
        ".wh.b",
        ".wh..wh..opq",
        ".wh.",
        ".wh..",
        "é",
        "x" * 120,
        "\udcff",
    ]
)
names = st.lists(words, min_size=1, max_size=5).map("/".join) | st.lists(words, max_size=4).map(
    lambda parts: "/" + "/".join(parts)
)
members = st.tuples(
    st.sampled_from(sorted(KINDS)),
    names,
    names,
    st.binary(max_size=700),
    st.integers(0, 0o7777),
    st.dictionaries(
        st.sampled_from(["user.x", "trusted.overlay.redirect", "security.capability"]), st.just("y")
    ),
)
Member = tuple[str, str, str, bytes, int, dict[str, str]]


def archive(entries: list[Member], form: int) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=form, errors="surrogateescape") as tar:
        for kind, name, link, data, mode, attributes in entries:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.uid, info.gid = KINDS[kind], mode, os.getuid(), os.getgid()
            info.linkname = link if kind in ("symlink", "hardlink") else ""
            info.size = len(data) if kind == "file" else 0
            info.mtime = 1_700_000_000
            if form == tarfile.PAX_FORMAT:
                info.pax_headers = {f"SCHILY.xattr.{k}": v for k, v in attributes.items()}
            with contextlib.suppress(ValueError):  # names that the plain format cannot hold
                tar.addfile(info, io.BytesIO(data))
    return raw.getvalue()


archives = st.builds(
    archive,
    st.lists(members, max_size=6),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]),
)


@st.composite
def damaged(draw: Any) -> bytes:
    """An archive with some bytes changed; its check sums right again, so that the reader goes on."""
    data = bytearray(draw(archives))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, min(len(data), 6 * 512) - 1))
        data[at] = draw(st.integers(0, 255))
        header = at & ~511
        data[header + 148 : header + 156] = b" " * 8
        data[header + 148 : header + 156] = b"%06o\0 " % sum(data[header : header + 512])
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


def cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def outcome(data: bytes, size: int) -> list[object]:
    """Everything that the reader tells of an archive, cut into pieces of a size."""
    found: list[object] = []
    reader = TarReader(cut(data, size))
    try:
        while (entry := reader.next_entry()) is not None:
            content = bytearray()
            reader.copy(content.extend)
            found.append([getattr(entry, name) for name in entry.__slots__])
            found.append(bytes(content))
    except MALFORMED as error:
        found.append(str(error))
    return found


@QUICK
@given(damaged(), st.integers(1, 2000))
def test_any_archive_is_read_or_refused_the_same_however_it_comes(data: bytes, size: int) -> None:
    assert outcome(data, size) == outcome(data, 1 << 20)


@QUICK
@given(st.binary(max_size=3000))
def test_any_bytes_are_read_or_refused_as_an_archive(data: bytes) -> None:
    outcome(data, 512)
    block = (data + bytes(512))[:512]
    fixed = block[:148] + b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 256) + block[156:]
    outcome(fixed + data, 512)


@QUICK
@given(st.lists(members, max_size=5), st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
def test_what_pythons_tarfile_writes_is_what_is_read(entries: list[Member], form: int) -> None:
    data = archive(entries, form)
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as tar:
        expected = [
            (m.name.rstrip("/"), m.type, m.mode, m.linkname, m.size, int(m.mtime)) for m in tar.getmembers()
        ]
    reader, found = TarReader([data] if data else []), []
    types = {ours: KINDS[kind] for kind, ours in OURS.items()}
    while (entry := reader.next_entry()) is not None:
        name, link = os.fsdecode(entry.name).rstrip("/"), os.fsdecode(entry.link)
        found.append((name, types[entry.kind], entry.mode, link, entry.size, entry.mtime // 1_000_000_000))
    assert found == expected


def survey(directory: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        str(p): (p.lstat().st_mode, p.lstat().st_mtime_ns, p.read_bytes() if p.is_file() else b"")
        for p in (directory, *directory.rglob("*"))
    }


@QUICK
@given(damaged(), st.booleans())
def test_no_archive_reaches_outside_its_directory(data: bytes, absolute: bool) -> None:
    base = Path(tempfile.mkdtemp(prefix="nagt-fuzz-"))
    victim = base / "a"  # the names lead here when ".." or "/" is followed
    victim.mkdir()
    (victim / "b").write_bytes(b"keep")
    home = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.mkdir("home", 0o700, dir_fd=home)
        inner = os.open("home", os.O_RDONLY | os.O_DIRECTORY, dir_fd=home)
        before = survey(victim)
        listed = sorted(os.listdir(base))
        fds = len(os.listdir("/proc/self/fd"))
        try:
            with contextlib.suppress(NagayaError):
                layers.unpack([data] if data else [], inner, layers.Limits(1 << 20, 50), lambda: None)
            assert survey(victim) == before
            assert sorted(os.listdir(base)) == listed
            assert not os.path.lexists("/x" * 120) and not os.path.lexists("/.wh.a")
            assert len(os.listdir("/proc/self/fd")) == fds
        finally:
            os.close(inner)
        trees.remove(home, "home")
        assert sorted(os.listdir(base)) == ["a"]
    finally:
        os.close(home)
        shutil.rmtree(base)


@QUICK
@given(st.binary(max_size=400), st.binary(max_size=400), st.integers(0, 500), st.integers(0, 255))
def test_damaged_compressed_data_is_read_or_refused(before: bytes, data: bytes, at: int, byte: int) -> None:
    for whole in (gzip.compress(data), streams.zstd.compress(data)):  # type: ignore[attr-defined]
        changed = bytearray(whole)
        changed[at % len(changed)] = byte
        for packed in (bytes(changed), whole[:at], before + whole, whole + before):
            with contextlib.suppress(*MALFORMED):
                assert len(b"".join(pieces(cut(packed, 64)))) < 1 << 20


# documents

hexes = st.sampled_from(
    ["sha256:" + "a" * 64, "sha512:" + "b" * 128, "sha256:../" + "a" * 61, "md5:1", "", "sha256:"]
)
kinds = st.sampled_from(
    [manifest.OCI_INDEX, manifest.OCI_MANIFEST, manifest.DOCKER_LIST, manifest.DOCKER_MANIFEST,
     manifest.DOCKER_SCHEMA1, manifest.OCI_CONFIG, manifest.OCI_LAYER, "", "x"]
)  # fmt: skip
scalars = st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.text(max_size=8) | hexes | kinds
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
descriptors = st.fixed_dictionaries(
    {},
    optional={
        "mediaType": kinds | anything,
        "digest": hexes,
        "size": st.integers(-1, 1 << 50) | anything,
        "urls": st.lists(st.text(max_size=5), max_size=2) | anything,
        "annotations": anything,
        "platform": st.fixed_dictionaries({}, optional={"os": scalars, "architecture": scalars}) | anything,
    },
)
documents = st.fixed_dictionaries(
    {"schemaVersion": st.just(2) | anything},
    optional={
        "mediaType": kinds | anything,
        "config": descriptors | anything,
        "layers": st.lists(descriptors, max_size=3) | anything,
        "manifests": st.lists(descriptors, max_size=3) | anything,
        "fsLayers": anything,
        "artifactType": anything,
    },
)


@settings(QUICK, max_examples=400)
@given(documents, kinds)
def test_any_manifest_is_decoded_or_refused(document: dict[str, Any], content_type: str) -> None:
    try:
        decoded = manifest.decode(json.dumps(document).encode(), content_type)
    except (InvalidArgument, Unimplemented) as error:
        assert "\n" not in str(error) and len(str(error)) < 600
        return
    if isinstance(decoded, manifest.Index):
        assert "layers" not in document or document["layers"] is None
        found = decoded.manifests
    else:
        assert document.get("manifests") is None
        found = (decoded.config, *decoded.layers)
    assert all(digests.is_digest(d.digest) and 0 <= d.size <= manifest.MAX_BLOB for d in found)


@QUICK
@given(st.binary(max_size=200) | anything.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_decoded_or_refused_as_documents(data: bytes) -> None:
    with contextlib.suppress(*MALFORMED):
        manifest.decode(data)
    with contextlib.suppress(*MALFORMED):
        imageconfig.decode(data)


@QUICK
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "os": scalars,
            "architecture": scalars,
            "created": scalars,
            "config": st.dictionaries(
                st.sampled_from(
                    ["Cmd", "Entrypoint", "Env", "User", "Volumes", "ExposedPorts", "WorkingDir"]
                ),
                anything,
            ),
            "rootfs": st.fixed_dictionaries(
                {"type": st.just("layers"), "diff_ids": st.lists(hexes, max_size=3)}
            )
            | anything,
            "history": anything,
        },
    )
)
def test_any_configuration_is_decoded_or_refused(document: dict[str, Any]) -> None:
    with contextlib.suppress(*MALFORMED):
        decoded = imageconfig.decode(json.dumps(document).encode())
        assert all(digests.is_digest(d) for d in decoded.diff_ids)


@settings(QUICK, max_examples=400)
@given(st.text(max_size=60) | st.from_regex(r"[a-zA-Z0-9./:@_-]{1,60}", fullmatch=True))
def test_any_name_is_a_reference_or_refused(text: str) -> None:
    try:
        parsed = reference.parse(text)
    except InvalidArgument as error:
        assert "\n" not in str(error)
        return
    assert reference.parse(parsed.canonical) == parsed
    assert reference.parse(parsed.familiar) == parsed
    assert ".." not in parsed.path.split("/") and not parsed.path.startswith("/")


@QUICK
@given(st.text(max_size=30))
def test_any_platform_is_one_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidArgument):
        assert platform.fits(platform.parse(text), platform.parse(text))
