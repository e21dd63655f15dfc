"""Paths below a root that someone else controls: openat2(2) with RESOLVE_IN_ROOT.

After a container's root is open, no path of the image is resolved against the host: everything
goes through these functions (CVE-2021-30465, 2024-45310, 2025-31133 and all their kin).
"""

from __future__ import annotations

import _stat as stat
import errno
from _struct import pack

from nagaya.errors import KernelError
from nagaya.linux import os
from nagaya.linux.ffi import syscall

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

_LINKS = 40  # as many as the kernel follows (path_resolution(7))
_ATTEMPTS = 128  # EAGAIN: a rename elsewhere raced with ".." (openat2(2)); bounded, then an error


def openat2(dirfd: int, path: str, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """openat2(2); close-on-exec always. Raises KernelError."""
    how = pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    for attempt in range(_ATTEMPTS):
        try:
            return syscall("openat2", dirfd, os.fsencode(path), how, len(how), subject=path)
        except KernelError as error:
            if error.errno not in (errno.EAGAIN, errno.EINTR) or attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def open_in_root(rootfd: int, path: str, flags: int, mode: int = 0, *, follow: bool = True) -> int:
    """Open path as a process whose root is rootfd would: "..", absolute paths and symbolic links
    stay inside; magic links are refused. follow=False: the last component is not followed."""
    if not follow:
        flags |= os.O_NOFOLLOW
    return openat2(rootfd, path, flags, mode, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)


def split(path: str) -> tuple[str, str]:
    """("a/b", "c") of "/a//b/c/": parent and last component, without "." and empty ones."""
    parts = [p for p in path.split("/") if p not in ("", ".")]
    return "/".join(parts[:-1]), parts[-1] if parts else ""


def mkdirs_in_root(rootfd: int, path: str, mode: int = 0o755, *, owner: tuple[int, int] | None = None) -> int:
    """Open the directory path below rootfd (O_PATH), making what is missing; return its fd.

    Existing symbolic links are followed inside the root; a component is made only below an open
    fd, so that a racing exchange cannot move the work outside. A dangling link raises
    KernelError(ENOENT or EEXIST) rather than being created through.
    """
    try:
        return open_in_root(rootfd, path, os.O_PATH | os.O_DIRECTORY)
    except KernelError as error:
        if error.errno != errno.ENOENT:
            raise
    done = ""
    parts = [p for p in path.split("/") if p not in ("", ".")]
    if ".." in parts:
        raise KernelError(
            "a missing directory cannot be made through '..'", subject=path, step="mkdir", errno=errno.ENOENT
        )
    current = os.dup(rootfd)
    try:
        for part in parts:
            done = f"{done}/{part}"
            # resolve from the root each time: a link found on the way may lead anywhere inside it
            try:
                following = open_in_root(rootfd, done, os.O_PATH | os.O_DIRECTORY)
            except KernelError as error:
                if error.errno != errno.ENOENT:
                    raise
                try:
                    os.mkdir(part, mode, dir_fd=current)
                    made = True
                except FileExistsError:
                    made = False
                following = openat2(
                    current,
                    part,
                    os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW,
                    0,
                    RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS,
                )
                if made and owner is not None:
                    os.chown(part, *owner, dir_fd=current, follow_symlinks=False)
            os.close(current)
            current = following
        result, current = current, -1
        return result
    finally:
        if current >= 0:
            os.close(current)


def create_in_root(rootfd: int, path: str, mode: int = 0o644) -> int:
    """Open the file path below rootfd (O_PATH), making an empty one, and its parents, when it is
    missing: the target of a mount on a file."""
    try:
        return open_in_root(rootfd, path, os.O_PATH)
    except KernelError as error:
        if error.errno != errno.ENOENT:
            raise
    parent, name = split(path)
    dirfd = mkdirs_in_root(rootfd, parent)
    try:
        fd = os.open(
            name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=dirfd
        )
        os.close(fd)
        return openat2(dirfd, name, os.O_PATH | os.O_NOFOLLOW, 0, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
    except OSError as error:
        raise KernelError(
            os.strerror(error.errno or 0).lower(), subject=path, step=f"create {path}", errno=error.errno or 0
        ) from None
    finally:
        os.close(dirfd)


def resolve_in_root(rootfd: int, path: str) -> str:
    """Where path leads below rootfd, every symbolic link replaced, also one that leads to nothing yet.

    Only a name: whoever makes it goes through `mkdirs_in_root` or `create_in_root`. Raises
    KernelError(ELOOP).
    """
    done: list[str] = []
    ahead = [p for p in path.split("/") if p not in ("", ".")]
    links = 0
    while ahead:
        part = ahead.pop(0)
        if part == "..":
            del done[-1:]
            continue
        leads_to = _link(rootfd, "/".join([*done, part]))
        if leads_to is None:
            done.append(part)
            continue
        links += 1
        if links > _LINKS:
            raise KernelError(os.strerror(errno.ELOOP).lower(), subject=path, errno=errno.ELOOP)
        if leads_to.startswith("/"):
            done = []
        ahead[:0] = [p for p in leads_to.split("/") if p not in ("", ".")]
    return "/".join(done)


def _link(rootfd: int, path: str) -> str | None:
    """What a symbolic link says; None when it is none, or nothing."""
    try:
        fd = open_in_root(rootfd, path, os.O_PATH, follow=False)
    except KernelError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise
        return None
    try:
        return os.readlink("", dir_fd=fd) if stat.S_ISLNK(os.fstat(fd).st_mode) else None
    finally:
        os.close(fd)


def fd_path(fd: int) -> str:
    """The path by which mount(2) and others reach an open fd without resolving anything again."""
    return f"/proc/self/fd/{fd}"


def is_dir(fd: int) -> bool:
    """Is the open fd a directory?"""
    return stat.S_ISDIR(os.fstat(fd).st_mode)
