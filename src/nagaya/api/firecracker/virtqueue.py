"""A guest's memory, and the rings in it by which it and a device exchange buffers (virtio 1.2, 2.7).

Everything read here was written by the guest: addresses, lengths and indices are checked before use, and a
ring that makes no sense is an error, after which the device is left alone.
"""

from __future__ import annotations

import mmap
import os
import struct

_DESCRIPTOR = struct.Struct("<QIHH")
_USED = struct.Struct("<II")
_NEXT, _WRITE, _INDIRECT = 1, 2, 4
_NO_INTERRUPT = 1
_QUEUE_MAX = 1024


class BrokenRing(Exception):
    """The guest wrote what cannot be."""


class Region:
    """Some of the guest's memory: where the guest sees it, where QEMU sees it, and our mapping of it."""

    def __init__(self, guest: int, size: int, user: int, offset: int, fd: int) -> None:
        """Maps it; the descriptor stays the caller's. Raises OSError, ValueError."""
        if offset < 0 or size <= 0 or os.fstat(fd).st_size < offset + size:
            raise ValueError("a region of memory beyond its file")
        self.guest = guest
        self.size = size
        self.user = user
        begin = offset - offset % mmap.ALLOCATIONGRANULARITY
        self._map = mmap.mmap(fd, size + offset - begin, offset=begin)
        self.view = memoryview(self._map)[offset - begin :]

    def close(self) -> None:
        """Unmap it, at the latest when the last piece of it is forgotten."""
        self.view.release()
        try:
            self._map.close()
        except BufferError:
            pass


class Memory:
    """All of the guest's memory."""

    def __init__(self, regions: list[Region]) -> None:
        self._regions = regions

    def close(self) -> None:
        """Unmap it."""
        for region in self._regions:
            region.close()
        self._regions = []

    def at(self, address: int, size: int) -> memoryview:
        """What the guest has there. Raises BrokenRing."""
        for region in self._regions:
            offset = address - region.guest
            if offset >= 0 and offset + size <= region.size:
                return region.view[offset : offset + size]
        raise BrokenRing(f"no memory at {address:#x}")

    def at_user(self, address: int, size: int) -> memoryview:
        """What QEMU has there: vhost-user gives the rings' addresses so. Raises BrokenRing."""
        for region in self._regions:
            offset = address - region.user
            if offset >= 0 and offset + size <= region.size:
                return region.view[offset : offset + size]
        raise BrokenRing(f"no memory at {address:#x}")


class Chain:
    """A buffer of the guest's in pieces: `index` names it, the pieces are either ours to read or to write."""

    def __init__(self, index: int, pieces: list[memoryview]) -> None:
        self.index = index
        self._pieces = pieces
        self.size = sum(len(piece) for piece in pieces)

    def read(self) -> bytes:
        """All that is in it."""
        return b"".join(self._pieces)

    def write(self, data: bytes) -> None:
        """Fill its beginning; it must be large enough."""
        at = 0
        for piece in self._pieces:
            part = data[at : at + len(piece)]
            piece[: len(part)] = part
            at += len(part)


class Queue:
    """One ring, running: `kick` tells us of buffers, `call` tells the guest of used ones."""

    def __init__(
        self, memory: Memory, size: int, descriptors: int, available: int, used: int, base: int
    ) -> None:
        """Raises BrokenRing."""
        if not 0 < size <= _QUEUE_MAX or size & (size - 1):
            raise BrokenRing(f"a ring of {size}")
        self._memory = memory
        self._size = size
        self._descriptors = memory.at_user(descriptors, size * _DESCRIPTOR.size)
        if available % 2 or used % 4:
            raise BrokenRing("a ring that is not aligned")
        # as words: struct reads and writes bytes, and the guest would see, or show, half of a number
        self._available = memory.at_user(available, 4 + size * 2).cast("H")
        self._used = memory.at_user(used, 4 + size * _USED.size)
        self._used_words = self._used.cast("H")
        self.next = base & 0xFFFF
        self._done = self._used_words[1]

    def waiting(self) -> int:
        """How many buffers the guest has given that were not taken. Raises BrokenRing."""
        count = (self._available[1] - self.next) & 0xFFFF
        if count > self._size:
            raise BrokenRing("more buffers than the ring has room for")
        return count

    def take(self, *, writable: bool) -> Chain | None:
        """The next buffer, None when there is none. Raises BrokenRing."""
        if not self.waiting():
            return None
        head = index = self._available[2 + self.next % self._size]
        pieces = []
        for _ in range(self._size):
            if index >= self._size:
                raise BrokenRing(f"descriptor {index} of {self._size}")
            address, length, flags, following = _DESCRIPTOR.unpack_from(
                self._descriptors, index * _DESCRIPTOR.size
            )
            if flags & _INDIRECT or bool(flags & _WRITE) != writable:
                raise BrokenRing(f"descriptor flags {flags}")
            if length:
                pieces.append(self._memory.at(address, length))
            if not flags & _NEXT:
                self.next = (self.next + 1) & 0xFFFF
                return Chain(head, pieces)
            index = following
        raise BrokenRing("a chain without end")

    def untake(self) -> None:
        """The last buffer taken was not used: it is the next one again."""
        self.next = (self.next - 1) & 0xFFFF

    def give_back(self, chain: Chain, written: int) -> None:
        """The buffer is the guest's again."""
        _USED.pack_into(self._used, 4 + _USED.size * (self._done % self._size), chain.index, written)
        self._done = (self._done + 1) & 0xFFFF
        # x86 keeps the order of stores: whoever sees the index sees the entry
        self._used_words[1] = self._done

    def wants_call(self) -> bool:
        """Whether the guest wants to be told."""
        return not self._available[0] & _NO_INTERRUPT
