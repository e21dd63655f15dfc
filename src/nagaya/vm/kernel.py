"""A guest's kernel and its modules, out of a distribution's package.

A bzImage unpacks itself, which an emulated processor takes half a second for: so the ELF file inside is
taken out once, here, and booted by its PVH entry (Documentation/arch/x86/boot.rst, "payload_offset"; PVH:
xen's docs/misc/pvh.pandoc).
"""

from __future__ import annotations

from nagaya.errors import DataLoss, InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

_SETUP_SECTORS, _MAGIC, _PAYLOAD = 0x1F1, 0x202, 0x248
_LZ4_LEGACY = b"\x02\x21\x4c\x18"
_MAX = 512 << 20


def _u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def _lz4_block(block: bytes, into: bytearray) -> None:
    """Append what the block (lz4's doc/lz4_Block_format.md) unpacks to."""
    at, end = 0, len(block)
    while at < end:
        token = block[at]
        at += 1
        count = token >> 4
        if count == 15:
            while True:
                count += block[at]
                at += 1
                if block[at - 1] != 255:
                    break
        into += block[at : at + count]
        at += count
        if at >= end:
            return
        back = block[at] | block[at + 1] << 8
        at += 2
        count = (token & 15) + 4
        if count == 19:
            while True:
                count += block[at]
                at += 1
                if block[at - 1] != 255:
                    break
        begin = len(into) - back
        if begin < 0 or not back:
            raise DataLoss("a broken lz4 block", step="kernel")
        if back >= count:
            into += into[begin : begin + count]
        else:  # it overlaps what it makes: a pattern
            pattern = bytes(into[begin:])
            into += (pattern * (count // back + 1))[:count]


def _lz4(data: bytes) -> bytes:
    """The legacy format (lz4's doc/lz4_Frame_format.md), as the kernel's makefiles write it."""
    into, at = bytearray(), 4
    while at + 4 <= len(data):
        size = _u32(data, at)
        at += 4
        if size == int.from_bytes(_LZ4_LEGACY, "little"):
            continue
        if not size or at + size > len(data):  # the last word is the size of the whole
            break
        _lz4_block(data[at : at + size], into)
        at += size
        if len(into) > _MAX:
            raise DataLoss("the kernel is too large", step="kernel")
    return bytes(into)


def _whole(decompressor: Any, payload: bytes) -> bytes:
    data = bytes(decompressor.decompress(payload, _MAX))
    if not decompressor.eof:
        raise DataLoss("the kernel is cut off, or too large", step="kernel")
    return data


def _unpack(payload: bytes) -> bytes:
    """The payload by its magic number. The decompressors are loaded only here: a start needs none."""
    if payload[:4] == _LZ4_LEGACY:
        return _lz4(payload)
    if payload[:6] == b"\xfd7zXZ\0":
        from lzma import LZMADecompressor

        return _whole(LZMADecompressor(), payload)
    if payload[:2] == b"\x1f\x8b":
        from zlib import MAX_WBITS, decompressobj

        return _whole(decompressobj(MAX_WBITS | 16), payload)
    if payload[:4] == b"\x28\xb5\x2f\xfd":
        from backports.zstd import ZstdDecompressor

        return _whole(ZstdDecompressor(), payload)
    raise InvalidArgument("a kernel packed in a way that is not known here", subject="kernel")


def vmlinux(image: bytes) -> bytes:
    """The ELF file of a kernel: what it is already, or what a bzImage holds.

    Raises InvalidArgument (no kernel), DataLoss (a broken one).
    """
    if image[:4] == b"\x7fELF":
        return image
    if image[_MAGIC : _MAGIC + 4] != b"HdrS":
        raise InvalidArgument("not a Linux kernel: neither bzImage nor ELF", subject="kernel")
    begin = ((image[_SETUP_SECTORS] or 4) + 1) * 512 + _u32(image, _PAYLOAD)
    payload = image[begin : begin + _u32(image, _PAYLOAD + 4)]
    try:
        elf = _unpack(payload)
    except (IndexError, EOFError, ValueError, OSError) as error:
        raise DataLoss(f"the kernel is broken: {error}", step="kernel") from None
    except Exception as error:  # the decompressors' own classes: lzma.LZMAError, zlib.error, ZstdError
        if type(error).__module__.partition(".")[0] not in ("_lzma", "lzma", "zlib", "backports", "_zstd"):
            raise
        raise DataLoss(f"the kernel is broken: {error}", step="kernel") from None
    if elf[:4] != b"\x7fELF":
        raise DataLoss("the kernel is broken: no ELF file in it", step="kernel")
    return elf


def depends(module: bytes) -> list[str]:
    """The names of the modules that this one needs, from where modinfo(8) reads them."""
    begin = module.find(b"\0depends=")
    if begin < 0:
        return []
    names = module[begin + 9 : module.find(b"\0", begin + 1)].decode("ascii", "replace")
    return [name.replace("-", "_") for name in names.split(",") if name]


def unpack_module(name: str, data: bytes) -> bytes:
    """A module file's content: .ko, .ko.xz, .ko.gz or .ko.zst."""
    return data if name.endswith(".ko") else _unpack(data)


def in_order(wanted: Iterable[str], modules: Mapping[str, bytes]) -> list[str]:
    """Those of the wanted modules that there are, each after those it needs."""
    order: list[str] = []

    def add(name: str) -> None:
        if name in order or name not in modules:
            return
        for below in depends(modules[name]):
            add(below)
        order.append(name)

    for name in wanted:
        add(name.replace("-", "_"))
    return order
