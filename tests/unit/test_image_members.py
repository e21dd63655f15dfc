"""Headers of archives: ours, byte for byte what Python's own archiver writes."""

from __future__ import annotations

import tarfile

from hypothesis import given
from hypothesis import strategies as st

from nagaya.image import members

NAMES = st.text(min_size=1, max_size=120).filter(lambda text: "\0" not in text)
KINDS = (
    *(tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE),
    *(tarfile.CHRTYPE, tarfile.BLKTYPE),
)


@given(
    NAMES,
    st.one_of(st.just(""), NAMES),
    st.sampled_from(KINDS),
    st.integers(0, 0o7777),
    st.integers(0, 8**8),
    st.integers(0, 8**8),
    st.integers(0, 8**12),
    st.integers(-1, 8**12),
)
def test_headers_are_those_of_tarfile(
    name: str, link: str, kind: bytes, mode: int, uid: int, gid: int, size: int, mtime: int
) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.uid, info.gid = kind, link, mode, uid, gid
    info.size, info.mtime = size, mtime
    assert members.header(info) == info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def test_the_usual_header() -> None:
    info = tarfile.TarInfo("a/b")
    info.size, info.mtime, info.mode = 7, 1_700_000_000, 0o755
    assert members.header(info) == info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    assert tarfile.TarInfo.frombuf(members.header(info), "utf-8", "strict").size == 7
