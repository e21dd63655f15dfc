"""The streaming tar reader: where an archive may end."""

from __future__ import annotations

import pytest
from fakeregistry import file, tar

from nagaya.errors import DataLoss
from nagaya.image.tar import TarReader

ARCHIVE = tar(file("a", b"1"), file("b", b"22"))[: 4 * 512]


def read(data: bytes) -> list[tuple[bytes, bytes]]:
    reader, found = TarReader([data]), []
    while (entry := reader.next_entry()) is not None:
        parts: list[bytes] = []
        reader.copy(parts.append)
        found.append((entry.name, b"".join(parts)))
    assert reader.next_entry() is None
    return found


@pytest.mark.parametrize("size", [4 * 512 + 1024, 4 * 512, 3 * 512 + 100, 3 * 512 + 2])
def test_the_end_s_blocks_and_the_last_padding_may_be_missing(size: int) -> None:
    assert read((ARCHIVE + bytes(1024))[:size]) == [(b"a", b"1"), (b"b", b"22")]


@pytest.mark.parametrize("size", [3 * 512 + 1, 3 * 512, 2 * 512 + 100, 100])
def test_what_is_cut_short_is_told(size: int) -> None:
    with pytest.raises(DataLoss, match="cut short"):
        read(ARCHIVE[:size])
