"""An overlay as a detached mount (overlayfs.rst)."""

from __future__ import annotations

from _thread import allocate_lock, start_new_thread
from errno import EINVAL

from nagaya.errors import KernelError
from nagaya.linux import caps, namespaces, os
from nagaya.linux import mounts as m

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# the first Linux whose overlay takes its layers one by one; fsconfig(2) has no room for all in one string
_ONE_BY_ONE = (6, 7)
_MOST = 500  # layers (OVL_MAX_STACK); more are EINVAL, too


def mount_overlay(overlay: dict[str, Any], *, alone: bool = False) -> int:
    """A detached overlay mount (overlayfs.rst): lower directories from top to bottom.

    alone: the caller's mount namespace is its own, and private. Raises KernelError.
    """
    if takes_layers_one_by_one(os.uname().release):
        return _by_fsconfig(overlay)
    return _by_mount(overlay) if alone else _elsewhere(overlay)


def mapped(directory: str, userns: int) -> int:
    """A detached copy of the mount of a directory, in which owners are mapped as in the user namespace
    (mount_setattr(2), MOUNT_ATTR_IDMAP): a lower layer for containers there. Raises KernelError."""
    tree = m.open_tree(m.AT_FDCWD, directory, m.OPEN_TREE_CLONE)
    try:
        m.mount_setattr(tree, attr_set=m.MOUNT_ATTR_IDMAP, userns_fd=userns)
    except BaseException as error:
        os.close(tree)
        if isinstance(error, KernelError) and error.errno == EINVAL:
            raise KernelError(
                "its file system cannot have owners mapped (MOUNT_ATTR_IDMAP)",
                subject=directory,
                step=f"idmap {directory}",
                errno=EINVAL,
            ) from None
        raise
    return tree


def mount_mapped(overlay: dict[str, Any], userns: int, uid: int, gid: int) -> int:
    """A detached overlay mount, in which the owners of all layers, the writable one's too, are mapped as in
    the user namespace; uid, gid: its root. The writable layer and its work directory lie side by side.
    Raises KernelError.

    Its files of its own in the writable layer (copies in the making, whiteouts) an overlay makes as who has
    mounted it; nobody of ours can be written there, so that is the namespace's root, with our rights.
    """
    trees: list[int] = []

    def there(directory: str) -> str:
        trees.append(mapped(directory, userns))
        return f"/proc/self/fd/{trees[-1]}"

    try:
        found = {**overlay, "lower": [there(layer) for layer in overlay["lower"]]}
        if overlay.get("upper"):
            # both on one mount, as the kernel demands
            base = os.dirname(overlay["upper"])
            place = there(base)
            found |= {key: place + overlay[key].removeprefix(base) for key in ("upper", "work")}
        with caps.acting_as(uid, gid):
            return mount_overlay(found)
    finally:
        for fd in trees:
            os.close(fd)


def takes_layers_one_by_one(release: str) -> bool:
    """Does the overlay of this release of Linux know lowerdir+ (pure)?"""
    numbers = [int(digits) for word in release.split(".")[:2] if (digits := word.partition("-")[0]).isdigit()]
    return tuple(numbers) >= _ONE_BY_ONE


def _by_fsconfig(overlay: dict[str, Any]) -> int:
    fd = m.fsopen("overlay")
    try:
        for layer in overlay["lower"]:
            m.fsconfig_string(fd, "lowerdir+", layer)
        if overlay.get("upper"):
            try:
                m.fsconfig_string(fd, "upperdir", overlay["upper"])
            except KernelError as error:
                raise _upper(error, overlay) from None
            m.fsconfig_string(fd, "workdir", overlay["work"])
        m.fsconfig_options(fd, overlay.get("options") or [])
        m.fsconfig_create(fd)
        return m.fsmount(fd)
    finally:
        os.close(fd)


def _by_mount(overlay: dict[str, Any]) -> int:
    """By mount(2), over the topmost layer, and taken from there: nobody else must see this namespace. A
    layer that is mounted nowhere, as one with mapped owners, is no place to mount upon: then over /proc."""
    where: str = overlay["lower"][0]
    if where.startswith("/proc/self/fd/"):
        where = "/proc"
    opened: list[int] = []

    def short(path: str) -> str:
        # mount(2) takes a page of options: room for some 200 layers so, and nothing to escape
        opened.append(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        return f"/proc/self/fd/{opened[-1]}"

    try:
        words = ["lowerdir=" + ":".join(short(layer) for layer in overlay["lower"])]
        if overlay.get("upper"):
            words += [f"upperdir={short(overlay['upper'])}", f"workdir={short(overlay['work'])}"]
        try:
            m.mount("overlay", where, "overlay", 0, ",".join([*words, *(overlay.get("options") or [])]))
        except KernelError as error:
            raise _upper(error, overlay) from None
        try:
            return m.open_tree(m.AT_FDCWD, where, m.OPEN_TREE_CLONE)
        finally:
            m.umount2(where, m.MNT_DETACH)
    finally:
        for fd in opened:
            os.close(fd)


def _upper(error: KernelError, overlay: dict[str, Any]) -> KernelError:
    """The kernel says EINVAL of a file system that is no place to write to for an overlay (overlayfs.rst,
    "Upper and Lower": no NFS, no overlay with layers of its own); what it is, it tells its log alone."""
    upper = overlay.get("upper")
    if error.errno != EINVAL or not upper or len(overlay["lower"]) > _MOST:
        return error
    return KernelError(
        "an overlay cannot write to its file system: put the daemon's --root on another, as ext4 or xfs",
        subject=upper,
        step=f"overlay {upper}",
        errno=EINVAL,
    )


def _elsewhere(overlay: dict[str, Any]) -> int:
    """The same in a mount namespace that nobody sees: that of a thread that ends with it."""
    done = allocate_lock()
    made: list[int] = []
    failed: list[BaseException] = []

    def mount() -> None:
        try:
            namespaces.unshare(namespaces.CLONE_NEWNS)
            m.mount(None, "/", None, m.MS_PRIVATE | m.MS_REC)
            made.append(_by_mount(overlay))
        except BaseException as error:
            failed.append(error)
        finally:
            done.release()

    done.acquire()
    start_new_thread(mount, ())
    done.acquire()
    if failed:
        raise failed[0]
    return made[0]
