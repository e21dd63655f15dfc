"""Where the kernel and the first root of microVMs lie, and QEMU."""

from __future__ import annotations

from nagaya.errors import NotFound
from nagaya.linux import os

# Debian's cloud kernel starts faster; only the full one has 9p, for directories of the host
KINDS = ("cloud", "full")
VARIABLE = "NAGAYA_VM_GUEST"
_INSTALLED = "/var/lib/nagaya/vm/guest"
# of a checkout, whose `./dev vm` makes it; in an installation it is not there
_MADE_HERE = os.dirname(os.dirname(os.dirname(os.dirname(os.realpath(__file__))))) + "/build/vm/guest"
_QEMU = "/usr/bin/qemu-system-x86_64"


class Guest:
    """A kernel (ELF with a PVH entry) and the initramfs with its modules and our agent."""

    __slots__ = ("initrd", "kernel")

    def __init__(self, kernel: str, initrd: str) -> None:
        self.kernel = kernel
        self.initrd = initrd


def find(kind: str = "cloud", directory: str = "") -> Guest:
    """That kind of guest, in the directory given, else where $NAGAYA_VM_GUEST says, else where `./dev vm`
    puts it. Raises NotFound."""
    given = directory or os.environ.get(VARIABLE.encode(), b"").decode()
    for place in [given] if given else [_MADE_HERE, _INSTALLED]:
        guest = Guest(f"{place}/{kind}/vmlinux", f"{place}/{kind}/initramfs")
        if os.exists(guest.kernel) and os.exists(guest.initrd):
            return guest
    raise NotFound(
        f"no {kind} kernel for microVMs in {given or _INSTALLED}: `./dev vm {given or _INSTALLED}` makes it",
        subject=given or _INSTALLED,
    )


def find_qemu() -> str:
    """The emulator's path. Raises NotFound."""
    for directory in [
        os.dirname(_QEMU),
        *os.environ.get(b"PATH", b"").decode("utf-8", "replace").split(":"),
    ]:
        if directory.startswith("/") and os.exists(f"{directory}/qemu-system-x86_64"):
            return f"{directory}/qemu-system-x86_64"
    raise NotFound("no QEMU for microVMs: install qemu-system-x86", subject="qemu-system-x86_64")
