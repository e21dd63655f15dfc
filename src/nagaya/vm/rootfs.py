"""A container's root as read-only disks for its guest: erofs images, made by mkfs.erofs(1).

The layers of an image never change, so what an overlay has below its upper directory is made into a disk once
and kept; the upper directory, with what was written before this start, is a small disk of its own, which
holds just what the container's own files hold and goes with it. A bundle's plain directory may have changed
since: all its names, sizes and times are looked at before its disk is used again.

What the container writes goes to a disk of its own beside the upper directory, whose maker takes both away:
so it is there again when the container is started again. A plain directory's container writes to its guest's
memory.

The guest lays an overlay over the disks. erofs without compression: an emulated processor unpacks slower than
the host's page cache reads.
"""

from __future__ import annotations

from time import time

from nagaya.errors import FailedPrecondition, InvalidArgument
from nagaya.linux import mounts, namespaces, os, overlay
from nagaya.vm.program import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_MOST_KEPT = 64  # images; the least recently used go first
_MOST_BYTES = 8 << 30
DISK, DISK_SIZE = "microvm.ext4", "10G"  # sparse: it takes what is written
# a journal, for a machine may be killed; tables that are not written before they are needed
_EXT4 = "-q -F -J size=4 -O ^resize_inode -m 0 -N 262144 -E lazy_itable_init=1,nodiscard".split()
_NO_EXT4 = "mkfs.ext4 is not installed: apt-get install e2fsprogs"
_MISSING = "mkfs.erofs is not installed: apt-get install erofs-utils"


class Layers:
    """What an overlay is made of: lower directories from top to bottom."""

    __slots__ = ("lower", "upper")

    def __init__(self, lower: list[str], upper: str) -> None:
        self.lower = lower
        self.upper = upper


def layers_of(mountinfo: str, path: str) -> Layers | None:
    """The layers of the overlay mounted at path, None when there is none, or when its layers are told in a
    way that only its maker understands (pure; proc_pid_mountinfo(5), overlayfs.rst)."""
    found = None
    for line in mountinfo.splitlines():
        head, _, tail = line.partition(" - ")
        fields, rest = head.split(" "), tail.split(" ", 2)
        if len(fields) > 4 and len(rest) == 3 and _plain(fields[4]) == path:
            found = _of_options(_plain(rest[2])) if rest[0] == "overlay" else None
    return found


def _plain(field: str) -> str:
    """Octal escapes of blanks and backslashes undone."""
    parts = field.split("\\")
    text = parts[0]
    for part in parts[1:]:
        octal = part[:3]
        text += chr(int(octal, 8)) + part[3:] if octal.isdigit() else "\\" + part
    return text


def _of_options(text: str) -> Layers | None:
    values: dict[str, list[str]] = {}
    for word in text.split(","):
        key, _, value = word.partition("=")
        values.setdefault(key.rstrip("+"), []).append(value)
    lower = [path for value in values.get("lowerdir", []) for path in value.split(":")]
    upper = (values.get("upperdir") or [""])[0]
    paths = [*lower, *([upper] if upper else [])]
    if not lower or not all(path.startswith("/") and "\\" not in path for path in paths):
        return None
    return Layers(lower, upper)


class Disks:
    """What a root is made of: images, the topmost first, and a disk to write to, or ""."""

    __slots__ = ("images", "writable")

    def __init__(self, images: list[str], writable: str) -> None:
        self.images = images
        self.writable = writable


def disks(rootfs: str, cache: str, own: str) -> Disks:
    """The disks of a root. cache: the directory of images that are kept; own: the container's directory.
    Raises FailedPrecondition (no mkfs.erofs), InvalidArgument (no such root)."""
    found = _layers(rootfs)
    writable = _writable(found.upper) if found is not None and found.upper else ""
    return Disks(images(rootfs, cache, own), writable)


def images(rootfs: str, cache: str, own: str) -> list[str]:
    """The read-only ones alone: for who writes to the guest's memory."""
    found = _layers(rootfs)
    if found is None:
        return [_kept(cache, _fingerprint(rootfs), rootfs)]
    key = "\n".join(_identity(path) for path in found.lower)
    made = [_kept(cache, f"layers\n{key}", found.lower[0], found.lower[1:])]
    if found.upper and os.listdir(found.upper):
        image = f"{own}/upper.erofs"
        _make(image, found.upper)
        made.insert(0, image)
    return made


def _layers(rootfs: str) -> Layers | None:
    found = layers_of(_mountinfo(), rootfs)
    return found if found is not None and all(os.isdir(path) for path in found.lower) else None


def _writable(upper: str) -> str:
    """The disk beside an upper directory, made now if there is none."""
    path = f"{os.dirname(upper)}/{DISK}"
    if not os.exists(path):
        temporary = f"{path}.{os.getpid()}"
        try:
            _run(["mkfs.ext4", *_EXT4, temporary, DISK_SIZE], _NO_EXT4)
            os.rename(temporary, path)
        finally:
            _unlink(temporary)
    return path


def _mountinfo() -> str:
    fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        while chunk := os.read(fd, 1 << 20):
            data += chunk
    finally:
        os.close(fd)
    return data.decode("utf-8", "surrogateescape")


def _identity(directory: str) -> str:
    info = os.stat(directory)
    return f"{directory} {info.st_dev} {info.st_ino} {info.st_ctime_ns}"


def _fingerprint(top: str) -> str:
    """All that tells one state of a tree from another."""
    try:
        pending, lines = [top], [_identity(top)]
        while pending:
            directory = pending.pop()
            for entry in os.scandir(directory):
                info = entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                lines.append(f"{entry.path} {info.st_ino} {info.st_size} {info.st_mode} {info.st_ctime_ns}")
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise InvalidArgument(f"stat {error.filename or top}: {reason}", subject="root.path") from None
    return "tree\n" + "\n".join(sorted(lines))


def _kept(cache: str, key: str, top: str, below: list[str] | None = None) -> str:
    """The image with that key, made now if there is none."""
    from _sha256 import sha256  # type: ignore[import-not-found]

    path = f"{cache}/{sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()}.erofs"
    if os.exists(path):
        os.utime(path)
        return path
    os.makedirs(cache, 0o700, exist_ok=True)
    _tidy(cache)
    if not below:
        _make(path, top)
        return path
    tree = overlay.mount_overlay({"type": "overlay", "lower": [top, *below]})
    place = f"{path}.{os.getpid()}.d"
    os.mkdir(place, 0o700)

    def attach() -> None:
        # for mkfs.erofs alone: it wants a path, and nobody else needs to see it
        namespaces.unshare(namespaces.CLONE_NEWNS)
        mounts.mount(None, "/", None, mounts.MS_PRIVATE | mounts.MS_REC)
        mounts.move_mount(tree, mounts.AT_FDCWD, place)

    try:
        _make(path, place, attach)
    finally:
        os.close(tree)
        os.rmdir(place)
    return path


def _make(path: str, top: str, first: Callable[[], None] = lambda: None) -> None:
    """mkfs.erofs, under another name first: of two who make the same, the later one wins."""
    temporary = f"{path}.{os.getpid()}"
    words = ["mkfs.erofs", "--quiet", "-d0", "-Eforce-inode-extended", temporary, top]
    try:
        _run(words, _MISSING, first)
        os.rename(temporary, path)
    finally:
        _unlink(temporary)


def _run(words: list[str], missing: str, first: Callable[[], None] = lambda: None) -> None:
    code, said = run(words, missing=missing, first=first)
    if code:
        last = said.strip().rpartition("\n")[2] or f"code {code}"
        raise FailedPrecondition(f"{words[0]}: {last}", step="make the root's disk")


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _tidy(cache: str) -> None:
    """Let the least recently used images go: whoever uses one has it open."""
    found: list[tuple[float, int, str]] = []
    for entry in os.scandir(cache):
        info = entry.stat(follow_symlinks=False)
        if not entry.name.endswith(".erofs") and info.st_mtime < time() - 3600:
            # of somebody who was killed
            (os.rmdir if entry.is_dir(follow_symlinks=False) else os.unlink)(entry.path)
        elif entry.name.endswith(".erofs"):
            found.append((info.st_mtime, info.st_blocks * 512, entry.path))
    found.sort(reverse=True)
    total = 0
    for count, (_, size, path) in enumerate(found, 1):
        total += size
        if count >= _MOST_KEPT or total > _MOST_BYTES:
            os.unlink(path)
