"""The archive that a kernel unpacks as its first root (Documentation/driver-api/early-userspace/
buffer-format.rst, "newc"), and the one with our agent in it."""

from __future__ import annotations

from nagaya.linux import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_DIRECTORY, _FILE, _CHAR = 0o040000, 0o100000, 0o020000
# Those before `virtio_mmio` are found by what it announces; overlay, erofs, 9p and ext4 serve mounts.
# libcrc32c asks the kernel for crc32c by that name, which no dependency says: without it erofs is not loaded.
AGENT_MODULES = (
    "virtio_mmio virtio_console virtio_blk virtio_net virtio_balloon virtio_rng crc32c_generic erofs overlay"
    " ext4 9pnet_virtio 9p vmw_vsock_virtio_transport"
).split()


class Archive:
    """An archive in the making: each path once, its directories before it."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._seen: set[str] = set()

    def _entry(self, name: str, mode: int, data: bytes, mtime: int, device: tuple[int, int]) -> None:
        encoded = os.fsencode(name) + b"\0"
        # magic; ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        fields = (len(self._seen) + 1, mode, 0, 0, 1, mtime, len(data), 0, 0, *device, len(encoded), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        self._parts += [head, bytes(-len(head) % 4), data, bytes(-len(data) % 4)]

    def put(
        self, path: str, mode: int, data: bytes = b"", mtime: int = 0, device: tuple[int, int] = (0, 0)
    ) -> None:
        """One file at an absolute path, mode as st_mode has it; one that is there already stays."""
        if path in self._seen:
            return
        parent = path.rpartition("/")[0]
        if parent:
            self.put(parent, _DIRECTORY | 0o755)
        self._seen.add(path)
        self._entry(path[1:], mode, data, mtime, device)

    def to_bytes(self) -> bytes:
        """The archive, with its trailer."""
        self._entry("TRAILER!!!", 0, b"", 0, (0, 0))
        return b"".join(self._parts)


def agent_archive(agent: bytes, modules: Iterable[tuple[str, bytes]]) -> bytes:
    """The initramfs of a microVM: the agent as /init, and the modules in the order it shall load them."""
    archive = Archive()
    for name in ("dev", "mnt", "proc", "run", "sys", "modules"):
        archive.put(f"/{name}", _DIRECTORY | 0o755)
    archive.put("/dev/console", _CHAR | 0o600, device=(5, 1))
    archive.put("/init", _FILE | 0o755, agent)
    for index, (name, data) in enumerate(modules):
        archive.put(f"/modules/{index:02}-{name}.ko", _FILE | 0o644, data)
    return archive.to_bytes()
