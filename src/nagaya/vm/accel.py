"""Which accelerator QEMU can use here, and what the guest's kernel must be told with each."""

from __future__ import annotations

from nagaya.linux import os

# What makes Debian's kernels start fast in a microVM, each measured: no self-tests of ciphers, no
# mitigations (the guest is one tenant), a reset ends QEMU (-no-reboot). `quiet` leaves errors alone.
_ALWAYS = (
    "console=ttyS0 quiet reboot=t panic=-1 cryptomgr.notests mitigations=off random.trust_cpu=on"
    " 8250.nr_uarts=1 i8042.noaux i8042.nokbd audit=0"
)
_VIRTUALIZED = (b"vmx", b"svm")


def _read(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, 65536)
    finally:
        os.close(fd)


def may_have_kvm(cpuinfo: bytes, *, device: bool) -> bool:
    """Could KVM run a stock kernel? /dev/kvm alone says little: where the processor offers no
    virtualization, another hypervisor's stand-in for it may open and then hang. One boot is the proof."""
    flags = next((line for line in cpuinfo.split(b"\n") if line.startswith(b"flags")), b"").split()
    return device and any(flag in flags for flag in _VIRTUALIZED)


def here() -> str:
    """ "kvm" where a boot with it may be tried, else "tcg"."""
    device = os.access("/dev/kvm", os.R_OK | os.W_OK)
    return "kvm" if may_have_kvm(_read("/proc/cpuinfo"), device=device) else "tcg"


def tsc_khz(cpuinfo: bytes) -> int:
    """The speed of the host's time stamp counter, which an emulated guest sees; 0 where it is not told.

    A guest's processor tells it as its clock. A real one tells its clock of this moment, and counts at the
    nominal one, which Intel's have in their names: "... CPU @ 2.60GHz".
    """
    told: dict[bytes, bytes] = {}
    for line in cpuinfo.split(b"\n"):
        name, _, value = line.partition(b":")
        told.setdefault(name.strip(), value.strip())
    named = told.get(b"model name", b"").rpartition(b" @ ")[2]
    if named.endswith(b"GHz") and b"hypervisor" not in told.get(b"flags", b"").split():
        return _number(named[:-3], 1_000_000)
    return _number(told.get(b"cpu MHz", b""), 1000)


def _number(text: bytes, factor: int) -> int:
    try:
        return round(float(text) * factor)
    except ValueError:
        return 0


def clock_words(accel: str, *, cpuinfo: bytes | None = None) -> str:
    """What the kernel of a machine with that accelerator must be told of its clock.

    An emulated microVM has no timer to calibrate the TSC by, and its kernel would look for one for ever: so
    it is told. KVM has its own clock.
    """
    if accel == "tcg" and (khz := tsc_khz(_read("/proc/cpuinfo") if cpuinfo is None else cpuinfo)):
        return f"no_timer_check tsc_early_khz={khz} tsc=reliable lpj={2 * khz}"
    return ""


def cmdline(accel: str, extra: str = "", *, cpuinfo: bytes | None = None) -> str:
    """The kernel's command line for a machine with that accelerator."""
    return " ".join(words for words in (_ALWAYS, clock_words(accel, cpuinfo=cpuinfo), extra) if words)
