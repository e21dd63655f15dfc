"""The ELF file inside a kernel, and the order of its modules."""

from __future__ import annotations

import gzip
import lzma
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nagaya.errors import DataLoss, InvalidArgument, NagayaError
from nagaya.vm import initramfs, kernel

ELF = b"\x7fELF" + bytes(range(256)) * 3000


MAGICS = [b"\x02\x21\x4c\x18", b"\x1f\x8b", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"]


def bz_image(payload: bytes) -> bytes:
    """A boot sector, one sector of set-up, sixteen bytes, and the payload."""
    head = bytearray(2 * 512)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", head, 0x248, 16, len(payload))
    return bytes(head) + bytes(16) + payload + b"what follows"


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_packed_kernels(pack: object) -> None:
    assert callable(pack)
    assert kernel.vmlinux(bz_image(pack(ELF))) == ELF
    assert kernel.vmlinux(ELF) == ELF


def test_zstd() -> None:
    zstd = pytest.importorskip("backports.zstd")
    assert kernel.vmlinux(bz_image(zstd.compress(ELF))) == ELF


@pytest.mark.skipif(not shutil.which("lz4"), reason="lz4 is not installed")
@pytest.mark.parametrize("data", [ELF, b"\x7fELF" + bytes(1 << 20), b"\x7fELF" + b"abc" * 100_000])
def test_lz4_as_the_kernel_s_makefiles_call_it(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "elf").write_bytes(data)
    packed = subprocess.run(
        ["lz4", "-l", "-9", "-c", tmp_path / "elf"], capture_output=True, check=True
    ).stdout
    assert kernel.vmlinux(bz_image(packed + struct.pack("<I", len(data)))) == data


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (b"", InvalidArgument),
        (b"#!/bin/sh\n", InvalidArgument),
        (bz_image(b"what is this"), InvalidArgument),
        (bz_image(gzip.compress(b"no ELF")), DataLoss),
        (bz_image(gzip.compress(ELF)[:100]), DataLoss),
        (bz_image(lzma.compress(ELF)[:100] + bytes(100)), DataLoss),
        (bz_image(b"\x02\x21\x4c\x18\x04\0\0\0\x0fxyz"), DataLoss),
    ],
)
def test_what_is_no_kernel(image: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        kernel.vmlinux(image)


@settings(max_examples=200)
@given(
    st.sampled_from([b"\x02\x21\x4c\x18", b"\x1f\x8b", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"]),
    st.binary(max_size=200),
)
def test_broken_payloads(magic: bytes, rest: bytes) -> None:
    with pytest.raises(NagayaError):
        kernel.vmlinux(bz_image(magic + rest))


def test_modules_come_after_what_they_need() -> None:
    def module(*needs: str) -> bytes:
        return b"\x7fELF\0license=GPL\0depends=" + ",".join(needs).encode() + b"\0name=x\0"

    modules = {"a": module("b", "c-d"), "b": module("c_d"), "c_d": module(), "e": b"no modinfo"}
    assert kernel.in_order(["a", "e", "nonesuch", "c-d"], modules) == ["c_d", "b", "a", "e"]


def test_the_archive_is_cpio(tmp_path: Path) -> None:
    data = initramfs.agent_archive(b"agent", [("one", b"1"), ("two", b"22")])
    done = subprocess.run(["busybox", "cpio", "-t"], input=data, capture_output=True, check=True)
    names = done.stdout.decode().split()
    assert names[-3:] == ["init", "modules/00-one.ko", "modules/01-two.ko"]
    assert "dev/console" in names
