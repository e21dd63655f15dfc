"""Does KVM work here? Only a guest that has booted with it is an answer.

/dev/kvm may open, and what is behind it run nothing but a kernel made for it (another hypervisor's stand-in):
QEMU then aborts, or the guest stands still. So one guest is booted, once for each boot of the host and each
QEMU, and the answer kept.
"""

from __future__ import annotations

from nagaya.errors import NagayaError
from nagaya.linux import os
from nagaya.vm import accel, assets, qemu, templates
from nagaya.vm.machine import Machine, Memory, Port

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.vm.confine import Confinement

_PATIENCE = 20.0  # seconds: with KVM a guest is there in one


def _boots(kernels: str, confined: Confinement | None) -> bool:
    guest = assets.find("cloud", kernels)
    machine = Machine(
        kernel=guest.kernel,
        initrd=guest.initrd,
        cmdline=accel.cmdline("kvm"),
        memory=Memory(128),
        ports=[Port(qemu.AGENT)],
        accel="kvm",
    )
    try:
        vm = qemu.launch(machine, confined=confined, timeout=_PATIENCE)
    except NagayaError:
        return False
    try:
        templates.await_ready(vm, _PATIENCE)
    except NagayaError:
        return False
    finally:
        vm.close()
    return True


def accelerator(directory: str, *, kernels: str = "", confined: Confinement | None = None) -> str:
    """What machines here shall run with: "kvm" or "tcg". The answer is kept in a file of the directory, which
    is made. kernels: as `assets.find` has it. Raises NotFound (nothing to boot, no QEMU), OSError."""
    if accel.here() != "kvm":
        return "tcg"
    boot = templates.read("/proc/sys/kernel/random/boot_id").decode().strip()
    asked = f"{templates.stamp(assets.find_qemu())} {boot}"
    path = f"{directory}/accelerator"
    try:
        answer, _, about = templates.read(path).decode("utf-8", "replace").partition(" ")
        if about == asked and answer in ("kvm", "tcg"):
            return answer
    except FileNotFoundError:
        pass
    answer = "kvm" if _boots(kernels, confined) else "tcg"
    os.makedirs(directory, 0o700, exist_ok=True)
    new = f"{path}.{os.getpid()}"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, f"{answer} {asked}".encode())
    finally:
        os.close(fd)
    os.rename(new, path)
    return answer
