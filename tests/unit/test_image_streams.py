"""Layer streams and blobs: compressions, damage, bounds, readers ahead, arrivals that are followed."""

from __future__ import annotations

import gzip
import os
import threading
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from backports import zstd
from fakeregistry import digest_of

from nagaya.errors import DataLoss, InvalidArgument, NotFound, ResourceExhausted, Unavailable, Unimplemented
from nagaya.image import streams
from nagaya.image.content import ContentStore

DATA = bytes(range(256)) * 5000
RANDOM = os.urandom(300_000)
SKIPPABLE = b"\x50\x2a\x4d\x18\x04\x00\x00\x00ABCD"


def cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def joined(pieces: Iterable[bytes]) -> bytes:
    return b"".join(streams.pieces(pieces))


@pytest.mark.parametrize("size", [1, 7, 4096, 1 << 30])
@pytest.mark.parametrize(
    "packed",
    [
        gzip.compress(DATA[:4000], mtime=0),
        gzip.compress(DATA[:2000], mtime=0) + gzip.compress(DATA[2000:4000], mtime=0),
        gzip.compress(DATA[:4000], mtime=0) + bytes(512),
        zstd.compress(DATA[:4000]),
        zstd.compress(DATA[:2000]) + SKIPPABLE + zstd.compress(DATA[2000:4000]),
        SKIPPABLE + zstd.compress(DATA[:4000]),
        DATA[:4000],
    ],
    ids=["gzip", "members", "padded", "zstd", "frames", "skippable first", "plain"],
)
def test_every_compression_in_every_cut(packed: bytes, size: int) -> None:
    assert joined(cut(packed, size)) == DATA[:4000]


@pytest.mark.parametrize("compress", [gzip.compress, zstd.compress])
def test_big_and_incompressible(compress: object) -> None:
    for data in (DATA, RANDOM):
        assert joined(cut(compress(data), 100_000)) == data  # type: ignore[operator]


def test_nothing_is_nothing() -> None:
    assert joined([]) == b""
    assert joined([b"", b"ab", b"", b"c"]) == b"abc"


@pytest.mark.parametrize("compress", [gzip.compress, zstd.compress])
def test_damage_is_told(compress: object) -> None:
    packed: bytes = compress(RANDOM)  # type: ignore[operator]
    with pytest.raises(DataLoss, match="cut short"):
        joined([packed[:-20]])
    with pytest.raises(DataLoss, match=r"damaged|cut short"):
        joined([packed[:4] + b"\xff" * 100 + packed[104:]])
    with pytest.raises(DataLoss, match=r"damaged|cut short"):
        joined([packed + b"garbage at the end"])


def test_a_window_that_takes_all_memory_is_refused() -> None:
    frame = b"\x28\xb5\x2f\xfd\x00\xf8" + b"\x01\x00\x00"  # a window of 2 TiB in the header
    with pytest.raises(DataLoss, match="damaged zstd"):
        joined([frame * 10])


@pytest.mark.parametrize(
    ("magic", "name"), [(b"BZh9", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x04\x22\x4d\x18", "lz4")]
)
def test_other_compressions_are_named(magic: bytes, name: str) -> None:
    with pytest.raises(Unimplemented, match=f"compressed with {name} are not supported"):
        joined([magic + bytes(100)])


def test_a_bomb_is_stopped_where_the_limit_is() -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    seen = 0
    with pytest.raises(ResourceExhausted, match="more than 1000000 bytes"):
        for piece in streams.limited(streams.pieces([bomb]), 1_000_000):
            seen += len(piece)
    assert seen <= 1_000_000


def test_ahead_hands_on_pieces_and_errors_and_ends_its_thread() -> None:
    before = threading.active_count()
    with streams.Ahead(cut(DATA, 1000)) as pieces:
        assert b"".join(pieces) == DATA

    def broken() -> Iterator[bytes]:
        yield b"one"
        raise DataLoss("broken")

    with pytest.raises(DataLoss, match="broken"), streams.Ahead(broken()) as pieces:
        list(pieces)
    with streams.Ahead(cut(DATA, 1)) as pieces:
        next(pieces)  # and no more: leaving must not wait for the rest
    assert threading.active_count() == before


# content


def test_blobs_are_what_they_are_called(tmp_path: Path) -> None:
    store = ContentStore(str(tmp_path))
    digest = store.put(b"hello")
    assert digest == digest_of(b"hello") and store.put(b"hello", digest) == digest
    assert store.read(digest, 10) == b"hello" and store.size(digest) == 5 and store.digests() == [digest]
    with pytest.raises(ResourceExhausted, match="over the limit of 4"):
        store.read(digest, 4)
    with pytest.raises(DataLoss, match="does not match its digest"):
        store.put(b"other", digest)
    os.chmod(store.path(digest), 0o600)
    Path(store.path(digest)).write_bytes(b"hellx")
    with pytest.raises(DataLoss, match="pull it again"):
        store.read(digest, 10)
    assert (store.delete(digest), store.delete(digest)) == (5, 0)
    with pytest.raises(NotFound):
        store.open(digest)
    assert list((tmp_path / "ingest").iterdir()) == []


@pytest.mark.parametrize(
    "digest", ["sha256:../../../etc/passwd", "sha256:" + "A" * 64, "md5:" + "0" * 32, "x", ""]
)
def test_a_digest_is_no_path(tmp_path: Path, digest: str) -> None:
    """CVE-2024-3727."""
    store = ContentStore(str(tmp_path))
    for use in (store.path, store.has, store.open, store.delete):
        with pytest.raises(InvalidArgument, match="invalid digest"):
            use(digest)
    with pytest.raises(InvalidArgument, match="invalid digest"):
        store.ingest(digest, 1)
    with pytest.raises(InvalidArgument, match="invalid digest"):
        store.discard([digest])


def test_an_arrival_is_followed_while_it_grows(tmp_path: Path) -> None:
    store = ContentStore(str(tmp_path))
    ingest = store.ingest(digest_of(RANDOM), len(RANDOM))
    followed: list[bytes] = []
    reader = threading.Thread(target=lambda: followed.extend(ingest.follow(lambda: None)))
    reader.start()
    for piece in cut(RANDOM, 50_000):
        ingest.write(piece)
    assert not store.has(digest_of(RANDOM))
    ingest.commit()
    reader.join(30)
    ingest.close()
    assert b"".join(followed) == RANDOM
    assert b"".join(store.pieces(digest_of(RANDOM))) == RANDOM
    assert list((tmp_path / "ingest").iterdir()) == []


def test_a_failed_arrival_wakes_its_followers_and_stays_for_the_next(tmp_path: Path) -> None:
    store = ContentStore(str(tmp_path))
    ingest = store.ingest(digest_of(RANDOM), len(RANDOM))
    ingest.write(RANDOM[:1000])
    ingest.fail(Unavailable("gone"))
    with pytest.raises(Unavailable, match="gone"):
        list(ingest.follow(lambda: None))
    ingest.close()
    again = store.ingest(digest_of(RANDOM), len(RANDOM))
    assert again.offset == again.resumed == 1000
    again.write(RANDOM[1000:])
    again.commit()
    again.close()


def test_too_much_too_little_and_the_wrong_bytes(tmp_path: Path) -> None:
    store = ContentStore(str(tmp_path))
    digest = digest_of(b"hello")
    ingest = store.ingest(digest, 5)
    with pytest.raises(DataLoss, match="more than the 5 bytes"):
        ingest.write(b"hello!")
    ingest.write(b"hell")
    with pytest.raises(DataLoss, match="has 4 bytes"):
        ingest.commit()
    ingest.write(b"x")
    with pytest.raises(DataLoss, match="the blob's digest is"):
        ingest.commit()
    ingest.close()
    assert store.ingest(digest, 5).offset == 0
    assert not store.has(digest)
