"""The content store: blobs that arrive in pieces, are followed, resumed, doubted, and swept away."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from pathlib import Path

import pytest
from fakeregistry import digest_of

from nagaya.errors import Cancelled, DataLoss, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from nagaya.image.content import ContentStore

DATA = os.urandom(3 << 20)
DIGEST = digest_of(DATA)
HALF = len(DATA) // 2


@pytest.fixture
def content(tmp_path: Path) -> ContentStore:
    return ContentStore(str(tmp_path))


def files(directory: Path) -> list[str]:
    return sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file())


def nothing() -> None:
    pass


def test_a_small_blob_is_kept_once_and_verified(content: ContentStore, tmp_path: Path) -> None:
    digest = content.put(b"small")
    assert content.put(b"small", digest) == digest == digest_of(b"small")
    assert files(tmp_path) == [f"blobs/{digest.replace(':', '/')}"]
    assert content.has(digest) and content.size(digest) == 5 and content.digests() == [digest]
    assert content.read(digest, 5) == b"small" == b"".join(content.pieces(digest))
    with pytest.raises(ResourceExhausted, match="blob of 5 bytes is over the limit of 4"):
        content.read(digest, 4)
    assert content.delete(digest) == 5 and content.delete(digest) == 0
    for ask in (content.size, content.open, lambda d: content.read(d, 9)):
        with pytest.raises(NotFound, match="is not here"):
            ask(digest)


def test_content_under_another_digest_is_refused(content: ContentStore, tmp_path: Path) -> None:
    with pytest.raises(DataLoss, match="does not match its digest"):
        content.put(b"small", DIGEST)
    assert files(tmp_path) == []


def test_a_damaged_file_is_noticed_when_read(content: ContentStore, tmp_path: Path) -> None:
    digest = content.put(b"small")
    (tmp_path / "blobs" / digest.replace(":", "/")).write_bytes(b"smell")
    with pytest.raises(DataLoss, match="pull it again"):
        content.read(digest, 100)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "sha256:",
        "sha256:" + "A" * 64,
        "sha256:../../../etc/passwd",
        "sha256:" + "a" * 63 + "/",
        "md5:" + "a" * 32,
        "sha256:" + "a" * 64 + "\n",
        "sha256:" + "a" * 128,
    ],
)
def test_a_digest_is_no_path(content: ContentStore, tmp_path: Path, name: str) -> None:
    """CVE-2024-3727."""
    for use in (content.path, content.has, content.delete, lambda d: content.put(b"x", d or "x")):
        with pytest.raises(InvalidArgument, match="invalid digest"):
            use(name)
    with pytest.raises(InvalidArgument, match="invalid digest"):
        content.ingest(name, 1)
    assert files(tmp_path) == []


def test_sha512_is_a_digest_too(content: ContentStore) -> None:
    digest = "sha512:" + hashlib.sha512(b"long").hexdigest()
    content.put(b"long", digest)
    assert content.read(digest, 10) == b"long" and content.digests() == [digest]


def test_a_follower_sees_the_bytes_while_they_come_and_ends_after_the_commit(content: ContentStore) -> None:
    ingest = content.ingest(DIGEST, len(DATA))
    seen = bytearray()
    reader = threading.Thread(target=lambda: seen.extend(b"".join(ingest.follow(nothing))))
    reader.start()
    try:
        ingest.write(DATA[:HALF])
        time.sleep(0.05)
        ingest.write(DATA[HALF:])
        reader.join(0.2)
        assert reader.is_alive()  # all bytes are there, but nobody knows yet whether they are right
        ingest.commit()
    finally:
        reader.join(30)
        ingest.close()
    assert seen == DATA and content.has(DIGEST)


def test_a_follower_is_told_why_nothing_more_comes(content: ContentStore) -> None:
    ingest = content.ingest(DIGEST, len(DATA))
    pieces = ingest.follow(nothing)
    ingest.write(b"x")
    assert next(pieces) == b"x"
    ingest.fail(Unavailable("the first reason"))
    ingest.fail(Unavailable("the second"))
    with pytest.raises(Unavailable, match="the first reason"):
        next(pieces)
    ingest.close()


def test_a_follower_may_give_up(content: ContentStore) -> None:
    ingest = content.ingest(DIGEST, len(DATA))

    def check() -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        next(ingest.follow(check))
    ingest.close()


def test_the_next_process_takes_up_what_has_arrived(tmp_path: Path) -> None:
    first = ContentStore(str(tmp_path)).ingest(DIGEST, len(DATA))
    first.write(DATA[:HALF])
    first.close()
    second = ContentStore(str(tmp_path)).ingest(DIGEST, len(DATA))
    assert second.offset == second.resumed == HALF
    second.write(DATA[HALF:])
    second.commit()
    assert b"".join(second.follow(nothing)) == DATA
    second.close()
    assert files(tmp_path) == [f"blobs/{DIGEST.replace(':', '/')}"]


def test_a_left_over_that_is_too_long_is_forgotten(content: ContentStore, tmp_path: Path) -> None:
    (tmp_path / "ingest" / DIGEST.replace(":", "-")).write_bytes(DATA + b"x")
    ingest = content.ingest(DIGEST, len(DATA))
    assert ingest.offset == 0
    ingest.close()


def test_wrong_bytes_are_not_kept_for_the_next_try(content: ContentStore, tmp_path: Path) -> None:
    ingest = content.ingest(DIGEST, len(DATA))
    ingest.write(bytes(len(DATA)))
    with pytest.raises(DataLoss, match=f"the blob's digest is sha256:.*, not {DIGEST}"):
        ingest.commit()
    ingest.close()
    assert files(tmp_path) == [] and not content.has(DIGEST)


def test_less_and_more_than_announced(content: ContentStore) -> None:
    ingest = content.ingest(DIGEST, len(DATA))
    ingest.write(DATA[:-1])
    with pytest.raises(
        DataLoss, match=f"the blob has {len(DATA) - 1} bytes, its descriptor says {len(DATA)}"
    ):
        ingest.commit()
    with pytest.raises(DataLoss, match="the registry sent more than"):
        ingest.write(b"12")
    ingest.write(DATA[-1:])
    ingest.commit()
    ingest.close()


def test_a_full_disk_is_told_as_such(
    content: ContentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    ingest = content.ingest(DIGEST, len(DATA))
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(ResourceExhausted, match="no space left on device"):
            ingest.write(b"x")
        patch.setattr(os, "open", full)
        for act in (lambda: content.ingest(digest_of(b"y"), 1), lambda: content.put(b"y")):
            with pytest.raises(ResourceExhausted, match="store content: no space left on device"):
                act()
    ingest.close()
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", full)
        with pytest.raises(ResourceExhausted):
            content.put(b"y")
    assert files(tmp_path) == [f"ingest/{DIGEST.replace(':', '-')}"]


def test_old_arrivals_are_swept_and_young_ones_stay(content: ContentStore, tmp_path: Path) -> None:
    old, young = digest_of(b"old"), digest_of(b"young")
    for digest in (old, young):
        ingest = content.ingest(digest, 9)
        ingest.write(b"some")
        ingest.close()
    os.utime(tmp_path / "ingest" / old.replace(":", "-"), (1_000_000, 1_000_000))
    (tmp_path / "ingest/put-0123456789abcdef").write_bytes(b"never renamed")
    content.sweep_ingest(time.time() - 3600)
    assert files(tmp_path) == [f"ingest/{young.replace(':', '-')}"]
    content.discard([young, old])
    assert files(tmp_path) == []


def test_what_is_no_blob_is_not_counted_among_them(content: ContentStore, tmp_path: Path) -> None:
    digest = content.put(b"x")
    (tmp_path / "blobs/sha256/lost+found").write_bytes(b"")
    assert content.digests() == [digest]


def test_directories_are_for_their_owner_only(content: ContentStore, tmp_path: Path) -> None:
    content.put(b"x")
    assert {p.stat().st_mode & 0o777 for p in tmp_path.rglob("*") if p.is_dir()} == {0o700}
    assert {p.stat().st_mode & 0o777 for p in tmp_path.rglob("*") if p.is_file()} == {0o600}
